"""alpha(t): how much of the data is left at time t. alpha(0) = 1, alpha(1) = 0; beta = 1 - alpha is the corrupted share.

Time is float64 in [0, 1], 0 is data, 1 is noise. A schedule is a strictly decreasing function and its derivative, which
the weight of the likelihood bound needs (Shi et al., "Simplified and generalized masked diffusion", arXiv:2406.04329).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from textdiff.validation import check_items, check_number


class Schedule(ABC):
    """A decreasing alpha: [0, 1] -> [0, 1]."""

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """The share left at time t, same shape as t."""

    @abstractmethod
    def slope(self, t: Tensor) -> Tensor:
        """d alpha / dt, not positive."""

    def beta(self, t: Tensor) -> Tensor:
        """The share corrupted at time t."""
        return 1 - self.alpha(t)

    def reach(self, share: Tensor) -> Tensor:
        """The latest times (B,) at which no more than these shares (B,) are corrupted: beta(t) <= share."""
        t = self.inverse(share)
        return torch.where(self.beta(t) <= share, t, t * (1 - 1e-12))  # whatever rounding made of it

    def inverse(self, share: Tensor) -> Tensor:
        """The times (B,) with beta(t) = share (B,), here by bisection."""
        low, high = torch.zeros_like(share), torch.ones_like(share)
        for _ in range(64):
            middle = (low + high) / 2
            early = self.beta(middle) <= share
            low, high = torch.where(early, middle, low), torch.where(early, high, middle)
        return low

    def weight(self, t: Tensor) -> Tensor:
        """beta'(t) / beta(t), of -log q per masked token in the continuous-time bound. 1/t where alpha is linear."""
        return -self.slope(t) / self.beta(t)


class Linear(Schedule):
    """alpha = 1 - t."""

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def slope(self, t: Tensor) -> Tensor:
        return -t.new_ones(t.shape)

    def inverse(self, share: Tensor) -> Tensor:
        return share


class Cosine(Schedule):
    """alpha = 1 - cos(pi/2 (1 - t)) = 1 - sin(pi/2 t).

    Few tokens are revealed early, when little is known (MaskGIT, arXiv:2202.04200).
    """

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - (math.pi / 2 * t).sin()

    def slope(self, t: Tensor) -> Tensor:
        return -math.pi / 2 * (math.pi / 2 * t).cos()

    def inverse(self, share: Tensor) -> Tensor:
        return share.asin() * 2 / math.pi


class Power(Schedule):
    """alpha = 1 - t ** power. A tensor of powers (B,) gives every text of a batch a schedule of its own."""

    def __init__(self, power: float | Tensor = 2.0) -> None:
        numbers = power if isinstance(power, Tensor) else torch.tensor(check_number("power", power))
        if not bool(((numbers > 0) & numbers.isfinite()).all()):
            raise ValueError(f"power {power} of a schedule is not positive; 1 is linear")
        self.power = power

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t**self.power

    def slope(self, t: Tensor) -> Tensor:
        return -self.power * t ** (self.power - 1)

    def inverse(self, share: Tensor) -> Tensor:
        return share ** (1 / self.power)


class SquaredCosine(Schedule):
    """alpha = cos(pi/2 (t + offset) / (1 + offset)) ** 2, made 1 at t = 0: the cosine schedule of a Gaussian's variance.

    Nichol and Dhariwal, "Improved denoising diffusion probabilistic models", arXiv:2102.09672.
    """

    def __init__(self, offset: float = 0.008) -> None:
        self.offset = check_number("offset", offset, least=0)
        self._first = math.cos(math.pi / 2 * offset / (1 + offset)) ** 2

    def alpha(self, t: Tensor) -> Tensor:
        alpha = self._angle(t).cos() ** 2 / self._first
        return alpha.masked_fill(t == 0, 1.0).masked_fill(t == 1, 0.0)  # whatever rounding makes of the ends

    def slope(self, t: Tensor) -> Tensor:
        return -math.pi / 2 / (1 + self.offset) * (2 * self._angle(t)).sin() / self._first

    def _angle(self, t: Tensor) -> Tensor:
        return math.pi / 2 * (t + self.offset) / (1 + self.offset)


class Betas(Schedule):
    """alpha = exp(-(lowest t + (highest - lowest) t^2 / 2)): DDPM's linear betas in continuous time.

    Ho et al., arXiv:2006.11239, as the VP-SDE of Song et al., arXiv:2011.13456. It ends at 4e-5, close to 0.
    """

    def __init__(self, lowest: float = 0.1, highest: float = 20.0) -> None:
        self.lowest, self.highest = check_number("lowest", lowest, least=0), check_number("highest", highest, above=0)

    def alpha(self, t: Tensor) -> Tensor:
        return (-(self.lowest * t + (self.highest - self.lowest) * t**2 / 2)).exp()

    def slope(self, t: Tensor) -> Tensor:
        return -(self.lowest + (self.highest - self.lowest) * t) * self.alpha(t)


class Steps(Schedule):
    """alpha given at t = 0, 1/T, ..., 1 (T + 1 decreasing values, the first 1), linear in between: discrete time."""

    def __init__(self, values: Sequence[float]) -> None:
        numbers = [check_number("values", value) for value in check_items("values", values, example="[1, 0.5, 0]")]
        self.values = torch.tensor(numbers, dtype=torch.float64)
        if len(numbers) < 2 or numbers[0] != 1 or not bool((self.values.diff() < 0).all()):
            raise ValueError(f"the values of a schedule must fall, from 1 on; these begin with {numbers[:3]}")

    def alpha(self, t: Tensor) -> Tensor:
        left, share, values = self._place(t)
        return values[left] + share * (values[left + 1] - values[left])

    def slope(self, t: Tensor) -> Tensor:
        left, _, values = self._place(t)
        return (values[left + 1] - values[left]) * (len(values) - 1)

    def _place(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        steps = len(self.values) - 1
        left = (t * steps + 1e-9).floor().long().clamp(0, steps - 1)  # 3/10 * 10 is just below 3
        return left, t * steps - left, self.values.to(t.device)


def reaching(schedule: Schedule, most: float = 0.0) -> Schedule:
    """The schedule, or a ValueError where more than `most` of the data is left at t = 1: then the prior is not the end."""
    left = float(schedule.alpha(torch.ones(1, dtype=torch.float64)).max())
    if not left <= most + 1e-12:
        raise ValueError(
            f"schedule {type(schedule).__name__} leaves {left:.3g} of the data at t = 1, so that its end is not the prior "
            f"that sampling starts from; at most {most:.3g} may be left"
        )
    return schedule
