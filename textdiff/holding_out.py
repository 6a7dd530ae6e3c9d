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


def hold_out(rows: "Dataset", column: str) -> Halves | None:
    """Divide rows; None where they are too few, or too alike, to leave something on both sides."""
    codes = [_code(value) for value in _values(rows, column)]
    if len(set(codes)) < 2:
        return None
    limit = sorted(codes)[min(max(len(codes) // SHARE, 1), MOST) - 1]
    held = [place for place, code in enumerate(codes) if code <= limit]
    train = [place for place, code in enumerate(codes) if code > limit]
    if not train:
        return None
    return Halves(rows.select(train), rows.select(held), f"{len(held):,} of {len(codes):,}")


def hold_out_texts(texts: Any, streaming: bool, dataset: str) -> Halves | None:
    """Divide the texts of a data set or a stream; None where they are so few that their windows are to be divided."""
    if streaming:
        return _of_stream(texts, dataset)
    halves = hold_out(texts, "text") if len(texts) >= FEW else None
    return None if halves is None else halves._replace(size=f"{halves.size} texts")


def hold_out_windows(windows: Any, streaming: bool) -> Halves | None:
    """Divide the windows of few texts; None where they are too few as well."""
    if streaming:
        train = windows.filter(lambda row: row["index"] % SHARE != SHARE // 2)
        held = windows.filter(lambda row: row["index"] % SHARE == SHARE // 2)
        return Halves(train, held, f"1 in {SHARE} windows") if next(iter(held), None) is not None else None
    halves = hold_out(windows, "ids")
    return None if halves is None else halves._replace(size=f"{halves.size} windows")


def _of_stream(texts: "IterableDataset", dataset: str) -> Halves | None:
    """The first texts of a stream, and all that equal them."""
    from datasets import Dataset

    head = [row["text"] for row in islice(each(texts, dataset), HEAD)]
    held = head[: len(head) // SHARE]
    codes = {_code(text) for text in held}
    if len(head) < FEW or all(_code(text) in codes for text in head):
        return None
    train = texts.filter(lambda row: _code(row["text"]) not in codes)
    return Halves(train, Dataset.from_dict({"text": held}), f"the first {len(held):,} texts")


def _values(rows: "Dataset", column: str) -> Iterator[Any]:
    for batch in rows.select_columns([column]).iter(1000):
        yield from batch[column]


def _code(value: str | list[int]) -> bytes:
    content = value if isinstance(value, str) else repr(list(value))
    return blake2b(content.encode("utf-8", "surrogatepass"), digest_size=12).digest()
