"""What a run says while it trains: a progress bar, log.jsonl, TensorBoard, samples, and the loss curve as a picture."""

import json
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure


FAR = 20.0  # how far apart losses are that one linear axis does not show


@dataclass(frozen=True)
class Words:
    """How a job's figures are spoken of: what is counted, what a loss is per, which figure goes beside it in loss.png."""

    unit: str = "tokens"
    loss: str = "nats per token"
    figure: str = "nats"
    called: str = "validation bound"


class Report:
    """The reports of one run, from the main process alone. `since`: the step it goes on from, 0 for a new run."""

    def __init__(self, out: Path, accelerator: Any, every: int, since: int, words: Words | None = None) -> None:
        self.words = words or Words()
        self.out, self.main, self.every = out, accelerator.is_main_process, every
        self.since = since
        self.window: list[tuple[float, float]] = []
        self.print = accelerator.print

    def __enter__(self) -> "Report":
        if self.main:
            from torch.utils.tensorboard import SummaryWriter
            from tqdm import tqdm

            self.out.mkdir(parents=True, exist_ok=True)
            self.board = SummaryWriter(str(self.out / "tensorboard"), purge_step=self.since + 1 if self.since else None)
            path = self.out / "log.jsonl"
            # steps made after the state that is gone on from are made again
            kept = [line for line in read_log(path) if line["step"] <= self.since] if self.since else []
            self.log = path.open("w", encoding="utf-8")
            self.log.writelines(_line(line) for line in kept)
            form = "{percentage:3.0f}%|{bar:24}| {elapsed}, {remaining} left{postfix}"
            self.bar = tqdm(total=1.0, bar_format=form, dynamic_ncols=True)
            self.clock = time.monotonic()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Flush and close everything; may be called twice."""
        if self.main and not self.log.closed:
            self.bar.close()
            self.board.close()
            self.log.close()

    def step(self, step: int, loss: float, count: float, norm: float, rate: float, progress: float) -> None:
        """One step was made; every so often it is logged."""
        if not self.main:
            return
        if self.since and not self.bar.n:  # the time left is reckoned from what this run does of it
            self.bar.initial = self.bar.n = progress
        self.window.append((loss, count))
        if step % self.every and progress < 1:
            return
        weight = sum(c for _, c in self.window)
        mean = sum(value * c for value, c in self.window) / weight
        seconds, self.clock = time.monotonic() - self.clock, time.monotonic()
        speed, self.window = weight / max(seconds, 1e-9), []
        self.bar.n = min(progress, 1.0)
        self.bar.set_postfix_str(f"step {step}, loss {mean:.3f}, {speed:,.0f} {self.words.unit}/s")
        self._write({"step": step, "loss": mean, "grad_norm": norm, "rate": rate, f"{self.words.unit}_per_s": speed})

    def measured(self, step: int, figures: dict[str, float]) -> None:
        """The figures of a measurement, on the terminal and in the logs."""
        if self.main:
            self.bar.write(f"step {step}: " + ", ".join(f"{name} {value:.4g}" for name, value in figures.items()))
            self._write({"step": step, **{f"validation/{name}": value for name, value in figures.items()}})
            self.clock = time.monotonic()

    def samples(self, step: int, lines: list[str]) -> None:
        """Filled samples, on the terminal and in the logs."""
        if self.main:
            for line in lines:
                self.bar.write(f"  {line}")
            self.board.add_text("samples", "\n\n".join(lines), step)
            self._write({"step": step, "samples": lines})
            self.clock = time.monotonic()

    def _write(self, line: dict[str, Any]) -> None:
        self.log.write(_line(line))
        self.log.flush()
        for name, value in line.items():
            if isinstance(value, float):
                self.board.add_scalar(name, value, line["step"])

    def curve(self, path: Path) -> None:
        """Draw the losses of log.jsonl."""
        self.log.flush()
        draw(read_log(self.out / "log.jsonl"), path, self.words)


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a log.jsonl, without one that was being written when the run was killed; none where there is no file."""
    lines = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n") if path.is_file() else []:
        try:
            found = json.loads(line)
        except json.JSONDecodeError:
            continue
        lines += [found] if isinstance(found, dict) and "step" in found else []
    return lines


def _line(values: dict[str, Any]) -> str:
    """One line of JSON, which has no word for a loss that is not finite: null."""
    known = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
    return json.dumps(known, ensure_ascii=False, allow_nan=False) + "\n"


def draw(lines: list[dict[str, Any]], path: Path, words: Words) -> None:
    """Write the picture of `losses`, whole or not at all."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        losses(lines, words).savefig(part, dpi=130, format="png", metadata={"Software": "textdiff"})
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def losses(lines: list[dict[str, Any]], words: Words) -> "Figure":
    """Return a figure of the training loss, thin and smoothed, and of the validation figure where it was measured.

    All of both lie within the axes; a loss that was not finite is left out.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    train, held = _points(lines, "loss"), _points(lines, f"validation/{words.figure}")
    if train:
        steps, values = zip(*train, strict=True)
        few: dict[str, Any] = {"marker": "o", "markersize": 3} if len(train) < 3 else {}
        axes.plot(steps, values, color="#9bb7d4", linewidth=0.7, label="training loss", **few)
        axes.plot(steps, _smooth(list(values)), color="#1f4e79", linewidth=1.8, label="smoothed")
    if held:
        axes.plot(*zip(*held, strict=True), "o-", color="#c55a11", markersize=4, label=words.called)
    axes.set(xlabel="step", ylabel=words.loss)
    axes.margins(0.03, 0.06)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    shown = [value for _, value in [*train, *held]]
    if shown and min(shown) > 0 and max(shown) > FAR * min(shown):
        axes.set_yscale("log")
    axes.grid(alpha=0.25)
    if train or held:
        axes.legend(frameon=False)
    else:
        axes.text(0.5, 0.5, "no loss was logged", ha="center", transform=axes.transAxes)
    return figure


def _points(lines: list[dict[str, Any]], name: str) -> list[tuple[int, float]]:
    """Return step and value of each line that has a finite one."""
    found = [(line.get("step"), line.get(name)) for line in lines]
    return [(s, v) for s, v in found if isinstance(s, int) and isinstance(v, int | float) and math.isfinite(v)]


def _smooth(values: list[float], share: float = 0.95) -> list[float]:
    """An exponential average without the pull of its starting value."""
    result, total, weight = [], 0.0, 0.0
    for value in values:
        total, weight = share * total + (1 - share) * value, share * weight + 1 - share
        result.append(total / weight)
    return result
