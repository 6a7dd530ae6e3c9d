"""q(x0 | xt) by stock transformers and diffusers models, one file per family."""

from textdiff.denoiser.autoregressive import Autoregressive
from textdiff.denoiser.base import Denoiser, Oracle
from textdiff.denoiser.changes import Changes
from textdiff.denoiser.embedded import Embedded
from textdiff.denoiser.image import Pixels, optimal_variance
from textdiff.denoiser.parallel import Parallel

__all__ = ["Autoregressive", "Changes", "Denoiser", "Embedded", "Oracle", "Parallel", "Pixels", "optimal_variance"]
