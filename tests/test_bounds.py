"""The likelihood bound of masking, computed in every way in which it can be written, which all have to agree:

    int_0^1 beta'/beta E[sum_masked -log q_i] dt  =  sum_M B(K, L - K + 1) CE(M)       (the integral, done exactly)
      =  L E_{K uniform, |M| = K}[CE(M) / K]                                           (K-uniform, what `probe` draws)
      =  E_order[sum of the surprise at each token when revealed in this order]        (any-order autoregression)
      =  lim_{T -> inf} sum_k r_k E[CE(M_k)],  r = (beta_t - beta_s) / beta_t          (discrete steps)

with K = |M| and CE(M) the summed surprise at the masked tokens (arXiv:2406.04329, 2406.07524, 2502.09992, 2110.02037).
The denoiser is a frozen table of random numbers, consistent with nothing, because the identities hold for any network.
"""

import itertools
import math

import pytest
import torch
from scipy import special, stats

from textdiff.denoiser import Denoiser
from textdiff.keys import Key
from textdiff.posterior import Decode, Draw, Posterior
from textdiff.process import Masking
from textdiff.schedule import Cosine, Linear, Power, Schedule
from textdiff.tokens import Specials, Tokens
from textdiff.udm import UDM, Objective

SPECIALS = Specials(pad=0, bos=1, mask=2, gap=3)
WORD, V, L = 4, 3, 4  # the first word's id, words, tokens
SCHEDULES = [pytest.param(s, id=type(s).__name__) for s in (Linear(), Cosine(), Power(3))]


class Table(Denoiser):
    """log q_i(. | x_t) as a fixed table (states, L, V); a state is a number in base V + 1, where V is [MASK]."""

    def __init__(self, log_q: torch.Tensor) -> None:
        super().__init__()
        self.log_q = log_q

    def forward(self, xt: Tokens, t: torch.Tensor) -> Posterior:
        return _Table(self.log_q, xt)


class _Table(Posterior):
    factorised = True

    def __init__(self, log_q: torch.Tensor, xt: Tokens) -> None:
        self.log_q, self.ids = log_q, xt.ids

    def sample(self, decode: Decode, key: Key) -> Draw:
        raise NotImplementedError  # likelihoods draw nothing

    def log_prob(self, truth: Draw) -> torch.Tensor:
        words, seen = truth.x0.ids[:, 1:] - WORD, self.ids[:, 1:]
        state = torch.where(seen == SPECIALS.mask, V, seen - WORD)
        number = (state * (V + 1) ** torch.arange(L)).sum(1)
        score = self.log_q[number].gather(2, words[..., None])[..., 0]
        return torch.cat([torch.zeros(len(words), 1), score * (seen == SPECIALS.mask)], 1)


def random_table() -> Table:
    u = Key.of(0, (V + 1) ** L).uniform(L * V).view(-1, L, V)
    return Table((4 * u).log_softmax(-1))


def conditionals(joint: torch.Tensor) -> Table:
    """The true marginals q_i(. | visible tokens) under a joint law, of shape (V,) * L."""
    log_q = torch.zeros((V + 1) ** L, L, V, dtype=torch.float64)
    for state in itertools.product(range(V + 1), repeat=L):
        given = joint[tuple(slice(None) if s == V else slice(s, s + 1) for s in state)]
        for i in (i for i in range(L) if state[i] == V):
            marginal = given.sum(dim=[j for j in range(L) if j != i])
            log_q[sum(s * (V + 1) ** j for j, s in enumerate(state)), i] = (marginal / marginal.sum()).log()
    return Table(log_q)


def texts() -> Tokens:
    """All V ** L of them."""
    words = [[1] + [WORD + w for w in row] for row in itertools.product(range(V), repeat=L)]
    return Tokens.from_rows(words, SPECIALS.pad)


def one() -> Tokens:
    return Tokens.from_rows([[1] + [WORD + i * i % V for i in range(L)]], SPECIALS.pad)


def surprise(denoiser: Denoiser, process: Masking, x0: Tokens, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """(B, L) -log q of each token of x0 at t, 0 where it is visible."""
    xt, truth = process.corrupt(x0, noise, t), process.align(x0, noise, t)
    return -denoiser(xt, t).log_prob(truth)[:, 1:].double()


def half(count: int) -> torch.Tensor:
    return torch.full((count,), 0.5, dtype=torch.float64)


def masked(x0: Tokens, hidden: torch.Tensor) -> torch.Tensor:
    """The noise that hides just these tokens (L,) at t = 1/2."""
    return torch.cat([torch.tensor([False]), hidden]).logical_not().double().clamp_min(0.1).expand(len(x0), -1)


def entropies(denoiser: Denoiser, x0: Tokens) -> dict[tuple[bool, ...], torch.Tensor]:
    """CE(M) (B,) for every set M of masked tokens."""
    process, result = Masking(SPECIALS), {}
    for hidden in itertools.product((False, True), repeat=L):
        noise = masked(x0, torch.tensor(hidden))
        result[hidden] = surprise(denoiser, process, x0, noise, half(len(x0))).sum(1)
    return result


def integral(denoiser: Denoiser, x0: Tokens, lowest: float = 0.0) -> torch.Tensor:
    """int beta'/beta E[CE] over all t with beta > lowest, exactly: an incomplete Beta integral for each mask."""
    total = torch.zeros(len(x0), dtype=torch.float64)
    for hidden, ce in entropies(denoiser, x0).items():
        if k := sum(hidden):
            total += special.beta(k, L - k + 1) * special.betaincc(k, L - k + 1, lowest) * ce
    return total


def k_uniform(denoiser: Denoiser, x0: Tokens) -> torch.Tensor:
    table = entropies(denoiser, x0)
    by_size = [torch.stack([ce for m, ce in table.items() if sum(m) == k]).mean(0) / k for k in range(1, L + 1)]
    return L * torch.stack(by_size).mean(0)


def orders(denoiser: Denoiser, x0: Tokens) -> torch.Tensor:
    """(L!, B) -log p of the texts, token by token in every order."""
    process, result = Masking(SPECIALS), []
    for order in itertools.permutations(range(L)):
        total = torch.zeros(len(x0), dtype=torch.float64)
        for turn, token in enumerate(order):
            hidden = torch.tensor([order.index(i) >= turn for i in range(L)])
            total += surprise(denoiser, process, x0, masked(x0, hidden), half(len(x0)))[:, token]
        result.append(total)
    return torch.stack(result)


def discrete(denoiser: Denoiser, process: Masking, x0: Tokens, steps: int) -> torch.Tensor:
    """sum_k r_k E[CE(M_k)] over equal steps of time, exactly."""
    t = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    beta = process.schedule.beta(t)
    share, total = (beta[1:] - beta[:-1]) / beta[1:], torch.zeros(len(x0), dtype=torch.float64)
    for hidden, ce in entropies(denoiser, x0).items():
        k = sum(hidden)
        total += (share * beta[1:] ** k * (1 - beta[1:]) ** (L - k)).sum() * ce
    return total


def test_the_integral_is_the_uniform_number_of_masks_is_the_average_order() -> None:
    """Ways 1, 3 and 5, on all 81 texts, to rounding."""
    table, x0 = random_table(), texts()
    exact = integral(table, x0)
    torch.testing.assert_close(k_uniform(table, x0), exact)
    torch.testing.assert_close(orders(table, x0).mean(0), exact)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_schedule_does_not_matter(schedule: Schedule) -> None:
    """The code's own weight and enumeration, integrated over t by Gauss-Legendre: one number for every schedule."""
    process, table, x0 = Masking(SPECIALS, schedule), random_table(), one()
    nodes, weights = special.roots_legendre(20)

    def quadrature(weigher: Masking) -> float:
        total = 0.0
        for node, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
            t = torch.tensor([node], dtype=torch.float64)
            noises, chances = process.cells(x0, t)
            x, times = x0[torch.zeros(len(noises), dtype=torch.long)], t.expand(len(noises))
            ce = surprise(table, process, x, noises, times).sum(1)
            total += weight * float(weigher.weight(t)) * float((chances * ce).sum())
        return total

    exact = float(integral(table, x0))
    assert quadrature(process) == pytest.approx(exact, abs=1e-6)
    other = Masking(SPECIALS, Power(2))
    assert quadrature(other) != pytest.approx(exact, abs=1e-2)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_constant_surprise(schedule: Schedule) -> None:
    """Identity 9: where each token costs log V, the text costs L log V, for every schedule and in the form of probe."""
    process, x0 = Masking(SPECIALS, schedule), one()
    flat = Table(torch.full(((V + 1) ** L, L, V), -math.log(V), dtype=torch.float64))
    nodes, weights = special.roots_legendre(40)
    t = torch.tensor((nodes + 1) / 2)
    # E[CE] at t is L beta(t) log V
    area = (torch.tensor(weights / 2) * process.weight(t) * schedule.beta(t)).sum() * L * math.log(V)
    assert float(area) == pytest.approx(L * math.log(V), abs=1e-9)
    look = UDM(process, flat).bound(x0[torch.zeros(50, dtype=torch.long)], Key.of(0, 50))
    torch.testing.assert_close(look, torch.full((50,), L * math.log(V), dtype=torch.float64))  # each draw


def estimates(process: Masking, weigher: Masking, count: int, lowest: float) -> torch.Tensor:
    """Plain draws of the integral over t > lowest: t uniform, the mask at t, the weight at t."""
    x0, key = one()[torch.zeros(count, dtype=torch.long)], Key.of(2, count)
    t = lowest + (1 - lowest) * key.fold(0).uniform(1)[:, 0]
    ce = surprise(random_table(), process, x0, process.noise(x0, key.fold(1)), t).sum(1)
    return ce * weigher.weight(t) * (1 - lowest)


def agrees(draws: torch.Tensor, exact: float) -> bool:
    """Within 4.9 standard errors: false alarm 1e-6."""
    return abs(float(draws.mean()) - exact) < 4.9 * float(draws.std()) / len(draws) ** 0.5


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_continuous_time(schedule: Schedule) -> None:
    """Way 2, with the noise that training draws. N = 200,000, false alarm 1e-6.

    Below t = 0.02 the integral is left out on both sides: down to 0 the weight, like 1 / t, has no variance.
    """
    process = Masking(SPECIALS, schedule)
    lowest = float(schedule.beta(torch.tensor(0.02, dtype=torch.float64)))
    exact = float(integral(random_table(), one(), lowest))
    assert agrees(estimates(process, process, 200_000, 0.02), exact)
    assert not agrees(estimates(process, Masking(SPECIALS, Power(2)), 200_000, 0.02), exact)


def test_the_weighted_loss_is_the_bound() -> None:
    """UDM.forward with its weight: a sum over the batch, and the number of tokens to divide by."""
    x0, key, process = texts(), Key.of(5, len(texts())), Masking(SPECIALS)
    loss = UDM(process, random_table(), Objective(weighted=True))(x0, key)
    assert float(loss.size) == len(x0) * L
    # its plain mean has no finite variance, so it is compared draw by draw, with the same times and the same noise
    t = Objective().times(key.fold(0))
    ce = surprise(random_table(), process, x0, process.noise(x0, key.fold(1)), t).sum(1)
    torch.testing.assert_close(loss.total, (ce / t).sum())
    assert float(UDM(process, random_table())(x0, key).total) == pytest.approx(float(ce.sum()))


def test_the_times_of_the_objective() -> None:
    """N = 50,000: uniform by Kolmogorov-Smirnov at 1e-6, the share of blank pages within binomial bounds at 1e-6."""
    key, count = Key.of(6, 50_000), 50_000
    assert stats.kstest(Objective().times(key).numpy(), "uniform").pvalue > 1e-6
    squared = Objective(power=2).times(key)
    assert stats.kstest(squared.sqrt().numpy(), "uniform").pvalue > 1e-6
    assert stats.kstest(squared.numpy(), "uniform").pvalue < 1e-6
    times = Objective(blank=0.3).times(key)
    assert stats.kstest(times[times < 1].numpy(), "uniform").pvalue > 1e-6  # whichever are blank
    blank = int((times == 1).sum())
    low, high = stats.binom.ppf([5e-7, 1 - 5e-7], count, 0.3)
    assert low <= blank <= high and not low <= 0.32 * count <= high


def test_probe() -> None:
    """Way 3 as drawn: unbiased, with a far smaller variance than the plain draws. N = 100,000, false alarm 1e-6."""
    count, exact = 100_000, float(integral(random_table(), one()))
    x0 = one()[torch.zeros(count, dtype=torch.long)]
    udm, key = UDM(Masking(SPECIALS), random_table()), Key.of(3, count)
    looks = udm.bound(x0, key)
    assert agrees(looks, exact)
    assert not agrees(looks * 0.97, exact)
    # Variances with this table and text: 9.2 for probe; for plain draws 35 above t = 0.02, and 82 above t = 1e-6
    plain = estimates(Masking(SPECIALS), Masking(SPECIALS), count, 0.02)
    assert float(looks.var()) < float(plain.var()) / 3
    many = udm.bound(x0[:20_000], key[torch.arange(20_000)], draws=4)
    assert float(many.var()) == pytest.approx(float(looks.var()) / 4, rel=0.1)


def test_probe_masks_every_number_equally_often() -> None:
    """K is uniform on 1 .. n, and no token is favoured. N = 60,000; the six counts leave 5.3 deviations with 7e-7."""
    count, process = 60_000, Masking(SPECIALS)
    x0 = Tokens.from_rows([[1] + [WORD] * L, [1, WORD]], SPECIALS.pad)[torch.zeros(count, dtype=torch.long)]
    fixed = x0.fixed.clone()
    fixed[:, 2] = True
    x0 = x0.with_(fixed=fixed)
    ((noise, t, weight),) = process.probe(x0, Key.of(4, count))
    hidden = process.corrupt(x0, noise, t).ids == SPECIALS.mask
    assert not bool(hidden[:, 2].any())
    k, free = hidden.sum(1), L - 1
    torch.testing.assert_close(weight, free / k.double())
    spread = 5.3 * (count * (1 / free) * (1 - 1 / free)) ** 0.5
    for size in range(1, free + 1):
        assert abs(int((k == size).sum()) - count / free) < spread
    for token in (1, 3, 4):
        assert abs(int((hidden[:, token] & (k == 1)).sum()) - count / free**2) < spread
    ascending = (Key.of(4, count).uniform(1)[:, 0] ** 0.95 * free).long() + 1  # the control: small sets a little rarer
    assert abs(int((ascending == 1).sum()) - count / free) > spread


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_discrete_steps_tend_to_the_integral(schedule: Schedule) -> None:
    """Way 4, identity 10: the distance falls like 1 / T for any network, and from above for a consistent one."""
    process, x0 = Masking(SPECIALS, schedule), texts()
    for denoiser in (random_table(), conditionals(random_joint())):
        exact = integral(denoiser, x0)
        gaps = [float((discrete(denoiser, process, x0, steps) - exact).abs().max()) for steps in (16, 64, 256, 1024)]
        assert all(later < earlier / 2 for earlier, later in itertools.pairwise(gaps)) and gaps[-1] < 0.02
    joint = random_joint()
    mean = [float((joint.flatten() * discrete(conditionals(joint), process, x0, n)).sum()) for n in (1, 2, 4, 16, 64)]
    bound = float((joint.flatten() * integral(conditionals(joint), x0)).sum())
    assert all(earlier > later > bound for earlier, later in itertools.pairwise(mean))


def random_joint() -> torch.Tensor:
    """A law over all texts under which the tokens depend on each other."""
    return (6 * Key.of(1, 1).uniform(V**L)[0]).softmax(0).view((V,) * L)


def test_it_is_a_bound() -> None:
    """NELBO >= -log p: p of the any-order model, which is a law; equal where the order does not matter."""
    x0, joint = texts(), random_joint()
    surprises = orders(random_table(), x0)
    p = (-surprises).exp().mean(0)  # the order is drawn first, uniformly
    assert float(p.sum()) == pytest.approx(1, abs=1e-12)
    nelbo = integral(random_table(), x0)
    assert bool((nelbo > -p.log() + 1e-6).all())
    assert float((-nelbo).exp().sum()) < 1

    consistent = conditionals(joint)
    torch.testing.assert_close(orders(consistent, x0), -joint.flatten().log().expand(math.factorial(L), -1))
    torch.testing.assert_close(integral(consistent, x0), -joint.flatten().log())
    other = integral(conditionals(random_joint().flip(0)), x0)  # the wrong law: a bound no more tight, on average
    assert float((joint.flatten() * (other + joint.flatten().log())).sum()) > 0.1


class Joint(Denoiser):
    """A denoiser whose words lend each other the truth, as a chain rule does."""

    def forward(self, xt: Tokens, t: torch.Tensor) -> Posterior:
        return _Joint(random_table().log_q, xt)


class _Joint(_Table):
    factorised = False


def test_a_chain_rule_has_no_bound_token_by_token() -> None:
    with pytest.raises(ValueError, match="the bound of masking is for denoisers that say each token alone"):
        UDM(Masking(SPECIALS), Joint()).bound(one(), Key.of(0, 1))
