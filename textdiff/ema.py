"""An exponential moving average of the weights, in the place of the weights while it is measured or saved."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Ema:
    """averaged = decay * averaged + (1 - decay) * weights, with the first steps weighed evenly."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"decay must be between 0 and 1; got {decay} (0.999 averages over about a thousand steps)")
        self.names = [name for name, _ in model.named_parameters()]
        self.weights = [weight for _, weight in model.named_parameters()]
        self.decay, self.count = decay, 0
        self.averaged = [weight.detach().clone() for weight in self.weights]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the present weights."""
        self.count += 1
        share = max(1 - self.decay, 1 / (self.count + 1))
        torch._foreach_lerp_(self.averaged, [weight.detach() for weight in self.weights], share)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """The averaged weights in the model, for a while."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for weight, averaged in zip(self.weights, self.averaged, strict=True):
            kept = weight.detach().clone()
            weight.copy_(averaged)
            averaged.copy_(kept)

    def state(self) -> dict[str, Tensor]:
        """The averaged weights by name, and how many updates they hold."""
        return {**dict(zip(self.names, self.averaged, strict=True)), "count": torch.tensor(self.count)}

    @torch.no_grad()
    def load(self, state: dict[str, Tensor]) -> None:
        """Take the averaged weights from `state`."""
        for name, averaged in zip(self.names, self.averaged, strict=True):
            averaged.copy_(state[name])
        self.count = int(state["count"])
