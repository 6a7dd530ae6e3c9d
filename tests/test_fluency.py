"""Several fillings of a text, of which the most fluent is given."""

import pytest
import torch
from tiny import tiny_checkpoint

from textdiff.checkpoint import Checkpoint
from textdiff.filling import infill, start_state
from textdiff.gaps import parse
from textdiff.posterior import Decode
from textdiff.scoring import filled_state
from textdiff.tokens import Tokens, concatenate

TEXT = "We [GAP] people, [GAP] more perfect union."


@pytest.fixture(scope="module")
def made() -> Checkpoint:
    """The weights are made larger: as they are drawn, every word is as likely as another."""
    checkpoint = tiny_checkpoint("autoregressive", max_gap=4, num_steps=1, process="deletion")
    with torch.no_grad():
        for weights in checkpoint.model.parameters():
            weights.mul_(3 if weights.dim() > 1 else 1)
    return checkpoint


def by_hand(checkpoint: Checkpoint, x0: Tokens) -> float:
    """One text (1, L) by the stock model alone, word for word."""
    logits = checkpoint.model(input_ids=x0.ids).logits[0].double()
    logits[:, checkpoint.specials.not_text] = -torch.inf
    law, total, run, since = logits.log_softmax(-1), 0.0, [], 9
    for column in range(x0.ids.shape[1]):
        score = float(law[column - 1, x0.ids[0, column]].detach()) if column else 0.0
        if not x0.fixed[0, column]:
            run.append(score)
            since = 0
            continue
        since += 1
        total, run = total + (sum(run) / len(run) + sum(run) / 10 if run else 0.0) + score * (since <= 3), []
        since = since if x0.sealed[0, column] else 0  # a gap that is left empty
    return total


LENGTHS = "It [GAP:2] is [GAP] so, [GAP]."
FILLINGS = [
    (TEXT, ("the", "a")),
    (TEXT, ("go on and", "of the")),
    (TEXT, ("", "the people of the")),
    (TEXT, ("", "")),
    (LENGTHS, ("a", "", "of the")),
    (LENGTHS, ("a", "and", "")),
]


@torch.no_grad()
def test_three_given_words_count_and_written_ones_by_their_mean_and_a_tenth_of_their_sum(made: Checkpoint) -> None:
    tools = made.tools()
    rows = [filled_state(parse(text), filling, made.tokenizer, made.specials) for text, filling in FILLINGS]
    found = tools["denoiser"].fluency(concatenate(rows, made.specials.pad))
    expected = torch.tensor([by_hand(made, row) for row in rows], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    whole = [float(tools["denoiser"].fluency(row.with_(fixed=row.valid))) for row in rows]
    # as running text it is another figure
    assert not torch.allclose(expected, torch.tensor(whole, dtype=torch.float64))


def test_what_is_drawn_is_compared_as_what_is_given(made: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """32 fillings of a gap that may be empty: what a run compares has the marks of a text that was given filled."""
    tools, seen = made.tools() | {"tokenizer": made.tokenizer}, []
    fluency = tools["denoiser"].fluency
    monkeypatch.setattr(tools["denoiser"], "fluency", lambda x0: seen.append(x0) or fluency(x0))
    parts = parse("We [GAP] people.")
    infill([parts], candidates=32, decode=Decode(max_gap=2), **tools)
    start = start_state([parts], made.tokenizer, made.specials)
    at = start.ids[0].tolist().index(made.specials.gap)
    sizes = set()
    for x0 in [batch[row : row + 1] for batch in seen for row in range(len(batch))]:
        written = x0.ids[x0.valid & ~x0.fixed]
        sizes.add(len(written))
        index = [*range(at), *[at] * len(written), *range(at + 1, start.ids.shape[1])]
        given = start.take(torch.tensor([index]), made.specials.pad)
        given.ids[0, at : at + len(written)] = written
        assert fluency(x0).tolist() == pytest.approx(fluency(given).tolist(), abs=1e-4)
    assert sizes == {0, 1, 2}


def test_the_most_fluent_of_the_candidates_is_given(made: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = made.tools() | {"tokenizer": made.tokenizer}
    # any figure would do; here the fullest text is called the most fluent
    monkeypatch.setattr(tools["denoiser"], "fluency", lambda x0: x0.valid.sum(1).double())
    decode = Decode(max_gap=4)
    found = infill([parse(TEXT)], samples=2, candidates=8, seed=1, decode=decode, **tools)[0]
    pool = infill([parse(TEXT)], samples=16, seed=1, decode=decode, **tools)[0]
    for number, best in enumerate(found):
        sizes = [sum(len(gap.tokens) for gap in one.gaps) for one in pool[8 * number : 8 * number + 8]]
        assert len({*sizes}) > 1
        assert best.text == pool[8 * number + sizes.index(max(sizes))].text


@pytest.mark.parametrize("tokens", [30, 2048])
def test_calls_are_those_of_all_candidates(made: Checkpoint, monkeypatch: pytest.MonkeyPatch, tokens: int) -> None:
    """In one portion or in several: counted at the model itself."""
    monkeypatch.setattr("textdiff.clocks.TOKENS", tokens)
    seen = []
    handle = made.model.base_model.register_forward_pre_hook(lambda *_: seen.append(1))
    tools = made.tools() | {"tokenizer": made.tokenizer}
    found = infill([parse(TEXT)], candidates=8, seed=1, decode=Decode(max_gap=4), **tools)[0][0]
    handle.remove()
    assert found.calls == len(seen)


def test_empty_fillings_at_the_end_have_nothing_to_compare(made: Checkpoint) -> None:
    row = filled_state(parse("We.[GAP]"), [""], made.tokenizer, made.specials)
    assert made.tools()["denoiser"].fluency(concatenate([row, row], made.specials.pad)).tolist() == [0, 0]


def test_models_that_cannot_compare_say_so() -> None:
    other = tiny_checkpoint("parallel")
    state = start_state([parse("We [GAP].")], other.tokenizer, other.specials)
    with pytest.raises(ValueError, match="leave candidates at 1"):
        other.tools()["denoiser"].fluency(state)


def test_equal_rows_are_asked_once_and_answered_each(made: Checkpoint) -> None:
    texts = ["We [GAP] people, [GAP] union.", "It [GAP].", "We [GAP] people, [GAP] union.", "It [GAP]."]
    x = start_state([parse(text) for text in texts], made.tokenizer, made.specials)
    first, back = x.distinct()
    assert sorted(first.tolist()) == [0, 1] and first[back].tolist() == [0, 1, 0, 1]
    denoiser, where = made.tools()["denoiser"], x.ids == made.specials.gap
    posterior = denoiser(x, torch.ones(4, dtype=torch.float64))
    read: list[int] = []
    handle = made.model.base_model.register_forward_pre_hook(
        lambda module, args, given: read.append(len(given["input_ids"])), with_kwargs=True
    )
    with torch.no_grad():
        found = posterior.ask(x, where)
    handle.remove()
    assert read == [2]
    alone = torch.cat([posterior.ask(x[row : row + 1], where[row : row + 1]) for row in range(4)])
    torch.testing.assert_close(found, alone)
