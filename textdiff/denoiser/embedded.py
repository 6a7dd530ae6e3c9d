"""q(x0 | z): a stock masked language model that reads vectors and says a word at every token that is not the user's.

    q(x0 | z) = prod_i q(w_i | z)

It is not told t: the noise level shows in z itself, which has D coordinates for every token.
"""

from typing import Any

import torch
from torch import Tensor

from textdiff.denoiser.base import Denoiser
from textdiff.denoiser.lengths import possible
from textdiff.denoiser.padding import Feed
from textdiff.drawing import draw_tokens
from textdiff.keys import Key
from textdiff.posterior import Decode, Draw, Posterior
from textdiff.process.encoder import Latent
from textdiff.tokens import Specials


class Embedded(Denoiser):
    """Any `AutoModelForMaskedLM` that takes `inputs_embeds`, for the states of `process.Encoder`."""

    def __init__(self, model: Any, specials: Specials) -> None:
        super().__init__()
        self.model, self.specials = model, specials
        self.feed = Feed(self)

    def forward(self, xt: Latent, t: Tensor) -> Posterior:
        return _EmbeddedPosterior(self, xt)


class _EmbeddedPosterior(Posterior):
    factorised = True

    def __init__(self, denoiser: Embedded, xt: Latent) -> None:
        if xt.tokens.packed:
            raise ValueError("packed rows are for processes on tokens; set data.packed to false")
        self.xt, self.specials = xt.tokens, denoiser.specials
        self.where = self.xt.valid & ~self.xt.fixed
        valid = self.xt.valid
        logits = denoiser.feed.logits_at(self.where, valid, inputs_embeds=xt.z, attention_mask=valid.long())
        nowhere = torch.zeros(len(logits), dtype=torch.bool, device=logits.device)
        self.logits = possible(logits, nowhere, self.specials)

    def sample(self, decode: Decode, key: Key) -> Draw:
        where = self.where
        words, sure = draw_tokens(self.logits, key.uniform(where.shape[1])[where], decode)
        x0 = self.xt.with_(
            ids=self.xt.ids.masked_scatter(where, words), score=self.xt.score.masked_scatter(where, sure)
        )
        return Draw(x0, torch.empty(0, dtype=torch.int64), torch.zeros_like(x0.score).masked_scatter(where, sure))

    def log_prob(self, truth: Draw) -> Tensor:
        chosen = self.logits.float().log_softmax(-1).gather(1, truth.x0.ids[self.where][:, None])[:, 0]
        return torch.zeros(self.where.shape, device=chosen.device).masked_scatter(self.where, chosen)
