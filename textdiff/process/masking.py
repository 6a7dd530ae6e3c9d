"""Masking: x_i becomes [MASK] where u_i < beta(t) (Su's 掩码模型, kexue.fm archives 9271; D3PM-absorbing, MDLM, LLaDA).

Posterior of the noise: a masked token had u < beta(t), a visible one u >= beta(t). With independent tokens the reverse
step reveals each mask with probability (beta_t - beta_s) / beta_t and touches nothing else. The bound is
int beta'/beta sum_masked -log q dt (arXiv:2406.04329, 2406.07524).
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from textdiff.keys import Key
from textdiff.posterior import Draw
from textdiff.process.base import Process
from textdiff.process.uniform import Uniform
from textdiff.schedule import Linear, Schedule
from textdiff.tokens import Specials, Tokens


class Masking(Process):
    """Mask tokens; lengths stay. `spans`: mean lengths of masked spans, one drawn per text; (1,) is independent tokens."""

    def __init__(self, specials: Specials, schedule: Schedule | None = None, spans: tuple[float, ...] = (1,)) -> None:
        self.specials = specials
        self.schedule = schedule or Linear()
        self.uniform = Uniform(spans)

    def noise(self, x0: Tokens, key: Key) -> Tensor:
        return self.uniform.draw(x0, key)

    def corrupt(self, x0: Tokens, noise: Tensor, t: Tensor) -> Tokens:
        hidden = (noise < self.schedule.beta(t)[:, None]) & x0.valid
        return x0.with_(ids=x0.ids.masked_fill(hidden, self.specials.mask), score=x0.score.masked_fill(hidden, 0.0))

    def infer(self, xt: Tokens, draw: Draw, t: Tensor, key: Key) -> Tensor:
        beta = self.schedule.beta(t)[:, None]
        hidden = (xt.ids == self.specials.mask) & ~xt.fixed
        return self.uniform.infer(draw.x0, torch.where(hidden, 0.0, beta), torch.where(hidden, beta, 1.0), key)

    def align(self, x0: Tokens, noise: Tensor, t: Tensor) -> Draw:
        place = torch.arange(x0.ids.shape[1], device=x0.ids.device).expand_as(x0.ids)
        return Draw(x0, place, x0.score)

    def blend(self, inferred: Tensor, fresh: Tensor, rho: float, key: Key) -> Tensor:
        return self.uniform.blend(inferred, fresh, rho, key)

    def rank(self, noise: Tensor, xt: Tokens, draw: Draw) -> Tensor:
        return self.uniform.rank(noise, (xt.ids == self.specials.mask) & ~xt.fixed, draw.log_prob)

    def weight(self, t: Tensor) -> Tensor:
        return self.schedule.weight(t)

    def probe(self, x0: Tokens, key: Key) -> tuple[Tensor, Tensor, Tensor]:
        """Mask exactly K of the n tokens, K uniform on 1..n, weight n/K: the same bound, far less variance (AO-ARM form)."""
        free = x0.valid & ~x0.fixed
        size = free.sum(1)
        count = (key.fold(0).uniform(1)[:, 0] * size).long() + 1
        order = key.fold(1).uniform(x0.ids.shape[1]).masked_fill(~free, 2.0).argsort(1)
        rank = torch.empty_like(order).scatter(
            1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
        )
        t = torch.full((len(x0),), 0.5, dtype=torch.float64, device=order.device)
        beta = self.schedule.beta(t)[:, None]
        noise = torch.where(rank < count[:, None], beta / 2, (1 + beta) / 2).masked_fill(x0.fixed, 1.0)
        return noise, t, size.double() / count

    def size(self, x0: Tokens) -> Tensor:
        return x0.sizes

    def cells(self, x0: Tokens, t: Tensor) -> Iterator[tuple[Tensor, float]]:
        yield from self.uniform.cells(x0, float(self.schedule.beta(t)))
