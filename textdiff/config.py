"""Options from the command line and from YAML files.

A file's values are read into the type of their option (`yaml_options`) and become the defaults of the command line, which
tyro reads from the dataclasses. Nothing is written as words and read again: `no` is the text "no" where an option takes
text, and False where it takes a flag.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from textdiff.options import annotations, bare, checked_path
from textdiff.yaml_options import Entry, nearest, read_options

T = TypeVar("T")
NOT_KEPT = ("resume", "overwrite")  # what a run is told once, and its recipe does not repeat


def parse(
    kind: type[T], args: Sequence[str], *, prog: str, description: str, short: Mapping[str, str] | None = None
) -> T:
    """Return an instance of the dataclass from `--config FILE.yaml` and dotted options. Exits with code 2 on bad input.

    Args:
        short: Other names of options, such as --out for --trainer.out.
    """
    entries, rest = _take_config(list(args))
    return _parsed(kind, entries, rest, prog, description, short)


def parse_one_of(
    kinds: Mapping[str, type],
    args: Sequence[str],
    *,
    prog: str,
    description: str,
    short: Mapping[str, str] | None = None,
) -> Any:
    """Like `parse`, of the dataclass that `--kind`, or `kind:` in a file, names; the first of `kinds` where nothing does.

    Raises:
        ValueError: For an unknown kind.
    """
    entries, rest = _take_config(list(args))
    kind = next(iter(kinds))
    if (entry := entries.pop("kind", None)) is not None:
        kind = entry.value("kind", str)
    while place := next((i for i, word in enumerate(rest) if word.split("=")[0] == "--kind"), -1) + 1:
        name, equals, kind = rest.pop(place - 1).partition("=")
        kind = kind if equals else rest.pop(place - 1) if len(rest) >= place else ""
    if kind not in kinds:
        raise ValueError(f"unknown kind {kind!r}; there are {', '.join(kinds)}")
    return _parsed(kinds[kind], entries, rest, prog, description, short)


def _parsed(
    kind: type[T],
    entries: Mapping[str, Entry],
    rest: list[str],
    prog: str,
    description: str,
    short: Mapping[str, str] | None,
) -> T:
    import tyro

    for place, word in enumerate(rest):
        name, equals, value = word.partition("=")
        rest[place] = (short or {}).get(name, name) + equals + value
    default: dict[str, Any] = {"default": _with_entries(kind, entries)} if entries else {}
    return tyro.cli(kind, args=rest, prog=prog, description=description, **default)


def _take_config(args: list[str]) -> tuple[dict[str, Entry], list[str]]:
    """Return the options of every --config file, a later file over an earlier one, and the other arguments."""
    entries: dict[str, Entry] = {}
    rest: list[str] = []
    while args:
        word = args.pop(0)
        if word == "--config" and not args:
            raise ValueError("--config needs a file, such as --config data/demo.yaml")
        if word == "--config" or word.startswith("--config="):
            name = word.partition("=")[2] if "=" in word else args.pop(0)
            entries |= read_options(Path(checked_path("--config", name)))
        else:
            rest.append(word)
    return entries, rest


def _with_entries(kind: type[T], entries: Mapping[str, Entry]) -> T:
    """Return the defaults of a dataclass with the values of a file in their place.

    The instance is not checked as a whole: the command line may still change what does not go together.
    """
    defaults = _defaults(kind)
    known = {path: (owner, name, hint) for path, owner, name, hint in _places(defaults, "")}
    sections = {path.rpartition(".")[0] for path in known}
    for path, entry in entries.items():
        if path in sections and entry.empty:
            continue
        if path in sections:
            raise entry.error(f"{path} is a section and needs options in it, such as {_first_in(path, known)}")
        if path not in known:
            raise entry.error(f"unknown option {path}; {nearest(path, list(known))}")
        owner, name, hint = known[path]
        object.__setattr__(owner, name, entry.value(path, hint))
    return defaults


def _first_in(section: str, known: Mapping[str, Any]) -> str:
    return next(path for path in known if path.startswith(f"{section}."))


def _defaults(kind: type[T]) -> T:
    """Return an instance with every default in its place, of which `__post_init__` has seen nothing."""
    import tyro

    made = object.__new__(kind)
    for entry in fields(cast(Any, kind)):
        value = tyro.MISSING if entry.default is MISSING else entry.default
        if entry.default_factory is not MISSING:
            value = entry.default_factory()
        object.__setattr__(made, entry.name, value)
    return made


def _places(config: Any, prefix: str) -> list[tuple[str, Any, str, Any]]:
    """Return path, owner, attribute and annotation of every option; tyro's name "" puts a section's options outside it."""
    found: list[tuple[str, Any, str, Any]] = []
    for name, hint in annotations(type(config)).items():
        kind, extras = bare(hint)
        if is_dataclass(kind):
            inline = any(getattr(extra, "name", None) == "" for extra in extras)
            found += _places(getattr(config, name), prefix if inline else f"{prefix}{name}.")
        else:
            found.append((f"{prefix}{name}", config, name, hint))
    return found


# ---------------------------------------------------------------------------------------------------------- as a file


def settings_of(config: Any) -> dict[str, Any]:
    """Return every option of a run by its dotted name, as JSON and YAML can hold it."""
    return _flat(asdict(config), "")


def _flat(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            result |= _flat(value, f"{prefix}{name}.")
        else:
            result[f"{prefix}{name}"] = list(value) if isinstance(value, tuple) else value
    return result


def as_yaml(settings: Mapping[str, Any], kind: str, comment: str) -> str:
    """Return the options of a run as a file that `--config` reads, without what is told once (resume, overwrite)."""
    import yaml

    class Dumper(yaml.SafeDumper):
        pass

    def text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
        # a plain None is nothing, as on the command line
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style='"' if value == "None" else None)

    Dumper.add_representer(str, text)
    nested: dict[str, Any] = {"kind": kind}
    for path, value in settings.items():
        section, _, name = path.rpartition(".")
        if name not in NOT_KEPT:
            (nested.setdefault(section, {}) if section else nested)[name] = value
    body = yaml.dump(nested, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=120)
    return f"# {comment}\n{body}"


def complain(error: Exception, prog: str) -> int:
    """Print one line on standard error, with what was noted on the error, and return the exit code of bad input."""
    said = [str(error).strip() or type(error).__name__, *getattr(error, "__notes__", [])]
    print(f"{prog}: {' '.join('. '.join(said).split())}", file=sys.stderr)
    return 2
