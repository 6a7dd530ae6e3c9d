"""Many texts in one call against one call for each: how much faster, and whether the fillings are the same.

    python benchmarks/batches.py --masked runs/long --checkpoint runs/demo-autoregressive [--texts 32]
        [--rounds 5] [--threads 1]

Texts are held-out sentences of State of the Union addresses, of 10 to 60 tokens. The two ways take turns; printed is the
median of the ratios, with the least and the greatest.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer, T5Config, T5ForConditionalGeneration, pipeline

from textdiff.checkpoint import find_config
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


def fillers(options: argparse.Namespace) -> dict[str, TextInfillingPipeline]:
    """The ways of filling that are looked at."""
    found: dict[str, TextInfillingPipeline] = {}
    tokenizer = None
    if options.masked:
        model, tokenizer = (
            AutoModelForMaskedLM.from_pretrained(options.masked),
            AutoTokenizer.from_pretrained(options.masked),
        )
        model.config._name_or_path = ""  # a stock model: what it has learned of lengths is left out
        found["masked"] = pipeline("text-infilling", model=model, tokenizer=tokenizer)
    if options.checkpoint:
        kind = find_config(options.checkpoint)
        assert kind is not None
        found["checkpoint"] = pipeline("text-infilling", model=options.checkpoint)
        tokenizer = tokenizer or found["checkpoint"].tokenizer
    assert tokenizer is not None, "name --masked or --checkpoint"
    found["sentinels"] = sentinels(tokenizer)
    return found


def sentinels(tokenizer: Any) -> TextInfillingPipeline:
    """An encoder-decoder with sentinels and random weights, with this tokenizer: of interest is only what it costs."""
    import copy

    own = copy.deepcopy(tokenizer)
    own.add_special_tokens({"extra_special_tokens": [f"<extra_id_{k}>" for k in range(8)]})
    own.add_special_tokens({"eos_token": "</s>"})
    shape = {"d_model": 192, "d_kv": 48, "d_ff": 512, "num_layers": 4, "num_heads": 4}
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=len(own), pad_token_id=own.pad_token_id, eos_token_id=own.eos_token_id,
        decoder_start_token_id=own.pad_token_id,
        **shape,
    )  # fmt: skip
    return pipeline("text-infilling", model=T5ForConditionalGeneration(config).eval(), tokenizer=own)


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of one call, and its result."""
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result


def compare(fill: TextInfillingPipeline, given: list[str], rounds: int, **options: Any) -> tuple[list[float], int]:
    """How many times as long as one call the many take, by round; and how many texts are filled in another way."""
    ratios, different = [], 0
    fill(given[0], **options)
    for number in range(rounds):
        ways = [lambda: fill(given, **options), lambda: [fill(text, **options) for text in given]]
        found = [None, None]
        for way in (0, 1) if number % 2 else (1, 0):
            found[way] = timed(ways[way])
        (once, whole), (each, single) = found  # type: ignore[misc]
        ratios.append(each / once)
        different = sum(a[0]["generated_text"] != b[0]["generated_text"] for a, b in zip(whole, single, strict=True))
    return ratios, different


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--masked", help="folder or hub name of a masked language model")
    parser.add_argument("--checkpoint", help="folder of a checkpoint of this library")
    parser.add_argument("--texts", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(
        f"| model | gaps | {options.texts} calls / 1 call, {options.threads} threads | texts that differ |\n"
        "|---|---|---|---|"
    )
    for name, fill in fillers(options).items():
        for said, gaps in GAPS.items():
            given = texts(fill.tokenizer, options.texts, gaps)
            ratios, different = compare(fill, given, options.rounds, max_gap=12)
            middle = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            print(f"| {name} | {said} | {middle} | {different} of {len(given)} |", flush=True)


if __name__ == "__main__":
    main()
