"""Replacement by random words: its reverse step, its bounds, and how they relate to D3PM's, on toys that are enumerated.

Chi-square tests are asserted at p > 1e-6, their rate of false alarm, and each is asserted to reject a planted fault.
"""

import itertools
import math
from collections import defaultdict
from functools import cache

import pytest
import torch
from diffusers import DiscreteDDIMScheduler
from scipy import special, stats
from test_laws import NAMED, SIZE, X, bert, fit, many, modernbert, time

from textdiff.denoiser import Changes, Denoiser, Oracle, Parallel
from textdiff.keys import Key
from textdiff.posterior import Decode, Draw, Posterior
from textdiff.process import Masking, Process, Replacement
from textdiff.process.replacement import ReplacementNoise, jumps, tilted
from textdiff.revealing import ranked
from textdiff.rules import Rule, fresh, partial, posterior
from textdiff.sampler import sample
from textdiff.schedule import Cosine, Linear, Power
from textdiff.tokens import Specials, Tokens
from textdiff.udm import UDM

V, WORD = 3, 4
WORDS = torch.arange(WORD, WORD + V)
WIDE = Specials(pad=0, bos=1, mask=2, gap=3)


def replacement(**options) -> Replacement:
    return Replacement(WIDE, WORDS, **options)


PROCESSES = {
    "A": replacement(),
    "B": replacement(different=True),
    "mix": replacement(masked=0.3),
    "B-mix": replacement(different=True, masked=0.3),
    "A-counts": replacement(counts=True),
    "B-counts": replacement(different=True, counts=True),
    "mix-counts": replacement(masked=0.3, counts=True),
}
every_process = pytest.mark.parametrize("process", [pytest.param(p, id=name) for name, p in PROCESSES.items()])
RULES = {"fresh": fresh, "posterior": posterior, "partial": partial(0.3)}


def wide_code(ids: torch.Tensor) -> torch.Tensor:
    return (ids * 7 ** torch.arange(ids.shape[1])).sum(1)


def counted(ids: torch.Tensor) -> dict[int, int]:
    values, counts = wide_code(ids).unique(return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def text() -> Tokens:
    """Three words and one of the user's, and padding."""
    x0 = Tokens.from_rows([[1, 4, 5, 5, 6], [1] * 6], WIDE.pad)[:1]
    fixed = x0.fixed.clone()
    fixed[:, 3] = True
    return x0.with_(fixed=fixed)


@cache
def exact(process: Process, t: float) -> dict[int, float]:
    """q(x_t | x_0), by enumeration."""
    result: dict[int, float] = defaultdict(float)
    noise, chances = process.cells(text(), time(1, t))
    states = wide_code(process.corrupt(many(text(), len(chances)), noise, time(len(chances), t)).ids)
    for state, chance in zip(states.tolist(), chances.tolist(), strict=True):
        result[state] += chance
    return result


@every_process
def test_states(process: Replacement) -> None:
    """Data at t = 0; at t > 0 every visible word that is not the user's is in doubt; lengths and the user's words stay."""
    x0, key = many(text(), 200), Key.of(0, 200)
    noise = process.noise(x0, key)
    for t in (0.0, 0.2, 0.6, 1.0):
        xt = process.corrupt(x0, noise, time(200, t))
        free, masked = x0.valid & ~x0.fixed, xt.ids == WIDE.mask
        assert torch.equal(xt.doubtful, free & ~masked & (t > 0))
        assert torch.equal(xt.ids[~free], x0.ids[~free]) and torch.equal(xt.valid, x0.valid)
        assert bool((masked | torch.isin(xt.ids, WORDS))[free].all())
        assert bool(masked.any()) == (process.masked > 0 and t > 0)
        if t == 0:
            assert torch.equal(xt.ids, x0.ids)
        if t == 1 and process.different:
            assert not bool((xt.ids == x0.ids)[free].any())
    assert sum(exact(process, 0.6).values()) == pytest.approx(1, abs=1e-12)
    narrow = x0.take(torch.arange(5).expand(200, -1), WIDE.pad)
    assert torch.equal(
        process.corrupt(narrow, process.noise(narrow, key), time(200, 0.6)).ids,
        process.corrupt(x0, noise, time(200, 0.6)).ids[:, :5],
    )


@every_process
def test_the_prior_is_uniform(process: Replacement) -> None:
    """Whatever the state: a text, masks. A gap has no length to keep. N = 20,000, chi-square, false alarm 1e-6."""
    x = text().with_(ids=torch.tensor([[1, 2, 2, 5, 6, 0]]))
    with pytest.raises(ValueError, match="keeps lengths"):
        process.prior(x.with_(ids=torch.tensor([[1, 2, 3, 5, 6, 0]])), Key.of(1, 1))
    x1 = process.prior(many(x, 20_000), Key.of(1, 20_000))
    ways = [(word, (1 - process.masked) / V) for word in WORDS.tolist()] + [(WIDE.mask, process.masked)]
    expected = {}
    for row in itertools.product(ways, repeat=3):
        (a, p), (b, q), (c, r) = row
        expected[int(wide_code(torch.tensor([[1, a, b, 5, c, 0]])))] = p * q * r
    assert fit(counted(x1.ids), expected) > 1e-6
    beside = process.prior(many(text(), 20_000), Key.of(1, 20_000))
    assert fit(counted(beside.ids), expected) > 1e-6
    assert bool(x1.doubtful[x1.ids[:, 1] != WIDE.mask, 1].all())
    if not process.masked:  # a control: another share of masks
        other = replacement(masked=0.02).prior(many(x, 20_000), Key.of(1, 20_000))
        assert fit(counted(other.ids), expected) < 1e-6


class Trusting(Replacement):
    """The control for `infer`: a word that equals x_0 was never replaced."""

    def infer(self, xt: Tokens, draw: Draw, t: torch.Tensor, key: Key) -> ReplacementNoise:
        gone = (xt.ids != draw.x0.ids) & ~xt.fixed
        beta = self.schedule.beta(t)[:, None]
        low, high = torch.where(gone, 0.0, beta), torch.where(gone, beta, 1.0)
        return super().infer(xt, draw, t, key)._replace(u=self.uniform.infer(draw.x0, low, high, key.fold(2)))


class Forgetful(Replacement):
    """The control where no word is replaced by itself: when a word went is drawn from all of [0, 1)."""

    def infer(self, xt: Tokens, draw: Draw, t: torch.Tensor, key: Key) -> ReplacementNoise:
        return super().infer(xt, draw, t, key)._replace(u=self.uniform.draw(draw.x0, key.fold(9)) ** 2)


def stepped(process: Replacement, rule, x0: Tokens, key: Key) -> Tokens:
    t, s = time(len(x0), 0.8), time(len(x0), 0.4)
    noise = process.noise(x0, key.fold(0))
    xt, draw = process.corrupt(x0, noise, t), process.align(x0, noise, t)
    return process.corrupt(x0, rule(process, xt, draw, t, s, key.fold(1)), s)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@every_process
def test_consistency(process: Replacement, rule) -> None:
    """Identity 2, Su's law: through x_t at .8 to q(x_s | x_0) at .4. N = 60,000, false alarm 1e-6."""
    x0, key = many(text(), 60_000), Key.of(2, 60_000)
    assert fit(counted(stepped(process, rule, x0, key).ids), exact(process, 0.4)) > 1e-6
    if rule is posterior:
        options = {"different": process.different, "masked": process.masked, "counts": process.uniform.counts}
        control = Forgetful(WIDE, WORDS, **options)
        if process.uniform.counts and process.different:  # the number alone says all: another process is the control
            control = Forgetful(WIDE, WORDS, **{**options, "counts": False})
        elif process.uniform.counts:
            control = Trusting(WIDE, WORDS, **options)
        assert fit(counted(stepped(control, rule, x0, key).ids), exact(process, 0.4)) < 1e-6


@every_process
def test_what_is_not_undone_stays(process: Replacement) -> None:
    """A step leaves each token as it is or makes it x_0's; to s = t it changes nothing at all."""
    x0, key, t = many(text(), 2000), Key.of(20, 2000), time(2000, 0.7)
    noise = process.noise(x0, key.fold(0))
    xt = process.corrupt(x0, noise, t)
    inferred = process.infer(xt, process.align(x0, noise, t), t, key.fold(1))
    assert torch.equal(process.corrupt(x0, inferred, t).ids, xt.ids)
    xs = process.corrupt(x0, inferred, t / 2).ids
    assert bool(((xs == xt.ids) | (xs == x0.ids)).all()) and not torch.equal(xs, xt.ids)
    other = process.corrupt(x0, process.noise(x0, key.fold(2)), t / 2).ids  # the control: fresh noise
    assert not bool(((other == xt.ids) | (other == x0.ids)).all())


@pytest.mark.parametrize("masked", [0.0, 0.5])
def test_a_word_may_have_replaced_itself(masked: float) -> None:
    """x_t = x_0 does not say that nothing happened. N = 100,000, false alarm 1e-6."""
    x0, key = many(text(), 100_000), Key.of(3, 100_000)
    t = time(len(x0), 0.8)
    process, control = replacement(masked=masked), Trusting(WIDE, WORDS, masked=masked)
    noise = process.noise(x0, key.fold(0))
    xt, draw = process.corrupt(x0, noise, t), process.align(x0, noise, t)

    def gone(which: Replacement) -> float:
        """u < beta_t is binomial with the share beta_t, and among x_t = x_0 with (beta/V) / (alpha + beta/V), of words."""
        u = which.infer(xt, draw, t, key.fold(1)).u[:, 1]
        same = xt.ids[:, 1] == 4
        itself = 0.8 * (1 - masked) / V
        share = itself / (0.2 + itself)
        seen = stats.binom(int(same.sum()), share).cdf(int((u[same] < 0.8).sum()))
        return 2 * min(seen, 1 - seen)

    assert gone(process) > 1e-6 and gone(control) < 1e-6


def multinomial(rho: float, a_t: float, a_s: float) -> torch.Tensor:
    """DDIM's multinomial step (arXiv:2010.02502, App. A): (x_t, x_s) laws for x_0 = 0, at sigma = (1 - rho) b_s / b_t."""
    b_t, b_s, eye = 1 - a_t, 1 - a_s, torch.eye(V, dtype=torch.float64)
    sigma = (1 - rho) * b_s / b_t
    return sigma * eye + (a_s - sigma * a_t) * eye[0] + (b_s - b_t * sigma) / V


def markov(a_t: float, a_s: float) -> torch.Tensor:
    """D3PM's posterior, Bayes' rule: q(x_t | x_s) q(x_s | x_0) / q(x_t | x_0)."""
    eye = torch.eye(V, dtype=torch.float64)
    step = a_t / a_s * eye + (1 - a_t / a_s) / V  # (x_s, x_t)
    joint = step.T * (a_s * eye[0] + (1 - a_s) / V)
    return joint / joint.sum(1, keepdim=True)


def test_d3pm_weights() -> None:
    """Identity 5: of a word that differs, .285714 stay, .428571 become x_0, .285714 are drawn anew."""
    kernel = markov(0.3, 0.6)
    noise = 0.2857142857142857 / V
    expected = torch.tensor([0.42857142857142855 + noise, 0.2857142857142857 + noise, noise], dtype=torch.float64)
    torch.testing.assert_close(kernel[1], expected, atol=1e-12, rtol=0)
    for rho in torch.linspace(0, 1, 101).tolist():  # no member of the family
        assert float((multinomial(rho, 0.3, 0.6)[1] - kernel[1]).abs().max()) > 0.01
    for kernel in (markov(0.3, 0.6), multinomial(0.2, 0.3, 0.6)):  # and both keep Su's law
        x_t, x_s = (torch.tensor([a + (1 - a) / V] + [(1 - a) / V] * (V - 1)).double() for a in (0.3, 0.6))
        torch.testing.assert_close(x_t @ kernel, x_s, atol=1e-7, rtol=0)


@pytest.mark.parametrize("rho", [0, 0.3, 1])
def test_it_is_multinomial_ddim(rho: float) -> None:
    """Identity 5: beta .7 -> .4 leaves 4/7, and 3/7 become x_0; with rho it is DDIM's sigma = (1 - rho) beta_s / beta_t.

    N = 300,000 single words, chi-square for each x_t, false alarm 1e-6; the controls are D3PM's law and another rho.
    """
    count, process = 300_000, replacement()
    x0, key = many(Tokens.from_rows([[1, WORD]], WIDE.pad), count), Key.of(4, count)
    t, s = time(count, 0.7), time(count, 0.4)
    noise = process.noise(x0, key.fold(0))
    xt, draw = process.corrupt(x0, noise, t), process.align(x0, noise, t)
    xs = process.corrupt(x0, partial(rho)(process, xt, draw, t, s, key.fold(1)), s).ids[:, 1] - WORD
    kernel = multinomial(rho, 0.3, 0.6)
    if rho == 0:
        torch.testing.assert_close(kernel[1], torch.tensor([3 / 7, 4 / 7, 0]).double(), atol=1e-7, rtol=0)
    for seen in range(V):
        counts = torch.bincount(xs[xt.ids[:, 1] - WORD == seen], minlength=V).tolist()
        counts = {word: number for word, number in enumerate(counts) if number}

        def chance(law: torch.Tensor, counts=counts, seen=seen) -> float:
            return fit(counts, dict(enumerate(law[seen].tolist())))

        assert chance(kernel) > 1e-6
        assert chance(multinomial(rho + 0.1, 0.3, 0.6)) < 1e-6
        assert seen == 0 or chance(markov(0.3, 0.6)) < 1e-6


def theirs(monkeypatch, step: int, steps: int, x0: int) -> torch.Tensor:
    """The law of x_s for every x_t as `DiscreteDDIMScheduler` has it: its own route probabilities, written out."""
    routes: list[torch.Tensor] = []
    draw = torch.multinomial

    def listen(chances: torch.Tensor, *args, **options) -> torch.Tensor:
        routes.append(chances)
        return draw(chances, *args, **options)

    monkeypatch.setattr(torch, "multinomial", listen)
    logits = torch.full((1, V, V), -100.0).index_fill(2, torch.tensor(x0), 100.0)
    scheduler = DiscreteDDIMScheduler(num_inference_steps=steps)
    scheduler.step(logits, step, torch.arange(V)[None])  # at temperature 0 it draws the route alone
    clean, stay, noise = routes[0].double().T[..., None]
    eye = torch.eye(V, dtype=torch.float64)
    return clean * eye[x0] + stay * eye + noise / V


def test_the_scheduler_of_diffusers(monkeypatch) -> None:
    """`DiscreteDDIMScheduler` (0.42.1) is D3PM's Markov posterior, to 1e-6, and so not the multinomial DDIM of its name.

    It is our kernel, to 1e-6, in the first step from t = 1, where it is the rule `fresh` (and where every rho comes to
    one law of x_s, as x_t says nothing), and in the last step to s = 0, where every rule gives x_0. In between it is no
    member of our family, by more than .01. The family's law itself is tied to the code in the test above.
    """
    steps = 10
    for step in range(steps):
        kernel = theirs(monkeypatch, step, steps, 0)
        a_t, a_s = step / steps, (step + 1) / steps
        torch.testing.assert_close(kernel, markov(a_t, a_s), atol=1e-6, rtol=0)
        if step == 0:
            torch.testing.assert_close(kernel, multinomial(1.0, a_t, a_s), atol=1e-6, rtol=0)
            average = multinomial(0.0, a_t, a_s).mean(0)
            torch.testing.assert_close(kernel, average.expand(V, V), atol=1e-6, rtol=0)
        elif step == steps - 1:
            torch.testing.assert_close(kernel, multinomial(0.0, a_t, a_s), atol=1e-6, rtol=0)
        else:
            distance = [float((multinomial(r, a_t, a_s) - kernel).abs().max()) for r in torch.linspace(0, 1, 101)]
            assert min(distance) > 0.01


# 81 texts of three words, not equally likely: repeated rows
def dataset() -> Tokens:
    rows = list(itertools.product(WORDS.tolist(), repeat=4))
    times = (5 * Key.of(5, 81).uniform(1)[:, 0] ** 3).long()
    return Tokens.from_rows(
        [[1, *row] for row, n in zip(rows, times.tolist(), strict=True) for _ in range(n)], WIDE.pad
    )


DRAWS = 50_000


@pytest.fixture(scope="module")
def oracles() -> dict[str, Oracle]:
    return {name: Oracle(process, dataset()) for name, process in PROCESSES.items()}


def samples(denoiser: Denoiser, process: Replacement, rule, steps: int) -> dict[int, int]:
    """From the prior, or where that is not x_1's law (version B, identity 20) from corrupted data."""
    key = Key.of(6, DRAWS)
    x0 = dataset()[torch.arange(DRAWS) % len(dataset())]
    start = time(DRAWS, 1.0)
    x = process.corrupt(x0, process.noise(x0, key.fold(99)), start) if process.different else process.prior(x0, key)
    last = list(sample(denoiser, process, x, steps=steps, key=key, rule=rule))[-1]
    return counted(last.x.ids)


QUICK = {("A", "partial", 2), ("B-counts", "posterior", 2), ("mix", "partial", 2), ("A-counts", "partial", 2)}
SAMPLERS = [
    pytest.param(name, rule, n, id=f"{name}-{rule}-{n}", marks=[] if (name, rule, n) in QUICK else [pytest.mark.slow])
    for name in PROCESSES
    for rule in RULES
    for n in (1, 2, 8)
]


@pytest.mark.parametrize(("name", "rule", "steps"), SAMPLERS)
def test_a_perfect_denoiser_samples_the_data(name: str, rule: str, steps: int, oracles) -> None:
    """Identity 3: the data exactly, by every rule and in any number of steps. N = 50,000, false alarm 1e-6."""
    law = {state: number / len(dataset()) for state, number in counted(dataset().ids).items()}
    got = samples(oracles[name], PROCESSES[name], RULES[rule], steps)
    assert fit(got, law) > 1e-6
    flat = {
        state: (chance + 0.1 / len(law)) / 1.1 for state, chance in law.items()
    }  # a control: a tenth from elsewhere
    assert fit(got, flat) < 1e-6


@pytest.mark.parametrize("name", ["A", "B-counts", pytest.param("mix", marks=pytest.mark.slow)])
def test_imperfect_steps_are_noticed(name: str, oracles) -> None:
    """The control for the step itself: the noise of another time."""
    law = {state: number / len(dataset()) for state, number in counted(dataset().ids).items()}

    def early(process, xt, draw, t, s, key) -> ReplacementNoise:
        noise = process.infer(xt, draw, t, key)
        return noise._replace(u=noise.u**0.5)

    assert fit(samples(oracles[name], PROCESSES[name], Rule(early), 2), law) < 1e-6


def test_the_prior_gap(oracles) -> None:
    """Identity 20: version B ends as V - 1 words each and starts from V: log(V / (V - 1)) per token, .405 at V = 3."""
    x0 = text()
    for name, share in (("B", 1.0), ("B-mix", 0.7), ("B-counts", 1.0), ("A", 0.0), ("mix", 0.0)):
        process = PROCESSES[name]
        one = exact(process, 1.0)
        p = {}
        for state in one:  # the prior's chance of what x_1 can be
            words = [state // 7**i % 7 for i in (1, 2, 4)]
            p[state] = math.prod(process.masked if w == WIDE.mask else (1 - process.masked) / V for w in words)
        gap = sum(chance * math.log(chance / p[state]) for state, chance in one.items())
        assert float(process.gap(x0)) == pytest.approx(gap, abs=1e-12)
        assert gap == pytest.approx(3 * share * math.log(1.5), abs=1e-12)


class Net(Denoiser):
    """A parallel model as a table of random numbers: log q_i(. | x_t), for two tokens, (states, tokens, words).

    With masks alone it says what it sees, as parallel models do. `timed`: it knows at t how little is wrong.
    """

    def __init__(self, process: Process, timed: bool = False) -> None:
        super().__init__()
        self.process, self.timed = process, timed
        self.table = 3 * Key.of(7, 49).uniform(2 * V).view(49, 2, V)

    def forward(self, xt: Tokens, t: torch.Tensor) -> "_Net":
        return _Net(self.law(xt, t).log(), xt)

    def law(self, xt: Tokens, t: torch.Tensor) -> torch.Tensor:
        """(B, 2, V)"""
        seen = xt.ids[:, 1:]
        theta = self.table[(seen * torch.tensor([1, 7])).sum(1)].softmax(-1)
        if self.timed:
            shown = seen != WIDE.mask
            alpha = self.process.schedule.alpha(t)[:, None].expand_as(seen)
            tilt = tilted(theta[shown], seen[shown] - WORD, alpha[shown])
            theta = theta.index_put((shown,), tilt)
        said = (seen != WIDE.mask) & ~xt.doubtful[:, 1:]
        eye = torch.eye(V, dtype=torch.float64)[(seen - WORD).clamp_min(0)]
        return torch.where(said[..., None], eye, theta)


class _Net(Posterior):
    factorised = True

    def __init__(self, log_q: torch.Tensor, xt: Tokens) -> None:
        self.log_q, self.xt = log_q, xt

    def sample(self, decode: Decode, key: Key) -> Draw:
        raise NotImplementedError  # likelihoods draw nothing

    def log_prob(self, truth: Draw) -> torch.Tensor:
        word = (truth.x0.ids[:, 1:] - WORD).clamp_min(0)[..., None]
        score = self.log_q.gather(2, word)[..., 0]
        return torch.cat([torch.zeros(len(word), 1), score], 1)


def pair() -> Tokens:
    return Tokens.from_rows([[1, WORD, WORD + 1]], WIDE.pad)


def all_pairs() -> Tokens:
    return Tokens.from_rows([[1, a, b] for a in WORDS.tolist() for b in WORDS.tolist()], WIDE.pad)


def joint(process: Process, x0: Tokens, t: float, s: float) -> dict[tuple[int, int], float]:
    """q(x_t, x_s | x_0) for the shared noise, by enumeration: u below beta_s, between, above; every word."""
    b_t, b_s = (float(process.schedule.beta(torch.tensor(x, dtype=torch.float64))) for x in (t, s))
    b_t = min(b_t, 1 - 1e-12)  # the limit at t = 1: there version B has no law given that a guess equals x_t
    bins = [(b_s / 2, b_s), ((b_s + b_t) / 2, b_t - b_s), (1.0, 1 - b_t)]
    masked = getattr(process, "masked", 1.0)
    first = int(getattr(process, "different", False))
    words = [(-1, masked)] if masked else []
    words += [(w, (1 - masked) / (V - first)) for w in range(first, V)] if masked < 1 else []
    rows = list(itertools.product(bins, bins, words, words))
    u = torch.tensor([[1.0, a[0], b[0]] for a, b, _, _ in rows], dtype=torch.float64)
    word = torch.tensor([[0, v[0], w[0]] for _, _, v, w in rows])
    noise = u if isinstance(process, Masking) else ReplacementNoise(u, word)
    x = many(x0, len(rows))
    now, then = (wide_code(process.corrupt(x, noise, time(len(rows), at)).ids).tolist() for at in (t, s))
    result: dict[tuple[int, int], float] = defaultdict(float)
    for x_t, x_s, row in zip(now, then, rows, strict=True):
        result[x_t, x_s] += math.prod(part[1] for part in row)
    return result


def decoded(state: int) -> Tokens:
    return Tokens.from_rows([[state % 7, state // 7 % 7, state // 49 % 7]], WIDE.pad)


def steps_kl(process: Process, net: Net, t: float, s: float) -> dict[int, tuple[float, float, float]]:
    """For every x_t: q(x_t | x_0), KL(q(x_s | x_t, x_0) || sum_k q(k | x_t) q(x_s | x_t, k)), -log q(x_0 | x_t)."""
    every = [joint(process, all_pairs()[i : i + 1], t, s) for i in range(V * V)]
    now = [defaultdict(float) for _ in every]
    for table, marginal in zip(every, now, strict=True):
        for (x_t, _), chance in table.items():
            marginal[x_t] += chance
    mine = int(((wide_code(all_pairs().ids)) == wide_code(pair().ids)).nonzero())
    result = {}
    for state, chance in now[mine].items():
        if chance == 0:
            continue
        xt = decoded(state)
        xt = xt.with_(doubtful=~xt.fixed & (xt.ids != WIDE.mask) & (not isinstance(process, Masking)))
        law = net.law(xt, time(1, t))[0]
        guess = (law[0][:, None] * law[1][None]).flatten().tolist()
        kl = 0.0
        for (x_t, x_s), both in every[mine].items():
            if x_t == state and both > 0:
                reverse = sum(
                    g * table[state, x_s] / marginal[state]
                    for g, table, marginal in zip(guess, every, now, strict=True)
                    if g > 0 and marginal[state] > 0
                )
                kl += both / chance * math.log(both / chance / reverse)
        result[state] = chance, kl, -math.log(guess[mine])
    return result


STEPPED = {"masking": Masking(WIDE), **{name: PROCESSES[name] for name in ("A", "B", "mix", "B-mix")}}


@pytest.mark.parametrize("name", STEPPED)
def test_a_step_costs_less_than_the_text(name: str) -> None:
    """Identity 21: KL(step) <= -log q(x_0 | x_t), with equality in the step to s = 0; for every x_t and a random q."""
    process, net = STEPPED[name], Net(STEPPED[name])
    for t, s in ((0.8, 0.5), (1.0, 0.2), (0.3, 0.25)):
        rows = list(steps_kl(process, net, t, s).values())
        assert len(rows) > 1 or t == 1
        assert all(-1e-12 <= kl <= whole + 1e-12 for _, kl, whole in rows)
        assert any(kl < whole - 0.01 for _, kl, whole in rows)
        assert t == 0.3 or any(kl > 0.1 * whole for _, kl, whole in rows)
    for _, kl, whole in steps_kl(process, net, 0.4, 0.0).values():
        assert kl == pytest.approx(whole, abs=1e-9)


@pytest.mark.parametrize("name", ["A", "B", "mix", "B-mix"])
@pytest.mark.parametrize("schedule", [Linear(), Cosine()], ids=["linear", "cosine"])
def test_the_price_is_the_step(name: str, schedule) -> None:
    """`price` of T steps is the KL of each, by enumeration, the prior's gap added once; to 1e-9."""
    options = {"different": "B" in name, "masked": 0.3 if "mix" in name else 0.0}
    process = Replacement(WIDE, WORDS, schedule, **options, steps=4)
    net = Net(process)
    for k in (1, 2, 3, 4):
        t, s = k / 4, (k - 1) / 4
        for state, (_, kl, _) in steps_kl(process, net, t, s).items():
            xt = decoded(state)
            xt = xt.with_(doubtful=~xt.fixed & (xt.ids != WIDE.mask))
            truth = Draw(pair(), torch.arange(3)[None], torch.zeros(()))
            cost = float(process.price(net(xt, time(1, t)), truth, xt, time(1, t)))
            assert cost == pytest.approx(kl + float(process.gap(pair())) / 4, abs=1e-9)


def agrees(draws: torch.Tensor, expected: float) -> bool:
    """Within 4.9 standard errors: false alarm 1e-6."""
    return abs(float(draws.mean()) - expected) < 4.9 * float(draws.std()) / len(draws) ** 0.5


def test_the_looks_at_steps_are_antithetic() -> None:
    """One step early and one late, as far from either end, whatever the draw; half of the steps each weighs."""
    process, x0 = replacement(steps=4), many(pair(), 200)
    (_, first, weight), (_, second, other) = process.probe(x0, Key.of(0, 200))
    assert torch.equal(first + second, torch.full_like(first, 5 / 4)) and {*first.tolist()} == {0.25, 0.5, 0.75, 1.0}
    assert {*weight.tolist(), *other.tolist()} == {2.0}


def bound(process: Replacement, net: Net, count: int = 40_000) -> torch.Tensor:
    return UDM(process, net).bound(many(pair(), count), Key.of(8, count))


@pytest.mark.parametrize("name", ["A", "B", "mix"])
def test_the_bound_in_steps(name: str) -> None:
    """What `probe` draws: the prior's gap and the sum of E KL over T steps. N = 40,000, false alarm 1e-6."""
    options = {"different": "B" in name, "masked": 0.3 if "mix" in name else 0.0}
    process = replacement(**options, steps=4)
    net = Net(process)
    total = float(process.gap(pair()))
    for k in (1, 2, 3, 4):
        total += sum(chance * kl for chance, kl, _ in steps_kl(process, net, k / 4, (k - 1) / 4).values())
    draws = bound(process, net)
    assert agrees(draws, total) and not agrees(draws, total * 1.05)


def integrand(process: Replacement, net: Net, t: float) -> float:
    """E[price] at t by the code's own enumeration."""
    noise, chances = process.cells(pair(), time(1, t))
    x0, now = many(pair(), len(chances)), time(len(chances), t)
    xt = process.corrupt(x0, noise, now)
    return float((chances * process.price(net(xt, now), process.align(x0, noise, now), xt, now)).sum())


@pytest.mark.parametrize("name", ["A", "B", "mix"])
def test_the_bound_in_continuous_time(name: str) -> None:
    """The closed form is the limit of T steps (they come within 1% at T = 256), and what `probe` draws.

    For a model that knows the time; the integral by Gauss-Legendre. N = 40,000, false alarm 1e-6.
    """
    options = {"different": "B" in name, "masked": 0.3 if "mix" in name else 0.0}
    process = replacement(**options, steps=0)
    net = Net(process, timed=True)
    nodes, weights = special.roots_legendre(40)
    exact = sum(
        w / 2 * float(process.schedule.weight(torch.tensor((x + 1) / 2))) * integrand(process, net, (x + 1) / 2)
        for x, w in zip(nodes, weights, strict=True)
    )
    stepwise = []
    for steps in (16, 64, 256):
        discrete = replacement(**options, steps=steps)
        stepwise.append(sum(integrand(discrete, net, k / steps) for k in range(1, steps + 1)))
    gaps = [abs(value - exact) for value in stepwise]
    assert gaps[0] > 2 * gaps[1] > 4 * gaps[2] and gaps[2] < 0.01 * exact
    draws = bound(process, net)
    assert agrees(draws, exact) and not agrees(draws, exact * 1.05)
    other = Replacement(WIDE, WORDS, Power(2), **options, steps=0)  # any schedule, where the model knows it
    assert agrees(bound(other, Net(other, timed=True)), exact)


def test_the_bound_of_an_untimed_model_needs_steps() -> None:
    """A model that is not told t costs log T more and more; with steps its bound is finite."""
    costs = []
    for steps in (16, 64, 256):
        process = replacement(steps=steps)
        costs.append(sum(integrand(process, Net(process), k / steps) for k in range(1, steps + 1)))
    first, second = costs[1] - costs[0], costs[2] - costs[1]
    assert first > 0.5 and second == pytest.approx(first, rel=0.1)


def test_the_bound_of_counts() -> None:
    """Su's loss summed over single changes: -log q(x_0 | x_t) with K replaced, K uniform, times n. N = 40,000, 1e-6."""
    process = PROCESSES["B-counts"]
    net = Net(process)
    total = float(process.gap(pair()))
    for t in (0.5, 1.0):
        noise, chances = process.cells(pair(), time(1, t))
        x0, now = many(pair(), len(chances)), time(len(chances), t)
        xt = process.corrupt(x0, noise, now)
        total -= float((chances * net(xt, now).log_prob(process.align(x0, noise, now)).sum(1)).sum())
    draws = bound(process, net)
    assert agrees(draws, total) and not agrees(draws, total * 1.05)


def test_it_is_a_bound() -> None:
    """-log p of what 4 steps sample, exactly, is below the bound of 4 steps, by more than nothing."""
    process = replacement(steps=4)
    net = Net(process)
    states = [*map(int, wide_code(all_pairs().ids))]
    p = dict.fromkeys(states, 1 / V**2)
    for k in (4, 3, 2, 1):
        every = [joint(process, all_pairs()[i : i + 1], k / 4, (k - 1) / 4) for i in range(V * V)]
        then = dict.fromkeys(states, 0.0)
        for state in states:
            xt = decoded(state)
            law = net.law(xt.with_(doubtful=~xt.fixed), time(1, k / 4))[0]
            guess = (law[0][:, None] * law[1][None]).flatten().tolist()
            for g, table in zip(guess, every, strict=True):
                here = sum(table[state, x_s] for x_s in states)
                for x_s in states:
                    then[x_s] += p[state] * g * table[state, x_s] / here
        p = then
    assert sum(p.values()) == pytest.approx(1, abs=1e-9)
    nelbo = sum(integrand(process, net, k / 4) for k in (1, 2, 3, 4))
    nll = -math.log(p[int(wide_code(pair().ids))])
    assert nll + 0.01 < nelbo < nll + 3


class Marginal(Net):
    """The same table, which is asked for every word at once."""

    def forward(self, xt: Tokens, t: torch.Tensor) -> "_Marginal":
        return _Marginal(self.law(xt, t).log(), xt)


class _Marginal(_Net):
    def marginals(self) -> tuple[torch.Tensor, torch.Tensor]:
        mute = torch.full((*self.log_q.shape[:2], WORD), -torch.inf, dtype=torch.float64)
        return self.xt.doubtful, torch.cat([mute, self.log_q], 2)[self.xt.doubtful[:, 1:]]


def counted_chain(denoiser: Denoiser) -> dict[int, float]:
    """The law of what is sampled from uniform words by two steps that each write one word, of two that are wrong."""
    states = wide_code(all_pairs().ids).tolist()
    p = dict.fromkeys(states, 1 / V**2)
    every, nowhere = all_pairs(), torch.empty(0)
    for k in (2, 1):
        then: dict[int, float] = defaultdict(float)
        for state in states:
            xt = many(decoded(state), len(every))
            xt = xt.with_(doubtful=~xt.fixed)
            look = denoiser(xt, time(len(every), k / 2))
            law = look.log_prob(Draw(every, nowhere, torch.zeros(()))).sum(1).exp()
            assert float(law.sum()) == pytest.approx(1)
            for guess, chance in zip(every.ids.tolist(), law.tolist(), strict=True):
                changed = [i for i in (1, 2) if guess[i] != xt.ids[0, i]]
                for i in changed:
                    row = xt.ids[0].tolist()
                    row[i] = guess[i]
                    then[int(wide_code(torch.tensor([row])))] += p[state] * chance / len(changed)
        p = then
    assert sum(p.values()) == pytest.approx(1)
    return p


def test_the_bound_of_counted_changes() -> None:
    """With `Changes`: Su's loss over single changes, and the prior's gap, is above -log p of what his steps sample."""
    process = PROCESSES["B-counts"]
    denoiser = Changes(Marginal(process), process)
    nll = -math.log(counted_chain(denoiser)[int(wide_code(pair().ids))])
    with torch.no_grad():
        draws = UDM(process, denoiser).bound(many(pair(), 20_000), Key.of(8, 20_000))
    assert nll + 0.01 < float(draws.mean()) < nll + 6


def markov_kl(theta: torch.Tensor, x0: int, xt: int, alpha: float, dt: float, plug_in: bool) -> float:
    """KL of D3PM's posterior from the plugged-in or the mixed one in a step of -log alpha by dt, by Bayes' rule."""
    before, eye = alpha * math.exp(dt), torch.eye(V, dtype=torch.float64)
    ahead = math.exp(-dt) * eye + (1 - math.exp(-dt)) / V
    laws = ahead[:, xt] * (before * eye + (1 - before) / V)  # (k, x_s), not yet normalised
    exact = laws / laws.sum(1, keepdim=True)
    mean = theta @ laws / (theta @ laws).sum() if plug_in else theta @ exact
    return float((exact[x0] * (exact[x0] / mean).log()).sum())


def test_mixture_and_plug_in() -> None:
    """Identity 14: for one network they are different bounds; they agree where the mixture's law is the tilted other.

    `jumps` of both is the limit of their KL over a short step, to 1e-3 of it.
    """
    theta = (3 * Key.of(9, 1).uniform(V))[0].softmax(0)
    for x0, xt, alpha in itertools.product(range(V), range(V), (0.2, 0.7)):
        at = (torch.tensor([x0]), torch.tensor([xt]), torch.tensor([alpha], dtype=torch.float64))
        for plug_in in (True, False):
            limit = markov_kl(theta, x0, xt, alpha, 1e-5, plug_in) / 1e-5
            assert float(jumps(theta[None], *at, plug_in=plug_in)) == pytest.approx(limit, rel=1e-3)
        plugged, mixed = jumps(theta[None], *at), jumps(theta[None], *at, plug_in=False)
        assert abs(float(plugged - mixed)) > 1e-4
        torch.testing.assert_close(jumps(tilted(theta[None], *at[1:]), *at, plug_in=False), plugged)


def test_mixture_and_plug_in_integrated() -> None:
    """Identity 14 as a bound: int E[jumps] -dlog alpha for one network; both are above the entropy of what is known."""
    theta, x0 = (3 * Key.of(9, 1).uniform(V))[0].softmax(0), 0
    nodes, weights = special.roots_legendre(60)
    totals = {}
    for plug_in in (True, False):
        total = 0.0
        for root, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
            node, weight = root**4, weight * 4 * root**3  # the integrand is a logarithm near 0
            alpha = torch.full((V,), 1 - node, dtype=torch.float64)
            q = torch.full((V,), node / V, dtype=torch.float64)
            q[x0] += 1 - node
            price = jumps(theta.expand(V, V), torch.full((V,), x0), torch.arange(V), alpha, plug_in=plug_in)
            total += weight / (1 - node) * float((q * price).sum())
        totals[plug_in] = total
    # theta that has seen nothing, plugged in, is the exact chain of p(x_0) = theta: the bound is tight
    assert totals[True] == pytest.approx(-math.log(float(theta[x0])), abs=1e-4)
    assert totals[False] > totals[True] + 0.1


def test_numbers_of_the_words() -> None:
    """From the size of a vocabulary: all but the special tokens."""
    process = Replacement(NAMED, SIZE)
    assert process.words.tolist() == [X, X + 1]
    for words, message in ((torch.tensor([4]), "1 words are too few"), (torch.tensor([2, 4, 5]), r"ids \[2\] are no")):
        with pytest.raises(ValueError, match=message):
            Replacement(WIDE, words)
    with pytest.raises(ValueError, match="masked 1.0 is not a share"):
        replacement(masked=1.0)
    with pytest.raises(ValueError, match="steps -1"):
        replacement(steps=-1)


def test_the_surest_come_first() -> None:
    """`ranked`: of the guesses that differ from x_t the surest are written first; as many as the posterior would."""
    process = replacement(different=True)
    xt = many(text(), 500)
    x0 = xt.with_(ids=torch.tensor([[1, 5, 6, 5, 6, 0]]).expand(500, -1))  # two words differ, one does not
    sure = torch.tensor([[0.0, -1.0, -2.0, 0.0, -5.0, 0.0]]).expand(500, -1)
    draw, t, s, key = Draw(x0, torch.empty(0), sure), time(500, 0.8), time(500, 0.4), Key.of(0, 500)
    plain, order = (process.corrupt(x0, rule(process, xt, draw, t, s, key), s).ids for rule in (posterior, ranked()))
    assert torch.equal((plain != x0.ids).sum(1), (order != x0.ids).sum(1))
    assert bool((order[:, 4] == 6).all())  # where nothing was to be done nothing is
    first, second = (order[:, 1] == 5), (order[:, 2] == 6)
    assert not bool((second & ~first).any()) and bool((first & ~second).any())
    assert bool(((plain[:, 2] == 6) & (plain[:, 1] != 5)).any())


@pytest.mark.parametrize("model", [bert, modernbert])
def test_stock_models(model) -> None:
    """A masked language model trains on replaced words, is bounded, and samples, with all that is the user's in place."""
    for process in (
        Replacement(NAMED, SIZE),
        Replacement(NAMED, SIZE, different=True, counts=True),
        Replacement(NAMED, SIZE, masked=0.5),
    ):
        plain = Parallel(model(), NAMED)
        denoiser = Changes(plain, process) if process.different else plain
        udm = UDM(process, denoiser)
        x0 = Tokens.from_rows([[1, X, X + 1, X, X + 1], [1, X + 1, X, X], [1]], NAMED.pad)
        key = Key.of(0, 3)
        loss = udm(x0, key)
        loss.total.backward()
        gradients = [p.grad for p in plain.parameters() if p.grad is not None]
        assert float(loss.total.detach()) > 0 and all(bool(g.isfinite().all()) for g in gradients)
        assert any(float(g.abs().max()) > 0 for g in gradients)
        denoiser.eval()
        assert bool(udm.bound(x0, key).isfinite().all()) and float(udm.bound(x0, key)[2]) == 0
        x = process.prior(x0.with_(fixed=x0.fixed | (torch.arange(5) == 2)), key)
        for rule in (fresh, posterior, partial(0.3), ranked()):
            for step in sample(denoiser, process, x, steps=3, key=key, rule=rule):
                assert torch.equal(step.x.ids[:, 2], x0.ids[:, 2]) and torch.equal(step.x.valid, x0.valid)
            assert bool((step.x.ids[x0.valid & ~x0.fixed] >= X).all()) and not bool(step.x.doubtful.any())
