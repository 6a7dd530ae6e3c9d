"""Autoregressive q(x0 | xt): a stock language model reads xt, then writes the words of its gaps, in order.

    q(words | xt) = prod_i q(w_i | xt, w_<i)

Lengths are drawn first (see `lengths`): at t = 1 that is plain language modelling, exact in one step.
Causal models read xt and go on writing in the same sequence, each word under the position it has in the text: for the word
w_i they are fed w_(i-1) at i - 1, whether it was given or just written. So a gap goes on from its left neighbour exactly as
running text does, and its right neighbour is as far away as it really is. A gap of any known length is a single [MASK] to
read, and [END] stands where the text ends.
Encoder-decoder models read xt with the encoder, and [FILL] opens every gap, as T5's sentinels do.
"""

import copy
import math
from typing import Any

import torch
from torch import Tensor

from textdiff.constraints import Unsatisfiable
from textdiff.denoiser.base import Denoiser
from textdiff.denoiser.causal import Causal
from textdiff.denoiser.deadline import shortened
from textdiff.denoiser.head import logits_at, piece
from textdiff.denoiser.lengths import LengthFirst, possible
from textdiff.denoiser.memory import cache_name
from textdiff.denoiser.prefix import Prefixes
from textdiff.denoiser.reader import Going, Reader, everyone, run_starts
from textdiff.denoiser.words import another, broken, one_by_one, own
from textdiff.drawing import draw_tokens
from textdiff.keys import Key
from textdiff.posterior import Decode, Draw, Posterior
from textdiff.tokens import Specials, Tokens

NEAR, BREVITY = 3, 0.1  # words after a gap, and a filling's sum beside its mean: what fillings are compared by (LOG.md)


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
        self.prefixes = Prefixes(model)

    def train(self, mode: bool = True) -> "Autoregressive":
        """As for any module; what was read with the old weights is forgotten."""
        self.prefixes.forget()
        super().train(mode)
        return self

    def session(self) -> "Autoregressive":
        """See `Denoiser.session`: what it has read is its own."""
        other = copy.copy(self)
        other.prefixes = Prefixes(self.model)
        return other

    @property
    def reader(self) -> Reader:
        """The way this model reads."""
        if self.model.config.is_encoder_decoder:
            return _EncoderDecoder(self.model, self.specials)
        return Causal(self.prefixes, self.specials, self.bidirectional)

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
        logits, row, column = self.reader.score(
            x0, self.reader.feed(x0, x0.ids), torch.zeros_like(known), known, lasting=True
        )
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
        self.late = torch.zeros_like(xt.fixed)  # of the texts last written, what the deadline left no time for

    def ask(self, x: Tokens, where: Tensor) -> Tensor:
        one, alike = x.distinct()  # of one text filled many times the lengths are asked for once
        x, asked = x[one], where[one]
        logits = self.reader.score(x, self.reader.feed(x, x.ids), asked, torch.zeros_like(asked), lasting=True)[0]
        number = torch.zeros_like(x.ids).masked_scatter(asked, torch.arange(len(logits)).to(x.ids))
        return logits[number[alike][where]]

    def draft(self, decode: Decode, key: Key) -> Draw:
        draw = super().draft(decode, key)
        if decode.deadline == math.inf or draw.open is None or not self.unsized or not bool(draw.open.any()):
            return draw
        x0, where = draw.x0, draw.open
        words, sure = self.write(x0, where, decode, key.fold(1).uniform(where.shape[1]))
        x0 = x0.with_(ids=x0.ids.masked_scatter(where, words), score=x0.score.masked_scatter(where, sure))
        draw = Draw(x0, draw.place, draw.log_prob.masked_scatter(where, sure))
        return shortened(self.xt, draw, self.late, decode, self.specials) if bool(self.late.any()) else draw

    def write(self, x: Tokens, mask: Tensor, decode: Decode, u: Tensor) -> tuple[Tensor, Tensor]:
        """Every row writes its masks; one with a gap that makes no text writes it again, given that it does."""
        words, sure = self._write(x, mask, decode, u)
        found = broken(x, x.ids.masked_scatter(mask, words), torch.zeros_like(mask), decode, self.specials.mask)
        if found is None or decode.expired:
            return words, sure
        state, whole, ruled = found
        rows = (whole & mask).any(1).nonzero()[:, 0]
        late = self.late
        try:
            again, its = self._write(state[rows], mask[rows], ruled, another(u[rows]))
        except Unsatisfiable:
            return words, sure  # `spelling.joined` leaves broken characters out
        finally:
            late[rows] |= self.late if self.late.shape == mask[rows].shape else False
            self.late = late
        mine = torch.zeros_like(mask)
        mine[rows] = mask[rows]
        words[mine[mask]], sure[mine[mask]] = again, its
        return words, sure

    def _write(self, x: Tokens, mask: Tensor, decode: Decode, u: Tensor) -> tuple[Tensor, Tensor]:
        """One a turn; rows that are done leave. Past the deadline the model is not called: the words that are `late` come
        from the last logits."""
        count = mask.sum(1)
        rows = count.nonzero()[:, 0]
        order = torch.argsort((~mask).long(), dim=1, stable=True)[:, : int(count.max())]
        ids, sure = x.ids.clone(), torch.zeros(mask.shape, device=mask.device)
        self.late, said = torch.zeros_like(mask), torch.empty(0)
        going = self.reader.begin(x[rows], order.shape[1])
        for turn in range(order.shape[1]):
            left = (count[rows] > turn).nonzero()[:, 0]
            if len(left) <= len(rows) // 2:  # else it costs as much as it saves
                going.keep(left)
                rows, said = rows[left], said[left] if turn else said
            column, now, live = order[rows, turn], x[rows], count[rows] > turn
            here = torch.arange(len(rows), device=rows.device)
            fed = self.reader.feed(now, ids[rows])[here, column]
            if turn and decode.expired:
                self.late[rows[live], column[live]] = True
            else:
                said = going.advance(fed, (column - 1).clamp_min(0))
            logits = possible(said, torch.zeros_like(live), self.specials)
            scores = one_by_one(now, ids[rows], mask[rows], column, live, logits, decode, self.specials.pad)
            word, score = draw_tokens(scores, u[rows, column], Decode(temperature=decode.temperature))
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


class _EncoderDecoder(Reader):
    """The encoder reads the state; the decoder is fed the words. T5, BART and their kin, with positions of their own."""

    def __init__(self, model: Any, specials: Specials) -> None:
        self.model, self.specials = model, specials

    def feed(self, x: Tokens, ids: Tensor) -> Tensor:
        begins = run_starts(x, x.ids == self.specials.mask)
        fed = torch.where(begins, self.specials.fill, ids.roll(1, 1))
        return torch.where(x.ids == self.specials.gap, self.specials.gap, fed)

    def score(
        self, x: Tokens, fed: Tensor, where: Tensor, known: Tensor, lasting: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        _refuse_packing(x)
        order = torch.argsort((~where).long(), dim=1, stable=True)[:, : max(int(where.sum(1).max()), 1)]
        asked = where.gather(1, order)
        ids = fed.gather(1, order).masked_fill(~asked, self.specials.pad)
        inputs = {"input_ids": x.ids, "attention_mask": x.valid.long(), "decoder_input_ids": ids, "use_cache": False}
        return logits_at(self.model, asked, **inputs), asked.nonzero()[:, 0], order[asked]

    def begin(self, x: Tokens, room: int) -> Going:
        _refuse_packing(x)
        one, alike = x.distinct()
        going = _Decoding(self.model, x[one])
        going.keep(alike)
        return going


class _Decoding(Going):
    def __init__(self, model: Any, x: Tokens) -> None:
        self.model, self.name, self.mask = model, cache_name(model), x.valid.long()
        self.encoded, self.cache = model.get_encoder()(input_ids=x.ids, attention_mask=self.mask), None

    def advance(self, ids: Tensor, position: Tensor) -> Tensor:
        output = self.model(
            encoder_outputs=self.encoded,
            attention_mask=self.mask,
            decoder_input_ids=ids[:, None],
            use_cache=True,
            **{self.name: self.cache},
        )
        self.cache = getattr(output, self.name)
        return output.logits[:, -1]

    def keep(self, rows: Tensor) -> None:
        if everyone(rows, len(self.mask)):
            return
        self.mask, self.encoded.last_hidden_state = self.mask[rows], self.encoded.last_hidden_state[rows]
        if self.cache is not None:
            self.cache.reorder_cache(rows)


def _refuse_packing(x: Tokens) -> None:
    if x.packed:
        raise ValueError("an encoder-decoder reads one document per row; set data.packed to false")


def _run_sizes(x: Tokens, mask: Tensor) -> Tensor:
    """(B, L) how many elements the run of `mask` has that each belongs to; 1 outside of runs."""
    number = run_starts(x, mask).long().cumsum(1) * mask
    sizes = torch.zeros_like(number).scatter_add(1, number, torch.ones_like(number))
    return sizes.gather(1, number).masked_fill(~mask, 1)


def _soon(x: Tokens, gap: Tensor) -> Tensor:
    """(B, L) the user's words that are among the NEAR after an element of `gap` (B, L)."""
    soon, joined = torch.zeros_like(gap), x.joined()
    for _ in range(NEAR):
        gap = (gap & joined).roll(1, 1)
        soon |= gap
    return soon & x.fixed
