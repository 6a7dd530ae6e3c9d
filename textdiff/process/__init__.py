"""Forward processes x_t = F_t(x_0, eps), one file per family."""

from textdiff.process.base import Process
from textdiff.process.deletion import Deletion
from textdiff.process.masking import Masking

__all__ = ["Deletion", "Masking", "Process"]
