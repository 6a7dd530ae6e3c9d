"""From a data set of texts to batches: load, cut into windows, pack, visit in a reproducible order.

Windows begin at sentence starts and their lengths are *drawn*. Were all windows equally long, a model could tell the
length of a gap by counting the tokens it sees (gap = window - visible), and would be lost on a user's text.
All of it is a pure function of (texts, seed, position): a run continued at step k sees what it would have seen.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor
from torch.utils.data import Sampler

from textdiff.keys import Key
from textdiff.tokenizer import encode, specials
from textdiff.tokens import Tokens

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset
    from transformers import PreTrainedTokenizerBase

Texts: TypeAlias = "Dataset | IterableDataset"

FORMATS = {".txt": "text", ".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}


@dataclass
class DataConfig:
    """Which texts to learn from, and how they are cut.

    Attributes:
        dataset: A hub name, a folder, or files (.txt .json .jsonl .csv .parquet; globs allowed).
        config: The configuration of a hub data set that has several.
        split: The part to learn from.
        validation_split: The part to measure on.
        text_column: The column that holds the texts.
        streaming: Read while training instead of preparing the whole data set first.
        context: The longest window in tokens, BOS included.
        shortest: The shortest window that is aimed for; only the end of a text may be shorter.
        packed: Put several windows in one row, so that less of a batch is padding. They never see one another.
    """

    dataset: str = "data/sotu"
    config: str | None = None
    split: str = "train"
    validation_split: str = "validation"
    text_column: str = "text"
    streaming: bool = False
    context: int = 64
    shortest: int = 8
    packed: bool = False


# ---------------------------------------------------------------------------------------------------------------- texts


def load_texts(
    dataset: str | Path, split: str, *, text_column: str = "text", config: str | None = None, streaming: bool = False
) -> "Texts":
    """The texts of one split as a data set with the single column "text"; a .txt file is one text.

    Raises ValueError for a data set that cannot be had, a split or a column that it does not have.
    """
    texts = open_split(str(dataset), split, config, streaming)
    columns = texts.column_names or list(next(iter(texts), {text_column: ""}))  # a stream may not know its columns
    if text_column not in columns:
        raise ValueError(f"no column {text_column!r} in {dataset}: set text_column to one of {', '.join(columns)}")
    texts = texts.select_columns([text_column])
    return texts if text_column == "text" else texts.rename_column(text_column, "text")


def open_split(dataset: str, split: str, config: str | None, streaming: bool) -> "Texts":
    """`datasets.load_dataset`, with errors of one line."""
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError

    arguments = _source(dataset, config)
    try:
        splits = load_dataset(**arguments, streaming=streaming)
    except (DatasetNotFoundError, FileNotFoundError, ConnectionError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"cannot load {dataset!r}: no such file or folder here, and from the hub: {reason}") from error
    if (name := re.split(r"[\[+]", split)[0]) not in splits:
        raise ValueError(f"no split {name!r} in {dataset}: it has {', '.join(splits)}")
    return splits[split] if split == name else load_dataset(**arguments, split=split, streaming=streaming)


def _source(dataset: str, config: str | None) -> dict[str, object]:
    """The arguments by which `load_dataset` finds the data set."""
    from datasets import load_dataset_builder

    path = Path(dataset).expanduser()
    if kind := FORMATS.get(path.suffix.lower()):
        if not any(Path(path.anchor).glob(str(path.relative_to(path.anchor)))):
            raise ValueError(f"no file {dataset}: give a file, a pattern, a folder or the name of a hub data set")
        whole = {"sample_by": "document"} if kind == "text" else {}
        return {"path": kind, "data_files": str(path), **whole}
    if path.is_dir():
        builder = load_dataset_builder(str(path), config)
        whole = {"sample_by": "document"} if "sample_by" in vars(builder.config) else {}  # a folder of .txt files
        return {"path": str(path), "name": config, **whole}
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", dataset) or dataset.startswith(".") or _inside_a_folder(path):
        raise ValueError(f"no folder {dataset}: give a file, a pattern, a folder or the name of a hub data set")
    return {"path": dataset, "name": config}


def _inside_a_folder(path: Path) -> bool:
    """data/typo is a mistyped path where ./data exists, and not a hub name to look up."""
    return len(path.parts) > 1 and Path(path.parts[0]).is_dir()


# ------------------------------------------------------------------------------------------------------------ sentences

_CLOSERS = r"""["'”’»)\]]*+"""
_BOUNDARY = re.compile(  # possessive, and begun at the first of a run: linear time whatever the text
    rf"(?<![.!?…])(?P<stop>[.!?…]++)(?P<closers>{_CLOSERS})(?=\s+(?P<next>\S))"  # a full stop, before white space
    rf"|(?<![。！？])[。！？]++[」』”’）]*+(?=\S)"  # scripts that write no space between sentences
    r"|(?<=\S)(?=[^\S\n]*\n[^\S\n]*\n)"  # an empty line
)
_WORD = re.compile(r"\w[\w.]*\Z")
_INITIALS = re.compile(r"[A-HJ-Z]|(?:[A-Za-z]\.)+[A-Za-z]")  # J. Edgar, U.S., a.m.; but "you and I."
_ABBREVIATIONS = frozenset("mr mrs ms dr prof st gen sen rep gov lt col capt sgt rev hon messrs mt vs cf".split())
_BEFORE_NUMBERS = frozenset(
    "no nos vol fig sec art ch p pp jan feb mar apr jun jul aug sep sept oct nov dec".split()
)  # "No. 5" goes on; "No. We will not." does not


def sentences(text: str) -> list[str]:
    """The text in sentences, white space kept in front of the sentence it precedes: "".join gives the text back.

    A rule of thumb for European scripts: titles, initials and "U.S." end no sentence, so some ends are missed.
    """
    body = text.rstrip()  # white space at the very end stays with the last sentence
    ends = [match.end() for match in _BOUNDARY.finditer(body) if not _goes_on(match)]
    cuts = sorted({0, *ends, len(text)})
    return [text[start:end] for start, end in zip(cuts, cuts[1:], strict=False)]


def _goes_on(match: re.Match[str]) -> bool:
    """Whether the sentence continues after this full stop."""
    if not match["stop"]:
        return False
    if match["next"].islower():
        return True
    if match["stop"] != "." or match["closers"]:
        return False
    start = match.start()
    word = _WORD.search(match.string[max(0, start - 24) : start])
    if not word:
        return False
    lower = word[0].lower()
    numbered = lower in _BEFORE_NUMBERS and match["next"].isdigit()
    return numbered or lower in _ABBREVIATIONS or bool(_INITIALS.fullmatch(word[0]))


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
    for sentence in sentences(text):
        ids = encode(tokenizer, sentence)
        if len(window) >= shortest and len(window) + len(ids) > target:
            windows.append(window)
            window, target = [bos], next(targets)
        if len(window) == 1:
            ids = encode(tokenizer, sentence.lstrip())
        while len(window) + len(ids) > target:
            room = target - len(window)
            windows.append(window + ids[:room])
            ids = ids[room:]
            window, target = [bos], next(targets)
        window = window + ids
    return [*windows, window] if len(window) > 1 else windows


def _targets(shortest: int, context: int, key: Key) -> Iterator[int]:
    """Lengths uniform on shortest..context, without end."""
    block = 0
    while True:
        for u in key.fold(block).uniform(64)[0].tolist():
            yield shortest + int(u * (context - shortest + 1))
        block += 1


def windows(
    texts: "Texts | list[str]", tokenizer: "PreTrainedTokenizerBase", *, context: int, shortest: int, seed: int = 0
) -> "Texts":
    """All windows of the texts (column "text"): columns `ids` (list[int]) and `index` (int64, the window's position).

    `index` is the sample number for keyed noise. Streams stay streams. Deterministic: text i is cut by key (seed, i).
    """
    from datasets import Dataset, Features, List, Value

    if isinstance(texts, list):
        texts = Dataset.from_dict({"text": texts})
    ids = Features({"ids": List(Value("int32"))})
    settings = {"context": context, "shortest": shortest, "seed": seed}
    arguments = {"tokenizer": tokenizer, "settings": settings, "code": _code()}
    cuts = texts.map(
        _cut_all, batched=True, with_indices=True, remove_columns=["text"], features=ids, fn_kwargs=arguments
    )
    numbered = Features({**ids, "index": Value("int64")})
    return cuts.map(_number, batched=True, with_indices=True, features=numbered)


def _cut_all(
    batch: dict[str, list[str]],
    numbers: list[int],
    tokenizer: "PreTrainedTokenizerBase",
    settings: dict[str, int],
    code: str,
) -> dict[str, list[list[int]]]:
    """The windows of a batch of texts. `code` is unused here: it is part of the name under which the result is kept."""
    rows = []
    for number, text in zip(numbers, batch["text"], strict=True):
        if not isinstance(text, str):
            raise ValueError(f"text {number} is {text!r}, not a string: filter such rows out of the data set")
        key = Key.of(settings["seed"], torch.tensor([number]))
        rows += cut(text, tokenizer, context=settings["context"], shortest=settings["shortest"], key=key)
    return {"ids": rows}


def _number(batch: dict[str, list[list[int]]], numbers: list[int]) -> dict[str, list[int]]:
    return {"index": numbers}


def _code() -> str:
    """A hash of this file: `datasets` caches a map by the function's *name*, so old windows would come back."""
    return sha256(Path(__file__).read_bytes()).hexdigest()


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
