"""Identities of the mathematics that concern the loop as a whole (docs/processes.md has all of them).

Samples are compared with their law by chi-square at a false alarm of 1e-6; each
criterion is also shown to reject what is a little wrong.
"""

import itertools
import math
from functools import cache

import pytest
import torch
from scipy import stats
from test_laws import (
    FIXED_LENGTH,
    SPECIALS,
    A,
    B,
    Spoiled,
    data,
    fit,
    forgetful,
    law_of,
    many,
    name_of,
    samples,
    time,
)

from textdiff.denoiser import Oracle
from textdiff.keys import Key
from textdiff.posterior import Decode, Draw, Posterior
from textdiff.process import Deletion, Edit, Masking, Mixture
from textdiff.revealing import ranked
from textdiff.rules import fresh, partial, posterior
from textdiff.sampler import sample
from textdiff.schedule import Cosine
from textdiff.tokens import Tokens


class Shares(Key):
    """A number instead of chance: noise drawn uniformly from an interval then shows where that begins and ends."""

    def __init__(self, rows: int, share: float) -> None:
        super().__init__(torch.zeros(rows, dtype=torch.int64))
        self.share = share

    def fold(self, number: int) -> "Shares":
        return self

    def uniform(self, count: int) -> torch.Tensor:
        return torch.full((len(self), count), self.share, dtype=torch.float64)


def stacked(noise) -> torch.Tensor:
    """u, or u and e of a deletion, side by side."""
    return torch.cat(noise, 1) if isinstance(noise, tuple) else noise


def kernel(process, x0: Tokens, noise, t: float, s: float, rho: float) -> torch.Tensor:
    """(M, K) the chance of each of the K cells of noise at s, from the state that each of M noises makes at t. Exact."""
    count = len(stacked(noise))
    texts, times = many(x0, count), time(count, t)
    xt, draw = forgetful(process.corrupt(texts, noise, times)), process.align(texts, noise, times)
    low, high = (stacked(process.infer(xt, draw, times, Shares(count, share))) for share in (0.0, 1.0))
    cells, edge = stacked(process.cells(x0, time(1, s))[0]), edges(process, x0, s)
    inferred = torch.where(
        high > low, ((edge - low) / (high - low).clamp_min(1e-300)).clamp(0, 1), (low < edge).double()
    )
    anew = torch.where((low == high) & (low == 1), 0.0, edge)  # the user's tokens have no noise to draw
    below = (1 - rho) * inferred + rho * anew
    return torch.where((cells < edge)[None], below[:, None], 1 - below[:, None]).prod(2)


def edges(process, x0: Tokens, t: float) -> torch.Tensor:
    """Below which a noise does something at t: beta for u, gamma for e."""
    beta = process.schedule.beta(time(1, t)).expand(x0.ids.shape[1])
    return torch.cat([beta, process._gamma(time(1, t))[0].expand_as(beta)]) if isinstance(process, Deletion) else beta


EXACT = {
    "masking": Masking(SPECIALS),
    "cosine": Masking(SPECIALS, Cosine()),
    "deletion": Deletion(SPECIALS, empty=2),
    "bare": Deletion(SPECIALS, empty=0),
    "staged": Deletion(SPECIALS, staged=True),
}


def inconsistency(process, s: float, rho: float) -> float:
    """The largest difference of any x_s between its way through x_t and the direct one."""
    x0 = data([[A, A]])
    noise, chances = process.cells(x0, time(1, 0.8))
    cells, direct = process.cells(x0, time(1, s))
    through = chances @ kernel(process, x0, noise, 0.8, s, rho)
    states = process.corrupt(many(x0, len(direct)), cells, time(len(direct), s)).codes()
    by_state = torch.zeros(len(direct), dtype=torch.float64)
    group = states.unique(return_inverse=True)[1]
    through = through * (direct > 0)  # where gamma is 0 both of its cells are the same noise
    return float((by_state.index_add(0, group, through) - by_state.index_add(0, group, direct)).abs().max())


@pytest.mark.parametrize("rho", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("name", EXACT)
def test_consistency_by_enumeration(name: str, rho: float) -> None:
    """Identity 2 without chance, to 1e-12: sum over all x_t of p(x_s | x_t, x_0) q(x_t | x_0) is q(x_s | x_0).

    The intervals that `infer` draws from are read off the code, which is uniform on them.
    """
    assert inconsistency(EXACT[name], 0.45, rho) < 1e-12


class Hasty(Masking):
    """The control: the noise of what is hidden is taken for a little less than it is."""

    def infer(self, xt: Tokens, draw: Draw, t: torch.Tensor, key: Key) -> torch.Tensor:
        return torch.where(
            super().infer(xt, draw, t, key) < t[:, None], super().infer(xt, draw, 0.99 * t, key), draw.x0.fixed + 0.9
        )


def test_inconsistency_by_enumeration() -> None:
    assert inconsistency(Hasty(SPECIALS), 0.45, 0.0) > 1e-3


ONE_BY_ONE = Masking(SPECIALS, counts=True)  # in as many steps as there are tokens, one token a step


def marginals(exact: Posterior, xt: Tokens, key: Key) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the ideal network that says all words at once: a draw from each token's marginal (B, L), and P(that word is B)."""
    drawn = [exact.sample(Decode(), key.fold(column)).x0.ids[:, column] for column in range(xt.ids.shape[1])]
    # the law of a column depends on the state alone: the exact share among its ways
    ways, groups = exact.ways, len(exact.ways.codes)
    group = torch.arange(groups).repeat_interleave(ways.sizes)
    is_b = (exact.data.ids[ways.text] == B).double() * ways.chance[:, None]
    share = torch.zeros(groups, is_b.shape[1], dtype=torch.float64).index_add_(0, group, is_b)
    total = torch.zeros(groups, dtype=torch.float64).index_add_(0, group, ways.chance)
    return torch.stack(drawn, 1), (share / total[:, None])[exact.group]


def alone(confidence: str):
    """Words from the marginals; what `ranked` is told of them."""

    def spoil(exact: Posterior, xt: Tokens, t: float, key: Key, draw: Draw) -> Draw:
        ids, p = marginals(exact, xt, key)
        sure = {"of the state": p.maximum(1 - p), "of the draw": torch.where(ids == B, p, 1 - p)}.get(confidence, p)
        return Draw(draw.x0.with_(ids=torch.where(draw.x0.fixed, draw.x0.ids, ids)), draw.place, sure.float())

    return spoil


@pytest.mark.parametrize(
    ("rule", "confidence", "exact"),
    [
        pytest.param(posterior, "none", True, id="random order"),
        pytest.param(ranked(), "of the state", True, id="surest position first"),
        pytest.param(ranked(), "of the draw", False, id="surest draw first"),
    ],
)
def test_one_token_a_step(rule, confidence: str, exact: bool) -> None:
    """Identity 4: true marginals, one token a step, sample the data in any order that is chosen from x_t alone.

    Chosen by the probability of the word that was drawn the order is biased (LLaDA's low confidence). N = 50,000.
    """
    words = [[A, A, A]] * 3 + [[B, B, A]] * 2 + [[A, B, A]]
    model = Spoiled(Oracle(ONE_BY_ONE, data(words)), alone(confidence))
    chance = fit(samples(model, ONE_BY_ONE, words, rule, 3), law_of(words))
    assert chance > 1e-6 if exact else chance < 1e-6


def test_all_tokens_at_once_are_not_the_data() -> None:
    """The control: the same marginals in one step."""
    model = Spoiled(Oracle(ONE_BY_ONE, data(FIXED_LENGTH)), alone("none"))
    assert fit(samples(model, ONE_BY_ONE, FIXED_LENGTH, posterior, 1), law_of(FIXED_LENGTH)) < 1e-6


@pytest.mark.parametrize("steps", [1, 4, 16])
def test_the_bound_of_the_baseline(steps: int) -> None:
    """Identity 9, second half: with rho = 1 the bound of constant surprise is (T + 1)(T + 2) / (6 T) of that at rho = 0.

    A step's term is the share of masks that it shows, times their number; both from the enumeration. To 1e-9.
    """
    process, x0 = Masking(SPECIALS), data([[A]])

    def hidden(t: float) -> float:
        noise, chances = process.cells(x0, time(1, t))
        xt = process.corrupt(many(x0, len(chances)), noise, time(len(chances), t))
        return float(chances[(xt.ids == SPECIALS.mask).any(1)].sum())

    grid = [k / steps for k in range(steps + 1)]
    baseline = sum(hidden(t) * (1 - hidden(s)) for s, t in zip(grid, grid[1:], strict=False))
    exact = sum(hidden(t) * (1 - hidden(s) / hidden(t)) for s, t in zip(grid, grid[1:], strict=False))
    assert exact == pytest.approx(1, abs=1e-9)
    assert baseline == pytest.approx((steps + 1) * (steps + 2) / (6 * steps), abs=1e-9)


@pytest.mark.parametrize("process", [Masking(SPECIALS), Masking(SPECIALS, Cosine()), Deletion(SPECIALS)], ids=name_of)
def test_the_next_token_to_be_revealed(process) -> None:
    """Identity 15, first hitting: of K hidden tokens the next shows at beta = beta_t U^(1/K), on average beta_t K / (K + 1).

    N = 20,000 rows for each K, Kolmogorov-Smirnov at 1e-6; the law of K + 1 tokens is refused.
    """
    x0 = many(data([[A, B, A, A]]), 100_000)
    key, t = Key.of(3, len(x0)), time(len(x0), 0.4 if isinstance(process.schedule, Cosine) else 0.6)
    noise = process.noise(x0, key.fold(0))
    xt, draw = process.corrupt(x0, noise, t), process.align(x0, noise, t)
    hidden = (draw.seen(xt.ids) != x0.ids) & x0.valid
    inferred = process.infer(xt, draw, t, key.fold(1))
    u = inferred.u if isinstance(inferred, tuple) else inferred
    beta = float(process.schedule.beta(t[:1]))
    following = u.masked_fill(~hidden, 0.0).max(1).values
    for count in (1, 2, 3):
        mine = following[hidden.sum(1) == count][:20_000]
        assert len(mine) > 5_000
        share = ((mine / beta) ** count).numpy()
        assert stats.kstest(share, "uniform").pvalue > 1e-6
        assert stats.kstest(share ** ((count + 1) / count), "uniform").pvalue < 1e-6
        spread = beta * math.sqrt(count / (count + 2)) / (count + 1) / math.sqrt(len(mine))
        assert float(mine.mean()) == pytest.approx(beta * count / (count + 1), abs=5 * spread)


# All 81 texts of four words out of three, some up to three times as likely as others.
SPACE = [
    list(words)
    for number, words in enumerate(itertools.product((A, A + 1, A + 2), repeat=4))
    for _ in range(1 + number % 3)
]
MIXED = Mixture([(1.0, Deletion(SPECIALS)), (2.0, Masking(SPECIALS))], SPECIALS.pad)
PROCESSES = {
    "independent": Masking(SPECIALS),
    "counts": ONE_BY_ONE,
    "spans": Masking(SPECIALS, spans=(1, 3)),
    "mixture": MIXED,
}
PROCESSES["edit"] = Edit(SPECIALS, torch.tensor([A, A + 1, A + 2]), kinds=(0.3, 0.3, 0.4))
RULES = {"fresh": fresh, "posterior": posterior, "partial": partial(0.3)}


@cache
def oracle_of(name: str) -> Oracle:
    """Which masks belong together says nothing of the words: the oracle of independent masks knows spans, too."""
    return Oracle(PROCESSES["independent" if name == "spans" else name], data(SPACE))


def drawn(name: str, process, rule, steps: int) -> dict[int, int]:
    """100,000 samples."""
    key = Key.of(8, 100_000)
    x = process.prior(many(data(SPACE[-1:]), len(key)), key)
    *_, last = sample(oracle_of(name), process, x, steps=steps, key=key, rule=rule)
    values, counts = last.x.codes().unique(return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def law_of_space(flat: float = 0.0) -> dict[int, float]:
    """The data's law, or one a little flatter."""
    codes, counts = data(SPACE).codes().unique(return_counts=True)
    chances = (1 - flat) * counts.double() / len(SPACE) + flat / len(codes)
    return dict(zip(codes.tolist(), chances.tolist(), strict=True))


@pytest.mark.parametrize(
    ("name", "rule", "steps"),
    [
        pytest.param(name, rule, steps, marks=[pytest.mark.slow] * ((rule, steps) != ("partial", 2)))
        for name in PROCESSES
        for rule in RULES
        for steps in (1, 2, 8)
    ],
)
def test_a_perfect_denoiser_samples_all_texts(name: str, rule: str, steps: int) -> None:
    """Identity 3 on 81 texts. N = 100,000, false alarm 1e-6; a law 10 % of the way to the flat one is refused."""
    found = drawn(name, PROCESSES[name], RULES[rule], steps)
    assert fit(found, law_of_space()) > 1e-6
    assert fit(found, law_of_space(flat=0.1)) < 1e-6


class Loose(Masking):
    """The control: a visible word is hidden again more often than the noise that showed it allows."""

    def infer(self, xt: Tokens, draw: Draw, t: torch.Tensor, key: Key) -> torch.Tensor:
        return super().infer(xt, draw, t, key) * torch.where(draw.x0.ids == A, 0.5, 1.0)


def test_a_loose_step_is_noticed() -> None:
    """Counts of masks that depend on the words tell an oracle what it does not know."""
    assert fit(drawn("independent", Loose(SPECIALS), posterior, 8), law_of_space()) < 1e-6
