"""Lengths in words: what is counted is words of the text, and none is glued to a piece that does not belong to it."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from test_automata import FAMILIES, tokenizer
from transformers import pipeline

from textdiff.automata import compile_gap
from textdiff.box import box
from textdiff.constraints import Constraint, draw_run
from textdiff.denoiser.pages import Leash
from textdiff.denoiser.writing import words_end
from textdiff.spelling import lead_of, pieces, read_gap, starts, tokens_per_word
from textdiff.wordcount import MOST, containing_word, count_words, counted

BEFORE = ("We the ", "(", "", "We said: ", "日本", "ไทย ")
AFTER = (" of it.", ", so", ".", "", "\n")


def split(text: str) -> list[tuple[int, int]]:
    """Where the words of a text are: between white space, and each letter of a script without spaces; no signs."""
    return [found.span() for found in re.finditer(r"[日本語\u0e01-\u0e2e]|[^\s\W日本語\u0e01-\u0e2e]+", text)]


@pytest.mark.parametrize("count", [250, pytest.param(1250, marks=pytest.mark.slow)])
@pytest.mark.parametrize("family", FAMILIES)
def test_gaps_hold_whole_words(family: str, count: int) -> None:
    """1,250 random gaps of each of four tokenizers (250 in the quick form), of random tokens under random scores: the number
    of words is the one asked for, and no word of the whole text lies on a gap's edge, but where text of the user's touches
    the gap without a space.
    """
    t, noise = tokenizer(family), torch.Generator().manual_seed(3)
    spelt, checked = pieces(t, len(t)), 0
    machines: dict[Any, Any] = {}
    for number in range(count):
        low, before, after = number % 4, BEFORE[number % len(BEFORE)], AFTER[number % len(AFTER)]
        high = max(low, 1) + int(torch.randint(3, (1,), generator=noise))
        lead = lead_of(t, before)
        if (low, high, lead) not in machines:
            machines[low, high, lead] = compile_gap(t, len(t), words=(low, high), lead=lead)
        constraint = Constraint(0, None, machines[low, high, lead], high * tokens_per_word(t, len(t)))
        lengths = constraint.decided(24)
        n = lengths[int(torch.randint(len(lengths), (1,), generator=noise))]
        scores, u = 3 * torch.randn(n, len(t), generator=noise), torch.rand(n, generator=noise, dtype=torch.float64)
        ids = draw_run(constraint, scores, torch.full((n,), -1), u).tolist()
        gap = read_gap(t, ids, lead)
        assert gap == " ".join(gap.split()) and low <= count_words(gap) <= high, (gap, ids)
        assert n <= high * tokens_per_word(t, len(t))
        text, begin, end = before + gap + after, len(before), len(before) + len(gap)
        for first, last in split(text):
            inside = begin <= first and last <= end
            outside = last <= begin or first >= end
            assert inside or outside or not before.endswith((" ", "(", "本")), (text, text[first:last])
        checked += bool(ids) and all(spelt[i] is not None for i in ids)
    assert checked > 0.8 * count


def test_a_gap_on_the_edge_of_a_word_would_be_seen() -> None:
    assert [("We theNow, so")[a:b] for a, b in split("We theNow, so")] == ["We", "theNow", "so"]


def test_whether_a_word_goes_on_is_the_model_s() -> None:
    """The share of all that goes on with a word is the model's own, whatever may follow; it is more where the words that
    cannot stand are struck out. One word is written, of one asked for: another one cannot begin, the gap may end.
    """
    t = tokenizer("bytes")
    size = len(t)
    machine = compile_gap(t, size, words=(1, 1), lead=" ")
    first = int(torch.tensor(starts(t, size)).nonzero()[5])
    constraint = Constraint(0, None, machine)
    state = int(constraint.next(constraint.begin(), torch.tensor([first])))
    leash = Leash(8, False, constraint, state, (), 1)
    scores = torch.randn(1, size + 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scores[0, :size] += 6.0 * torch.tensor(starts(t, size))  # the word is complete, in all likelihood
    words = torch.zeros(1, size + 1, dtype=torch.bool)
    words[0, :size], words[0, size] = leash.allowed(size), True
    scores[0, :size][torch.tensor([piece is None for piece in pieces(t, size)])] = -torch.inf
    fresh = torch.cat([machine.fresh, torch.tensor([True])])
    goes_on = scores.softmax(-1)[0, ~fresh].sum()
    struck_out = scores.masked_fill(~words, -torch.inf)
    assert bool((words[0, :size] & ~machine.fresh).any()) and not bool((words[0, :size] & machine.fresh).any())
    shift = words_end(scores, words, [leash], size)
    ours = (struck_out + shift).softmax(-1)[0, ~fresh].sum()
    total = scores.logsumexp(-1).exp()[0]
    assert torch.isclose((struck_out + shift)[0, size].exp() / total, scores.softmax(-1)[0, fresh].sum())
    assert ours <= goes_on < 0.3 and struck_out.softmax(-1)[0, ~fresh].sum() > 0.9


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0), ("we go", 2), (" we  go ", 2), ("don't", 1), ("a-b, c", 2), ("我们去", 3), ("我们去。", 3), ("我 们", 2),
        ("用Python写", 3), ("ที่นี่", 2), ("2024年", 2), ("東京タワー", 5), ("한국어 말", 2), ("we go 🙂", 3), ("！", 1),
    ],
)  # fmt: skip
def test_what_a_word_is(text: str, count: int) -> None:
    assert count_words(text) == count


def reads(machine: Any, text: str) -> bool:
    state = 0
    for byte in text.encode():
        state = int(machine.step[state, byte]) if state >= 0 else -1
    return state >= 0 and bool(machine.accept[state])


@pytest.mark.parametrize("text", ["we go", "我们", "ที่นี่", "we", "go on, then", "用Python写", "", "x 我 y"])
def test_counting_and_the_automaton_agree(text: str) -> None:
    for low, high in ((0, 1), (1, 1), (2, 2), (2, 3), (1, None), (3, None)):
        wanted = low <= count_words(text) and (high is None or count_words(text) <= high)
        assert reads(counted(low, high), text) == wanted, (low, high)
    for wrong in (f" {text}", f"{text} ", f"{text}\n", "a  b", "a\u3000b"):
        assert not reads(counted(0, None), wrong)


@pytest.mark.parametrize(
    ("string", "inside", "outside"),
    [
        (
            "war",
            ["war", "the war.", "post-war", "war's", "a war, a", "战war争"],
            ["warm", "thewar", "wars", "wa r", "WAR"],
        ),
        ("the war", ["in the war"], ["the  war", "the warm", "bathe war"]),
        (",", ["a,b", ","], ["a;b"]),
        ("战争", ["战争", "大战争论", "a战争b"], ["战", "战 争"]),
        ("aba", ["ab aba", "aba"], ["ababa"]),
        ("حرب", ["حرب؟"], ["حربي"]),
    ],
)
def test_what_must_be_in_a_gap_is_words(string: str, inside: list[str], outside: list[str]) -> None:
    machine = containing_word(string)
    assert [text for text in inside if not reads(machine, text)] == []
    assert [text for text in outside if reads(machine, text)] == []


def test_more_words_than_can_be_counted() -> None:
    with pytest.raises(ValueError, match=f"{MOST + 1} words are more than can be counted"):
        counted(1, MOST + 1)


ROOT = Path(__file__).parents[1]
WORDS = re.compile(r"[A-Za-z]+")


@pytest.fixture(scope="module")
def fill() -> Any:
    return pipeline("text-infilling", model=box())


def strange(fill: Any, spec: str, held_out: list[str], known: set[str]) -> list[str]:
    """Fillings with a word that no text of the corpus has."""
    texts = []
    for number, line in enumerate(held_out):
        words = line.split()
        place = 1 + number % (len(words) - 4)
        texts.append(f"{' '.join(words[:place])} {spec} {' '.join(words[place + 2 :])}")
    found = [one[0]["gaps"][0]["text"] for one in fill(texts, seed=0, batch_size=16, candidates=1)]
    return [
        text for text in found if {*map(str.lower, WORDS.findall(text))} - known or re.search(r"\w[,.;:()]+\w", text)
    ]


@pytest.mark.slow
def test_the_model_in_the_package_writes_words(fill: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """160 gaps of one or two words: 2 % of fillings at most hold what is no word, as without a length. The control decides
    the number of tokens without regard to the number of words, and glues more of them (60 of 160 when it was measured).
    """
    corpus = "\n".join(file.read_text(encoding="utf-8") for file in sorted((ROOT / "data/sotu").rglob("*.*")))
    known = {word.lower() for word in WORDS.findall(corpus)}
    lines = [line for line in re.split(r"(?<=[.])\s+", corpus) if 8 <= len(line.split()) <= 25][::90][:160]
    assert len(lines) == 160
    assert len(strange(fill, "[GAP:1-2w]", lines, known)) <= 3
    monkeypatch.setattr(Constraint, "decided", Constraint.lengths)
    assert len(strange(fill, "[GAP:1-2w]", lines, known)) > 10
