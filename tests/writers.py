"""Tiny random stock models that write from left to right, and states for them, for the tests of untrained gap filling."""

from collections import Counter
from collections.abc import Sequence

import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from textdiff.posterior import Draw
from textdiff.tokens import Specials, Tokens

PAD, EOS, MASK, VOCAB = 0, 1, 2, 12  # words are 3..8, what is above them marks gaps
WORDS = (3, 4, 5, 6, 7, 8)
MARKS = (9, 10, 11)
BOS, GAP = 12, 13  # virtual
SPECIALS = Specials(pad=PAD, bos=BOS, mask=MASK, gap=GAP, banned=(EOS, *MARKS), size=VOCAB)
SHAPE = {"vocab_size": VOCAB, "pad_token_id": PAD, "bos_token_id": EOS, "eos_token_id": EOS}
LAYERS = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def t5():
    shape = {"d_model": 32, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 4, "initializer_factor": 1.5}
    return _seeded(T5ForConditionalGeneration, T5Config(**SHAPE, decoder_start_token_id=PAD, **shape), 1)


def gpt2(positions: int = 64):
    config = GPT2Config(**SHAPE, n_embd=32, n_layer=2, n_head=2, n_positions=positions)
    config.initializer_range = 0.3
    return _seeded(GPT2LMHeadModel, config)


def plain():
    """A GPT-2 of three words, none of which it is sure of, for laws that are enumerated."""
    config = GPT2Config(**SHAPE | {"vocab_size": 6}, n_embd=32, n_layer=2, n_head=2, n_positions=64)
    config.initializer_range = 0.3
    model = _seeded(GPT2LMHeadModel, config, 8)
    model.transformer.ln_f.weight.data *= 0.5
    return model


def llama():
    return _seeded(LlamaForCausalLM, LlamaConfig(**SHAPE, **LAYERS, num_key_value_heads=1, initializer_range=0.3))


def qwen2():
    return _seeded(Qwen2ForCausalLM, Qwen2Config(**SHAPE, **LAYERS, num_key_value_heads=1, initializer_range=0.3))


def bloom():
    return _seeded(BloomForCausalLM, BloomConfig(**SHAPE, hidden_size=32, n_layer=2, n_head=2, initializer_range=0.3))


def opt():
    shape = {"hidden_size": 32, "ffn_dim": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return _seeded(OPTForCausalLM, OPTConfig(**SHAPE, **shape, word_embed_proj_dim=32, init_std=0.3))


def bart():
    sides = {f"{side}_{name}": n for side in ("encoder", "decoder") for name, n in
             {"layers": 1, "attention_heads": 2, "ffn_dim": 32}.items()}  # fmt: skip
    config = BartConfig(
        **SHAPE, d_model=32, **sides, max_position_embeddings=64, decoder_start_token_id=EOS, init_std=0.3
    )
    return _seeded(BartForConditionalGeneration, config)


def _seeded(kind, config, seed=0):
    torch.manual_seed(seed)
    return kind(config).eval()


def state(rows: Sequence[Sequence[int]], slots: Sequence[Sequence[int]] | None = None, pad: int = PAD) -> Tokens:
    """Rows as a user gives them: BOS and words fixed, markers and masks open."""
    x = Tokens.from_rows([list(row) for row in rows], pad)
    opens = (x.ids == MASK) | (x.ids == GAP)
    follows = torch.zeros_like(opens)
    follows[:, :-1] = (x.ids == GAP)[:, 1:]
    slot = torch.zeros_like(x.ids)
    for row, values in enumerate(slots or []):
        slot[row, : len(values)] = torch.tensor(values)
    return x.with_(fixed=x.valid & ~opens, counted=x.ids == MASK, sealed=x.valid & ~follows & (x.ids != GAP), slot=slot)


def fillings(x: Tokens, draw: Draw) -> list[tuple[tuple[int, ...], ...]]:
    """What is in the gaps of each row: the words by the run of columns of x that they are seen in."""
    result = []
    whole = (x.ids, x.valid.sum(1), draw.place, draw.x0.ids, draw.x0.valid.sum(1))
    for ids, size, place, words, sizes in zip(*(part.tolist() for part in whole), strict=True):
        place = place[:sizes]
        runs, column = [], 0
        while column < size:
            end = column + 1
            while ids[column] == MASK and end < size and ids[end] == MASK:
                end += 1
            if ids[column] in (MASK, GAP):
                runs.append(tuple(w for w, p in zip(words, place, strict=False) if column <= p < end))
            column = end
        result.append(tuple(runs))
    return result


def tally(x: Tokens, draw: Draw) -> dict[tuple, int]:
    return dict(Counter(fillings(x, draw)))


def filled(x: Tokens, contents: Sequence[Sequence[Sequence[int]]]) -> Draw:
    """The truth with these contents in the gaps of every row, as a draw."""
    rows, places = [], []
    for row in range(len(x)):
        ids, place, gaps, column = [], [], iter(contents[row]), 0
        size = int(x.valid[row].sum())
        while column < size:
            token, end = int(x.ids[row, column]), column + 1
            while token == MASK and end < size and int(x.ids[row, end]) == MASK:
                end += 1
            words = [token] if token not in (MASK, GAP) else list(next(gaps))
            ids += words
            place += [column + k if token == MASK else column for k in range(len(words))]
            column = end
        rows.append(ids)
        places.append(place)
    x0 = Tokens.from_rows(rows, PAD)
    place = torch.zeros_like(x0.ids)
    for row, columns in enumerate(places):
        place[row, : len(columns)] = torch.tensor(columns)
    return Draw(x0, place, x0.score)
