"""Options: what each field of a configuration may hold is stated once, in its annotation, and checked when it is built.

    lr: Annotated[float, Range(above=0)] = 1e-3

The annotation gives the type and the range. Python, the command line and YAML files all go through `checked_option`, so a
value of the wrong kind is refused by the name of its option wherever it comes from, and before any work begins.
"""

import os
import types
from dataclasses import dataclass, fields, is_dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from textdiff.validation import check_choice, check_flag, check_integer, check_items, check_number, check_text, shown


@dataclass(frozen=True)
class Range:
    """Limits of a number; `above` and `below` are exclusive."""

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None


PATH = "path"  # in an annotation: a path object is taken as well, and `~` is the user's home


def check_options(config: Any, section: str = "") -> None:
    """Check every field of a dataclass against its annotation, and store the value in its annotated type.

    Args:
        config: A dataclass instance, frozen or not.
        section: What errors put before a field's name: "trainer" makes `trainer.lr`.

    Raises:
        ValueError: For the first value of the wrong kind or outside its range.
    """
    for name, hint in annotations(type(config)).items():
        value = checked_option(f"{section}.{name}" if section else name, getattr(config, name), hint)
        object.__setattr__(config, name, value)


def annotations(config: type) -> dict[str, Any]:
    """Return the annotation of each field that a user sets, with what `Annotated` adds."""
    hints = get_type_hints(config, include_extras=True)
    return {entry.name: hints[entry.name] for entry in fields(config) if entry.init}


def checked_option(name: str, value: Any, hint: Any) -> Any:
    """Return `value` in the type of its annotation.

    Raises:
        ValueError: For a value of another kind, and outside its range.
    """
    kind, extras = bare(hint)
    if _optional(kind):
        if value is None:
            return None
        kind = next(part for part in get_args(kind) if part is not types.NoneType)
    if get_origin(kind) is Literal:
        return check_choice(name, value, get_args(kind))
    if get_origin(kind) is tuple:
        return _checked_tuple(name, value, get_args(kind), extras)
    if isinstance(kind, type) and is_dataclass(kind):
        if not isinstance(value, kind):
            raise ValueError(f"{name} must be a {kind.__name__}; got {shown(value)}")
        return value
    return _checked_scalar(name, value, kind, extras)


def bare(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """Return a type without `Annotated`, and what that adds."""
    return (hint.__origin__, hint.__metadata__) if get_origin(hint) is Annotated else (hint, ())


def _optional(kind: Any) -> bool:
    return get_origin(kind) in (Union, types.UnionType) and types.NoneType in get_args(kind)


def _checked_tuple(name: str, value: Any, kinds: tuple[Any, ...], extras: tuple[Any, ...]) -> tuple[Any, ...]:
    example = {str: '["a", "b"]'}.get(kinds[0], "[1, 2]")
    items = check_items(name, value, example=example)
    if kinds[-1] is Ellipsis:
        kinds = (kinds[0],) * len(items)
    if len(items) != len(kinds):
        raise ValueError(f"{name} must have {len(kinds)} entries; got {shown(value)}")
    return tuple(
        _checked_scalar(f"{name}[{place}]", item, kind, extras)
        for place, (item, kind) in enumerate(zip(items, kinds, strict=True))
    )


def _checked_scalar(name: str, value: Any, kind: Any, extras: tuple[Any, ...]) -> Any:
    limits = next((extra for extra in extras if isinstance(extra, Range)), Range())
    if kind is bool:
        return check_flag(name, value)
    if kind is int:
        least = None if limits.least is None else int(limits.least)
        return check_integer(name, value, least=least, most=None if limits.most is None else int(limits.most))
    if kind is float:
        return _checked_number(name, value, limits)
    if PATH in extras:
        return checked_path(name, value)
    text = check_text(name, value)
    if not text.strip():
        raise ValueError(f"{name} must have some text; got {shown(value)}")
    return text


def _checked_number(name: str, value: Any, limits: Range) -> float:
    most = limits.most if limits.below is None else limits.below
    number = check_number(name, value, least=limits.least, most=most, above=limits.above)
    if limits.below is not None and number == limits.below:
        raise ValueError(f"{name} must be a number below {limits.below:g}; got {shown(value)}")
    return number


def checked_path(name: str, value: Any) -> str:
    """Return a path with `~` replaced by the user's home.

    Raises:
        ValueError: For what is neither text nor a path object, for an empty path, and for one with a NUL character.
    """
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    text = check_text(name, text)
    if not text.strip() or "\0" in text:
        raise ValueError(f"{name} must be a path; got {shown(value)}")
    return os.path.expanduser(text)
