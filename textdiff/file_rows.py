"""Rows of JSON and CSV files as they stand there: a text is a text, whatever it looks like.

`datasets` guesses a type for each part of a file and casts the others to the first: strings that look like dates come back
as other strings, 00010.50 as 10.5, NA as nothing, and a number in a later file as a text. Here every value keeps its own
type, in CSV all are texts, and what is no text is told with its file and line.
"""

import csv
import json
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any


class UnreadableRow(ValueError):
    """A row that holds no text, or a line that is no row; its message names it."""


def rows_of(file: Path) -> Iterator[tuple[str, Any]]:
    """Yield each row with its place. Of JSON: a line each, or the items of one list, or the columns of one object.

    Raises:
        UnreadableRow: For what is not JSON, or not CSV, in UTF-8, with the line.
    """
    if file.suffix.lower() == ".csv":
        yield from _of_table(file)
        return
    with file.open("rb") as lines:
        number, first = next(
            ((n, line) for n, line in enumerate(lines, 1) if line.strip(b"\xef\xbb\xbf \t\r\n")), (1, b"")
        )
        if first.lstrip(b"\xef\xbb\xbf \t").startswith(b"[") or (_is_open(first) and file.suffix.lower() == ".json"):
            yield from _of_document(file)
            return
        yield f"line {number}", _parsed(first, f"{file}, line {number}", "mend or remove the line")
        for place, line in zip(count(number + 1), lines, strict=False):
            if line.strip():
                yield f"line {place}", _parsed(line, f"{file}, line {place}", "mend or remove the line")


def _of_table(file: Path) -> Iterator[tuple[str, dict[str, str]]]:
    csv.field_size_limit((1 << 31) - 1)  # it is the module's, and of 128 KB
    with file.open(encoding="utf-8-sig", newline="") as lines:
        table = csv.reader(lines, strict=True)
        try:
            header = next(table, [])
            for row in table:
                if len(row) > len(header):
                    raise UnreadableRow(
                        f"{file}, line {table.line_num}: {len(row)} fields, and the header has {len(header)}; mend the line"
                    )
                if row:
                    yield f"line {table.line_num}", dict(zip(header, row, strict=False))
        except csv.Error as error:
            raise UnreadableRow(f"{file}, line {table.line_num}: not CSV ({error}); mend the line") from error


def _is_open(line: bytes) -> bool:
    """Whether a line is the beginning of an object that goes on in the next one."""
    try:
        json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return line.strip(b"\xef\xbb\xbf \t\r\n").endswith((b"{", b"[", b",", b":"))
    return False


def _of_document(file: Path) -> Iterator[tuple[str, Any]]:
    whole = _parsed(file.read_bytes(), str(file), "mend it")
    if isinstance(whole, list):
        rows = whole
    else:
        names = [name for name, value in whole.items() if isinstance(value, list)]
        if not names or len(names) < len(whole) or len({len(whole[name]) for name in names}) > 1:
            raise UnreadableRow(f"{file} is one object, and no list of rows; write a row a line, or a list of them")
        rows = [dict(zip(names, values, strict=True)) for values in zip(*(whole[name] for name in names), strict=True)]
    for number, row in enumerate(rows, 1):
        yield f"item {number}", row


def _parsed(content: bytes, place: str, remedy: str) -> Any:
    try:
        return json.loads(content.decode("utf-8-sig"), object_pairs_hook=_once)
    except UnicodeDecodeError as error:
        line = "" if ", line" in place else f", line {content[: error.start].count(10) + 1}"
        raise UnreadableRow(
            f"{place}{line}: not UTF-8 ({error.reason} at byte {error.start}); save the file as UTF-8"
        ) from error
    except json.JSONDecodeError as error:
        line = "" if ", line" in place else f", line {error.lineno}"
        where = f" at character {error.pos}" if ", line" in place else ""
        raise UnreadableRow(f"{place}{line}: not JSON ({error.msg}{where}); {remedy}") from error
    except RecursionError as error:
        raise UnreadableRow(f"{place}: not JSON (nested too deeply); {remedy}") from error
    except _Twice as error:
        raise UnreadableRow(f"{place}: the key {error.args[0]!r} stands twice in one object; {remedy}") from error


class _Twice(Exception):
    """A key that stands twice in one object."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _Twice(next(name for number, (name, _) in enumerate(pairs) if name in dict(pairs[:number])))
    return found
