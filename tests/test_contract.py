"""What every forward process promises, examined alike: a new process is one line in PROCESSES.

The promises are those the sampler and the likelihood lean on: data at t = 0, nothing but the user's own at t = 1, a
path in between that only loses, at the schedule's pace, and noise that belongs to a text and not to the batch it came
in. The laws of the reverse step are examined in test_laws.py.
"""

import pytest
import torch
from scipy import stats

from textdiff.keys import Key
from textdiff.process import Deletion, Edit, Masking, Mixture, Process, Replacement
from textdiff.schedule import Betas, Cosine, Linear, Power, Schedule, SquaredCosine, Steps, reaching
from textdiff.tokens import Specials, Tokens

SPECIALS = Specials(pad=0, bos=1, mask=2, gap=3)
WORD = 4  # the first id that is a word
TIMES = (0.0, 1e-6, 0.1, 0.25, 0.5, 0.75, 0.9, 1 - 1e-6, 1.0)

PROCESSES = [
    pytest.param(family(SPECIALS, schedule, spans=spans), id=f"{family.__name__}-{type(schedule).__name__}-{spans[-1]}")
    for family in (Masking, Deletion)
    for schedule in (Linear(), Cosine(), Power(3))
    for spans in ((1,), (1, 3))
] + [
    pytest.param(Deletion(SPECIALS, staged=True), id="Deletion-staged"),
    pytest.param(Deletion(SPECIALS, empty=0), id="Deletion-bare"),
]
WORDS = torch.arange(WORD, WORD + 20)
COUNTED = [
    pytest.param(Masking(SPECIALS, counts=True), id="Masking-counts"),
    pytest.param(Replacement(SPECIALS, WORDS, different=True, counts=True), id="Replacement-B-counts"),
]
OTHERS = [
    pytest.param(Replacement(SPECIALS, WORDS, different=True), id="Replacement-B"),
    pytest.param(Replacement(SPECIALS, WORDS, different=True, masked=0.3), id="Replacement-B-masked"),
    pytest.param(Edit(SPECIALS, WORDS, insert=0.3), id="Edit"),
    pytest.param(Mixture([(1, Deletion(SPECIALS)), (2, Masking(SPECIALS))], SPECIALS.pad), id="Mixture"),
]
ending_in_a_point = pytest.mark.parametrize("process", PROCESSES + COUNTED[:1])
keeping_pace = pytest.mark.parametrize("process", PROCESSES + OTHERS)
every_process = pytest.mark.parametrize("process", PROCESSES + COUNTED + OTHERS)


def texts() -> Tokens:
    """Texts of all sorts, every word another id, so that a token can be told from its neighbours wherever it ends up.

    The empty one, short and long ones, and ones that the user has his hand in: fixed words (at the end, too), a place
    that is sealed, tokens that are counted.
    """
    x0 = Tokens.from_rows([[1] + [WORD + i for i in range(n)] for n in (7, 0, 1, 12, 9, 9, 5)], SPECIALS.pad)
    fixed, counted, sealed = x0.fixed.clone(), x0.counted.clone(), x0.sealed.clone()
    fixed[4, [3, 4, 9]] = True
    fixed[5, [1, 6]] = counted[5, [3, 4]] = sealed[5, [0, 3, 6]] = True
    fixed[6] = x0.valid[6]
    sealed[6] = x0.valid[6]
    return x0.with_(fixed=fixed, counted=counted, sealed=sealed)


def copies(count: int) -> tuple[Tokens, Key]:
    """All the texts many times over, each time with a noise of its own."""
    x0 = texts()
    return x0[torch.arange(len(x0)).repeat(count)], Key.of(11, len(x0) * count)


def at(x0: Tokens, time: float) -> torch.Tensor:
    return torch.full((len(x0),), time, dtype=torch.float64)


def rows(x: Tokens) -> list[tuple[tuple[int, bool, bool, bool], ...]]:
    """Every text without its padding: ids, and whose they are."""
    parts = torch.stack([x.ids, x.fixed.long(), x.counted.long(), x.sealed.long()], -1).tolist()
    sizes = x.valid.sum(1).tolist()
    return [tuple(map(tuple, row[:size])) for row, size in zip(parts, sizes, strict=True)]


def alike(first: list, second: list) -> bool:
    """Equality without pytest's picture of the difference: of lists as long as these it takes minutes to draw."""
    return first == second


def kept(process: Process, x0: Tokens, noise, time: float) -> torch.Tensor:
    """(B, L) which tokens of x0 are still to be read at the place in x_t where they are said to be."""
    xt, draw = process.corrupt(x0, noise, at(x0, time)), process.align(x0, noise, at(x0, time))
    seen = xt.ids.gather(1, draw.place)
    return (seen == x0.ids) & x0.valid


@every_process
def test_time_0_is_the_data(process: Process) -> None:
    x0, key = copies(40)
    noise = process.noise(x0, key)
    assert alike(rows(process.corrupt(x0, noise, at(x0, 0.0))), rows(x0))
    assert bool((kept(process, x0, noise, 0.0) == x0.valid).all())


@ending_in_a_point
def test_time_1_leaves_only_what_is_fixed(process: Process) -> None:
    x0, key = copies(40)
    xt = process.corrupt(x0, process.noise(x0, key), at(x0, 1.0))
    assert not bool(((xt.ids >= WORD) & ~xt.fixed).any())
    assert alike(rows(process.prior(x0, key)), rows(xt))


@ending_in_a_point
def test_the_prior_is_a_point(process: Process) -> None:
    """x_1 does not depend on the noise. (The likelihood bounds rely on it: they have no prior term.)"""
    x0, key = copies(40)
    xt = rows(process.prior(x0, key))
    assert alike(xt, xt[: len(texts())] * 40)


@pytest.mark.parametrize("spans", [(1,), (1, 3)])
def test_deletion_ends_as_one_gap(spans: tuple[int, ...]) -> None:
    """Whatever the length, the empty text included: so no length has to be guessed beforehand."""
    x0, key = copies(50)
    xt = Deletion(SPECIALS, spans=spans).prior(x0, key)
    free = (x0.fixed.sum(1) == 1) & ~x0.sealed.any(1)
    assert xt.ids[free, :2].unique(dim=0).tolist() == [[SPECIALS.bos, SPECIALS.gap]]
    assert bool((xt.valid[free].sum(1) == 2).all())


@every_process
def test_information_only_shrinks(process: Process) -> None:
    x0, key = copies(40)
    noise = process.noise(x0, key)
    seen = [kept(process, x0, noise, t) for t in TIMES]
    for earlier, later in zip(seen, seen[1:], strict=False):
        assert not bool((later & ~earlier).any())


@every_process
def test_the_users_tokens_never_change(process: Process) -> None:
    x0, key = copies(40)
    noise = process.noise(x0, key)
    mine = [[part for part in row if part[1]] for row in rows(x0)]
    for t in TIMES:
        xt = process.corrupt(x0, noise, at(x0, t))
        assert alike([[part for part in row if part[1]] for row in rows(xt)], mine)
        assert not bool(((x0.fixed & x0.valid) & ~kept(process, x0, noise, t)).any())


@ending_in_a_point
def test_sealed_and_counted_are_respected(process: Process) -> None:
    """Where the user closed a place no marker stands unless the next token is gone; counted tokens are not deleted."""
    x0, key = copies(40)
    noise, before, closed = process.noise(x0, key), rows(x0), x0.sealed.any(1).tolist()
    for t in TIMES:
        after, still = rows(process.corrupt(x0, noise, at(x0, t))), kept(process, x0, noise, t).tolist()
        for number, (old, new) in enumerate(zip(before, after, strict=True)):
            assert sum(part[2] for part in old) == sum(part[2] for part in new)
            if closed[number]:
                for left, right in zip(new, new[1:], strict=False):
                    if left[3] and right[0] == SPECIALS.gap:
                        assert not still[number][[part[0] for part in old].index(left[0]) + 1]


@every_process
def test_noise_belongs_to_the_text(process: Process) -> None:
    """The same row alone, in a batch in another order, and with padding beside it, gives the same x_t."""
    x0, key = texts(), Key.of(5, len(texts()))
    column = torch.arange(x0.ids.shape[1] + 4).expand(len(x0), -1)
    wide = x0.take(column.masked_fill(column >= x0.ids.shape[1], -1), SPECIALS.pad)
    order = torch.tensor([3, 0, 6, 5, 2, 1, 4])
    for t in (0.0, 0.3, 0.8, 1.0):
        expected = rows(process.corrupt(x0, process.noise(x0, key), at(x0, t)))
        assert alike(rows(process.corrupt(wide, process.noise(wide, key), at(wide, t))), expected)
        shuffled = rows(process.corrupt(x0[order], process.noise(x0[order], key[order]), at(x0, t)))
        assert alike(shuffled, [expected[i] for i in order])
        for i in range(len(x0)):
            alone = x0[i : i + 1].take(torch.arange(int(x0.valid[i].sum()))[None], SPECIALS.pad)
            noise = process.noise(alone, key[torch.tensor([i])])
            assert alike(rows(process.corrupt(alone, noise, at(alone, t))), expected[i : i + 1])


@every_process
def test_every_row_has_its_own_time(process: Process) -> None:
    x0, key = texts(), Key.of(5, len(texts()))
    noise, times = process.noise(x0, key), torch.linspace(0, 1, len(texts()), dtype=torch.float64)
    mixed = rows(process.corrupt(x0, noise, times))
    assert alike(mixed, [rows(process.corrupt(x0, noise, at(x0, float(t))))[i] for i, t in enumerate(times)])


PACED = 30_000


def keeps_pace(count: int, schedule: Schedule, time: float) -> bool:
    """Whether the number of texts whose second free token is still there goes with the schedule's alpha.

    One token of each of 30,000 texts, so that spans leave them independent. The count is binomial; it leaves the bounds
    with chance 1e-6.
    """
    share = float(schedule.alpha(torch.tensor(time, dtype=torch.float64)))
    low, high = stats.binom.ppf([5e-7, 1 - 5e-7], PACED, share)
    return low <= count <= high


@keeping_pace
def test_it_is_gradual(process: Process) -> None:
    """At t a share alpha(t) is left, whatever the spans: every stage between data and noise is met."""
    x0, key = texts()[:1], Key.of(3, PACED)
    x0 = x0[torch.zeros(len(key), dtype=torch.long)]
    noise, schedule = process.noise(x0, key), getattr(process, "schedule", Linear())  # of a mixture: of its parts
    for t in (0.2, 0.5, 0.8):
        count = int(kept(process, x0, noise, t)[:, 2].sum())
        assert keeps_pace(count, schedule, t)
        assert not keeps_pace(count, Power(1.5 if isinstance(schedule, Linear) else 1.2), t)


SCHEDULES = [Linear(), Cosine(), Power(3), Power(0.5), SquaredCosine(), Betas(), Steps([1, 0.9, 0.4, 0.1, 0])]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_schedules(schedule: Schedule) -> None:
    """Exactly 1 and 0 at the ends: anything less is text changed at t = 0, or left over at t = 1. DDPM's betas end near."""
    t = torch.linspace(0, 1, 1001, dtype=torch.float64)
    alpha = schedule.alpha(t)
    assert float(alpha[0]) == 1
    assert float(alpha[-1]) == 0 or isinstance(schedule, Betas) and float(alpha[-1]) < 5e-5
    assert bool((alpha.diff() < 0).all())
    inner = (t[10:-10] + 1e-4).requires_grad_()  # not where a table has its corners
    (slope,) = torch.autograd.grad(schedule.alpha(inner).sum(), inner)
    torch.testing.assert_close(schedule.slope(inner), slope)
    torch.testing.assert_close(schedule.weight(inner), -slope / (1 - schedule.alpha(inner)))


def test_discrete_time() -> None:
    """A table's values at its own times, whatever k / T rounds to; and DDPM's: prod(1 - beta_k) of 1000 linear betas."""
    values = [1.0, *(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0).tolist()]
    t = torch.arange(1001, dtype=torch.float64) / 1000
    torch.testing.assert_close(Steps(values).alpha(t), torch.tensor(values, dtype=torch.float64), rtol=1e-6, atol=1e-12)
    # the continuous form is the limit of small betas: -log alpha differs by sum beta^2 / 2 at most
    assert float((Betas().alpha(t) - Steps(values).alpha(t)).abs().max()) < 2e-3


def test_a_schedule_that_does_not_reach_its_prior_is_refused() -> None:
    reaching(Betas(), most=1e-3)
    with pytest.raises(ValueError, match="Betas leaves 4.32e-05 of the data at t = 1"):
        Masking(SPECIALS, Betas())
    with pytest.raises(ValueError, match="Steps leaves 0.1 of the data"):
        Deletion(SPECIALS, Steps([1, 0.5, 0.1]))
    with pytest.raises(ValueError, match="must fall, from 1 on"):
        Steps([0.9, 0.5, 0])


@pytest.mark.parametrize("make", [lambda: Power(0), lambda: Power(-1), lambda: Masking(SPECIALS, spans=())])
def test_what_cannot_be_is_refused(make) -> None:
    with pytest.raises(ValueError):
        make()
    with pytest.raises(ValueError):
        Deletion(SPECIALS, spans=(0.5,))


class Flicker(Masking):
    """A control: what is hidden now is seen again later, the user's tokens with it."""

    def corrupt(self, x0: Tokens, noise: torch.Tensor, t: torch.Tensor) -> Tokens:
        return super().corrupt(x0, (noise * 7 + 3 * t[:, None]) % 1, t)


class BatchNoise(Masking):
    """A control: noise that is drawn for the batch as a whole."""

    def noise(self, x0: Tokens, key: Key) -> torch.Tensor:
        return key.uniform(x0.ids.numel())[:, -x0.ids.shape[1] :].masked_fill(x0.fixed, 1.0)


class Timid(Masking):
    """A control: a bit of the text stays for ever."""

    def corrupt(self, x0: Tokens, noise: torch.Tensor, t: torch.Tensor) -> Tokens:
        return super().corrupt(x0, noise, t * 0.99)


def test_the_examination_can_be_failed() -> None:
    failures = [
        (test_information_only_shrinks, Flicker),
        (test_the_users_tokens_never_change, Flicker),
        (test_noise_belongs_to_the_text, BatchNoise),
        (test_time_1_leaves_only_what_is_fixed, Timid),
        (test_the_prior_is_a_point, Timid),
    ]
    for examine, control in failures:
        with pytest.raises(AssertionError):
            examine(control(SPECIALS))
