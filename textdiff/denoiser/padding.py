"""Texts of several lengths before a model that may be able to tell how much padding stands right of them.

Most cannot. Of those that can (`leak.reads_padding`), texts of one length are read together, without any: so each is read as
if it were alone.
"""

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from textdiff.denoiser import head
from textdiff.denoiser.swapping import probing
from textdiff.leak import reads_padding
from textdiff.tokens import Specials


class Padded(Protocol):
    """A denoiser, as far as it is asked here."""

    model: Any
    specials: Specials

    @property
    def longest(self) -> int | None:
        """How many tokens the model reads."""


class Feed:
    """Stands between a denoiser and its model. The model is asked once, when there first is padding."""

    def __init__(self, denoiser: Padded) -> None:
        self.denoiser = denoiser
        self._apart: bool | None = None

    @property
    def pad(self) -> int:
        """What stands on padding; 0 where the model has no token for it."""
        ids = self.denoiser.specials
        return 0 if 0 < ids.size <= ids.pad else ids.pad

    @property
    def apart(self) -> bool:
        """Whether the model can tell padding, so that it is given texts of one length at a time."""
        if self._apart is None:
            with probing(self.denoiser.model):
                self._apart = reads_padding(self.denoiser.model, self.pad, self.denoiser.longest)
        return self._apart

    def read(self, valid: Tensor, **inputs: Any) -> "head.Reading | ByLength":
        """Texts that are `valid` (B, L), ready to be asked for logits."""
        model = self.denoiser.model
        # what is learned is learned beside padding
        if model.training or bool(valid.all()) or not self.apart:
            return head.Reading(model, valid.shape, **inputs)
        return ByLength(model, valid.sum(1), inputs)

    def logits_at(self, where: Tensor, valid: Tensor, **inputs: Any) -> Tensor:
        """Logits (S, V) at `where` (B, L) of texts that are `valid` (B, L), as `head.logits_at` gives them."""
        if not bool(where.any()):
            return head.logits_at(self.denoiser.model, where, **inputs)
        return self.read(valid, **inputs).logits(where)


class ByLength:
    """Texts of `sizes` (B,), those of one length read together whenever they are asked."""

    def __init__(self, model: Any, sizes: Tensor, inputs: dict[str, Any]) -> None:
        self.model, self.sizes, self.inputs = model, sizes, inputs

    def logits(self, where: Tensor) -> Tensor:
        """Logits (S, V) at `where` (B, L), at least one place."""
        return by_length(self.model, where, self.sizes, **self.inputs)

    def pieces(self, where: Tensor) -> Iterator[Tensor]:
        """The same, in pieces as `head.Reading` gives them: of these there is one."""
        yield self.logits(where)


def by_length(model: Any, where: Tensor, sizes: Tensor, **inputs: Any) -> Tensor:
    """Logits (S, V) at `where` (B, L), at least one place, of texts of `sizes` (B,).

    inputs: those that are tensors (B, L, ...) are cut to the texts; others, such as use_cache, are handed on as they are.
    """
    number = torch.zeros(where.shape, dtype=torch.int64, device=where.device)
    number[where] = torch.arange(int(where.sum()), device=where.device)
    asked, parts, order = where.any(1), [], []
    for size in sizes[asked].unique().tolist():
        rows = (asked & (sizes == size)).nonzero()[:, 0]
        at = where[rows, :size]
        mine = {
            name: value[rows, :size] if isinstance(value, Tensor) and value.shape[:2] == where.shape else value
            for name, value in inputs.items()
        }
        parts.append(head.logits_at(model, at, **mine))
        order.append(number[rows, :size][at])
    return torch.cat(parts)[torch.cat(order).argsort()]
