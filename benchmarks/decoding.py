"""Sampling from one masked language model by this library and by the published recipes: seconds, calls, memory.

    python benchmarks/decoding.py [--quick] [--threads 2] [--rounds 3] [--cases ancestral-8 ...] [--out runs/bench]
        [--expect 300] [--force]

All samplers share one stock model with random weights, on whose values the time of none of them depends. In every round each
takes one turn; a ratio is the recipe's seconds by ours of the same round, and of these the median counts. Results go to
decoding.json and decoding.png. `cases.py` says what is compared, `recipes.py` what the recipes are.
"""

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import cache, partial
from multiprocessing import get_context
from typing import Any

import torch
import transformers
from cases import CASES, HF, MASK, Case, Sampler, Stage, case_of, causal, stage_of
from machine import Meter, arguments, begin, gemm, interleaved, peak_bytes
from results import Result, bars, disturbed, table, verdict, write
from torch import Tensor

FEW = 8  # steps, to warm up


def peaks(name: str, quick: bool, threads: int) -> dict[str, int]:
    """The most bytes that each sampler of a case holds; and what it writes is looked at.

    In a process of its own: the profiler leaves room behind in the heap, in which large tensors then find a place, while
    in a fresh process the system has to find and clear one for each, a third of the full-width recipes' time.
    """
    torch.set_num_threads(threads)
    transformers.logging.set_verbosity_error()
    case = case_of(name, quick)
    stage, samplers = stage_of(case.shape), case.samplers
    warm(stage, samplers)

    def checked(name: str) -> None:
        need_filled(samplers[name](stage), stage, name, given=name not in HF)

    return {name: peak_bytes(partial(checked, name)) for name in samplers}


def warm(stage: Stage, samplers: dict[str, Sampler]) -> None:
    """A few steps of each: models are made, caches filled."""
    few = replace(stage, shape=replace(stage.shape, steps=min(FEW, stage.shape.steps)))
    for sampler in samplers.values():
        sampler(few)


@cache
def meter(model: Any) -> Meter:
    """One for each model."""
    return Meter(model)


def measure(case: Case, peak: dict[str, int], rounds: int) -> dict[str, Result]:
    """Each sampler of a case, in turns after a few steps of each. peak: what `peaks` found."""
    stage, samplers = stage_of(case.shape), case.samplers
    meters = {name: meter(causal(name.split(".")[0]) if name in HF else stage.model) for name in samplers}
    readings: dict[str, list[tuple[float, int, int]]] = {name: [] for name in samplers}

    def turn(name: str) -> None:
        meters[name].reset()
        samplers[name](stage)
        readings[name].append((meters[name].inside, meters[name].calls, meters[name].rows))

    warm(stage, samplers)
    took = interleaved({name: partial(turn, name) for name in samplers}, rounds, warm=0)
    columns = {name: [list(column) for column in zip(*found, strict=True)] for name, found in readings.items()}
    return {name: Result(took[name], *columns[name], peak=peak[name]) for name in samplers}


def need_filled(found: Tensor, stage: Stage, name: str, given: bool) -> None:
    """ValueError where a text is short, masks are left or given tokens changed: that would be no fair race.

    given: False for what writes texts of its own, and may say [MASK] as any other token.
    """
    kept = stage.ids != MASK
    if found.shape != stage.ids.shape or given and bool((found == MASK).any()):
        raise ValueError(f"{name} did not fill all of {tuple(stage.ids.shape)}")
    if given and not torch.equal(found[kept], stage.ids[kept]):
        raise ValueError(f"{name} changed what was given")


def run(names: list[str], rounds: int, quick: bool, best: float) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every case, printed as it comes. `best`: GFLOP/s of the machine when it is calm."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as apart:
        for name in names:
            case = case_of(name, quick)
            shape = case.shape
            size = f"B={shape.batch}, L={shape.length}, N={shape.steps}, V={shape.vocabulary}"
            print(f"\n### {name}: {case.said}, {size}\n", flush=True)
            try:
                results = measure(case, apart.submit(peaks, name, quick, torch.get_num_threads()).result(), rounds)
            except TypeError as error:
                if "unexpected keyword argument" not in str(error):
                    raise
                print(f"skipped, since the library lacks it: {error}")
                continue
            speed = gemm()
            print(table(results, shape.batch, shape.batch * shape.masks))
            print(verdict(results, case.target, case.outside), flush=True)
            if disturbed(speed, best):
                print(f"the machine is slower now: {speed:.0f} GFLOP/s, before {best:.0f}")
            yield name, {
                "said": case.said, "shape": vars(shape), "target": case.target, "outside": case.outside,
                "gflops_after": round(speed, 1), "results": {k: vars(r) for k, r in results.items()},
            }  # fmt: skip


def main() -> None:
    parser = arguments(__doc__, 3)
    parser.add_argument(
        "--quick", action="store_true", help="a quarter of the length and of the steps; no target counts"
    )
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="CASE", help=", ".join(CASES))
    options = parser.parse_args()
    machine = begin(options)
    cases = {}
    for name, facts in run(options.cases, options.rounds, options.quick, machine["gflops"]):
        cases[name] = facts
        write(options.out / "decoding.json", {"machine": machine, "quick": options.quick, "cases": cases})
    bars(options.out / "decoding.png", cases, machine)


if __name__ == "__main__":
    main()
