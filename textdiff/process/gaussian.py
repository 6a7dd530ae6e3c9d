"""Gaussian noise on images: x_t = A_t x_0 + w_t n, n ~ N(0, sigma^2) (热之扩散, kexue.fm archives 9271; DDPM, DDIM, SDE).

The noise that explains x_t is n = (x_t - A_t x0_hat) / w_t. The rules put it back as it is (DDIM), or with a share rho of
its variance redrawn, sqrt(1 - rho) n + sqrt(rho) n': with rho = 1 - SNR_t / SNR_s, SNR = A^2 / w^2, that is DDPM.

The bound on -log p(x0), a density, is 1/2 int SNR |x0 - x0_hat|^2 d log SNR from noise to where a Gaussian of variance
1/SNR around x0_hat takes over (Kingma et al., "Variational diffusion models", arXiv:2107.00630).
"""

import math
from abc import abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor

from textdiff.images import Images
from textdiff.keys import Key
from textdiff.posterior import Decode, Draw, Posterior
from textdiff.process.base import Process
from textdiff.schedule import Schedule, SquaredCosine, reaching
from textdiff.validation import check_number

FORGOTTEN = 1e-3
"""The most of the data's variance that may be left at t = 1. (DDPM's betas leave 4e-5.)"""

# The bound's range of SNR: from noise with next to nothing in it to images with noise of .01, a step or so of 8 bits.
COARSEST, FINEST = 1e-6, 1e4


class Affine(Process):
    """x_t = A_t x_0 + w_t n with a linear A_t; `sigma` is the noise's standard deviation, 0 for a cold process."""

    sigma: float = 1.0

    @abstractmethod
    def degrade(self, pixels: Tensor, t: Tensor) -> Tensor:
        """A_t x_0 of pixels (B, C, H, W) at times t (B,), in their dtype."""

    @abstractmethod
    def spread(self, t: Tensor) -> Tensor:
        """w_t (B,) float64, at times t (B,)."""

    def gain(self, t: Tensor) -> Tensor:
        """A_t (B,) float64 where it is one number for all pixels. ValueError where it is not."""
        raise ValueError(f"{type(self).__name__} is no multiple of the image, so its noise tells no x0; predict x0")

    def scale(self, t: Tensor) -> Tensor:
        """(B,) float64, the size of a pixel of x_t where the data's is 1: networks read x_t divided by it."""
        return torch.ones_like(t)

    def noise(self, x0: Images, key: Key) -> Tensor:
        """n (B, C, H, W) in the dtype of the pixels."""
        if self.sigma == 0:
            return torch.zeros_like(x0.pixels)
        return (self.sigma * key.normal(x0.pixels[0].numel())).view(x0.pixels.shape).to(x0.pixels.dtype)

    def corrupt(self, x0: Images, noise: Tensor, t: Tensor) -> Images:
        return x0.with_(self.degrade(x0.pixels, t) + per_image(self.spread(t), noise) * noise)

    def infer(self, xt: Images, draw: Draw, t: Tensor, key: Key) -> Tensor:
        """n = (x_t - A_t x0_hat) / w_t; where w_t = 0, x_t says nothing of the noise, and it is drawn anew."""
        spread = per_image(self.spread(t), xt.pixels)
        residual = xt.pixels - self.degrade(draw.x0.pixels, t)
        if bool((spread == 0).any()):
            return torch.where(spread == 0, self.noise(draw.x0, key), residual / spread)
        return residual / spread

    def blend(self, inferred: Tensor, fresh: Tensor, rho: float | Tensor, key: Key) -> Tensor:
        """rho, a number or (B, 1, 1, 1), is the share of the variance redrawn."""
        return blended(inferred, fresh, rho)

    def size(self, x0: Images) -> Tensor:
        return torch.full((len(x0),), x0.pixels[0].numel(), dtype=torch.float64, device=x0.pixels.device)


class Gaussian(Affine):
    """The hot processes: A_t is one number, and x_1 is noise alone."""

    @abstractmethod
    def gain(self, t: Tensor) -> Tensor:
        """A_t (B,) float64."""

    def degrade(self, pixels: Tensor, t: Tensor) -> Tensor:
        return per_image(self.gain(t), pixels) * pixels

    def scale(self, t: Tensor) -> Tensor:
        return (self.gain(t) ** 2 + self.spread(t) ** 2).sqrt()

    def renewed(self, t: Tensor, s: Tensor) -> Tensor:
        """1 - SNR_t / SNR_s (B, 1, 1, 1) for s < t: 1 from x_1, which holds nothing, and to x_0, which holds no noise."""
        return drawn_anew((self.gain(t), self.spread(t)), (self.gain(s), self.spread(s))).view(-1, 1, 1, 1)

    def prior(self, x: Images, key: Key) -> Images:
        """x_1 in the shape of x and with its labels; its pixels are not looked at."""
        return super().prior(x.with_(torch.zeros_like(x.pixels)), key)

    def weight(self, t: Tensor) -> Tensor:
        """1: Su drops the coefficient, as DDPM does. The likelihood's -SNR'(t) would weigh what no eye sees."""
        return torch.ones_like(t)

    def snr(self, t: Tensor) -> Tensor:
        """A_t^2 / w_t^2 (B,) float64, infinite at t = 0."""
        return (self.gain(t) / self.spread(t)) ** 2

    def probe(self, x0: Images, key: Key) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """One look at the finest noise, which takes the ends into account, and one at a log SNR drawn uniformly."""
        one = torch.ones(len(key), dtype=torch.float64, device=key.device)
        yield self.noise(x0, key.fold(0)), self._finest(one), one
        low = math.log(self._coarsest(one))
        width = math.log(FINEST) - low
        yield self.noise(x0, key.fold(1)), self._time(low + width * key.fold(2).uniform(1)[:, 0]), width * one

    def price(self, posterior: Posterior, truth: Draw, xt: Images, t: Tensor) -> Tensor:
        """(B,) SNR / 2 |x0 - mean|^2; at the finest noise also what the last Gaussian and the prior cost. In nats."""
        mean = posterior.sample(Decode(temperature=0), Key.of(0, len(t)).to(t.device)).x0.pixels
        x0, one = truth.x0.pixels.double().flatten(1), torch.ones_like(t)
        error = self.snr(t) / 2 * (x0 - mean.flatten(1)).pow(2).sum(1)
        ends = x0.shape[1] / 2 * math.log(2 * math.pi / FINEST) + self._coarsest(one) / 2 * x0.pow(2).sum(1)
        return error + torch.where(t == self._finest(one), ends, 0.0)

    def _coarsest(self, one: Tensor) -> float:
        return max(float(self.snr(one[:1])), COARSEST)

    def _finest(self, one: Tensor) -> Tensor:
        """The one time, to the last bit, where the bound begins, (B,)."""
        return self._time(math.log(FINEST) * one[:1]).expand_as(one)

    def _time(self, log_snr: Tensor) -> Tensor:
        """(B,) float64, where log SNR (B,) is met, by bisection."""
        low, high = torch.zeros_like(log_snr), torch.ones_like(log_snr)
        for _ in range(52):
            middle = (low + high) / 2
            early = self.snr(middle).log() > log_snr
            low, high = torch.where(early, middle, low), torch.where(early, high, middle)
        return high


class VariancePreserving(Gaussian):
    """x_t = sqrt(alpha) x_0 + sqrt(1 - alpha) n: DDPM.

    The schedule's alpha is the share of *variance* left, the alphas_cumprod of diffusers; default SquaredCosine.
    ValueError where it leaves more than 1e-3 at t = 1.
    """

    def __init__(self, schedule: Schedule | None = None) -> None:
        self.schedule = reaching(schedule or SquaredCosine(), most=FORGOTTEN)

    def gain(self, t: Tensor) -> Tensor:
        return self.schedule.alpha(t).sqrt()

    def spread(self, t: Tensor) -> Tensor:
        return self.schedule.beta(t).sqrt()


class VarianceExploding(Gaussian):
    """x_t = x_0 + highest t^power n: the noise levels of Karras et al. (arXiv:2206.00364) with sigma_min = 0.

    ValueError for a power that is not positive, or a highest that does not bury data in [-1, 1].
    """

    def __init__(self, highest: float = 80.0, power: float = 7.0) -> None:
        if not check_number("highest", highest, above=0) ** -2 <= FORGOTTEN:
            raise ValueError(f"highest {highest} leaves images visible at t = 1; give {FORGOTTEN**-0.5:.3g} or more")
        if not check_number("power", power) > 0:
            raise ValueError(f"power {power} of the noise is not positive; 1 is linear in t")
        self.highest, self.power = highest, power

    def gain(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def spread(self, t: Tensor) -> Tensor:
        return self.highest * t**self.power


def blended(inferred: Tensor, fresh: Tensor, rho: float | Tensor) -> Tensor:
    """sqrt(1 - rho) inferred + sqrt(rho) fresh: of two normal noises one, a share rho of its variance new."""
    share = torch.as_tensor(rho, dtype=torch.float64, device=inferred.device)
    return (1 - share).sqrt().to(inferred.dtype) * inferred + share.sqrt().to(inferred.dtype) * fresh


def drawn_anew(at_t: tuple[Tensor, Tensor], at_s: tuple[Tensor, Tensor]) -> Tensor:
    """1 - SNR_t / SNR_s in [0, 1], from the size of signal and noise at either time."""
    (signal, noise), (signal_s, noise_s) = at_t, at_s
    return (1 - (signal * noise_s) ** 2 / (noise * signal_s) ** 2).clamp(0, 1)


def per_image(values: Tensor, like: Tensor) -> Tensor:
    """(B,) as (B, 1, 1, 1), in the dtype of `like`."""
    return values.view(-1, 1, 1, 1).to(like.dtype)
