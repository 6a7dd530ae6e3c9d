"""The loss curve shows all that was logged, whatever was."""

import math
from pathlib import Path

import pytest
from PIL import Image

from textdiff.report import Words, draw, losses, read_log

NAN = None  # what log.jsonl has for a figure that is not finite


def log(train: list[float | None], held: dict[int, float | None]) -> list[dict]:
    lines: list[dict] = [{"step": step, "loss": value} for step, value in enumerate(train, 1)]
    return [*lines, *({"step": step, "validation/nats": value, "samples": []} for step, value in held.items())]


def decay(start: float, end: float, count: int = 60) -> list[float | None]:
    return [end + (start - end) * 0.9**step + 0.1 * math.sin(step) for step in range(count)]


CASES = {
    "validation above": log(decay(9, 3), {20: 8.5, 40: 8.2, 60: 8.0}),
    "validation far above": log(decay(5, 2), {30: 25.0, 60: 19.0}),
    "validation below": log(decay(9, 6), {30: 2.0, 60: 1.0}),
    "a spike": log([*decay(9, 3), 400.0, *decay(3, 2)], {60: 3.0}),
    "negative": log([-0.5, -1.0, -1.2], {3: -2.0}),
    "not finite": log([NAN, 3.0, NAN, 2.0], {2: NAN, 4: 2.5}),
    "one point": log([3.0], {1: 3.5}),
    "one training point": log([3.0], {}),
    "two points": log([3.0, 2.0], {}),
    "validation alone": log([], {5: 3.0}),
    "constant": log([2.0] * 9, {9: 2.0}),
    "nothing": [],
    "samples alone": [{"step": 1, "samples": ["a"]}],
    "nothing finite": log([NAN, NAN], {2: NAN}),
    "other values": [{"step": 1, "loss": "x"}, {"step": "y", "loss": 1.0}, {"step": 2, "loss": True}],
}


@pytest.mark.parametrize("name", CASES)
def test_all_points_lie_within_the_axes(name: str, tmp_path: Path) -> None:
    lines = CASES[name]
    figure = losses(lines, Words())
    (axes,) = figure.axes
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    drawn = [point for line in axes.lines for point in line.get_xydata().tolist()]
    assert all(left < x < right and low < y < high for x, y in drawn)
    wanted = {
        (line["step"], line[key])
        for line in lines
        for key in ("loss", "validation/nats")
        if isinstance(line.get(key), float) and isinstance(line["step"], int)
    }
    assert wanted <= {(x, y) for x, y in drawn}
    for line in axes.lines:  # a line of one point is nothing to see without a mark
        assert len(line.get_xydata()) > 1 or line.get_marker() == "o" or line.get_label() == "smoothed"
    draw(lines, tmp_path / "loss.png", Words())
    with Image.open(tmp_path / "loss.png") as picture:
        assert picture.size == (910, 520) and picture.info["Software"] == "textdiff"
    assert [file.name for file in tmp_path.iterdir()] == ["loss.png"]


def test_a_log_with_other_lines(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"step": 1, "loss": 2.0}\n[1]\n5\n{"loss": 1}\n\nx\n')
    assert read_log(tmp_path / "log.jsonl") == [{"step": 1, "loss": 2.0}]
