"""What `decoding.py` found: as a table, in words, as JSON and as a picture."""

import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from machine import SLOWEST
from matplotlib.figure import Figure

GREEN, RED, GREY = "#2a7f62", "#c8553d", "#8c8c8c"


@dataclass
class Result:
    """Of one sampler in one case, by round: seconds, those inside the model, its calls, and the rows of all calls together.

    peak: bytes, the weights not counted.
    """

    seconds: list[float]
    inside: list[float]
    calls: list[int]
    rows: list[int]
    peak: int

    def outside(self) -> float:
        """The median share of time outside the model."""
        return statistics.median(1 - i / s for i, s in zip(self.inside, self.seconds, strict=True))


def ratios(results: dict[str, Result]) -> dict[str, list[float]]:
    """How many times as long as ours the others take, by round."""
    own = results["ours"].seconds
    return {name: [b / a for a, b in zip(own, r.seconds, strict=True)] for name, r in results.items() if name != "ours"}


def table(results: dict[str, Result], batch: int, tokens: int) -> str:
    """A row for each sampler of a case; `tokens` are what each writes."""
    against = ratios(results)
    lines = [
        "| sampler | seconds | tokens/s | calls a row | outside the model | peak MB | times ours |",
        "|---|" + "---|" * 6,
    ]
    for name, result in results.items():
        middle, times = statistics.median(result.seconds), against.get(name)
        said = f"{statistics.median(times):.2f} ({min(times):.2f} to {max(times):.2f})" if times else ""
        lines.append(
            f"| {name} | {middle:.3f} | {tokens / middle:.0f} | {statistics.median(result.rows) / batch:.1f} "
            f"| {result.outside():.1%} | {result.peak / 1e6:.1f} | {said} |"
        )
    return "\n".join(lines) + "\n"


def reached(results: dict[str, Result], target: float) -> bool:
    """Whether each of the others takes so many times as long as ours."""
    return min(statistics.median(found) for found in ratios(results).values()) >= target


def verdict(results: dict[str, Result], target: float | None, outside: float | None) -> str:
    """Whether the targets of a case are reached, in words."""
    said = []
    if target is not None:
        said.append(f"target {target:.1f}x {'reached' if reached(results, target) else 'NOT reached'}")
    if outside is not None:
        kept = results["ours"].outside() <= outside
        said.append(f"at most {outside:.0%} of our time outside the model {'kept' if kept else 'NOT kept'}")
    return "; ".join(said) or "no target"


def disturbed(speed: float, best: float) -> bool:
    """Whether a machine has become so slow that what was just measured counts for less."""
    return speed < SLOWEST * best


def write(path: Path, found: dict[str, Any]) -> None:
    """As JSON, every second of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n")


def bars(path: Path, cases: dict[str, Any], machine: dict[str, Any]) -> None:
    """A bar for each recipe of each case: the median ratio, whiskers from least to greatest, and the target as a mark."""
    rows, labels = [], []
    for case, facts in cases.items():
        found, shape = ratios({name: Result(**result) for name, result in facts["results"].items()}), facts["shape"]
        rows += [(name, times, facts["target"]) for name, times in found.items()]
        size = f"B={shape['batch']}, L={shape['length']}, N={shape['steps']}, V={shape['vocabulary']}"
        labels += [f"{case}: {facts['said']}\n{size}", *[""] * (len(found) - 1)]
    if not rows:
        return
    figure = Figure(figsize=(9.5, 1.2 + 0.5 * len(rows)), layout="constrained")
    axes = figure.subplots()
    widest = max(max(*times, target or 0) for _, times, target in rows)
    for place, (name, times, target) in enumerate(rows):
        middle, end = statistics.median(times), max(*times, target or 0)
        colour = GREY if target is None else GREEN if middle >= target else RED
        whiskers = [[middle - min(times)], [max(times) - middle]]
        axes.barh(place, middle, xerr=whiskers, height=0.6, color=colour, error_kw={"lw": 1, "capsize": 3})
        said = axes.text(end + widest * 0.015, place, f"{middle:.2f}x against {name}", va="center", fontsize=9)
        said.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.5})
        if target is not None:
            axes.plot([target, target], [place - 0.4, place + 0.4], color="black", lw=2.5, solid_capstyle="butt")
    axes.axvline(1, color="black", lw=0.8, ls=":", zorder=0)
    axes.set_yticks(range(len(rows)), labels, fontsize=8)
    axes.tick_params(axis="y", length=0)
    axes.set(xlim=(0, widest * 1.3), ylim=(len(rows) - 0.4, -0.6))
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel(
        "their seconds / ours; black marks: targets (green: reached, red: not, grey: none); dotted: as fast"
    )
    speed = f"{machine['threads']} thread(s), {machine['gflops']:.0f} GFLOP/s, torch {machine['torch']}"
    axes.set_title(f"One model, several samplers: {speed}", fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
