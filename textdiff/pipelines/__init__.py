"""transformers pipelines: `text-infilling` and `text-diffusion`. Importing this registers them."""

from typing import Any

from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM
from transformers.pipelines import PIPELINE_REGISTRY

from textdiff.box import FOLDER, box
from textdiff.checkpoint import find_config, load
from textdiff.pipelines.diffusion import TextDiffusionPipeline
from textdiff.pipelines.infilling import TextInfillingPipeline

__all__ = ["TextDiffusionPipeline", "TextInfillingPipeline"]

# on import: `textdiff._register` imports this package as soon as transformers' pipelines are there
PIPELINE_REGISTRY.register_pipeline(
    "text-infilling",
    pipeline_class=TextInfillingPipeline,
    pt_model=(AutoModelForMaskedLM, AutoModelForCausalLM, AutoModelForSeq2SeqLM),
    default={"model": (str(FOLDER), "main")},
    type="text",
)


def open_infilling(path: str | None = None) -> TextInfillingPipeline:
    """The pipeline of a textdiff checkpoint or of any language model, a folder or a hub name; None: the one in the package.

    ValueError, of one line, for what cannot be loaded.
    """
    path = path or box()
    if find_config(path) is not None:
        found = load(path)
        parts: dict[str, Any] = {"model": found.model, "tokenizer": found.tokenizer, "diffusion_config": found.config}
        return TextInfillingPipeline(**parts, task="text-infilling")
    from transformers import pipeline

    try:
        return pipeline("text-infilling", model=path)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"{path} cannot be opened as a language model ({reason}); name a folder or a hub model"
        ) from error
