"""Data sets as they lie on a disk or on the hub: opened by `datasets`, and told in one line where they cannot be read.

What is wrong with a file is told with the file, the line or row, and the column. Rows are looked at before training; those
of a stream when they come. `datasets` reads files of one kind from a folder, and of those only the ones that are named after
a split where any is; a file that would be left out so is refused by its name, unless it is plainly no data (`_aside`).
"""

import csv
import glob
import json
import logging
import mimetypes
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from textdiff.file_rows import UnreadableRow, rows_of
from textdiff.options import checked_path
from textdiff.run_folder import check_writable
from textdiff.validation import shown

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

Texts: TypeAlias = "Dataset | IterableDataset"

FORMATS = {".txt": "text", ".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}
# what may lie beside texts: papers of the data set, programs, settings; and pictures and sounds, by their type
_PAPERS = re.compile(r"(readme|licen[cs]e|copying|notice|citation|authors|changelog|contributing|makefile)\b.*", re.I)
_PROGRAMS = (".py", ".sh", ".ipynb", ".yaml", ".yml", ".toml", ".cfg", ".ini", ".log", ".lock", ".pdf", ".bib")
_quiet = {"depth": 0, "level": 0}  # how many are reading, and the level of the log before


class MissingSplit(ValueError):
    """A split that a data set does not have."""


def open_split(dataset: str, split: str, config: str | None, streaming: bool, column: str | None = None) -> "Texts":
    """Return one split, or a part such as "train[:100]", of a data set.

    Args:
        column: The column of texts, which JSON and CSV files are read for: it has what stands there, and no other type.

    Raises:
        MissingSplit: For a split that it does not have.
        ValueError: In one line, for a data set that cannot be read.
    """
    from datasets import config as places
    from datasets import load_dataset

    name = re.split(r"[\[+]", split)[0]
    if streaming and split != name:
        raise ValueError(f"split {split!r}: a stream has no parts; name the split {name!r}, or leave streaming out")
    if not streaming:
        check_writable(Path(places.HF_DATASETS_CACHE), "the cache of data sets (HF_HOME)")
    arguments = _source(dataset, config)
    _check_tables(Path(checked_path("dataset", dataset)))
    if column is not None:
        if files := _local_files(arguments, dataset):
            if name not in files:
                raise _missing(name, dataset, files)
            with readable(dataset):
                return _split_of(files, split, column, streaming)
    with readable(dataset):
        splits = load_dataset(**arguments, streaming=streaming)
    if name not in splits:
        raise _missing(name, dataset, splits)
    if split == name:
        return splits[split]
    with readable(dataset):
        return load_dataset(**arguments, split=split, streaming=streaming)


def _missing(name: str, dataset: str, splits: Iterable[str]) -> MissingSplit:
    return MissingSplit(
        f"no split {name!r} in {dataset}: it has {', '.join(splits)}; name one of these, or a part, as in train[90%:]"
    )


def _local_files(arguments: dict[str, Any], dataset: str) -> dict[str, list[str]]:
    """The files of each split, where they are JSON or CSV and of this machine; else none."""
    from datasets import load_dataset_builder

    with readable(dataset):
        builder = load_dataset_builder(**arguments)
    found = {str(split): [*map(str, files)] for split, files in (builder.config.data_files or {}).items()}
    there = bool(found) and all(os.path.isfile(file) for files in found.values() for file in files)
    return found if there and builder.name in ("json", "csv") else {}


def _split_of(files: dict[str, list[str]], split: str, column: str, streaming: bool) -> "Texts":
    from datasets import Dataset, Features, IterableDataset, NamedSplit, ReadInstruction, Value, concatenate_datasets

    features = Features({column: Value("string")})
    if streaming:
        return IterableDataset.from_generator(
            texts_of, features=features, gen_kwargs={"files": files[split], "column": column}
        )

    def whole(name: str) -> "Dataset":
        stamps = [
            os.stat(file).st_mtime_ns for file in files[name]
        ]  # a file that was changed is another one to the cache
        options = {"files": files[name], "column": column, "stamps": stamps}
        return Dataset.from_generator(texts_of, features=features, gen_kwargs=options, split=NamedSplit(name))

    if split in files:
        return whole(split)
    wanted = {name: whole(name) for name in files if re.search(rf"(^|\+){re.escape(name)}(\[|\+|$)", split)}
    sizes = {name: len(rows) for name, rows in wanted.items()}
    parts = ReadInstruction.from_spec(split).to_absolute(sizes)
    return concatenate_datasets(
        [wanted[part.splitname].select(range(sizes[part.splitname])[part.from_ : part.to]) for part in parts]
    )


def texts_of(files: list[str], column: str, stamps: Sequence[int] = ()) -> Iterator[dict[str, str]]:
    """Yield the texts of JSON and CSV files.

    Raises:
        ValueError: For a column that the first row does not have.
        UnreadableRow: For a row without a text.
    """
    for file in map(Path, files):
        if file.stat().st_size == 0:
            raise UnreadableRow(f"{file} is empty")
        for number, (place, row) in enumerate(_decoded(file)):
            if isinstance(row, str) and column == "text":
                row = {"text": row}
            if not isinstance(row, dict):
                raise UnreadableRow(f"{file}, {place}: {shown(row)} is no row; write an object with the key {column!r}")
            if column not in row and number == 0:
                raise UnreadableRow(f"no column {column!r} in {file}: set text_column to one of {', '.join(row)}")
            text = checked_text(row.get(column), number, column, f"{file} ({place})")
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise UnreadableRow(
                    f"{file}, {place}: not JSON (half of a surrogate pair); mend or remove it"
                ) from error
            yield {column: text}


def _decoded(file: Path) -> Iterator[tuple[str, Any]]:
    try:
        yield from rows_of(file)
    except UnicodeDecodeError as error:
        raise UnreadableRow(_fault(file) or f"{file}: not UTF-8 ({error.reason}); save the file as UTF-8") from error


# ------------------------------------------------------------------------------------------------------------- the place


def _source(dataset: str, config: str | None) -> dict[str, Any]:
    """Return the arguments by which `load_dataset` finds the data set."""
    path = Path(checked_path("dataset", dataset))
    if "::" in str(path):
        raise ValueError(f"{dataset}: a name with '::' cannot be read; rename it")
    if path.is_file():
        if path.suffix.lower() not in FORMATS:
            raise ValueError(f"{dataset} is a file of an unknown kind; give one of {', '.join(FORMATS)}")
        _no_config(dataset, config)
        return _files(path, [glob.escape(str(path))])
    if path.is_dir():
        return _folder(path, dataset, config)
    if path.suffix.lower() in FORMATS:
        if not any(file.is_file() for file in _matches(path)):
            raise ValueError(f"no file {dataset}: give a file, a pattern, a folder or the name of a hub data set")
        _no_config(dataset, config)
        return _files(path, [str(path)])
    if glob.has_magic(str(path)):
        _no_config(dataset, config)
        return _pattern(path, dataset)
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", dataset) or dataset.startswith(".") or _inside_a_folder(path):
        raise ValueError(f"no folder {dataset}: give a file, a pattern, a folder or the name of a hub data set")
    return {"path": dataset, "name": config}


def _check_tables(path: Path) -> None:
    """Raise ValueError for a CSV file that would be read with its columns in other places, or with one of two of a name."""
    files = [path] if path.is_file() else path.rglob("*.csv") if path.is_dir() else _matches(path)
    for file in files:
        if file.suffix.lower() != ".csv" or not file.is_file():
            continue
        with file.open(encoding="utf-8-sig", errors="replace", newline="") as lines:
            try:
                rows = csv.reader(lines)
                header, first = next(rows, []), next(rows, [])
            except csv.Error:
                continue  # pandas says what is wrong
        if len(first) > len(header):
            raise ValueError(
                f"{file}: line 2 has {len(first)} fields and the header {len(header)}, so columns would be read for others; "
                "give the header as many names, or take out the last comma"
            )
        if twice := sorted({name for name in header if header.count(name) > 1}):
            raise ValueError(f"{file} has two columns {twice[0]!r}; give each a name of its own")


def _files(path: Path, patterns: Sequence[str]) -> dict[str, Any]:
    kind = FORMATS[path.suffix.lower()]
    return {"path": kind, "data_files": list(patterns)} | ({"sample_by": "document"} if kind == "text" else {})


def _no_config(dataset: str, config: str | None) -> None:
    if config is not None:
        raise ValueError(
            f"data.config {config!r} is of a hub data set or a folder, {dataset} names files; leave it out"
        )


def _pattern(path: Path, dataset: str) -> dict[str, Any]:
    """The files that a pattern without one of the endings finds, such as texts/*."""
    found = [file for file in _matches(path) if file.is_file() and not _ignored(file.name)]
    first = next((file for file in found if file.suffix.lower() in FORMATS and not _aside(file)), None)
    if first is None:
        raise ValueError(f"no file {dataset} that can be read; give one of {', '.join(FORMATS)}, or a folder")
    read = [file for file in found if FORMATS.get(file.suffix.lower()) == FORMATS[first.suffix.lower()]]
    _all_read(found, read, dataset)
    return _files(first, [glob.escape(str(file)) for file in read])


def _matches(path: Path) -> Iterator[Path]:
    return map(Path, sorted(glob.glob(str(path), recursive=True)))


def _all_read(found: Iterable[Path], read: Iterable[Path], dataset: str) -> None:
    """ValueError, naming the first, where files of a folder or a pattern would be left out."""
    taken = {os.path.realpath(file) for file in read}
    left = sorted(file for file in found if not _aside(file) and os.path.realpath(file) not in taken)
    if not left:
        return
    more = f" and {len(left) - 1} more" if len(left) > 1 else ""
    kinds = sorted({Path(file).suffix for file in taken})
    only = "those named after a split" if left[0].suffix in kinds else f"the {len(taken)} of {', '.join(kinds)}"
    raise ValueError(
        f"{left[0]}{more} would not be read: of the files of {dataset} only {only} are; give all texts one format, name a "
        f"pattern such as *{kinds[0] if kinds else '.txt'}, or move the others away"
    )


def _aside(file: Path) -> bool:
    """Whether a file is plainly no data: papers, programs, settings, pictures, sounds, and what `datasets` ignores."""
    kind = (mimetypes.guess_type(file.name)[0] or "").partition("/")[0]
    plainly = kind in ("image", "audio", "video", "font") or file.suffix.lower() in _PROGRAMS
    return plainly or bool(_PAPERS.fullmatch(file.name)) or _ignored(file.name)


def _ignored(name: str) -> bool:
    """Whether `datasets` passes over a file of this name wherever it is."""
    from datasets.data_files import FILES_TO_IGNORE

    return name in FILES_TO_IGNORE or name.startswith((".", "__"))


def _files_below(folder: Path) -> Iterator[Path]:
    """The files of a folder, without what `datasets` takes for hidden."""
    for place, folders, names in os.walk(folder, followlinks=False):
        folders[:] = [name for name in folders if not name.startswith((".", "__"))]
        yield from (Path(place, name) for name in names)


def _chooses(folder: Path) -> bool:
    """Whether a folder's README.md says which files are read."""
    card = folder / "README.md"
    head = card.read_text(encoding="utf-8", errors="replace").split("\n---", 1)[0] if card.is_file() else ""
    return head.startswith("---") and re.search(r"^configs:", head, re.MULTILINE) is not None


def _folder(path: Path, dataset: str, config: str | None) -> dict[str, Any]:
    from datasets import load_dataset_builder

    if glob.has_magic(str(path)):
        _no_config(dataset, config)
        return _folder_with_brackets(path, dataset)
    with readable(dataset):
        builder = load_dataset_builder(str(path), config)
    if builder.name in FORMATS.values() and not _chooses(path):
        read = [Path(file) for files in (builder.config.data_files or {}).values() for file in files]
        _all_read(_files_below(path), read, dataset)
    whole = {"sample_by": "document"} if "sample_by" in vars(builder.config) else {}  # a folder of .txt files
    return {"path": str(path), "name": config, **whole}


def _folder_with_brackets(path: Path, dataset: str) -> dict[str, Any]:
    """`datasets` reads brackets in the name of a folder as a pattern: its files are given one by one."""
    from datasets.data_files import get_data_patterns

    base = glob.escape(str(path.resolve()))
    with readable(dataset):
        patterns = get_data_patterns(base)
    names = {
        split: [
            file
            for one in found
            for file in _matches(Path(f"{base}/{one}"))
            if file.is_file() and not _ignored(file.name)
        ]
        for split, found in patterns.items()
    }
    found = [file for files in names.values() for file in files if file.suffix.lower() in FORMATS]
    first = next((file for file in found if not _aside(file)), None)
    if first is None:
        raise ValueError(f"{dataset} cannot be read because of the brackets in its name; rename it")
    kind = FORMATS[first.suffix.lower()]
    read = [file for file in found if FORMATS[file.suffix.lower()] == kind]
    _all_read(_files_below(path), read, dataset)
    taken = set(read)
    given = {split: [glob.escape(str(file)) for file in files if file in taken] for split, files in names.items()}
    return _files(first, []) | {"data_files": given}


def _inside_a_folder(path: Path) -> bool:
    """data/typo is a mistyped path where ./data exists, and not a hub name to look up."""
    return len(path.parts) > 1 and Path(path.parts[0]).is_dir()


# ---------------------------------------------------------------------------------------------------------------- errors


@contextmanager
def readable(dataset: str) -> Iterator[None]:
    """Tell whatever goes wrong while a data set is read as one ValueError, with the file and the line where it can."""
    _be_quiet(True)
    try:
        yield
    except UnreadableRow:
        raise
    except Exception as error:  # datasets, pyarrow and pandas raise all sorts
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, UnreadableRow):
            cause = cause.__cause__ or cause.__context__
        if cause is not None:
            raise UnreadableRow(str(cause)) from error
        raise ValueError(_told(dataset, error)) from error
    finally:
        _be_quiet(False)


def _be_quiet(begin: bool) -> None:
    """Silence the log of `datasets`, which writes what it raises as well, from the first that reads to the last."""
    log = logging.getLogger("datasets")
    _quiet["depth"] += 1 if begin else -1
    if begin and _quiet["depth"] == 1:
        _quiet["level"] = log.level
        log.setLevel(logging.CRITICAL)
    elif not _quiet["depth"]:
        log.setLevel(_quiet["level"])


def each(rows: Iterable[Any], dataset: str) -> Iterator[Any]:
    """Yield the rows of a data set; what cannot be read is told as `readable` does."""
    with readable(dataset):  # once: to set a level clears what all logs remember
        yield from rows


def _told(dataset: str, error: Exception) -> str:
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    reason = next(iter(str(cause).strip().splitlines()), "") or type(cause).__name__
    if isinstance(cause, OSError) and (about_cache := _told_of_cache(cause)):
        return about_cache
    path = Path(os.path.expanduser(dataset))
    files = [path] if path.is_file() else _files_in(path)
    if not files and not path.exists():
        return f"cannot load {dataset!r}: no such file or folder here, and from the hub: {reason}"
    if not files:
        return f"{dataset} has no data files; give one with {', '.join(FORMATS)}"
    return next((told for file in files if (told := _fault(file))), f"{dataset} cannot be read: {reason}")


def _told_of_cache(error: OSError) -> str | None:
    from datasets import config

    places = (str(config.HF_DATASETS_CACHE), str(config.HF_MODULES_CACHE), str(config.HF_CACHE_HOME))
    inside = str(error.filename or "").startswith(places)
    if not inside and error.errno != 28:  # no space left on the device
        return None
    return f"the cache of data sets {places[0]} cannot be written ({error.strerror}); set HF_HOME to a folder with room"


def _files_in(path: Path) -> list[Path]:
    """Return the data files of a folder or of a pattern."""
    found = path.rglob("*") if path.is_dir() else _matches(path) if glob.has_magic(str(path)) else iter(())
    return sorted(file for file in found if file.suffix.lower() in FORMATS and file.is_file())


def _fault(file: Path) -> str | None:
    """Return what is wrong with a file and where, None where nothing is seen."""
    if file.stat().st_size == 0:
        return f"{file} is empty"
    kind = FORMATS[file.suffix.lower()]
    if kind == "parquet":
        return None
    if file.suffix.lower() == ".json" and not _begins_with_a_row(file):
        return _fault_of_document(file)
    with file.open("rb") as lines:
        for place, line in enumerate(lines, 1):
            try:
                text = line.decode("utf-8-sig" if place == 1 else "utf-8")
            except UnicodeDecodeError as error:
                return f"{file}, line {place}: not UTF-8 ({error.reason} at byte {error.start}); save the file as UTF-8"
            if kind == "json" and (reason := _not_json(text)):
                return f"{file}, line {place}: not JSON ({reason}); mend or remove the line"
    return None


def _begins_with_a_row(file: Path) -> bool:
    """Whether the first line is whole, so that the file has a line for each row."""
    with file.open(encoding="utf-8-sig", errors="replace") as lines:
        return _not_json(lines.readline()) is None


def _not_json(text: str) -> str | None:
    try:
        json.dumps(json.loads(text) if text.strip() else None, ensure_ascii=False).encode("utf-8")
    except json.JSONDecodeError as error:
        return f"{error.msg} at character {error.pos}"
    except UnicodeEncodeError:
        return "half of a surrogate pair"
    except RecursionError:
        return "nested too deeply"
    return None


def _fault_of_document(file: Path) -> str | None:
    try:
        json.loads(file.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        return f"{file}, line {error.lineno}: not JSON ({error.msg}); mend it"
    except (UnicodeDecodeError, RecursionError):
        return None
    return None


# ------------------------------------------------------------------------------------------------------------------ rows


def check_column(texts: "Dataset", column: str, where: str) -> None:
    """Refuse a column with a row that holds no text.

    Raises:
        ValueError: Naming the first such row.
    """
    feature = texts.features[column]
    if getattr(feature, "dtype", "") in ("string", "large_string", "string_view") and not _nulls(texts, column):
        return
    for place, value in enumerate(texts[column]):
        checked_text(value, place, column, where)


def _nulls(texts: "Dataset", column: str) -> int:
    return int(texts.data.column(column).null_count)


def checked_text(value: Any, place: int, column: str, where: str) -> str:
    """Return the text of a row.

    Args:
        place: The row's place, from 0; errors count from 1, as lines are counted.

    Raises:
        ValueError: For anything but a text, with the remedy for its kind.
    """
    if isinstance(value, str):
        return value
    kind, remedy = _kind(value)
    raise UnreadableRow(
        f"row {place + 1} (the first is 1) of column {column!r} in {where} holds {kind}, not a text: {shown(value)}; "
        + remedy
    )


def _kind(value: Any) -> tuple[str, str]:
    other = "name a column of texts by data.text_column (--text-column)"
    if value is None:
        return "nothing", "filter such rows out of the data set"
    if isinstance(value, list | tuple):
        if value and all(isinstance(item, dict) and "content" in item for item in value):
            return "a chat", "write each chat as one text first, as the tokenizer's apply_chat_template does"
        return "a list", "join its parts into one text first, or " + other
    if isinstance(value, bytes):
        return "bytes", "decode them first, or " + other
    return {bool: "a flag", int: "a number", float: "a number", dict: "a mapping"}.get(type(value), "no text"), other
