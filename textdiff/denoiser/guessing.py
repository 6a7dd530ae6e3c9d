"""Self-conditioning: a model that reads its last guess beside the text (Chen et al., Analog Bits, arXiv:2208.04202).

    q(x0 | xt, g),   g = x0_hat of the step before;    at a mask the model reads E[mask] + E[g], elsewhere E[word]

The guess travels in the state (`Tokens.guess`), whatever corrupts it. Half of the rows learn with a guess that the model has
just drawn from the same xt, half with none. Given xt that guess says nothing of x0 that a perfect model would not know: what
is gained is a second reading of the same weights, and in reverse a step that goes on from the last one.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from textdiff.denoiser.base import Denoiser
from textdiff.keys import Key
from textdiff.posterior import Decode, Draw, Look, Measure, Posterior
from textdiff.tokens import Tokens

SHARE = 0.5  # of the rows, that learn with a guess


def embedded(table: Any, ids: Tensor, guess: Tensor) -> Tensor:
    """(B, L, D) what the model reads of `ids` (B, L) by its own embeddings, with guesses (B, L) beside them, -1 for none."""
    ids, guess = ids.to(table.weight.device), guess.to(table.weight.device)
    seen: Tensor = table(ids)
    known = (guess >= 0)[:, :, None]
    return torch.where(known, seen + table(guess.clamp_min(0)), seen) if bool(known.any()) else seen


def reminded(denoiser: Denoiser, xt: Tokens, t: Tensor, key: Key) -> Tokens:
    """xt with a guess in about half of its rows, drawn without gradients; no shapes change."""
    rows = (key.fold(0).uniform(1)[:, 0] < SHARE).nonzero()[:, 0]
    if not len(rows):
        return xt
    with torch.no_grad():
        x0 = denoiser(xt[rows], t[rows]).sample(Decode(), key.fold(1)[rows]).x0
    return xt.with_(guess=xt.guess.index_copy(0, rows, x0.ids.masked_fill(~x0.valid, -1)))


class Guessing(Posterior):
    """A posterior whose draws carry all of their words as the guess of the next step, shown or not."""

    def __init__(self, inner: Posterior) -> None:
        self.inner, self.factorised = inner, inner.factorised

    def sample(self, decode: Decode, key: Key) -> Draw:
        return self.draft(decode, key).drawn()

    def draft(self, decode: Decode, key: Key) -> Draw:
        draft = self.inner.draft(decode, key)
        draw = draft.drawn()
        x0 = draft.x0.with_(guess=draw.x0.ids.masked_fill(~draw.x0.valid, -1))
        return replace(draft, x0=x0, look=_Known(draw.x0, draft.look) if draft.look else None)

    def log_prob(self, truth: Draw) -> Tensor:
        return self.inner.log_prob(truth)


class _Known(Look):
    """Words that are drawn already, of whatever is asked."""

    def __init__(self, x0: Tokens, look: Look) -> None:
        self.x0, self.look = x0, look

    def words(self, where: Tensor) -> tuple[Tensor, Tensor]:
        return self.x0.ids[where], self.x0.score[where]

    def measure(self, measure: Measure, where: Tensor) -> Tensor:
        return self.look.measure(measure, where)
