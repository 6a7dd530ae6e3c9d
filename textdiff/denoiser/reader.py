"""How the models of `autoregressive` read: what each family answers to, whichever way it takes the text in."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from textdiff.tokens import Tokens


class Going(ABC):
    """Texts that were read and are gone on with, a word at a time."""

    @abstractmethod
    def advance(self, ids: Tensor, position: Tensor) -> Tensor:
        """Feed one token per row (R,) at its position (R,): logits (R, V)."""

    @abstractmethod
    def keep(self, rows: Tensor) -> None:
        """Go on with these rows alone."""


class Reader(ABC):
    """How a family of models reads."""

    @abstractmethod
    def score(
        self, x: Tokens, fed: Tensor, where: Tensor, known: Tensor, lasting: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (S, V) for the columns `where` (B, L), fed `fed` (B, L) for each, and for those of the visible columns
        `known` that come for free; the row and column (S,) that each is for.

        lasting: texts that begin as these do were read before, or will be; so what was read may be gone on from.
        """

    @abstractmethod
    def feed(self, x: Tokens, ids: Tensor) -> Tensor:
        """(B, L) what is fed to hear the answer for each column, where the text is `ids` (B, L)."""

    @abstractmethod
    def begin(self, x: Tokens, room: int) -> Going:
        """Read x, of equal rows one; it is gone on with by at most `room` words."""


def everyone(rows: Tensor, held: int) -> bool:
    """Whether `rows` are all that are held, as they are."""
    return len(rows) == held and bool((rows == torch.arange(held, device=rows.device)).all())


def run_starts(x: Tokens, mask: Tensor) -> Tensor:
    """The first mask of every run of masks of one document."""
    continues = torch.zeros_like(mask)
    continues[:, 1:] = mask[:, :-1] & (x.doc[:, 1:] == x.doc[:, :-1])
    return mask & ~continues
