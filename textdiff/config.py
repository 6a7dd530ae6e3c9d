"""Options from the command line and from YAML, checked by one parser: tyro reads the dataclasses.

A file given by --config is read first and the command line overrides it: both go through the same type checks, so a
wrong value in a file is refused like a wrong option.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


def parse(
    kind: type[T], args: Sequence[str], *, prog: str, description: str, short: Mapping[str, str] | None = None
) -> T:
    """An instance of the dataclass from `--config FILE.yaml` and dotted options. Exits with code 2 on bad input.

    short: other names of options, such as --out for --trainer.out.
    """
    words, rest = _take_config(list(args))
    return _checked(kind, words, rest, prog, description, short)


def parse_one_of(
    kinds: Mapping[str, type],
    args: Sequence[str],
    *,
    prog: str,
    description: str,
    short: Mapping[str, str] | None = None,
) -> Any:
    """Like `parse`, of the dataclass that `--kind` or `kind:` of a file names; the first of `kinds` where nothing does.

    ValueError for a kind that there is not.
    """
    words, rest = _take_config(list(args))
    kind = next(iter(kinds))
    for part in (words, rest):  # the command line comes after the file
        while place := next((i for i, word in enumerate(part) if word.split("=")[0] == "--kind"), -1) + 1:
            name, equals, kind = part.pop(place - 1).partition("=")
            kind = kind if equals else part.pop(place - 1) if len(part) >= place else ""
    if kind not in kinds:
        raise ValueError(f"unknown kind {kind!r}; there are {', '.join(kinds)}")
    return _checked(kinds[kind], words, rest, prog, description, short)


def _checked(
    kind: type[T], words: list[str], rest: list[str], prog: str, description: str, short: Mapping[str, str] | None
) -> T:
    import tyro

    for number, word in enumerate(rest):
        name, equals, value = word.partition("=")
        rest[number] = (short or {}).get(name, name) + equals + value
    return tyro.cli(kind, args=words + rest, prog=prog, description=description)


def _take_config(args: list[str]) -> tuple[list[str], list[str]]:
    """The options of every --config file, and the other arguments."""
    words: list[str] = []
    rest: list[str] = []
    while args:
        word = args.pop(0)
        if word == "--config" and not args:
            raise ValueError("--config needs a file, such as --config data/demo.yaml")
        if word == "--config" or word.startswith("--config="):
            words += options_of(Path(word.partition("=")[2] or args.pop(0)))
        else:
            rest.append(word)
    return words, rest


def options_of(path: Path) -> list[str]:
    """A YAML file as command-line options: {trainer: {lr: 0.1}} is --trainer.lr 0.1."""
    import yaml

    if not path.is_file():
        raise ValueError(f"{path} is not a file; --config takes a YAML file")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold sections such as 'trainer:' with options in them")
    return _flatten(content, "")


def _flatten(content: dict[str, Any], prefix: str) -> list[str]:
    words: list[str] = []
    for name, value in content.items():
        option = f"{prefix}{name}".replace("_", "-")
        if isinstance(value, dict):
            words += _flatten(value, f"{prefix}{name}.")
        elif isinstance(value, bool):
            head, _, last = option.rpartition(".")
            words.append("--" + (f"{head}." if head else "") + ("" if value else "no-") + last)
        elif isinstance(value, list):
            words += [f"--{option}", *map(str, value)]
        else:
            words += [f"--{option}", str(value)]
    return words


def complain(error: Exception, prog: str) -> int:
    """One line on standard error, and the exit code of bad input."""
    print(f"{prog}: {str(error).strip()}", file=sys.stderr)
    return 2
