"""alpha(t): how much of the data is left at time t. alpha(0) = 1, alpha(1) = 0; beta = 1 - alpha is the corrupted share.

Time is float64 in [0, 1], 0 is data, 1 is noise. A schedule is a strictly decreasing function and its derivative, which
the weight of the likelihood bound needs (Shi et al., "Simplified and generalized masked diffusion", arXiv:2406.04329).
"""

import math
from abc import ABC, abstractmethod

from torch import Tensor


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

    def weight(self, t: Tensor) -> Tensor:
        """beta'(t) / beta(t), of -log q per masked token in the continuous-time bound. 1/t where alpha is linear."""
        return -self.slope(t) / self.beta(t)


class Linear(Schedule):
    """alpha = 1 - t."""

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def slope(self, t: Tensor) -> Tensor:
        return -t.new_ones(t.shape)


class Cosine(Schedule):
    """alpha = 1 - cos(pi/2 (1 - t)) = 1 - sin(pi/2 t).

    Few tokens are revealed early, when little is known (MaskGIT, arXiv:2202.04200).
    """

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - (math.pi / 2 * t).sin()

    def slope(self, t: Tensor) -> Tensor:
        return -math.pi / 2 * (math.pi / 2 * t).cos()


class Power(Schedule):
    """alpha = 1 - t ** power."""

    def __init__(self, power: float = 2.0) -> None:
        if power <= 0:
            raise ValueError(f"power {power} of a schedule is not positive; 1 is linear")
        self.power = power

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t**self.power

    def slope(self, t: Tensor) -> Tensor:
        return -self.power * t ** (self.power - 1)
