"""Forward processes x_t = F_t(x_0, eps), one file per family."""

from textdiff.process.base import Process
from textdiff.process.degradation import Blur, Pixelation, PixelMask
from textdiff.process.deletion import Deletion
from textdiff.process.edit import Edit
from textdiff.process.encoder import Encoder
from textdiff.process.gaussian import VarianceExploding, VariancePreserving
from textdiff.process.masking import Masking
from textdiff.process.mixture import Mixture
from textdiff.process.replacement import Replacement

__all__ = [
    "Blur",
    "Deletion",
    "Edit",
    "Encoder",
    "Masking",
    "Mixture",
    "PixelMask",
    "Pixelation",
    "Process",
    "Replacement",
    "VarianceExploding",
    "VariancePreserving",
]
