"""Classifier-free guidance: the text around the gaps counts for more.

    log q_w(word | x_t) = (1 + w) log q(word | x_t) - w log q(word | x_t without its context) + const

What is without context is x_t with the user's words masked; gaps, lengths and what the model wrote stay (Ho and Salimans,
arXiv:2207.12598; for masked diffusion Nie et al., arXiv:2410.18514). It takes two readings of every text. No law is kept.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from textdiff.denoiser.base import Denoiser, device_of
from textdiff.denoiser.head import piece
from textdiff.denoiser.parallel import Parallel, ParallelPosterior
from textdiff.posterior import Posterior
from textdiff.tokens import Tokens, concatenate
from textdiff.validation import check_number

Weight = Callable[[Tensor], Tensor]  # the share (B,) of a text's own tokens that are hidden -> w (B,)

SCHEDULES: dict[str, Callable[[float], Weight]] = {
    "constant": lambda scale: lambda hidden: torch.full_like(hidden, scale),
    "rising": lambda scale: lambda hidden: scale * (1 - hidden),  # the later, the more
    "falling": lambda scale: lambda hidden: scale * hidden,
}


class Guided(Denoiser):
    """A parallel denoiser whose words are drawn by the guided law. weight says how much, by how much is hidden, not by t."""

    def __init__(self, denoiser: Parallel, weight: Weight) -> None:
        super().__init__()
        self.denoiser, self.weight = denoiser, weight
        self.model, self.specials, self.timeless = denoiser.model, denoiser.specials, denoiser.timeless

    @classmethod
    def of(cls, denoiser: Denoiser, scale: float, schedule: str = "constant") -> "Guided":
        """By a scale and the name of a schedule. ValueError for others, and for a model that draws words in order."""
        if check_number("guidance", scale) < 0:
            raise ValueError(f"guidance {scale} is not a number from 0 on; 0 is none, 1 to 2 is usual")
        if schedule not in SCHEDULES:
            raise ValueError(f"unknown guidance_schedule {schedule!r}; there are {', '.join(SCHEDULES)}")
        if not isinstance(denoiser, Parallel):
            raise ValueError(
                "guidance is for models that say all words at once, masked ones; leave it out for this one"
            )
        return cls(denoiser, SCHEDULES[schedule](scale))

    def forward(self, xt: Tokens, t: Tensor) -> Posterior:
        return self.denoiser.remember(ParallelPosterior(self, xt))

    def open(self, x: Any, decode: Any, key: Any) -> Any:
        return self.denoiser.open(x, decode, key)

    @property
    def home(self) -> torch.device:
        return self.denoiser.home

    @property
    def longest(self) -> int | None:
        return self.denoiser.longest

    def read(self, x: Tokens) -> "_Both":
        """x with its context, and without, in one batch."""
        ids, own = self.specials, x.valid & ~x.fixed
        context = x.valid & x.fixed & (torch.arange(x.ids.shape[1], device=x.ids.device) > 0)
        context &= ~torch.isin(x.ids, torch.tensor([ids.gap, ids.mask, *ids.tail], device=x.ids.device))
        blank = x.with_(ids=x.ids.masked_fill(context, ids.mask))
        hidden = ((x.ids == ids.mask) | (x.ids == ids.gap)) & own
        weight = self.weight(hidden.sum(1) / own.sum(1).clamp_min(1))
        size = max(1, piece(self.model, device_of(self.model)) // 2)
        return _Both(self.denoiser.read(concatenate([x, blank], ids.pad)), weight, size)


class _Both:
    """Two readings of B texts as one of 2 B, combined with weights (B,); asked at `size` places at a time."""

    def __init__(self, said: Any, weight: Tensor, size: int) -> None:
        self.said, self.weight, self.size = said, weight, size

    def logits(self, where: Tensor) -> Tensor:
        """(S, V) at `where` (B, L)."""
        seen, blind = self.said.logits(torch.cat([where, where])).float().log_softmax(-1).chunk(2)
        weight = self.weight[where.nonzero()[:, 0], None].to(seen)
        return torch.where(seen == -torch.inf, seen, seen + weight * (seen - blind))

    def pieces(self, where: Tensor) -> Iterator[Tensor]:
        """The same, in pieces (s, V)."""
        row, column = where.nonzero(as_tuple=True)
        for part in torch.arange(len(row), device=where.device).split(self.size):
            here = torch.zeros_like(where)
            here[row[part], column[part]] = True
            yield self.logits(here)
