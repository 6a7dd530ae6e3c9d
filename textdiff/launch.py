"""Launches that would silently not do what they look like are refused before anything is loaded."""

import os
from pathlib import Path


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
