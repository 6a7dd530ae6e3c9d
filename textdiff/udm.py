"""The model that is trained: a process and a denoiser, L = E[-log q(x0 | F_t(x0, eps))] (kexue.fm archives 9262)."""

from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor, nn

from textdiff.denoiser.base import Denoiser
from textdiff.keys import Key
from textdiff.options import Range, check_options
from textdiff.process.base import Process
from textdiff.validation import check_integer


@dataclass(frozen=True)
class Objective:
    """Which times are drawn, and how they count.

    Attributes:
        weighted: Weigh -log q by the process's bound. Unbiased for the likelihood, but noisy: the default trains faster.
        blank: Share of the examples shown at t = 1, as a blank page: an autoregressive model's likelihood in one step.
        power: t = u ** power with u uniform; above 1 draws more of the light corruption that infilling shows.
        steps: Discrete time, t = 1/steps, 2/steps, ..., 1; 0 for continuous time.
    """

    weighted: bool = False
    blank: Annotated[float, Range(least=0, most=1)] = 0.0
    power: Annotated[float, Range(above=0, most=1e3)] = 1.0
    steps: Annotated[int, Range(least=0, most=10**9)] = 0

    def __post_init__(self) -> None:
        check_options(self, "objective")

    def times(self, key: Key) -> Tensor:
        """t (B,) float64."""
        u = key.uniform(2)
        t = torch.where(u[:, 0] < self.blank, 1.0, u[:, 1] ** self.power)
        return (t * self.steps).ceil() / self.steps if self.steps else t


class Loss(NamedTuple):
    """The summed loss of a batch in nats, and the number of elements it explains: sums add up over batches and machines."""

    total: Tensor
    size: Tensor


class UDM(nn.Module):
    """A process, a denoiser and an objective. Everything random comes from `key`, a row per example."""

    denoiser: Denoiser

    def __init__(self, process: Process, denoiser: Denoiser, objective: Objective | None = None) -> None:
        super().__init__()
        self.process, self.denoiser, self.objective = process, denoiser, objective or Objective()

    def forward(self, x0: Any, key: Key) -> Loss:
        """The training loss of a batch. All of it in one forward, because DDP, FSDP and autocast wrap `forward` alone."""
        t = self.objective.times(key.fold(0))
        noise = self.process.noise(x0, key.fold(1))
        weight = self.process.weight(t) if self.objective.weighted else torch.ones_like(t)
        xt, truth = self.process.corrupt(x0, noise, t), self.process.align(x0, noise, t)
        xt = self.denoiser.reminded(xt, t, key.fold(2))
        nll = -self.denoiser(xt, t).log_prob(truth).double().sum(1)
        return Loss((nll * weight).sum(), self.process.size(x0).sum())

    @torch.no_grad()
    def bound(self, x0: Any, key: Key, draws: int = 1) -> Tensor:
        """(B,) unbiased estimates of an upper bound on -log p(x0) in nats, the mean of `draws` looks at each row.

        A model that reads its last guess is asked without one: the bound is of q(x0 | xt) alone.
        """
        check_integer("draws", draws, least=1)
        total = torch.zeros(len(key), dtype=torch.float64, device=key.device)
        for number in range(draws):
            for noise, t, weight in self.process.probe(x0, key.fold(number)):
                xt, truth = self.process.corrupt(x0, noise, t), self.process.align(x0, noise, t)
                total += self.process.price(self.denoiser(xt, t), truth, xt, t) * weight
        return total / draws
