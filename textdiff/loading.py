"""The one place where stock models, configurations and tokenizers are loaded: no code of theirs ever runs.

A folder or hub repository may name classes of its own (`auto_map` in config.json or tokenizer_config.json). Left to itself,
transformers asks on standard input whether to run them, and a program that reads its texts from there answers by accident.
So everything is loaded with trust_remote_code=False. `refuse_questions` closes the same door for `transformers.pipeline`.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

TRUST = {"trust_remote_code": False}


def from_pretrained(loader: Any, path: str | Path, **options: Any) -> Any:
    """Return what a class of transformers loads from a folder or hub name, without running code that comes with it.

    Raises:
        OSError, ValueError: For files that are not there, or damaged.
        IncompleteModel: For a model without all its weights.
    """
    with damage_is_an_error(path):
        return loader.from_pretrained(path, **options, **TRUST)


@contextmanager
def damage_is_an_error(path: str | Path) -> Iterator[None]:
    """Make DamagedFile of what safetensors, pickle, tokenizers and torch raise over damaged files."""
    try:
        yield
    except (OSError, ValueError, IncompleteModel):
        raise
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise DamagedFile(f"{path} holds a damaged file ({reason}); copy the model again") from error


class DamagedFile(ValueError):
    """A file of a model that no library can read."""


class IncompleteModel(LookupError):
    """A model whose files lack weights that it needs. transformers would draw them at random."""


def whole(loader: Any) -> Any:
    """An Auto class that loads as the given one does, and refuses a model that lacks weights.

    `transformers.pipeline` tries its classes in turn, passing over a ValueError: this is one where the files are those of
    another class, which may be tried next; of the very class the files are incomplete, and no other will do.
    """

    class Whole(loader):
        @classmethod
        def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
            told = kwargs.pop("output_loading_info", False)
            model, notes = super().from_pretrained(*args, output_loading_info=True, **kwargs)
            made, own = type(model).__name__, model.config.architectures or []
            if own and made not in own and _is_text_model(own[0]):
                raise ValueError(f"{args[0]} is a {own[0]}, not a {made}")
            if notes["missing_keys"]:
                lack = f"lacks weights that {made} needs, such as {min(notes['missing_keys'])}"
                if made in own:
                    raise IncompleteModel(f"{args[0]} {lack}; copy the model again")
                raise ValueError(f"{args[0]} {lack}; name a model that was trained to write texts")
            return (model, notes) if told else model

    Whole.__name__ = Whole.__qualname__ = loader.__name__
    return Whole


def _is_text_model(name: str) -> bool:
    """Whether a class writes texts, as a masked, a causal or an encoder-decoder model."""
    from transformers.models.auto import modeling_auto as auto

    mappings = (auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES, auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
                auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES)  # fmt: skip
    return any(name in ((one,) if isinstance(one, str) else one) for names in mappings for one in names.values())


def from_config(loader: Any, config: Any, **options: Any) -> Any:
    """Return a model with random weights, of a class of transformers' own."""
    return loader.from_config(config, **options, **TRUST)


def from_diffusers(loader: Any, path: str | Path, **options: Any) -> Any:
    """Return what a model class of diffusers loads; these classes never run code of a folder."""
    with damage_is_an_error(path):
        return loader.from_pretrained(path, **options)


def need_finite(model: Any) -> None:
    """Raise ValueError, naming the weight, for a model whose weights are not all finite: it predicts nothing."""
    for name, weight in model.named_parameters():
        if not weight.is_floating_point() or weight.device.type == "meta":
            continue
        if not bool(weight.sum(dtype=torch.float32).isfinite()):
            raise ValueError(
                f"the model's weights are not finite: NaN or infinity in {name}; copy the model again, or use another one"
            )


def refuse_questions() -> None:
    """Make transformers refuse, not ask, where nobody can answer: standard input is no terminal.

    `transformers.pipeline("text-infilling", model=...)` loads the model before this library sees it. With nobody at a
    terminal, the next line of a pipe would answer "run the custom code? [y/N]". Now transformers raises the error of a
    question that timed out. At a terminal, and for trust_remote_code=True, nothing changes.
    """
    from transformers import dynamic_module_utils

    if sys.stdin is None or not sys.stdin.isatty():
        dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0
