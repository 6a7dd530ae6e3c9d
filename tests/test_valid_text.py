"""Every filling is text: whole characters of UTF-8, whatever tokens a tokenizer has and whoever writes them.

The law: words drawn at once, or one after the other, that make no text are drawn again, given that they do; so they have
the model's own law, given that they are text. It is enumerated for a tokenizer of six tokens.
"""

import math
from collections import Counter
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from scipy import stats
from test_automata import tokenizer
from tiny import KINDS, tiny_checkpoint

from textdiff.automata import text_automaton
from textdiff.continuation import Size, write
from textdiff.denoiser.words import at_once, broken
from textdiff.drawing import truncate
from textdiff.filling import infill
from textdiff.gaps import Gap
from textdiff.keys import Key
from textdiff.posterior import Decode
from textdiff.spelling import breaks_characters, joined, pieces, read_on
from textdiff.tokens import Specials, Tokens

LAW = torch.tensor([[0.3, 0.1, 0.4, 0.2], [0.2, 0.2, 0.1, 0.5], [0.5, 0.2, 0.2, 0.1]], dtype=torch.float64)
LEAD, TAIL, A = "\u00c3", "\u00a9", "a"  # the letters by which byte-level tokenizers write the two bytes of é


def ids_of(t: Any, *names: str) -> list[int]:
    return [t.convert_tokens_to_ids(name) for name in names]


def valid(spelt: Any, ids: tuple[int, ...]) -> bool:
    try:
        b"".join(spelt[i] or b"\xff" for i in ids).decode()
    except UnicodeDecodeError:
        return False
    return True


@pytest.mark.parametrize("left_out", [{}, {"top_k": 3}, {"top_p": 0.75}])
def test_words_at_once_have_the_law_of_those_that_are_text(left_out: dict[str, Any]) -> None:
    """Words that are improbable are left out first, then what is no text.

    3,000 draws of three words, each a, b, or one of the two bytes of é, by chi-square against the enumerated law, at a
    false-alarm rate of 1e-4; without the second draw a quarter of them is no text.
    """
    checkpoint = tiny_checkpoint("parallel")
    t, specials = checkpoint.tokenizer, checkpoint.specials
    size, spelt = len(t), pieces(t, len(t))
    some = ids_of(t, A, "b", LEAD, TAIL)
    weights = LAW
    weights, law = truncate(weights.log(), Decode(**left_out)).exp(), {}
    for row in product(range(4), repeat=3):
        if valid(spelt, tuple(some[k] for k in row)):
            law[row] = float(torch.stack([weights[i, k] for i, k in enumerate(row)]).prod())
    assert 0.1 < sum(law.values()) < 0.9 and (2, 3, 0) in law
    count = 3000
    x = Tokens.from_rows([[specials.bos, *[specials.mask] * 3]] * count, specials.pad)
    mask = x.ids == specials.mask
    x = x.with_(fixed=~mask)
    logits = torch.full((3, size), -torch.inf, dtype=torch.float64)
    logits[:, some] = LAW.log()

    def say(at: torch.Tensor) -> list[torch.Tensor]:
        return [logits[at.nonzero()[:, 1] - 1]]

    u = Key.of(0, torch.arange(count)).uniform(4)
    decode = Decode(text=text_automaton(t, size), **left_out)
    counts = drawn(x, mask, say, decode, u, specials, some)
    law = {row: p for row, p in law.items() if p}
    assert {*counts} == {*law}
    total = sum(law.values())
    seen = [counts[row] for row in law]
    assert stats.chisquare(seen, [count * p / total for p in law.values()]).pvalue > 1e-4
    control = drawn(x, mask, say, replace(decode, text=None), u, specials, some)
    assert sum(number for row, number in control.items() if row not in law) > count / 4


@pytest.mark.parametrize("kind", ["autoregressive", "parallel"])
@pytest.mark.parametrize("left_out", [{"top_k": 3}, {"top_p": 0.65}, {"min_p": 0.55}])
def test_one_word_has_the_law_of_what_is_left_out_first(kind: str, left_out: dict[str, Any], monkeypatch: Any) -> None:
    """2,000 fillings of one token, half of whose law are parts of characters, by chi-square at a false-alarm rate of 1e-4.

    The control is what the second draw alone would give, where parts of characters are left out before.
    """
    checkpoint = tiny_checkpoint(kind)
    some = ids_of(checkpoint.tokenizer, LEAD, A, "b", "c", TAIL)
    weights = torch.tensor([0.38, 0.3, 0.2, 0.08, 0.04], dtype=torch.float64)

    def fixed(logits: torch.Tensor, *_: Any) -> torch.Tensor:
        return torch.full_like(logits, -torch.inf).index_copy_(
            1, torch.tensor(some), weights.log().to(logits)[None].expand(len(logits), -1)
        )

    for module in ("autoregressive", "parallel"):
        monkeypatch.setattr(f"textdiff.denoiser.{module}.possible", fixed)
    decode = replace(
        checkpoint.config.decode(), text=text_automaton(checkpoint.tokenizer, len(checkpoint.tokenizer)), **left_out
    )
    (found,) = infill([["a", Gap.of(1), "b"]], seed=3, samples=2000, decode=decode, **checkpoint.tools())
    counts = Counter(one.gaps[0].text for one in found)
    first = truncate(weights.log()[None], decode)[0].exp()[1:4]
    second = truncate(weights[1:4].log()[None], decode)[0].exp()
    assert fits(counts, first) and not fits(counts, second)


def fits(counts: Counter[str], weights: torch.Tensor) -> bool:
    """Whether counts of a, b and c are in these proportions."""
    wanted = counts.total() * weights / weights.sum()
    seen = [counts[name] for name in "abc"]
    return all(n > 0 for n, p in zip(seen, wanted, strict=True) if p) and (
        sum((n - p) ** 2 / p if p else n * math.inf for n, p in zip(seen, wanted.tolist(), strict=True) if n or p)
        < stats.chi2(2).isf(1e-4)
    )


def drawn(
    x: Tokens, mask: torch.Tensor, say: Any, decode: Decode, u: torch.Tensor, specials: Specials, some: list[int]
) -> Counter[tuple[int, ...]]:
    words, sure = at_once(x, mask, say, decode, u, specials)
    assert bool(sure.isfinite().all())
    return Counter(tuple(some.index(word) for word in row) for row in words.view(-1, 3).tolist())


def test_what_stands_there_is_kept_and_what_is_missing_is_written() -> None:
    """A byte of a character that was kept gets its other half."""
    checkpoint = tiny_checkpoint("parallel")
    t, specials = checkpoint.tokenizer, checkpoint.specials
    lead, tail, a = ids_of(t, LEAD, TAIL, A)
    x = Tokens.from_rows([[specials.bos, lead, specials.mask, specials.mask]], specials.pad)
    x = x.with_(fixed=torch.tensor([[True, False, False, False]]))
    mask = x.ids == specials.mask
    decode = Decode(text=text_automaton(t, len(t)))
    wrong = torch.tensor([[specials.bos, lead, a, a]])
    found = broken(x, wrong, torch.zeros_like(mask), decode, specials.mask)
    assert found is not None and found[1].tolist() == mask.tolist()
    right = torch.tensor([[specials.bos, lead, tail, a]])
    assert broken(x, right, torch.zeros_like(mask), decode, specials.mask) is None
    half = torch.tensor([[specials.bos, lead, specials.mask, a]])  # still open: it can become text
    assert broken(x, half, half == specials.mask, decode, specials.mask) is None
    assert broken(x, wrong, torch.zeros_like(mask), Decode(), specials.mask) is None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [1, 3])
def test_fillings_and_texts_are_whole_characters(kind: str, steps: int) -> None:
    """40 texts of random models over bytes, whose tokens are mostly parts of characters: none holds a broken one."""
    checkpoint = tiny_checkpoint(kind, max_gap=6)
    tools = checkpoint.tools()
    assert breaks_characters(checkpoint.tokenizer, len(checkpoint.tokenizer))
    parts = [["We ", Gap(), " of", Gap.of(4), "."], ["We", Gap(2, 5), "the"]]
    filled = infill(parts, steps=steps, seed=1, samples=20, decode=checkpoint.config.decode(), **tools)
    for found in (one for page in filled for one in page):
        assert "\ufffd" not in found.text
        for gap in found.gaps:
            assert joined([gap.text.encode()]) == gap.text
    t = tools.pop("tokenizer")
    text = text_automaton(t, tools["specials"].size, tools["specials"].not_text)
    (*_, last) = write([[50, 60]] * 20, Size(6), steps=steps, numbers=range(20), decode=Decode(text=text), **tools)
    assert not [one for one in last if "\ufffd" in read_on(t, [], one.ids)]
    (*_, last) = write([[50, 60]] * 20, Size(6), steps=steps, numbers=range(20), **tools)
    assert [one for one in last if "\ufffd" in read_on(t, [], one.ids)]  # the control


@pytest.mark.parametrize("family", ["wordpiece", "unigram"])
def test_tokenizers_of_whole_characters_ask_nothing(family: str) -> None:
    t = tokenizer(family)
    assert not breaks_characters(t, len(t)) and text_automaton(t, len(t)) is None
