"""Validation data where a data set has none: a twentieth is held out, and never learned from.

Which rows is decided by their content: equal rows are on the same side, whatever their order and the seed.
"""

from collections.abc import Iterator
from hashlib import blake2b
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from textdiff.reading import each

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

SHARE, MOST = 20, 1000  # one row in so many, and at most so many
FEW = 20  # of fewer texts their windows are held out, not whole texts
HEAD = 1000  # rows of a stream that are looked at


class Halves(NamedTuple):
    """What is learned from, and what is held out, with how much that is."""

    train: Any
    held: Any
    size: str


def hold_out_texts(texts: Any, streaming: bool, dataset: str) -> Halves | None:
    """Divide the texts of a data set or a stream; None where they are so few that their windows are to be divided.

    Raises:
        ValueError: For texts that are too few, or too alike, to leave something on both sides.
    """
    if streaming:
        return _of_stream(texts, dataset)
    codes = [_code(text) for text in _values(texts, "text")]
    if len(codes) < FEW and len(set(codes)) == len(codes):
        return None
    halves = _divided(texts, codes, "texts")
    if halves is None:
        raise ValueError(too_little(dataset))
    return halves


def hold_out_windows(windows: Any, streaming: bool, dataset: str) -> Halves:
    """Divide the windows of few texts.

    Raises:
        ValueError: For windows that are too few as well.
    """
    halves: Halves | None
    if streaming:
        train = windows.filter(lambda row: row["index"] % SHARE != SHARE // 2)
        held = windows.filter(lambda row: row["index"] % SHARE == SHARE // 2)
        halves = Halves(train, held, f"1 in {SHARE} windows") if next(each(held, dataset), None) is not None else None
    else:
        halves = _divided(windows, [_code(ids) for ids in _values(windows, "ids")], "windows")
    if halves is None:
        raise ValueError(too_little(dataset))
    return halves


def too_little(dataset: str) -> str:
    """Return what to say of a data set that nothing can be held out of."""
    return (
        f"{dataset} has no split to measure on, and too little text to hold some out; name one by --data.validation-split, "
        "if need be the one that is learned from"
    )


def _divided(rows: "Dataset", codes: list[bytes], unit: str) -> Halves | None:
    """The rows of the smallest codes are held out; None where nothing is left on one side."""
    if not codes:
        return None
    limit = sorted(codes)[min(max(len(codes) // SHARE, 1), MOST) - 1]
    held = [place for place, code in enumerate(codes) if code <= limit]
    train = [place for place, code in enumerate(codes) if code > limit]
    if not train:
        return None
    return Halves(rows.select(train), rows.select(held), f"{len(held):,} of {len(codes):,} {unit}")


def _of_stream(texts: "IterableDataset", dataset: str) -> Halves | None:
    """The first texts of a stream, and all that equal them."""
    from datasets import Dataset

    head = [row["text"] for row in islice(each(texts, dataset), HEAD)]
    known = {_code(text) for text in head}
    if len(head) < FEW and len(known) == len(head):
        return None
    held = head[: max(len(head) // SHARE, 1)]
    codes = {_code(text) for text in held}
    if known <= codes:
        raise ValueError(too_little(dataset))
    train = texts.filter(lambda row: _code(row["text"]) not in codes)
    return Halves(train, Dataset.from_dict({"text": held}), f"the first {len(held):,} texts")


def _values(rows: "Dataset", column: str) -> Iterator[Any]:
    for batch in rows.select_columns([column]).iter(1000):
        yield from batch[column]


def _code(value: str | list[int]) -> bytes:
    content = value if isinstance(value, str) else repr(list(value))
    return blake2b(content.encode("utf-8", "surrogatepass"), digest_size=12).digest()
