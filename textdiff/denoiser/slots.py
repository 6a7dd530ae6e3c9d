"""What an autoregressive denoiser has to write: the contents of every open slot of xt, in order.

A slot is a [GAP], or a run of [MASK]. The model is fed `[FILL] w1 .. wn` for each slot and answers `w1 .. wn [END]`; a run
of masks has a known length and needs no [END]. This is T5's sentinel format with one sentinel, and fill-in-the-middle.

Every word is given the position it would have in the text: a [GAP] is `width` positions wide, and its words count from its
own position. So the words of a gap stand between their neighbours for rotary or learned positions alike, the local
attention that serves running text serves gaps, and nothing tells how long the gap was.
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
    position: Tensor  # of the [FILL] that opens it
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
    fill = (positions(xt, specials, width) - mask.long()).gather(1, order)
    is_gap = gap.gather(1, order)
    return Slots(order, is_gap, length.masked_fill(is_gap, 0), fill, count)


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
    # one event per slot start ([FILL]) and one per hidden word, sorted by slot, then by place in x0
    far = x0.ids.shape[1] + 2
    order = torch.cat([number * far, number.gather(1, place) * far + 1 + _column(x0.ids)], 1)
    live = torch.cat([starts, hidden], 1)
    order = order.masked_fill(~live, torch.iinfo(torch.int64).max).argsort(1)
    order = order[:, : max(int(live.sum(1).max()), 1)]
    live = live.gather(1, order)
    ids = torch.cat([torch.full_like(xt.ids, specials.fill), x0.ids], 1).gather(1, order)
    slot = torch.cat([number, number.gather(1, place)], 1).gather(1, order).masked_fill(~live, -1)
    doc = torch.cat([xt.doc, x0.doc], 1).gather(1, order).masked_fill(~live, -1)
    seen = _seen(xt, x0, place)
    left = torch.roll(seen, 1, 1).clamp_min(0)  # a slot is never first: BOS is
    owner = torch.cat([left, _column(x0.ids)], 1).gather(1, order)
    base = positions(xt, specials, width) - mask.long()
    first = torch.zeros_like(base).scatter_add(1, (number - 1).clamp_min(0), base * starts)  # by slot number
    within = _column(ids) - _column(ids).masked_fill(ids != specials.fill, 0).cummax(1).values
    is_gap = torch.zeros_like(base).scatter_add(1, (number - 1).clamp_min(0), (gap & starts).long()).bool()
    index = (slot - 1).clamp_min(0)
    in_gap = is_gap.gather(1, index) & (slot > 0)
    labels, booked = _answers(ids, slot, owner, in_gap, specials)
    return Contents(ids, labels, booked, in_gap, doc, first.gather(1, index) + within, seen)


def _answers(ids: Tensor, slot: Tensor, owner: Tensor, in_gap: Tensor, specials: Specials) -> tuple[Tensor, Tensor]:
    """What each event must be answered with: the next word of its slot, or [END] after the last word of a gap."""
    more = torch.zeros_like(in_gap)
    more[:, :-1] = (slot[:, 1:] == slot[:, :-1]) & (slot[:, 1:] > 0)
    following = torch.roll(ids, -1, 1)
    ends = ~more & in_gap
    labels = torch.where(more, following, torch.where(ends, specials.end, NO_LABEL))
    # [END] is booked on the token left of the gap, which the [FILL] that opened the slot knows
    opener = _column(ids).masked_fill(ids != specials.fill, 0).cummax(1).values
    return labels, torch.where(more, torch.roll(owner, -1, 1), owner.gather(1, opener))


def _seen(xt: Tokens, x0: Tokens, place: Tensor) -> Tensor:
    visible = x0.valid.long() * (_column(x0.ids) + 1)
    return torch.zeros_like(xt.ids).scatter_reduce(1, place, visible, "amax") - 1


def _column(values: Tensor) -> Tensor:
    return torch.arange(values.shape[1], device=values.device).expand_as(values)
