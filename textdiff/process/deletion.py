"""Deletion with gap markers: a token is dropped where u_i < beta(t); one [GAP] stands where text may be missing.

Every run of dropped tokens leaves one marker, and an empty place shows one, too, where a noise e < gamma(t) says so: the
model has to learn that nothing may belong there. gamma(1) = 1, so every text, the empty one included, ends as one [GAP] at
t = 1: the prior is a single point and no length has to be guessed beforehand. Tokens whose place is known (`counted`)
are masked instead, so that one state may hold gaps of known and of unknown length.

The truth's alignment is known from the noise, and a model that fills gaps knows its own; given it, the posterior of the
noise is the interval that each token's state implies (Su's F_t of archives 9262, which names deletion and leaves it open).
"""

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from textdiff.keys import Key
from textdiff.posterior import Draw
from textdiff.process.base import Process
from textdiff.process.uniform import Uniform
from textdiff.schedule import Linear, Schedule
from textdiff.tokens import Specials, Tokens, repeat


class DeletionNoise(NamedTuple):
    """u (B, L): when each token goes. e (B, L): when a marker appears after it though nothing is missing there."""

    u: Tensor
    e: Tensor


class Deletion(Process):
    """Delete tokens, leave gap markers.

    spans: as in `Masking`. empty: the power in gamma = beta ** empty; the larger, the rarer empty gaps.
    staged: delete at t = 1 alone, and mask before (delete-then-mask). In reverse the lengths of gaps are drawn in the first
    step and their words in all steps, which is how a parallel denoiser fills best.
    """

    def __init__(
        self,
        specials: Specials,
        schedule: Schedule | None = None,
        spans: tuple[float, ...] = (1,),
        empty: float = 16.0,
        staged: bool = False,
    ) -> None:
        self.specials = specials
        self.schedule = schedule or Linear()
        self.uniform = Uniform(spans)
        self.empty, self.staged = empty, staged

    def noise(self, x0: Tokens, key: Key) -> DeletionNoise:
        e = key.fold(1).uniform(x0.ids.shape[1]).masked_fill(x0.sealed, 1.0)
        return DeletionNoise(self.uniform.draw(x0, key.fold(0)), e)

    def corrupt(self, x0: Tokens, noise: DeletionNoise, t: Tensor) -> Tokens:
        counts, masked = self._counts(x0, noise, t)
        x0 = x0.with_(ids=x0.ids.masked_fill(masked, self.specials.mask), score=x0.score.masked_fill(masked, 0.0))
        index = repeat(counts)
        marker = torch.zeros_like(index, dtype=torch.bool)
        marker[:, 1:] = (index[:, 1:] == index[:, :-1]) & (index[:, 1:] >= 0)  # the second copy of a token
        xt = x0.take(index, self.specials.pad)
        return xt.with_(
            ids=xt.ids.masked_fill(marker, self.specials.gap),
            fixed=xt.fixed & ~marker,
            counted=xt.counted & ~marker,
            sealed=xt.sealed & ~marker,
            score=xt.score.masked_fill(marker, 0.0),
        )

    def align(self, x0: Tokens, noise: DeletionNoise, t: Tensor) -> Draw:
        counts, _ = self._counts(x0, noise, t)
        end = counts.cumsum(1)
        # a kept token is at its first copy; a dropped one belongs to the last element before it, the marker
        place = torch.where(counts > 0, end - counts, end - 1).clamp_min(0)
        return Draw(x0, place, x0.score)

    def infer(self, xt: Tokens, draw: Draw, t: Tensor, key: Key) -> DeletionNoise:
        x0, place, beta = draw.x0, draw.place, self.schedule.beta(t)[:, None]
        seen = xt.ids.gather(1, place)
        gone = (seen == self.specials.gap) & x0.valid
        hidden = gone | (seen == self.specials.mask)
        u = self.uniform.infer(x0, torch.where(hidden, 0.0, beta), torch.where(hidden, beta, 1.0), key.fold(0))
        marked = _next(xt.ids == self.specials.gap, xt.joined()).gather(1, place)
        silent = gone | _next(gone, x0.joined())  # inside a run of missing tokens e shows nothing
        gamma = self._gamma(t)
        low = torch.where(silent | marked, 0.0, gamma)
        high = torch.where(marked & ~silent, gamma, 1.0)
        e = low + key.fold(1).uniform(x0.ids.shape[1]) * (high - low)
        return DeletionNoise(u, e.masked_fill(x0.sealed, 1.0))

    def blend(self, inferred: DeletionNoise, fresh: DeletionNoise, rho: float, key: Key) -> DeletionNoise:
        if not self.uniform.independent:  # spans: the whole row, u and e together, is redrawn or kept
            pick = key.uniform(1) < rho
            return DeletionNoise(*(torch.where(pick, new, old) for new, old in zip(fresh, inferred, strict=True)))
        e = torch.where(key.fold(1).uniform(inferred.e.shape[1]) < rho, fresh.e, inferred.e)
        return DeletionNoise(self.uniform.blend(inferred.u, fresh.u, rho, key.fold(0)), e)

    def rank(self, noise: DeletionNoise, xt: Tokens, draw: Draw) -> DeletionNoise:
        seen = xt.ids.gather(1, draw.place)
        hidden = ((seen == self.specials.gap) | (seen == self.specials.mask)) & ~draw.x0.fixed & draw.x0.valid
        return noise._replace(u=self.uniform.rank(noise.u, hidden, draw.log_prob))

    def size(self, x0: Tokens) -> Tensor:
        return x0.sizes

    def cells(self, x0: Tokens, t: Tensor) -> Iterator[tuple[DeletionNoise, float]]:
        beta, gamma = float(self.schedule.beta(t)), float(self._gamma(t))
        places = (x0.valid & ~x0.sealed)[0].nonzero()[:, 0].tolist()
        for u, chance in self.uniform.cells(x0, beta):
            for shown in itertools.product((True, False), repeat=len(places)):
                e = torch.ones_like(u)
                for column, marker in zip(places, shown, strict=True):
                    e[0, column] = gamma / 2 if marker else (1 + gamma) / 2
                yield DeletionNoise(u, e), chance * math.prod(gamma if marker else 1 - gamma for marker in shown)

    def _counts(self, x0: Tokens, noise: DeletionNoise, t: Tensor) -> tuple[Tensor, Tensor]:
        """How many elements each token leaves (0 dropped, 1 kept, 2 kept with a marker after it); which are masked."""
        beta = self.schedule.beta(t)[:, None]
        hidden = (noise.u < beta) & x0.valid
        gone = hidden & ~x0.counted & (t == 1)[:, None] if self.staged else hidden & ~x0.counted
        kept = x0.valid & ~gone
        empty = ~x0.sealed & (noise.e < self._gamma(t))
        marker = kept & (_next(gone, x0.joined()) | empty)
        return kept.long() + marker.long(), hidden & ~gone

    def _gamma(self, t: Tensor) -> Tensor:
        """(B, 1) how probable a marker is at a place where nothing is missing."""
        beta = self.schedule.beta(t)[:, None]
        return (t == 1)[:, None].double() if self.staged else beta**self.empty


def _next(flag: Tensor, joined: Tensor) -> Tensor:
    """Whether the next token, of the same text, has the flag."""
    result = torch.zeros_like(flag)
    result[:, :-1] = flag[:, 1:]
    return result & joined
