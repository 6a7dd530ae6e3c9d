"""Masking: x_i becomes [MASK] where u_i < beta(t) (Su's 掩码模型, kexue.fm archives 9271; D3PM-absorbing, MDLM, LLaDA).

Posterior of the noise: a masked token had u < beta(t), a visible one u >= beta(t). With independent tokens the reverse
step reveals each mask with probability (beta_t - beta_s) / beta_t and touches nothing else. The bound is
int beta'/beta sum_masked -log q dt (arXiv:2406.04329, 2406.07524). It needs of the noise only that u_i is uniform on
[0, beta) given all that is masked, so it holds for spans as well; and of q that it speaks of each token alone (parallel).
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from textdiff.keys import Key
from textdiff.posterior import Draw, Posterior
from textdiff.process.base import PRIOR, Process
from textdiff.process.uniform import Uniform, shuffled
from textdiff.schedule import Linear, Schedule, reaching
from textdiff.tokens import Specials, Tokens


class Masking(Process):
    """Mask tokens; lengths stay.

    spans: mean lengths of masked spans, one drawn per text; (1,) is independent tokens.
    counts: mask exactly round(beta n) of the n tokens of a text (Su's "t of l"). The bound is the same, and `probe` draws
    it; the weighted loss, which draws t, is then close to it, not equal.
    """

    def __init__(
        self,
        specials: Specials,
        schedule: Schedule | None = None,
        spans: tuple[float, ...] = (1,),
        counts: bool = False,
    ) -> None:
        self.specials = specials
        self.schedule = reaching(schedule or Linear())
        self.uniform = Uniform(spans, counts)

    def noise(self, x0: Tokens, key: Key) -> Tensor:
        return self.uniform.draw(x0, key)

    def corrupt(self, x0: Tokens, noise: Tensor, t: Tensor) -> Tokens:
        hidden = (noise < self.schedule.beta(t)[:, None]) & x0.valid & (x0.ids != self.specials.gap)
        return x0.with_(
            ids=x0.ids.masked_fill(hidden, self.specials.mask),
            score=x0.score.masked_fill(hidden, 0.0),
            eps=noise.masked_fill(x0.fixed | ~x0.valid, -1.0),
        )

    def infer(self, xt: Tokens, draw: Draw, t: Tensor, key: Key) -> Tensor:
        beta, hidden = self.schedule.beta(t)[:, None], self.hidden(xt, draw)
        low, high = torch.where(hidden, 0.0, beta), torch.where(hidden, beta, 1.0)
        return self.uniform.infer(draw.x0, low, high, key, draw.seen(xt.eps))

    def reads(self, draw: Draw) -> Tensor:
        return torch.zeros_like(draw.x0.fixed)

    def prior(self, x: Tokens, key: Key) -> Tokens:
        return super().prior(x, key.fold(PRIOR))

    def beta(self, t: Tensor) -> Tensor:
        return self.schedule.beta(t)

    def shown(self, x0: Tokens, noise: Tensor, s: Tensor) -> Tensor:
        return noise >= self.schedule.beta(s)[:, None]

    def moment(self, x: Tokens, t: Tensor) -> Tensor:
        return self.uniform.moment(x.eps, (x.ids == self.specials.mask) & ~x.fixed, t, self.schedule)

    def hidden(self, xt: Tokens, draw: Draw) -> Tensor:
        return (draw.seen(xt.ids) == self.specials.mask) & ~draw.x0.fixed & draw.x0.valid

    def align(self, x0: Tokens, noise: Tensor, t: Tensor) -> Draw:
        place = torch.arange(x0.ids.shape[1], device=x0.ids.device).expand_as(x0.ids)
        return Draw(x0, place, x0.score)

    def blend(self, inferred: Tensor, fresh: Tensor, rho: float | Tensor, key: Key) -> Tensor:
        return self.uniform.blend(inferred, fresh, rho, key)

    def rank(self, noise: Tensor, xt: Tokens, draw: Draw, score: Tensor, lane: Tensor | None = None) -> Tensor:
        return self.uniform.rank(noise, self.hidden(xt, draw), score, lane)

    def deal(self, noise: Tensor, x0: Tokens, hide: Tensor, s: Tensor, key: Key) -> Tensor:
        return self.uniform.deal(noise, x0, hide, self.schedule.beta(s)[:, None], key)

    def in_turn(self, noise: Tensor, x0: Tokens, lane: Tensor) -> Tensor:
        return self.uniform.rank(noise, x0.valid & ~x0.fixed, noise, lane)

    def weight(self, t: Tensor) -> Tensor:
        return self.schedule.weight(t)

    def price(self, posterior: Posterior, truth: Draw, xt: Tokens, t: Tensor) -> Tensor:
        posterior.need_product("masking")
        return super().price(posterior, truth, xt, t)

    def probe(self, x0: Tokens, key: Key) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """One look, unbiased for the integral, at a set of masks instead of a time, which has far less variance."""
        hidden, weight = self._any_size(x0, key) if max(self.uniform.spans) == 1 else self._any_share(x0, key)
        t = torch.full((len(x0),), 0.5, dtype=torch.float64, device=hidden.device)
        beta = self.schedule.beta(t)[:, None]
        yield torch.where(hidden, beta / 2, (1 + beta) / 2).masked_fill(x0.fixed, 1.0), t, weight

    def _any_size(self, x0: Tokens, key: Key) -> tuple[Tensor, Tensor]:
        """Exactly K of the n tokens, K uniform on 1..n, with the weight n/K (any-order form)."""
        free = x0.valid & ~x0.fixed
        size = free.sum(1)
        count = (key.fold(0).uniform(1)[:, 0] * size).long() + 1
        return shuffled(free, key.fold(1)) < count[:, None], size.double() / count

    def _any_share(self, x0: Tokens, key: Key) -> tuple[Tensor, Tensor]:
        """What is below a share drawn from dbeta/beta between the row's least u and 1, with that integral as the weight.

        Below the least u nothing is masked, so int_0^1 dbeta/beta begins there.
        """
        u = self.uniform.draw(x0, key.fold(1)).masked_fill(~x0.valid, 1.0)
        least = u.min(1, keepdim=True).values
        share = least ** key.fold(0).uniform(1)
        return u < share, -least[:, 0].log()

    def size(self, x0: Tokens) -> Tensor:
        return x0.sizes

    def cells(self, x0: Tokens, t: Tensor) -> tuple[Tensor, Tensor]:
        return self.uniform.cells(x0, float(self.schedule.beta(t)))
