"""Tiny stock models with random weights, each with the tokenizer that its kind comes with: one for every way of filling.

Weights are float64, so that the order of additions, which padding changes, cannot move a draw from one token to another.
"""

from collections.abc import Callable
from copy import deepcopy
from functools import cache
from typing import Any

import torch
from tiny import tiny_checkpoint
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    RobertaConfig,
    RobertaForMaskedLM,
    T5Config,
    T5ForConditionalGeneration,
    XLMRobertaConfig,
    XLMRobertaForMaskedLM,
    pipeline,
)

from textdiff.denoiser import Continuing
from textdiff.pipelines import TextInfillingPipeline

TEXTS = [
    "We the People of the United States, in Order to form a more perfect Union.",
    "café and wine, red or green: don't stop; 1787-09, 2024-05 (so it is)",
    "日本 語 日本 🙂 naïve yes no maybe Yes No",
]
READS = 256  # tokens
FIM = ("<fim_prefix>", "<fim_middle>", "<fim_suffix>", "<fim_pad>")
SENTINELS = tuple(f"<extra_id_{number}>" for number in range(8))
# the tokens of each kind's head, what stands around a text, and the roles by name
HEADS: dict[str, tuple[str, str, str]] = {
    "bert": ("[PAD] [UNK] [CLS] [SEP] [MASK]", "[CLS] $A [SEP]", "pad=[PAD] unk=[UNK] cls=[CLS] sep=[SEP] mask=[MASK]"),
    "roberta": (
        "<s> <pad> </s> <unk> <mask>",
        "<s> $A </s>",
        "bos=<s> cls=<s> pad=<pad> eos=</s> sep=</s> unk=<unk> mask=<mask>",
    ),
    "t5": ("<pad> </s> <unk>", "$A </s>", "pad=<pad> eos=</s> unk=<unk>"),
    "llama": ("<unk> <s> </s>", "<s> $A", "bos=<s> eos=</s> unk=<unk>"),
    "gpt2": ("<|endoftext|>", "$A", "bos=<|endoftext|> eos=<|endoftext|> unk=<|endoftext|>"),
}


def _dressed(inner: Tokenizer, kind: str, tail: tuple[str, ...] = ()) -> PreTrainedTokenizerFast:
    """A trained tokenizer with its roles, and what it puts around a text."""
    head, around, roles = HEADS[kind]
    inner.add_special_tokens([AddedToken(name, special=True) for name in tail])
    ids = [(name, inner.token_to_id(name)) for name in around.split() if name != "$A"]
    inner.post_processor = processors.TemplateProcessing(single=around, special_tokens=ids)
    named = {f"{role}_token": token for role, token in (pair.split("=") for pair in roles.split())}
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, extra_special_tokens=list(tail), clean_up_tokenization_spaces=False, **named
    )


def copied(make: Callable[..., PreTrainedTokenizerFast]) -> Callable[..., PreTrainedTokenizerFast]:
    """Train a tokenizer once and give each caller a copy, so that tokens added in one test stay in that test."""
    made = cache(make)
    return lambda *words: deepcopy(made(*words))


@copied
def byte_tokenizer(kind: str, tail: tuple[str, ...] = ()) -> PreTrainedTokenizerFast:
    """Byte-level BPE, as of GPT-2, RoBERTa, BART, StarCoder, Qwen."""
    inner, names = Tokenizer(models.BPE()), HEADS[kind][0].split()
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=len(names) + 300, special_tokens=names, initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator(TEXTS, trainer)
    return _dressed(inner, kind, tail)


@copied
def wordpiece_tokenizer() -> PreTrainedTokenizerFast:
    """As of BERT, without lower-casing: all that is not in the three texts' alphabet is [UNK]."""
    inner = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    inner.normalizer, inner.pre_tokenizer = (
        normalizers.BertNormalizer(lowercase=False),
        pre_tokenizers.BertPreTokenizer(),
    )
    inner.decoder = decoders.WordPiece()
    inner.train_from_iterator(
        TEXTS,
        trainers.WordPieceTrainer(vocab_size=200, special_tokens=HEADS["bert"][0].split(), show_progress=False),
    )
    return _dressed(inner, "bert")


@copied
def unigram_tokenizer(kind: str, tail: tuple[str, ...] = ()) -> PreTrainedTokenizerFast:
    """As of T5 and XLM-RoBERTa, spaces as ▁."""
    inner = Tokenizer(models.Unigram())
    inner.normalizer = normalizers.NFKC()
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=HEADS[kind][0].split(), unk_token="<unk>", show_progress=False
    )
    inner.train_from_iterator(TEXTS, trainer)
    return _dressed(inner, kind, tail)


@copied
def fallback_tokenizer() -> PreTrainedTokenizerFast:
    """As of Llama 2: characters, and bytes for what is none of them."""
    letters = sorted({*"".join(TEXTS[:2])} - {" "})
    pairs = [(a, b) for word in ("the", "form", "people", "union", "and") for a, b in _steps("▁" + word)]
    whole = dict.fromkeys(a + b for a, b in pairs)
    single = {"▁", *letters}
    names = [*HEADS["llama"][0].split(), *(f"<0x{byte:02X}>" for byte in range(256)), *sorted(single)]
    names += [name for name in whole if name not in names]
    ids = {name: number for number, name in enumerate(names)}
    merges = [pair for pair in dict.fromkeys(pairs) if all(part in ids for part in pair)]
    inner = Tokenizer(models.BPE(ids, merges, byte_fallback=True, unk_token="<unk>"))
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    inner.decoder = decoders.Sequence(parts)
    inner.add_special_tokens([AddedToken(name, special=True) for name in HEADS["llama"][0].split()])
    return _dressed(inner, "llama")


def _steps(word: str) -> list[tuple[str, str]]:
    return [(word[:end], word[end]) for end in range(1, len(word))]


# ------------------------------------------------------------------------------------------------------------- models

SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
WIDE = {"initializer_range": 0.3}  # else every answer is nearly uniform


def _ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    roles = ("pad", "bos", "eos")
    return {"vocab_size": len(tokenizer)} | {
        f"{role}_token_id": getattr(tokenizer, f"{role}_token_id") for role in roles
    }


def bert() -> tuple[Any, PreTrainedTokenizerFast]:
    tokenizer = wordpiece_tokenizer()
    return BertForMaskedLM(BertConfig(**_ids(tokenizer), **SMALL, **WIDE, max_position_embeddings=READS)), tokenizer


def roberta() -> tuple[Any, PreTrainedTokenizerFast]:
    tokenizer = byte_tokenizer("roberta")
    shape = {"max_position_embeddings": READS + 2, "type_vocab_size": 1}
    return RobertaForMaskedLM(RobertaConfig(**_ids(tokenizer), **SMALL, **WIDE, **shape)), tokenizer


def xlm_roberta() -> tuple[Any, PreTrainedTokenizerFast]:
    tokenizer = unigram_tokenizer("roberta")
    shape = {"max_position_embeddings": READS + 2, "type_vocab_size": 1}
    return XLMRobertaForMaskedLM(XLMRobertaConfig(**_ids(tokenizer), **SMALL, **WIDE, **shape)), tokenizer


def t5() -> tuple[Any, PreTrainedTokenizerFast]:
    tokenizer = unigram_tokenizer("t5", SENTINELS)
    shape = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "initializer_factor": 1.5}
    return T5ForConditionalGeneration(T5Config(**_ids(tokenizer), **shape, decoder_start_token_id=0)), tokenizer


def bart() -> tuple[Any, PreTrainedTokenizerFast]:
    tokenizer = byte_tokenizer("roberta")
    one = {"layers": 1, "attention_heads": 2, "ffn_dim": 16}
    sides = {f"{side}_{name}": size for side in ("encoder", "decoder") for name, size in one.items()}
    shape = {"d_model": 16, "max_position_embeddings": READS, "init_std": 0.3, "decoder_start_token_id": 2}
    return BartForConditionalGeneration(BartConfig(**_ids(tokenizer), **sides, **shape)), tokenizer


def gpt2() -> tuple[Any, PreTrainedTokenizerFast]:
    tokenizer = byte_tokenizer("gpt2")
    shape = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": READS}
    return GPT2LMHeadModel(GPT2Config(**_ids(tokenizer), **shape, **WIDE)), tokenizer


def llama() -> tuple[Any, PreTrainedTokenizerFast]:
    tokenizer = fallback_tokenizer()
    return LlamaForCausalLM(LlamaConfig(**_ids(tokenizer), **SMALL, **WIDE, max_position_embeddings=READS)), tokenizer


def qwen_fim() -> tuple[Any, PreTrainedTokenizerFast]:
    tokenizer = byte_tokenizer("gpt2", FIM)
    shape = {"num_key_value_heads": 1, "max_position_embeddings": READS}
    return Qwen2ForCausalLM(Qwen2Config(**_ids(tokenizer), **SMALL, **WIDE, **shape)), tokenizer


def llada() -> tuple[Any, PreTrainedTokenizerFast]:
    """A causal architecture that was trained to look both ways, its mask token known to the config alone."""
    tokenizer = byte_tokenizer("gpt2", ("<|mdm_mask|>",))
    config = LlamaConfig(**_ids(tokenizer), **SMALL, **WIDE, max_position_embeddings=READS)
    config.is_causal, config.mask_token_id = False, len(tokenizer) - 1
    return LlamaForCausalLM(config), tokenizer


STOCK: dict[str, Callable[[], tuple[Any, PreTrainedTokenizerFast]]] = {
    "masked, WordPiece": bert,
    "masked, bytes": roberta,
    "masked, Unigram": xlm_roberta,
    "both ways": llada,
    "sentinels": t5,
    "middle": qwen_fim,
    "causal, bytes": gpt2,
    "causal, byte fallback": llama,
    "rewriting": bart,
}
OWN = {"parallel": "parallel", "autoregressive": "autoregressive", "encoder-decoder": "seq2seq"}
PATHS = (*STOCK, *OWN)


@cache
def filler(path: str) -> TextInfillingPipeline:
    """The pipeline of a path; of the library's own kinds of checkpoint for those in OWN."""
    torch.manual_seed(0)
    if path in OWN:
        made = tiny_checkpoint(OWN[path], TEXTS, reads=READS)
        made.model.double()
        return TextInfillingPipeline(model=made.model, tokenizer=made.tokenizer, diffusion_config=made.config)
    model, tokenizer = STOCK[path]()
    made = pipeline("text-infilling", model=model.double().eval(), tokenizer=tokenizer)
    if isinstance(made.route.denoiser, Continuing):
        made.route.denoiser.particles = 2  # as lawful as eight, and quicker
    return made
