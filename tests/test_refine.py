"""Rewriting a draft: what is kept stays byte for byte, and t says how much of the rest may change."""

import pytest
import torch
from test_laws import COUNT, FIXED_LENGTH, MASKING, data, fit, law_of, tally, time
from tiny import WORDS, tiny_checkpoint

from textdiff.denoiser import Oracle
from textdiff.drafts import find, refine, split
from textdiff.filling import infill, start_state
from textdiff.gaps import parse
from textdiff.keys import Key
from textdiff.posterior import Decode
from textdiff.process import Deletion, Masking, Mixture
from textdiff.rules import fresh, partial, posterior
from textdiff.sampler import sample

TEXT = "We the people é of 1787; [MASK] \t go on."


@pytest.fixture(scope="module")
def tools() -> dict:
    return tiny_checkpoint(texts=[*WORDS, TEXT], reads=512).tools()


@pytest.mark.parametrize("rule", [fresh, posterior, partial(0.3)], ids=["fresh", "posterior", "rho"])
@pytest.mark.parametrize("start", [0.25, 0.7])
def test_a_perfect_denoiser_gives_the_data_from_any_time(start: float, rule) -> None:
    """x_t of the data at any t, run back, is data. N = 50,000, chi-square, false alarm 1e-6."""
    words = data(FIXED_LENGTH)
    x0 = words[torch.arange(COUNT) % len(words)]
    key, t = Key.of(0, COUNT), time(COUNT, start)
    x = MASKING.corrupt(x0, MASKING.noise(x0, key.fold(99)), t)
    oracle = Oracle(MASKING, words)
    *_, last = sample(oracle, MASKING, x, steps=3, key=key, rule=rule, start=start)
    assert fit(tally(last.x.ids), law_of(FIXED_LENGTH)) > 1e-6
    skewed = MASKING.corrupt(words[:1], MASKING.noise(words[:1], key[:1]), t[:1])  # the control: one draft alone
    *_, last = sample(oracle, MASKING, skewed[torch.zeros(COUNT, dtype=torch.long)], steps=3, key=key, start=start)
    assert fit(tally(last.x.ids), law_of(FIXED_LENGTH)) < 1e-6


@pytest.mark.parametrize("keep", [[(7, 15)], [(0, 3), (3, 10), (24, 30)], [(25, len(TEXT))], []])
@pytest.mark.parametrize("family", [Masking, Deletion])
def test_what_is_kept_comes_back_byte_for_byte(family, keep, tools: dict) -> None:
    tools = tools | {"process": family(tools["specials"])}
    for result in refine([TEXT], 0.8, keep=[keep], steps=3, samples=20, **tools)[0]:
        free = [gap.text for gap in result.gaps]
        stretches = split(TEXT, keep)
        assert len(free) == sum(not kept for _, kept in stretches)
        fillings = iter(free)
        assert result.text == "".join(text if kept else next(fillings) for text, kept in stretches)
        assert all(result.text[gap.start : gap.end] == gap.text for gap in result.gaps)


def test_t_says_how_much_changes(tools: dict) -> None:
    """Of a random model's words none is right: the share of words that stay is alpha(t), 1 - t for masks."""
    tools = tools | {"process": Masking(tools["specials"])}
    draft = " ".join(WORDS)

    def stays(t: float) -> float:
        ids = [tools["tokenizer"].encode(r.text) for r in refine([draft], t, steps=2, samples=40, **tools)[0]]
        whole = tools["tokenizer"].encode(draft)
        pairs = [(a, b) for row in ids if len(row) == len(whole) for a, b in zip(row, whole, strict=True)]
        return sum(a == b for a, b in pairs) / max(len(pairs), 1)

    assert refine([draft], 1e-9, steps=1, **tools)[0][0].text == draft
    assert stays(0.1) > 0.75
    # at t = 1 the draft is forgotten: the model's words are as likely to be right as words are in any text
    assert len({r.text for r in refine([draft], 1.0, steps=2, samples=10, **tools)[0]} | {draft}) == 11


def test_a_sample_does_not_depend_on_the_batch(tools: dict) -> None:
    together = refine([TEXT, WORDS[1]], 0.5, steps=2, samples=2, **tools)
    assert together[1] == refine([WORDS[1]], 0.5, steps=2, samples=2, **tools)[0]
    assert together[0] != refine([TEXT, WORDS[1]], 0.5, steps=2, samples=2, seed=1, **tools)[0]


def test_a_draft_becomes_at_most_four_times_as_long(tools: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    """8 samples of two drafts by a random model, whose gaps are long; without the limit they grow on, which is the control.
    How long one draft may become does not depend on the other.
    """
    tools = tools | {"process": Deletion(tools["specials"])}
    decode = Decode(max_gap=8)
    found = refine([TEXT, "We go"], 0.9, steps=16, samples=8, decode=decode, **tools)
    sizes = [max(len(tools["tokenizer"].encode(one.text)) for one in texts) for texts in found]
    drafts = [len(tools["tokenizer"].encode(text)) for text in (TEXT, "We go")]
    assert all(size <= 4 * draft + 8 for size, draft in zip(sizes, drafts, strict=True))
    alone = refine(["We go"], 0.9, steps=16, samples=8, decode=decode, **tools)[0]
    assert [one.text for one in found[1]] == [one.text for one in alone]
    monkeypatch.setattr("textdiff.drafts._grown", lambda *_: 512)
    control = refine(["We go"], 0.9, steps=16, samples=8, decode=decode, **tools)[0]
    assert max(len(tools["tokenizer"].encode(one.text)) for one in control) > 4 * drafts[1] + 8


def test_a_users_page_is_a_prior_already(tools: dict) -> None:
    """`infill` sends every page through the prior: of masks and deletion it is what it was, of a mixture the first's."""
    ids, texts = tools["specials"], [parse("We [GAP:2] people, [GAP] go on."), parse("[GAP:3]")]
    families = [Deletion(ids), Deletion(ids, staged=True)]
    expected = infill(texts, **tools | {"process": families[0]})
    mixture = Mixture([(1, families[0]), (5, Masking(ids))], ids.pad)
    assert infill(texts, **tools | {"process": mixture}) == expected
    page = start_state(texts, tools["tokenizer"], ids)
    for family in [*families, Masking(ids)]:
        prior = family.prior(page, Key.of(0, 2))
        assert torch.equal(prior.codes(), page.codes())
        assert all(torch.equal(getattr(prior, name), getattr(page, name)) for name in ("fixed", "counted", "sealed"))


@pytest.mark.parametrize(
    ("text", "t", "keep", "message"),
    [
        ("a b", 0.0, [], "t must be a number above 0, at most 1; got 0.0"),
        ("a b", 1.5, [], "t must be a number above 0, at most 1; got 1.5"),
        ("", 0.5, [], "nothing to rewrite: the text is empty"),
        ("a b", 0.5, [(0, 3)], "or all of it is kept"),
        ("a b", 0.5, [(1, 9)], r"span \(1, 9\) is empty, outside the text"),
        ("a b", 0.5, [(2, 2)], r"span \(2, 2\) is empty"),
        ("a b c", 0.5, [(0, 2), (1, 3)], r"span \(1, 3\) is empty, outside the text or over another"),
        ("a " * 600, 0.5, [], "the model reads 512; shorten the text"),
    ],
)
def test_what_cannot_be_refined(text: str, t: float, keep: list, message: str, tools: dict) -> None:
    with pytest.raises(ValueError, match=message):
        refine([text], t, keep=[keep], **tools)


def test_find() -> None:
    assert find("a b, a c", ["a", "a c"]) == [(0, 1), (4, 8)]  # the space before goes with the word
    assert find("a b, a c", ["b", ","]) == [(1, 4)]
    for phrase in ("x", ""):
        with pytest.raises(ValueError, match=f"{phrase!r} is not in the text"):
            find("a b", [phrase])
