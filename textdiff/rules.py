"""Which eps goes back in: every sampler is a choice of noise (Su Jianlin, kexue.fm archives 9262).

A rule is a pure function (process, x_t, draw, t, s, key) -> noise. `fresh`, `posterior` and `partial` keep Su's law, so
with the true q(x0 | xt) they sample the data exactly in any number of steps; `ranked` is a heuristic.
"""

from collections.abc import Callable
from functools import partial as bind

from torch import Tensor

from textdiff.keys import Key
from textdiff.posterior import Draw
from textdiff.process.base import Noise, Process, State

Rule = Callable[[Process, State, Draw, Tensor, Tensor, Key], Noise]


def fresh(process: Process, xt: State, draw: Draw, t: Tensor, s: Tensor, key: Key) -> Noise:
    """Forget x_t: Su's baseline (Mask-Predict's random form)."""
    return process.noise(draw.x0, key)


def posterior(process: Process, xt: State, draw: Draw, t: Tensor, s: Tensor, key: Key) -> Noise:
    """The noise that explains x_t: D3PM-absorbing and MDLM for masks, DDIM for Gaussian noise."""
    return process.infer(xt, draw, t, key)


def partial(rho: float) -> Rule:
    """The posterior with a share rho redrawn: ReMDM with sigma = rho (1 - alpha_s) for masks (arXiv:2503.00307)."""
    if not 0 <= rho <= 1:
        raise ValueError(f"rho {rho} is not a share in [0, 1]; 0 is the posterior, 1 the baseline")
    return bind(_partial, rho)


def _partial(rho: float, process: Process, xt: State, draw: Draw, t: Tensor, s: Tensor, key: Key) -> Noise:
    inferred, new = process.infer(xt, draw, t, key.fold(0)), process.noise(draw.x0, key.fold(1))
    return process.blend(inferred, new, rho, key.fold(2))


def ranked(process: Process, xt: State, draw: Draw, t: Tensor, s: Tensor, key: Key) -> Noise:
    """The posterior's noise, dealt out so that what the model was surest of is revealed first (MaskGIT, LLaDA).

    As many tokens are revealed as the posterior would; only which ones is changed. The confidence is that of the token
    already drawn, which biases the samples even under a perfect denoiser.
    """
    return process.rank(process.infer(xt, draw, t, key), xt, draw)


def sde(scale: float = 1.0) -> Rule:
    """Steps of dx = [f x - (1 + scale^2)/2 g^2 score] dt + scale g dw: DDIM with eta = scale, at 1 DDPM.

    The noise keeps what a Markov path would keep, but for `scale` squared of what it would draw anew (Song et al.,
    arXiv:2010.02502, 2011.13456). Gaussian processes alone. ValueError where more than all of the noise would be new.
    """
    if not 0 <= scale < float("inf"):
        raise ValueError(f"scale {scale} of the noise is not a number from 0 on; 0 is the ODE, 1 the reverse SDE")
    return bind(_sde, scale)


def _sde(scale: float, process: Process, xt: State, draw: Draw, t: Tensor, s: Tensor, key: Key) -> Noise:
    rho = scale**2 * process.renewed(t, s)
    if float(rho.max()) > 1 + 1e-9:
        raise ValueError(f"scale {scale} draws more than all of the noise anew; take more steps, or a scale up to 1")
    inferred, new = process.infer(xt, draw, t, key.fold(0)), process.noise(draw.x0, key.fold(1))
    return process.blend(inferred, new, rho.clamp_max(1), key.fold(2))


ode: Rule = sde(0.0)
"""The probability-flow ODE's step, DDIM with eta = 0: exact where x0_hat does not change along the way."""
