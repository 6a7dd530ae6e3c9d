"""Degraded images: x_t = A_t x_0 + w_t n with A_t a blur, a pixelation, a mask of pixels (冷之扩散, kexue.fm archives 9271).

Without noise F_t is deterministic, and what x0_hat does not explain is kept as it is: n = x_t - A_t x0_hat gives
x_s = x_t + A_s x0_hat - A_t x0_hat, the Improved Sampling of Cold Diffusion (arXiv:2208.09392) as the `posterior` rule;
`fresh`, x_s = A_s x0_hat, is its Naive Sampling. A little noise, as Su advises, makes one out of many: an image cannot be
a function of its mean colour. With it `fresh` is the sampler of inverse heat dissipation (arXiv:2206.13397).

At t = 1 a blur and a pixelation leave the mean of each channel. So `prior` corrupts the images it is given: the caller
draws their grey.
"""

import math
from collections.abc import Iterator
from functools import cache

import torch
from torch import Tensor

from textdiff.images import Images
from textdiff.keys import Key
from textdiff.process.gaussian import Affine
from textdiff.validation import check_number


class Degradation(Affine):
    """What the cold processes share: w_t = 1. With noise w_0 = 0, so that x_0 is data; without, there is none to be 0."""

    def __init__(self, noise: float = 0.0) -> None:
        if check_number("noise", noise) < 0:
            raise ValueError(f"noise {noise} is not a standard deviation from 0 on; 0 is cold, 0.01 a little warmer")
        self.sigma = noise

    def spread(self, t: Tensor) -> Tensor:
        return (t > 0).to(t.dtype) if self.sigma else torch.ones_like(t)

    def probe(self, x0: Images, key: Key) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        raise ValueError(f"no bound on the likelihood is known under {type(self).__name__}; judge its samples instead")


class Blur(Degradation):
    """The heat equation: frequency f is damped by exp(-f^2 sigma_B^2 / 2), with mirrored edges (DCT).

    sigma_B is the blur's width in pixels, 0 at t = 0, on a logarithmic scale from about 1/2 to `highest`; at t = 1 the
    mean is left and nothing else. `highest` should be near the side of the image, or the last step is a jump.
    """

    def __init__(self, highest: float = 20.0, noise: float = 0.0) -> None:
        super().__init__(noise)
        if not check_number("highest", highest) > 0:
            raise ValueError(f"highest blur {highest} is not a positive width in pixels; give about the image's side")
        self.highest = highest

    def width(self, t: Tensor) -> Tensor:
        """sigma_B(t) in pixels."""
        start = 0.5
        return start * ((1 + self.highest / start) ** t - 1)

    def degrade(self, pixels: Tensor, t: Tensor) -> Tensor:
        blurred = heat(pixels, self.width(t))
        time = t.view(-1, 1, 1, 1)
        mean = pixels.mean((-2, -1), keepdim=True).expand_as(pixels)
        return torch.where(time == 0, pixels, torch.where(time == 1, mean, blurred))


class Pixelation(Degradation):
    """Blocks of pixels become their mean. The blocks grow by the prime factors of the sides, so they are nested.

    A side of 32 passes through blocks of 2, 4, ..., 32, one of 28 through 2, 4, 28, at equal distances in t.
    """

    def degrade(self, pixels: Tensor, t: Tensor) -> Tensor:
        blocks = levels(*pixels.shape[-2:])
        level = (t * len(blocks) - 1e-9).ceil().long().view(-1, 1, 1, 1)
        result = pixels
        for number, block in enumerate(blocks, 1):
            if bool((level == number).any()):
                result = torch.where(level == number, pixelated(pixels, *block), result)
        return result


class PixelMask(Degradation):
    """Pixels become 0, all channels at once, in an order that is always the same; at t a share t of them is gone."""

    def degrade(self, pixels: Tensor, t: Tensor) -> Tensor:
        height, width = pixels.shape[-2:]
        rank = Key.of(0, 1).uniform(height * width).argsort().argsort().view(1, 1, height, width).to(pixels.device)
        return pixels.masked_fill((rank + 0.5) / (height * width) < t.view(-1, 1, 1, 1), 0.0)


def heat(pixels: Tensor, width: Tensor) -> Tensor:
    """Pixels (B, C, H, W) blurred by a Gaussian of standard deviation `width` (B,) in pixels, mirrored at the edges."""
    rows, columns = (cosines(size).to(pixels) for size in pixels.shape[-2:])
    across, down = (
        torch.exp(-(frequencies(size).to(width) ** 2) * width[:, None] ** 2 / 2).to(pixels.dtype)
        for size in (pixels.shape[-1], pixels.shape[-2])
    )
    spectrum = rows @ pixels @ columns.T
    return rows.T @ (spectrum * down[:, None, :, None] * across[:, None, None, :]) @ columns


@cache
def cosines(size: int) -> Tensor:
    """(size, size) float64, the orthonormal DCT-II."""
    places = torch.arange(size, dtype=torch.float64) + 0.5
    matrix = torch.cos(frequencies(size)[:, None] * places) * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix


def frequencies(size: int) -> Tensor:
    """(size,) float64, in radians per pixel."""
    return math.pi * torch.arange(size, dtype=torch.float64) / size


def levels(height: int, width: int) -> list[tuple[int, int]]:
    """The blocks (h, w) of a pixelation in their order, the last the whole image."""
    down, across = _factors(height), _factors(width)
    count = max(len(down), len(across))
    return [(math.prod(down[:number]), math.prod(across[:number])) for number in range(1, count + 1)]


def _factors(number: int) -> list[int]:
    factors, prime = [], 2
    while number > 1:
        while number % prime == 0:
            factors.append(prime)
            number //= prime
        prime += 1
    return factors


def pixelated(pixels: Tensor, height: int, width: int) -> Tensor:
    """Every block of (height, width) pixels as its mean."""
    shape = (*pixels.shape[:2], pixels.shape[2] // height, height, pixels.shape[3] // width, width)
    blocks = pixels.reshape(shape)
    return blocks.mean((3, 5), keepdim=True).expand(shape).reshape(pixels.shape)
