"""Many texts in one call against one call for each: how much faster, and whether the fillings are the same.

    python benchmarks/batches.py --masked runs/long --checkpoint textdiff/box runs/demo [--texts 32] [--rounds 5]
        [--threads 2] [--only causal masked ...]

Texts are held-out sentences of State of the Union addresses, of 10 to 60 tokens. The two ways take turns; printed is the
median of the ratios of seconds, with the least and the greatest. In one thread they are seconds of the processor, so that
what else the machine does counts less; in several, of the clock. Kinds without a model of their own here have random
weights in the usual architectures (192 wide, 4 layers): of interest is what they cost.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    BartConfig,
    BartForConditionalGeneration,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    pipeline,
)

from textdiff.data import load_texts, sentences
from textdiff.pipelines import TextInfillingPipeline
from textdiff.tokenizer import encode

GAPS = {"one gap, length by search or by the model": ["[GAP]"], "two gaps of known length": ["[GAP:2]", "[GAP:3]"]}


def texts(tokenizer: Any, count: int, gaps: Sequence[str]) -> list[str]:
    """`count` held-out sentences, their sizes spread over 10 to 60 tokens, each with the gaps at even distances."""
    pool = [s.strip() for text in load_texts("data/sotu", "test")["text"] for s in sentences(text)]
    sizes = {s: len(encode(tokenizer, s)) for s in pool if len(s.split()) > 4 * len(gaps) + 4}
    pool = sorted((s for s in sizes if 10 <= sizes[s] <= 60), key=lambda s: (sizes[s], s))
    chosen = [pool[k * len(pool) // count] for k in range(count)]
    result = []
    for sentence in chosen:
        words = sentence.split()
        for number, gap in enumerate(gaps):
            words[(number + 1) * len(words) // (len(gaps) + 1)] = gap
        result.append(" ".join(words))
    return result[::2] + result[1::2]  # long ones and short ones mixed


def fillers(options: argparse.Namespace) -> Iterator[tuple[str, Callable[[], TextInfillingPipeline]]]:
    """The ways of filling that are looked at."""
    tokenizer = AutoTokenizer.from_pretrained(options.masked)
    yield "masked", lambda: masked(options.masked, tokenizer)
    for path in options.checkpoint:
        yield f"checkpoint {path}", lambda path=path: pipeline("text-infilling", model=path)
    for kind in (sentinels, rewriting, causal, middle):
        yield kind.__name__, lambda kind=kind: kind(tokenizer)


def masked(path: str, tokenizer: Any) -> TextInfillingPipeline:
    """A masked language model; if it has learned of lengths, that is left out."""
    model = AutoModelForMaskedLM.from_pretrained(path)
    model.config._name_or_path = ""
    return pipeline("text-infilling", model=model, tokenizer=tokenizer)


def dressed(tokenizer: Any, *names: str) -> tuple[Any, dict[str, int]]:
    """The tokenizer with an end token and further special ones; what configs want to know of it."""
    own = copy.deepcopy(tokenizer)
    own.add_special_tokens({"extra_special_tokens": list(names)})
    own.add_special_tokens({"eos_token": "</s>", "bos_token": "<s>"})
    roles = {f"{role}_token_id": getattr(own, f"{role}_token_id") for role in ("bos", "pad", "eos")}
    return own, {"vocab_size": len(own), **roles}


def sentinels(tokenizer: Any) -> TextInfillingPipeline:
    """T5."""
    own, ids = dressed(tokenizer, *(f"<extra_id_{k}>" for k in range(8)))
    shape = {"d_model": 192, "d_kv": 48, "d_ff": 512, "num_layers": 4, "num_heads": 4}
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(T5Config(**ids, **shape, decoder_start_token_id=own.pad_token_id)).eval()
    return pipeline("text-infilling", model=model, tokenizer=own)


def rewriting(tokenizer: Any) -> TextInfillingPipeline:
    """BART."""
    own, ids = dressed(tokenizer)
    half = {"layers": 4, "attention_heads": 4, "ffn_dim": 512}
    sides = {f"{side}_{name}": number for side in ("encoder", "decoder") for name, number in half.items()}
    shape = {"d_model": 192, "max_position_embeddings": 512, "decoder_start_token_id": own.eos_token_id}
    torch.manual_seed(0)
    model = BartForConditionalGeneration(BartConfig(**ids, **sides, **shape)).eval()
    return pipeline("text-infilling", model=model, tokenizer=own)


def causal(tokenizer: Any, *names: str) -> TextInfillingPipeline:
    """Llama."""
    own, ids = dressed(tokenizer, *names)
    shape = {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**ids, **shape, max_position_embeddings=512)).eval()
    return pipeline("text-infilling", model=model, tokenizer=own)


def middle(tokenizer: Any) -> TextInfillingPipeline:
    """A causal model with tokens to fill in the middle."""
    return causal(tokenizer, "<fim_prefix>", "<fim_middle>", "<fim_suffix>")


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of one call, and its result."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    began = clock()
    result = work()
    return clock() - began, result


def compare(
    fill: TextInfillingPipeline, given: list[str], rounds: int, **options: Any
) -> tuple[list[float], float, int]:
    """How many times as long as one call the many take, by round; the one's seconds; how many texts it fills otherwise."""
    ratios, seconds, different = [], [], 0
    fill(given[0], **options)
    for number in range(rounds):
        ways = [lambda: fill(given, **options), lambda: [fill(text, **options) for text in given]]
        found: list[Any] = [None, None]
        for way in (0, 1) if number % 2 else (1, 0):
            found[way] = timed(ways[way])
        (once, whole), (each, single) = found
        ratios.append(each / once)
        seconds.append(once)
        different = sum(a[0]["generated_text"] != b[0]["generated_text"] for a, b in zip(whole, single, strict=True))
    return ratios, statistics.median(seconds), different


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--masked", required=True, help="folder or hub name of a masked language model")
    parser.add_argument("--checkpoint", nargs="*", default=[], help="folders of checkpoints of this library")
    parser.add_argument("--only", nargs="*", help="the first words of the kinds to look at")
    parser.add_argument("--texts", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"| model | gaps | {options.texts} calls / 1 call | 1 call, s | texts that differ |\n|---|---|---|---|---|")
    for name, load in fillers(options):
        if options.only and not any(name.startswith(first) for first in options.only):
            continue
        fill = load()
        for said, gaps in GAPS.items():
            given = texts(fill.tokenizer, options.texts, gaps)
            ratios, seconds, different = compare(fill, given, options.rounds, max_gap=12)
            median = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            print(f"| {name} | {said} | {median} | {seconds:.2f} | {different} of {len(given)} |", flush=True)


if __name__ == "__main__":
    main()
