"""Words of a command line, in any order: options before, between and after texts, and texts that begin with a dash.

tyro reads positional arguments in one run, and a value that begins with a dash as an option. So the words are put in order
for it: every option with its value in one word, then `--`, then all texts.
"""

import dataclasses
import difflib
from collections.abc import Sequence
from typing import Any, get_args, get_type_hints


def in_order(kind: type, args: Sequence[str]) -> list[str]:
    """Return the same words as `--option=value ... -- text ...`, for the dataclass of a command.

    A word that begins with a dash is a text if it holds white space or a gap, and after a `--`; else it is an option.
    ValueError for one that the command has not, whose value would be taken for a text.
    """
    takes = _options(kind, {})
    options: list[str] = []
    texts: list[str] = []
    words = list(args)
    while words:
        word = words.pop(0)
        name, equals, _ = word.partition("=")
        name = name.replace("_", "-")
        if word == "--":
            texts += words
            break
        if name in takes and (equals or not takes[name] or not words):
            options.append(name + word[len(name) :])
        elif name in takes:
            options.append(f"{name}={words.pop(0)}")
        elif word.startswith("-") and word != "-" and "[GAP" not in word and not any(map(str.isspace, word)):
            options.append(_own(word, name, list(takes)))
        else:
            texts.append(word)
    return [*options, "--", *texts] if texts else options


def _own(word: str, name: str, known: list[str]) -> str:
    """A word that is an option of tyro's own. ValueError for any other."""
    if name in ("-h", "--help") or name.startswith("--tyro-"):
        return word
    near = difflib.get_close_matches(name, known, 1, 0.7)
    hint = f"did you mean {near[0]}?" if near else "--help lists those there are"
    raise ValueError(f"unknown option {name}; {hint}; a text that begins with a dash stands after --")


def _options(kind: type, found: dict[str, bool]) -> dict[str, bool]:
    """Every option of a dataclass, and of those in it, and whether a value follows."""
    hints = get_type_hints(kind)
    for field in dataclasses.fields(kind):
        hint: Any = hints[field.name]
        if dataclasses.is_dataclass(hint):
            _options(hint if isinstance(hint, type) else type(hint), found)
            continue
        name = "--" + field.name.replace("_", "-")
        flag = hint is bool or bool in get_args(hint)
        found[name] = not flag
        if flag:
            found["--no-" + name[2:]] = False
    return found
