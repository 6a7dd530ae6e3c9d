"""Tokenizers such as the published models of a type have, with 256 bytes, a few merges, and their special tokens."""

import functools
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

# Tokenizers: `head` are the first ids, `tail` the last; `around` is what the tokenizer itself puts around a text.
FIM = "<fim_prefix> <fim_middle> <fim_suffix> <fim_pad>"
KINDS: dict[str, dict[str, Any]] = {
    "bert": {
        "head": "[PAD] [UNK] [CLS] [SEP] [MASK]",
        "around": "[CLS] $A [SEP]",
        "roles": {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"},
    },
    "bart": {
        "head": "<s> <pad> </s> <unk> <mask>",
        "around": "<s> $A </s>",
        "roles": {
            "bos": "<s>", "pad": "<pad>", "eos": "</s>", "unk": "<unk>", "mask": "<mask>", "cls": "<s>", "sep": "</s>",
        },
    },
    "t5": {
        "head": "<pad> </s> <unk>",
        "tail": " ".join(f"<extra_id_{i}>" for i in range(10)),
        "around": "$A </s>",
        "roles": {"pad": "<pad>", "eos": "</s>", "unk": "<unk>"},
    },
    "marian": {"head": "</s> <unk> <pad>", "around": "$A </s>", "roles": {"pad": "<pad>", "eos": "</s>", "unk": "<unk>"}},
    "llama": {"head": "<unk> <s> </s>", "around": "<s> $A", "roles": {"bos": "<s>", "eos": "</s>", "unk": "<unk>"}},
    "gpt2": {"head": "<|endoftext|>", "roles": {"bos": "<|endoftext|>", "eos": "<|endoftext|>"}},
    "qwen": {"head": "<|endoftext|> <|im_end|>", "roles": {"pad": "<|endoftext|>", "eos": "<|im_end|>"}},
    "starcoder": {
        "head": "<|endoftext|>",
        "tail": FIM,
        "roles": {"bos": "<|endoftext|>", "eos": "<|endoftext|>"},
    },
    "qwen coder": {
        "head": "<|endoftext|> <|im_end|>",
        "tail": "<|fim_prefix|> <|fim_middle|> <|fim_suffix|> <|fim_pad|>",
        "roles": {"pad": "<|endoftext|>", "eos": "<|im_end|>"},
    },
}  # fmt: skip
SPEAK = {
    "bart": """bart mbart mvp plbart led roberta xlm-roberta xlm-roberta-xl roberta-prelayernorm camembert data2vec-text xmod
        longformer mpnet luke ibert bigbird_pegasus pegasus pegasus_x nllb-moe blenderbot blenderbot-small
        jina_embeddings_v3 flaubert xlm""",
    "bert": "encoder-decoder prophetnet bert electra ernie megatron-bert rembert roc_bert roformer big_bird reformer xlnet",
    "t5": "t5 mt5 umt5 longt5 switch_transformers",
    "marian": "marian fsmt m2m_100 seamless_m4t seamless_m4t_v2",
    "gpt2": "gpt2 gpt-sw3 gpt_neo gptj gpt_neox codegen opt phi mpt ctrl openai-gpt bloom falcon rwkv mamba olmo",
    "starcoder": "gpt_bigcode starcoder2 granite stablelm",
    "qwen": "qwen3 qwen3_moe qwen2_moe qwen3_next smollm3",
    "qwen coder": "qwen2",
}


def kind_of(name: str, mapping: str) -> str:
    """Which of KINDS the published tokenizers of this type are like."""
    listed = next((kind for kind, names in SPEAK.items() if name in names.split()), None)
    return listed or ("bert" if mapping == "masked" else "llama")


@functools.cache
def tokenizer_file(kind: str) -> str:
    """Byte-level BPE with this kind's special tokens, as the text of a tokenizer.json."""
    head, tail = KINDS[kind]["head"].split(), KINDS[kind].get("tail", "").split()
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=len(head) + len(alphabet) + 40, special_tokens=head, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(["one two three four five six seven", "one and two, three or more: five"], trainer)
    bpe.add_special_tokens([AddedToken(name, special=True) for name in tail])
    if around := KINDS[kind].get("around"):
        known = [(name, bpe.token_to_id(name)) for name in around.split() if name != "$A"]
        bpe.post_processor = processors.TemplateProcessing(single=around, special_tokens=known)
    return bpe.to_str()


def tokenizer_of(kind: str) -> PreTrainedTokenizerFast:
    roles = {f"{role}_token": token for role, token in KINDS[kind]["roles"].items()}
    extra = KINDS[kind].get("tail", "").split()
    bpe = Tokenizer.from_str(tokenizer_file(kind))
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, extra_special_tokens=extra, clean_up_tokenization_spaces=False, **roles
    )
