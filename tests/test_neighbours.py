"""A row of a batch comes out as it does alone, whatever kinds of rows stand beside it: by every process, rule and denoiser.

A batch holds texts of several lengths, the empty one too, with words of the user's, counted tokens and sealed places; in
their states some rows have gaps, some masks alone, some words in doubt or too many, some nothing to say. All that a state
says is compared after every step. The control is a denoiser that draws words for all rows where one is in doubt.
"""

from collections.abc import Callable
from functools import cache

import pytest
import torch
from test_laws import BERT, NAMED, X, Y, llama, seeded, t5, time
from test_lazy import ALL_RULES, QUICK_RULES, early, processes, seen
from transformers import BertConfig, BertForMaskedLM

from textdiff.denoiser import Autoregressive, Blocks, Changes, Denoiser, Guided, Parallel
from textdiff.keys import Key
from textdiff.posterior import Decode, Draw, Posterior
from textdiff.process import Process
from textdiff.rulebook import rule_of
from textdiff.rules import Rule
from textdiff.sampler import sample
from textdiff.tokens import Tokens

PROCESSES = processes(NAMED, torch.tensor([X, Y]))


def bert():
    """With room for words that come in."""
    return seeded(BertForMaskedLM, BertConfig(**BERT, max_position_embeddings=128))


MAKERS: dict[str, Callable[[], Denoiser]] = {
    "parallel": lambda: Parallel(bert(), NAMED),
    "guided": lambda: Guided.of(Parallel(bert(), NAMED), 1.0),
    "conditioned": lambda: Parallel(bert(), NAMED, conditioned=True),
    "autoregressive": lambda: Autoregressive(llama(), NAMED),
    "seq2seq": lambda: Autoregressive(t5(), NAMED),
    "blocks": lambda: Blocks(llama(), NAMED, 2),
    "blocks of one": lambda: Blocks(llama(), NAMED, 1, shift=True),
}
CORRECT = ("parallel", "guided")  # the others fill gaps and masks
KEEP = ("blocks", "blocks of one", "conditioned")  # they fill no gaps of unknown length, or learn none
DOUBT = ("replacement", "edit", "mixture")


@cache
def denoiser(name: str) -> Denoiser:
    return MAKERS[name]().eval().double()  # in which no two words are as probable as each other but for rounding


def serves(kind: str, process: str) -> bool:
    """Whether a denoiser can read the states of a process."""
    doubts = process.startswith(DOUBT) and process != "edit by masks"
    keeps = process in ("masking", "counts", "spans")
    return (kind in CORRECT or not doubts) and (kind not in KEEP or keeps)


def texts() -> Tokens:
    rows = [[X, Y, X], [], [Y], [X, X, Y, Y, X, Y], [X, Y, Y, X], [Y, Y], [X], [Y, X, Y]]
    x0 = Tokens.from_rows([[1, *row] for row in rows], NAMED.pad)
    fixed, counted, sealed = x0.fixed.clone(), x0.counted.clone(), x0.sealed.clone()
    fixed[3, 2] = fixed[7, [1, 2, 3]] = True  # the last has nothing to say
    counted[4, [1, 2]] = sealed[4, [0, 1]] = sealed[7] = True
    return x0.with_(fixed=fixed, counted=counted, sealed=sealed)


def trace(model: Denoiser, process: Process, rule: Rule, x: Tokens, key: Key, steps: torch.Tensor, t: float) -> dict:
    """What each row says after each of its steps."""
    found: dict[int, list] = {row: [] for row in range(len(x))}
    run = sample(model, process, x, steps=steps, key=key, rule=rule, start=t, decode=Decode(max_gap=1, longest=24))
    for step in run:
        for row, state in zip(step.rows.tolist(), seen(step.x), strict=True):
            found[row].append(state)
    return found


def differing(model: Denoiser, process: Process, rule: Rule, t: float, rows: tuple[int, ...]) -> int:
    """How many of the rows come out otherwise alone than in the batch, each in steps of its own number."""
    x0, key = texts(), Key.of(3, 8)
    noise = process.noise(x0, key.fold(99))
    x = process.corrupt(x0, noise, time(8, t)) if t < 1 else process.prior(x0, key)
    steps = torch.tensor([4, 3, 5, 4, 3, 4, 3, 5])
    whole, wrong = trace(model, process, rule, x, key, steps, t), 0
    for row in rows:
        one = torch.tensor([row])
        size = int(x.valid[row].sum())
        alone = x[one].take(torch.arange(size)[None], NAMED.pad)
        wrong += trace(model, process, rule, alone, key[one], steps[one], t)[0] != whole[row]
    return wrong


QUICK = {("parallel", process, "partial") for process in PROCESSES}
QUICK |= {("parallel", "edit with insertions", rule) for rule in QUICK_RULES}
QUICK |= {(kind, process, "ranked") for kind in MAKERS for process in ("masking", "edit by masks")}


def runs(model: Denoiser, name: str, rule: str, rows: tuple[int, ...] = tuple(range(8))) -> int | None:
    """How many of the rows differ; None where the rule does not take the process, or the model has nothing to compare."""
    process, wrong = PROCESSES[name], 0
    if name == "replacement, counted":
        model = Changes(model, process)
    for t in (0.7, 1.0):
        if t == 1 and name in ("edit, open-ended", "mixture") or t == 1 and name.startswith("replacement"):
            continue  # there x_1 is not all that one has to know
        try:
            wrong += differing(model, process, rule_of(rule), t, rows)
        except ValueError as error:
            assert any(words in str(error) for words in ("use ", "before they are drawn"))
            return None
    return wrong


@pytest.mark.parametrize(("kind", "process", "rule"), sorted(QUICK))
def test_a_row_is_a_function_of_itself(kind: str, process: str, rule: str) -> None:
    if serves(kind, process):
        assert not runs(denoiser(kind), process, rule, (0, 1, 4))


@pytest.mark.slow
@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("kind", MAKERS)
def test_all_rules_of_all_processes_and_denoisers(kind: str, process: str) -> None:
    """The slower ones by fewer rules."""
    rules = ALL_RULES if kind in CORRECT else QUICK_RULES
    if serves(kind, process):
        assert [rule for rule in rules if runs(denoiser(kind), process, rule, (0, 1, 3, 4))] == []


class Eager(Denoiser):
    """Another denoiser, which draws all words at once."""

    def __init__(self, inner: Denoiser) -> None:
        super().__init__()
        self.inner, self.timeless = inner, inner.timeless

    def forward(self, xt: Tokens, t: torch.Tensor) -> Posterior:
        return _Eager(self.inner(xt, t))


class _Eager(Posterior):
    def __init__(self, inner: Posterior) -> None:
        self.inner = inner

    def sample(self, decode: Decode, key: Key) -> Draw:
        return self.inner.sample(decode, key)

    def log_prob(self, truth: Draw) -> torch.Tensor:
        return self.inner.log_prob(truth)


@pytest.mark.parametrize("kind", MAKERS)
def test_a_model_says_the_same_whenever_it_is_asked(kind: str) -> None:
    """Words drawn when they are asked for, step by step, against all of them at once; by rules that ask in between."""
    x0, key = texts(), Key.of(3, 8)
    for name in ("masking", "staged", "edit by masks", "edit with insertions"):
        if not serves(kind, name):
            continue
        process = PROCESSES[name]
        x = process.corrupt(x0, process.noise(x0, key.fold(99)), time(8, 0.7))
        for rule in ("partial", "ranked", "threshold:0.6"):
            if rule.startswith("threshold") and kind in ("autoregressive", "seq2seq"):
                continue  # they are not measured before they draw
            late, soon = (
                trace(model, process, rule_of(rule), x, key, torch.full((8,), 4), 0.7)
                for model in (denoiser(kind), Eager(denoiser(kind)))
            )
            assert late == soon


class Sociable(Denoiser):
    """The control: all rows are drawn at once where one holds a word in doubt."""

    timeless = True

    def __init__(self, inner: Denoiser) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, xt: Tokens, t: torch.Tensor) -> Posterior:
        return _Sociable(xt, self.inner(xt, t))


class _Sociable(Posterior):
    def __init__(self, xt: Tokens, inner: Posterior) -> None:
        self.doubtful, self.inner = bool(xt.doubtful.any()), inner

    def sample(self, decode: Decode, key: Key) -> Draw:
        return self.inner.sample(decode, key)

    def draft(self, decode: Decode, key: Key) -> Draw:
        draft = self.inner.draft(decode, key)
        return draft.drawn() if self.doubtful else draft

    def log_prob(self, truth: Draw) -> torch.Tensor:
        return self.inner.log_prob(truth)


def beside(process: Process, model: Denoiser) -> bool:
    """Whether 40 texts with masks alone come out of a step as they do beside 40 texts with words in doubt."""
    x0 = Tokens.from_rows([[1, X, Y, X]] * 80, NAMED.pad)
    hidden = ~x0.fixed & (torch.arange(80) < 40)[:, None]
    x = x0.with_(ids=x0.ids.masked_fill(hidden, NAMED.mask), doubtful=~x0.fixed & ~hidden)

    def first(count: int) -> list:
        run = sample(model, process, x[:count], steps=8, key=Key.of(0, count), rule=rule_of("partial"), start=0.8)
        return seen(next(run).x)[:40]

    return first(80) == first(40)


@pytest.mark.parametrize("name", [name for name in PROCESSES if name.startswith(("edit", "replacement"))])
def test_masks_beside_words_in_doubt(name: str) -> None:
    process, model = PROCESSES[name], denoiser("parallel")
    assert beside(process, model)
    if name != "replacement":  # which has no masks, and does not mind how early they are read
        assert not beside(early(process), Sociable(model))
