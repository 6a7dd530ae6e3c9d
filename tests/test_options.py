"""How texts are drawn: guidance, choosing among candidates, numbers of steps that are chosen here, and ending early."""

import math

import pytest
import torch
from test_laws import SPECIALS, fit, law_of, tally
from test_rules import IDS, WORDS, Ideal, bert, start
from tiny import tiny_checkpoint
from transformers import pipeline

from textdiff import Denoiser, Key, Masking, sample
from textdiff.clocks import clocks, steps_of
from textdiff.continuation import settled
from textdiff.denoiser import Guided
from textdiff.denoiser.guided import SCHEDULES
from textdiff.filling import infill
from textdiff.gaps import Gap, parse
from textdiff.posterior import Decode
from textdiff.rulebook import rule_of
from textdiff.rules import posterior
from textdiff.sampler import finished
from textdiff.selecting import SELECTS
from textdiff.tokens import Tokens, in_order


def page() -> Tokens:
    """Two texts with words of the user's on both sides of what is hidden, and one without any."""
    x = Tokens.from_rows([[1, 40, 2, 2, 41], [1, 42, 43, 2, 44], [1, 2, 2, 2, 2]], 0)
    return x.with_(fixed=x.ids != 2)


@pytest.mark.parametrize("weight", [0.0, 0.7, 2.0])
def test_guidance_by_its_formula(weight: float) -> None:
    """(1 + w) log q(word | all) - w log q(word | without the user's words), from two runs of the model itself."""
    denoiser, x = bert(), page()
    guided = Guided.of(denoiser, weight)
    where = x.ids == 2
    with torch.inference_mode():
        said = guided.read(x).logits(where).log_softmax(-1)
        blind = x.ids.masked_fill(x.fixed & (torch.arange(5) > 0), 2)
        seen, unseen = (denoiser.model(input_ids=ids).logits[where] for ids in (x.ids, blind))
        for part in (seen, unseen):
            part[:, :4] = -torch.inf
        whole = (1 + weight) * seen.log_softmax(-1) - weight * unseen.log_softmax(-1)
        torch.testing.assert_close(said[:, 4:], whole[:, 4:].log_softmax(-1), atol=2e-4, rtol=1e-4)
        assert bool((said[:, :4] == -torch.inf).all())
        pieces = torch.cat(list(guided.read(x).pieces(where)))
    torch.testing.assert_close(pieces.log_softmax(-1), said)
    if weight:
        assert not torch.allclose(said[:, 4:], seen[:, 4:].log_softmax(-1), atol=1e-2)


def test_a_text_without_context_cannot_be_guided() -> None:
    """The last row has nothing but masks, with its context and without."""
    denoiser, x = bert(), page()
    where = (x.ids == 2) & (torch.arange(3)[:, None] == 2)
    with torch.inference_mode():
        torch.testing.assert_close(
            Guided.of(denoiser, 3.0).read(x).logits(where),
            denoiser.read(x).logits(where).log_softmax(-1),
            atol=1e-4,
            rtol=1e-4,
        )


def test_schedules_of_guidance() -> None:
    hidden = torch.tensor([0.0, 0.25, 1.0])
    found = {name: make(2.0)(hidden).tolist() for name, make in SCHEDULES.items()}
    assert found == {"constant": [2, 2, 2], "rising": [2, 1.5, 0], "falling": [0, 0.5, 2]}


@pytest.fixture(scope="module")
def fill():
    made = tiny_checkpoint("parallel")
    return pipeline(
        "text-infilling", model=made.model, tokenizer=made.tokenizer, diffusion_config=made.config, device="cpu"
    )


TEXT = "We [GAP:3] on [GAP:2]."


def test_guidance_in_the_pipeline(fill) -> None:
    plain = fill(TEXT, seed=3)[0]
    assert fill(TEXT, seed=3, guidance=0)[0]["generated_text"] == plain["generated_text"]
    strong = fill(TEXT, seed=3, guidance=8.0, guidance_schedule="rising", num_steps=4)[0]["generated_text"]
    assert strong != plain["generated_text"] and strong.startswith("We ") and " on" in strong


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guidance": -1}, "guidance must be a number of at least 0; got -1"),
        ({"guidance_schedule": "rising"}, "guidance_schedule has no effect without guidance"),
        ({"select": "likely"}, "select has no effect on a single candidate"),
        (
            {"guidance": 1, "guidance_schedule": "up"},
            "guidance_schedule must be one of constant, rising, falling; got 'up'",
        ),
        ({"select": "best", "candidates": 2}, "select must be one of fluent, likely, mbr; got 'best'"),
        ({"min_p": 2}, "min_p must be a number from 0 to 1; got 2"),
        ({"max_time": 0}, "max_time must be a number above 0; got 0"),
        (
            {"num_steps": "many"},
            "num_steps must be a whole number from 1, .* auto, or inf; got many",
        ),
        ({"num_steps": 2.5}, "num_steps must be a whole number from 1, .*; got 2.5"),
    ],
)
def test_bad_options(fill, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fill(TEXT, **options)


def test_guidance_is_for_parallel_models() -> None:
    with pytest.raises(ValueError, match="guidance is for models that say all words at once"):
        Guided.of(tiny_checkpoint("autoregressive").tools()["denoiser"], 1.0)


def test_the_candidate_most_like_the_others() -> None:
    """Of three texts two agree in most words; of one alone it is that one; empty fillings agree."""
    rows = Tokens.from_rows([[1, 5, 6, 7], [1, 5, 6, 8], [1, 9, 10, 11]], 0)
    select = SELECTS["mbr"]
    notes = select.note(Denoiser, rows)

    def best(merits: list[float]) -> int:
        return max(range(len(merits)), key=merits.__getitem__)

    assert best(select.merits(notes)) == 0 and best(select.merits([notes[2], notes[1], notes[0]])) == 1
    assert best(select.merits(notes[2:])) == 0
    nothing = select.note(Denoiser, rows.with_(fixed=rows.valid))
    assert best(select.merits(nothing)) == 0
    likely = SELECTS["likely"]
    scored = rows.with_(score=torch.tensor([[0.0, -1, -1, -1], [0, -1, -1, -0.5], [0, -3, 0, 0]]))
    assert best(likely.merits(likely.note(Denoiser, scored))) == 1


def test_candidates_of_a_parallel_model(fill) -> None:
    """The one given is one of those that were drawn, the likeliest is the likeliest of them; fluency needs another model."""
    several = fill(TEXT, seed=3, num_return_sequences=6)
    for select in ("likely", "mbr"):
        (one,) = fill(TEXT, seed=3, candidates=6, select=select, temperature=1.0)
        drawn = fill(TEXT, seed=3, num_return_sequences=6, temperature=1.0)
        assert one["generated_text"] in [other["generated_text"] for other in drawn]
        assert select != "likely" or one["score"] == pytest.approx(max(other["score"] for other in drawn))
    assert len(several) == 6
    with pytest.raises(ValueError, match="cannot compare whole texts"):
        fill(TEXT, candidates=2)


@pytest.mark.parametrize(("hidden", "due"), [(1, 1), (2, 2), (11, 20), (0, 1)])
def test_steps_that_are_chosen(hidden: int, due: int) -> None:
    """N = 2 (n - 1): each of n words shares its step with half another one; a joint guess takes one step, a rule with a
    budget of its own a step a word; a gap of unknown length counts for 16 tokens."""
    x = Tokens.from_rows([[1, 5, *[2] * hidden]], 0)
    assert clocks(x, IDS, "auto", posterior, joint=False).tolist() == [due]
    assert clocks(x, IDS, "auto", posterior, joint=True).tolist() == [1]
    assert clocks(x, IDS, "auto", rule_of("threshold:0.9"), joint=False).tolist() == [max(hidden, 1)]
    assert clocks(x, IDS, math.inf, posterior, joint=False).tolist() == [math.inf]
    open_ = Tokens.from_rows([[1, 5, 3]], 0)
    assert clocks(open_, IDS, "auto", posterior, joint=False).tolist() == [30]
    assert [steps_of(value) for value in ("auto", None, "inf", 3, "7")] == ["auto", None, math.inf, 3, 7]


def test_words_that_share_a_step() -> None:
    """The promise, counted: 20 words in 38 steps, 5,000 texts; the mean is within five standard errors of 19/38."""
    x, count = Tokens.from_rows([[1] + [5] * 20], 0), 5000
    key = Key.of(1, count)
    u = Masking(SPECIALS).prior(x[torch.zeros(count, dtype=torch.long)], key).eps[:, 1:]
    step = (u * 38).long()
    others = ((step[:, :, None] == step[:, None, :]).sum(2) - 1).double()
    assert abs(float(others.mean()) - 19 / 38) < 5 * float(others.mean(1).std()) / count**0.5


@pytest.mark.parametrize("steps", ["auto", "inf", 5])
def test_numbers_of_steps_in_the_pipeline(fill, steps) -> None:
    """Gaps of known length; word by word calls the model once a word."""
    result = fill(TEXT, num_steps=steps, seed=1)[0]
    assert result["generated_text"].startswith("We ") and len(result["gaps"]) == 2
    assert result["calls"] == 5 if steps == "inf" else result["calls"] <= 5


def test_delete_then_mask_takes_word_by_word_too() -> None:
    """Lengths in one call at the first moment, then a call a word."""
    made = tiny_checkpoint("parallel", staged=True)
    (result,) = infill([parse("We [GAP] on.")], steps=math.inf, seed=4, **made.tools())[0]
    words = len(result.gaps[0].tokens)
    assert result.calls == 1 + words


def test_time_that_is_up() -> None:
    """Everything hidden is drawn in one more step, and the user's words stay; with time left nothing changes."""
    denoiser, x = bert(), page()
    process, key = Masking(IDS), Key.of(0, 3)

    def run(seconds: float) -> tuple[Tokens, int]:
        decode = Decode(deadline=Decode.within(seconds))
        x1 = process.prior(x, key)
        steps = list(sample(denoiser, process, x1, steps=100, key=key, decode=decode, rule=rule_of("fresh")))
        return in_order(list(finished(iter(steps))), 0), len(steps)

    quick, turns = run(1e-9)
    assert turns == 1 and not bool((quick.ids == 2).any()) and bool((quick.ids == x.ids)[x.fixed].all())
    assert run(60)[1] == 100


def test_a_text_ends_at_its_stop_string() -> None:
    """As soon as it stands in what is written without a hole; what comes after it is drawn at once, and cut."""
    made = tiny_checkpoint("autoregressive")
    tokenizer, ids = made.tokenizer, made.specials
    words = tokenizer("go on", add_special_tokens=False)["input_ids"]
    x = Tokens.from_rows([[ids.bos, *words, ids.mask], [ids.bos, ids.mask, *words], [ids.bos, *words, *words]], ids.pad)
    stop = settled(tokenizer, ids, ["on"])
    assert stop(x, torch.ones(3)).tolist() == [True, False, True]
    assert settled(tokenizer, ids, ["off"])(x, torch.ones(3)).tolist() == [False] * 3


def test_the_law_does_not_mind_who_else_is_ended() -> None:
    """Rows that are ended early are drawn at once; those beside them keep their law: 100,000 texts, false alarm 1e-6."""
    x, key = start(Masking(SPECIALS), WORDS, 100_000)
    odd = torch.arange(len(x)) % 2 == 1

    def stop(x: Tokens, t: torch.Tensor) -> torch.Tensor:
        return x.part[:, 0] == 1

    x = x.with_(part=odd.long()[:, None].expand(x.ids.shape))
    found = sample(Ideal(), Masking(SPECIALS), x, steps=math.inf, key=key, stop=stop)
    ids = in_order(list(finished(found)), SPECIALS.pad).ids
    assert fit(tally(ids[~odd]), law_of(WORDS)) > 1e-6
    assert fit(tally(ids[odd]), law_of(WORDS)) < 1e-6


def test_gaps_of_one_choice_still_hold() -> None:
    """A gap under a pattern is drawn as a whole, however few of its words a step shows."""
    made = tiny_checkpoint("parallel", staged=True)
    parts = ["We ", Gap(pattern="[ab]{6}"), " on."]
    for seed in range(6):
        (result,) = infill([parts], steps=6, seed=seed, **made.tools())[0]
        assert set(result.gaps[0].text) <= {"a", "b"} and len(result.gaps[0].text) == 6
