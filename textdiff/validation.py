"""Values of the right kind, or an error that names the argument, what it must be, and what came.

A string is not a list of its letters, a mapping is not a list of its keys, and NaN is not a number. Everything that a user
can pass goes through one of these checks before any work begins, and is never taken apart.
"""

import math
import operator
from collections.abc import Collection, Sequence
from numbers import Real
from typing import Any

_SHOWN = 80  # characters of a value in an error


def shown(value: Any) -> str:
    """A value as errors show it: its repr, cut to 80 characters."""
    text = " ".join(repr(value).split("\n"))
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


def check_text(name: str, value: Any) -> str:
    """Return `value` if it is a string.

    Raises:
        ValueError: For anything else, None and bytes included.
    """
    if not isinstance(value, str):
        raise ValueError(f"{name} must be a string; got {shown(value)}")
    return str(value)


def check_strings(name: str, value: Any, *, example: str = '["a", "b"]') -> tuple[str, ...]:
    """Return the strings of a list or tuple, each with at least one character.

    Raises:
        ValueError: For a single string, a mapping, a set or an iterator; for an item that is not a string, or is empty.
    """
    items = check_items(name, value, example=example)
    for place, item in enumerate(items):
        if not isinstance(item, str) or not item:
            raise ValueError(f"{name}[{place}] must be a string with some text; got {shown(item)}")
        check_encodes(f"{name}[{place}]", item)
    return tuple(items)


def check_encodes(name: str, text: str) -> str:
    """Return a text that is valid Unicode.

    Raises:
        ValueError: For one with a lone surrogate, half of a character.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name} holds a lone surrogate at {error.start}, half of a character; got {shown(text)}"
        ) from None
    return text


def check_several(name: str, value: Any, *, example: str) -> list[Any]:
    """Return the items of a list, tuple, array, Series, or column of a data set.

    Raises:
        ValueError: For anything else: None, a string, bytes, a mapping, a set, a table or an iterator.
    """
    listed = getattr(value, "tolist", None)  # arrays, Series and tensors of anything
    if callable(listed) and not callable(getattr(value, "iterrows", None)):
        items = listed()
        return items if isinstance(items, list) else [items]
    return list(check_items(name, value, example=example))


def check_items(name: str, value: Any, *, example: str) -> tuple[Any, ...]:
    """Return the items of a list or tuple.

    Raises:
        ValueError: For anything else: a string, bytes, a mapping, a set (which has no order) or an iterator.
    """
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        raise ValueError(f"{name} must be a list, such as {example}; got {shown(value)}")
    return tuple(value)


def check_integer(name: str, value: Any, *, least: int | None = None, most: int | None = None) -> int:
    """Return `value` as an int. numpy integers are integers; bools, floats and strings are not.

    Raises:
        ValueError: For anything else, and outside [least, most].
    """
    expected = f"{name} must be a whole number{_range(least, most)}; got {shown(value)}"
    if isinstance(value, bool):
        raise ValueError(expected)
    try:
        number = operator.index(value)
    except TypeError:
        raise ValueError(expected) from None
    if (least is not None and number < least) or (most is not None and number > most):
        raise ValueError(expected)
    return number


def check_seed(value: Any) -> int:
    """Return a seed as an int. ValueError for none that 64 bits hold: two of those would be one."""
    return check_integer("seed", value, least=-(2**63), most=2**63 - 1)


def check_number(
    name: str, value: Any, *, least: float | None = None, most: float | None = None, above: float | None = None
) -> float:
    """Return `value` as a finite float: at least `least`, at most `most`, greater than `above`.

    Raises:
        ValueError: For anything else; for bools, NaN and infinities.
    """
    limits = _range(least, most) if above is None else f" above {above:g}" + (f", at most {most:g}" if most else "")
    expected = f"{name} must be a number{limits}; got {shown(value)}"
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise ValueError(expected)
    number = float(value)
    if (
        (least is not None and number < least)
        or (most is not None and number > most)
        or (above is not None and number <= above)
    ):
        raise ValueError(expected)
    return number


def check_choice(name: str, value: Any, allowed: Collection[str]) -> str:
    """Return `value` if it is one of the `allowed` strings.

    Raises:
        ValueError: For anything else.
    """
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}; got {shown(value)}")
    return value


def check_flag(name: str, value: Any) -> bool:
    """Return `value` if it is True or False.

    Raises:
        ValueError: For anything else, 0, 1 and "no" included.
    """
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False; got {shown(value)}")
    return value


def check_streamer(value: Any) -> None:
    """Raise ValueError for what is no streamer, as transformers has them."""
    if not callable(getattr(value, "put", None)) or not callable(getattr(value, "end", None)):
        raise ValueError(f"streamer must have put() and end(), such as textdiff.BatchStreamer; got {shown(value)}")


def _range(least: float | None, most: float | None) -> str:
    if least is not None and most is not None:
        return f" from {least:g} to {most:g}"
    if least is not None:
        return f" of at least {least:g}"
    return "" if most is None else f" of at most {most:g}"
