"""Stock models to start from: a preset from scratch, or any pretrained one.

parallel: ModernBERT's architecture, any `AutoModelForMaskedLM`, or any `AutoModelForCausalLM` whose attention can be opened
to both sides, or read block by block (there from scratch, too: Llama's). autoregressive: Llama's, or any
`AutoModelForCausalLM`. seq2seq: T5's (version 1.1), or any `AutoModelForSeq2SeqLM`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from textdiff.checkpoint import (
    AUTO_CLASSES,
    DiffusionConfig,
    both_ways,
    chosen,
    open_model,
    probe,
    same_reading,
)
from textdiff.loading import DamagedFile, damage_is_an_error, from_config, from_pretrained
from textdiff.tokens import Specials

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Size:
    """A preset's shape. theta, the base of the rotary positions: a small one tells neighbours apart in short windows."""

    hidden: int
    layers: int
    heads: int
    inner: int
    theta: float


SIZES = {
    "tiny": Size(hidden=192, layers=4, heads=4, inner=512, theta=100.0),
    "mini": Size(hidden=256, layers=4, heads=4, inner=704, theta=1000.0),
    "small": Size(hidden=512, layers=8, heads=8, inner=1408, theta=1000.0),
    "base": Size(hidden=768, layers=12, heads=12, inner=2048, theta=10000.0),
}


def _modernbert(size: Size, ids: Specials, common: dict[str, Any]) -> "PreTrainedConfig":
    from transformers import ModernBertConfig

    # every layer sees everything: windows are short, and packed rows bring a mask of their own
    return ModernBertConfig(
        **common,
        cls_token_id=ids.bos,
        sep_token_id=ids.end,
        intermediate_size=size.inner,
        global_attn_every_n_layers=1,
        local_attention=common["max_position_embeddings"],
        rope_parameters={name: _rope(size) for name in ("full_attention", "sliding_attention")},
        # a head that hands the stream on as it is, and embeddings apart, so that `spectral` can set both
        classifier_activation="linear",
        tie_word_embeddings=False,
    )


def _llama(size: Size, ids: Specials, common: dict[str, Any]) -> "PreTrainedConfig":
    from transformers import LlamaConfig

    return LlamaConfig(
        **common,
        intermediate_size=size.inner,
        num_key_value_heads=size.heads,
        rope_parameters=_rope(size),
        tie_word_embeddings=False,
    )


def _rope(size: Size) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": size.theta}


def _t5(size: Size, ids: Specials, common: dict[str, Any]) -> "PreTrainedConfig":
    from transformers import T5Config

    return T5Config(
        vocab_size=common["vocab_size"],
        d_model=size.hidden,
        d_kv=size.hidden // size.heads,
        d_ff=size.inner,
        num_layers=size.layers,
        num_heads=size.heads,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        pad_token_id=ids.pad,
        eos_token_id=ids.end,
        decoder_start_token_id=ids.fill,
        tie_word_embeddings=True,
    )


_FAMILIES: dict[str, Callable[[Size, Specials, dict[str, Any]], "PreTrainedConfig"]] = {
    "parallel": _modernbert,
    "autoregressive": _llama,
    "seq2seq": _t5,
}


def new_model(denoiser: str, preset: str, ids: Specials, vocab: int, context: int) -> Any:
    """A model from scratch, its weights drawn from torch's generator."""
    import transformers

    family = chosen(denoiser, _FAMILIES, "denoiser")
    size = chosen(preset, SIZES, "preset")
    common = {
        "vocab_size": vocab,
        "hidden_size": size.hidden,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "max_position_embeddings": context,
        "pad_token_id": ids.pad,
        "bos_token_id": ids.bos,
        "eos_token_id": ids.end,
    }
    return from_config(getattr(transformers, AUTO_CLASSES[denoiser]), family(size, ids, common))


def pretrained_model(
    diffusion: DiffusionConfig, path: str, tokenizer: "PreTrainedTokenizerBase", known: int | None = None,
    weights: bool = True,
) -> Any:  # fmt: skip
    """A pretrained model with room for the tokenizer's new tokens, and none for more. Never runs code from the checkpoint.

    known: the tokens that it knew, the first of the tokenizer's; all where left out. The rows of the others, in embeddings
    and head, begin as `new_rows` says. weights: False takes the architecture alone, drawn from torch's generator. ValueError
    where it cannot be loaded, or read as `diffusion` wants to.
    """
    same_reading(path, diffusion)
    try:
        model = open_model(path, diffusion)[0] if weights else _drawn(path, diffusion)
    except DamagedFile:
        raise
    except (OSError, ValueError) as error:
        raise _not_loaded(path, diffusion, str(error)) from error
    probe(model, diffusion)
    old = model.get_input_embeddings().num_embeddings
    mask = getattr(model.config, "mask_token_id", None)
    rows = [] if mask is None or mask >= old else [part[mask].clone() for part in vocabulary(model)]
    if old != len(tokenizer):
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    first = min(old, len(tokenizer) if known is None else known)
    new_rows(model, first)
    if rows and first <= tokenizer.mask_token_id:  # the model knows a mask, its tokenizer did not (LLaDA)
        for part, row in zip(vocabulary(model), rows, strict=True):
            part.data[tokenizer.mask_token_id] = row
        model.config.mask_token_id = tokenizer.mask_token_id
    return model


def check_pretrained(diffusion: DiffusionConfig, path: str, context: int) -> None:
    """Refuse a pretrained model that cannot be read as `diffusion` wants to, by its configuration alone.

    Args:
        context: Tokens of the longest window.

    Raises:
        ValueError: Where there is none, it is of another family, or it reads shorter texts.
    """
    import transformers

    same_reading(path, diffusion)
    if (Path(path) / "adapter_config.json").is_file() and not (Path(path) / "config.json").is_file():
        raise ValueError(
            f"{path} is a folder of adapters; save the whole model first: "
            f'pipeline("text-infilling", model={path!r}).save_pretrained(FOLDER)'
        )
    try:
        config = from_pretrained(transformers.AutoConfig, path)
    except (OSError, ValueError) as error:
        raise _not_loaded(path, diffusion, str(error)) from error
    name = AUTO_CLASSES["autoregressive" if diffusion.backbone == "causal" else diffusion.denoiser]
    if type(config) not in getattr(transformers, name)._model_mapping:
        raise _not_loaded(path, diffusion, f"{config.model_type} is not of the kind of {name}")
    longest = getattr(config.get_text_config(), "max_position_embeddings", None)
    if isinstance(longest, int) and 0 < longest < context:
        raise ValueError(f"data.context {context} is more than {path} reads; give up to {longest}")


def _not_loaded(path: str, diffusion: DiffusionConfig, reason: str) -> ValueError:
    kind = f"{'an' if diffusion.denoiser.startswith('a') else 'a'} {diffusion.denoiser}"
    return ValueError(
        f"{path} cannot be loaded as {kind} model ({next(iter(reason.strip().splitlines()), 'unknown')}); a "
        "causal model takes denoiser autoregressive, or parallel with backbone causal, an encoder-decoder seq2seq"
    )


def saved_dtype(path: str) -> torch.dtype:
    """Return the precision that a pretrained model's weights are kept in: that of its configuration, else of its file."""
    import transformers
    from safetensors import safe_open

    named = getattr(from_pretrained(transformers.AutoConfig, path), "dtype", None)
    if isinstance(named, torch.dtype):
        return named
    file = Path(path) / "model.safetensors"
    if file.is_file():
        with damage_is_an_error(path), safe_open(file, "pt") as weights:
            for name in weights.keys():  # noqa: SIM118
                dtype = weights.get_tensor(name).dtype
                if dtype.is_floating_point:
                    return dtype
    return torch.float32


def _drawn(path: str, diffusion: DiffusionConfig) -> Any:
    """The architecture of a pretrained model, its weights drawn."""
    import transformers

    config = from_pretrained(transformers.AutoConfig, path)
    name = diffusion.denoiser
    if diffusion.backbone == "causal":
        if not diffusion.block:
            both_ways(config)
        name = "autoregressive"
    return from_config(getattr(transformers, AUTO_CLASSES[name]), config, dtype=torch.float32)


def vocabulary(model: Any) -> list[Tensor]:
    """What has a row for every token: embeddings, head and the head's bias, tied ones once."""
    head = model.get_output_embeddings()
    parts = [model.get_input_embeddings().weight, head.weight, head.bias] if head is not None else []
    parts = parts or [model.get_input_embeddings().weight]
    return list({id(part): part for part in parts if part is not None}.values())


NOISE = 0.1  # of the standard deviation of the known rows


@torch.no_grad()
def new_rows(model: Any, known: int) -> None:
    """Rows from `known` on begin at the mean of the known ones, with a tenth of their deviation as noise.

    By Jensen's inequality a token whose row is the mean takes no more than an average token's share of the probability, so
    what the model knows of the known tokens stays (Hewitt 2021, "Initializing new word embeddings").
    """
    for part in vocabulary(model):
        old = part[:known].double()
        noise = torch.randn(part[known:].shape, dtype=torch.float64) * NOISE
        part[known:] = (old.mean(0) + noise.to(part.device) * old.std(0)).to(part.dtype)
