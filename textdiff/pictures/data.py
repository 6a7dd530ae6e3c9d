"""Images with labels, in memory: scikit-learn's digits, a folder of IDX files, or any Hugging Face image data set.

What is stored are the whole numbers of the source, 0 to `top`; a batch is 2 value / top - 1, in [-1, 1].
"""

import gzip
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from textdiff.images import Images
from textdiff.options import PATH, Range, check_options
from textdiff.reading import open_split
from textdiff.resuming import fingerprint

IDX = {"train": "train", "test": "t10k"}  # the names of the splits in the files of MNIST and its kin
DIGITS = "digits"


@dataclass
class PicturesConfig:
    """Which images to learn from.

    Attributes:
        dataset: digits (8 x 8, comes with scikit-learn), a folder of IDX files, a folder of images, files, or a hub name.
        config: The configuration of a hub data set that has several.
        split: The part to learn from.
        validation_split: The part to measure on.
        image_column: The column that holds the images.
        label_column: The column that holds the classes; None learns without classes.
        size: Resize to this height and width. Left out, all images must have one size.
        mode: Convert to greys (L) or colours (RGB). Left out, all images must be one of the two.
    """

    dataset: Annotated[str, PATH] = DIGITS
    config: str | None = None
    split: str = "train"
    validation_split: str = "test"
    image_column: str = "image"
    label_column: str | None = "label"
    size: Annotated[int | None, Range(least=1, most=10**4)] = None
    mode: Literal["L", "RGB"] | None = None

    def __post_init__(self) -> None:
        check_options(self, "data")


@dataclass(frozen=True)
class Pictures:
    """Images of one size.

    values: (N, C, H, W) uint8, 0 to `top`. label: (N,) int64, -1 without classes. names: of the classes.
    """

    values: Tensor
    label: Tensor
    names: tuple[str, ...]
    top: int = 255

    def __len__(self) -> int:
        return len(self.values)

    def batch(self, rows: Sequence[int] | slice = slice(None)) -> Images:
        """Some of them in [-1, 1]."""
        index = rows if isinstance(rows, slice) else torch.as_tensor(list(rows))
        return Images(2 * self.values[index].float() / self.top - 1, self.label[index])

    @property
    def fingerprint(self) -> str:
        """How many there are, and a hash of them and their labels."""
        return f"{len(self):,} images, {fingerprint([self.values.numpy().tobytes(), self.label.numpy().tobytes()])}"

    def greys(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation over images of each channel's mean grey in [-1, 1]."""
        count = self.values[0, 0].numel()
        means = 2 * self.values.sum((2, 3), dtype=torch.int64).double() / (count * self.top) - 1
        return means.mean(0).tolist(), means.std(0, correction=0).tolist()


def load_pictures(config: PicturesConfig, split: str) -> Pictures:
    """The images of one split. ValueError of one line for whatever is not a set of images of one size."""
    if config.dataset == DIGITS:
        found = _digits(split)
    elif _is_idx(config.dataset):
        found = _idx(Path(config.dataset), split)
    else:
        found = _hugging_face(config, split)
    if not len(found):
        raise ValueError(f"{config.dataset} has no image in {split!r}; name another split")
    found = replace(found, values=_converted(found.values, config))
    if config.label_column is None:
        return replace(found, label=torch.full_like(found.label, -1), names=())
    wrong = (found.label < 0) | (found.label >= len(found.names))
    if bool(wrong.any()):
        number = int(wrong.nonzero()[0])
        raise ValueError(
            f"{config.dataset} has label {int(found.label[number])} at image {number} of {split!r}, which is none of its "
            f"{len(found.names)} classes; filter it out, or set data.label_column None"
        )
    return found


def check_pictures(config: PicturesConfig, split: str) -> None:
    """Refuse a split or a column that there is not, without reading images.

    Raises:
        ValueError: Naming those there are.
    """
    if config.dataset == DIGITS:
        _one_of(split, ("train", "test"), DIGITS)
    elif _is_idx(config.dataset):
        _one_of(split, tuple(IDX), config.dataset)
    else:
        _rows(config, split)


def _is_idx(dataset: str) -> bool:
    return Path(dataset).is_dir() and any(Path(dataset).glob("*-images-idx3-ubyte*"))


def _digits(split: str) -> Pictures:
    """1,437 to learn from and 360 to test on, as many of each class as in the whole; always the same ones."""
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise ValueError("the digits come with scikit-learn; pip install 'textdiff[image]'") from error
    known = _one_of(split, ("train", "test"), DIGITS)
    values, label = load_digits(return_X_y=True)
    parts = train_test_split(values, label, test_size=360, random_state=0, stratify=label)
    place = ("train", "test").index(known)
    pixels = torch.from_numpy(parts[place]).to(torch.uint8).view(-1, 1, 8, 8)
    return Pictures(pixels, torch.from_numpy(parts[2 + place]).long(), tuple(map(str, range(10))), top=16)


def _one_of(split: str, known: Sequence[str], dataset: str) -> str:
    if split not in known:
        raise ValueError(f"no split {split!r} in {dataset}: it has {', '.join(known)}")
    return split


# ------------------------------------------------------------------------------------------------------------------- IDX


def _idx(folder: Path, split: str) -> Pictures:
    name = IDX[_one_of(split, tuple(IDX), str(folder))]
    values, label = _read_idx(folder, f"{name}-images-idx3-ubyte", 3), _read_idx(folder, f"{name}-labels-idx1-ubyte", 1)
    if len(values) != len(label):
        raise ValueError(f"{folder} has {len(values)} images and {len(label)} labels in {split!r}; copy it again")
    names = tuple(map(str, range(int(label.max()) + 1 if len(label) else 0)))
    return Pictures(values[:, None], label.long(), names)


def _read_idx(folder: Path, name: str, dimensions: int) -> Tensor:
    """A file of bytes in the IDX format: magic 0, 0, 8, dimensions; the sizes as big-endian int32; the values."""
    import numpy as np

    path = next((folder / (name + end) for end in ("", ".gz") if (folder / (name + end)).is_file()), None)
    if path is None:
        raise ValueError(f"{folder} has no file {name} or {name}.gz; copy the data set again")
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is cut short or damaged ({error}); copy it again") from error
    if content[:4] != bytes((0, 0, 8, dimensions)):
        raise ValueError(f"{path} is no IDX file of bytes in {dimensions} dimensions; it begins with {content[:4]!r}")
    if len(content) < 4 + 4 * dimensions:
        raise ValueError(f"{path} is cut short; copy it again")
    sizes = np.frombuffer(content[4 : 4 + 4 * dimensions], ">i4").tolist()
    values = np.frombuffer(content[4 + 4 * dimensions :], np.uint8)
    if min(sizes) < 0 or len(values) != math.prod(sizes):
        raise ValueError(f"{path} says it holds {sizes}, but has {len(values)} values; copy it again")
    return torch.from_numpy(values.reshape(sizes).copy())


# ---------------------------------------------------------------------------------------------------------- Hugging Face


def _rows(config: PicturesConfig, split: str) -> Any:
    rows = open_split(config.dataset, split, config.config, False)
    for option in ("image_column", "label_column"):
        column = getattr(config, option)
        if column is not None and column not in rows.column_names:
            columns = ", ".join(rows.column_names)
            without = " or, where images have no classes, to None" if option == "label_column" else ""
            raise ValueError(
                f"no column {column!r} in {config.dataset}: set data.{option} to one of {columns}{without}"
            )
    return rows


def _hugging_face(config: PicturesConfig, split: str) -> Pictures:
    rows = _rows(config, split)
    values = _images(rows, config)
    first = next(iter(values), torch.zeros(1, 1, 1, dtype=torch.uint8))
    for number, image in enumerate(values):
        if image.shape != first.shape:
            (one, height, width), (other, h, w) = first.shape, image.shape
            option = "data.mode L or RGB" if one != other else "data.size"
            raise ValueError(
                f"image {number} of {config.dataset} is {w} x {h} with {other} channels, the first is {width} x {height} "
                f"with {one}; give {option} to convert all of them"
            )
    label, names = _labels(rows, config)
    return Pictures(torch.stack(values) if values else torch.zeros(0, 1, 1, 1, dtype=torch.uint8), label, names)


def _images(rows: Any, config: PicturesConfig) -> list[Tensor]:
    images, values = iter(rows[config.image_column]), []
    for number in range(len(rows)):
        try:
            image = next(images)
        except (OSError, ValueError) as error:  # Pillow cannot read it
            reason = next(iter(str(error).splitlines()), "")
            raise ValueError(
                f"image {number} of {config.dataset} cannot be read ({reason}); remove or mend it"
            ) from error
        values.append(_values(image, number, config))
    return values


def _values(image: Any, number: int, config: PicturesConfig) -> Tensor:
    """(C, H, W) uint8 of a PIL image."""
    import numpy as np
    from PIL.Image import Image

    if not isinstance(image, Image):
        kind = type(image).__name__
        raise ValueError(
            f"row {number} of {config.image_column!r} in {config.dataset} is of type {kind}, not an image; "
            "set data.image_column"
        )
    if config.mode is None and image.mode not in ("L", "RGB"):
        raise ValueError(
            f"image {number} of {config.dataset} is of mode {image.mode}; give data.mode L for greys, RGB for colours"
        )
    image = image.convert(config.mode) if config.mode else image
    image = image.resize((config.size, config.size)) if config.size else image
    values = torch.from_numpy(np.array(image))
    return values[None] if values.dim() == 2 else values.permute(2, 0, 1)


def _labels(rows: Any, config: PicturesConfig) -> tuple[Tensor, tuple[str, ...]]:
    """Labels and the names of the classes: those the data set declares, or the numbers up to the largest."""
    if config.label_column is None:
        return torch.full((len(rows),), -1), ()
    labels = rows[config.label_column]
    names = getattr(rows.features[config.label_column], "names", None)
    for number, label in enumerate(labels):
        if not isinstance(label, int):
            raise ValueError(
                f"label {label!r} of image {number} in {config.dataset} is no whole number; "
                "cast the column to ClassLabel, or set data.label_column None"
            )
    found = torch.tensor(list(labels), dtype=torch.int64)
    return found, tuple(names or map(str, range(max(labels, default=-1) + 1)))


def _converted(values: Tensor, config: PicturesConfig) -> Tensor:
    """Values (N, C, H, W) in the size and with the channels that were asked for, unless they are so already."""
    if config.mode == "RGB" and values.shape[1] == 1:
        values = values.expand(-1, 3, -1, -1)
    if config.size and values.shape[2:] != (config.size, config.size):
        size = (config.size, config.size)
        values = torch.nn.functional.interpolate(values.float(), size=size, mode="area").round().to(torch.uint8)
    return values
