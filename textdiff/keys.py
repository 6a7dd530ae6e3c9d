"""Counter-based randomness: u = hash(seed, sample, step, index), with no state to carry.

Every random number of the library is a pure function of *what it is for*, so noise does not depend on batch size,
padding, number of processes, device, or on where a run was interrupted. The hash is the finaliser of SplitMix64
(Steele, Lea, Flood: "Fast splittable pseudorandom number generators", OOPSLA 2014), in wrapping int64 arithmetic.
"""

import math
from functools import cached_property

import torch
from torch import Tensor


def _int64(value: int) -> int:
    """The same 64 bits, read as a signed integer."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


_GOLDEN = _int64(0x9E3779B97F4A7C15)
_MIX_1 = _int64(0xBF58476D1CE4E5B9)
_MIX_2 = _int64(0x94D049BB133111EB)


# In place from the first temporary on: memory is what these cost.
def _shift(z: Tensor, bits: int) -> Tensor:
    return (z >> bits).bitwise_and_((1 << (64 - bits)) - 1)  # torch shifts signed integers arithmetically


def _mix(z: Tensor) -> Tensor:
    z = _shift(z, 30).bitwise_xor_(z).mul_(_MIX_1)
    z = _shift(z, 27).bitwise_xor_(z).mul_(_MIX_2)
    return _shift(z, 31).bitwise_xor_(z)


class Key:
    """B independent random streams, one per row of a batch.

    A key is never used up: drawing twice from one key gives the same numbers. `fold` derives the keys of the
    separate uses, like `jax.random.fold_in`; what is never drawn from costs nothing.
    """

    def __init__(self, state: Tensor) -> None:
        self._state = state

    @property
    def state(self) -> Tensor:
        """(B,) int64."""
        return self._state

    @classmethod
    def of(cls, seed: int, samples: int | Tensor) -> "Key":
        """Keys of the given sample numbers (B,), or of samples 0..B-1, under one seed."""
        numbers = torch.arange(samples) if isinstance(samples, int) else samples.to(torch.int64)
        return cls(_mix(numbers * _GOLDEN + _int64(seed * 0xD1342543DE82EF95 + 1)))

    def fold(self, number: int | Tensor) -> "Key":
        """The keys of use `number` (a step, a role) of these rows, or of a use (B,) int64 of each."""
        return _Folded(self, number)

    def uniform(self, count: int) -> Tensor:
        """(B, count) float64 in the open interval (0, 1); column i is the same whatever `count` is."""
        counter = torch.arange(1, count + 1, device=self.state.device) * _GOLDEN
        bits = _mix(_mix(self.state[:, None] + counter))
        return _shift(bits, 12).double().add_(0.5).mul_(2.0**-52)  # with one bit more, the largest would round up to 1

    def normal(self, count: int) -> Tensor:
        """(B, count) float64 standard normal, by inverting the distribution function."""
        return math.sqrt(2) * torch.erfinv(2 * self.uniform(count) - 1)

    def to(self, device: torch.device | str) -> "Key":
        """The same keys on another device."""
        return Key(self.state.to(device))

    def __getitem__(self, rows: Tensor) -> "Key":
        return Key(self.state[rows])

    def __len__(self) -> int:
        return len(self.state)


class _Folded(Key):
    """The key of one use, made when it is first drawn from."""

    def __init__(self, whole: Key, number: int | Tensor) -> None:
        self.whole, self.number = whole, number

    @cached_property
    def _state(self) -> Tensor:  # type: ignore[override]
        number = self.number
        use = (number + 1) * _GOLDEN if isinstance(number, Tensor) else _int64((number + 1) * 0x9E3779B97F4A7C15)
        return _mix(self.whole.state ^ use) + _GOLDEN

    def __len__(self) -> int:
        return len(self.whole)
