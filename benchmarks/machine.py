"""What a benchmark asks of its machine: that it is calm, what it is, fair turns for what is compared, and peaks of memory.

Ratios of two programs that take turns in one process survive a slow machine, but not one that is slowed down for some turns
alone. So a matrix product is timed first; where its speed is not its own, nothing is measured.
"""

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault(
    "KINETO_LOG_LEVEL", "99"
)  # torch's profiler writes a line for every run of it; read at its import

import torch
import transformers
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

SIDE = 2048
SLOWEST = 0.6  # of the best measurement
APART = 1.6  # the greatest ratio of two measurements seconds apart
PATIENCE = 60.0  # seconds


def arguments(doc: str | None, rounds: int) -> argparse.ArgumentParser:
    """A parser with what every benchmark takes; `doc` is its module's."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, help="torch's own number where left out")
    parser.add_argument("--rounds", type=int, default=rounds, help="how often what is compared takes turns")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), help="folder that the figures are written to")
    parser.add_argument("--expect", type=float, help="GFLOP/s that this machine is known to reach")
    parser.add_argument("--force", action="store_true", help="go on even where the machine is slowed down")
    return parser


def begin(options: argparse.Namespace) -> dict[str, Any]:
    """The machine, for the record, printed once it is calm."""
    if options.threads:
        torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()
    machine = describe(check(options.expect, options.force))
    print(", ".join(f"{name} {value}" for name, value in machine.items()), flush=True)
    return machine


def clock() -> float:
    """Seconds: of the processor in one thread, so that what else the machine does counts less; in several, of the day."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def gemm() -> float:
    """GFLOP/s of a float32 product of two square matrices of side 2048 on torch's threads, the median of three."""
    a, b = torch.randn(SIDE, SIDE), torch.randn(SIDE, SIDE)
    torch.mm(a, b)
    return 2 * SIDE**3 / statistics.median(seconds(lambda: torch.mm(a, b)) for _ in range(3)) / 1e9


def seconds(work: Callable[[], object]) -> float:
    """Of one call."""
    began = clock()
    work()
    return clock() - began


def fault(found: list[float], best: float) -> str | None:
    """What is wrong with measurements of a machine that has reached `best`; None where nothing is."""
    slow, fast = min(found), max(found)
    if slow < SLOWEST * best:
        return f"{slow:.0f} GFLOP/s, below {SLOWEST:.0%} of {best:.0f}"
    if fast > APART * slow:
        return f"{slow:.0f} and {fast:.0f} GFLOP/s within seconds, more than {APART} times apart"
    return None


def check(expect: float | None = None, force: bool = False) -> float:
    """GFLOP/s of this machine, once it is calm. SystemExit where it has not become so within a minute, unless by `force`.

    expect: what it is known to reach, in GFLOP/s on all threads; else the best it has shown here counts.
    """
    ends, best = time.monotonic() + PATIENCE, expect or 0.0
    while True:
        found = []
        for _ in range(5):
            found.append(gemm())
            time.sleep(0.5)
        best = max(best, *found)
        wrong = fault(found, best)
        if wrong is None:
            return statistics.median(found)
        if force:
            print(f"going on all the same: a {SIDE}^3 product made {wrong}", flush=True)
            return statistics.median(found)
        if time.monotonic() > ends:
            raise SystemExit(
                f"the machine is slowed down: a {SIDE}^3 product made {wrong}. Wait until nothing else runs on it, or take "
                "--force, and trust the seconds less than the ratios"
            )
        time.sleep(2)


def describe(speed: float) -> dict[str, Any]:
    """The machine, for the record; `speed` is what `check` found."""
    threads = torch.get_num_threads()
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": threads,
        "clock": "processor" if threads == 1 else "wall",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "gflops": round(speed, 1),
        "gflops_per_thread": round(speed / threads, 1),
        "load": os.getloadavg()[0],
    }


def _cpu() -> str:
    """The processor's name; family and model tell more where the name is withheld."""
    try:
        with open("/proc/cpuinfo") as file:
            pairs = (line.partition(":") for line in file.read().split("\n\n")[0].splitlines())
        facts = {name.strip(): value.strip() for name, _, value in pairs}
    except OSError:
        return platform.processor() or platform.machine()
    name = facts.get("model name", platform.machine())
    return f"{name} (family {facts.get('cpu family', '?')}, model {facts.get('model', '?')})"


def interleaved(works: dict[str, Callable[[], object]], rounds: int, warm: int = 1) -> dict[str, list[float]]:
    """Seconds of each, by round; in every round each takes one turn, and another goes first."""
    for _ in range(warm):
        for work in works.values():
            work()
    names, found = list(works), {name: [] for name in works}
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            found[name].append(seconds(works[name]))
    return found


def peak_bytes(work: Callable[[], object]) -> int:
    """The most bytes held at once of what torch allocates on the CPU during a call, what was there before not counted.

    Exact: the allocator's own account, which holds the temporary buffers inside an operation as well. Takes no heed of
    what matrix libraries allocate by themselves.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as seen:
        work()
    events = [(e.start_ns(), e.nbytes()) for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = most = 0
    for _, size in sorted(events, key=lambda event: event[0]):
        held += size
        most = max(most, held)
    return most


class Meter:
    """Calls, rows and seconds of a model, by hooks on it, its body, its head and their parts.

    Seconds are counted from the outermost of them alone, so whichever way it is called, each second counts once. A call is
    one that reads token ids: a body that is asked again, and says what it said before, does no work.
    """

    def __init__(self, model: nn.Module) -> None:
        body: nn.Module = model.base_model
        head = [child for child in model.children() if child is not body]
        parts = [model, body, *body.children(), *head, model.get_output_embeddings()]
        for part in {id(part): part for part in parts if part is not None}.values():
            part.register_forward_pre_hook(self._enter)
            part.register_forward_hook(self._leave)
        model.get_input_embeddings().register_forward_pre_hook(self._read)
        self.reset()

    def reset(self) -> None:
        """Begin anew."""
        self.calls = self.rows = self.depth = 0
        self.inside = self.began = 0.0

    def _enter(self, part: nn.Module, args: Any) -> None:
        if self.depth == 0:
            self.began = clock()
        self.depth += 1

    def _leave(self, part: nn.Module, args: Any, output: Any) -> None:
        self.depth -= 1
        if self.depth == 0:
            self.inside += clock() - self.began

    def _read(self, part: nn.Module, args: tuple[Tensor, ...]) -> None:
        self.calls, self.rows = self.calls + 1, self.rows + len(args[0])
