"""Gaps of unknown length, for any model that can say a number: lengths first, then words.

    q(x0 | xt) = prod_gaps q(n | xt)  q(words | xt with n masks in every gap)

At a [GAP] the model says a length token, at a [MASK] a word; both are ordinary entries of its vocabulary. Knowing the length
while it writes, an autoregressive model stops where the right context wants it to, which one that ends its gaps by a token
has to learn (horizon-length prediction, arXiv:2410.03103); and a parallel one could not write otherwise.
"""

from abc import abstractmethod

import torch
from torch import Tensor

from textdiff.keys import Key
from textdiff.posterior import Decode, Draw, Posterior, draw_tokens
from textdiff.tokens import Specials, Tokens, concatenate, repeat


class LengthFirst(Posterior):
    """q(x0 | xt) of a model that answers at markers. ValueError where there is a [GAP] and no token to say its length."""

    def __init__(self, xt: Tokens, specials: Specials) -> None:
        if not specials.lengths and bool((xt.ids == specials.gap).any()):
            raise ValueError("this model has no length tokens, so it cannot fill [GAP]; give the length, as in [GAP:3]")
        self.xt, self.specials = xt, specials

    @abstractmethod
    def ask(self, x: Tokens, where: Tensor) -> Tensor:
        """Logits (S, V) at the S gaps `where` (B, L); only those of the length tokens are looked at."""

    @abstractmethod
    def write(self, x: Tokens, mask: Tensor, decode: Decode, u: Tensor) -> tuple[Tensor, Tensor]:
        """A word for each of the S masks of x, at `mask` (B, L), and its log-probability, from u (B, L): two (S,)."""

    @abstractmethod
    def answer(self, states: Tokens, where: Tensor, truth: Tensor) -> Tensor:
        """(B, L) log-probability of `truth` (B, L) at the open places `where`, 0 elsewhere; gradients flow."""

    def sample(self, decode: Decode, key: Key) -> Draw:
        counts = self._lengths(decode, key.fold(0)).masked_fill(~self.xt.valid, 0)
        x0, place = open_gaps(self.xt, counts, self.specials)
        mask = x0.ids == self.specials.mask
        confidence = torch.zeros(mask.shape, device=mask.device)
        if bool(mask.any()):
            words, sure = self.write(x0, mask, decode, key.fold(1).uniform(mask.shape[1]))
            confidence[mask] = sure
            x0 = x0.with_(ids=x0.ids.masked_scatter(mask, words), score=x0.score.masked_scatter(mask, sure))
        return Draw(x0, place, confidence)

    def _lengths(self, decode: Decode, key: Key) -> Tensor:
        """(B, L) how many elements every column of xt stands for: the length that is drawn for a gap, 1 elsewhere."""
        gap, counts = self.xt.ids == self.specials.gap, torch.ones_like(self.xt.ids)
        if bool(gap.any()):
            longest = min(decode.max_gap + 1, len(self.specials.lengths))
            logits = self.ask(self.xt, gap)[:, list(self.specials.lengths[:longest])]
            counts[gap] = draw_tokens(logits, key.uniform(gap.shape[1])[gap], decode)[0]
            # all gaps of a text share what room is left; a gap that stays closed costs no room at all
            before = (counts * gap).cumsum(1) - counts * gap
            room = decode.room(self.xt.valid.sum(1))[:, None]
            counts = torch.where(gap, counts.minimum((room - before).clamp_min(0)), counts)
        return counts

    def log_prob(self, truth: Draw) -> Tensor:
        """Lengths are read from xt, words from xt with its gaps opened to their true lengths: one call for both."""
        x0, place, specials = truth.x0, truth.place, self.specials
        seen = self.xt.ids.gather(1, place)
        hidden = ((seen == specials.gap) | (seen == specials.mask)) & x0.valid
        opened = x0.with_(ids=x0.ids.masked_fill(hidden, specials.mask))
        rows = (self.xt.ids == specials.gap).any(1).nonzero()[:, 0]
        states = concatenate([opened, self.xt[rows]], specials.pad) if len(rows) else opened
        where = (states.ids == specials.mask) | (states.ids == specials.gap)
        where[len(x0) :] &= states.ids[len(x0) :] == specials.gap  # the first look has scored the words already
        score = self.answer(states, where, self._truth(states, x0, place, rows))
        result = score[: len(x0), : x0.ids.shape[1]]
        if len(rows):
            left = (place[rows] + 1).clamp_max(states.ids.shape[1] - 1)
            kept = ~hidden[rows] & x0.valid[rows]
            booked = score[len(x0) :].gather(1, left) * (kept & (_seen_at(self.xt[rows], left) == specials.gap))
            result = result.index_add(0, rows, booked)
        return result

    def _truth(self, states: Tokens, x0: Tokens, place: Tensor, rows: Tensor) -> Tensor:
        """The true token of every place of the stacked states: words, then length tokens."""
        truth = torch.zeros_like(states.ids)
        truth[: len(x0), : x0.ids.shape[1]] = x0.ids
        if len(rows):
            missing = torch.zeros_like(self.xt.ids).scatter_add(1, place, x0.valid.long())[rows]
            lengths = torch.tensor(self.specials.lengths, device=missing.device)
            gap = self.xt.ids[rows] == self.specials.gap
            most = int((missing * gap).max())
            if most >= len(lengths):
                raise ValueError(
                    f"{most} tokens are missing in a gap, more than this model has a length for ({len(lengths) - 1}); "
                    "give shorter texts (--context), or a tokenizer with more length tokens"
                )
            truth[len(x0) :, : gap.shape[1]] = lengths[missing * gap]
        return truth


def open_gaps(xt: Tokens, counts: Tensor, specials: Specials) -> tuple[Tokens, Tensor]:
    """xt with `counts` masks in place of each gap, and the place in xt of each element."""
    index = repeat(counts)
    x0 = xt.take(index, specials.pad)
    return x0.with_(ids=x0.ids.masked_fill(x0.ids == specials.gap, specials.mask)), index.clamp_min(0)


def possible(logits: Tensor, gap: Tensor, specials: Specials) -> Tensor:
    """Logits (S, V) with minus infinity on what is no word, or, at a gap (S,) bool, on what is no length."""
    mute = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
    mute[specials.not_text] = True
    words = logits.masked_fill(mute, -torch.inf)
    if not bool(gap.any()):
        return words
    # row by row, where a mask over all of (S, V) would cost as much as the head itself
    mute = torch.ones_like(mute)
    mute[list(specials.lengths)] = False
    return words.index_put((gap.nonzero()[:, 0],), logits[gap].masked_fill(mute, -torch.inf))


def _seen_at(x: Tokens, place: Tensor) -> Tensor:
    """The ids of x at `place`, also where place runs past the last column (there: padding's neighbour, never a gap)."""
    width = x.ids.shape[1]
    return torch.where(place < width, x.ids.gather(1, place.clamp_max(width - 1)), -1)
