"""Parallel q(x0 | xt): a stock masked language model, which says all words of all gaps at once.

    q(x0 | xt) = prod_gaps q(n | xt)  prod_i q(w_i | xt with n masks in every gap)

At a [GAP] the model predicts a length token, at a [MASK] a word. Both are ordinary vocabulary entries, so the checkpoint
stays an `AutoModelForMaskedLM`. Where lengths are known the first factor is one, and this is BERT, MDLM, LLaDA.
"""

from typing import Any

import torch
from torch import Tensor

from textdiff.denoiser.base import Denoiser
from textdiff.denoiser.head import logits_at
from textdiff.keys import Key
from textdiff.posterior import Decode, Draw, Posterior, draw_tokens
from textdiff.tokens import Specials, Tokens, concatenate, repeat


class Parallel(Denoiser):
    """Any `AutoModelForMaskedLM`. It is not told t: for masks the posterior does not depend on it."""

    def __init__(self, model: Any, specials: Specials) -> None:
        super().__init__()
        self.model, self.specials = model, specials

    def forward(self, xt: Tokens, t: Tensor) -> Posterior:
        if not self.specials.lengths and bool((xt.ids == self.specials.gap).any()):
            raise ValueError("this model has no length tokens, so it cannot fill [GAP]; give the length, as in [GAP:3]")
        return _ParallelPosterior(self, xt)

    def logits(self, x: Tokens, where: Tensor) -> Tensor:
        """(S, V) at `where` (B, L), with everything that is no word there forbidden."""
        logits = logits_at(self.model, where, **self._inputs(x))
        words, gaps = self._allowed(logits)
        gap = (x.ids[where] == self.specials.gap)[:, None]
        return logits.masked_fill(torch.where(gap, gaps, words), -torch.inf)

    def _allowed(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """What is forbidden at a [MASK], and at a [GAP]: two (1, V) bool."""
        words = torch.zeros((1, logits.shape[-1]), dtype=torch.bool, device=logits.device)
        words[:, self.specials.not_text] = True
        gaps = torch.ones_like(words)
        gaps[:, list(self.specials.lengths)] = False
        return words, gaps

    def _inputs(self, x: Tokens) -> dict[str, Tensor]:
        if not x.packed:
            return {"input_ids": x.ids, "attention_mask": x.valid.long()}
        same = (x.doc[:, :, None] == x.doc[:, None, :])[:, None]  # (B, 1, L, L): padding sees padding, harmlessly
        dtype = self.model.dtype
        bias = torch.zeros(same.shape, dtype=dtype, device=x.ids.device).masked_fill(~same, torch.finfo(dtype).min)
        return {"input_ids": x.ids, "attention_mask": bias}


class _ParallelPosterior(Posterior):
    def __init__(self, denoiser: Parallel, xt: Tokens) -> None:
        self.denoiser, self.specials, self.xt = denoiser, denoiser.specials, xt

    def sample(self, decode: Decode, key: Key) -> Draw:
        gap, counts = self.xt.ids == self.specials.gap, torch.ones_like(self.xt.ids)
        if bool(gap.any()):
            logits = self.denoiser.logits(self.xt, gap)
            longest = min(decode.max_gap + 1, len(self.specials.lengths))
            logits = logits[:, list(self.specials.lengths[:longest])]
            counts[gap] = draw_tokens(logits, key.fold(0).uniform(gap.shape[1])[gap], decode)[0]
            # all gaps of a text share what room is left; a gap that stays closed costs no room at all
            before = (counts * gap).cumsum(1) - counts * gap
            room = decode.room(self.xt.valid.sum(1))[:, None]
            counts = torch.where(gap, counts.minimum((room - before).clamp_min(0)), counts)
        x0, place = _open(self.xt, counts.masked_fill(~self.xt.valid, 0), self.specials)
        mask = x0.ids == self.specials.mask
        confidence = torch.zeros(mask.shape, device=mask.device)
        if bool(mask.any()):
            words, confidence[mask] = draw_tokens(
                self.denoiser.logits(x0, mask), key.fold(1).uniform(mask.shape[1])[mask], decode
            )
            x0 = x0.with_(ids=x0.ids.masked_scatter(mask, words), score=x0.score.masked_scatter(mask, confidence[mask]))
        return Draw(x0, place, confidence)

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
        target = self._targets(states, x0, place, rows)[where]
        chosen = self.denoiser.logits(states, where).float().log_softmax(-1).gather(1, target[:, None])[:, 0]
        score = torch.zeros(states.ids.shape, device=chosen.device).masked_scatter(where, chosen)
        result = score[: len(x0), : x0.ids.shape[1]]
        if len(rows):
            left = (place[rows] + 1).clamp_max(states.ids.shape[1] - 1)
            kept = ~hidden[rows] & x0.valid[rows]
            booked = score[len(x0) :].gather(1, left) * (kept & (seen_at(self.xt[rows], left) == specials.gap))
            result = result.index_add(0, rows, booked)
        return result

    def _targets(self, states: Tokens, x0: Tokens, place: Tensor, rows: Tensor) -> Tensor:
        """The right answer at every open place of the stacked states: words, then length tokens."""
        target = torch.zeros_like(states.ids)
        target[: len(x0), : x0.ids.shape[1]] = x0.ids
        if len(rows):
            missing = torch.zeros_like(self.xt.ids).scatter_add(1, place, x0.valid.long())[rows]
            lengths = torch.tensor(self.specials.lengths, device=missing.device)
            known = lengths[missing.clamp_max(len(lengths) - 1)]  # longer gaps count as the longest that can be said
            target[len(x0) :, : known.shape[1]] = known
        return target


def seen_at(x: Tokens, place: Tensor) -> Tensor:
    """The ids of x at `place`, also where place runs past the last column (there: padding's neighbour, never a gap)."""
    width = x.ids.shape[1]
    return torch.where(place < width, x.ids.gather(1, place.clamp_max(width - 1)), -1)


def _open(xt: Tokens, counts: Tensor, specials: Specials) -> tuple[Tokens, Tensor]:
    """xt with `counts` masks in place of each gap, and the place in xt of each element."""
    index = repeat(counts)
    x0 = xt.take(index, specials.pad)
    return x0.with_(ids=x0.ids.masked_fill(x0.ids == specials.gap, specials.mask)), index.clamp_min(0)
