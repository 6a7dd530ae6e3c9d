"""Parallel q(x0 | xt): a stock masked language model, which says all words of all gaps at once.

    q(words | xt) = prod_i q(w_i | xt)

Where lengths are known this is BERT, MDLM, LLaDA; where they are not, they are drawn first (see `lengths`). A causal model
whose attention was opened to both sides (`config.is_causal = False`) is read in the same way: LLaDA (arXiv:2502.09992) in
place, Dream (arXiv:2508.15487) shifted, so that the logits at i - 1 go on saying token i, as they were trained to.
"""

from typing import Any

import torch
from torch import Tensor

from textdiff.denoiser.base import Denoiser
from textdiff.denoiser.lengths import LengthFirst, possible
from textdiff.denoiser.padding import Feed
from textdiff.denoiser.search import search
from textdiff.denoiser.words import at_once
from textdiff.keys import Key
from textdiff.posterior import Decode, Posterior
from textdiff.tokens import Specials, Tokens


class Parallel(Denoiser):
    """Any `AutoModelForMaskedLM`, or an `AutoModelForCausalLM` that looks both ways. It is not told t: for masks the
    posterior does not depend on it.

    shift: the logits at i - 1 say token i, not those at i. The first token of a text, BOS, can then not be asked for.
    """

    def __init__(self, model: Any, specials: Specials, shift: bool = False) -> None:
        super().__init__()
        self.model, self.specials, self.shift = model, specials, shift
        self.feed = Feed(self)

    def forward(self, xt: Tokens, t: Tensor) -> Posterior:
        return _ParallelPosterior(self, xt)

    def open(self, x: Tokens, decode: Decode, key: Key) -> Tokens:
        """Gaps of a model without length tokens are opened by search."""
        if self.specials.lengths or not bool((x.ids == self.specials.gap).any()):
            return x
        return search(self, x, decode, key)

    def logits(self, x: Tokens, where: Tensor) -> Tensor:
        """(S, V) at `where` (B, L), with everything that cannot be said there forbidden."""
        # a BOS that the model has no token for is not fed
        first = int(self._virtual(self.specials.bos))
        if first and x.packed:
            raise ValueError("packed texts begin with BOS, which this model lacks; set data.packed to false")
        at = where[:, first:]
        if self.shift:
            if bool(at[:, 0].any()):
                raise ValueError("logits one to the left say nothing of the first token; begin the text with a word")
            at = at.roll(-1, 1)
        seen = torch.ones_like(at) if x.packed else x.valid[:, first:]  # packed rows bring a mask of their own
        logits = self.feed.logits_at(at, seen, **self._inputs(x, first))
        return possible(logits, x.ids[where] == self.specials.gap, self.specials, x.surplus[where])

    def _virtual(self, number: int) -> bool:
        """Whether the model has no row for an id; `specials.size` 0 does not say."""
        return 0 < self.specials.size <= number

    def _inputs(self, x: Tokens, first: int = 0) -> dict[str, Tensor]:
        """What the model is fed, from column `first` on."""
        ids = x.ids.masked_fill(~x.valid, self.feed.pad)
        if not x.packed:
            return {"input_ids": ids[:, first:], "attention_mask": x.valid[:, first:].long()}
        same = (x.doc[:, :, None] == x.doc[:, None, :])[:, None]  # (B, 1, L, L): padding sees padding, harmlessly
        dtype = self.model.dtype
        bias = torch.zeros(same.shape, dtype=dtype, device=x.ids.device).masked_fill(~same, torch.finfo(dtype).min)
        inputs = {"input_ids": ids, "attention_mask": bias}
        if getattr(self.model.config, "is_causal", True):
            return inputs
        column = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        starts = torch.ones_like(x.fixed)
        starts[:, 1:] = x.doc[:, 1:] != x.doc[:, :-1]
        # causal models number the tokens of each text from 0, as when it is alone
        return inputs | {"position_ids": column - column.masked_fill(~starts, 0).cummax(1).values}


class _ParallelPosterior(LengthFirst):
    factorised = True

    def __init__(self, denoiser: Parallel, xt: Tokens) -> None:
        super().__init__(xt, denoiser.specials)
        self.denoiser = denoiser

    def ask(self, x: Tokens, where: Tensor) -> Tensor:
        return self.denoiser.logits(x, where)

    def write(self, x: Tokens, mask: Tensor, decode: Decode, u: Tensor) -> tuple[Tensor, Tensor]:
        return at_once(x, mask, self.denoiser.logits(x, mask), decode, u, self.specials.pad)

    def marginals(self) -> tuple[Tensor, Tensor]:
        """The S places (B, L) bool where a word has to be said, and the log-probability of every word there (S, V)."""
        where = (self.xt.ids == self.specials.mask) | self.xt.doubtful
        return where, self.denoiser.logits(self.xt, where).float().log_softmax(-1)

    def answer(self, states: Tokens, where: Tensor, truth: Tensor) -> Tensor:
        logits = self.denoiser.logits(states, where).float()
        chosen = logits.log_softmax(-1).gather(1, truth[where][:, None])[:, 0]
        return torch.zeros(where.shape, device=chosen.device).masked_scatter(where, chosen)
