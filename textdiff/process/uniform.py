"""Uniform noise u_i per token, alone or shared by spans: the eps of every process that decides token by token.

Each u_i is uniform on (0, 1) whatever the spans, so the corrupted share at time t is beta(t) for all of them; spans make
the corrupted tokens neighbours. A row draws its mean span length n from a list; between two neighbours of one text a new
span begins with probability 1/n (the spans of SpanBERT and T5, as noise). Spans end at the user's tokens.
Given which interval each u_i lies in, all of this has an exact posterior, which `infer` draws from.
"""

import itertools
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from textdiff.keys import Key
from textdiff.tokens import Tokens


class Uniform:
    """q(u) and q(u | u_i in [low_i, high_i))."""

    def __init__(self, spans: tuple[float, ...] = (1,)) -> None:
        if not spans or min(spans) < 1:
            raise ValueError(f"mean span lengths {spans} must be numbers from 1 on; (1,) makes tokens independent")
        self.spans = tuple(spans)

    @property
    def independent(self) -> bool:
        """Whether every token has a noise of its own."""
        return max(self.spans) == 1

    def draw(self, x0: Tokens, key: Key) -> Tensor:
        """u (B, L) float64; 1, out of reach of every beta, on the user's tokens."""
        if self.independent:
            return key.fold(2).uniform(x0.ids.shape[1]).masked_fill(x0.fixed, 1.0)
        choice = (key.fold(0).uniform(1) * len(self.spans)).long()
        rate = self._rates(x0).gather(1, choice)
        starts = ~_inner(x0) | (key.fold(1).uniform(x0.ids.shape[1]) < rate)
        return _carry(key.fold(2).uniform(x0.ids.shape[1]), starts).masked_fill(x0.fixed, 1.0)

    def infer(self, x0: Tokens, low: Tensor, high: Tensor, key: Key) -> Tensor:
        """u (B, L) given that u_i lies in [low_i, high_i) on every token that is not the user's."""
        if self.independent:
            share = key.fold(2).uniform(x0.ids.shape[1])
            return (low + share * (high - low)).masked_fill(x0.fixed, 1.0)
        inner, width = _inner(x0), (high - low).clamp_min(1e-300)
        same = inner & (low == _before(low)) & (high == _before(high))
        rates = self._rates(x0)[:, None, :]  # (B, 1, spans)
        # a neighbour in the same interval: same span, or a new one that fell there too; in another: a new one
        joint = torch.where(same[..., None], 1 - rates + rates * width[..., None], rates * width[..., None])
        evidence = (joint.log() * inner[..., None]).sum(1)  # (B, spans)
        cdf = evidence.softmax(-1).cumsum(-1)
        choice = (cdf < key.fold(0).uniform(1)).sum(-1, keepdim=True).clamp_max(len(self.spans) - 1)
        rate = self._rates(x0).gather(1, choice)
        new = rate * width / (1 - rate + rate * width)
        starts = ~same | (key.fold(1).uniform(x0.ids.shape[1]) < new)
        share = _carry(key.fold(2).uniform(x0.ids.shape[1]), starts)
        return (low + share * (high - low)).masked_fill(x0.fixed, 1.0)

    def blend(self, inferred: Tensor, fresh: Tensor, rho: float, key: Key) -> Tensor:
        """Redraw a share rho: of the tokens where they are independent, of the rows where spans tie them together."""
        count = inferred.shape[1] if self.independent else 1
        return torch.where(key.uniform(count) < rho, fresh, inferred)

    def rank(self, u: Tensor, hidden: Tensor, confidence: Tensor) -> Tensor:
        """The hidden tokens' noises, the largest (revealed first) to the most confident."""
        order = confidence.double().masked_fill(~hidden, -torch.inf).argsort(dim=1, descending=True, stable=True)
        largest = u.masked_fill(~hidden, -1.0).sort(1, descending=True).values
        return torch.where(hidden, torch.zeros_like(u).scatter(1, order, largest), u)

    def cells(self, x0: Tokens, beta: float) -> Iterator[tuple[Tensor, float]]:
        """Both sides of beta for every token of a single row that is not the user's, with their probability."""
        if not self.independent:
            raise ValueError(f"spans {self.spans} cannot be enumerated; use independent tokens")
        free = (x0.valid & ~x0.fixed)[0].nonzero()[:, 0].tolist()
        for sides in itertools.product((True, False), repeat=len(free)):
            u = torch.ones(x0.ids.shape, dtype=torch.float64)
            for column, hidden in zip(free, sides, strict=True):
                u[0, column] = beta / 2 if hidden else (1 + beta) / 2
            yield u, math.prod(beta if hidden else 1 - beta for hidden in sides)

    def _rates(self, x0: Tokens) -> Tensor:
        rates = 1 / torch.tensor(self.spans, dtype=torch.float64, device=x0.ids.device)
        return rates.expand(len(x0), -1)


def _before(values: Tensor) -> Tensor:
    """The left neighbour's value; a token's own at the left edge."""
    return torch.cat([values[:, :1], values[:, :-1]], 1)


def _inner(x0: Tokens) -> Tensor:
    """(B, L) bool: this token and its left neighbour are of one text, and neither is the user's."""
    follows = torch.zeros_like(x0.fixed)
    follows[:, 1:] = x0.joined()[:, :-1] & ~x0.fixed[:, 1:] & ~x0.fixed[:, :-1]
    return follows


def _carry(values: Tensor, starts: Tensor) -> Tensor:
    """The value at the last start, carried along its span."""
    column = torch.arange(values.shape[1], device=values.device).expand_as(values)
    return values.gather(1, column.masked_fill(~starts, 0).cummax(1).values)
