"""Autoregressive q(x0 | xt): a stock language model reads xt, then writes the words of its gaps, in order.

    q(words | xt) = prod_i q(w_i | xt, w_<i)

Lengths are drawn first (see `lengths`): at t = 1 that is plain language modelling, exact in one step.
Causal models read xt and go on writing in the same sequence, each word under the position it has in the text: for the word
w_i they are fed w_(i-1) at i - 1, whether it was given or just written. So a gap goes on from its left neighbour exactly as
running text does, and its right neighbour is as far away as it really is. A gap of any known length is a single [MASK] to
read, and [END] stands where the text ends.
Encoder-decoder models read xt with the encoder, and [FILL] opens every gap, as T5's sentinels do.
"""

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from textdiff.denoiser.base import Denoiser
from textdiff.denoiser.head import logits_at, piece
from textdiff.denoiser.lengths import LengthFirst, possible
from textdiff.denoiser.words import one_by_one, own
from textdiff.drawing import draw_tokens
from textdiff.posterior import Decode, Posterior
from textdiff.tokens import Specials, Tokens

NEAR, BREVITY = 3, 0.1  # words after a gap, and a filling's sum beside its mean: what fillings are compared by (LOG.md)


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


class Reader(ABC):
    """How a family of models reads."""

    @abstractmethod
    def score(self, x: Tokens, fed: Tensor, where: Tensor, known: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (S, V) for the columns `where` (B, L), fed `fed` (B, L) for each, and for those of the visible columns
        `known` that come for free; the row and column (S,) that each is for."""

    @abstractmethod
    def feed(self, x: Tokens, ids: Tensor) -> Tensor:
        """(B, L) what is fed to hear the answer for each column, where the text is `ids` (B, L)."""

    @abstractmethod
    def begin(self, x: Tokens) -> Any:
        """Read x; returns what `advance` needs."""

    @abstractmethod
    def advance(self, memory: Any, ids: Tensor, position: Tensor) -> Tensor:
        """Feed one token per row (B,) at its position (B,): logits (B, V)."""


class Autoregressive(Denoiser):
    """Any `AutoModelForSeq2SeqLM`, or any `AutoModelForCausalLM`. It is not told t.

    context: while training, a causal model also learns xt itself, -log q(xt) with this weight, from the same forward: on a
        small corpus that is most of what it learns the language from. 0 trains the gaps alone.
    bidirectional: a causal model sees the whole of xt from everywhere in xt (a prefix-LM proper); context must be 0 then.
    """

    timeless = joint = True

    def __init__(self, model: Any, specials: Specials, context: float = 1.0, bidirectional: bool = False) -> None:
        super().__init__()
        if bidirectional and context:
            raise ValueError(f"context {context} would train a bidirectional reader on what it sees; set it to 0")
        self.model, self.specials = model, specials
        self.context, self.bidirectional = context, bidirectional

    @property
    def reader(self) -> Reader:
        """The way this model reads."""
        if self.model.config.is_encoder_decoder:
            return _EncoderDecoder(self.model, self.specials)
        return _Causal(self.model, self.specials, self.bidirectional)

    @property
    def longest(self) -> int | None:
        limit = super().longest
        return limit if limit is None or self.model.config.is_encoder_decoder else limit - 1  # [END] follows the text

    def fluency(self, x0: Tokens) -> Tensor:
        """log p of the three words after each gap, in the text as it is now (learned if trained with `context`): what comes
        later says more of the text. Of each stretch written the mean, with a tenth of the sum (alone it prefers short ones).
        """
        if self.model.config.is_encoder_decoder or self.bidirectional:
            return super().fluency(x0)
        one, alike = x0.distinct()  # of many candidates some are equal
        x0 = x0[one]
        written = x0.valid & ~x0.fixed
        known = written | _soon(x0, written | x0.valid & ~x0.sealed)  # an empty filling is seen at the word before it
        last = max(known.any(0).nonzero()[:, 0].tolist(), default=0)  # what comes later is not read
        read = torch.arange(last + 1, device=alike.device)
        x0, known = x0.take(read.expand(len(x0), -1), self.specials.pad), known[:, read]
        rows = max(1, 2 * piece(self.model, alike.device) // max(1, int(known.sum(1).max())))
        parts = torch.arange(len(x0), device=alike.device).split(rows)
        return torch.cat([self._fluency(x0[part], known[part]) for part in parts])[alike]

    def _fluency(self, x0: Tokens, known: Tensor) -> Tensor:
        logits, row, column = self.reader.score(x0, self.reader.feed(x0, x0.ids), torch.zeros_like(known), known)
        logits = possible(logits, torch.zeros_like(row, dtype=torch.bool), self.specials)
        written = x0.valid & ~x0.fixed
        weight = torch.where(written, 1 / _run_sizes(x0, written) + BREVITY, 1.0)
        score = own(logits, x0.ids[row, column]) * weight[row, column]
        return torch.zeros(len(x0), dtype=score.dtype, device=score.device).index_add(0, row, score)

    def forward(self, xt: Tokens, t: Tensor) -> Posterior:
        if bool((xt.doubtful | xt.surplus).any()):
            raise ValueError(
                "an autoregressive denoiser writes gaps and masks, it does not correct words; replacement and edits need "
                "the parallel denoiser"
            )
        return _AutoregressivePosterior(self, xt)


class _AutoregressivePosterior(LengthFirst):
    def __init__(self, denoiser: Autoregressive, xt: Tokens) -> None:
        super().__init__(xt, denoiser.specials)
        self.denoiser, self.reader = denoiser, denoiser.reader

    def ask(self, x: Tokens, where: Tensor) -> Tensor:
        one, alike = x.distinct()  # of one text filled many times the lengths are asked for once
        x, asked = x[one], where[one]
        logits = self.reader.score(x, self.reader.feed(x, x.ids), asked, torch.zeros_like(asked))[0]
        number = torch.zeros_like(x.ids).masked_scatter(asked, torch.arange(len(logits)).to(x.ids))
        return logits[number[alike][where]]

    def write(self, x: Tokens, mask: Tensor, decode: Decode, u: Tensor) -> tuple[Tensor, Tensor]:
        """Every row writes its masks, one a turn; rows that are done leave."""
        count = mask.sum(1)
        rows = count.nonzero()[:, 0]
        order = torch.argsort((~mask).long(), dim=1, stable=True)[:, : int(count.max())]
        ids, sure = x.ids.clone(), torch.zeros(mask.shape, device=mask.device)
        one, alike = x[rows].distinct()
        memory = self.reader.begin(x[rows[one]])
        _keep(memory, alike)
        for turn in range(order.shape[1]):
            left = (count[rows] > turn).nonzero()[:, 0]
            if len(left) <= len(rows) // 2:  # else it costs as much as it saves
                _keep(memory, left)
                rows = rows[left]
            column, now, live = order[rows, turn], x[rows], count[rows] > turn
            here = torch.arange(len(rows), device=rows.device)
            fed = self.reader.feed(now, ids[rows])[here, column]
            logits = self.reader.advance(memory, fed, (column - 1).clamp_min(0))
            logits = possible(logits, torch.zeros_like(live), self.specials)
            scores = one_by_one(now, ids[rows], mask[rows], column, live, logits, decode, self.specials.pad)
            word, score = draw_tokens(scores, u[rows, column], decode)
            score = score if scores is logits else own(logits, word).float()
            ids[rows[live], column[live]], sure[rows[live], column[live]] = word[live], score[live]
        return ids[mask], sure[mask]

    def answer(self, states: Tokens, where: Tensor, truth: Tensor) -> Tensor:
        """Of the open places; a causal model in training adds what it says of the visible text (see `context`)."""
        weight = self.denoiser.context if self.denoiser.training else 0.0
        read = torch.where(where & (states.ids == self.specials.mask), truth, states.ids)
        whole = ~(states.ids == self.specials.gap).any(1, keepdim=True)  # a state with gaps is read for lengths alone
        known = states.joined().roll(1, 1) & whole & ~where & (weight > 0)
        logits, row, column = self.reader.score(states, self.reader.feed(states, read), where, known)
        gap = states.ids[row, column] == self.specials.gap
        logits = possible(logits, gap, self.specials).float()
        right = torch.where(gap, truth[row, column], read[row, column])
        score = logits.log_softmax(-1).gather(1, right[:, None])[:, 0]
        score = score * torch.where(where[row, column], 1.0, weight)
        return torch.zeros(where.shape, device=score.device).index_put((row, column), score)


def _keep(memory: dict[str, Any], rows: Tensor) -> None:
    """Go on with these rows of what was read, some of them several times perhaps."""
    held = len(memory["attention_mask"])
    if len(rows) == held and bool((rows == torch.arange(held, device=rows.device)).all()):
        return
    memory["attention_mask"] = memory["attention_mask"][rows]
    if memory["past_key_values"] is not None:
        memory["past_key_values"].reorder_cache(rows)
    if "encoder_outputs" in memory:
        read = memory["encoder_outputs"]
        read.last_hidden_state = read.last_hidden_state[rows]


class _EncoderDecoder(Reader):
    """The encoder reads the state; the decoder is fed the words. T5, BART and their kin, with positions of their own."""

    def __init__(self, model: Any, specials: Specials) -> None:
        self.model, self.specials = model, specials

    def feed(self, x: Tokens, ids: Tensor) -> Tensor:
        begins = _run_starts(x, x.ids == self.specials.mask)
        fed = torch.where(begins, self.specials.fill, ids.roll(1, 1))
        return torch.where(x.ids == self.specials.gap, self.specials.gap, fed)

    def score(self, x: Tokens, fed: Tensor, where: Tensor, known: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        _refuse_packing(x)
        order = torch.argsort((~where).long(), dim=1, stable=True)[:, : max(int(where.sum(1).max()), 1)]
        asked = where.gather(1, order)
        ids = fed.gather(1, order).masked_fill(~asked, self.specials.pad)
        inputs = {"input_ids": x.ids, "attention_mask": x.valid.long(), "decoder_input_ids": ids, "use_cache": False}
        return logits_at(self.model, asked, **inputs), asked.nonzero()[:, 0], order[asked]

    def begin(self, x: Tokens) -> dict[str, Any]:
        _refuse_packing(x)
        mask = x.valid.long()
        read = self.model.get_encoder()(input_ids=x.ids, attention_mask=mask)
        return {"encoder_outputs": read, "attention_mask": mask, "past_key_values": None}

    def advance(self, memory: dict[str, Any], ids: Tensor, position: Tensor) -> Tensor:
        output = self.model(**memory, decoder_input_ids=ids[:, None], use_cache=True)
        memory["past_key_values"] = output.past_key_values
        return output.logits[:, -1]


def _refuse_packing(x: Tokens) -> None:
    if x.packed:
        raise ValueError("an encoder-decoder reads one document per row; set data.packed to false")


class _Causal(Reader):
    """The state, [END], then the words, in one sequence."""

    def __init__(self, model: Any, specials: Specials, bidirectional: bool) -> None:
        self.model, self.specials, self.bidirectional = model, specials, bidirectional

    def feed(self, x: Tokens, ids: Tensor) -> Tensor:
        return torch.where(x.ids == self.specials.gap, self.specials.gap, ids.roll(1, 1))

    def score(self, x: Tokens, fed: Tensor, where: Tensor, known: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        events = self._lay(x, fed, where, known)
        logits = logits_at(
            self.model,
            events.asked,
            input_ids=events.ids,
            attention_mask=self._mask(events, x.packed),
            position_ids=events.position,
            use_cache=False,
        )
        return logits, events.asked.nonzero()[:, 0], events.column[events.asked]

    def _lay(self, x: Tokens, fed: Tensor, where: Tensor, known: Tensor) -> Events:
        """Document by document, the state, [END], then what is fed for `where`.

        The token left of a `known` column, being read, answers for that column.
        """
        mask = x.ids == self.specials.mask
        column = torch.arange(x.ids.shape[1], device=x.ids.device).expand_as(x.ids)
        place = column - _first(x)
        runs_on = mask & ~_run_starts(x, mask)
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

    def begin(self, x: Tokens) -> dict[str, Any]:
        if x.packed:
            raise ValueError("packed documents are for training; give one text per row to fill")
        never = torch.zeros_like(x.fixed)
        # padding goes to the left: what is written follows the text, for windows and recurrent states as well
        events = _to_the_right(self._lay(x, x.ids, never, never))
        mask = self._mask(events, packed=False)
        read = self.model.base_model(
            input_ids=events.ids, attention_mask=mask, position_ids=events.position, use_cache=True
        )
        return {"past_key_values": read.past_key_values, "attention_mask": (events.doc >= 0).long()}

    def advance(self, memory: dict[str, Any], ids: Tensor, position: Tensor) -> Tensor:
        memory["attention_mask"] = torch.cat([memory["attention_mask"], torch.ones_like(ids)[:, None]], 1)
        output = self.model(**memory, input_ids=ids[:, None], position_ids=position[:, None], use_cache=True)
        memory["past_key_values"] = output.past_key_values
        return output.logits[:, -1]


def _to_the_right(events: Events) -> Events:
    """The same events, left-padded."""
    order = torch.argsort((events.doc >= 0).long(), dim=1, stable=True)
    return Events(*(field.gather(1, order) for field in events))


def _run_starts(x: Tokens, mask: Tensor) -> Tensor:
    """The first mask of every run of masks of one document."""
    continues = torch.zeros_like(mask)
    continues[:, 1:] = mask[:, :-1] & (x.doc[:, 1:] == x.doc[:, :-1])
    return mask & ~continues


def _run_sizes(x: Tokens, mask: Tensor) -> Tensor:
    """(B, L) how many elements the run of `mask` has that each belongs to; 1 outside of runs."""
    number = _run_starts(x, mask).long().cumsum(1) * mask
    sizes = torch.zeros_like(number).scatter_add(1, number, torch.ones_like(number))
    return sizes.gather(1, number).masked_fill(~mask, 1)


def _soon(x: Tokens, gap: Tensor) -> Tensor:
    """(B, L) the user's words that are among the NEAR after an element of `gap` (B, L)."""
    soon, joined = torch.zeros_like(gap), x.joined()
    for _ in range(NEAR):
        gap = (gap & joined).roll(1, 1)
        soon |= gap
    return soon & x.fixed


def _first(x: Tokens) -> Tensor:
    """(B, L) the column in which the document of each element begins."""
    column = torch.arange(x.ids.shape[1], device=x.ids.device).expand_as(x.ids)
    starts = torch.ones_like(x.fixed)
    starts[:, 1:] = x.doc[:, 1:] != x.doc[:, :-1]
    return column.masked_fill(~starts, 0).cummax(1).values
