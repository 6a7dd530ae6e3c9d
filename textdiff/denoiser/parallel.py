"""Parallel q(x0 | xt): a stock masked language model, which says all words of all gaps at once.

    q(words | xt) = prod_i q(w_i | xt)

Where lengths are known this is BERT, MDLM, LLaDA; where they are not, they are drawn first (see `lengths`).
"""

from typing import Any

import torch
from torch import Tensor

from textdiff.denoiser.base import Denoiser
from textdiff.denoiser.head import logits_at
from textdiff.denoiser.lengths import LengthFirst, possible
from textdiff.posterior import Decode, Posterior, draw_tokens
from textdiff.tokens import Specials, Tokens


class Parallel(Denoiser):
    """Any `AutoModelForMaskedLM`. It is not told t: for masks the posterior does not depend on it."""

    def __init__(self, model: Any, specials: Specials) -> None:
        super().__init__()
        self.model, self.specials = model, specials

    def forward(self, xt: Tokens, t: Tensor) -> Posterior:
        return _ParallelPosterior(self, xt)

    def logits(self, x: Tokens, where: Tensor) -> Tensor:
        """(S, V) at `where` (B, L), with everything that cannot be said there forbidden."""
        logits = logits_at(self.model, where, **self._inputs(x))
        return possible(logits, x.ids[where] == self.specials.gap, self.specials, x.surplus[where])

    def _inputs(self, x: Tokens) -> dict[str, Tensor]:
        if not x.packed:
            return {"input_ids": x.ids, "attention_mask": x.valid.long()}
        same = (x.doc[:, :, None] == x.doc[:, None, :])[:, None]  # (B, 1, L, L): padding sees padding, harmlessly
        dtype = self.model.dtype
        bias = torch.zeros(same.shape, dtype=dtype, device=x.ids.device).masked_fill(~same, torch.finfo(dtype).min)
        return {"input_ids": x.ids, "attention_mask": bias}


class _ParallelPosterior(LengthFirst):
    factorised = True

    def __init__(self, denoiser: Parallel, xt: Tokens) -> None:
        super().__init__(xt, denoiser.specials)
        self.denoiser = denoiser

    def ask(self, x: Tokens, where: Tensor) -> Tensor:
        return self.denoiser.logits(x, where)

    def write(self, x: Tokens, mask: Tensor, decode: Decode, u: Tensor) -> tuple[Tensor, Tensor]:
        return draw_tokens(self.denoiser.logits(x, mask), u[mask], decode)

    def marginals(self) -> tuple[Tensor, Tensor]:
        """The S places (B, L) bool where a word has to be said, and the log-probability of every word there (S, V)."""
        where = (self.xt.ids == self.specials.mask) | self.xt.doubtful
        return where, self.denoiser.logits(self.xt, where).float().log_softmax(-1)

    def answer(self, states: Tokens, where: Tensor, truth: Tensor) -> Tensor:
        logits = self.denoiser.logits(states, where).float()
        chosen = logits.log_softmax(-1).gather(1, truth[where][:, None])[:, 0]
        return torch.zeros(where.shape, device=chosen.device).masked_scatter(where, chosen)
