"""x_t = F_t(x_0, eps), eps ~ q(eps): any transform of any data (Su Jianlin, kexue.fm archives 9262).

The noise is shared across all t: one eps gives the whole path from data to noise. In reverse, a rule chooses which eps
goes back in, and that choice is the sampler. The law every choice has to keep is Su's

    sum_{x_t} p(x_s | x_t, x_0) q(x_t | x_0) = q(x_s | x_0).

Models draw the words of a guess late. What a process infers from a guess may not depend on which words are drawn yet, so the
words that it reads are drawn before it reads them: `Process.reads` names these, `Rule` and `sample` draw them.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from textdiff.keys import Key
from textdiff.posterior import Draw, Posterior

Noise = Any
State = Any
PRIOR = 1 << 42  # a use of a key that no step has: of a prior that carries its noise, lest the loop draws it again


class Process(ABC):
    """A forward process. A new one needs `noise` and `corrupt`; it then samples by the baseline, and `infer` sharpens it."""

    @abstractmethod
    def noise(self, x0: State, key: Key) -> Noise:
        """eps ~ q(eps), in the shape x0 needs."""

    @abstractmethod
    def corrupt(self, x0: State, noise: Noise, t: Tensor) -> State:
        """x_t = F_t(x_0, eps) at times t (B,)."""

    def infer(self, xt: State, draw: Draw, t: Tensor, key: Key) -> Noise:
        """eps ~ q(eps | x_t, x0_hat). The default forgets x_t: Su's baseline."""
        return self.noise(draw.x0, key)

    def reads(self, draw: Draw) -> Tensor | None:
        """Return the elements of a guess whose words this process looks at, beside x_t, to infer a noise.

        Args:
            draw: The guess, of M elements, with words that are not drawn yet.

        Returns:
            (B, M) bool; None for all, which is always right. A process that tells what is hidden from x_t alone names
            none, and has words drawn where x_s shows them (`shown`).
        """
        return None

    def align(self, x0: State, noise: Noise, t: Tensor) -> Draw:
        """The truth as a draw: x_0 and where in x_t each of its elements is."""
        return Draw(x0, torch.empty(0, dtype=torch.int64), torch.zeros(()))

    def blend(self, inferred: Noise, fresh: Noise, rho: float | Tensor, key: Key) -> Noise:
        """A noise that keeps the inferred one but for a share rho. A mixture of whole rows is exact for any process."""
        pick = (key.uniform(1) < rho)[:, 0]
        return torch.where(pick.view(-1, *[1] * (inferred.dim() - 1)), fresh, inferred)

    def renewed(self, t: Tensor, s: Tensor) -> Tensor:
        """The share of the noise that a Markov path from s to t draws anew, to be given to `blend`.

        For Gaussian noise 1 - SNR_t / SNR_s (B, 1, ...): what makes the shared noise DDPM's and the limit an SDE.
        """
        raise ValueError(
            f"{type(self).__name__} is no Gaussian process, so it has no SDE; use the posterior or partial rule"
        )

    @property
    def tied(self) -> bool:
        """Whether x_t tells of x_0 by how many elements it hides, or by which together: then none is hidden by itself."""
        return False

    def beta(self, t: Tensor) -> Tensor:
        """(B,) the share corrupted at times t (B,)."""
        raise ValueError(_no_tokens(self))

    def shown(self, x0: State, noise: Noise, s: Tensor) -> Tensor | None:
        """(B, M) bool, which elements of a guess can be read in x_s; None for all. No other word has to be drawn."""
        return None

    def moment(self, x: State, t: Tensor) -> Tensor:
        """(B,) the latest time before t at which x changes if it keeps its noise, 0 where nothing is left to change.

        t itself where that is not known: then every step has to be taken.
        """
        return t

    def hidden(self, xt: State, draw: Draw) -> Tensor:
        """(B, M) bool, which elements of the guess x_t does not show."""
        raise ValueError(_no_tokens(self))

    def rank(self, noise: Noise, xt: State, draw: Draw, score: Tensor, lane: Tensor | None = None) -> Noise:
        """The same noise, dealt out among what is hidden: revealed first is what has the largest score (B, M).

        lane: (B, M) int64, of the lower ones all are revealed before any of a higher one.
        """
        raise ValueError(_no_tokens(self))

    def deal(self, noise: Noise, x0: State, hide: Tensor, s: Tensor, key: Key) -> Noise:
        """The noise, changed where it has to be so that just the elements `hide` (B, M) are hidden in x_s."""
        raise ValueError(_no_tokens(self))

    def in_turn(self, noise: Noise, x0: State, lane: Tensor) -> Noise:
        """Deal the noise out anew, so that x_s shows all elements of a lane before any of a later one.

        As many elements are shown at any s as before, and those of a lane in the same order.

        Args:
            noise: The noise of x0.
            x0: The guess, of M elements.
            lane: (B, M) int64, the block that each element is in.

        Raises:
            ValueError: For a process whose tokens have no noise each.
        """
        raise ValueError(_no_tokens(self))

    def prior(self, x: State, key: Key) -> State:
        """x_1, in the form of x."""
        return self.corrupt(x, self.noise(x, key), torch.ones(len(x), dtype=torch.float64, device=key.device))

    def weight(self, t: Tensor) -> Tensor:
        """The weight of -log q at times t (B,) in the likelihood bound; 1 where no bound is known."""
        return torch.ones_like(t)

    def price(self, posterior: Posterior, truth: Draw, xt: State, t: Tensor) -> Tensor:
        """(B,) what the likelihood bound counts at x_t, before its weight, in nats: -log q(x_0 | x_t), unless it is less."""
        return -posterior.log_prob(truth).double().sum(1)

    def probe(self, x0: State, key: Key) -> Iterator[tuple[Noise, Tensor, Tensor]]:
        """One unbiased draw of the likelihood bound: looks, whose prices times their weights add up to it.

        A look is a noise, times (B,) and a weight (B,). The default is the bound of a single step, -log q(x0 | x_1): exact
        for an autoregressive q, loose for others. It holds where the prior is a point.
        """
        one = torch.ones(len(key), dtype=torch.float64, device=key.device)
        yield self.noise(x0, key), one, one

    def size(self, x0: State) -> Tensor:
        """(B,) how many elements of each row there are to explain: what losses and bounds are divided by."""
        return torch.ones(len(x0), dtype=torch.float64)

    def cells(self, x0: State, t: Tensor) -> tuple[Noise, Tensor]:
        """Every noise of one row that makes a difference at time t (1,), as a batch (M, ...), and its probability (M,).

        For exact tests on toys.
        """
        raise ValueError(f"the noise of {type(self).__name__} cannot be enumerated")


def _no_tokens(process: Process) -> str:
    return f"{type(process).__name__} has no noise per token to deal out by confidence; use the posterior rule"
