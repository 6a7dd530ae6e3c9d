"""What `textdiff.tune` gains and costs: seconds of sampling, and how a trained model's bound and fillings change.

    python benchmarks/tuned.py --model runs/demo [--ways compile int8 bf16] [--threads 2] [--rounds 5] [--out runs/bench]

Speed is of the model of `decoding.py` with random weights, each way by turns with the model as it is. Quality is of the
trained model on texts that it has never seen: the same seeds, so differences are of the same looks. int8 needs torchao.
"""

import copy
import statistics
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from cases import Shape, Stage, ours_ancestral, ours_greedy, stage_of
from machine import arguments, begin, interleaved
from results import write

from textdiff.checkpoint import Checkpoint, load
from textdiff.data import load_texts
from textdiff.denoiser.parallel import Parallel
from textdiff.evaluation import gap_cases, score_answers
from textdiff.filling import infill
from textdiff.posterior import Decode
from textdiff.scoring import score, scorer
from textdiff.tuning import WAYS, tune

SHAPES = {"B=1, N=32": Shape(1, 256, 32), "B=8, N=16": Shape(8, 256, 16)}
SAMPLERS = {"ancestral": ours_ancestral, "greedy": ours_greedy}
TEXTS, GAPS, DRAWS = 400, 500, 4


def speed(ways: list[str], rounds: int) -> dict[str, Any]:
    """Times as quick, by shape, sampler and way: the median of rounds, the least and the most; the first run in seconds."""
    found: dict[str, Any] = {}
    for shape_name, shape in SHAPES.items():
        plain = stage_of(shape)
        stages = {"plain": plain, **{way: tuned(plain, way) for way in ways}}
        for name, sampler in SAMPLERS.items():
            first = {}
            for way, stage in stages.items():
                began = time.perf_counter()
                sampler(stage)
                first[way] = time.perf_counter() - began
            took = interleaved({way: partial(sampler, stage) for way, stage in stages.items()}, rounds)
            for way in ways:
                times = [a / b for a, b in zip(took["plain"], took[way], strict=True)]
                spread = statistics.median(times), min(times), max(times)
                found[f"{shape_name}, {name}, {way}"] = {"times": spread, "first_s": first[way]}
                said = f"{spread[0]:.2f} ({spread[1]:.2f} to {spread[2]:.2f})"
                print(f"| {shape_name}, {name} | {way} | {said} | {first[way]:.1f} s |", flush=True)
    return found


def tuned(stage: Stage, way: str) -> Stage:
    model = tune(copy.deepcopy(stage.model), way)
    return replace(stage, model=model, denoiser=Parallel(model, stage.specials).eval())


def quality(path: Path, ways: list[str]) -> dict[str, Any]:
    """The bound in nats a token and gaps filled at temperature 0, of the model as it is and of each way."""
    texts = list(load_texts("data/sotu", "test")["text"])
    cases = gap_cases(texts, GAPS, seed=1, longest=150)
    pieces = [case.left + case.answer + case.right for case in cases[:TEXTS]]
    found, kept = {}, {}
    for way in ("plain", *ways):
        checkpoint = load(path)
        if way != "plain":
            tune(checkpoint.model, way)
        nats = np.array([one.nats / one.tokens for one in score(pieces, **scorer(checkpoint), draws=DRAWS, window=64)])
        given = fillings(checkpoint, cases)
        kept[way] = nats, given
        change = nats - kept["plain"][0]
        exact = score_answers([case.answer for case in cases], given)
        same = sum(a == b for a, b in zip(given, kept["plain"][1], strict=True)) / len(given)
        found[way] = {
            "nats": float(nats.mean()), "change": float(change.mean()),
            "error": float(change.std() / len(change) ** 0.5), "exact": (exact.exact, exact.low, exact.high), "same": same,
        }  # fmt: skip
        print(
            f"| {way} | {nats.mean():.4f} | {change.mean():+.4f} +- {change.std() / len(change) ** 0.5:.4f} "
            f"| {exact.exact:.1%} | {same:.1%} |", flush=True,
        )  # fmt: skip
    return found


def fillings(checkpoint: Checkpoint, cases: list[Any]) -> list[str]:
    filled = infill(
        [case.parts for case in cases], **checkpoint.tools(), steps=4, decode=Decode(temperature=0.0), seed=0
    )
    return [one[0].gaps[0].text for one in filled]


def main() -> None:
    parser = arguments(__doc__, 5)
    parser.add_argument("--model", type=Path, help="a trained model; no quality without one")
    parser.add_argument("--ways", nargs="+", choices=[w for w in WAYS if w != "graphs"], default=["compile", "int8"])
    options = parser.parse_args()
    facts: dict[str, Any] = {"machine": begin(options)}
    if options.rounds:
        print("\n| case | way | times as quick | first run |\n|---|---|---|---|")
        facts["speed"] = speed(options.ways, options.rounds)
    if options.model:
        print("\n| way | bound, nats a token | change | exact | the same filling |\n|---|---|---|---|---|")
        facts["quality"] = quality(options.model, options.ways)
    write(options.out / "tuned.json", facts)


if __name__ == "__main__":
    main()
