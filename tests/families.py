"""Tiny random models of every type that transformers maps to masked, seq2seq and causal language modelling.

`shrunk` takes a type's default config and gives every size in it, by its name, a small value; sub-configs likewise. Lists
with an entry per layer keep one entry of each kind. What cannot be told from a name stands in EXCEPTIONS, by type.
"""

import copy
import dataclasses
from typing import Any, NamedTuple

import torch
import transformers
from family_page import on_page
from family_tokenizers import kind_of, tokenizer_of
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    pipeline,
)
from transformers.models.auto import modeling_auto

import textdiff.pipelines  # noqa: F401  makes the task known

MASKED, SEQ2SEQ, CAUSAL = "masked", "seq2seq", "causal"
NAMES = {
    MASKED: modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    SEQ2SEQ: modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    CAUSAL: modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
}
AUTO = {MASKED: AutoModelForMaskedLM, SEQ2SEQ: AutoModelForSeq2SeqLM, CAUSAL: AutoModelForCausalLM}
TYPES = [(mapping, name) for mapping, names in NAMES.items() for name in names]

ROLES = {f"{role}_token_id": role for role in ("pad", "bos", "eos", "cls", "sep", "mask", "unk")} | {
    "decoder_start_token_id": "start", "forced_eos_token_id": "eos", "pad_index": "pad", "bos_index": "bos",
    "eos_index": "eos", "unk_index": "unk", "mask_index": "mask",
}  # fmt: skip

VOCAB, LAYERS = 400, 2
SIZES = {
    32: """hidden_size d_model n_embd dim emb_dim embedding_dim embedding_size input_embedding_size output_embedding_size
        attention_hidden_size hidden_size_global lru_width word_embed_proj_dim pooler_hidden_size prediction_head_size
        entity_emb_size dim_model_base backbone_hidden_size projector_input_dim projector_output_dim lang_embed_dim
        out_hidden_size hidden_dim_vision encoder_hidden_size d_latents input_size
        pronunciation_embed_dim shape_embed_dim true_hidden_size audio_hidden_size
        adapter_in_dim adapter_out_dim unit_embed_dim spkr_embed_dim output_channels intra_bottleneck_size
        nemo_conv_channels ext_pw_out_channel depthwise_separable_out_channel
        t2u_variance_predictor_embed_dim t2u_variance_predictor_hidden_dim adapter_input_size""",
    64: """intermediate_size ffn_dim d_ff dff d_inner dim_ff n_inner encoder_ffn_dim decoder_ffn_dim ffn_hidden_size
        feed_forward_size moe_intermediate_size intermediate_size_mlp dense_intermediate_size expert_ffn_hidden_size
        shared_expert_intermediate_size shared_experts_intermediate_size shared_intermediate_size mlp_dim
        moe_shared_expert_intermediate_size t2u_encoder_ffn_dim t2u_decoder_ffn_dim speech_encoder_intermediate_size
        prompt_mid_dim""",
    4: """num_attention_heads n_head n_heads num_heads attention_heads encoder_attention_heads decoder_attention_heads
        num_encoder_attention_heads num_decoder_attention_heads t2u_encoder_attention_heads t2u_decoder_attention_heads
        speech_encoder_attention_heads num_cross_attention_heads num_self_attention_heads swa_num_attention_heads
        linear_num_value_heads linear_num_heads mamba_n_heads mamba_num_heads index_n_heads conf_num_attention_heads
        num_experts num_local_experts n_routed_experts moe_num_experts num_query_groups""",
    2: """num_key_value_heads num_kv_heads kv_n_heads linear_num_key_heads swa_num_key_value_heads n_mamba_heads
        num_experts_per_tok num_experts_per_token moe_topk moe_top_k moe_k zero_expert_num n_shared_experts
        num_shared_experts moe_num_shared_experts n_group num_expert_group
        num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers num_encoder_layers num_decoder_layers
        depth speech_encoder_layers t2u_encoder_layers t2u_decoder_layers conf_num_hidden_layers num_global_layers
        num_blocks num_self_attends_per_block num_sparse_encoder_layers num_sparse_decoder_layers encoder_sparse_step
        decoder_sparse_step num_layers_per_stack heads_per_ngram""",
    1: "topk_group first_k_dense_replace n_groups mamba_ngroups num_dense_layers",
    8: """head_dim d_head d_kv dim_head attention_head_dim attention_head_size qk_nope_head_dim qk_rope_head_dim v_head_dim
        swa_head_dim index_head_dim linear_head_dim linear_key_head_dim linear_value_head_dim kv_channels global_head_dim
        kv_lora_rank q_lora_rank o_lora_rank adapter_rank laurel_rank hc_lowrank gated_norm_rank embedding_rank d_rel
        hidden_size_per_layer_input rotary_dim mamba_d_state ssm_state_size state_size mamba_chunk_size chunk_size
        time_step_rank mamba_dt_rank mamba_d_head mamba_head_dim mamba_headdim head_dim_ssm num_landmarks num_latents
        pronunciation_vocab_size shape_vocab_size prompt_length num_global_tokens num_filters
        router_hidden_size index_topk base_channels embed_dim segment_means_seq_len""",
    16: "qk_head_dim attention_window block_size sliding_window local_attention attention_chunk_size keep_window_size",
    128: """max_position_embeddings n_positions n_ctx max_seq_len max_encoder_position_embeddings model_max_length
        max_decoder_position_embeddings max_target_positions max_source_positions context_length
        max_2d_position_embeddings t2u_max_position_embeddings original_max_position_embeddings""",
    VOCAB: """vocab_size src_vocab_size tgt_vocab_size decoder_vocab_size audio_vocab_size vocab_size_per_layer_input
        entity_vocab_size t2u_vocab_size char_vocab_size unit_hifi_gan_vocab_size unpadded_vocab_size""",
}
SIZE = {name: value for value, names in SIZES.items() for name in names.split()}
LISTS = ("layer_types", "layers_block_type", "mlp_layer_types", "attn_layers", "indexer_types", "block_types")
COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "depth", "num_blocks")

START = {"gemma4_assistant": {"text_config": {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0}}}
PART = {"musicgen": "decoder", "musicgen_melody": "decoder"}
KV_HEADS = {
    "num_key_value_heads": "num_attention_heads",
    "swa_num_key_value_heads": "swa_num_attention_heads",
    "linear_num_key_heads": "linear_num_value_heads",
}

GEMMA4 = {"global_head_dim": 8}
ASSISTANT = {**GEMMA4, "hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0, "num_kv_shared_layers": 2}
DOTS3 = {f"swa_{name}": 8 for name in ("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "v_head_dim")} | {
    "swa_head_dim": 16,
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 4,
}
QWEN4 = {
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 8,
    "indexer_budget": 8,
    "indexer_compress_ratio": 2,
}
SPEECH = {
    "encoder_config": {
        "hidden_dim": 32,
        "input_dim": 8,
        "context_size": 16,
        "output_dim": 4,
        "max_pos_emb": 32,
        "feedforward_mult": 2,
    }
}
TOKENS = {"channels": 1, "num_filters": 2, "depths": [1, 1], "downsampling_ratios": [2]}
EXPERTS = {"n_routed_experts": 4, "num_experts_per_tok": 2}
EXCEPTIONS: dict[str, dict[str, Any]] = {
    "encoder-decoder": {"decoder_start_token_id": 2, "decoder": {"is_decoder": True, "add_cross_attention": True}},
    "esm": {"vocab_size": VOCAB, "pad_token_id": 0, "mask_token_id": 4},
    "neomme": {"head_dim": 16},
    "reformer": {"axial_pos_embds_dim": [16, 16], "axial_pos_shape": [8, 16]},
    "reformer causal": {"is_decoder": True},
    "xmod": {"default_language": "en_XX"},
    "granite_speech": SPEECH,
    "granite_speech_plus": SPEECH,
    "qwen3_asr": {"audio_config": {"downsample_hidden_size": 8, "output_dim": 32, "num_mel_bins": 8}},
    "vibevoice_asr": {"acoustic_tokenizer_encoder_config": TOKENS, "semantic_tokenizer_encoder_config": TOKENS},
    "bamba": {"mamba_n_heads": 8, "attn_layer_indices": [1]},
    "falcon_h1": {"mamba_n_heads": 8, "mamba_d_ssm": 64},
    "granitemoehybrid": {"mamba_n_heads": 8, "layer_types": ["linear_attention", "full_attention"]},
    "mamba2": {"num_heads": 8},
    "blt": {"encoder_hash_byte_group_vocab": 64},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}},
    "dbrx": {"attn_config": {"rope_theta": 1e4, "clip_qkv": 8.0}},
    "deepseek_v2": EXPERTS,
    "dory": {
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "n_input_layers": 1,
        "n_recurrent_layers": 2,  # read twice
        "n_output_layers": 1,
    },
    "dots1": {**EXPERTS, "n_shared_experts": 1},
    "dots3_note_text": DOTS3,
    "dots3_note": {"text_config": DOTS3},
    "gemma3n_text": {"num_kv_shared_layers": 0, "intermediate_size": 64},
    "gemma4_text": GEMMA4,
    "gemma4_unified_text": GEMMA4,
    "gemma4": {"text_config": GEMMA4},
    "gemma4_unified": {"text_config": GEMMA4},
    "gemma4_assistant": {"text_config": ASSISTANT},
    "gemma4_unified_assistant": {
        "text_config": {**GEMMA4, "layer_types": ["full_attention"] * 2, "num_kv_shared_layers": 1}
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "hrm_text": {"num_hidden_layers": 1, "num_layers_per_stack": None},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "inkling2_loop_text": {
        "num_hidden_layers": 4,
        "layer_types": ["hybrid_sliding", "hybrid"] * 2,
        "n_layers_per_attn_res_block": 1,
        "loop_layer_index_start": 1,
        "loop_layer_index_end": 3,  # the two in the middle are read three times
        "loop_gate_rank": 8,
        "sliding_window_size": 16,
        "rel_extent": 16,
    },
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "ministral": {"head_dim": 8},
    "nemotron": {"head_dim": 8, "num_key_value_heads": 2},
    "omniasr": {
        "audio_config": {"conv_dim": [8], "conv_kernel": [10], "conv_stride": [5], "num_conv_pos_embeddings": 16}
    },
    "qwen4_exp_text": QWEN4,
    "qwen4_exp": {"text_config": QWEN4},
    "xlstm": {"hidden_size": 128, "embedding_dim": 128},
    "zamba": {
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
    },
}


def shrunk(config: PreTrainedConfig, **changes: Any) -> PreTrainedConfig:
    """A config of the same class with every size small; `changes` have the last word, dicts in them go to sub-configs."""
    own = {field.name: config.attribute_map.get(field.name, field.name) for field in dataclasses.fields(config)}
    known = {name: vars(config).get(stored) for name, stored in own.items()}
    deep = max([known[name] for name in COUNTS if type(known.get(name)) is int], default=0)
    layers = max(LAYERS, *(len(set(known[name])) for name in LISTS if known.get(name)), 0)
    values: dict[str, Any] = {}
    for name, value in known.items():
        if isinstance(value, PreTrainedConfig):
            values[name] = shrunk(value, **changes.pop(name, {}))
        elif name in LISTS and value:
            values[name] = one_of_each(list(value), layers)
        elif isinstance(value, (list, tuple)) and deep and len(value) == deep:
            values[name] = list(value[:layers])
        elif type(value) is int and value > 0 and name in COUNTS:
            values[name] = layers
        elif type(value) is int and value > 0 and name in KV_HEADS and value == known.get(KV_HEADS[name]):
            values[name] = SIZE[KV_HEADS[name]]
        elif name == "vocab_size" and type(value) is int:
            values[name] = VOCAB
        elif type(value) is int and value > 0 and name in SIZE:
            values[name] = min(SIZE[name], value)
        elif type(value) is int and name.endswith(("_token_id", "_token_index")):
            values[name] = min(value, VOCAB - 1)
    return type(config)(**{**values, **changes})


def one_of_each(entries: list[str], size: int) -> list[str]:
    """The first entry of each kind, in order, and again from the start up to `size`."""
    return (list(dict.fromkeys(entries)) * size)[:size]


def with_ids(config: PreTrainedConfig, ids: dict[str, int]) -> PreTrainedConfig:
    """The config, changed in place: its special ids and those of its sub-configs are the tokenizer's."""
    for name, value in list(vars(config).items()):
        role = ROLES.get(name)
        if isinstance(value, PreTrainedConfig):
            with_ids(value, ids)
        elif role in ids and value is not None:
            setattr(config, name, ids[role])
    return config


def tiny(name: str, mapping: str) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """A model with random weights, the same every time, in eval mode, and a tokenizer such as its type has.

    A test that asks by name for a type which the page knows and this transformers has not is skipped; a misspelt one fails.
    """
    if name not in NAMES[mapping] and f"{mapping} {name}" in on_page():
        import pytest

        pytest.skip(f"transformers {transformers.__version__} has no {mapping} {name}")
    tokenizer = tokenizer_of(kind_of(name, mapping))
    ids = {role: getattr(tokenizer, f"{role}_token_id") for role in ("pad", "bos", "eos", "cls", "sep", "mask", "unk")}
    changes = {**EXCEPTIONS.get(name, {}), **EXCEPTIONS.get(f"{name} {mapping}", {})}
    config = shrunk(CONFIG_MAPPING[name](**START.get(name, {})), **copy.deepcopy(changes))
    ids["start"] = {"bart": ids["eos"], "bert": ids["cls"]}.get(kind_of(name, mapping), ids["pad"])
    config = with_ids(config, {role: number for role, number in ids.items() if number is not None})
    if mapping == SEQ2SEQ and config.is_encoder_decoder:
        config.decoder_start_token_id = ids["start"]  # T5Config has none; checkpoints do
    if mapping == CAUSAL and type(vars(config).get("is_decoder")) is bool:
        config.is_decoder = True
    torch.manual_seed(0)
    if name in PART:  # the composite config is none of the class that transformers maps it to
        part = getattr(config, PART[name])
        model = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](part)
    else:
        model = AUTO[mapping].from_config(config)
    for weight in model.parameters():
        if weight.ndim > 1 and not weight.any():  # a layer that starts as the identity reads nothing
            torch.nn.init.normal_(weight, std=0.02)
    return model.eval(), tokenizer


class NotBuilt(NamedTuple):
    """Why there is no tiny model of a type, and what its own code says."""

    reason: str
    raises: str


NOT_BUILT = {
    "causal gemma3n": NotBuilt("its vision tower needs the package timm", "timm"),
}
NEITHER = "its tokenizer has neither <extra_id_0> nor a mask token"
# mapping and type, and what is in the reason for which no gap is filled
REFUSED = {
    "masked mra": "does not read what stands right of a gap",  # its attention is all zeros without a CUDA kernel
    "seq2seq fsmt": NEITHER,
    "seq2seq m2m_100": NEITHER,
    "seq2seq marian": NEITHER,
    "seq2seq seamless_m4t": NEITHER,
    "seq2seq seamless_m4t_v2": NEITHER,
    "seq2seq t5gemma": NEITHER,
    "seq2seq t5gemma2": NEITHER,
    "seq2seq voxtral_realtime": "does not read plain text",  # wants sound beside it
    "causal cpmant": "sees what follows",
    "causal gemma4_assistant": "does not read plain text",  # drafts from another model's states, as does the next
    "causal gemma4_unified_assistant": "does not read plain text",
    "causal musicgen": "does not read plain text",  # writes sound
    "causal musicgen_melody": "does not read plain text",
    "causal xlnet": "sees what follows",
}

# of the masked ones, those that can tell padding, and get none
TELL = {"convbert", "fnet", "funnel", "nystromformer", "yoso"}

TEXT = "one [GAP:2] three [GAP:1-2] five"


def fillings(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """TEXT, filled as users fill it, and how: {"generated_text", "gaps", ..., "reason", "denoiser"}."""
    fill = pipeline("text-infilling", model=model, tokenizer=tokenizer, device="cpu")
    return {**fill(TEXT, seed=0)[0], "reason": fill.explain(), "denoiser": type(fill.route.denoiser).__name__}


def is_filled(filled: dict[str, Any], tokenizer: PreTrainedTokenizerFast) -> bool:
    """Whether all is as TEXT asks for, and nothing that was written is a special token."""
    first, second = (gap["text"] for gap in filled["gaps"])
    sizes = [len(gap["tokens"]) for gap in filled["gaps"]]
    special = [token for token in tokenizer.added_tokens_decoder.values() if token.special]
    return (
        filled["generated_text"] == f"one {first} three {second} five"
        and sizes[0] == 2
        and 1 <= sizes[1] <= 2
        and not any(str(token) in first + second for token in special)
    )


def both_ways(model: PreTrainedModel) -> str:
    """What becomes of a causal model, for good, that is told to read in both directions: works, stays causal, raises, ..."""
    try:
        if looks_ahead(model):
            return "reads both ways as it is"
        for config in (model.config, model.config.get_text_config()):
            config.is_causal = False
        return "works" if looks_ahead(model) else "stays causal"
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):
        return "raises"


@torch.no_grad()
def looks_ahead(model: PreTrainedModel) -> bool:
    """Whether the logits of the first token change with the last one."""
    ids = torch.arange(10, 22).repeat(2, 1)
    ids[1, -1] = 60
    here, there = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, 0]
    return bool((here - there).abs().max() > 1e-5 * here.abs().max())
