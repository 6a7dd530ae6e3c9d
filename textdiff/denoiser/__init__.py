"""q(x0 | xt) by stock transformers and diffusers models, one file per family."""

from textdiff.denoiser.autoregressive import Autoregressive
from textdiff.denoiser.base import Denoiser, Oracle
from textdiff.denoiser.blocks import Blocks
from textdiff.denoiser.changes import Changes
from textdiff.denoiser.continuing import Continuing
from textdiff.denoiser.embedded import Embedded
from textdiff.denoiser.guided import Guided
from textdiff.denoiser.image import Pixels, optimal_variance
from textdiff.denoiser.middle import FimTokens, Middle, fim_tokens
from textdiff.denoiser.onward import Onward
from textdiff.denoiser.parallel import Parallel
from textdiff.denoiser.sentinels import Sentinels, sentinel_ids

__all__ = [
    "Autoregressive",
    "Blocks",
    "Changes",
    "Continuing",
    "Denoiser",
    "Embedded",
    "FimTokens",
    "Guided",
    "Middle",
    "Onward",
    "Oracle",
    "Parallel",
    "Pixels",
    "Sentinels",
    "fim_tokens",
    "optimal_variance",
    "sentinel_ids",
]
