"""A YAML file as options: the text of each scalar, read into the type that its option has.

YAML gives a plain scalar a type by its looks: `no` is False, `1e-3` is text, `2024-01-01` is a date. An option has a type
of its own, which decides: the scalar's text is kept, and read when the option is known.
"""

import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import yaml

from textdiff.options import bare, checked_option

DEPTH = 4  # of sections; recipes have two
MOST = 10_000  # options in a file
_TAG = "tag:yaml.org,2002:"
_STANDARD = {_TAG + name for name in ("str", "int", "float", "bool", "null", "timestamp", "seq", "map", "value")}
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9_]*)")
_NUMBER = re.compile(r"[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)([eE][-+]?\d+)?")
_NOT_FINITE = {".inf": "inf", "+.inf": "inf", "-.inf": "-inf", ".nan": "nan"}
_FLAGS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


@dataclass(frozen=True)
class Entry:
    """One option of a file: where it stands, and its node."""

    file: Path
    node: yaml.Node

    @property
    def empty(self) -> bool:
        """Whether nothing stands there."""
        return _null(self.node)

    def error(self, message: str) -> ValueError:
        """Return an error that names the file and the line."""
        return ValueError(f"{self.file}, line {self.node.start_mark.line + 1}: {message}")

    def value(self, name: str, hint: Any) -> Any:
        """Return the value in the type of its option.

        Raises:
            ValueError: For a value of another kind, naming file, line and option.
        """
        try:
            return checked_option(name, _read(self.node, hint), hint)
        except ValueError as error:
            raise self.error(str(error)) from None


def read_options(file: Path) -> dict[str, Entry]:
    """Return the options of a file by their dotted names, hyphens as underscores.

    Raises:
        ValueError: For what cannot be read, is not YAML, has no sections, or gives one option twice.
    """
    if not file.is_file():
        raise ValueError(f"{file} is not a file; --config takes a YAML file")
    try:
        node = _document(file.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise ValueError(f"{file} cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f", line {mark.line + 1}" if mark else ""
        raise ValueError(f"{file}{place} is not YAML: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{file} is not YAML: {str(error).splitlines()[0]}") from error
    except RecursionError as error:
        raise ValueError(f"{file} is nested too deeply; options stand in sections such as 'trainer:'") from error
    if not isinstance(node, yaml.MappingNode):
        came = "nothing" if node is None or _null(node) else "a single value"
        came = "a list" if isinstance(node, yaml.SequenceNode) else came
        raise ValueError(f"{file} must hold sections such as 'trainer:' with options in them; it holds {came}")
    entries: dict[str, Entry] = {}
    _flatten(file, node, "", entries, DEPTH)
    return entries


def nearest(name: str, known: list[str]) -> str:
    """Return what to say of an unknown option: the known one most like it, or those of its section."""
    section, _, last = name.rpartition(".")
    lasts = {path.rpartition(".")[2]: path for path in known if path.rpartition(".")[0] != section}
    lasts |= {path.rpartition(".")[2]: path for path in known if path.rpartition(".")[0] == section}
    close = difflib.get_close_matches(last, list(lasts), 1, 0.7)
    if close:
        return f"did you mean {lasts[close[0]]}?"
    beside = [path for path in known if path.rpartition(".")[0] == section] or known
    return f"there are {', '.join(beside[:12])}" + (", ..." if len(beside) > 12 else "")


def _document(text: str) -> yaml.Node | None:
    loader = yaml.SafeLoader(text)
    try:
        return loader.get_single_node()
    finally:
        loader.dispose()


def _flatten(file: Path, node: yaml.MappingNode, prefix: str, entries: dict[str, Entry], depth: int) -> None:
    pairs = _pairs(file, node, prefix, [])
    for path, (key, value) in pairs.items():
        if value.tag not in _STANDARD:
            raise Entry(file, key).error(f"{path} has the tag {value.tag}; write the value without it")
        if isinstance(value, yaml.MappingNode):
            if depth == 1:
                raise Entry(file, key).error(f"{path} is nested too deeply; options stand in sections")
            _flatten(file, value, f"{path}.", entries, depth - 1)
            if not value.value:
                entries[path] = Entry(file, yaml.ScalarNode(_TAG + "null", "", key.start_mark, key.end_mark))
        elif path in entries:
            raise Entry(file, key).error(f"{path} is given twice; keep one of them")
        else:
            entries[path] = Entry(file, value)
        if len(entries) > MOST:
            raise ValueError(f"{file} has more than {MOST:,} options; expected a recipe")


def _pairs(
    file: Path, node: yaml.MappingNode, prefix: str, above: list[yaml.Node]
) -> dict[str, tuple[yaml.Node, yaml.Node]]:
    """Return key and value of each option by its path; own ones before those that `<<` brings."""
    own: dict[str, tuple[yaml.Node, yaml.Node]] = {}
    merged: dict[str, tuple[yaml.Node, yaml.Node]] = {}
    for key, value in node.value:
        if key.tag == _TAG + "merge":
            for source in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                if not isinstance(source, yaml.MappingNode) or source in above or len(above) > DEPTH:
                    raise Entry(file, key).error("<< must name a section")
                merged = _pairs(file, source, prefix, [*above, node]) | merged
            continue
        if not isinstance(key, yaml.ScalarNode) or not key.value:
            raise Entry(file, key).error("a key must be the name of an option")
        path = prefix + key.value.replace("-", "_")
        if path in own:
            raise Entry(file, key).error(f"{path} is given twice; keep one of them")
        own[path] = (key, value)
    return merged | own


def _null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == _TAG + "null"


def _read(node: yaml.Node, hint: Any) -> Any:
    """Return the value of a node as its option's type has it, or as it stands where it is of another kind."""
    kind, _ = bare(hint)
    if get_origin(kind) in (Union, UnionType):
        if _null(node) or (_plain(node) and node.value == "None"):
            return None
        kind = next(part for part in get_args(kind) if part is not NoneType)
    if get_origin(kind) is tuple:
        if not isinstance(node, yaml.SequenceNode):
            return _scalar(node, str)
        kinds = get_args(kind)
        return [
            _scalar(item, kinds[0] if kinds[-1] is Ellipsis or place >= len(kinds) else kinds[place])
            for place, item in enumerate(node.value)
        ]
    return _scalar(node, str if get_origin(kind) is Literal else kind)


def _plain(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.style is None


def _scalar(node: yaml.Node, kind: Any) -> Any:
    if not isinstance(node, yaml.ScalarNode):
        return [getattr(item, "value", item) for item in node.value][:8]
    if _null(node):
        return None
    text = node.value
    if not _plain(node):
        return text
    if kind is bool:
        return _FLAGS.get(text.lower(), text)
    if kind is int and _INTEGER.fullmatch(text):
        return int(text.replace("_", ""))
    if kind is float and _NUMBER.fullmatch(text):
        return float(text.replace("_", ""))
    if kind is float and text.lower() in _NOT_FINITE:
        return float(_NOT_FINITE[text.lower()])
    return text
