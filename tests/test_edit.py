"""Edits: the promises of every process, Su's law, and that a perfect denoiser samples the data; also with places hidden.

N = 50,000 texts per statistical test unless said otherwise; p > 1e-6 is its rate of false alarm.
"""

import math
import re
from dataclasses import replace
from functools import cache

import pytest
import test_contract as contract
import test_laws as laws
import torch
from test_alignment import Blind, unplaced
from test_laws import fit, many, same, tally, time

from textdiff.denoiser import Denoiser, Oracle, Parallel
from textdiff.keys import Key
from textdiff.posterior import Decode, Draw, Posterior
from textdiff.process import Edit, Process
from textdiff.process.alignment import Alignments, Weights, log_of
from textdiff.revealing import ranked
from textdiff.rules import fresh, partial, posterior
from textdiff.sampler import Step, sample
from textdiff.schedule import Cosine
from textdiff.tokens import Specials, Tokens
from textdiff.udm import UDM, Objective

SPECIALS = Specials(pad=0, bos=1, mask=2, gap=3)
A, B = 4, 5
WORDS = torch.tensor([A, B])
COUNT, T, S = 50_000, 0.8, 0.45
KINDS = (0.3, 0.3, 0.4)

ALL = Edit(SPECIALS, WORDS, kinds=KINDS)
COMING = Edit(SPECIALS, WORDS, kinds=KINDS, insert=0.2)
LEVEL = Edit(SPECIALS, WORDS, kinds=(0, 0.4, 0.6), insert=0.2)
OPEN_ENDED = Edit(SPECIALS, WORDS, kinds=KINDS, insert=0.2, staged=False)
PROCESSES = {"all": ALL, "coming": COMING, "level": LEVEL, "open-ended": OPEN_ENDED}
RULES = {"fresh": fresh, "posterior": posterior, "partial": partial(0.3)}


def many_words(**options) -> Edit:
    """Over the alphabet of the contract's texts, in which every word is another one."""
    return Edit(SPECIALS, torch.arange(contract.WORD, contract.WORD + 16), **options)


@pytest.mark.parametrize(
    "process",
    [many_words(kinds=KINDS), many_words(insert=0.4), many_words(kinds=(0, 0, 1), insert=0.4, schedule=Cosine())],
    ids=["edits", "insertions", "replacement"],
)
@pytest.mark.parametrize(
    "promise",
    [
        contract.test_time_0_is_the_data,
        contract.test_time_1_leaves_only_what_is_fixed,
        contract.test_the_prior_is_a_point,
        contract.test_information_only_shrinks,
        contract.test_the_users_tokens_never_change,
        contract.test_sealed_and_counted_are_respected,
        contract.test_noise_belongs_to_the_text,
        contract.test_every_row_has_its_own_time,
        pytest.param(contract.test_it_is_gradual, marks=pytest.mark.slow),
    ],
    ids=lambda promise: getattr(promise, "__name__", "test_pace")[5:],
)
def test_the_contract(process: Edit, promise) -> None:
    promise(process)


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_states_are_as_they_say(process: Edit) -> None:
    """Flags, markers, and where each element is, at all times; and what the noise of x_t makes of x_0 again is x_t."""
    x0, key = contract.copies(100)
    x0 = x0.with_(ids=torch.where(x0.ids >= A, A + x0.ids % 2, x0.ids))
    t = Key.of(1, len(x0)).uniform(1)[:, 0]
    noise = process.noise(x0, key)
    xt, draw = process.corrupt(x0, noise, t), process.align(x0, noise, t)
    gap, mask = xt.ids == SPECIALS.gap, xt.ids == SPECIALS.mask
    free = xt.valid & ~xt.fixed & ~gap & ~mask
    assert torch.equal(xt.doubtful, free) and torch.equal(xt.surplus, free & ~xt.counted & (process.insert > 0))
    follows = torch.cat([gap[:, 1:], torch.zeros_like(gap[:, :1])], 1)
    assert not bool((gap & follows).any())
    if process.kinds[0]:
        assert bool((follows | xt.sealed)[xt.valid & ~gap].all())
    else:
        assert not bool(gap.any())
    valid = x0.valid
    assert bool((draw.place.diff(dim=1)[valid[:, 1:]] >= 0).all())
    owners = torch.zeros_like(xt.ids).scatter_add(1, draw.place, valid.long())
    assert int(owners[~gap].max()) == 1
    extra = xt.valid & ~gap & (owners == 0)
    assert bool(extra.any()) == (process.insert > 0)
    again = process.infer(xt, draw, t, key.fold(5))
    assert torch.equal(process.corrupt(x0, again, t).ids, xt.ids)
    assert torch.equal(process.align(x0, again, t).place[valid], draw.place[valid])
    blind = process.infer(xt, Draw(x0, torch.empty(0, dtype=torch.int64), draw.log_prob), t, key.fold(6))
    seen_again = process.corrupt(x0, blind, t).ids
    width = min(seen_again.shape[1], xt.ids.shape[1])
    match = (seen_again[:, :width] == xt.ids[:, :width]).all(1)
    aligned = torch.arange(len(x0)) % 7 != 5  # one text has a sealed place before a word that may go
    assert bool(match[aligned].all()) and (bool(match.all()) or process.kinds[0] > 0)


def halfway(process: Process, text, places: bool) -> tuple[Tokens, Draw]:
    xt, draw = laws.halfway(process, text, COUNT)
    return xt, draw if places else unplaced(draw)


@cache
def direct(process: Process, text, s: float) -> dict[int, int]:
    x0 = many(text(), COUNT)
    return tally(process.corrupt(x0, process.noise(x0, Key.of(2, COUNT)), time(COUNT, s)).ids[:, :22])


def through(process: Process, text, rule, places: bool, spoil=lambda process: process) -> dict[int, int]:
    xt, draw = halfway(process, text, places)
    t, s = time(COUNT, T), time(COUNT, S)
    noise = rule(spoil(process), xt, draw, t, s, Key.of(3, COUNT))
    return tally(process.corrupt(draw.x0, noise, s).ids[:, :22])


def settled() -> Tokens:
    """A user's word, a counted token, and a place that is sealed."""
    x0 = laws.patterned()
    return x0.with_(sealed=(torch.arange(6) == 2)[None])


STEPS = [
    pytest.param(
        rule,
        places,
        id=f"{name}-{'placed' if places else 'aligned'}",
        marks=[pytest.mark.slow] * (name != "partial" or places),
    )
    for name, rule in RULES.items()
    for places in ((True,) if rule is fresh else (True, False))  # fresh noise asks for no place
]
TEXT_OF = [
    pytest.param(name, text, id=name, marks=[pytest.mark.slow] * (name != "coming"))
    for name, text in (("all", laws.plain), ("coming", settled), ("level", laws.plain), ("open-ended", laws.patterned))
]


@pytest.mark.parametrize(("rule", "places"), STEPS)
@pytest.mark.parametrize(("name", "text"), TEXT_OF)
def test_consistency(name: str, text, rule, places: bool) -> None:
    """Identity 2: through x_t as directly, two-sample chi-square; with places hidden, by the pair-HMM's alignment."""
    process = PROCESSES[name]
    assert same(through(process, text, rule, places), direct(process, text, S)) > 1e-6


@pytest.mark.parametrize("seen", [0, 1, 2])
def test_words_that_come_later(seen: int) -> None:
    """Of one place with `seen` words at t, how many more come: C(a + b, b) (1 - q)^(a + 1) q^b; and between which.

    20,000 texts, chi-square at 1e-6; the controls are one place fewer or more between the words seen, and one order alone.
    """
    count, t, insert = 20_000, 0.4, 0.6
    process = Edit(SPECIALS, WORDS, kinds=(0, 0, 1), insert=insert)
    x0 = Tokens.from_rows([[1]] * count, SPECIALS.pad)
    xt = Tokens.from_rows([[1, *[A] * seen]] * count, SPECIALS.pad)
    draw = Draw(x0, torch.zeros(count, 1, dtype=torch.int64), x0.score)
    noise = process.infer(xt, draw, time(count, t), Key.of(6, count))
    reach = t * (1 - insert) / (1 - insert * t)
    later, here = (noise.when[:, 0] >= reach) & (noise.when[:, 0] < 1), noise.when[:, 0] < reach
    assert here.sum(1).unique().tolist() == [seen] and bool((noise.what[:, 0][here] == A).all())
    q = insert * (1 - reach)

    def law(places: int) -> dict[int, float]:
        chances = {b: math.comb(places - 1 + b, b) * (1 - q) ** places * q**b for b in range(40)}
        return chances | {40: 1 - sum(chances.values())}

    counts = dict(zip(*(part.tolist() for part in later.sum(1).unique(return_counts=True)), strict=True))
    assert fit(counts, law(seen + 1)) > 1e-6 and fit(counts, law(seen + 2)) < 1e-6
    if seen:
        assert fit(counts, law(seen)) < 1e-6
        one = later.sum(1) == 1  # before, between or after the words seen, all alike
        first = here[one].long().argmax(1) if seen == 1 else later[one].long().argmax(1)
        places = dict(zip(*(part.tolist() for part in first.unique(return_counts=True)), strict=True))
        assert fit(places, {place: 1 / (seen + 1) for place in range(seen + 1)}) > 1e-6
        assert fit(places, {0: 0.9} | {place: 0.1 / seen for place in range(1, seen + 1)}) < 1e-6


class Level(Edit):
    """A control: every alignment is taken for as likely as any other."""

    def _alignments(self, seen, x0: Tokens, t: torch.Tensor) -> Alignments:
        ways = super()._alignments(seen, x0, t)
        return Alignments(Weights(*(log_of(part > -torch.inf) for part in ways.weights)), ways.sizes, ways.others)


class Stubborn(Edit):
    """A control: what has come in goes no earlier than everything else."""

    def _reach(self, t: torch.Tensor) -> torch.Tensor:
        return self.schedule.beta(t) ** 3


@pytest.mark.parametrize(("control", "places"), [(Stubborn, True), pytest.param(Level, False, marks=pytest.mark.slow)])
def test_inconsistency_is_noticed(control, places: bool) -> None:
    def spoil(process: Edit) -> Edit:
        return control(SPECIALS, WORDS, kinds=KINDS, insert=0.2)

    text = laws.plain
    assert same(through(COMING, text, posterior, places, spoil), direct(COMING, text, S)) < 1e-6


TEXTS = [[], [A], [A, A], [A, A], [B, A], [A, B]]


class Bayes(Denoiser):
    """q(x0 | xt) over a finite data set by the pair-HMM's likelihoods: an oracle where noise cannot be enumerated."""

    def __init__(self, process: Edit, data: Tokens) -> None:
        super().__init__()
        self.process, self.data = process, data

    def forward(self, xt: Tokens, t: torch.Tensor) -> Posterior:
        return _Bayes(self, xt, t)


class _Bayes(Posterior):
    def __init__(self, bayes: Bayes, xt: Tokens, t: torch.Tensor) -> None:
        self.data, count = bayes.data, len(bayes.data)
        codes, first, self.which = distinct(xt.ids)
        xt, t = xt[first], t[first]
        rows = torch.arange(len(xt)).repeat_interleave(count)
        texts = bayes.data[torch.arange(count).repeat(len(xt))]
        log = bayes.process.log_likelihood(xt[rows], texts, t[rows]).view(len(xt), count)
        log = torch.where((t == 1)[:, None] & bayes.process.staged, 0.0, log)  # the prior says nothing
        self.chance = log.softmax(1)

    def sample(self, decode: Decode, key: Key) -> Draw:
        cdf = self.chance.cumsum(1)[self.which]
        chosen = (cdf < key.uniform(1) * cdf[:, -1:]).sum(1)
        x0 = self.data[chosen]
        return unplaced(Draw(x0, x0.ids, x0.score))

    def log_prob(self, truth: Draw) -> torch.Tensor:
        raise NotImplementedError


def distinct(ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Each row once: the rows, where the first of each is, and which is whose."""
    rows, which = ids.unique(dim=0, return_inverse=True)
    first = torch.full((len(rows),), len(ids)).scatter_reduce(0, which, torch.arange(len(ids)), "amin")
    return rows, first, which


def drawn(denoiser: Denoiser, process: Process, rule, steps: int, count: int = COUNT) -> dict[int, int]:
    key = Key.of(4, count)
    x = process.prior(many(laws.data(TEXTS)[-1:], count), key)
    *_, last = sample(denoiser, process, x, steps=steps, key=key, rule=rule)
    return tally(last.x.ids)


SAMPLERS = [
    pytest.param(rule, steps, id=f"{name}-{steps}", marks=[pytest.mark.slow] * (name != "partial" or steps != 2))
    for name, rule in RULES.items()
    for steps in (1, 2, 8)
]


@pytest.fixture(scope="module")
def oracle() -> Oracle:
    return Oracle(ALL, laws.data(TEXTS))


@pytest.mark.parametrize("places", [True, False], ids=["placed", "aligned"])
@pytest.mark.parametrize(("rule", "steps"), [sampler for sampler in SAMPLERS if sampler.values[1] == 2])
def test_a_perfect_denoiser_samples_the_data(oracle, rule, steps: int, places: bool) -> None:
    """Identity 3, without insertions, the oracle by enumeration; on all 81 texts in test_identities.py."""
    denoiser = oracle if places else Blind(oracle)
    assert fit(drawn(denoiser, ALL, rule, steps), laws.law_of(TEXTS)) > 1e-6


@pytest.mark.parametrize("process", [COMING, LEVEL], ids=["coming", "level"])
@pytest.mark.parametrize(("rule", "steps"), SAMPLERS)
def test_a_perfect_denoiser_takes_out_what_came_in(process: Edit, rule, steps: int) -> None:
    """Identity 3, with insertions, the oracle by Bayes' rule from the pair-HMM's likelihood. N = 40,000 texts."""
    assert fit(drawn(Bayes(process, laws.data(TEXTS)), process, rule, steps, 40_000), laws.law_of(TEXTS)) > 1e-6


def test_imperfect_samplers_are_noticed() -> None:
    """An oracle of another process, in which less comes in."""
    other = Bayes(Edit(SPECIALS, WORDS, kinds=KINDS, insert=0.05), laws.data(TEXTS))
    assert fit(drawn(other, COMING, posterior, 2, 40_000), laws.law_of(TEXTS)) < 1e-6


# Stock models with random weights from here on.
NAMED = laws.NAMED
X, Y = laws.X, laws.Y
MIXED = Edit(NAMED, torch.tensor([X, Y]), kinds=KINDS, insert=0.3)


def test_a_stock_model_trains_on_edits() -> None:
    """A finite loss, gradients that reach every weight in use, and less of a loss after some steps on a few texts."""
    model = UDM(MIXED, Parallel(laws.bert(), NAMED), Objective())
    x0 = laws.words_of([[X, Y], [X, X], [Y], []] * 16)
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    losses = []
    for step in range(30):
        loss = model(x0, Key.of(step, len(x0)))
        optimiser.zero_grad()
        (loss.total / loss.size).backward()
        if not step:
            touched = [p.grad is not None and float(p.grad.abs().sum()) > 0 for p in model.parameters()]
            assert sum(touched) > 0.8 * len(touched)
        optimiser.step()
        losses.append(float((loss.total / loss.size).detach()))
    assert all(value == value and value < 100 for value in losses)
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


@pytest.mark.parametrize(
    "rule", [fresh, posterior, partial(0.3), ranked()], ids=["fresh", "posterior", "rho", "ranked"]
)
def test_the_users_text_never_changes(rule) -> None:
    """Identity 18, on 1,000 rows: fixed words, closed places and counts survive every rule."""
    x, looks = laws.patterns(1000, True)
    denoiser = Parallel(laws.bert(), NAMED).eval()
    run = list(sample(denoiser, MIXED, x, steps=3, key=Key.of(14, 1000), rule=rule))
    assert offences(run, looks) == 0


def test_a_change_of_the_users_text_is_noticed() -> None:
    """The control: the same texts, without saying what is the user's."""
    x, looks = laws.patterns(1000, True)
    denoiser = Parallel(laws.bert(), NAMED).eval()
    loose = x.with_(fixed=x.fixed & (torch.arange(x.ids.shape[1]) == 0))
    run = list(sample(denoiser, MIXED, loose, steps=3, key=Key.of(14, 1000), rule=fresh))
    assert offences(run, looks) > 0
    assert not bool((run[-1].x.doubtful | run[-1].x.surplus).any())


def offences(run: list[Step], looks) -> int:
    """Gaps stand after every open word, so that states are read without; and words of a gap may be masked."""
    letter = laws.letter(NAMED.mask)
    looks = [(re.compile(half.pattern.replace("]*", letter + "]*")), full) for half, full in looks]
    bare = []
    for step in run:
        kept = step.x.valid & ((step.x.ids != NAMED.gap) | step.done[:, None])
        order = (~kept).long().argsort(dim=1, stable=True)
        bare.append(replace(step, x=step.x.take(order.masked_fill(~kept.gather(1, order), -1), NAMED.pad)))
    return laws.offences(bare, looks)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kinds": (0.5, 0.5, 0.5)}, "must sum to 1"),
        ({"kinds": (1.5, -0.5, 0)}, "must sum to 1"),
        ({"insert": 1.0}, r"not in \[0, 1\)"),
        ({"words": torch.tensor([A])}, "two or more ids"),
        ({"words": torch.tensor([A, 2])}, "of text alone"),
    ],
)
def test_what_cannot_be_is_refused(options, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Edit(SPECIALS, **{"words": WORDS, **options})


def test_a_prior_that_is_no_point_has_no_bound() -> None:
    with pytest.raises(ValueError, match="use staged=True"):
        UDM(OPEN_ENDED, Blind(Oracle(ALL, laws.data(TEXTS)))).bound(laws.data(TEXTS), Key.of(0, len(TEXTS)))


def test_a_guess_that_explains_nothing_takes_the_baseline() -> None:
    """Without places: where x_t cannot have come from the guess the noise is drawn anew, elsewhere it is inferred."""
    process = Edit(SPECIALS, WORDS, kinds=(0.5, 0.5, 0))
    x0 = Tokens.from_rows([[1, A, B], [1, A, B]], SPECIALS.pad)
    key, t = Key.of(0, 2), time(2, T)
    noise = process.noise(x0, key)
    noise = noise._replace(u=torch.tensor([[1.0, 0.9, 0.9]] * 2, dtype=torch.float64))  # both words are seen
    xt = process.corrupt(x0, noise, t)
    guess = Tokens.from_rows([[1, A, A], [1, A, B]], SPECIALS.pad)  # the first is not what is seen
    found = process.infer(xt, Draw(guess, torch.empty(0, dtype=torch.int64), torch.zeros(())), t, key)
    fresh_noise = process.noise(guess, key.fold(0))
    assert torch.equal(found.u[0], fresh_noise.u[0]) and not torch.equal(found.u[1], fresh_noise.u[1])
    assert bool((found.u[1] >= T).all())
