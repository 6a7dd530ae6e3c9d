"""What a call costs that reads a block and goes on from what is kept of those before, against one that reads the whole text.

    python benchmarks/blocks.py [--threads 2] [--rounds 15] [--length 256] [--out runs/bench] [--expect 300] [--force]

A stock Llama (256 wide, 6 layers, 4 heads, V=8192, random weights: speed does not depend on them) as `Blocks`, and, on the
same weights with its attention open, as `Parallel`. Half of the text is written; a call says four words a row of the next
block. They take turns, some calls each, as calls follow each other in a run; ratios are medians of the rounds'. "model" is
the stock model's own part of a call, without its head, all places in all layers: what is beside it is the head, the draw,
and what of `Blocks` stands around them. A whole text is written in a turn for every four words.
"""

import statistics
from collections.abc import Callable
from typing import Any

import torch
from machine import arguments, begin, interleaved
from results import write
from transformers import LlamaConfig, LlamaForCausalLM

from textdiff.denoiser import Blocks, Denoiser, Parallel
from textdiff.keys import Key
from textdiff.posterior import Decode
from textdiff.process import Masking
from textdiff.revealing import at_random, ranked
from textdiff.sampler import sample
from textdiff.tokens import Specials, Tokens

SIZES, BATCHES, VOCABULARY, BOS, MASK, WORDS = (16, 32, 64), (1, 8), 8192, 1, 2, 4
SPECIALS = Specials(pad=0, bos=BOS, mask=MASK, gap=3, size=VOCABULARY)
CALLS = {"block": 8, "full": 2}  # in a turn
SHAPE = {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 6, "num_attention_heads": 4}
TARGETS = {(32, 8): 7.0, (32, 1): 3.5}  # of the call, in performance.md


def models(length: int) -> tuple[Any, Any]:
    """The model as it is, and one of the same weights with its attention open."""
    stock, opened = (
        LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, max_position_embeddings=length, **SHAPE, **more)).eval()
        for more in ({}, {"is_causal": False, "use_cache": False})
    )
    opened.load_state_dict(stock.state_dict(), assign=True)
    return stock, opened


def half_written(rows: int, length: int) -> Tokens:
    """Texts of which the left half is there."""
    ids = torch.randint(4, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(0))
    ids[:, 0], ids[:, length // 2 :] = BOS, MASK
    fixed = torch.zeros_like(ids).bool()
    fixed[:, 0] = True
    return Tokens.of(ids, torch.zeros_like(ids), fixed)


def call(denoiser: Denoiser, x: Tokens) -> Callable[[], object]:
    """What a turn asks of a denoiser."""
    key, one = Key.of(0, len(x)), torch.ones(len(x), dtype=torch.float64)
    where, begin = torch.zeros_like(x.fixed), x.ids.shape[1] // 2
    where[:, begin : begin + WORDS] = True

    @torch.inference_mode()
    def turn() -> None:
        draw = denoiser(x, one).draft(Decode(), key)
        assert bool((draw.drawn(where).x0.ids[where] != MASK).all())

    return turn


def bodies(blocks: Blocks, opened: Any, x: Tokens) -> dict[str, Callable[[], object]]:
    """The stock models alone, given what a call gives them."""
    number = torch.full((len(x),), x.ids.shape[1] // 2 // blocks.block)
    with torch.inference_mode():
        (window,) = blocks.read(x.ids, x, torch.arange(len(x)), number)
        blocks.memory.write(window.aim, window.start)

    @torch.inference_mode()
    def of_block() -> object:
        return blocks.model.base_model(**window.reading.inputs)

    @torch.inference_mode()
    def of_text() -> object:
        return opened.base_model(input_ids=x.ids, attention_mask=torch.ones_like(x.ids))

    return {"block": of_block, "full": of_text}


def whole(denoiser: Denoiser, rows: int, length: int, block: int) -> Callable[[], object]:
    """A text from a blank page, block by block."""
    x, key = half_written(rows, length), Key.of(0, rows)
    process, rule = Masking(SPECIALS), ranked(at_random, block)

    def run() -> None:
        for _ in sample(denoiser, process, process.prior(x, key), steps=length // WORDS, key=key, rule=rule):
            pass

    return run


def several(works: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of one call of each, by round."""

    def turn(name: str) -> Callable[[], object]:
        return lambda: [works[name]() for _ in range(CALLS[name])]

    took = interleaved({name: turn(name) for name in works}, rounds)
    return {name: [seconds / CALLS[name] for seconds in found] for name, found in took.items()}


def ratio(found: dict[str, list[float]]) -> float:
    """How many times as long the full one took, the median of the rounds'."""
    return statistics.median(full / block for full, block in zip(found["full"], found["block"], strict=True))


def measure(stock: Any, opened: Any, block: int, rows: int, length: int, rounds: int) -> dict[str, float]:
    """Milliseconds and ratios of calls, and of the models alone."""
    blocks, x = Blocks(stock, SPECIALS, block), half_written(rows, length)
    calls = several({"block": call(blocks, x), "full": call(Parallel(opened, SPECIALS), x)}, rounds)
    alone = several(bodies(blocks, opened, x), rounds)
    return {
        "block": 1e3 * statistics.median(calls["block"]),
        "full": 1e3 * statistics.median(calls["full"]),
        "times": ratio(calls),
        "model": 1e3 * statistics.median(alone["block"]),
        "model times": ratio(alone),
    }


def main() -> None:
    parser = arguments(__doc__, 15)
    parser.add_argument("--length", type=int, default=256)
    options = parser.parse_args()
    machine = begin(options)
    stock, opened = models(options.length)
    print(
        "\n| block | B | a block, ms | the text, ms | times | target | model alone, ms | times |\n|---"
        + "|---" * 7
        + "|"
    )
    found: dict[str, Any] = {}
    for rows in BATCHES:
        for block in SIZES:
            cell = measure(stock, opened, block, rows, options.length, options.rounds)
            found[f"block {block}, B={rows}"] = cell
            target = TARGETS.get((block, rows), "-")
            print(
                f"| {block} | {rows} | {cell['block']:.1f} | {cell['full']:.1f} | {cell['times']:.1f} | {target} "
                f"| {cell['model']:.1f} | {cell['model times']:.1f} |",
                flush=True,
            )
    print("\n| a whole text, block | B | in blocks, tokens/s | open, tokens/s | times |\n|---|---|---|---|---|")
    for rows in BATCHES:
        block = SIZES[1]
        runs = interleaved(
            {
                "block": whole(Blocks(stock, SPECIALS, block), rows, options.length, block),
                "full": whole(Parallel(opened, SPECIALS), rows, options.length, block),
            },
            max(1, options.rounds // 5),
            warm=0,
        )
        speed = {name: rows * options.length / statistics.median(took) for name, took in runs.items()}
        found[f"whole text, B={rows}"] = speed | {"times": ratio(runs)}
        print(f"| {block} | {rows} | {speed['block']:.0f} | {speed['full']:.0f} | {ratio(runs):.1f} |", flush=True)
    write(options.out / "blocks.json", {"machine": machine, "found": found})


if __name__ == "__main__":
    main()
