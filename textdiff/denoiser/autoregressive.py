"""Autoregressive q(x0 | xt): a stock language model reads xt and writes the contents of its slots, in order.

    q(x0 | xt) = prod_slots prod_i q(w_i | xt, earlier slots, w_<i)

A joint law over everything that is missing, of any length; at t = 1 it is plain language modelling, and its likelihood in
one step is exact. Causal models read xt and then write (a prefix language model, fill-in-the-middle); encoder-decoder
models read xt with the encoder.
"""

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from textdiff.denoiser.base import Denoiser
from textdiff.denoiser.head import logits_at
from textdiff.denoiser.slots import NO_LABEL, Contents, Slots, contents, find_slots, positions
from textdiff.keys import Key
from textdiff.posterior import Decode, Draw, Posterior, draw_tokens
from textdiff.tokens import Specials, Tokens, repeat


class Lesson(NamedTuple):
    """Logits (S, V) of every scored position, the label (S,), its row and element of x0 (S,), its weight, may it end."""

    logits: Tensor
    label: Tensor
    row: Tensor
    owner: Tensor
    weight: Tensor
    may_end: Tensor


class Reader(ABC):
    """How a family of models reads xt and is fed the contents."""

    @abstractmethod
    def teach(self, xt: Tokens, told: Contents, context: float) -> Lesson:
        """Score the contents; and xt itself, weighted by `context`, where the family can."""

    @abstractmethod
    def begin(self, xt: Tokens) -> Any:
        """Read xt; returns what `advance` needs."""

    @abstractmethod
    def advance(self, memory: Any, ids: Tensor, position: Tensor) -> Tensor:
        """Feed one token per row (B,) at its position (B,): logits (B, V)."""


class Autoregressive(Denoiser):
    """Any `AutoModelForSeq2SeqLM`, or any `AutoModelForCausalLM`. It is not told t.

    width: how many positions a gap takes up (see `slots`).
    context: while training, a causal model also learns xt itself, -log q(xt) with this weight, from the same forward: on a
        small corpus that is most of what it learns the language from. 0 trains the contents alone.
    bidirectional: a causal model sees the whole of xt from everywhere in xt (a prefix-LM proper); context must be 0 then.
    """

    def __init__(
        self, model: Any, specials: Specials, width: int = 16, context: float = 1.0, bidirectional: bool = False
    ) -> None:
        super().__init__()
        if bidirectional and context:
            raise ValueError(f"context {context} would train a bidirectional reader on what it sees; set it to 0")
        self.model, self.specials = model, specials
        self.width, self.context, self.bidirectional = width, context, bidirectional

    @property
    def reader(self) -> Reader:
        """The way this model reads."""
        if self.model.config.is_encoder_decoder:
            return _EncoderDecoder(self.model, self.specials)
        return _Causal(self.model, self.specials, self.width, self.bidirectional)

    def forward(self, xt: Tokens, t: Tensor) -> Posterior:
        return _AutoregressivePosterior(self, xt)


class _AutoregressivePosterior(Posterior):
    def __init__(self, denoiser: Autoregressive, xt: Tokens) -> None:
        self.denoiser, self.specials, self.xt = denoiser, denoiser.specials, xt

    def log_prob(self, truth: Draw) -> Tensor:
        """Of the contents; a causal model in training adds what it says of xt itself (see `context`)."""
        told = contents(self.xt, truth, self.specials, self.denoiser.width)
        context = self.denoiser.context if self.denoiser.training else 0.0
        lesson = self.denoiser.reader.teach(self.xt, told, context)
        logits = self._allowed(lesson.logits, lesson.may_end)
        score = logits.float().log_softmax(-1).gather(1, lesson.label[:, None])[:, 0] * lesson.weight
        result = torch.zeros(truth.x0.ids.shape, device=score.device)
        return result.index_put((lesson.row, lesson.owner), score, accumulate=True)

    def sample(self, decode: Decode, key: Key) -> Draw:
        slots = find_slots(self.xt, self.specials, self.denoiser.width)
        words, scores, row, slot = self._write(slots, decode, key)
        counts = self.xt.valid.long()
        gap = self.xt.ids == self.specials.gap
        written = torch.zeros_like(slots.column).index_put((row, slot), torch.ones_like(row), accumulate=True)
        counts = torch.where(gap, torch.zeros_like(counts).scatter(1, slots.column, written * slots.gap), counts)
        index = repeat(counts)
        x0, place = self.xt.take(index, self.specials.pad), index.clamp_min(0)
        open_ = ((x0.ids == self.specials.gap) | (x0.ids == self.specials.mask)) & x0.valid
        confidence = torch.zeros(open_.shape, device=open_.device).masked_scatter(open_, scores)
        x0 = x0.with_(ids=x0.ids.masked_scatter(open_, words), score=torch.where(open_, confidence, x0.score))
        return Draw(x0, place, confidence)

    def _write(self, slots: Slots, decode: Decode, key: Key) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Every row writes its slots, one token a turn. The words, their scores, rows and slots, in row-major order."""
        rows = torch.arange(len(self.xt), device=self.xt.ids.device)
        slot, within = torch.zeros_like(rows), torch.zeros_like(rows)
        feed = slots.opener[:, 0]
        reader, turn, log = self.denoiser.reader, 0, []
        live = slot < slots.count
        room = decode.room(self.xt.valid.sum(1))
        memory = reader.begin(self.xt) if bool(live.any()) else None
        while bool(live.any()):
            at = slot.clamp_max(slots.column.shape[1] - 1)
            gap, length = slots.gap[rows, at], slots.length[rows, at]
            logits = reader.advance(memory, feed, slots.position[rows, at] + within)
            u = key.fold(turn).uniform(1)[:, 0]
            full = gap & ((within >= decode.max_gap) | (room <= 0))
            word, score = draw_tokens(self._allowed(logits, gap), u, decode)
            word = torch.where(full, self.specials.end, word)
            done = torch.where(gap, word == self.specials.end, within == length)
            wrote = live & ~done
            room = room - (wrote & gap).long()
            log.append((wrote, word, score, at))
            slot, within = slot + (live & done), torch.where(done, 0, within + 1)
            feed = torch.where(done, slots.opener[rows, slot.clamp_max(slots.opener.shape[1] - 1)], word)
            live, turn = slot < slots.count, turn + 1
        if not log:
            empty = torch.zeros(0, dtype=torch.long, device=rows.device)
            return empty, empty.float(), empty, empty
        wrote, word, score, at = (torch.stack(part, 1) for part in zip(*log, strict=True))
        return word[wrote], score[wrote], wrote.nonzero()[:, 0], at[wrote]

    def _allowed(self, logits: Tensor, may_end: Tensor) -> Tensor:
        """Logits (S, V) without what is no word, and with [END] only where a gap may end (S,)."""
        end, banned = self.specials.end, torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
        banned[[id for id in self.specials.not_text if id != end]] = True
        logits = logits.masked_fill(banned, -torch.inf)
        # one column in place, where a (S, V) mask would cost as much as the head itself
        logits[:, end] = logits[:, end].masked_fill(~may_end, -torch.inf)
        return logits


class _EncoderDecoder(Reader):
    """The encoder reads xt; the decoder is fed the contents. T5, BART and their kin, with positions of their own."""

    def __init__(self, model: Any, specials: Specials) -> None:
        self.model, self.specials = model, specials

    def teach(self, xt: Tokens, told: Contents, context: float) -> Lesson:
        _refuse_packing(xt)
        where = told.labels != NO_LABEL
        fed = told.ids.masked_fill(told.doc < 0, self.specials.pad)
        inputs = {"input_ids": xt.ids, "attention_mask": xt.valid.long(), "decoder_input_ids": fed, "use_cache": False}
        logits = logits_at(self.model, where, **inputs)
        label = told.labels[where]
        return Lesson(
            logits, label, where.nonzero()[:, 0], told.owner[where], torch.ones_like(label), told.may_end[where]
        )

    def begin(self, xt: Tokens) -> dict[str, Any]:
        _refuse_packing(xt)
        mask = xt.valid.long()
        read = self.model.get_encoder()(input_ids=xt.ids, attention_mask=mask)
        return {"encoder_outputs": read, "attention_mask": mask, "past_key_values": None}

    def advance(self, memory: dict[str, Any], ids: Tensor, position: Tensor) -> Tensor:
        output = self.model(**memory, decoder_input_ids=ids[:, None], use_cache=True)
        memory["past_key_values"] = output.past_key_values
        return output.logits[:, -1]


def _refuse_packing(xt: Tokens) -> None:
    if xt.packed:
        raise ValueError("an encoder-decoder reads one document per row; set data.packed to false")


class _Causal(Reader):
    """xt, then the contents, in one sequence."""

    def __init__(self, model: Any, specials: Specials, width: int, bidirectional: bool) -> None:
        self.model, self.specials, self.width, self.bidirectional = model, specials, width, bidirectional

    def teach(self, xt: Tokens, told: Contents, context: float) -> Lesson:
        lead = xt.ids.shape[1]
        doc = torch.cat([xt.doc, told.doc], 1)
        told_part = (torch.arange(doc.shape[1], device=doc.device) >= lead).expand_as(doc)
        # document by document, xt before its contents, padding last
        order = (2 * doc + told_part).masked_fill(doc < 0, torch.iinfo(torch.int64).max).argsort(dim=1, stable=True)
        order = order[:, : int((doc >= 0).sum(1).max())]
        label, owner = self._context(xt, told, context)

        def lay(first: Tensor, second: Tensor) -> Tensor:
            return torch.cat([first, second], 1).gather(1, order)

        ids, labels = lay(xt.ids, told.ids), lay(label, told.labels)
        owners, ends = lay(owner, told.owner), lay(torch.zeros_like(xt.fixed), told.may_end)
        doc, told_part = doc.gather(1, order), told_part.gather(1, order)
        where = labels != NO_LABEL
        logits = logits_at(
            self.model,
            where,
            input_ids=ids.masked_fill(doc < 0, self.specials.pad),
            attention_mask=self._mask(doc, told_part, xt.packed),
            position_ids=lay(positions(xt, self.specials, self.width), told.position),
            use_cache=False,
        )
        weight = torch.where(told_part[where], 1.0, context)
        return Lesson(logits, labels[where], where.nonzero()[:, 0], owners[where], weight, ends[where])

    def _context(self, xt: Tokens, told: Contents, context: float) -> tuple[Tensor, Tensor]:
        """The next token of xt as a label of every column, booked on itself; nothing where it is a marker."""
        following = torch.roll(xt.ids, -1, 1)
        marker = (following == self.specials.gap) | (following == self.specials.mask)
        known = xt.joined() & ~marker & (context > 0)
        return following.masked_fill(~known, NO_LABEL), torch.roll(told.seen, -1, 1).clamp_min(0)

    def _mask(self, doc: Tensor, told_part: Tensor, packed: bool) -> Tensor:
        """(B, N) where plain causality does, else an additive (B, 1, N, N)."""
        if not (packed or self.bidirectional):
            return (doc >= 0).long()
        column = torch.arange(doc.shape[1], device=doc.device)
        sees = column[None, None, :] <= column[None, :, None]  # (1, query, key)
        if self.bidirectional:
            sees = sees | ~told_part[:, None, :]
            sees = sees & (told_part[:, :, None] | ~told_part[:, None, :])
        return self._bias(sees & (doc[:, :, None] == doc[:, None, :]))

    def _bias(self, sees: Tensor) -> Tensor:
        lowest = torch.finfo(self.model.dtype).min
        return torch.zeros(sees.shape, dtype=self.model.dtype, device=sees.device).masked_fill(~sees, lowest)[:, None]

    def begin(self, xt: Tokens) -> dict[str, Any]:
        if xt.packed:
            raise ValueError("packed documents are for training; give one text per row to fill")
        mask = xt.valid.long()
        shown = mask
        if self.bidirectional:
            shown = self._bias(xt.valid[:, None, :].expand(-1, xt.ids.shape[1], -1))
        place = positions(xt, self.specials, self.width)
        read = self.model.base_model(input_ids=xt.ids, attention_mask=shown, position_ids=place, use_cache=True)
        return {"past_key_values": read.past_key_values, "attention_mask": mask}

    def advance(self, memory: dict[str, Any], ids: Tensor, position: Tensor) -> Tensor:
        memory["attention_mask"] = torch.cat([memory["attention_mask"], torch.ones_like(ids)[:, None]], 1)
        output = self.model(**memory, input_ids=ids[:, None], position_ids=position[:, None], use_cache=True)
        memory["past_key_values"] = output.past_key_values
        return output.logits[:, -1]
