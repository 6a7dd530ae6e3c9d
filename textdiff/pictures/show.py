"""Images of a checkpoint, drawn and written to a folder: what `textdiff generate` does with an image model."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from textdiff.clocks import steps_of
from textdiff.options import checked_path
from textdiff.pictures.checkpoint import PictureConfig, load_checkpoint
from textdiff.pictures.samples import (
    SHOWN,
    check_count,
    check_picture,
    draw_grid,
    draw_strip,
    in_turn,
    paint,
    states,
    turns,
)
from textdiff.rulebook import rule_of
from textdiff.run_folder import check_writable

STRIP = 4  # images that the strip shows


def show(
    model: str,
    out: str | Path,
    *,
    label: str | None = None,
    num_return_sequences: int | None = None,
    num_steps: int | str | None = None,
    rule: str | None = None,
    seed: int = 0,
    progress: Callable[[int], Any],
    **of_texts: Any,
) -> dict[str, str]:
    """Write grid.png and strip.png; says where they are and what they show.

    label: the name of a class, None for all in turn. progress: makes a bar of so many steps, with `update()` and
    `close()`. ValueError for options that are of texts, and for whatever the model cannot do.
    """
    if of_texts:
        name = min(of_texts)
        raise ValueError(f"{name} {of_texts[name]!r} is for texts, {model} is a model of images; leave it out")
    folder = Path(checked_path("out", out))
    check_writable(folder, "out")
    grid, strip = folder / "grid.png", folder / "strip.png"
    for path in (grid, strip):
        check_picture(path)
    checkpoint = load_checkpoint(model)
    config = checkpoint.config
    labels = labels_of(config, label, num_return_sequences)
    name, steps = rule or config.diffusion.rule, config.diffusion.num_steps if num_steps is None else _number(num_steps)
    config.diffusion.check_rule(name)
    denoiser, chosen = config.build_denoiser(checkpoint.model).eval(), rule_of(name)
    bar = progress(turns(len(labels), steps))
    try:
        images = paint(config, denoiser, labels, steps=steps, rule=chosen, seed=seed, tick=bar.update)
    finally:
        bar.close()
    draw_grid(images, grid)
    draw_strip(states(config, denoiser, labels[:STRIP], steps=steps, rule=chosen, seed=seed), strip)
    return {"grid": str(grid), "strip": str(strip), "shows": f"{len(labels)} images, {steps} steps, rule {name}"}


def labels_of(config: PictureConfig, label: str | None, count: int | None) -> Tensor:
    """(count,) classes to draw. ValueError for a class there is not, or no image at all."""
    if count is not None:
        check_count("num_return_sequences", count, config, SHOWN)
    if label is None:
        return in_turn(count or 10 * max(len(config.names), 1), len(config.names))
    if label not in config.names:
        known = ", ".join(config.names) or "none, as it was trained without"
        raise ValueError(f"no class {label!r}; the model's are: {known}")
    return torch.full((count or 10,), config.names.index(label))


def _number(num_steps: int | str) -> int:
    """A number of steps. ValueError for anything else: an image changes at every step."""
    if isinstance(steps := steps_of(num_steps), str | None) or math.isinf(steps):
        raise ValueError(f"num_steps must be a number of steps, as an image changes at every one; got {num_steps}")
    return int(steps)
