"""What one turn of the sampler costs as texts grow longer and vocabularies larger, with the exponents of growth.

    python benchmarks/costs.py [--threads 1] [--rounds 5] [--out runs/bench] [--expect 300] [--force]

A turn reveals a sixteenth of the tokens of a text that is all masks, at a body so small (two layers, 128 wide) that the rest
shows. "full width" is a turn of MDLM's sampler, which holds tensors of length x vocabulary; it is left out where they
would take more than 8 GB. Exponents are slopes of the logarithms by least squares, over all sizes and over the larger half.
"""

import gc
import itertools
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import recipes
import torch
from machine import arguments, begin, interleaved, peak_bytes
from results import write
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM

from textdiff.denoiser.parallel import Parallel
from textdiff.keys import Key
from textdiff.process.masking import Masking
from textdiff.sampler import sample
from textdiff.tokens import Specials, Tokens

LENGTHS, VOCABULARY = (64, 128, 256, 512, 1024, 2048, 4096), 8192
VOCABULARIES, LENGTH = (256, 1024, 4096, 16384, 65536, 131072), 256
STEPS, MASK = 16, 2
MOST = 8e9  # bytes
TENSORS = 5  # of length x vocabulary that the full-width turn holds at once, with room to spare
FEW = 3  # sizes: no exponent of so few
SEEDS, PRIOR = itertools.count(), 1 << 40  # the use of a key that no step has


def model_of(length: int, vocabulary: int) -> Any:
    """A BERT with random weights."""
    torch.manual_seed(0)
    shape = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 512}
    config = BertConfig(vocab_size=vocabulary, max_position_embeddings=length, type_vocab_size=1, **shape)
    return BertForMaskedLM(config).eval()


def ours(model: Any, length: int, vocabulary: int) -> Callable[[], object]:
    """The first turn of sixteen: of the library's own calls, these are timed."""
    specials = Specials(pad=0, bos=1, mask=MASK, gap=3, size=vocabulary)
    denoiser, process = Parallel(model, specials), Masking(specials, counts=True)
    ids = torch.full((1, length), 4)
    texts = Tokens.of(ids, torch.zeros_like(ids), torch.zeros_like(ids).bool())
    empty = process.prior(texts, Key.of(0, 1).fold(PRIOR))

    def turn() -> None:
        run = sample(denoiser, process, empty, steps=STEPS, key=Key.of(next(SEEDS), 1))
        revealed = int((next(run).x.ids != MASK).sum())
        assert revealed == length // STEPS, f"{revealed} of {length} tokens revealed"

    return turn


@torch.no_grad()
def full_width(model: Any, x: Tensor) -> Tensor:
    """A turn of MDLM's sampler."""
    return recipes.mdlm_step(recipes.subs(model, x, MASK).exp(), x, 1.0, 1 - 1 / STEPS, MASK)


def measure(length: int, vocabulary: int, rounds: int) -> dict[str, dict[str, float]]:
    """Median seconds and peak bytes of a turn, by kind."""
    model = model_of(length, vocabulary)
    turns = {"ours": ours(model, length, vocabulary)}
    if 4 * TENSORS * length * vocabulary <= MOST:
        turns["full width"] = partial(full_width, model, torch.full((1, length), MASK))
    peaks = {name: peak_bytes(turn) for name, turn in turns.items()}
    took = interleaved(turns, rounds)
    gc.collect()
    return {name: {"seconds": statistics.median(took[name]), "bytes": peaks[name]} for name in turns}


def exponent(sizes: list[int], values: list[float]) -> float:
    """k of the power law c size^k that fits best."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def growth(sizes: tuple[int, ...], found: list[dict[str, dict[str, float]]], name: str, what: str) -> str:
    """The exponent over all sizes, and over the larger half of them, in words."""
    pairs = [(size, row[name][what]) for size, row in zip(sizes, found, strict=True) if name in row]
    xs, ys = (list(column) for column in zip(*pairs, strict=True))
    half = len(xs) // 2
    return f"{exponent(xs, ys):.2f}, larger half {exponent(xs[half:], ys[half:]):.2f}"


def sweep(title: str, letter: str, sizes: tuple[int, ...], measured: Callable[[int], Any]) -> dict[str, Any]:
    """A table, a row for each size, printed as it comes, and the exponents."""
    print(f"\n{title}\n\n| {letter} | ours, ms | full width, ms | times | ours, MB | full width, MB | times |")
    print("|---|" + "---|" * 6)
    found = []
    for size in sizes:
        row = measured(size)
        found.append(row)
        mine, wide = row["ours"], row.get("full width")
        cells = []
        for what, unit in (("seconds", 1e-3), ("bytes", 1e6)):
            other = (f"{wide[what] / unit:.1f}", f"{wide[what] / mine[what]:.1f}") if wide else ("-", "-")
            cells += [f"{mine[what] / unit:.1f}", *other]
        print(f"| {size} | {' | '.join(cells)} |", flush=True)
    names = [f"{name}, {what}" for name in ("ours", "full width") for what in ("seconds", "bytes") if len(sizes) > FEW]
    exponents = {name: growth(sizes, found, *name.split(", ")) for name in names}
    print("".join(f"\n- {name}: {letter}^{said}" for name, said in exponents.items()), flush=True)
    return {"sizes": sizes, "found": found, "exponents": exponents}


def main() -> None:
    parser = arguments(__doc__, 5)
    options = parser.parse_args()
    machine = begin(options)
    lengths = sweep(
        f"One turn at V={VOCABULARY}, a sixteenth of L tokens revealed", "L", LENGTHS,
        lambda length: measure(length, VOCABULARY, options.rounds),
    )  # fmt: skip
    vocabularies = sweep(
        f"One turn at L={LENGTH}, {LENGTH // STEPS} tokens revealed", "V", VOCABULARIES,
        lambda vocabulary: measure(LENGTH, vocabulary, options.rounds),
    )  # fmt: skip
    corner = sweep(
        f"Both large: L={LENGTHS[-1]}", "V", VOCABULARIES[-2:],
        lambda vocabulary: measure(LENGTHS[-1], vocabulary, min(2, options.rounds)),
    )  # fmt: skip
    found = {"lengths": lengths, "vocabularies": vocabularies, "both": corner}
    write(options.out / "costs.json", {"machine": machine, **found})


if __name__ == "__main__":
    main()
