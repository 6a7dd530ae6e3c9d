"""Images: the laws of the reverse step for Gaussian noise in closed form, and those of cold processes by their numbers.

Given x0, a step with a perfect guess is linear, x_s = a x0 + b x_t + c n', so that its coefficients are read off the code
exactly (`coefficients`). Statistical tests are asserted at p > 1e-6, their rate of false alarm, and come with a planted
fault that they reject.
"""

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from textdiff.denoiser import Denoiser, Pixels, optimal_variance
from textdiff.images import Images
from textdiff.keys import Key
from textdiff.posterior import Decode, Draw, Posterior
from textdiff.process import Blur, Pixelation, PixelMask, VarianceExploding, VariancePreserving
from textdiff.process.degradation import cosines, heat, levels
from textdiff.rules import fresh, ode, partial, posterior, sde
from textdiff.sampler import sample
from textdiff.schedule import Betas, Linear, Schedule, SquaredCosine, Steps
from textdiff.udm import UDM

HOT = [
    pytest.param(VariancePreserving(), id="squared-cosine"),
    pytest.param(VariancePreserving(Linear()), id="linear"),
    pytest.param(VariancePreserving(Betas()), id="betas"),
    pytest.param(VarianceExploding(), id="exploding"),
]
COLD = [
    pytest.param(family(noise=noise), id=f"{family.__name__}-{noise}")
    for family in (Blur, Pixelation, PixelMask)
    for noise in (0.0, 0.3)
]
KEEPING = {"fresh": fresh, "posterior": posterior, "partial": partial(0.3)}  # these keep Su's law under every process
GAUSSIAN = {"sde-half": sde(0.5), "sde": sde(1), "ode": ode}
every_hot = pytest.mark.parametrize("process", HOT)
every_cold = pytest.mark.parametrize("process", COLD)
every_process = pytest.mark.parametrize("process", HOT + COLD)
every_rule = pytest.mark.parametrize("rule", [pytest.param(r, id=n) for n, r in {**KEEPING, **GAUSSIAN}.items()])

T, S = 0.8, 0.45  # where a step starts and where it ends


def time(count: int, t: float) -> Tensor:
    return torch.full((count,), t, dtype=torch.float64)


def pictures(count: int = 6, side: int = 8, seed: int = 0) -> Images:
    """(count, 2, side, side) float64, every pixel another number."""
    pixels = Key.of(seed, count).uniform(2 * side * side).view(count, 2, side, side) * 2 - 1
    return Images.of(pixels, torch.arange(count))


def guess(x0: Images) -> Draw:
    return Draw(x0, torch.empty(0, dtype=torch.int64), torch.zeros(()))


def turn(process, rule, xt: Images, x0: Images, t: float, s: float, key: Key) -> Tensor:
    """x_s of one turn of the loop from x_t with the guess x0."""
    now, then = time(len(xt), t), time(len(xt), s)
    return process.corrupt(x0, rule(process, xt, guess(x0), now, then, key), then).pixels


def coefficients(process, rule, t: float = T, s: float = S) -> tuple[float, float, float]:
    """(a, b, c) of x_s = a x0 + b x_t + c n', by least squares on 64 free choices; they have to fit to 1e-9."""
    columns = Key.of(1, 64).normal(2).view(2, 64, 1, 1, 1)
    x0, xt, key = Images.of(columns[0] / 10), Images(columns[1], torch.full((64,), -1)), Key.of(2, 64)
    new = [process.noise(x0, k) for k in (key.fold(1), key)]  # of the rules that blend, and of `fresh`
    design = torch.stack([x0.pixels, xt.pixels, *new]).view(4, 64).T
    xs = turn(process, rule, xt, x0, t, s, key).view(64)
    a, b, blended, alone = (fit := torch.linalg.lstsq(design, xs).solution).tolist()
    assert float((design @ fit - xs).abs().max()) < 1e-9
    assert min(abs(blended), abs(alone)) < 1e-9
    return a, b, (blended**2 + alone**2) ** 0.5


def numbers(process, t: float) -> tuple[float, float]:
    """A_t and w_t."""
    return float(process.gain(time(1, t))), float(process.spread(time(1, t)))


class Averaged(VariancePreserving):
    """The control for `blend`: the noises are averaged, and their variances with them."""

    def blend(self, inferred, fresh, rho, key):
        return (1 - rho) * inferred + rho * fresh


def keeps_the_law(process, rule, t: float = T, s: float = S) -> bool:
    (gain, spread), (wanted, width) = numbers(process, t), numbers(process, s)
    a, b, c = coefficients(process, rule, t, s)
    tolerance = 1e-10 * max(1, width**2)
    return abs(a + b * gain - wanted) < 1e-10 and abs((b * spread) ** 2 + c**2 - width**2) < tolerance


@every_hot
@every_rule
def test_consistency(process, rule) -> None:
    """Su's law in closed form (float64, 1e-10): x_t ~ N(A_t x0, w_t^2) leads to x_s ~ N(A_s x0, w_s^2), to the end, too."""
    for t, s in ((T, S), (1.0, 0.9), (0.3, 0.0), (1.0, 0.0)):
        assert keeps_the_law(process, rule, t, s)


def test_inconsistency_is_noticed() -> None:
    assert keeps_the_law(Averaged(), posterior)
    assert not keeps_the_law(Averaged(), partial(0.3))
    assert not keeps_the_law(Averaged(), sde(1))


@every_process
def test_the_noise_is_found_again(process) -> None:
    """The posterior's noise is the very one that made x_t: the law of every process whose noise is seen."""
    x0, key = pictures(), Key.of(3, 6)
    noise = process.noise(x0, key)
    xt = process.corrupt(x0, noise, time(6, T))
    assert torch.allclose(process.infer(xt, guess(x0), time(6, T), key), noise, atol=1e-9)
    xs = turn(process, posterior, xt, x0, T, S, key)
    assert torch.allclose(xs, process.corrupt(x0, noise, time(6, S)).pixels, atol=1e-9)


@every_hot
def test_data_say_nothing_of_their_noise(process) -> None:
    """At t = 0 every noise explains x_t: it is drawn as if x_t had not been seen, and is no 0 / 0."""
    x0, key = pictures(), Key.of(3, 6)
    t = torch.tensor([0.0, 0.5] * 3, dtype=torch.float64)
    noise = process.infer(x0, guess(x0), t, key)
    assert torch.equal(noise[::2], process.noise(x0, key)[::2]) and bool(noise.isfinite().all())


@pytest.mark.parametrize(
    "schedule", [SquaredCosine(), Betas(), Steps([1, 0.7, 0.2, 0])], ids=lambda s: type(s).__name__
)
def test_schedules_of_variance(schedule: Schedule) -> None:
    """1 at t = 0 to the last bit, falling, and `slope` is the derivative."""
    t = torch.linspace(0, 1, 1001, dtype=torch.float64)
    alpha = schedule.alpha(t)
    assert float(alpha[0]) == 1 and 0 <= float(alpha[-1]) < 1e-4 and bool((alpha.diff() < 0).all())
    inner = t[10:-10].clone().requires_grad_()
    (slope,) = torch.autograd.grad(schedule.alpha(inner).sum(), inner)
    torch.testing.assert_close(schedule.slope(inner), slope)


# alpha, the share of variance, at t = 0, 1/3, 2/3, 1: amplitudes .8 at s and .6 at t
EIGHTH = VariancePreserving(Steps([1, 0.64, 0.36, 0]))


def test_the_numbers_of_ddpm() -> None:
    """Identity 8: sigma~^2 = .68359375, DDPM's variance .24609375, the baseline is eta = 1.2094863."""
    share = float(EIGHTH.renewed(time(1, 2 / 3), time(1, 1 / 3)))
    assert share == pytest.approx(0.68359375, abs=1e-12)
    _, _, c = coefficients(EIGHTH, sde(1), 2 / 3, 1 / 3)
    assert c**2 == pytest.approx(0.24609375, abs=1e-12)
    assert share**-0.5 == pytest.approx(1.2094863, abs=1e-7)
    baseline, same = coefficients(EIGHTH, fresh, 2 / 3, 1 / 3), coefficients(EIGHTH, sde(share**-0.5), 2 / 3, 1 / 3)
    assert same == pytest.approx(baseline, abs=1e-7)
    with pytest.raises(ValueError, match="more steps"):
        coefficients(EIGHTH, sde(1.3), 2 / 3, 1 / 3)


@every_hot
@pytest.mark.parametrize("eta", [0, 0.3, 1])
def test_ddim_by_its_formula(process, eta: float) -> None:
    """x_s = A_s x0 + sqrt(w_s^2 - sigma^2) (x_t - A_t x0) / w_t + sigma n', sigma = eta w_s / w_t sqrt(w_t^2 - r^2 w_s^2)

    with r = A_t / A_s (arXiv:2010.02502), and at eta = 1 the posterior mean and variance of DDPM (arXiv:2006.11239).
    """
    (gain, spread), (wanted, width) = numbers(process, T), numbers(process, S)
    step = spread**2 - (gain / wanted * width) ** 2  # the variance that the forward path adds from s to t
    sigma = eta * width / spread * step**0.5
    left = (width**2 - sigma**2) ** 0.5 / spread
    assert coefficients(process, sde(eta), T, S) == pytest.approx((wanted - left * gain, left, sigma), rel=1e-9)
    if eta == 1:
        ddpm = wanted * step / spread**2, gain / wanted * width**2 / spread**2, width / spread * step**0.5
        assert coefficients(process, sde(1), T, S) == pytest.approx(ddpm, rel=1e-9)


def limit(process, scale: float, t: float, f: float, g2: float) -> bool:
    """Whether small steps are those of dx = [f x - (1 + scale^2)/2 g^2 score] dt + scale g dw, to 1e-4 of each term."""
    dt, (gain, spread) = 1e-6, numbers(process, t)
    a, b, c = coefficients(process, sde(scale), t, t - dt)
    pull = (1 + scale**2) / 2 * g2 / spread**2  # score = -(x_t - A_t x0) / w_t^2
    seen = (1 - b) / dt, -a / dt, c**2 / dt
    return seen == pytest.approx((f + pull, -pull * gain, scale**2 * g2), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("scale", [0, 0.5, 1, 1.7])
def test_small_steps_are_an_sde(scale: float) -> None:
    """Identity 19: the lambda-SDE. VP: f = -beta/2, g^2 = beta for the betas of the schedule; VE: f = 0, g^2 = (w^2)'."""
    t = 0.6
    beta = 0.1 + 19.9 * t
    assert limit(VariancePreserving(Betas(0.1, 20.0)), scale, t, -beta / 2, beta)
    assert not limit(VariancePreserving(Betas(0.1, 20.0)), scale, t, -beta / 2, beta * 1.01)
    growth = 80.0**2 * 14 * t**13
    assert limit(VarianceExploding(80.0, 7.0), scale, t, 0.0, growth)
    assert not limit(VarianceExploding(80.0, 7.0), scale, t, 0.01, growth)


class Cloud(Denoiser):
    """The exact posterior of a finite data set (K, C, H, W), whose points are equally likely, under any Gaussian noise."""

    def __init__(self, process, data: Tensor, spoil=lambda weight: weight) -> None:
        super().__init__()
        self.process, self.data, self.spoil = process, data, spoil

    def forward(self, xt: Images, t: Tensor) -> Posterior:
        centres = self.process.degrade(self.data, t[:1].expand(len(self.data)))
        width = float(self.process.spread(t[:1])) * self.process.sigma
        centres, seen = centres.flatten(1), xt.pixels.flatten(1)
        near = (
            seen @ centres.T - (centres**2).sum(1) / 2
        ) / width**2  # minus half the squared distance, but for seen^2
        return _CloudPosterior(self, xt, self.spoil(near.softmax(1)))


class _CloudPosterior(Posterior):
    def __init__(self, cloud: Cloud, xt: Images, weight: Tensor) -> None:
        self.cloud, self.xt, self.weight = cloud, xt, weight

    def sample(self, decode: Decode, key: Key) -> Draw:
        pick = (self.weight.cumsum(1) < key.uniform(1)).sum(1).clamp_max(len(self.cloud.data) - 1)
        return guess(self.xt.with_(self.cloud.data[pick]))

    def log_prob(self, truth: Draw) -> Tensor:
        raise NotImplementedError


COUNT = 50_000
# three points of unequal shares, whose two pixels depend on each other
POINTS = torch.tensor([[-0.5, -0.5], [-0.5, -0.5], [0.9, -0.2], [0.1, 0.8]], dtype=torch.float64).view(4, 1, 1, 2)


def share_p(process, rule, steps: int, spoil=lambda weight: weight, denoising=None) -> float:
    """The chance of samples as far from the data as these (chi-square over the three points, N = 50,000).

    x_1 is drawn from the data's own greys where the process keeps them.
    """
    key = Key.of(4, COUNT)
    x = process.prior(Images.of(POINTS[torch.arange(COUNT) % 4]), key.fold(99))
    run = sample(Cloud(denoising or process, POINTS, spoil), process, x, steps=steps, key=key, rule=rule)
    pixels = list(run)[-1].x.pixels
    counts = [int((pixels == point).all(3).all(2).all(1).sum()) for point in POINTS[1:]]
    assert sum(counts) == COUNT
    return stats.chisquare(counts, [COUNT / 2, COUNT / 4, COUNT / 4]).pvalue


# the blends, mixtures of the others, stand for them in the long run and in `make test`
SAMPLERS = [
    pytest.param(
        rule, steps, id=f"{name}-{steps}", marks=[pytest.mark.slow] * (steps == 8 and name not in ("partial", "sde"))
    )
    for name, rule in {**KEEPING, **GAUSSIAN}.items()
    for steps in (1, 2, 8)
]


@pytest.mark.parametrize(("rule", "steps"), SAMPLERS)
@pytest.mark.parametrize("process", [HOT[0], HOT[3]])
def test_a_perfect_denoiser_samples_the_data(process, rule, steps: int) -> None:
    """Identity 3, hot: N = 50,000, false alarm 1e-6."""
    assert share_p(process, rule, steps) > 1e-6


@pytest.mark.parametrize(("rule", "steps"), SAMPLERS[:9])
@pytest.mark.parametrize("family", [Blur, Pixelation, PixelMask])
def test_a_little_noise_makes_the_cold_exact(family, rule, steps: int) -> None:
    """Identity 3, cold with noise .3, and the data's greys at t = 1: N = 50,000, false alarm 1e-6."""
    assert share_p(family(noise=0.3), rule, steps) > 1e-6


def test_imperfect_samplers_are_noticed() -> None:
    """A blend of the wrong variance, a posterior too sure of itself, and one that has another noise in mind."""
    assert share_p(Averaged(), partial(0.3), 3) < 1e-6
    assert share_p(VariancePreserving(), posterior, 3, lambda weight: (weight**1.5) / (weight**1.5).sum(1, True)) < 1e-6
    assert share_p(VariancePreserving(), posterior, 8, denoising=VariancePreserving(Betas())) < 1e-6


@every_process
def test_time_0_is_the_data(process) -> None:
    x0, key = pictures(), Key.of(5, 6)
    xt = process.corrupt(x0, process.noise(x0, key), time(6, 0.0))
    assert torch.equal(xt.pixels, x0.pixels) and torch.equal(xt.label, x0.label)


def end(process, x0: Images) -> Tensor:
    return process.corrupt(x0, process.noise(x0, Key.of(6, len(x0))), time(len(x0), 1.0)).pixels


def test_time_1_forgets_the_image() -> None:
    """Nothing is left of it: exactly under the squared cosine, a share 4e-5 of its variance under DDPM's betas, 1/6400."""
    one, other = pictures(seed=0), pictures(seed=1)
    left = {name: (end(p, one) - end(p, other)) / (one.pixels - other.pixels) for name, p in ENDS.items()}
    assert not bool(left["cosine"].any())
    assert float(left["betas"].abs().max()) ** 2 == pytest.approx(4.3e-5, rel=0.01)
    assert float(left["exploding"].abs().max() / 80) ** 2 == pytest.approx(1 / 6400)
    for name, process in ENDS.items():  # and the prior does not even look
        priors = [process.prior(x, Key.of(6, 6)).pixels for x in (one, other)]
        assert torch.equal(*priors) and torch.equal(process.prior(one, Key.of(6, 6)).label, one.label)
        assert torch.allclose(priors[0], end(process, one), atol=1e-9 if name == "cosine" else 2)


ENDS = {"cosine": VariancePreserving(), "betas": VariancePreserving(Betas()), "exploding": VarianceExploding()}


@pytest.mark.parametrize("family", [Blur, Pixelation])
def test_time_1_leaves_the_grey(family) -> None:
    """The mean of each channel and nothing else: exactly, so that a constant image is a legitimate start."""
    x0 = pictures()
    grey = x0.with_(x0.pixels.mean((-2, -1), keepdim=True).expand_as(x0.pixels))
    assert torch.allclose(end(family(), x0), grey.pixels, atol=1e-15)
    assert torch.allclose(family().prior(grey, Key.of(0, 6)).pixels, grey.pixels, atol=1e-15)
    assert not bool(end(PixelMask(), x0).any())


@every_process
def test_noise_belongs_to_the_image(process) -> None:
    """The same image alone, or in a batch in another order and at other times, gives the same x_t."""
    x0, key, t = pictures(), Key.of(7, 6), torch.linspace(0, 1, 6, dtype=torch.float64)
    xt = process.corrupt(x0, process.noise(x0, key), t).pixels
    for rows in (torch.tensor([3, 1, 0, 5, 4, 2]), torch.tensor([4])):
        again = process.corrupt(x0[rows], process.noise(x0[rows], key[rows]), t[rows]).pixels
        assert torch.allclose(again, xt[rows], atol=1e-12)
    assert not torch.allclose(*process.noise(x0, key)[:2]) or not process.sigma  # and to no other


@every_process
def test_float32_images_stay_so(process) -> None:
    x0, key = pictures(), Key.of(7, 6)
    single = x0.with_(x0.pixels.float())
    noise = process.noise(single, key)
    xt = process.corrupt(single, noise, time(6, 0.5)).pixels
    assert noise.dtype == xt.dtype == torch.float32
    assert torch.allclose(xt.double(), process.corrupt(x0, process.noise(x0, key), time(6, 0.5)).pixels, atol=1e-5)
    assert process.size(x0).tolist() == [128] * 6 and process.weight(time(6, 0.5)).tolist() == [1] * 6


@every_cold
def test_cold_steps_by_their_formulas(process) -> None:
    """x_s = x_t + A_s x0_hat - A_t x0_hat (Improved) and A_s x0_hat + w_s n' (Naive), for any guess, arXiv:2208.09392."""
    xt, x0, key = pictures(seed=2), pictures(seed=3), Key.of(8, 6)
    before, after = (process.degrade(x0.pixels, time(6, at)) for at in (T, S))
    assert torch.allclose(turn(process, posterior, xt, x0, T, S, key), xt.pixels + after - before, atol=1e-12)
    new = process.noise(x0, key)
    assert bool(new.any()) == (process.sigma > 0)
    assert torch.allclose(turn(process, fresh, xt, x0, T, S, key), after + new, atol=1e-12)


@pytest.mark.parametrize("side", [8, 12, 28])
@pytest.mark.parametrize("family", [Pixelation, PixelMask])
def test_nested_degradations_keep_what_is_seen(family, side: int) -> None:
    """Identity 16: A_t A_s = A_s A_t = A_t, so Improved Sampling keeps A_t x_s = x_t exactly, and Naive does not."""
    process, x0, wrong, key = family(), pictures(side=side), pictures(side=side, seed=9), Key.of(8, 6)
    t, s = time(6, 0.8), time(6, 0.3)
    coarse, fine = process.degrade(x0.pixels, t), process.degrade(x0.pixels, s)
    assert not torch.allclose(coarse, fine, atol=0.1)
    assert torch.allclose(process.degrade(fine, t), coarse, atol=1e-14)
    assert torch.allclose(process.degrade(coarse, s), coarse, atol=1e-14)
    xt = x0.with_(coarse)
    assert torch.allclose(process.degrade(turn(process, posterior, xt, wrong, 0.8, 0.3, key), t), coarse, atol=1e-14)
    assert not torch.allclose(process.degrade(turn(process, fresh, xt, wrong, 0.8, 0.3, key), t), coarse, atol=0.05)


def test_pixel_masks_are_revealed() -> None:
    """Identity 16: what is seen stays, what is due is taken from the guess, the rest is 0; a share t is gone."""
    process, x0, wrong = PixelMask(), pictures(), pictures(seed=9)
    xt = x0.with_(process.degrade(x0.pixels, time(6, 0.75)))
    gone, due = xt.pixels == 0, process.degrade(x0.pixels, time(6, 0.25)) != 0
    assert int(gone[0, 0].sum()) == 48 and bool((gone[:, 0] == gone[:, 1]).all()) and bool((gone == gone[:1]).all())
    xs = turn(process, posterior, xt, wrong, 0.75, 0.25, Key.of(0, 6))
    expected = torch.where(~gone, x0.pixels, torch.where(due, wrong.pixels, 0.0))
    assert torch.allclose(xs, expected, atol=1e-15)
    order = [int((process.degrade(torch.ones(1, 1, 8, 8), time(1, k / 64)) == 0).sum()) for k in range(65)]
    assert order == list(range(65))  # one by one


def test_pixelation_grows_by_factors() -> None:
    assert levels(8, 8) == [(2, 2), (4, 4), (8, 8)]
    assert levels(28, 28) == [(2, 2), (4, 4), (28, 28)]
    assert levels(4, 6) == [(2, 2), (4, 6)]
    assert levels(1, 2) == [(1, 2)] and levels(1, 1) == []
    x0 = pictures(side=8)
    seen = [Pixelation().degrade(x0.pixels, time(6, t)) for t in (0, 0.01, 1 / 3, 0.34, 2 / 3, 0.67, 1)]
    assert [len(x[0, 0].unique()) for x in seen] == [64, 16, 16, 4, 4, 1, 1]
    assert torch.allclose(seen[1][:, :, 2, 3], x0.pixels[:, :, 2:4, 2:4].mean((2, 3)), atol=1e-15)


def test_heat() -> None:
    """Blurs add up in squares, A(s1) A(s2) = A(sqrt(s1^2 + s2^2)); they keep the mean, and small ones are Gaussian."""
    x0, width = pictures().pixels, time(6, 1.0)
    twice = heat(heat(x0, 1.5 * width), 2 * width)
    assert torch.allclose(twice, heat(x0, 2.5 * width), atol=1e-13)
    assert not torch.allclose(twice, heat(x0, 3.5 * width), atol=1e-3)
    assert torch.allclose(twice.mean((2, 3)), x0.mean((2, 3)), atol=1e-14)
    matrix = cosines(7)
    assert torch.allclose(matrix @ matrix.T, torch.eye(7, dtype=torch.float64), atol=1e-14)
    spot = torch.zeros(1, 1, 31, 31, dtype=torch.float64)
    spot[0, 0, 15, 15] = 1
    near = torch.arange(-15, 16, dtype=torch.float64)
    bell = torch.exp(-(near**2) / (2 * 2.0**2)) / (2.0 * (2 * torch.pi) ** 0.5)
    assert torch.allclose(heat(spot, time(1, 2.0))[0, 0], bell[:, None] * bell, atol=1e-6)


def test_blur_grows_on_a_logarithmic_scale() -> None:
    width = Blur(20.0).width(torch.linspace(0, 1, 101, dtype=torch.float64))
    assert float(width[0]) == 0 and float(width[-1]) == pytest.approx(20) and bool((width.diff() > 0).all())
    assert bool(((width + 0.5).log().diff().diff().abs() < 1e-12).all())
    loss = [float((Blur().degrade(pictures().pixels, time(6, t))).var((2, 3)).mean()) for t in (0, 0.1, 0.3, 0.6, 1)]
    assert all(a > b for a, b in zip(loss, loss[1:], strict=False)) and loss[-1] < 1e-20


def test_improved_sampling_forgives_a_wrong_guess() -> None:
    """A small step of heat with an image that has nothing to do with x_t: Improved stays near, Naive loses all."""
    process, x0, wrong = Blur(), pictures(), pictures(seed=9)
    xt = x0.with_(process.degrade(x0.pixels, time(6, 0.5)))
    truth = process.degrade(x0.pixels, time(6, 0.49))
    improved, naive = (
        float((turn(process, rule, xt, wrong, 0.5, 0.49, Key.of(0, 6)) - truth).norm()) for rule in (posterior, fresh)
    )
    assert improved < naive / 10


class Formula(nn.Module):
    """A network in closed form, f(pixels, t), with the face of a UNet2DModel."""

    def __init__(self, f, channels: int = 1, side: int | None = None, classes: int | None = None) -> None:
        super().__init__()
        self.f, self.seen = f, []
        self.config = SimpleNamespace(
            in_channels=channels, out_channels=channels, sample_size=side, num_class_embeds=classes
        )

    def forward(self, sample: Tensor, timestep: Tensor, class_labels: Tensor | None = None) -> SimpleNamespace:
        self.seen.append((sample, timestep, class_labels))
        return SimpleNamespace(sample=self.f(sample, ((timestep.double() + 1) / 1000).view(-1, 1, 1, 1)))


SPACES = [
    pytest.param(process, predict, id=f"{name}-{predict}")
    for name, process in ENDS.items()
    for predict in ("eps", "x0", "v")
] + [pytest.param(Blur(noise=0.1), "x0", id="blur-x0")]


@pytest.mark.parametrize(("process", "predict"), SPACES)
def test_what_the_network_should_say_means_the_truth(process, predict: str) -> None:
    """mean(target(x0)) = x0, whatever is said; then the loss is 0, and else half the squared error in that space."""
    x0, key = pictures(), Key.of(9, 6)
    denoiser = Pixels(Formula(lambda x, t: 0 * x, channels=2), process, predict=predict, clip=False)
    for at in (0.5, 0.9, 0.99):
        t = time(6, at)
        noise = process.noise(x0, key)
        xt = process.corrupt(x0, noise, t)
        target = denoiser.target(x0.pixels, xt.pixels, t)
        assert torch.allclose(denoiser.mean(target, xt.pixels, t), x0.pixels, atol=1e-9)
        if predict == "eps":
            assert torch.allclose(target, noise, atol=1e-9)
        if predict == "v":
            gain, spread = (float(value) for value in numbers(process, at))
            expected = (gain * noise - spread * x0.pixels) / (gain**2 + spread**2) ** 0.5
            assert torch.allclose(target, expected, atol=1e-9)
        nll = -denoiser(xt, t).log_prob(guess(x0))
        assert torch.allclose(nll, (target**2 / 2).flatten(1)) and nll.shape == (6, 128)
    loss = UDM(process, Pixels(Formula(lambda x, t: 0 * x, channels=2), process, "x0", loss="l1"))(x0, key)
    assert float(loss.total) == pytest.approx(float(x0.pixels.abs().sum())) and float(loss.size) == 6 * 128


@pytest.mark.parametrize("predict", ["eps", "x0", "v"])
@pytest.mark.parametrize("process", ENDS.values(), ids=list(ENDS))
def test_no_number_runs_away(process, predict: str) -> None:
    """Float32 at both ends of time: finite losses and guesses, at 1e-9 from the data and in pure noise."""
    x0 = pictures(200).pixels.float()
    images, key = Images.of(x0), Key.of(10, 200)
    denoiser = Pixels(Formula(lambda x, t: 0.1 * x, channels=2), process, predict=predict)
    for at in (1e-9, 1e-4, 0.01, 0.999, 1 - 1e-9, 1.0):
        xt = process.corrupt(images, process.noise(images, key), time(200, at))
        says = denoiser(xt, time(200, at))
        assert float(says.log_prob(guess(images)).abs().max()) < 20  # 5.5 standard deviations, or so
        assert float(says.sample(Decode(), key).x0.pixels.abs().max()) <= 1


def test_noise_alone_is_a_guess_at_nothing() -> None:
    """At t = 1, where nothing of x0 is left, eps = x_t means 0, the middle of the data, and not 0 / 0."""
    process, x0 = VariancePreserving(), pictures()
    xt = process.prior(x0, Key.of(0, 6))
    draw = Pixels(Formula(lambda x, t: x, channels=2), process, "eps")(xt, time(6, 1.0)).sample(Decode(), Key.of(1, 6))
    assert not bool(draw.x0.pixels.any())


def test_what_the_network_sees() -> None:
    """Pixels of size 1 whatever the noise, the time as 1000 t - 1, the labels where it has classes."""
    x0, model = pictures(), Formula(lambda x, t: x, channels=2)
    for process in (VariancePreserving(), VarianceExploding()):
        for at in (0.25, 1.0):
            xt = process.corrupt(x0, process.noise(x0, Key.of(0, 6)), time(6, at))
            Pixels(model, process)(xt, time(6, at))
            pixels, timestep, label = model.seen[-1]
            assert 0.3 < float(pixels.std()) < 1.2 and label is None
            assert timestep.tolist() == [1000 * at - 1] * 6
    labelled = Formula(lambda x, t: x, channels=2, classes=6)
    Pixels(labelled, VariancePreserving())(x0, time(6, 0.5))
    assert torch.equal(labelled.seen[-1][2], x0.label)
    assert Pixels(model, VariancePreserving()).longest is None


def test_copies_ask_their_own_model() -> None:
    """An average of the weights is a copy of the denoiser: it must not go on asking the original's network."""
    denoiser = Pixels(Formula(lambda x, t: x, channels=2), VariancePreserving(), predict="x0")
    copied = copy.deepcopy(denoiser)
    copied(pictures(), time(6, 0.5))
    assert len(copied.model.seen) == 1 and not denoiser.model.seen


# Gaussian data, x0 ~ N(0, DATA^2) pixel by pixel, where all is known: E(x0 | xt) = A DATA^2 xt / (A^2 DATA^2 + w^2)
DATA = 0.5
SHRINKING = VariancePreserving(Linear())


def expected(xt: Tensor, t: Tensor) -> Tensor:
    alpha = 1 - t
    return alpha.sqrt() * DATA**2 * xt / (alpha * DATA**2 + 1 - alpha)


def left_over(steps: int) -> Tensor:
    """The variance of x0 given xt at t = 0, 1/steps, ..., 1."""
    t = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    return t * DATA**2 / ((1 - t) * DATA**2 + t)


def spread_p(rule, steps: int, variance: Tensor | None) -> tuple[float, float]:
    """The chance (two-sided chi-square) of samples whose variance is as far from DATA^2, and that variance; N = 50,000."""
    denoiser = Pixels(Formula(expected), SHRINKING, predict="x0", variance=variance, clip=False)
    key = Key.of(12, COUNT)
    x = SHRINKING.prior(
        Images(torch.zeros(COUNT, 1, 1, 1, dtype=torch.float64), torch.full((COUNT,), -1)), key.fold(99)
    )
    x0 = list(sample(denoiser, SHRINKING, x, steps=steps, key=key, rule=rule))[-1].x.pixels
    total = float((x0**2).sum()) / DATA**2
    return 2 * min(stats.chi2.cdf(total, COUNT), stats.chi2.sf(total, COUNT)), total * DATA**2 / COUNT


@pytest.mark.parametrize("steps", [2, 5])
@every_rule
def test_the_optimal_variance_makes_few_steps_exact(rule, steps: int) -> None:
    """Analytic-DPM: with it Gaussian data come out with their own variance, and without it with too little (1e-6)."""
    assert spread_p(rule, steps, left_over(steps))[0] > 1e-6
    p, variance = spread_p(rule, steps, None)
    assert p < 1e-6 and variance < 0.9 * DATA**2


def test_the_optimal_variance_is_measured() -> None:
    """The mean squared error over N = 100,000 pixels per time, within 5.5 standard errors of the closed form (1e-6)."""
    key = Key.of(13, 1000)
    batches = [(Images(DATA * part.normal(50).view(1000, 1, 5, 10), torch.full((1000,), -1)), part) for part in
               (key.fold(1), key.fold(2))]  # fmt: skip
    measured = optimal_variance(Pixels(Formula(expected), SHRINKING, "x0", clip=False), batches, times=4)
    error = 5.5 * (2 / 100_000) ** 0.5
    assert float(measured[0]) == 0 and torch.allclose(measured[1:], left_over(4)[1:], rtol=error, atol=0)
    assert not torch.allclose(measured[1:], 1.05 * left_over(4)[1:], rtol=error, atol=0)
    denoiser = Pixels(Formula(expected), SHRINKING, "x0", variance=measured)
    halfway = denoiser.deviation(time(1, 0.375)) ** 2  # linear in between
    assert float(halfway) == pytest.approx(float(measured[1] + measured[2]) / 2)
    cold = denoiser(Images(torch.zeros(1, 1, 1, 1), torch.tensor([-1])), time(1, 1.0))
    assert float(cold.sample(Decode(temperature=0), Key.of(0, 1)).x0.pixels) == 0
    assert float(cold.sample(Decode(), Key.of(0, 1)).x0.pixels) != 0


@pytest.mark.parametrize("eta", [0, 0.3, 1])
def test_total_variance(eta: float) -> None:
    """sigma^2 + (A_s - A_t sqrt(w_s^2 - sigma^2) / w_t)^2 variance_t, Analytic-DPM's; then x_s has its true variance."""
    (gain, spread), (wanted, width) = numbers(SHRINKING, T), numbers(SHRINKING, S)
    a, b, c = coefficients(SHRINKING, sde(eta), T, S)
    assert a == pytest.approx(wanted - gain * (width**2 - c**2) ** 0.5 / spread, rel=1e-9)
    guessed = float(left_over(5)[4])  # t = .8
    total = c**2 + a**2 * guessed
    pull = gain * DATA**2 / (gain**2 * DATA**2 + spread**2)
    before, after = gain**2 * DATA**2 + spread**2, wanted**2 * DATA**2 + width**2
    assert (b + a * pull) ** 2 * before + total == pytest.approx(after, rel=1e-9)
    key, xt = (
        Key.of(14, COUNT),
        Images(torch.full((COUNT, 1, 1, 1), 0.7, dtype=torch.float64), torch.full((COUNT,), -1)),
    )
    denoiser = Pixels(Formula(expected), SHRINKING, "x0", variance=left_over(5), clip=False)
    draw = denoiser(xt, time(COUNT, T)).sample(Decode(), key.fold(1))
    xs = turn(SHRINKING, sde(eta), xt, draw.x0, T, S, key.fold(2))
    seen = float(((xs - xs.mean()) ** 2).sum()) / total  # N = 50,000, false alarm 1e-6
    assert 2 * min(stats.chi2.cdf(seen, COUNT - 1), stats.chi2.sf(seen, COUNT - 1)) > 1e-6


def test_the_ode_is_solved() -> None:
    """With E(x0 | xt) for a guess, `ode` goes to the probability flow x_0 = x_1 DATA / 1: the error falls as 1 / steps."""
    start = Images(torch.full((1, 1, 1, 1), 0.8, dtype=torch.float64), torch.tensor([-1]))
    denoiser = Pixels(Formula(expected), VariancePreserving(Linear()), "x0", clip=False)
    errors = []
    for steps in (100, 200, 400):
        run = list(sample(denoiser, SHRINKING, start, steps=steps, key=Key.of(0, 1), rule=ode))
        errors.append(float(run[-1].x.pixels) - 0.8 * DATA)
    assert abs(errors[-1]) < 0.01 and errors[0] / errors[1] == pytest.approx(2, rel=0.2)
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.2)


def uneven() -> nn.Module:
    model = Formula(None)
    model.config.in_channels = 3
    return model


def looks(process, variance: float) -> tuple[float, float]:
    """The mean bound on -log p(x0) of N = 40,000 pixels drawn from N(0, DATA^2) and its standard error.

    The denoiser is right for data of the given variance.
    """

    def mean(xt: Tensor, t: Tensor) -> Tensor:
        gain, spread = process.gain(t.flatten()).view_as(t), process.spread(t.flatten()).view_as(t)
        unit = (gain**2 + spread**2).sqrt()  # networks read x_t / unit
        return gain * variance * unit * xt / (gain**2 * variance + spread**2)

    key = Key.of(16, 40_000)
    x0 = Images(DATA * key.fold(0).normal(1).view(-1, 1, 1, 1), torch.full((len(key),), -1))
    bound = UDM(process, Pixels(Formula(mean), process, "x0", clip=False)).bound(x0, key.fold(1))
    return float(bound.mean()), float(bound.std()) / len(key) ** 0.5


@pytest.mark.parametrize("process", ENDS.values(), ids=list(ENDS))
def test_the_bound_is_the_entropy(process) -> None:
    """With the right denoiser the bound is the data's -log p, here its entropy, within 4.9 standard errors (1e-6)."""
    entropy = 0.5 * math.log(2 * math.pi * math.e * DATA**2)
    bound, error = looks(process, DATA**2)
    assert abs(bound - entropy) < 4.9 * error and error < 0.06
    worse, error = looks(process, 100 * DATA**2)  # a denoiser that trusts x_t too much
    assert worse - 4.9 * error > entropy


X0 = pictures()
REFUSED = {
    "highest 10": lambda: VarianceExploding(10.0),
    "power 0": lambda: VarianceExploding(power=0.0),
    "leaves 0.5": lambda: VariancePreserving(Steps([1, 0.5])),
    "noise -1": lambda: Blur(noise=-1),
    "highest blur 0": lambda: Blur(0),
    "predict 'score'": lambda: Pixels(Formula(None), VariancePreserving(), predict="score"),
    "loss 'l3'": lambda: Pixels(Formula(None), VariancePreserving(), loss="l3"),
    "Blur is no multiple.*predict x0": lambda: Pixels(Formula(None), Blur()),
    "PixelMask is no multiple.*predict x0": lambda: Pixels(Formula(None), PixelMask(), predict="v"),
    "Linear is no UNet2DModel": lambda: Pixels(nn.Linear(2, 2), VariancePreserving()),
    r"\(2, 8, 8\).*\(1, 8, 8\)": lambda: Pixels(Formula(None), VariancePreserving())(X0, time(6, 0.5)),
    r"\(2, 8, 8\).*\(2, 16, 16\)": lambda: Pixels(Formula(None, 2, 16), VariancePreserving())(X0, time(6, 0.5)),
    "label 4 .* 0 to 3": lambda: Pixels(Formula(None, 2, classes=4), VariancePreserving())(X0, time(6, 0.5)),
    "without a label": lambda: Pixels(Formula(None, 2, classes=4), VariancePreserving())(
        Images.of(X0.pixels), time(6, 0.5)
    ),
    "reads 3 channels and writes 1": lambda: Pixels(uneven(), VariancePreserving()),
    "no bound": lambda: UDM(Blur(), Pixels(Formula(None, 2), Blur(), "x0")).bound(X0, Key.of(0, 6)),
    "no table": lambda: Pixels(Formula(None), VariancePreserving(), variance=torch.tensor([-1.0, 0.0])),
    "no images": lambda: optimal_variance(Pixels(Formula(None), VariancePreserving()), []),
    "times 0": lambda: optimal_variance(Pixels(Formula(None), VariancePreserving()), [], times=0),
    "no Gaussian process": lambda: turn(Blur(), sde(1), X0, X0, T, S, Key.of(0, 6)),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_is_refused(message: str) -> None:
    """In one line, which names the value and the remedy."""
    with pytest.raises(ValueError, match=message) as caught:
        REFUSED[message]()
    assert "\n" not in str(caught.value)
