"""transformers pipelines: `text-infilling` and `text-diffusion`. Importing this registers them."""

from pathlib import Path
from typing import TypeVar, cast

from transformers.pipelines import PIPELINE_REGISTRY

from textdiff.box import FOLDER, box
from textdiff.checkpoint import check_ended, find_config, load
from textdiff.loading import TRUST, refuse_questions
from textdiff.pipelines.base import CLASSES
from textdiff.pipelines.diffusion import TextDiffusionPipeline
from textdiff.pipelines.infilling import TextInfillingPipeline

__all__ = ["TextDiffusionPipeline", "TextInfillingPipeline"]

P = TypeVar("P", TextInfillingPipeline, TextDiffusionPipeline)

refuse_questions()
# on import: `textdiff._register` imports this package as soon as transformers' pipelines are there
PIPELINE_REGISTRY.register_pipeline(
    "text-infilling",
    pipeline_class=TextInfillingPipeline,
    pt_model=CLASSES,
    default={"model": (str(FOLDER), "main")},
    type="text",
)


def open_infilling(path: str | None = None) -> TextInfillingPipeline:
    """The pipeline of a textdiff checkpoint or of any language model, a folder or a hub name; None: the one in the package.

    ValueError, of one line, for what cannot be loaded.
    """
    return _opened("text-infilling", TextInfillingPipeline, path or box())


def open_diffusion(path: str | None = None) -> TextDiffusionPipeline:
    """As `open_infilling`, for writing on."""
    return _opened("text-diffusion", TextDiffusionPipeline, path or box())


def _opened(task: str, kind: type[P], path: str) -> P:
    if not Path(path).exists() and (path.count("/") > 1 or path.startswith((".", "/", "~"))):  # no name on the hub
        raise ValueError(f"{path}: no such folder; name a folder or a hub model")
    if find_config(path) is not None:
        found = load(path)
        return kind(model=found.model, tokenizer=found.tokenizer, diffusion_config=found.config, task=task)
    check_ended(path)
    from transformers import pipeline

    try:
        return cast(P, pipeline(task, model=path, **TRUST))
    except Exception as error:  # transformers, tokenizers and safetensors raise all sorts over a damaged file
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        if not Path(path).exists():
            reason = f"no such file or folder here, and from the hub: {reason}"
        raise ValueError(
            f"{path} cannot be opened as a language model ({reason}); name a folder or a hub model"
        ) from error
