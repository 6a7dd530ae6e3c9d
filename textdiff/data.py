"""From a data set of texts to batches: load, cut into windows, pack, visit in a reproducible order.

Windows begin at sentence starts and their lengths are *drawn*. Were all windows equally long, a model could tell the
length of a gap by counting the tokens it sees (gap = window - visible), and would be lost on a user's text.
All of it is a pure function of (texts, seed, position): a run continued at step k sees what it would have seen.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import torch
from torch import Tensor
from torch.utils.data import Sampler

from textdiff.keys import Key
from textdiff.options import PATH, Range, check_options
from textdiff.reading import check_column, checked_text, each, open_split, readable
from textdiff.resuming import fingerprint
from textdiff.sentences import pieces, sentences
from textdiff.tokenizer import encode, specials
from textdiff.tokens import Tokens

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset
    from transformers import PreTrainedTokenizerBase

Texts: TypeAlias = "Dataset | IterableDataset"
_LOG = logging.getLogger(__name__)
LONGEST = 10**6  # tokens of a window

__all__ = ["Batches", "DataConfig", "cut", "load_texts", "pack", "sentences", "to_tokens", "windows"]


@dataclass
class DataConfig:
    """Which texts to learn from, and how they are cut.

    Attributes:
        dataset: A hub name, a folder, or files (.txt .json .jsonl .csv .parquet; globs allowed, such as texts/*). A folder's
            files must be of one format; README, licence, programs and pictures may lie beside them.
        config: The configuration of a hub data set, or of a folder, that has several.
        split: The part to learn from.
        validation_split: The part to measure on. Left out: validation, or where there is none, a twentieth of the texts,
            which is then not learned from.
        text_column: The column that holds the texts.
        streaming: Read while training instead of preparing the whole data set first.
        context: The longest window in tokens, BOS included.
        shortest: The shortest window that is aimed for; only the end of a text may be shorter.
        packed: Put several windows in one row, so that less of a batch is padding. They never see one another.
    """

    dataset: Annotated[str, PATH] = "data/sotu"
    config: str | None = None
    split: str = "train"
    validation_split: str | None = None
    text_column: str = "text"
    streaming: bool = False
    context: Annotated[int, Range(least=2, most=LONGEST)] = 64
    shortest: Annotated[int, Range(least=2, most=LONGEST)] = 8
    packed: bool = False

    def __post_init__(self) -> None:
        check_options(self, "data")
        if self.shortest > self.context:
            raise ValueError(
                f"data.shortest {self.shortest} is more than data.context {self.context}; give at most {self.context}"
            )


# ---------------------------------------------------------------------------------------------------------------- texts


def load_texts(
    dataset: str | Path, split: str, *, text_column: str = "text", config: str | None = None, streaming: bool = False
) -> "Texts":
    """Return the texts of one split as a data set with the single column "text"; a .txt file is one text.

    Raises:
        ValueError: For a data set that cannot be had, a split or a column that it does not have, and a row that holds no
            text (of a stream, the first one).
    """
    where = f"split {split!r} of {dataset}"
    texts = open_split(str(dataset), split, config, streaming, text_column)
    with readable(str(dataset)):
        first = next(iter(texts), None) if streaming or texts.column_names is None else None
    columns = texts.column_names or list(first or {text_column: ""})  # a stream may not know its columns
    if text_column not in columns:
        raise ValueError(f"no column {text_column!r} in {dataset}: set text_column to one of {', '.join(columns)}")
    if streaming and first is not None:
        checked_text(first[text_column], 0, text_column, where)
    texts = texts.select_columns([text_column])
    if streaming:
        texts = texts.map(partial(_checked_row, column=text_column, where=where), with_indices=True)
    else:
        check_column(texts, text_column, where)
    return texts if text_column == "text" else texts.rename_column(text_column, "text")


def _checked_row(row: dict[str, Any], place: int, column: str, where: str) -> dict[str, Any]:
    checked_text(row[column], place, column, where)
    return row


# -------------------------------------------------------------------------------------------------------------- windows


def cut(text: str, tokenizer: "PreTrainedTokenizerBase", *, context: int, shortest: int, key: Key) -> list[list[int]]:
    """Windows of the text: ids that begin with BOS, at most `context` of them; every token in exactly one window.

    The length aimed for is drawn uniformly from [shortest, context] for each window, from the key (of one row). A
    window ends before the sentence that would exceed it; if it were shorter than `shortest` then, that sentence is cut
    at a token and goes on in the next window. White space before a window's first sentence is dropped, nothing else.
    """
    if not 2 <= shortest <= context:
        raise ValueError(f"shortest={shortest}, context={context}: need 2 <= shortest <= context")
    bos = specials(tokenizer).bos
    targets = _targets(shortest, context, key)
    windows: list[list[int]] = []
    window, target = [bos], next(targets)
    for piece in pieces(text):
        ids = encode(tokenizer, piece)
        if len(window) >= shortest and len(window) + len(ids) > target:
            windows.append(window)
            window, target = [bos], next(targets)
        if len(window) == 1:
            ids = encode(tokenizer, piece.lstrip())
        begin = 0
        while len(window) + len(ids) - begin > target:
            end = begin + target - len(window)
            windows.append(window + ids[begin:end])
            begin, window, target = end, [bos], next(targets)
        window += ids[begin:]
    return [*windows, window] if len(window) > 1 else windows


def _targets(shortest: int, context: int, key: Key) -> Iterator[int]:
    """Lengths uniform on shortest..context, without end."""
    block = 0
    while True:
        for u in key.fold(block).uniform(64)[0].tolist():
            yield shortest + int(u * (context - shortest + 1))
        block += 1


def windows(
    texts: "Texts | list[str]", tokenizer: "PreTrainedTokenizerBase", *, context: int, shortest: int, seed: int = 0,
    where: str = "the texts",
) -> "Texts":  # fmt: skip
    """Return all windows of the texts (column "text"): columns `ids` (list[int]) and `index` (int64, its position).

    `index` is the sample number for keyed noise. Streams stay streams. Deterministic: text i is cut by key (seed, i).

    A window with text that the tokenizer cannot spell is left out, and told: no model writes unknown tokens, so that its
    loss would be infinite.

    Args:
        where: How an error names the texts.

    Raises:
        ValueError: For a row that holds no text; of a stream, when it is read. Where no window is left.
    """
    from datasets import Dataset, Features, List, Value

    if isinstance(texts, list):
        texts = Dataset.from_dict({"text": texts})
    ids = Features({"ids": List(Value("int32"))})
    settings = {"context": context, "shortest": shortest, "seed": seed}
    arguments = {"tokenizer": tokenizer, "settings": settings, "where": where, "code": _code()}
    cuts = texts.map(
        _cut_all, batched=True, with_indices=True, remove_columns=["text"], features=ids, fn_kwargs=arguments
    )
    numbered = Features({**ids, "index": Value("int64")})
    if tokenizer.unk_token_id is not None:
        cuts = _spelt(cuts, tokenizer, where)
    return cuts.map(_number, batched=True, with_indices=True, features=numbered)


def _spelt(cuts: "Texts", tokenizer: "PreTrainedTokenizerBase", where: str) -> "Texts":
    """The windows without unknown tokens."""
    from datasets import Dataset

    what = f"text that the tokenizer cannot spell ({tokenizer.unk_token})"
    unknown = {"unknown": tokenizer.unk_token_id}
    if not isinstance(cuts, Dataset):
        return cuts.filter(_tells(f"windows of {where} with {what} are left out"), fn_kwargs=unknown)
    kept = cuts.filter(_is_spelt, fn_kwargs=unknown)
    if len(kept) < len(cuts):
        told = f"{len(cuts) - len(kept):,} of {len(cuts):,} windows of {where} hold {what}"
        if not len(kept):
            raise ValueError(f"{told}; use a tokenizer that spells all bytes, or other texts")
        _LOG.warning("%s, and are left out", told)
    return kept


def _is_spelt(row: dict[str, list[int]], unknown: int) -> bool:
    return unknown not in row["ids"][1:]  # not BOS, which may be the same token, as in GPT-2


def _tells(line: str) -> Callable[..., bool]:
    """`_is_spelt`, which says a line at the first window that is not."""
    told: list[str] = []

    def spelt(row: dict[str, list[int]], unknown: int) -> bool:
        if not (kept := _is_spelt(row, unknown)) and not told:
            told.append(line)
            _LOG.warning(line)
        return kept

    return spelt


def _cut_all(
    batch: dict[str, list[str]],
    numbers: list[int],
    tokenizer: "PreTrainedTokenizerBase",
    settings: dict[str, int],
    where: str,
    code: str,
) -> dict[str, list[list[int]]]:
    """The windows of a batch of texts. `code` is unused here: it is part of the name under which the result is kept."""
    rows = []
    for number, text in zip(numbers, batch["text"], strict=True):
        checked_text(text, number, "text", where)
        key = Key.of(settings["seed"], torch.tensor([number]))
        rows += cut(text, tokenizer, context=settings["context"], shortest=settings["shortest"], key=key)
    return {"ids": rows}


def _number(batch: dict[str, list[list[int]]], numbers: list[int]) -> dict[str, list[int]]:
    return {"index": numbers}


def _code() -> str:
    """A hash of what cuts: `datasets` caches a map by the function's *name*, so old windows would come back."""
    files = (Path(__file__), Path(__file__).with_name("sentences.py"))
    return sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def sizes_of(rows: "Dataset") -> list[int]:
    """Return the number of tokens of each window, without making lists of all their tokens."""
    return [int(size) for sizes, _ in _arrays(rows) for size in sizes]


def fingerprint_of_windows(rows: "Texts", streaming: bool) -> str:
    """Return the number of windows and a hash of their tokens; of a stream, of its first 256."""
    if streaming:
        first = [row["ids"] for row in islice(each(rows, "the stream"), 256)]
        return f"a stream that begins {fingerprint([str(first).encode()])}"
    return f"{len(rows):,} windows, {fingerprint(part.tobytes() for arrays in _arrays(rows) for part in arrays)}"


def _arrays(rows: "Dataset") -> Iterator[tuple[Any, Any]]:
    """Yield the sizes of windows and their tokens, both as arrays, from memory that is mapped."""
    if not len(rows):
        return
    for batch in rows.select_columns(["ids"]).with_format("arrow").iter(10_000):
        column = batch.column("ids").combine_chunks()
        yield column.value_lengths().to_numpy(zero_copy_only=False), column.flatten().to_numpy(zero_copy_only=False)


# -------------------------------------------------------------------------------------------------------------- batches


def pack(rows: list[list[int]], context: int) -> list[list[list[int]]]:
    """Windows put together in rows of at most `context` tokens, each in the first row that has room for it.

    Raises ValueError for a window longer than `context`.
    """
    packed: list[list[list[int]]] = []
    room: list[int] = []
    for window in rows:
        if len(window) > context:
            raise ValueError(f"a window of {len(window)} tokens does not fit context={context}: cut the texts with it")
        place = next((i for i, free in enumerate(room) if free >= len(window)), len(room))
        if place == len(room):
            packed.append([])
            room.append(context)
        packed[place].append(window)
        room[place] -= len(window)
    return packed


def to_tokens(rows: list[list[list[int]]] | list[list[int]], pad: int) -> Tokens:
    """A batch (B, L) from rows of one document (ids) or of several (lists of ids), numbered 0, 1, ... within the row.

    The first token (BOS) of each document is fixed. Raises ValueError for an empty row or document.
    """
    packed: list[Any] = [[row] if row and isinstance(row[0], int) else row for row in rows]
    if not all(row and all(row) for row in packed):
        raise ValueError("an empty row or document: every text begins with a BOS token")
    tokens = Tokens.from_rows([[token for document in row for token in document] for row in packed], pad)
    doc, fixed = tokens.doc.clone(), tokens.fixed.clone()
    for i, row in enumerate(packed):
        sizes = torch.tensor([len(document) for document in row])
        doc[i, : int(sizes.sum())] = torch.repeat_interleave(torch.arange(len(row)), sizes)
        fixed[i, sizes.cumsum(0) - sizes] = True
    return tokens.with_(doc=doc, fixed=fixed)


class Batches(Sampler[list[int]]):
    """Which samples make up steps start, start+1, ... without end: a pure function of (seed, step).

    Epoch e is a permutation of range(size) drawn under (seed, e); the tail of one epoch is joined with the head of the
    next, so each sample comes exactly once per epoch. `batch` counts samples over all `world` ranks; a rank gets every
    world-th of them. With `lengths`, the samples of POOL steps are dealt out so that those of a step are about equally
    long, and little of a batch is padding. Raises ValueError if `world` does not divide `batch`.
    """

    POOL = 16

    def __init__(
        self,
        size: int,
        batch: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        start: int = 0,
        lengths: Sequence[int] | None = None,
    ) -> None:
        if size < 1 or batch < 1:
            raise ValueError(f"size={size}, batch={batch}: need at least one sample and a batch of at least one")
        if batch % world or not 0 <= rank < world:
            raise ValueError(f"batch={batch}, rank={rank}, world={world}: the batch must be a multiple of world > rank")
        self.size, self.batch, self.seed, self.rank, self.world, self.start = size, batch, seed, rank, world, start
        self.lengths = lengths
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.int64)
        self._pool: tuple[int, list[list[int]]] = (-1, [])

    def __iter__(self) -> Iterator[list[int]]:
        step = self.start
        while True:
            yield self.at(step)
            step += 1

    def at(self, step: int) -> list[int]:
        """This rank's sample numbers of one step."""
        pool, place = divmod(step, self.POOL)
        if pool != self._pool[0]:
            self._pool = pool, self._deal(pool)
        return self._pool[1][place][self.rank :: self.world]

    def _deal(self, pool: int) -> list[list[int]]:
        """The batches of POOL steps, over all ranks."""
        count = self.POOL * self.batch
        samples = [self._sample(position) for position in range(pool * count, (pool + 1) * count)]
        if self.lengths is not None:
            samples.sort(key=self.lengths.__getitem__)
        batches = [samples[i : i + self.batch] for i in range(0, count, self.batch)]
        return [batches[i] for i in self._shuffled(self.POOL, ~pool)] if self.lengths is not None else batches

    def _sample(self, position: int) -> int:
        epoch, place = divmod(position, self.size)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._shuffled(self.size, epoch)
        return int(self._order[place])

    def _shuffled(self, size: int, number: int) -> Tensor:
        seed = int(Key.of(self.seed, torch.tensor([number])).state) & (2**63 - 1)
        return torch.randperm(size, generator=torch.Generator().manual_seed(seed))
