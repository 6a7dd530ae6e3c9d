"""How a run begins and ends: launches that would silently not do what they look like are refused; signals stop in order."""

import os
import signal
import threading
from pathlib import Path
from typing import Any, Protocol


def check_launch(processes: int | None = None) -> None:
    """ValueError with the right command for a wrong launch. Once before, once after the Accelerator counted processes."""
    asked = int(os.environ.get("WORLD_SIZE", "1"))
    if processes is not None and processes != asked:
        raise ValueError(
            f"{asked} processes were launched but train apart from each other ({processes} in each group): on CPUs use "
            "ACCELERATE_USE_CPU=true torchrun --nproc_per_node N train.py"
        )
    wanted = _asked_of_accelerate()
    if wanted > 1 and "WORLD_SIZE" not in os.environ:
        raise ValueError(
            f"accelerate launch --cpu started one process, not {wanted}; use "
            f"ACCELERATE_USE_CPU=true torchrun --nproc_per_node {wanted} train.py"
        )


def _asked_of_accelerate() -> int:
    """The --num_processes of the `accelerate launch` above this process, 1 where there is none (or no /proc to ask)."""
    try:
        words = Path(f"/proc/{os.getppid()}/cmdline").read_bytes().decode().split("\0")
    except OSError:
        return 1
    if not any(Path(word).name.startswith("accelerate") for word in words[:3]) or "launch" not in words:
        return 1
    for number, word in enumerate(words):
        name, _, value = word.partition("=")
        if name.replace("-", "_") == "__num_processes":
            value = value or words[number + 1]
            return int(value) if value.isdecimal() else 1
    return 1


class Stoppable(Protocol):
    """What stops after the present step once `stop` is set."""

    stop: bool


class Signals:
    """Ctrl-C and SIGTERM ask for a stop after the step; a second Ctrl-C stops at once."""

    def __init__(self, running: Stoppable) -> None:
        self.running = running
        self.before: dict[int, Any] = {}

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():  # no other may
            self.before = {s: signal.signal(s, self._ask) for s in (signal.SIGINT, signal.SIGTERM)}

    def _ask(self, number: int, frame: Any) -> None:
        if self.running.stop and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.running.stop = True

    def __exit__(self, *error: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
