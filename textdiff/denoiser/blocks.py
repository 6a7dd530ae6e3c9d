"""Block diffusion: within a block all words at once, from block to block left to right (BD3-LM, arXiv:2503.09573).

    q(x0 | xt) = prod_b prod_(i in b) q(x_i | xt of block b, x0 of the blocks before b)

A stock causal model, told by a mask which tokens see which: those of a block see each other and all blocks before it, never
a later one. What earlier blocks are is said by x0, whose words are drawn block after block; once they stand in the text,
their keys and values are kept (`memory`), exactly, so that a turn costs a block and not the text.

While it learns, x0 and xt are read in one call, one after the other: a block of xt sees itself, and x0 before it.
"""

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from textdiff.denoiser import head
from textdiff.denoiser.base import Denoiser
from textdiff.denoiser.lengths import LengthFirst, possible
from textdiff.denoiser.memory import Aim, Memory
from textdiff.denoiser.words import at_once, together
from textdiff.keys import Key
from textdiff.posterior import Decode, Draw, Look, Measure, Posterior
from textdiff.tokens import Specials, Tokens
from textdiff.validation import check_flag, check_integer

_LENGTHS = "this model reads blocks of places that are known, so it fills no [GAP]; give the length, as in [GAP:3]"
_FAR = torch.iinfo(torch.int64).max


class Blocks(Denoiser):
    """Any `AutoModelForCausalLM` that takes a mask (B, 1, L, L) and positions (`need_blocks`). It is not told t.

    block: tokens of a block. They are counted from a text's first token, BOS: column c is in block c // block, whoever wrote
        it. Whatever the rule, a block is begun when those before it are done (`Rule`), since these are written without it:
        a turn reads as many tokens as a block has, and the texts have the law q. A rule `...@n` counts blocks of its own
        anew in each of these (`Draw.lane`).
    shift: the logits at i - 1 say token i, as a causal model was trained to; those of a block's first token stand at the
        last token of the block before. With block 1 this is the causal model itself; with all of a text in one block it
        is `Parallel` on a causal model that is open to both sides.

    A word of the user's is seen by its own block and by later ones. Earlier ones are written without it, so of a text with
    gaps only the last block of a gap is written in sight of what follows. Sliding windows of a model are opened.
    """

    timeless = True

    def __init__(self, model: Any, specials: Specials, block: int = 32, shift: bool = False) -> None:
        super().__init__()
        if check_integer("block", block) < 1:
            raise ValueError(f"block {block} is not positive; 1 writes word by word, 32 as many at once")
        check_flag("shift", shift)
        self.model, self.specials, self.block, self.shift = model, specials, block, shift
        self.joint = block == 1
        self.memory = Memory(model)

    def train(self, mode: bool = True) -> "Blocks":
        """As for any module; what was read with the old weights is forgotten."""
        self.memory.forget()
        super().train(mode)
        return self

    def session(self) -> "Blocks":
        """See `Denoiser.session`: what it has read is its own."""
        other = copy.copy(self)
        other.memory = Memory(self.model)
        return other

    def forward(self, xt: Tokens, t: Tensor) -> Posterior:
        return _BlocksPosterior(self, xt)

    def open(self, x: Tokens, decode: Decode, key: Key) -> Tokens:
        self.memory.forget()
        return x

    @property
    def first(self) -> int:
        """The first column that is fed: 1 where the model has no token for BOS."""
        return int(0 < self.specials.size <= self.specials.bos)

    @property
    def pad(self) -> int:
        """What stands on padding, which nothing sees."""
        return 0 if 0 < self.specials.size <= self.specials.pad else self.specials.pad

    def numbers(self, x: Tokens) -> Tensor:
        """(B, L) the block that each element is in, counted from its text's first token."""
        column = torch.arange(x.ids.shape[1], device=x.ids.device).expand_as(x.ids)
        return ((column - _begins(x) - self.first) // self.block).clamp_min(0)

    @torch.no_grad()
    def read(self, clean: Tensor, x: Tokens, rows: Tensor, number: Tensor) -> list["Window"]:
        """Block `number` (R,) of each of the `rows` (R,) of x, with `clean` (B, L) before it, ready to be asked.

        In up to two windows, since rows that have come to a new block have more to read: the block that is done.
        """
        shift, begin = int(self.shift), number * self.block
        sizes = x.valid.sum(1)[rows] - self.first
        most = torch.zeros_like(x.ids[:, 0]).index_put((rows,), begin)
        clean, seen = clean[:, self.first :], x.ids[:, self.first :]
        kept = self.memory.hold(clean, most, self.block)[rows]
        # what says a block's first word is read again; of a block of one word it is all that is read
        start = kept.minimum((begin - shift).clamp_min(0))
        end = (begin + self.block - int(shift and self.block == 1)).minimum(sizes)
        behind = kept < begin
        groups = [group for group in (~behind, behind) if bool(group.any())]
        windows = [Window(self, clean, seen, rows[g], start[g], begin[g], end[g]) for g in groups]
        self.memory.latest = windows
        return windows

    def said(self, states: Tokens, where: Tensor, truth: Tensor) -> Tensor:
        """Logits (S, V) at `where` (B, L) in sight of the `truth` (B, L) of all blocks before; gradients flow."""
        number, begins, first = self.numbers(states)[:, self.first :], _begins(states)[:, self.first :], self.first
        if first and states.packed:
            raise ValueError("packed texts begin with BOS, which this model lacks; set data.packed to false")
        doc, clean = states.doc[:, first:], torch.where(where, truth, states.ids)[:, first:]
        place = torch.arange(first, states.ids.shape[1], device=doc.device) - begins.clamp_min(first)
        width, (row, column) = doc.shape[1], where[:, first:].nonzero(as_tuple=True)
        at = place[row, column]
        if self.shift and bool((at == 0).any()):
            raise ValueError(_BEGIN)
        # logits one to the left: those of a block's first word are said by the text before it, as it is
        noisy = at % self.block >= int(self.shift)
        source = column - int(self.shift) + width * noisy
        parts = 2 if bool(noisy.any()) else 1
        asked = torch.zeros(len(doc), parts * width, dtype=torch.bool, device=doc.device)
        asked[row, source] = True
        inputs = {
            "input_ids": torch.cat([clean, states.ids[:, first:]], 1).masked_fill(doc.repeat(1, 2) < 0, self.pad),
            "position_ids": place.repeat(1, 2),
        }
        inputs = {name: part[:, : parts * width] for name, part in inputs.items()}
        inputs["attention_mask"] = _two_streams(self.model, doc, number, parts)
        logits = head.logits_at(self.model, asked, **inputs, use_cache=False)
        order = asked.flatten().cumsum(0).view(asked.shape)[row, source] - 1
        return possible(logits[order], torch.zeros_like(noisy), self.specials)


_BEGIN = "logits one to the left say nothing of the first token; begin the text with a word"


class Window:
    """Blocks of some texts, one of each, with what is not in memory before them, as the model reads them.

    rows: (R,) of the batch. It is read from column `start` (R,), the block is from `begin` (R,) to `end` (R,).
    """

    def __init__(
        self, denoiser: Blocks, clean: Tensor, seen: Tensor, rows: Tensor, start: Tensor, begin: Tensor, end: Tensor
    ) -> None:
        self.denoiser, self.clean, self.rows, self.start, self.begin = denoiser, clean, rows, start, begin
        memory, device = denoiser.memory, clean.device
        width, reach = int((end - start).max()), int(end.max())
        self.columns = start[:, None] + torch.arange(width, device=device)
        live, place = self.columns < end[:, None], self.columns.clamp_max(clean.shape[1] - 1)
        ids = torch.where(self.columns < begin[:, None], clean[rows].gather(1, place), seen[rows].gather(1, place))
        # a token sees what is before the end of its block, and a slot is a column
        limit = ((self.columns // denoiser.block + 1) * denoiser.block).minimum(end[:, None])
        sees = torch.arange(reach, device=device) < limit[:, :, None]
        low, high = (int(edge) for edge in start.aminmax())
        slots = self.columns.masked_fill(~live, memory.ids.shape[1])
        self.aim = Aim(rows, slots, low if low == high else -1, reach)
        self.reading = head.Reading(
            denoiser.model,
            ids.shape,
            input_ids=ids.masked_fill(~live, denoiser.pad),
            attention_mask=_bias(denoiser.model, sees),
            position_ids=place,
            use_cache=True,
            **{memory.name: memory},
        )

    @torch.no_grad()
    def pieces(self, where: Tensor) -> Iterator[Tensor]:
        """Logits (s, V) at `where` (R, L) in the blocks, in pieces, with what cannot be said forbidden."""
        denoiser, memory, where = self.denoiser, self.denoiser.memory, where[:, self.denoiser.first :]
        if denoiser.shift and bool(where[:, 0].any()):
            raise ValueError(_BEGIN)
        place = self.columns + int(denoiser.shift)
        inside = place < where.shape[1]
        asked = where.gather(1, place.clamp_max(where.shape[1] - 1)) & inside
        memory.write(self.aim, self.start)
        for logits in self.reading.pieces(asked):
            memory.keep(self.rows, self.clean[self.rows], self.begin)
            yield possible(logits, torch.zeros(len(logits), dtype=torch.bool, device=logits.device), denoiser.specials)


class _BlocksPosterior(LengthFirst):
    # Given x0 of the blocks before, a block is a product. With the truth in front, as `log_prob` has it, a bound that
    # reveals token by token is the sum over blocks of the bounds on log p(block | blocks before): by the chain rule one on
    # what is written block after block.
    factorised = True

    def __init__(self, denoiser: Blocks, xt: Tokens) -> None:
        if bool((xt.ids == denoiser.specials.gap).any()):
            raise ValueError(_LENGTHS)
        if bool((xt.doubtful | xt.surplus).any()):
            raise ValueError("blocks are written, not corrected; replacement and edits need a model without blocks")
        super().__init__(xt, denoiser.specials)
        self.denoiser = denoiser

    def ask(self, x: Tokens, where: Tensor) -> Tensor:
        raise ValueError(_LENGTHS)

    def draft(self, decode: Decode, key: Key) -> Draw:
        if self.xt.packed:
            raise ValueError("packed documents are for training; give one text per row to fill")
        draw = super().draft(decode, key)
        return replace(draw, lane=self.denoiser.numbers(draw.x0))

    def look(self, x: Tokens, decode: Decode, u: Tensor) -> Look:
        return _InTurn(self.denoiser, x, decode, u)

    def answer(self, states: Tokens, where: Tensor, truth: Tensor) -> Tensor:
        logits = self.denoiser.said(states, where, truth).float()
        chosen = logits.log_softmax(-1).gather(1, truth[where][:, None])[:, 0]
        return torch.zeros(where.shape, device=chosen.device).masked_scatter(where, chosen)


class _InTurn(Look):
    """Words that are drawn block after block, as far as somebody asks: a block at once, given those drawn before it."""

    def __init__(self, denoiser: Blocks, x: Tokens, decode: Decode, u: Tensor) -> None:
        self.denoiser, self.x, self.decode, self.u = denoiser, x, decode, u
        self.number, self.mask = denoiser.numbers(x), denoiser.specials.mask
        self.open = x.ids == self.mask  # not drawn yet
        self.ids, self.sure = x.ids.clone(), torch.zeros(x.ids.shape, device=x.ids.device)
        self._windows: list[Window] = []
        self._read = torch.full((len(x),), -1, device=x.ids.device)  # which block of each row they hold

    def words(self, where: Tensor) -> tuple[Tensor, Tensor]:
        asked = where & self.open
        for window, at in self._visit(asked | self._before(asked)):
            self._draw(window, at)
        return self.ids[where], self.sure[where]

    def measure(self, measure: Measure, where: Tensor) -> Tensor:
        figures, before = torch.zeros(where.shape, device=where.device), self._before(where)
        for window, at in self._visit(where | before):
            asked = at & where[window.rows]
            if bool(asked.any()):
                found = torch.cat([measure(logits) for logits in window.pieces(asked)])
                row, column = asked.nonzero(as_tuple=True)
                figures[window.rows[row], column] = found.to(figures)
            self._draw(window, at & before[window.rows])
        return figures[where]

    def _before(self, asked: Tensor) -> Tensor:
        """(B, L) the open places of blocks before the last that is `asked` about: these have to be drawn first."""
        return self.open & (self.number < self.number.masked_fill(~asked, -1).amax(1, keepdim=True))

    def _visit(self, left: Tensor) -> Iterator[tuple[Window, Tensor]]:
        """The blocks of the places `left` (B, L), in order, as they are read, and which of the places (R, L) are theirs."""
        while bool(left.any()):
            now = self.number.masked_fill(~left, _FAR).amin(1)
            at = left & (self.number == now[:, None])
            for window in self._reading(at.any(1).nonzero()[:, 0], now):
                if bool(at[window.rows].any()):
                    yield window, at[window.rows]
            left = left & ~at

    def _reading(self, rows: Tensor, now: Tensor) -> list[Window]:
        """Block `now` (B,) of the `rows` (R,): as it was read last time, if it was and nothing was read since."""
        known = self._windows and self.denoiser.memory.latest is self._windows
        if not known or bool((self._read[rows] != now[rows]).any()):
            self._windows = self.denoiser.read(self.ids, self.x, rows, now[rows])
            self._read = torch.full_like(now, -1).index_put((rows,), now[rows])
        return self._windows

    def _draw(self, window: Window, at: Tensor) -> None:
        """Words for the places `at` (R, L) of its blocks, and for those that are drawn with them."""
        if not bool(at.any()):
            return
        rows = window.rows
        x = self.x.with_(ids=self.ids)[rows]
        whole = together(x, at, self.decode, self.mask)
        now = self.number[rows] == (window.begin // self.denoiser.block)[:, None]
        here = whole & now
        words, sure = at_once(
            x, whole, lambda at: _reaching(window, at & now, at), self.decode, self.u[rows], self.denoiser.specials
        )
        row, column = here.nonzero(as_tuple=True)
        place = rows[row], column
        self.ids[place], self.sure[place], self.open[place] = words[here[whole]], sure[here[whole]].float(), False


def _reaching(window: Window, here: Tensor, whole: Tensor) -> Iterator[Tensor]:
    """Logits (s, V) at the places `whole` (R, L), of which those of a gap in later blocks can be any word yet.

    A gap under a constraint may go on in a block that is not read: what is drawn `here` leaves an accepted end in reach.
    """
    if bool((here == whole).all()):
        yield from window.pieces(here)
        return
    said = torch.cat(list(window.pieces(here)))
    number = int(whole.sum())
    logits = possible(said.new_zeros(number, said.shape[1]), torch.zeros_like(whole[whole]), window.denoiser.specials)
    yield logits.index_put((here[whole].nonzero()[:, 0],), said)


def _begins(x: Tokens) -> Tensor:
    """(B, L) the column in which the text of each element begins."""
    column = torch.arange(x.ids.shape[1], device=x.ids.device).expand_as(x.ids)
    if not x.packed:
        return torch.zeros_like(column)
    follows = torch.zeros_like(x.fixed)
    follows[:, 1:] = x.doc[:, 1:] == x.doc[:, :-1]
    return column.masked_fill(follows, 0).cummax(1).values


def _two_streams(model: Any, doc: Tensor, number: Tensor, parts: int) -> Tensor:
    """The mask (B, 1, Q, Q) of x0, then xt, tokens (B, L) of texts `doc` and blocks `number`; of x0 alone for one part."""
    count, width = len(doc), parts * doc.shape[1]
    if bool((doc == doc[:1]).all()):  # one for all rows
        doc, number = doc[:1], number[:1]
    same = doc[:, :, None] == doc[:, None, :]  # padding sees padding, harmlessly
    before = same & (number[:, None, :] < number[:, :, None])
    own = same & (number[:, None, :] == number[:, :, None])
    sees = torch.cat([torch.cat([before | own, own & False], 2), torch.cat([before, own], 2)], 1)
    return _bias(model, sees[:, :width, :width]).expand(count, -1, -1, -1)


def _bias(model: Any, sees: Tensor) -> Tensor:
    """What is added to attention scores (B, 1, Q, K), from what each token sees (B, Q, K) bool."""
    bias = torch.zeros(sees.shape, dtype=model.dtype, device=sees.device)
    return bias.masked_fill(~sees, torch.finfo(model.dtype).min)[:, None]
