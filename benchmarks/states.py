"""What the states of deletion save: the body's time on x_t by deletion and by masks, at the same times, by the same weights.

    python benchmarks/states.py [--threads 1] [--rounds 5] [--length 256] [--batch 8] [--steps 16]

A state by deletion holds what is left and one marker per gap, by masks a token for every place. States are made by the
forward process, which is what a perfect denoiser's reverse run goes through; each is read once by the same stock model, the
texts of a batch padded to the longest of them. Printed: mean length, seconds of each, and the ratio (masks by deletion).
"""

import argparse
import statistics

import torch
from cases import CONTEXT, VOCABULARY, bidirectional
from machine import describe, gemm, interleaved

from textdiff.keys import Key
from textdiff.process import Deletion, Masking, Process
from textdiff.tokens import Specials, Tokens

IDS = Specials(pad=0, bos=1, mask=2, gap=3, size=VOCABULARY)


def states(process: Process, batch: int, length: int, steps: int) -> list[Tokens]:
    """x_t of `batch` random texts at every time of a run but the last, each time with noise of its own."""
    torch.manual_seed(0)
    x0 = Tokens.from_rows([[1, *row] for row in torch.randint(4, VOCABULARY, (batch, length - 1)).tolist()], 0)
    found = []
    for number in range(steps):
        t = torch.full((batch,), 1 - number / steps, dtype=torch.float64)
        found.append(process.corrupt(x0, process.noise(x0, Key.of(number, batch)), t))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--length", type=int, default=CONTEXT)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=16)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    body, size = bidirectional(VOCABULARY).base_model, (options.batch, options.length, options.steps)
    kinds = {
        "masks": states(Masking(IDS), *size),
        "deletion": states(Deletion(IDS), *size),
        "deletion without empty gaps": states(Deletion(IDS, empty=1e9), *size),
        "delete, then mask": states(Deletion(IDS, staged=True), *size),
    }

    @torch.inference_mode()
    def read(found: list[Tokens]) -> None:
        for x in found:
            body(input_ids=x.ids, attention_mask=x.valid.long())

    print(", ".join(f"{name} {value}" for name, value in describe(gemm()).items()))
    seconds = interleaved({name: lambda x=x: read(x) for name, x in kinds.items()}, options.rounds, 1)
    for name, found in kinds.items():
        ratios = [masks / mine for masks, mine in zip(seconds["masks"], seconds[name], strict=True)]
        mean = statistics.mean(float(x.valid.sum(1).double().mean()) for x in found)
        taken, ratio = statistics.median(seconds[name]), statistics.median(ratios)
        print(f"{name}: mean length {mean:.0f}, {taken:.2f} s, {ratio:.2f}x ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
