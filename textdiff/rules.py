"""Which eps goes back in: every sampler is a choice of noise (Su Jianlin, kexue.fm archives 9262).

A rule chooses (process, x_t, draw, t, s, key) -> noise. `fresh`, `posterior` and `partial` keep Su's law at every step, so
with the true q(x0 | xt) they sample the data exactly in any number of steps. What reveals by choice is in `revealing`, what
hides again in `remasking`, names are in `rulebook`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial as bind

import torch
from torch import Tensor

from textdiff.keys import Key
from textdiff.posterior import Draw
from textdiff.process.base import Noise, Process, State
from textdiff.validation import check_number

Choice = Callable[[Process, State, Draw, Tensor, Tensor, Key], Noise]
When = Callable[[Process, State, Tensor], Tensor]
Times = Callable[[Tensor, Tensor], Tensor]


def always(process: Process, x: State, t: Tensor) -> Tensor:
    """Something may happen at every step."""
    return t


def until_closed(process: Process, x: State, t: Tensor) -> Tensor:
    """At every step, as long as something is hidden; each step reveals something, so there may be infinitely many."""
    return torch.where(process.moment(x, t) > 0, t * (1 - 1e-7), 0.0)


def by_noise(process: Process, x: State, t: Tensor) -> Tensor:
    """When the noise that x carries says so: the shared eps is kept, and its values are the moments of change."""
    return process.moment(x, t)


def evenly(number: Tensor, steps: Tensor) -> Tensor:
    """The share of the time that is left (B,) after `number` of `steps` steps (B,)."""
    return 1 - number / steps


@dataclass(frozen=True)
class Rule:
    """choose: which noise goes back in. A function of your own is a rule: `Rule(function)`.

    ordered: whether it can be run block by block, by models that write so: each block is then begun when those before it
        are done, and nothing in these is hidden again but with all that follows.
    when: (process, x, t) -> (B,) the latest moment before t at which the state changes under this rule. Steps before it are
        not taken, where the denoiser is not told t: they would leave x as it is.
    times: (number, steps) -> (B,) where on the way from noise, 1, to data, 0, a row is after so many of its steps.
    """

    choose: Choice
    when: When = always
    times: Times = evenly
    ordered: bool = True

    def __call__(self, process: Process, xt: State, draw: Draw, t: Tensor, s: Tensor, key: Key) -> Noise:
        """The noise that goes back in, whatever is drawn of the guess yet.

        Raises:
            ValueError: For a process that this rule does not cover, or a model that writes in blocks and a rule that
                cannot be run block by block.
        """
        if draw.lane is not None and not self.ordered:
            raise ValueError(
                "this rule hides single words again wherever they stand, and a model that writes block by block does not "
                "read what follows a block; use posterior, partial, ranked, threshold, budget or top"
            )
        draw = draw.drawn(process.reads(draw))
        noise = self.choose(process, xt, draw, t, s, key)
        return noise if draw.lane is None else process.in_turn(noise, draw.x0, draw.lane)


def _fresh(process: Process, xt: State, draw: Draw, t: Tensor, s: Tensor, key: Key) -> Noise:
    return process.noise(draw.x0, key)


fresh = Rule(_fresh)
"""Forget x_t: Su's baseline (Mask-Predict's random form)."""


def _posterior(process: Process, xt: State, draw: Draw, t: Tensor, s: Tensor, key: Key) -> Noise:
    return process.infer(xt, draw, t, key)


posterior = Rule(_posterior, by_noise)
"""The noise that explains x_t: D3PM-absorbing and MDLM for masks, DDIM for Gaussian noise."""


def partial(rho: float) -> Rule:
    """The posterior with a share rho redrawn: ReMDM with sigma = rho (1 - alpha_s) for masks (arXiv:2503.00307)."""
    if not 0 <= check_number("rho", rho) <= 1:
        raise ValueError(f"rho {rho} is not a share in [0, 1]; 0 is the posterior, 1 the baseline")
    return Rule(bind(_partial, rho))


def _partial(rho: float, process: Process, xt: State, draw: Draw, t: Tensor, s: Tensor, key: Key) -> Noise:
    inferred, new = process.infer(xt, draw, t, key.fold(0)), process.noise(draw.x0, key.fold(1))
    return process.blend(inferred, new, rho, key.fold(2))


def sde(scale: float = 1.0) -> Rule:
    """Steps of dx = [f x - (1 + scale^2)/2 g^2 score] dt + scale g dw: DDIM with eta = scale, at 1 DDPM.

    The noise keeps what a Markov path would keep, but for `scale` squared of what it would draw anew (Song et al.,
    arXiv:2010.02502, 2011.13456). Gaussian processes alone. ValueError where more than all of the noise would be new.
    """
    if check_number("scale", scale) < 0:
        raise ValueError(f"scale {scale} of the noise is not a number from 0 on; 0 is the ODE, 1 the reverse SDE")
    return Rule(bind(_sde, scale))


def _sde(scale: float, process: Process, xt: State, draw: Draw, t: Tensor, s: Tensor, key: Key) -> Noise:
    rho = scale**2 * process.renewed(t, s)
    if float(rho.max()) > 1 + 1e-9:
        raise ValueError(f"scale {scale} draws more than all of the noise anew; take more steps, or a scale up to 1")
    inferred, new = process.infer(xt, draw, t, key.fold(0)), process.noise(draw.x0, key.fold(1))
    return process.blend(inferred, new, rho.clamp_max(1), key.fold(2))


ode = sde(0.0)
"""The probability-flow ODE's step, DDIM with eta = 0: exact where x0_hat does not change along the way."""
