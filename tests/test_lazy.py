"""A guess is one guess, whichever of its words are drawn yet; and a row is one row, whatever stands beside it.

Models draw words when somebody asks (`Draw.open`). Every process and rule has to make of such a guess, bit for bit, what it
makes of the same one with all words drawn; so what is proved with an oracle, which draws at once, holds for models as well.
And every row of a batch has to come out as it does alone, by every process, rule and denoiser. Controls plant the faults.
"""

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from scipy import stats
from test_alignment import Blind
from test_laws import (
    NAMED,
    SPECIALS,
    A,
    B,
    Spoiled,
    X,
    Y,
    bert,
    data,
    factorised,
    fit,
    forgetful,
    law_of,
    many,
    patterned,
    samples,
    time,
)

from textdiff.denoiser import Denoiser, Oracle, Parallel
from textdiff.keys import Key
from textdiff.posterior import Decode, Draw, Look, Posterior
from textdiff.process import Deletion, Edit, Masking, Mixture, Process, Replacement
from textdiff.rulebook import RULES, rule_of
from textdiff.rules import Rule, partial, posterior
from textdiff.sampler import sample
from textdiff.tokens import Specials, Tokens

ROOT = Path(__file__).resolve().parent.parent
ALL_RULES = [
    *(name for name in RULES if name not in ("sde", "ode", "gibbs")),
    "gibbs:1", "partial:0", "remdm-cap:0.5", "ranked:random", "ranked:left@2", "threshold:0@2",
]  # fmt: skip

QUICK_RULES = ["fresh", "partial", "remdm-cap:0.5", "ranked", "threshold:0@2"]


def processes(ids: Specials, words: torch.Tensor) -> dict[str, Process]:
    """One of every kind, in every setting that changes what is read off a guess."""
    masks = Edit(ids, words, kinds=(0, 1, 0))
    return {
        "masking": Masking(ids),
        "counts": Masking(ids, counts=True),
        "spans": Masking(ids, spans=(1, 3)),
        "deletion": Deletion(ids, empty=1),
        "bare": Deletion(ids, empty=0),
        "deletion of spans": Deletion(ids, spans=(3,), empty=1),
        "staged": Deletion(ids, staged=True),
        "replacement": Replacement(ids, words),
        "replacement B": Replacement(ids, words, different=True),
        "replacement with masks": Replacement(ids, words, masked=0.4),
        "replacement B with masks": Replacement(ids, words, different=True, masked=0.4),
        "replacement, counted": Replacement(ids, words, different=True, masked=0.4, counts=True),
        "edit": Edit(ids, words, kinds=(0.3, 0.4, 0.3)),
        "edit by masks": masks,
        "edit with insertions": Edit(ids, words, kinds=(0.2, 0.4, 0.4), insert=0.3),
        "edit, open-ended": Edit(ids, words, kinds=(0.2, 0.4, 0.4), insert=0.3, staged=False),
        "mixture": Mixture([(1.0, Deletion(ids, empty=1)), (2.0, masks), (1.0, Replacement(ids, words))], ids.pad),
    }


PROCESSES = processes(SPECIALS, torch.tensor([A, B]))
every_process = pytest.mark.parametrize("name", PROCESSES)


# ------------------------------------------------------------------------------------------- whichever words are drawn


class Held(Look):
    """Words that are drawn already, for whoever asks, and how many were asked for."""

    def __init__(self, x0: Tokens, open_: torch.Tensor) -> None:
        self.x0, self.open, self.asked = x0, open_, 0

    def words(self, where: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.asked += int(where.sum())
        return self.x0.ids[where], self.x0.score[where]

    def measure(self, measure, where: torch.Tensor) -> torch.Tensor:
        return self.x0.score[where]


def held_back(xt: Tokens, draw: Draw) -> Draw:
    """The same guess as a parallel model gives it: where x_t shows no word, or one in doubt, it is drawn later."""
    open_ = draw.x0.valid & ~draw.x0.fixed
    if draw.place.numel():
        seen = xt.ids.gather(1, draw.place)
        open_ &= (seen == SPECIALS.mask) | (seen == SPECIALS.gap) | xt.doubtful.gather(1, draw.place)
    x0 = draw.x0.with_(ids=draw.x0.ids.masked_fill(open_, SPECIALS.mask), score=draw.x0.score.masked_fill(open_, 0.0))
    return replace(draw, x0=x0, log_prob=draw.log_prob.masked_fill(open_, 0.0), open=open_, look=Held(draw.x0, open_))


class Lazy(Denoiser):
    """Another denoiser, whose words are drawn when somebody asks."""

    def __init__(self, inner: Denoiser) -> None:
        super().__init__()
        self.inner, self.looks = inner, []

    def forward(self, xt: Tokens, t: torch.Tensor) -> Posterior:
        return _Lazy(self, xt, self.inner(xt, t))


class _Lazy(Posterior):
    def __init__(self, owner: Lazy, xt: Tokens, inner: Posterior) -> None:
        self.owner, self.xt, self.inner = owner, xt, inner

    def sample(self, decode: Decode, key: Key) -> Draw:
        return self.draft(decode, key).drawn()

    def draft(self, decode: Decode, key: Key) -> Draw:
        draw = held_back(self.xt, self.inner.sample(decode, key))
        self.owner.looks.append(draw.look)
        return draw

    def log_prob(self, truth: Draw) -> torch.Tensor:
        return self.inner.log_prob(truth)


def scored(xt: Tokens, draw: Draw) -> Draw:
    """The guess with words that are more and less probable, for rules that compare them."""
    score = -Key.of(7, len(xt)).uniform(draw.x0.ids.shape[1]).float().masked_fill(draw.x0.fixed, 0.0)
    return replace(draw, x0=draw.x0.with_(score=score), log_prob=score)


def guesses(process: Process, t: float, count: int, places: bool = True) -> tuple[Tokens, list[Draw]]:
    """x_t of several texts, and one guess: with all its words drawn, half of them, and none."""
    x0 = many(patterned(), count)
    words = torch.where(Key.of(2, count).uniform(x0.ids.shape[1]) < 0.5, A, B)
    x0, key, times = x0.with_(ids=torch.where(x0.fixed, x0.ids, words)), Key.of(3, count), time(count, t)
    noise = process.noise(x0, key)
    xt, draw = forgetful(process.corrupt(x0, noise, times)), process.align(x0, noise, times)
    if not places:
        draw = replace(draw, place=torch.empty(0, dtype=torch.int64))
    late = held_back(xt, scored(xt, draw))
    return xt, [late.drawn(), late.drawn(key.fold(1).uniform(x0.ids.shape[1]) < 0.5), late]


def after(process: Process, rule: Rule, xt: Tokens, draw: Draw, t: float, s: float) -> Tokens:
    """x_s by a rule that is asked as it is, and words that are drawn then as the loop draws them."""
    count = len(xt)
    noise = rule(process, xt, draw, time(count, t), time(count, s), Key.of(4, count))
    draw = draw.drawn(process.reads(draw))
    draw = draw.drawn(process.shown(draw.x0, noise, time(count, s)))
    return process.corrupt(draw.x0, noise, time(count, s))


def seen(x: Tokens) -> list[list[tuple]]:
    """All that a state says, but for padding and for scores of words it does not show."""
    fields = (x.ids, x.fixed, x.counted, x.sealed, x.doubtful, x.surplus, x.part, x.slot, x.eps)
    columns = zip(*(field.tolist() for field in fields), x.valid.tolist(), strict=True)
    return [[values[:-1] for values in zip(*row, strict=True) if values[-1]] for row in columns]


def outcome(process: Process, rule: Rule, xt: Tokens, draw: Draw, t: float, s: float) -> list[list[tuple]] | str:
    """x_s, or what is said where the rule does not take the process."""
    try:
        return seen(after(process, rule, xt, draw, t, s))
    except ValueError as error:
        return str(error)


@every_process
@pytest.mark.parametrize("rules", [QUICK_RULES, pytest.param(ALL_RULES, marks=pytest.mark.slow)], ids=["some", "all"])
def test_a_step_does_not_depend_on_which_words_are_drawn(name: str, rules: list[str]) -> None:
    """30 texts, backward and forward in time, where the model knows places and where they have to be found."""
    process = PROCESSES[name]
    for t, s, places in ((0.8, 0.45, True), (1.0, 0.45, True), (0.4, 0.7, True), (0.8, 0.45, False)):
        if not places and name == "mixture":  # whose rows are padded to the longest, so that places have to be said
            continue
        xt, draws = guesses(process, t, 30, places)
        for rule in rules:
            whole, half, none = (outcome(process, rule_of(rule), xt, draw, t, s) for draw in draws)
            assert half == whole and none == whole, (rule, t, s, places)


@every_process
def test_a_process_asked_directly_draws_what_it_reads(name: str) -> None:
    """`infer`, `hidden` and `rank`, by whoever calls them."""
    process, key = PROCESSES[name], Key.of(5, 60)
    xt, draws = guesses(process, 0.8, 60)
    x0, found = draws[0].x0, []
    for draw in draws:
        noise = process.infer(xt, draw, time(60, 0.8), key)
        noises = noise, process.rank(noise, xt, draw, key.uniform(x0.ids.shape[1]))
        states = [seen(process.corrupt(x0, made, time(60, s))) for made in noises for s in (0.2, 0.6, 0.9)]
        found.append((process.hidden(xt, draw).tolist(), states))
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("blind", [False, True], ids=["placed", "aligned"])
@pytest.mark.parametrize("name", ["masking", "staged", "bare", "replacement with masks", "edit", "edit by masks"])
def test_no_word_is_drawn_twice(name: str, blind: bool) -> None:
    """By processes that read words and by those that read none; where x_t shows what is hidden, fewer than there are."""
    process = PROCESSES[name]
    words = TEXTS["fixed" if name in ("masking", "replacement with masks") else "any"]
    inner = Oracle(process, data(words))
    model, key = Lazy(Blind(inner) if blind else inner), Key.of(0, 50)
    if blind and name in ("masking", "staged", "replacement with masks"):
        return  # each element is in its own place, or has one that has to be said
    x = process.prior(many(data(words)[-1:], 50), key)
    drawn = [
        int((~step.draw.open & model.looks[-1].open).sum()) for step in sample(model, process, x, steps=3, key=key)
    ]
    assert [look.asked for look in model.looks] == drawn
    assert (sum(drawn) < sum(int(look.open.sum()) for look in model.looks)) == (
        name in ("masking", "staged", "bare") and not blind
    )


def test_a_process_of_ones_own_may_read_words() -> None:
    """Without a word of its own a process gets guesses whose words are drawn: hangman looks for the letters of one."""
    spec = importlib.util.spec_from_file_location("new_process", ROOT / "examples" / "new_process.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    process, x0, t = example.Hangman(), example.tokens(["banana", "cocoon"] * 20), time(40, 0.6)
    xt = process.corrupt(x0, process.noise(x0, Key.of(0, 40)), t)
    draw = process.align(x0, None, t)
    found = [seen(after(process, posterior, xt, guess, 0.6, 0.3)) for guess in (draw, held_back(xt, draw))]
    assert found[0] == found[1]
    early = process.infer(xt, replace(held_back(xt, draw), open=None), t, Key.of(4, 40))  # the control
    assert not torch.equal(early, process.infer(xt, draw, t, Key.of(4, 40)))


class EarlyEdit(Edit):
    """A control: words that are not drawn are compared with what x_t shows."""

    def reads(self, draw: Draw) -> torch.Tensor:
        return torch.zeros_like(draw.x0.fixed)

    def infer(self, xt: Tokens, draw: Draw, t: torch.Tensor, key: Key):
        return super().infer(xt, replace(draw, open=None), t, key)

    def hidden(self, xt: Tokens, draw: Draw) -> torch.Tensor:
        return super().hidden(xt, replace(draw, open=None))


class EarlyReplacement(Replacement):
    """The same control for replacement."""

    reads, infer, hidden = (
        lambda self, draw: torch.zeros_like(draw.x0.fixed),
        lambda self, xt, draw, t, key: Replacement.infer(self, xt, replace(draw, open=None), t, key),
        lambda self, xt, draw: Replacement.hidden(self, xt, replace(draw, open=None)),
    )


def early(process: Process) -> Process:
    """The control for a process of edits or replacement."""
    made = EarlyEdit if isinstance(process, Edit) else EarlyReplacement
    control = made.__new__(made)
    control.__dict__.update(process.__dict__)
    return control


EARLY = [name for name, process in PROCESSES.items() if isinstance(process, Edit | Replacement)]


@pytest.mark.parametrize("name", EARLY)
def test_words_that_are_compared_too_early_are_noticed(name: str) -> None:
    process = early(PROCESSES[name])
    xt, (whole, _, none) = guesses(process, 0.8, 30)
    found = [[outcome(process, rule_of(rule), xt, draw, 0.8, 0.45) for rule in QUICK_RULES] for draw in (whole, none)]
    assert found[0] != found[1]


NAMES = processes(NAMED, torch.tensor([X, Y]))


@pytest.mark.parametrize("name", ["masking", "edit by masks", "replacement with masks", "replacement B with masks"])
def test_masks_of_a_model_stay_as_long_as_they_should(name: str) -> None:
    """3,000 masks at .8, to .7: 7/8 stay, within binomial bounds that are left with chance 1e-6; with the control not."""
    count, process = 1000, NAMES[name]
    x = many(Tokens.from_rows([[1, X, Y, X]], NAMED.pad), count)
    x = x.with_(ids=x.ids.masked_fill(~x.fixed, NAMED.mask))
    low, high = stats.binom.ppf([5e-7, 1 - 5e-7], 3 * count, 7 / 8)

    def staying(process: Process) -> int:
        run = sample(Parallel(bert(), NAMED), process, x, steps=8, key=Key.of(0, count), rule=partial(0.0), start=0.8)
        return int((next(run).x.ids == NAMED.mask).sum())

    assert low <= staying(process) <= high
    if name != "masking":
        assert not low <= staying(early(process)) <= high


TEXTS = {"fixed": [[A, A, A]] * 3 + [[B, B, B]] * 2 + [[A, B, A]], "any": [[], [A], [A, A], [A, A], [B, A], [A, B]]}
SAMPLED = ("masking", "staged", "replacement with masks", "edit", "edit by masks", "mixture")
RUNS = [
    pytest.param(name, rule, steps, marks=[pytest.mark.slow] * ((name, rule, steps) not in QUICK))
    for QUICK in [{("edit by masks", "partial", 2), ("replacement with masks", "forward-backward", 4)}]
    for name in SAMPLED
    for rule in ("fresh", "posterior", "partial", "remdm-cap:0.5", "forward-backward")
    for steps in (1, 2, 4, 8)
]


@pytest.mark.parametrize(("name", "rule", "steps"), RUNS)
def test_a_perfect_denoiser_that_draws_late_samples_the_data(name: str, rule: str, steps: int) -> None:
    """Identity 3 with words drawn when they are asked for, by rules that hide again, too. N = 50,000, false alarm 1e-6."""
    process = PROCESSES[name]
    words = TEXTS["any" if name in ("staged", "edit", "edit by masks") else "fixed"]
    if name == "mixture":  # with replacement the prior tells the component, not the data
        process = Mixture([(1.0, PROCESSES["deletion"]), (2.0, PROCESSES["edit by masks"])], SPECIALS.pad)
    assert fit(samples(Lazy(Oracle(process, data(words))), process, words, rule_of(rule), steps), law_of(words)) > 1e-6


def test_an_imperfect_denoiser_that_draws_late_is_noticed() -> None:
    """The control: words from their marginals, all at once."""
    process, words = PROCESSES["replacement with masks"], TEXTS["fixed"]
    apart = Lazy(Spoiled(Oracle(process, data(words)), factorised))
    assert fit(samples(apart, process, words, posterior, 1), law_of(words)) < 1e-6
