"""What `decoding.py` compares: one stock model, this library's samplers on it, and the recipes they are measured against."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import recipes
import torch
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from textdiff.denoiser.parallel import Parallel
from textdiff.keys import Key
from textdiff.posterior import Decode
from textdiff.process.masking import Masking
from textdiff.revealing import ranked
from textdiff.rules import Rule, posterior
from textdiff.sampler import sample
from textdiff.tokens import Specials, Tokens

WIDTH, LAYERS, HEADS, CONTEXT, VOCABULARY = 256, 6, 4, 256, 8192
SPECIAL = 4  # the first ids: pad, bos, mask, gap
MASK, GIVEN = 2, 0.75  # the share of given tokens where a text is filled in


@dataclass(frozen=True)
class Shape:
    """Of a case: rows, tokens, steps of time or calls, and whether three quarters of the tokens are given."""

    batch: int
    length: int
    steps: int
    infill: bool = False
    vocabulary: int = VOCABULARY

    @property
    def masks(self) -> int:
        """How many tokens are written into each row."""
        return self.length - (int(GIVEN * self.length) if self.infill else 0)

    def small(self) -> "Shape":
        """The same in a hurry."""
        return replace(self, batch=min(self.batch, 4), length=self.length // 4, steps=max(2, self.steps // 4))


@dataclass(frozen=True)
class Stage:
    """What a sampler is given: `ids` (B, L) with masks where something is to be written; `texts` with any words there."""

    model: Any
    denoiser: Parallel
    specials: Specials
    texts: Tokens
    ids: Tensor
    shape: Shape


Sampler = Callable[[Stage], Tensor]


# ---- Ours: every call of the library's API that is timed --------------------------------------------------------------

SEEDS, PRIOR = itertools.count(), 1 << 40  # the use of a key that no step has


def ours(stage: Stage, process: Masking, rule: Rule, temperature: float) -> Tensor:
    """(B, L) ids; another seed in each run, as the recipes have."""
    key, decode = Key.of(next(SEEDS), stage.shape.batch), Decode(temperature=temperature)
    steps, found = stage.shape.steps, stage.texts.ids.clone()
    empty = process.prior(stage.texts, key.fold(PRIOR))  # the noise that it draws says when what is revealed
    for step in sample(stage.denoiser, process, empty, steps=steps, key=key, rule=rule, decode=decode):
        found[step.rows] = step.x.ids
    return found


def ours_ancestral(stage: Stage) -> Tensor:
    return ours(stage, Masking(stage.specials), posterior, 1.0)


def ours_counted(stage: Stage) -> Tensor:
    return ours(stage, Masking(stage.specials, counts=True), posterior, 1.0)


def ours_ranked(stage: Stage) -> Tensor:
    return ours(stage, Masking(stage.specials, counts=True), ranked(), 1.0)


def ours_greedy(stage: Stage) -> Tensor:
    return ours(stage, Masking(stage.specials, counts=True), ranked(), 0.0)


def ours_greedy_blocks(stage: Stage) -> Tensor:
    return ours(stage, Masking(stage.specials, counts=True), ranked(block=32), 0.0)


# ---- Theirs -----------------------------------------------------------------------------------------------------------


def mdlm(stage: Stage) -> Tensor:
    return recipes.mdlm(stage.model, stage.ids, stage.shape.steps, MASK)


def llada(stage: Stage, **options: Any) -> Tensor:
    return recipes.llada(stage.model, stage.ids, stage.shape.steps, MASK, **options)


def dllm(stage: Stage, **options: Any) -> Tensor:
    return recipes.dllm_infill(stage.model, stage.ids, stage.shape.steps, MASK, **options)


def fill_mask(stage: Stage) -> Tensor:
    return recipes.fill_mask_loop(stage.model, stage.ids, MASK)


def generate(name: str, stage: Stage) -> Tensor:
    return recipes.ar_generate(causal(name), stage.shape.length, stage.shape.batch, 1)


# ---- Cases ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """Ours against others. target: how many times as long each of the others has to take; outside: the greatest share of
    our time that may be spent outside the model."""

    said: str
    shape: Shape
    ours: Sampler
    others: dict[str, Sampler]
    target: float | None = None
    outside: float | None = None

    @property
    def samplers(self) -> dict[str, Sampler]:
        """All of them."""
        return {"ours": self.ours, **self.others}


WARM = 1.0
HF: dict[str, Sampler] = {f"{name}.generate": partial(generate, name) for name in ("Llama", "GPT-2")}
CASES = {
    "ancestral-8": Case("ancestral", Shape(8, 256, 16), ours_ancestral, {"mdlm": mdlm}, 4.0, 0.05),
    "ancestral-1": Case("ancestral", Shape(1, 256, 32), ours_ancestral, {"mdlm": mdlm}, 3.2, 0.05),
    "ancestral-16": Case("ancestral", Shape(16, 64, 64), ours_ancestral, {"mdlm": mdlm}, 6.0),
    "ancestral-1000": Case("ancestral", Shape(1, 256, 1000), ours_ancestral, {"mdlm": mdlm}, 5.0),
    "confidence": Case(
        "surest first", Shape(8, 256, 16), ours_ranked, {"llada": partial(llada, temperature=WARM)}, 2.5
    ),
    "greedy-blocks": Case(
        "greedy, blocks of 32", Shape(8, 256, 64), ours_greedy_blocks, {"llada": partial(llada, block=32)}, 1.9
    ),
    # dLLM's random order is the law of ours but for how many tokens a step reveals: as many as expected, ours at random
    "infill": Case(
        "infilling, any order", Shape(4, 256, 32, infill=True), ours_ancestral,
        {"dllm": partial(dllm, temperature=WARM, remasking="random")}, 5.0,
    ),
    "infill-sure": Case(
        "infilling, surest first", Shape(4, 256, 32, infill=True), ours_ranked,
        {"dllm": partial(dllm, temperature=WARM)},
    ),
    "infill-greedy": Case("infilling, greedy", Shape(4, 256, 32, infill=True), ours_greedy, {"dllm": dllm}, 1.7),
    "fill-mask": Case(
        "infilling, a token a call", Shape(4, 256, 64, infill=True), ours_counted, {"fill-mask loop": fill_mask}
    ),
    "ar-1": Case("left to right", Shape(1, 256, 32), ours_ancestral, HF, 2.0),
    "ar-8": Case("left to right", Shape(8, 256, 32), ours_ancestral, HF),
    "ar-8-short": Case("left to right", Shape(8, 256, 16), ours_ancestral, HF),
    "ar-16": Case("left to right", Shape(16, 256, 32), ours_ancestral, HF),
    "characters": Case(
        "characters", Shape(1, 256, 256, vocabulary=28), ours_ancestral, {"mdlm": mdlm}, outside=0.02
    ),
    "characters-8": Case(
        "characters", Shape(8, 256, 64, vocabulary=28), ours_ancestral, {"mdlm": mdlm}, outside=0.02
    ),
}  # fmt: skip


def case_of(name: str, quick: bool) -> Case:
    """One of CASES, or the same in a hurry, of which nothing is demanded."""
    case = CASES[name]
    return replace(case, shape=case.shape.small(), target=None, outside=None) if quick else case


@cache
def bidirectional(vocabulary: int) -> Any:
    """Model S: BERT, 7.0 M parameters with 8192 tokens.

    Of the stock models of this size in eager mode (two threads, batch 1 / 8, all logits): BERT 20 / 130 ms, RoBERTa with
    the norm first 20 / 135, DistilBERT 19 / 133, ELECTRA 20 / 131, ModernBERT 20 / 139, with an inner width of 4 d 24 / 210.
    Its dropout is off, attention is torch's own, GELU the exact one. Specials are never said, as by a model that has
    learned: LLaDA's sampler leaves masks where the model says [MASK].
    """
    torch.manual_seed(0)
    shape = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
    config = BertConfig(
        vocab_size=vocabulary, intermediate_size=4 * WIDTH, max_position_embeddings=CONTEXT, type_vocab_size=1, **shape
    )
    model = BertForMaskedLM(config).eval()
    with torch.no_grad():
        model.get_output_embeddings().bias[:SPECIAL] = -1e4
    return model


@cache
def causal(name: str) -> Any:
    """A model of the same size that writes from left to right and knows no end."""
    torch.manual_seed(0)
    roles = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": None, "pad_token_id": 0}
    if name == "GPT-2":
        shape = {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "n_positions": CONTEXT + 1}
        return GPT2LMHeadModel(GPT2Config(**roles, **shape)).eval()
    shape = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
    inner = {"intermediate_size": 8 * WIDTH // 3, "max_position_embeddings": CONTEXT + 1, "tie_word_embeddings": True}
    return LlamaForCausalLM(LlamaConfig(**roles, **shape, **inner)).eval()


def stage_of(shape: Shape) -> Stage:
    """The model, and the same masks and given tokens in every run."""
    specials = Specials(pad=0, bos=1, mask=MASK, gap=3, size=shape.vocabulary)
    model, generator = bidirectional(shape.vocabulary), torch.Generator().manual_seed(1)
    size = (shape.batch, shape.length)
    fixed = torch.rand(size, generator=generator).argsort(1) >= shape.masks
    ids = torch.randint(SPECIAL, shape.vocabulary, size, generator=generator)
    texts = Tokens.of(ids, torch.zeros_like(ids), fixed)
    return Stage(model, Parallel(model, specials), specials, texts, ids.masked_fill(~fixed, MASK), shape)
