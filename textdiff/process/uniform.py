"""Uniform noise u_i per token, alone, shared by spans or dealt out as ranks: the eps of whatever decides token by token.

Each u_i is uniform on (0, 1) whatever the spans, so the corrupted share at time t is beta(t) for all of them; spans make
the corrupted tokens neighbours. A row draws its mean span length n from a list; between two neighbours of one text a new
span begins with probability 1/n (the spans of SpanBERT and T5, as noise). Spans end at the user's tokens.
As ranks, u_i = (random rank + 1/2) / n over the n free tokens of a row, so that exactly round(beta n) of them are below
beta: the "t of l tokens" of Su's text models (kexue.fm archives 9271). Ranks are tied together along a row.
Given which interval each u_i lies in, all of this has an exact posterior, which `infer` draws from.
"""

import itertools
import math

import torch
from torch import Tensor

from textdiff.keys import Key
from textdiff.schedule import Schedule
from textdiff.tokens import Tokens
from textdiff.validation import check_flag, check_items, check_number


class Uniform:
    """q(u) and q(u | u_i in [low_i, high_i))."""

    def __init__(self, spans: tuple[float, ...] = (1,), counts: bool = False) -> None:
        check_flag("counts", counts)
        lengths = [check_number("spans", length) for length in check_items("spans", spans, example="(1, 3)")]
        if not lengths or min(lengths) < 1:
            raise ValueError(f"mean span lengths {spans} must be numbers from 1 on; (1,) makes tokens independent")
        if counts and max(spans) > 1:
            raise ValueError(f"spans {tuple(spans)} cannot be counted; give counts=False, or spans (1,)")
        self.spans, self.counts = tuple(spans), counts

    @property
    def independent(self) -> bool:
        """Whether every token has a noise of its own."""
        return max(self.spans) == 1 and not self.counts

    def draw(self, x0: Tokens, key: Key) -> Tensor:
        """u (B, L) float64; 1, out of reach of every beta, on the user's tokens."""
        if self.counts:
            return _ranks(x0, torch.zeros_like(x0.ids), key.fold(2))
        if self.independent:
            return key.fold(2).uniform(x0.ids.shape[1]).masked_fill(x0.fixed, 1.0)
        choice = (key.fold(0).uniform(1) * len(self.spans)).long()
        rate = self._rates(x0).gather(1, choice)
        starts = ~_inner(x0) | (key.fold(1).uniform(x0.ids.shape[1]) < rate)
        return _carry(key.fold(2).uniform(x0.ids.shape[1]), starts).masked_fill(x0.fixed, 1.0)

    def infer(self, x0: Tokens, low: Tensor, high: Tensor, key: Key, eps: Tensor | None = None) -> Tensor:
        """u (B, L) given that u_i lies in [low_i, high_i) on every token that is not the user's.

        eps: (B, L) what u_i is known to be; of no account outside the interval. Of tokens tied together all are taken as
        known, or none. Ranks follow the order of the intervals: of hidden tokens, whatever their number, all the lowest.
        """
        if eps is None:
            return self._infer(x0, low, high, key)
        known = (eps >= low) & (eps < high)
        if not self.independent:
            known = (known | x0.fixed | ~x0.valid).all(1, keepdim=True) & (eps >= 0)
        unknown = ~known & x0.valid & ~x0.fixed
        drawn = self._infer(x0, low, high, key) if bool(unknown.any()) else eps
        return torch.where(known, eps, drawn).masked_fill(x0.fixed, 1.0)

    def _infer(self, x0: Tokens, low: Tensor, high: Tensor, key: Key) -> Tensor:
        if self.counts:
            return _ranks(x0, low, key.fold(2))
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

    def blend(self, inferred: Tensor, fresh: Tensor, rho: float | Tensor, key: Key) -> Tensor:
        """Redraw a share rho: of the tokens where they are independent, of the rows where something ties them together."""
        count = inferred.shape[1] if self.independent else 1
        return torch.where(key.uniform(count) < rho, fresh, inferred)

    def rank(self, u: Tensor, hidden: Tensor, score: Tensor, lane: Tensor | None = None) -> Tensor:
        """The hidden tokens' noises, the largest (revealed first) to the largest score; of lower lanes before others."""
        order = score.double().masked_fill(~hidden, -torch.inf).argsort(dim=1, descending=True, stable=True)
        if lane is not None:
            last = lane.masked_fill(~hidden, torch.iinfo(torch.int64).max).gather(1, order)
            order = order.gather(1, last.argsort(dim=1, stable=True))
        largest = u.masked_fill(~hidden, -1.0).sort(1, descending=True).values
        return torch.where(hidden, torch.zeros_like(u).scatter(1, order, largest), u)

    def deal(self, u: Tensor, x0: Tokens, hide: Tensor, beta: Tensor, key: Key) -> Tensor:
        """u, drawn anew wherever it is on the wrong side of beta (B, 1) for just the tokens `hide` (B, L) to be below."""
        share = key.uniform(u.shape[1])
        new = torch.where(hide, share * beta, beta + share * (1 - beta))
        return torch.where((u < beta) == hide, u, new).masked_fill(x0.fixed, 1.0)

    def moment(self, u: Tensor, hidden: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
        """(B,) when the first of the hidden tokens is revealed, by their noises u (B, L); t where one is unknown (< 0)."""
        unknown = (hidden & (u < 0)).any(1)
        return torch.where(unknown, t, schedule.reach(u.masked_fill(~hidden, 0.0).amax(1).clamp_min(0.0)))

    def count(self, x0: Tokens, beta: Tensor) -> Tensor:
        """(B,) how many ranks of each row are below beta (B, 1): round(beta n), a half as float64 has it."""
        size = (x0.valid & ~x0.fixed).sum(1, keepdim=True)
        column = torch.arange(x0.ids.shape[1], device=x0.ids.device)
        return (((column.double() + 0.5) / size < beta) & (column < size)).sum(1)

    def chance(self, hidden: Tensor, beta: float) -> Tensor:
        """(M,) the probability that just the tokens `hidden` (M, n) bool, of the n of a row, are below beta."""
        if self.counts:
            size, number = hidden.shape[1], hidden.sum(1)
            below = sum((rank + 0.5) / size < beta for rank in range(size))
            return (number == below).double() / math.comb(size, below)
        if not self.independent:
            raise ValueError(f"spans {self.spans} cannot be enumerated; use independent tokens")
        return either(hidden, beta, 1 - beta).prod(1)

    def cells(self, x0: Tokens, beta: float) -> tuple[Tensor, Tensor]:
        """Both sides of beta for every token of a single row that is not the user's (M, L), with their probability (M,)."""
        free = (x0.valid & ~x0.fixed)[0]
        hidden = sides(int(free.sum()))
        chance = self.chance(hidden, beta)
        u = torch.ones(len(hidden), len(free), dtype=torch.float64)
        u[:, free] = either(hidden, beta / 2, (1 + beta) / 2)
        return (u[chance > 0], chance[chance > 0]) if self.counts else (u, chance)

    def _rates(self, x0: Tokens) -> Tensor:
        rates = 1 / torch.tensor(self.spans, dtype=torch.float64, device=x0.ids.device)
        return rates.expand(len(x0), -1)


def sides(count: int) -> Tensor:
    """(2 ** count, count) bool, every choice of yes and no."""
    return torch.tensor(list(itertools.product((True, False), repeat=count)), dtype=torch.bool).view(2**count, count)


def either(flag: Tensor, yes: float, no: float) -> Tensor:
    """`torch.where` of two numbers, in float64, where torch itself would take float32."""
    return torch.where(flag, torch.tensor(yes, dtype=torch.float64), torch.tensor(no, dtype=torch.float64))


def shuffled(chosen: Tensor, key: Key) -> Tensor:
    """(B, L) int64 random ranks 0, 1, ... of the chosen tokens of each row; the others come after them."""
    order = key.uniform(chosen.shape[1]).masked_fill(~chosen, 2.0).argsort(1)
    column = torch.arange(chosen.shape[1], device=chosen.device).expand_as(order)
    return torch.empty_like(order).scatter(1, order, column)


def _ranks(x0: Tokens, low: Tensor, key: Key) -> Tensor:
    """(rank + 1/2) / n of the free tokens, those with the least `low` (B, L) first, in random order among equals."""
    free = x0.valid & ~x0.fixed
    first = shuffled(free, key).argsort(1)
    edges = low.expand_as(x0.ids).double().masked_fill(~free, torch.inf)
    order = first.gather(1, edges.gather(1, first).argsort(dim=1, stable=True))
    column = torch.arange(order.shape[1], device=order.device).expand_as(order)
    rank = torch.empty_like(order).scatter(1, order, column)
    return torch.where(free, (rank.double() + 0.5) / free.sum(1, keepdim=True), 1.0)


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
