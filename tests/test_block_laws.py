"""A model that writes block by block has one law, whichever rule it is run by and in however many steps.

Blocks of one word are the causal model itself: all texts against its own chain rule. Blocks of two: every step that was
taken, given the state it began from and what it left hidden, against each block's words by the model, earlier blocks given.
Both by enumeration of a toy of two words; chi-square at p > 1e-6, the rate of false alarm. The control takes the order away.
"""

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Iterator

import pytest
import torch
from scipy import stats
from test_blocks import BLANK, BOS, MASK, ONE_TEXT, TOY, WORD, chances, model, texts

from textdiff.denoiser import Blocks
from textdiff.keys import Key
from textdiff.process import Masking
from textdiff.rulebook import RULES, rule_of
from textdiff.rules import Rule
from textdiff.sampler import sample
from textdiff.tokens import Tokens

Text = tuple[int, ...]
# by default too little is hidden again to tell
NAMES = [
    "fresh", "posterior", "partial:0.5", "remdm-cap:0.5", "remdm-rescale:0.8", "remdm-loop:0.8", "forward-backward",
    "ranked:drawn", "ranked:probability", "ranked:margin", "ranked:entropy", "ranked:random", "ranked:left",
    "ranked:random@1", "threshold:0.6", "threshold:0.6@1", "budget:0.5", "top:1", "top:2", "top:1@2",
]  # fmt: skip
REFUSED = ("remdm-conf", "gibbs:1", "mask-predict", "doubt:0.5")
BY_WORDS = ("ranked:drawn",)  # what it shows depends on the words, and so these on what it shows
STEPS = (1, 2, 4, 16)


def blank(count: int) -> tuple[Tokens, Key]:
    x, key = texts([ONE_TEXT], [[]])[torch.zeros(count, dtype=torch.int64)], Key.of(1, count)
    return Masking(TOY).prior(x, key), key


def moves(rule: Rule, steps: float, block: int, count: int) -> Iterator[tuple[Text, Text]]:
    """Every step of a run: the text before it, and after."""
    x, key = blank(count)
    denoiser = Blocks(model("llama", WORD + 2), TOY, block, shift=block == 1)
    now = {row: BLANK for row in range(count)}
    for step in sample(denoiser, Masking(TOY), x, steps=steps, key=key, rule=rule):
        for row, ids in zip(step.rows.tolist(), map(tuple, step.x.ids.tolist()), strict=True):
            yield now[row], ids
            now[row] = ids


def chi_square(groups: list[tuple[Counter, dict[Text, float]]]) -> float:
    """The chance of counts as far from their laws as these; outcomes that are due less than five times are pooled."""
    total, freedom = 0.0, 0
    for counts, law in groups:
        assert math.isclose(sum(law.values()), 1)
        if any(text not in law for text in counts):
            return 0.0
        n = sum(counts.values())
        cells = sorted(((n * chance, counts[text]) for text, chance in law.items()), reverse=True)
        while len(cells) > 1 and cells[-1][0] < 5:
            (due, seen), (more, others) = cells.pop(), cells.pop()
            cells = sorted([*cells, (due + more, seen + others)], reverse=True)
        total += sum((seen - due) ** 2 / due for due, seen in cells)
        freedom += len(cells) - 1
    assert freedom > 0
    return float(stats.chi2.sf(total, freedom))


def causal() -> dict[Text, float]:
    """All texts by the stock model's own chain rule."""
    every = [(BOS, *(WORD + w for w in words)) for words in itertools.product((0, 1), repeat=5)]
    with torch.no_grad():
        logits = model("llama", WORD + 2)(input_ids=torch.tensor(every)).logits[:, :-1, WORD:].double().log_softmax(-1)
    chance = logits.gather(2, torch.tensor(every)[:, 1:, None] - WORD)[..., 0].sum(1).exp().tolist()
    return dict(zip(every, chance, strict=True))


def whole_texts(rule: Rule, steps: float, count: int) -> float:
    """How well the texts of blocks of one word have the causal model's law."""
    found: dict[int, Text] = {}
    x, key = blank(count)
    denoiser = Blocks(model("llama", WORD + 2), TOY, 1, shift=True)
    for step in sample(denoiser, Masking(TOY), x, steps=steps, key=key, rule=rule):
        found |= dict(zip(step.rows.tolist(), map(tuple, step.x.ids.tolist()), strict=True))
    return chi_square([(Counter(found.values()), causal())])


def words_shown(before: Text, hidden: frozenset[int]) -> dict[Text, float]:
    """The law of the text after a step that leaves `hidden`: block after block, each as it was before, earlier ones done."""
    ways = [(before, 1.0)]
    for number in range(3):
        columns = [c for c in (2 * number, 2 * number + 1) if before[c] == MASK and c not in hidden]
        for column in columns:
            ways = [
                ((*text[:column], WORD + word, *text[column + 1 :]), p * (said[column] if word else 1 - said[column]))
                for text, p in ways
                for said in [chances((*text[: 2 * number], *before[2 * number :]), number)]
                for word in (0, 1)
            ]
    law: dict[Text, float] = defaultdict(float)
    for text, p in ways:
        law[tuple(MASK if c in hidden else token for c, token in enumerate(text))] += p
    return dict(law)


def single_steps(rule: Rule, steps: float, count: int, words: bool = True) -> float:
    """How well each step of blocks of two has the model's law; no block is begun before those before it are done."""
    groups: dict[tuple[Text, frozenset[int]], Counter] = defaultdict(Counter)
    for before, after in moves(rule, steps, 2, count):
        hidden = frozenset(c for c, token in enumerate(after) if token == MASK)
        begun = {c // 2 for c in range(1, 6) if c not in hidden}
        if hidden and any(number > min(hidden) // 2 for number in begun):
            return 0.0
        groups[before, hidden][after] += 1
    return chi_square([(counts, words_shown(*group)) for group, counts in groups.items()]) if words else 1.0


def test_no_rule_is_forgotten() -> None:
    named = {name.partition(":")[0].partition("@")[0] for name in (*NAMES, *REFUSED)}
    assert named == set(RULES) - {"sde", "ode"}


QUICK = {
    ("posterior", 4),
    ("partial:0.5", 4),
    ("threshold:0.6", 4),
    ("ranked:margin", 4),
}
every_run = pytest.mark.parametrize(
    ("name", "steps"),
    [
        pytest.param(name, steps, marks=[] if (name, steps) in QUICK else [pytest.mark.slow])
        for name in NAMES
        for steps in STEPS
    ],
)


@every_run
def test_blocks_of_one_word_are_the_causal_model(name: str, steps: int) -> None:
    """N = 1,000 texts."""
    assert whole_texts(rule_of(name), steps, 1000) > 1e-6


@every_run
def test_blocks_of_two_words_have_the_law_of_their_blocks(name: str, steps: int) -> None:
    """All steps of N = 1,000 texts."""
    assert single_steps(rule_of(name), steps, 1000, name not in BY_WORDS) > 1e-6


@pytest.mark.parametrize("name", ["posterior", pytest.param("partial:0.5", marks=pytest.mark.slow)])
def test_a_rule_that_leaves_the_order_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Masking, "in_turn", lambda self, noise, x0, lane: noise)
    assert whole_texts(rule_of(name), 4, 1000) < 1e-6
    assert single_steps(rule_of(name), 4, 1000) < 1e-6


@pytest.mark.parametrize("name", ["posterior", "partial:0.5", "forward-backward", "top:1"])
def test_the_users_words_stay_where_they_are(name: str) -> None:
    """In any block, at every step; and what stands before them is done first."""
    x0 = texts([[BOS, *[WORD, WORD + 1] * 4]] * 50, [[4, 7]] * 50)
    key, mine = Key.of(2, 50), torch.tensor([0, 4, 7])
    denoiser, turns = Blocks(model("llama", WORD + 2), TOY, 2), 0
    run = sample(denoiser, Masking(TOY), Masking(TOY).prior(x0, key), steps=6, key=key, rule=rule_of(name))
    for step in run:
        hidden = step.x.ids == MASK
        assert torch.equal(step.x.ids[:, mine], x0.ids[step.rows][:, mine])
        first = hidden.long().argmax(1) // 2 * hidden.any(1) + 9 * ~hidden.any(1)
        begun = (~hidden & ~x0.fixed[step.rows] & (torch.arange(9) // 2 > first[:, None])).any(1)
        assert not bool(begun.any())
        turns += bool((hidden.any(1) & ~hidden.all(1)).any())
    assert turns > 1


@pytest.mark.parametrize("name", REFUSED)
def test_rules_that_go_back_to_single_words_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="block by block"):
        list(moves(rule_of(name), 4, 2, 10))
