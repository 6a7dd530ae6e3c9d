"""textdiff: diffusion on text, by any transformer, autoregressive or not; and on images, by the same loop.

    x_t = F_t(x_0, eps)                              forward: any transform of any data
    x0_hat ~ q(x_0 | x_t),  x_s = F_s(x0_hat, eps')  reverse: guess, then corrupt a little less

after Su Jianlin's Unified Diffusion Model (kexue.fm archives 9262 and 9271). Importing textdiff makes the tasks
"text-infilling" and "text-diffusion" known to `transformers.pipeline`; nothing heavy is loaded before it is used.
"""

from importlib import import_module
from typing import Any

from textdiff._register import register_when_imported

__version__ = "0.1.0"

_HOMES = {
    "Autoregressive": "textdiff.denoiser",
    "BatchStreamer": "textdiff.streaming",
    "Blocks": "textdiff.denoiser",
    "Blur": "textdiff.process",
    "Changes": "textdiff.denoiser",
    "Checkpoint": "textdiff.checkpoint",
    "Decode": "textdiff.posterior",
    "Deletion": "textdiff.process",
    "Denoiser": "textdiff.denoiser",
    "DiffusionConfig": "textdiff.checkpoint",
    "Draw": "textdiff.posterior",
    "Edit": "textdiff.process",
    "Embedded": "textdiff.denoiser",
    "Encoder": "textdiff.process",
    "Gap": "textdiff.gaps",
    "Images": "textdiff.images",
    "Key": "textdiff.keys",
    "Masking": "textdiff.process",
    "Mixture": "textdiff.process",
    "Objective": "textdiff.udm",
    "Oracle": "textdiff.denoiser",
    "Parallel": "textdiff.denoiser",
    "PixelMask": "textdiff.process",
    "Pixelation": "textdiff.process",
    "Pixels": "textdiff.denoiser",
    "Posterior": "textdiff.posterior",
    "Process": "textdiff.process",
    "Recipe": "textdiff.recipe",
    "Replacement": "textdiff.process",
    "Rule": "textdiff.rules",
    "Specials": "textdiff.tokens",
    "Tokens": "textdiff.tokens",
    "Trainer": "textdiff.trainer",
    "TrainerConfig": "textdiff.trainer",
    "UDM": "textdiff.udm",
    "VarianceExploding": "textdiff.process",
    "VariancePreserving": "textdiff.process",
    "generate": "textdiff.generation",
    "infill": "textdiff.filling",
    "load": "textdiff.checkpoint",
    "rank": "textdiff.scoring",
    "refine": "textdiff.drafts",
    "rule_of": "textdiff.rulebook",
    "sample": "textdiff.sampler",
    "score": "textdiff.scoring",
    "scorer": "textdiff.scoring",
    "tune": "textdiff.tuning",
}

__all__ = [*sorted(_HOMES), "__version__"]


def __getattr__(name: str) -> Any:
    """Public names are imported when they are first used."""
    if name not in _HOMES:
        raise AttributeError(f"module 'textdiff' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__


register_when_imported()
