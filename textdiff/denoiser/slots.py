"""What an autoregressive denoiser has to write: the contents of every open slot of xt, in order.

A slot is a [GAP], or a run of [MASK]. For each slot the model is fed the token left of it once more, then the slot's words
`w1 .. wn`, and answers `w1 .. wn [END]`; a run of masks has a known length and needs no [END].

Every word is given the position it would have in the text: a [GAP] is `width` positions wide, and its words count from its
own position. So a slot goes on from its left neighbour exactly as running text does, the local attention and the bigrams
that serve running text serve gaps, and nothing tells how long the gap was. (T5's sentinels and fill-in-the-middle are the
same idea with a token of its own, which has to learn from scratch what stood on its left.)
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from textdiff.posterior import Draw
from textdiff.tokens import Specials, Tokens

NO_LABEL = -100


@dataclass(frozen=True)
class Slots:
    """The open slots of xt, row by row; every field has shape (B, S), and slots beyond `count` (B,) are void."""

    column: Tensor  # where the slot begins in xt
    gap: Tensor  # bool: of unknown length
    length: Tensor  # number of masks; 0 for a gap
    opener: Tensor  # the token that is fed to open it
    position: Tensor  # of the opener: its words follow
    count: Tensor


def positions(xt: Tokens, specials: Specials, width: int) -> Tensor:
    """(B, L) position of every element of xt, counted from the start of its document."""
    column = torch.arange(xt.ids.shape[1], device=xt.ids.device).expand_as(xt.ids)
    gap = (xt.ids == specials.gap).long()
    place = column + width * (gap.cumsum(1) - gap)
    starts = torch.ones_like(gap, dtype=torch.bool)
    starts[:, 1:] = xt.doc[:, 1:] != xt.doc[:, :-1]
    return place - place.masked_fill(~starts, 0).cummax(1).values


def find_slots(xt: Tokens, specials: Specials, width: int) -> Slots:
    """The slots of xt in order."""
    gap, mask = xt.ids == specials.gap, xt.ids == specials.mask
    starts = gap | _run_starts(xt, mask)
    count = starts.sum(1)
    order = torch.argsort((~starts).long(), dim=1, stable=True)[:, : max(int(count.max()), 1)]
    run = _slot_number(starts)
    length = torch.zeros_like(order).scatter_add(1, (run - 1).clamp(0, order.shape[1] - 1), mask.long())
    opener, position = _openers(xt, specials, width)
    is_gap = gap.gather(1, order)
    length = length.masked_fill(is_gap, 0)
    return Slots(order, is_gap, length, opener.gather(1, order), position.gather(1, order), count)


def _openers(xt: Tokens, specials: Specials, width: int) -> tuple[Tensor, Tensor]:
    """For every column, the token that would open a slot there and its position: the left neighbour and its own."""
    left = torch.roll(xt.ids, 1, 1)
    marker = (left == specials.gap) | (
        left == specials.mask
    )  # of two slots that touch, the second has no neighbour yet
    return left.masked_fill(marker, specials.fill), positions(xt, specials, width) - 1


def _run_starts(xt: Tokens, mask: Tensor) -> Tensor:
    """The first mask of every run of masks of one document."""
    continues = torch.zeros_like(mask)
    continues[:, 1:] = mask[:, :-1] & (xt.doc[:, 1:] == xt.doc[:, :-1])
    return mask & ~continues


def _slot_number(starts: Tensor) -> Tensor:
    """(B, L) how many slots have begun, this column included."""
    return starts.long().cumsum(1)


@dataclass(frozen=True)
class Contents:
    """What is fed for the slots and what is asked back; every field (B, C), in order, right-padded.

    ids: fed. labels: asked back, NO_LABEL where nothing is. owner: the element of x0 that a label's log-probability is
    booked on. may_end: bool, [END] would be a possible answer. doc: -1 on padding. position: see above.
    seen: (B, L of xt) the element of x0 that stands at each column of xt, -1 where none does.
    """

    ids: Tensor
    labels: Tensor
    owner: Tensor
    may_end: Tensor
    doc: Tensor
    position: Tensor
    seen: Tensor


def contents(xt: Tokens, truth: Draw, specials: Specials, width: int) -> Contents:
    """Lay out the true contents of the slots of xt."""
    x0, place = truth.x0, truth.place
    gap, mask = xt.ids == specials.gap, xt.ids == specials.mask
    starts = gap | _run_starts(xt, mask)
    number = _slot_number(starts)  # of the slot an open column belongs to, from 1
    hidden = (gap | mask).gather(1, place) & x0.valid
    # one event per slot start (its opener) and one per hidden word, sorted by slot, then by place in x0
    far = x0.ids.shape[1] + 2
    order = torch.cat([number * far, number.gather(1, place) * far + 1 + _column(x0.ids)], 1)
    live = torch.cat([starts, hidden], 1)
    order = order.masked_fill(~live, torch.iinfo(torch.int64).max).argsort(1)
    order = order[:, : max(int(live.sum(1).max()), 1)]
    live = live.gather(1, order)
    opener, base = _openers(xt, specials, width)
    ids = torch.cat([opener, x0.ids], 1).gather(1, order)
    opens = order < xt.ids.shape[1]
    slot = torch.cat([number, number.gather(1, place)], 1).gather(1, order).masked_fill(~live, -1)
    doc = torch.cat([xt.doc, x0.doc], 1).gather(1, order).masked_fill(~live, -1)
    seen = _seen(xt, x0, place)
    left = torch.roll(seen, 1, 1).clamp_min(0)  # a slot is never first: BOS is
    owner = torch.cat([left, _column(x0.ids)], 1).gather(1, order)
    first = torch.zeros_like(base).scatter_add(1, (number - 1).clamp_min(0), base * starts)  # by slot number
    within = _column(ids) - _column(ids).masked_fill(~opens, 0).cummax(1).values
    is_gap = torch.zeros_like(base).scatter_add(1, (number - 1).clamp_min(0), (gap & starts).long()).bool()
    index = (slot - 1).clamp_min(0)
    in_gap = is_gap.gather(1, index) & (slot > 0)
    labels, booked = _answers(ids, slot, owner, in_gap, opens, specials.end)
    return Contents(ids, labels, booked, in_gap, doc, first.gather(1, index) + within, seen)


def _answers(
    ids: Tensor, slot: Tensor, owner: Tensor, in_gap: Tensor, opens: Tensor, end: int
) -> tuple[Tensor, Tensor]:
    """What each event must be answered with: the next word of its slot, or [END] after the last word of a gap."""
    more = torch.zeros_like(in_gap)
    more[:, :-1] = (slot[:, 1:] == slot[:, :-1]) & (slot[:, 1:] > 0)
    following = torch.roll(ids, -1, 1)
    ends = ~more & in_gap
    labels = torch.where(more, following, torch.where(ends, end, NO_LABEL))
    # [END] is booked on the token left of the gap, which the slot's opener stands for
    opener = _column(ids).masked_fill(~opens, 0).cummax(1).values
    return labels, torch.where(more, torch.roll(owner, -1, 1), owner.gather(1, opener))


def _seen(xt: Tokens, x0: Tokens, place: Tensor) -> Tensor:
    visible = x0.valid.long() * (_column(x0.ids) + 1)
    return torch.zeros_like(xt.ids).scatter_reduce(1, place, visible, "amax") - 1


def _column(values: Tensor) -> Tensor:
    return torch.arange(values.shape[1], device=values.device).expand_as(values)
