"""Gaps of unknown length, for any model that can say a number: lengths first, then words.

    q(x0 | xt) = prod_gaps q(n | xt)  q(words | xt with n masks in every gap)

At a [GAP] the model says a length token, at a [MASK] a word; both are ordinary entries of its vocabulary. Where a visible
word is in doubt it says a word, too, and where a token may be one too many it first says <|0|> or not: the same two steps
then correct a text, in models that answer wherever they are asked. Knowing the length
while it writes, an autoregressive model stops where the right context wants it to, which one that ends its gaps by a token
has to learn (horizon-length prediction, arXiv:2410.03103); and a parallel one could not write otherwise.
"""

from abc import abstractmethod

import torch
from torch import Tensor

from textdiff.constraints import Constraint
from textdiff.drawing import draw_tokens
from textdiff.keys import Key
from textdiff.posterior import Decode, Draw, Look, Posterior
from textdiff.tokens import Specials, Tokens, concatenate, repeat


class LengthFirst(Posterior):
    """q(x0 | xt) of a model that answers at markers. ValueError where there is a [GAP] and no token to say its length."""

    def __init__(self, xt: Tokens, specials: Specials) -> None:
        self.unsized = bool(((xt.ids == specials.gap) | xt.surplus).any())  # whether some length has to be said
        if self.unsized and not specials.lengths:
            raise ValueError("this model has no length tokens, so it cannot fill [GAP]; give the length, as in [GAP:3]")
        self.xt, self.specials = xt, specials

    @abstractmethod
    def ask(self, x: Tokens, where: Tensor) -> Tensor:
        """Logits (S, V) at the S gaps, and tokens that may be surplus, `where` (B, L)."""

    def look(self, x: Tokens, decode: Decode, u: Tensor) -> Look:
        """What can be asked about the open places of x (B, L), whose words are drawn by u (B, L)."""
        return _Together(self, x, decode, u)

    def write(self, x: Tokens, mask: Tensor, decode: Decode, u: Tensor) -> tuple[Tensor, Tensor]:
        """A word for each of the S open places of x, `mask` (B, L), and its log-probability, from u (B, L): two (S,)."""
        return self.look(x, decode, u).words(mask)

    @abstractmethod
    def answer(self, states: Tokens, where: Tensor, truth: Tensor) -> Tensor:
        """(B, L) log-probability of `truth` (B, L) at the open places `where`, 0 elsewhere; gradients flow."""

    def sample(self, decode: Decode, key: Key) -> Draw:
        return self.draft(decode, key).drawn()

    def draft(self, decode: Decode, key: Key) -> Draw:
        """The lengths of gaps are drawn now; words behind masks, and in doubt, when they are asked for."""
        x0, place = self._opened(decode, key.fold(0))
        where, wrong = x0.ids == self.specials.mask, bool(x0.doubtful.any())
        if wrong:
            where = where | x0.doubtful
        look = self.look(x0, decode, key.fold(1).uniform(where.shape[1]))
        if wrong:  # the word seen is no guess yet
            x0 = x0.with_(ids=x0.ids.masked_fill(where, self.specials.mask), doubtful=torch.zeros_like(x0.doubtful))
        return Draw(x0, place, torch.zeros(where.shape, device=where.device), where, look)

    def _opened(self, decode: Decode, key: Key) -> tuple[Tokens, Tensor]:
        """xt with its gaps opened to lengths that are drawn, and the place in xt of each element."""
        if not self.unsized:
            column = torch.arange(self.xt.ids.shape[1], device=self.xt.ids.device)
            return _decided(self.xt), column.expand_as(self.xt.ids)
        counts = self._lengths(decode, key).masked_fill(~self.xt.valid, 0)
        x0, place = open_gaps(self.xt, counts, self.specials)
        return _decided(x0.with_(surplus=torch.zeros_like(x0.surplus))), place

    def _lengths(self, decode: Decode, key: Key) -> Tensor:
        """(B, L) how many elements every column of xt stands for: the length drawn for a gap, 0 for what is one too many."""
        gap, surplus, counts = self.xt.ids == self.specials.gap, self.xt.surplus, torch.ones_like(self.xt.ids)
        u = key.uniform(gap.shape[1])
        logits = self.ask(self.xt, gap | surplus)
        at_gap = gap[gap | surplus]
        if bool(gap.any()):
            said = logits[at_gap][:, list(self.specials.lengths)].double()
            counts[gap] = draw_tokens(fitting(said, self.xt.slot[gap], decode), u[gap], decode)[0]
        if bool(surplus.any()):
            none = logits[~at_gap].double().softmax(-1)[:, self.specials.lengths[0]]
            counts[surplus] = (u[surplus] >= none if decode.temperature else none < 0.5).long()
        # all gaps of a text share what room is left; a gap that stays closed costs no room at all
        before = (counts * gap).cumsum(1) - counts * gap
        room = decode.room(self.xt.valid.sum(1))[:, None]
        cut = torch.where(gap, counts.minimum((room - before).clamp_min(0)), counts)
        if bool(((cut != counts) & (self.xt.slot > 0)).any()):
            raise ValueError("the text is too long for what is asked of its gaps; shorten it, or ask for less")
        return cut

    def log_prob(self, truth: Draw) -> Tensor:
        """Lengths are read from xt, words from xt with its gaps opened to their true lengths: one call for both."""
        x0, place, specials = truth.x0, truth.place, self.specials
        seen = self.xt.ids.gather(1, place)
        hidden = ((seen == specials.gap) | (seen == specials.mask)) & x0.valid
        doubtful = self.xt.doubtful.gather(1, place) & x0.valid
        opened = x0.with_(
            ids=torch.where(hidden, specials.mask, torch.where(doubtful, seen, x0.ids)),
            doubtful=doubtful,
            guess=self.xt.guess.gather(1, place),
        )
        counting = (self.xt.ids == specials.gap) | self.xt.surplus
        rows = counting.any(1).nonzero()[:, 0]
        states = concatenate([opened, self.xt[rows]], specials.pad) if len(rows) else opened
        where = (states.ids == specials.mask) | states.doubtful
        if len(rows):  # the first look scores the words, the second the lengths
            where[len(x0) :] = False
            where[len(x0) :, : counting.shape[1]] = counting[rows]
        score = self.answer(states, where, self._truth(states, x0, place, rows))
        result = score[: len(x0), : x0.ids.shape[1]]
        if len(rows):
            lengths = score[len(x0) :, : counting.shape[1]]
            kept = torch.zeros_like(self.xt.ids).scatter_add(1, place, x0.valid.long())[rows] > 0
            belongs = self.xt.surplus[rows] & kept
            lengths = torch.where(belongs, _log_rest(lengths), lengths)
            result = result.index_add(0, rows, self._booked(lengths, place[rows], x0.valid[rows]))
        return result

    def _booked(self, lengths: Tensor, place: Tensor, valid: Tensor) -> Tensor:
        """What is said at columns of xt, on the last element left of each: of a gap, the token before its marker."""
        order = place.masked_fill(~valid, torch.iinfo(torch.int64).max)
        column = torch.arange(lengths.shape[1], device=place.device).expand(len(place), -1).contiguous()
        owner = (torch.searchsorted(order.contiguous(), column) - 1).clamp_min(0)
        return torch.zeros(place.shape, dtype=lengths.dtype, device=place.device).scatter_add(1, owner, lengths)

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
            truth[len(x0) :, : gap.shape[1]] = lengths[missing * gap]  # and length 0 at what may be one too many
        return truth


class _Together(Look):
    """Words that are drawn one given another: of a text all, or none."""

    def __init__(self, posterior: LengthFirst, x: Tokens, decode: Decode, u: Tensor) -> None:
        self.posterior, self.x, self.decode, self.u = posterior, x, decode, u
        self.open = (x.ids == posterior.specials.mask) | x.doubtful

    def words(self, where: Tensor) -> tuple[Tensor, Tensor]:
        rows = where.any(1).nonzero()[:, 0]
        mask = self.open[rows]
        words, sure = self.posterior.write(self.x[rows], mask, self.decode, self.u[rows])
        here = where[rows][mask]
        return words[here], sure[here]


def fitting(said: Tensor, slot: Tensor, decode: Decode) -> Tensor:
    """Scores (G, K) of the lengths 0..K-1 of gaps under the constraints `slot` (G,), without those that cannot be."""
    longest = min(decode.max_gap + 1, said.shape[1])
    numbers, back = slot.unique(return_inverse=True)
    fits = torch.zeros(len(numbers), said.shape[1], dtype=torch.bool)
    for row, number in enumerate(numbers.tolist()):
        limits = decode.constraints[number - 1] if number else Constraint(high=longest - 1)
        # what is asked for counts for more
        lengths = limits.decided(longest - 1) or limits.decided(said.shape[1] - 1)[:8]
        if not lengths:
            raise ValueError(
                f"no number of tokens up to {said.shape[1] - 1} fits what is asked of a gap; this model has no more"
            )
        fits[row, lengths] = True
    return said.masked_fill(~fits.to(said.device)[back], -torch.inf)


def _decided(x0: Tokens) -> Tokens:
    """x0, where the length of a gap under a constraint is decided once: its tokens are not deleted again."""
    under = (x0.slot > 0) & ~x0.fixed
    return x0.with_(counted=x0.counted | under) if bool(under.any()) else x0


def open_gaps(xt: Tokens, counts: Tensor, specials: Specials) -> tuple[Tokens, Tensor]:
    """xt with `counts` masks in place of each gap, and the place in xt of each element."""
    index = repeat(counts)
    x0 = xt.take(index, specials.pad)
    return x0.with_(ids=x0.ids.masked_fill(x0.ids == specials.gap, specials.mask)), index.clamp_min(0)


def words_alone(logits: Tensor, specials: Specials) -> Tensor:
    """Logits (S, V), in full precision for what adds up probabilities, with minus infinity on all that is no word."""
    if logits.dtype in (torch.bfloat16, torch.float16):
        logits = logits.float()
    return logits.masked_fill(specials.mute(logits.shape[-1], logits.device), -torch.inf)


def possible(logits: Tensor, gap: Tensor, specials: Specials, surplus: Tensor | None = None) -> Tensor:
    """Logits (S, V) with minus infinity on what cannot be said there.

    Lengths at a gap (S,) bool, words elsewhere, and <|0|> too at what may be one too many, `surplus` (S,) bool.
    """
    words = words_alone(logits, specials)
    if not specials.lengths:
        return words
    if surplus is not None and bool(surplus.any()):
        none = specials.lengths[0]
        words[:, none] = torch.where(surplus, logits[:, none].to(words), -torch.inf)
    if not bool(gap.any()):
        return words
    # row by row, where a mask over all of (S, V) would cost as much as the head itself
    mute = torch.ones_like(words[0], dtype=torch.bool)
    mute[list(specials.lengths)] = False
    return words.index_put((gap.nonzero()[:, 0],), logits[gap].to(words).masked_fill(mute, -torch.inf))


def _log_rest(log_prob: Tensor) -> Tensor:
    """log(1 - p) from log p."""
    return torch.log(-torch.expm1(log_prob.clamp_max(-1e-7)))
