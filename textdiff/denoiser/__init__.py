"""q(x0 | xt) by stock transformers models, one file per family."""

from textdiff.denoiser.autoregressive import Autoregressive
from textdiff.denoiser.base import Denoiser, Oracle
from textdiff.denoiser.parallel import Parallel

__all__ = ["Autoregressive", "Denoiser", "Oracle", "Parallel"]
