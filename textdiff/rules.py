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
