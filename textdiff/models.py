"""Stock models to start from: a preset from scratch, or any pretrained one.

parallel: ModernBERT's architecture, or any `AutoModelForMaskedLM`. autoregressive: Llama's, or any
`AutoModelForCausalLM`. seq2seq: T5's (version 1.1), or any `AutoModelForSeq2SeqLM`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from textdiff.checkpoint import AUTO_CLASSES, chosen
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
    return getattr(transformers, AUTO_CLASSES[denoiser]).from_config(family(size, ids, common))


def pretrained_model(denoiser: str, path: str, tokenizer: "PreTrainedTokenizerBase") -> Any:
    """A pretrained model with room for the tokenizer's new tokens. Never runs code from the checkpoint."""
    import torch
    import transformers

    loader = getattr(transformers, chosen(denoiser, AUTO_CLASSES, "denoiser"))
    try:
        model = loader.from_pretrained(path, dtype=torch.float32)
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"{path} cannot be loaded as a {denoiser} model ({reason})") from error
    if model.get_input_embeddings().num_embeddings < len(tokenizer):
        model.resize_token_embeddings(len(tokenizer))
    return model
