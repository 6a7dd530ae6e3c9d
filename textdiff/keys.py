"""Counter-based randomness: u = hash(seed, sample, step, index), with no state to carry.

Every random number of the library is a pure function of *what it is for*, so noise does not depend on batch size,
padding, number of processes, device, or on where a run was interrupted. The hash is the finaliser of SplitMix64
(Steele, Lea, Flood: "Fast splittable pseudorandom number generators", OOPSLA 2014), in wrapping arithmetic on the host: of a
turn's operations a good part are these, on few numbers, and NumPy is several times quicker there than torch.
"""

import math
from collections.abc import Callable
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1, _MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_30, _27, _31, _12 = (np.uint64(bits) for bits in (30, 27, 31, 12))

Bits = Any  # an array of uint64


def _mix(z: Bits) -> Bits:
    z = z ^ z >> _30
    z *= _MIX_1
    z ^= z >> _27
    z *= _MIX_2
    z ^= z >> _31
    return z


def _wrapped(value: int) -> Bits:
    """The last 64 bits of a number."""
    return np.uint64(value & (1 << 64) - 1)


def _bits(numbers: Tensor) -> Bits:
    """Numbers int64 as bits. Never what is written to: it may be their memory."""
    return numbers.detach().cpu().numpy().view(np.uint64)


class Key:
    """B independent random streams, one per row of a batch, whose numbers come to a `device`.

    A key is never used up: drawing twice from one key gives the same numbers. `fold` derives the keys of the
    separate uses, like `jax.random.fold_in`; what is never drawn from costs nothing.
    """

    def __init__(self, state: Tensor) -> None:
        self._make: Callable[[], Bits] = partial(_bits, state)
        self.rows, self.device = len(state), state.device

    @classmethod
    def _later(cls, make: Callable[[], Bits], rows: int, device: torch.device) -> "Key":
        """Keys whose bits are made when they are first drawn from."""
        key = cls.__new__(cls)
        key._make, key.rows, key.device = make, rows, device
        return key

    @cached_property
    def bits(self) -> Bits:
        """(B,) uint64."""
        return self._make()

    @classmethod
    def of(cls, seed: int, samples: int | Tensor) -> "Key":
        """Keys of the given sample numbers (B,), or of samples 0..B-1, under one seed."""
        numbers = torch.arange(samples) if isinstance(samples, int) else samples.to(torch.int64)
        bits = _mix(_bits(numbers) * _wrapped(_GOLDEN) + _wrapped(seed * 0xD1342543DE82EF95 + 1))
        return cls._later(lambda: bits, len(bits), numbers.device)

    @property
    def state(self) -> Tensor:
        """(B,) int64."""
        return torch.from_numpy(self.bits.view(np.int64).copy()).to(self.device)

    def fold(self, number: int | Tensor) -> "Key":
        """The keys of use `number` (a step, a role) of these rows, or of a use (B,) int64 of each."""
        return Key._later(partial(_folded, self, number), self.rows, self.device)

    def uniform(self, count: int) -> Tensor:
        """(B, count) float64 in the open interval (0, 1); column i is the same whatever `count` is."""
        counter = np.arange(1, count + 1, dtype=np.uint64) * _wrapped(_GOLDEN)
        u = (_mix(_mix(self.bits[:, None] + counter)) >> _12).astype(np.float64)
        u += 0.5
        u *= 2.0**-52  # with one bit more, the largest would round up to 1
        return torch.from_numpy(u).to(self.device)

    def normal(self, count: int) -> Tensor:
        """(B, count) float64 standard normal, by inverting the distribution function."""
        return math.sqrt(2) * torch.erfinv(2 * self.uniform(count) - 1)

    def to(self, device: torch.device | str) -> "Key":
        """The same keys, for numbers on another device."""
        return Key._later(lambda: self.bits, self.rows, torch.device(device))

    def __getitem__(self, rows: Tensor | slice) -> "Key":
        bits = self.bits[rows.cpu().numpy() if isinstance(rows, Tensor) else rows]
        return Key._later(lambda: bits, len(bits), self.device)

    def __len__(self) -> int:
        return self.rows


def _folded(key: Key, number: int | Tensor) -> Bits:
    if isinstance(number, Tensor):
        use = (_bits(number) + np.uint64(1)) * _wrapped(_GOLDEN)
    else:
        use = _wrapped((number + 1) * _GOLDEN)
    return _mix(key.bits ^ use) + _wrapped(_GOLDEN)
