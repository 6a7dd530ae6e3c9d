"""Texts to and from standard streams, byte for byte: lines in, lines out, JSON that is JSON.

Nothing between the user's bytes and these streams changes a text: no expanding of tabs, no wrapping, no stripping of control
characters, no translation of line ends. Of a line that is read exactly one line end, \\n or \\r\\n, is not of the text.

What a program says of its progress is worth less than its work: under `lasting` it is dropped where nobody takes it.
"""

import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import Any, TextIO, cast

GREEN, RESET = "\033[1;32m", "\033[0m"
Span = tuple[int, int]


def read_lines() -> Iterator[str]:
    """Yield the texts of standard input, a line each; nothing where it is closed or a terminal.

    What is not UTF-8 comes as lone surrogates, which are refused where the text is used, so that one bad line costs no
    other. A byte-order mark is text like any other.
    """
    if sys.stdin is None or sys.stdin.closed or sys.stdin.isatty():
        return
    stream = getattr(sys.stdin, "buffer", None)
    for line in sys.stdin if stream is None else stream:
        text = line if isinstance(line, str) else line.decode("utf-8", "surrogateescape")
        yield text.removesuffix("\n").removesuffix("\r") if text.endswith("\n") else text


def write_line(text: str, spans: Sequence[Span] = (), stream: TextIO | None = None, colour: bool | None = None) -> None:
    """Write a text and a line end, the characters [start, end) of the spans in colour.

    stream: standard output unless given. colour: unless given, where a terminal shows it and NO_COLOR is not set.
    """
    out = sys.stdout if stream is None else stream
    if colour is None:
        colour = out.isatty() and "NO_COLOR" not in os.environ
    shown = _coloured(text, spans) if spans and colour else text
    binary = getattr(out, "buffer", None)
    if binary is None:
        out.write(shown + "\n")
    else:
        out.flush()
        binary.write(shown.encode("utf-8", "surrogateescape") + b"\n")
        binary.flush()


def in_one_line(text: str, spans: Sequence[Span]) -> str:
    """Return the text with a space for each line end in the spans, which keep their places."""
    for start, end in spans:
        text = text[:start] + text[start:end].translate({10: " ", 13: " "}) + text[end:]
    return text


def _coloured(text: str, spans: Sequence[Span]) -> str:
    result, end = "", 0
    for start, stop in sorted(spans):
        result += text[end:start] + GREEN + text[start:stop] + RESET
        end = stop
    return result + text[end:]


def to_json(value: Any, indent: int | None = None) -> str:
    """Return a value as JSON. What JSON has no word for, NaN and the infinities, is null."""
    return json.dumps(_finite(value), ensure_ascii=False, allow_nan=False, indent=indent)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


class Lasting:
    """A stream that takes every text: what a reader who has left, or a full disk, does not take is dropped."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write what can be written."""
        try:
            self._stream.write(text)
        except UnicodeEncodeError:
            name = self._stream.encoding
            self.write(text.encode(name, "backslashreplace").decode(name))
        except OSError:
            pass
        except ValueError:
            if not self._stream.closed:
                raise
        return len(text)

    def flush(self) -> None:
        """Flush what can be flushed."""
        with suppress(OSError):
            if not self._stream.closed:
                self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def lasting(*, output: bool = True) -> Iterator[None]:
    """Let no work be lost because standard error, or standard output, is closed, full, or read by nobody any more.

    output: Whether standard output is meant, too.
    """
    with ExitStack() as stack:
        for stream, put in ((sys.stdout, redirect_stdout), (sys.stderr, redirect_stderr)):
            if isinstance(stream, Lasting) or (put is redirect_stdout and not output):
                continue
            if stream is None:  # closed before Python began
                stream = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
            stack.enter_context(put(cast(TextIO, Lasting(stream))))
        yield


def settle() -> None:
    """End a program's output: what still cannot be written is dropped, so that Python does not fail by it as it leaves."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None and not stream.closed:
                stream.flush()
        except OSError:
            with suppress(OSError), open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), stream.fileno())


def hold_places() -> None:
    """Put nothing in the place of standard streams that are closed: else the next file opened would get what is for them."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
