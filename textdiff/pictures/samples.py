"""x_1 -> x_0 for images, and what it looks like: a grid of samples, and a strip of the states between.

x0_hat ~ q(x_0 | x_t),  x_s = F_s(x0_hat, eps')  (kexue.fm archives 9262, 9271)
"""

import os
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from textdiff.denoiser import Denoiser
from textdiff.images import Images
from textdiff.keys import Key
from textdiff.pictures.checkpoint import PictureConfig
from textdiff.rules import Rule
from textdiff.sampler import Step, sample
from textdiff.validation import check_integer

if TYPE_CHECKING:
    from PIL.Image import Image

BATCH = 256  # images drawn at a time
SHOWN, MEASURED = 1 << 24, 1 << 28  # numbers in the images of one grid, which are enlarged, and of one measurement
ENLARGED = 6
COLUMNS = 10
GAP = 4  # pixels of the enlarged picture between images
MARK = "Software", "textdiff"
PIXELS = "textdiff:pixels"  # their sha256, in the pictures that are written, so that no other is written over
GROUND = (58, 90, 138)  # the colour between them, which no grey image has


def paint(
    config: PictureConfig,
    denoiser: Denoiser,
    labels: Tensor,
    *,
    steps: int,
    rule: Rule,
    seed: int,
    tick: Callable[[], object] = lambda: None,
) -> Images:
    """Images (B,) of the classes `labels` (B,). `tick` is called after every step of every batch of 256."""
    process, key, parts = config.diffusion.build_process(), Key.of(seed, len(labels)).to(labels.device), []
    for rows in torch.arange(len(labels)).split(BATCH):
        x = config.start(labels[rows], key[rows])
        for step in sample(denoiser, process, x, steps=steps, key=key[rows].fold(2), rule=rule):
            x = step.x
            tick()
        parts.append(x)
    return Images(torch.cat([part.pixels for part in parts]), labels)


def check_count(name: str, count: object, config: PictureConfig, values: int) -> int:
    """Return a number of images. ValueError for none, or for more than have so many values."""
    return check_integer(name, count, least=1, most=max(1, values // (config.channels * config.height * config.width)))


def turns(count: int, steps: int) -> int:
    """How often `paint` ticks."""
    return -(-count // BATCH) * steps


def states(
    config: PictureConfig, denoiser: Denoiser, labels: Tensor, *, steps: int, rule: Rule, seed: int
) -> list[Step]:
    """The same images on their way: at each time the state and the guess made from it, from noise to image."""
    key = Key.of(seed, len(labels))
    x, found, time = config.start(labels, key), [], torch.ones(len(key), dtype=torch.float64)
    process = config.diffusion.build_process()
    for step in sample(denoiser, process, x, steps=steps, key=key.fold(2), rule=rule):
        found.append(replace(step, x=x, s=time))
        x, time = step.x, step.s
    return [*found, replace(found[-1], x=x, s=time)]


def in_turn(count: int, classes: int) -> Tensor:
    """(count,) labels 0, 1, ..., 0, 1, ...; -1 where there are no classes."""
    return torch.arange(count) % classes if classes else torch.full((count,), -1)


def draw_grid(images: Images, path: Path) -> None:
    """A PNG of images sorted by class: each class begins a row, ten columns."""
    rows = []
    for label in images.label.unique():
        mine = _bytes(images.pixels[images.label == label])
        rows += list(mine.split(COLUMNS))
    width = max(len(row) for row in rows)
    _save(torch.cat([_line(row, width) for row in rows], 1), path)


def draw_strip(found: list[Step], path: Path, columns: int = 11) -> None:
    """A PNG with two rows per image: x_t from noise to image above, the guess x0_hat that was made from it below."""
    picked = sorted({round(i * (len(found) - 1) / (columns - 1)) for i in range(columns)})
    lines = []
    for number in range(len(found[0].x)):
        above = torch.stack([found[i].x.pixels[number] for i in picked])
        below = torch.stack([found[i].draw.x0.pixels[number] for i in picked])
        both = torch.cat([_line(_bytes(part), len(picked)) for part in (above, below)], 1)
        lines += [both, _ground(3 * GAP, both.shape[2])]
    _save(torch.cat(lines[:-1], 1), path)


def _bytes(pixels: Tensor) -> Tensor:
    """(B, 3, H, W) of uint8, enlarged, from (B, C, H, W) in [-1, 1]. ValueError for a number of channels without colours."""
    if pixels.shape[1] not in (1, 3):
        raise ValueError(f"images of {pixels.shape[1]} channels cannot be drawn; 1 and 3 can")
    pixels = pixels.expand(-1, 3, -1, -1)
    values = ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return values.repeat_interleave(ENLARGED, 2).repeat_interleave(ENLARGED, 3)


def _line(images: Tensor, width: int) -> Tensor:
    """(3, H + gap, width (W + gap)) of up to `width` images side by side."""
    _, _, height, side = images.shape
    line = _ground(height + GAP, width * (side + GAP))
    for number in range(len(images)):
        line[:, :height, number * (side + GAP) : number * (side + GAP) + side] = images[number]
    return line


def _ground(height: int, width: int) -> Tensor:
    return torch.tensor(GROUND, dtype=torch.uint8)[:, None, None].repeat(1, height, width)


def _save(picture: Tensor, path: Path) -> None:
    """Write a PNG of (3, H, W), whole or not at all."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    path.parent.mkdir(parents=True, exist_ok=True)
    part, mark = path.with_name(f".{os.getpid()}.{path.name}"), PngInfo()
    image = Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy())
    mark.add_text(*MARK)
    mark.add_text(PIXELS, _hash(image))
    try:
        image.save(part, format="png", pnginfo=mark)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _hash(picture: "Image") -> str:
    return sha256(f"{picture.mode} {picture.size} ".encode() + picture.tobytes()).hexdigest()


def check_picture(path: Path) -> None:
    """Refuse to write a picture over a file that this library did not write, or that has changed since.

    Raises:
        ValueError: Naming the file.
    """
    from PIL import Image

    if not os.path.lexists(path):
        return
    try:
        with Image.open(path) as picture:
            ours = picture.info.get(PIXELS) == _hash(picture)
    except (OSError, ValueError):  # not a picture
        ours = False
    if not ours:
        raise ValueError(
            f"{path} was not written by textdiff, or was changed since, and would be replaced; move it, or give another "
            "--out"
        )
