"""How a causal model reads: the state, [END], then the words, in one sequence, each under the position it has in the text.

What it has read is kept (`prefix`), where the model can go on from it and a good part of the text comes before its first
gap: a state is then read from the first token on in which it differs from those read before. From a blank page words come
up everywhere, so that states soon differ, and nothing is kept.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from textdiff.denoiser.head import logits_at
from textdiff.denoiser.prefix import Grown, Prefixes, Text
from textdiff.denoiser.reader import Going, Reader, run_starts
from textdiff.tokens import Specials, Tokens

WORTH, LEAST = 0.125, 8  # of a text, and tokens of it; what is less costs more to keep than it saves (LOG.md)


class Events(NamedTuple):
    """What a model is fed after xt or beside it, in order, right-padded; every field (B, C).

    ids, position: fed, and where in its text. asked: bool, an answer is scored. column: of the state, that it is for.
    doc: -1 on padding. told: bool, it is fed after the state was read.
    """

    ids: Tensor
    position: Tensor
    asked: Tensor
    column: Tensor
    doc: Tensor
    told: Tensor


class Causal(Reader):
    """The state, [END], then the words, in one sequence. bidirectional: everything of the state sees all of it."""

    def __init__(self, prefixes: Prefixes, specials: Specials, bidirectional: bool) -> None:
        self.prefixes, self.specials, self.bidirectional = prefixes, specials, bidirectional
        self.model = prefixes.model

    def feed(self, x: Tokens, ids: Tensor) -> Tensor:
        return torch.where(x.ids == self.specials.gap, self.specials.gap, ids.roll(1, 1))

    def score(
        self, x: Tokens, fed: Tensor, where: Tensor, known: Tensor, lasting: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        events = self._lay(x, fed, where, known)
        text = _text(events)
        if lasting and self._remembers(x, text, 0):
            logits = self.prefixes.score(text, events.asked)
        else:
            logits = logits_at(
                self.model,
                events.asked,
                input_ids=events.ids,
                attention_mask=self._mask(events, x.packed),
                position_ids=events.position,
                use_cache=False,
            )
        return logits, events.asked.nonzero()[:, 0], events.column[events.asked]

    def begin(self, x: Tokens, room: int) -> Going:
        if x.packed:
            raise ValueError("packed documents are for training; give one text per row to fill")
        one, alike = x.distinct()
        x = x[one]
        never = torch.zeros_like(x.fixed)
        events = self._lay(x, x.ids, never, never)
        text = _text(events)
        if self._remembers(x, text, room):
            return self.prefixes.begin(text.of(alike), one, room)
        going = Grown(self.model, text, self._mask(events, packed=False) if self.bidirectional else None)
        going.keep(alike)
        return going

    def _remembers(self, x: Tokens, text: Text, room: int) -> bool:
        """Whether what is read is kept, and gone on from: not by whoever learns, nor where it would not pay.

        What the user wrote before the first gap is all that is sure to be read again.
        """
        if self.bidirectional or x.packed or self.model.training or torch.is_grad_enabled():
            return False
        sure, needed = x.fixed.long().cumprod(1).sum(), (WORTH * text.size.sum()).clamp_min(LEAST * len(x))
        return bool(sure >= needed) and self.prefixes.able(text.ids.shape[1] + room)

    def _lay(self, x: Tokens, fed: Tensor, where: Tensor, known: Tensor) -> Events:
        """Document by document, the state, [END], then what is fed for `where`.

        The token left of a `known` column, being read, answers for that column.
        """
        mask = x.ids == self.specials.mask
        column = torch.arange(x.ids.shape[1], device=x.ids.device).expand_as(x.ids)
        place = column - _first(x)
        runs_on = mask & ~run_starts(x, mask)
        gap = x.ids == self.specials.gap
        follows = x.joined() & known.roll(-1, 1) & ~mask & ~gap
        never = torch.zeros_like(where)
        parts = [
            (x.ids, place, x.valid & ~runs_on, follows, column + 1),
            (torch.full_like(x.ids, self.specials.end), place + 1, x.valid & ~x.joined(), never, column),
            (fed, torch.where(gap, place, place - 1), where, where, column),
        ]
        ids, position, live, asked, answers = (torch.cat(values, 1) for values in zip(*parts, strict=True))
        number = torch.arange(len(parts), device=ids.device).repeat_interleave(x.ids.shape[1]).expand_as(ids)
        doc = x.doc.repeat(1, len(parts)).masked_fill(~live, -1)
        order = (len(parts) * doc + number).masked_fill(~live, torch.iinfo(torch.int64).max)
        order = order.argsort(dim=1, stable=True)[:, : int(live.sum(1).max())]
        live, doc = live.gather(1, order), doc.gather(1, order)
        return Events(
            ids.gather(1, order).masked_fill(~live, self.specials.pad),
            position.gather(1, order).masked_fill(~live, 0),
            asked.gather(1, order) & live,
            answers.gather(1, order),
            doc,
            number.gather(1, order) == len(parts) - 1,
        )

    def _mask(self, events: Events, packed: bool) -> Tensor:
        """(B, N) where plain causality does, else an additive (B, 1, N, N)."""
        doc, told = events.doc, events.told
        if not (packed or self.bidirectional):
            return (doc >= 0).long()
        column = torch.arange(doc.shape[1], device=doc.device)
        sees = column[None, None, :] <= column[None, :, None]  # (1, query, key)
        if self.bidirectional:
            sees = sees | ~told[:, None, :]
            sees = sees & (told[:, :, None] | ~told[:, None, :])
        sees = sees & (doc[:, :, None] == doc[:, None, :])
        lowest = torch.finfo(self.model.dtype).min
        return torch.zeros(sees.shape, dtype=self.model.dtype, device=sees.device).masked_fill(~sees, lowest)[:, None]


def _text(events: Events) -> Text:
    return Text(events.ids, events.position, (events.doc >= 0).sum(1))


def _first(x: Tokens) -> Tensor:
    """(B, L) the column in which the document of each element begins."""
    column = torch.arange(x.ids.shape[1], device=x.ids.device).expand_as(x.ids)
    starts = torch.ones_like(x.fixed)
    starts[:, 1:] = x.doc[:, 1:] != x.doc[:, :-1]
    return column.masked_fill(~starts, 0).cummax(1).values
