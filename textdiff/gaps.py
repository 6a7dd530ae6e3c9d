r"""The language of gaps: text with `[GAP]` in it, or a list of parts with `Gap` objects, which parses nothing.

    [GAP]                    any length, possibly none       [GAP:name=city,1-3w]   named
    [GAP:3]  [GAP:2-6]       tokens                          [GAP:yes|no|maybe]     one of these
    [GAP:2-6w]               words                           [GAP:/\d{4}/]          all of it matches
    [GAP:must=war,must=end]  both are in it
    \[GAP]                   the five characters themselves (a backslash right before a gap: as a list of parts)

and, where the caller names it, the model's own mask token, a gap of one token. Only this opens gaps: whatever else the
text contains, other special tokens of the model included, is text and comes back byte for byte.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

from textdiff.validation import check_encodes, check_integer, check_items, check_strings, check_text, shown

TOUCHING = "two gaps touch; put text between them, or use one [GAP]"
HELP = (
    "write [GAP], [GAP:3], [GAP:2-6], [GAP:2-6w], [GAP:name=city], [GAP:yes|no], [GAP:/regex/], [GAP:must=word], or "
    "\\[GAP] for the text itself"
)
_OPEN = re.compile(r"(\\)?\[GAP(?![\w-])")
_RANGE = re.compile(r"(?:(\d{1,15})|(?=-))(?:(-)(\d{1,15})?)?(w?)")
_NAME = re.compile(r"name=(\w+)")
_MUST = "must="


@dataclass(frozen=True)
class Gap:
    """Missing text.

    Attributes:
        min: At least so many tokens, or words. None: no text at all may belong here.
        max: At most so many; None for no limit but the model's.
        unit: What min and max count: tokens of the model, or words between spaces; in Chinese, Japanese, Thai and other
            scripts without spaces every letter is a word.
        name: What the result calls this gap.
        choices: It is one of these.
        pattern: A regular expression that all of it matches.
        must: Strings each of which must occur in it, as words of their own: "war" is in "post-war", not in "warm".
        forced: The same in token ids: an id, or several in a row, each of which must occur in it.
    """

    min: int | None = None
    max: int | None = None
    unit: Literal["tokens", "words"] = "tokens"
    name: str | None = None
    choices: tuple[str, ...] = ()
    pattern: str | None = None
    must: tuple[str, ...] = ()
    forced: tuple[int | tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.choices, list) and not self.choices:
            raise ValueError("the gap's choices are an empty list, so nothing fits; give some, or leave them out")
        object.__setattr__(self, "choices", check_strings("the gap's choices", self.choices))
        object.__setattr__(self, "must", check_strings("what the gap must hold", self.must))
        forced = check_items("forced", self.forced, example="[17, (4, 5)]")
        object.__setattr__(self, "forced", tuple(map(_ids, forced)))
        for name in ("name", "pattern"):
            if getattr(self, name) is not None:
                check_encodes(f"the gap's {name}", check_text(f"the gap's {name}", getattr(self, name)))
        if self.name == "":
            raise ValueError("the gap's name is empty; give one, or leave it out")
        low, high = (None if n is None else check_integer(name, n) for name, n in
                     (("min", self.min), ("max", self.max)))  # fmt: skip
        if self.unit not in ("tokens", "words"):
            raise ValueError(f"a gap counts tokens or words, not {self.unit!r}")
        if (low is not None and low < 0) or (high is not None and high < 1):
            raise ValueError(
                f"a gap of {low}-{high} {self.unit} cannot be filled; give at least 1, or leave the length out"
            )
        if low is not None and high is not None and low > high:
            raise ValueError(
                f"a gap of at least {low} and at most {high} {self.unit} cannot be; give the smaller first"
            )
        if self.choices and (self.pattern is not None or low is not None or high is not None):
            raise ValueError("a gap with choices has their lengths; leave out its own length and pattern")
        if self.pattern is not None and self.unit == "words":
            raise ValueError(f"pattern {self.pattern!r} with a number of words: put the words into the pattern")
        if () in self.forced:
            raise ValueError("an empty string of ids must occur; give each one some ids")

    @classmethod
    def of(cls, length: int, name: str | None = None) -> "Gap":
        """A gap of exactly so many tokens."""
        return cls(length, length, name=name)

    @property
    def length(self) -> int | None:
        """How many tokens it has, where that is known."""
        return self.min if self.unit == "tokens" and self.min == self.max else None

    @property
    def free(self) -> bool:
        """Whether nothing is asked of it: any text of any length."""
        strings = self.choices or self.pattern is not None or self.must or self.forced
        return self.min is None and self.max is None and not strings


def _ids(item: object) -> int | tuple[int, ...]:
    """An id that must occur, or several in a row."""
    if isinstance(item, list | tuple):
        return tuple(check_integer("an id of forced", number, least=0) for number in item)
    return check_integer("an id of forced", item, least=0)


Parts = Sequence[str | Gap]


def parse(text: str, mask: str | None = None) -> list[str | Gap]:
    """The parts of a text with gap syntax; `mask`, the model's own mask token, is a gap of one token.

    ValueError, naming the character, for a gap that cannot be read.
    """
    parts: list[str | Gap] = []
    literal, end = "", 0
    for begin, stop, found in _finds(text, mask):
        literal += text[end:begin]
        end = stop
        if isinstance(found, Gap):
            parts += [literal, found]
            literal = ""
        else:
            literal += found
    return [part for part in [*parts, literal + text[end:]] if part != ""]


def _finds(text: str, mask: str | None) -> Iterator[tuple[int, int, Gap | str]]:
    """Where gaps and escapes stand: begin, end, and the gap, or the text that an escape stands for."""
    own = re.compile(r"(\\)?" + re.escape(mask)) if mask else re.compile(r"(?!)")
    position = 0
    while True:
        found = min(
            (m for m in (_OPEN.search(text, position), own.search(text, position)) if m),
            key=re.Match.start,
            default=None,
        )
        if found is None:
            return
        position = found.end()
        if found[1]:
            yield found.start(), position, found[0][1:]
        elif found.re is own:
            yield found.start(), position, Gap.of(1)
        else:
            gap, position = _read(text, found.start(), position)
            yield found.start(), position, gap


def _read(text: str, begin: int, at: int) -> tuple[Gap, int]:
    """The gap that opens at `begin` and whose specification goes on at `at`; and where it ends."""
    if text[at : at + 1] == "]":
        return Gap(), at + 1
    if text[at : at + 1] != ":":
        raise ValueError(f"unclosed gap at character {begin} of {_shown(text, begin)}; {HELP}")
    items, end = _items(text, begin, at + 1)
    gap = Gap()
    for item in items:
        try:
            gap = _with(gap, item)
        except ValueError as error:
            raise ValueError(f"{text[begin:end]!r} at character {begin}: {error}") from error
    return gap, end


def _items(text: str, begin: int, at: int) -> tuple[list[str], int]:
    r"""What stands between commas up to `]`, escapes kept as they are; a regular expression runs to its closing slash."""
    items, item, regex = [], "", False
    while at < len(text):
        char = text[at]
        if char == "\\" and at + 1 < len(text):
            item += text[at : at + 2]
            at += 2
            continue
        if char == "/" and (regex or not item):
            regex = not regex
        elif not regex and text.startswith("[GAP", at):
            raise ValueError(f"a gap inside a gap at character {at} of {_shown(text, at)}; close the first one before")
        elif not regex and char in ",]":
            items.append(item)
            item = ""
            if char == "]":
                return items, at + 1
            at += 1
            continue
        item += char
        at += 1
    raise ValueError(f"unclosed gap at character {begin} of {_shown(text, begin)}; {HELP}")


def _with(gap: Gap, item: str) -> Gap:
    """The gap with one more thing asked of it."""
    if len(item) > 1 and item[0] == item[-1] == "/":
        return _once(gap, item, "pattern", pattern=re.sub(r"\\/", "/", item[1:-1]))
    if named := _NAME.fullmatch(item):
        return _once(gap, item, "name", name=named[1])
    if item.startswith(_MUST):
        strings = _bars(item.removeprefix(_MUST))
        if len(strings) > 1:
            both = ",".join(_MUST + string for string in strings)
            raise ValueError(f"{item!r} is one of several; for all of them write {both}, or \\| for the bar itself")
        return replace(gap, must=(*gap.must, *strings))
    choices = _bars(item)
    if len(choices) > 1:
        return _once(gap, item, "list of choices", choices=choices)
    length = _RANGE.fullmatch(item)
    if not length or not (length[1] or length[3]):
        raise ValueError(f"{item!r} says nothing of a gap; {HELP}")
    low, dash, high, unit = length.groups()
    least = int(low) if low else None
    most = int(high) if high else (None if dash else least)
    return _once(gap, item, "length", min=least, max=most, unit="words" if unit else "tokens")


def _once(gap: Gap, item: str, what: str, **asked: Any) -> Gap:
    """The gap with something asked of it that can be asked once."""
    plain = Gap()
    if any(getattr(gap, name) != getattr(plain, name) for name in asked):
        raise ValueError(f"{item!r} is a second {what} of one gap; give one")
    return replace(gap, **asked)


def _bars(item: str) -> tuple[str, ...]:
    """The texts between bars, without what escapes."""
    found = re.split(r"(?<!\\)((?:\\\\)*)\|", item)  # keeps what stands before a bar: text, backslashes, text, ...
    texts = [a + b for a, b in zip(found[::2], [*found[1::2], ""], strict=True)]
    return tuple(re.sub(r"\\(.)", r"\1", text) for text in texts)


def _shown(text: str, at: int) -> str:
    return repr(text[max(0, at - 20) : at + 30])


def check(parts: Parts) -> None:
    """ValueError, naming the remedy, where there is nothing to fill or two gaps of unknown length touch."""
    for part in check_items("the parts of a text", parts, example='["We ", Gap(), " on."]'):
        if not isinstance(part, str | Gap):
            raise ValueError(f"the parts of a text must be strings and Gap objects; got {shown(part)}")
    parts = tidy(parts)
    if not parts:
        raise ValueError("the text is empty; give a text with a [GAP] in it, or [GAP] alone for a blank page")
    gaps = [part for part in parts if isinstance(part, Gap)]
    if not gaps:
        text = "".join(str(part) for part in parts)
        raise ValueError(f"no gap in {text[:60]!r}; mark the missing text with [GAP]")
    names = [gap.name for gap in gaps if gap.name]
    if len(names) > len(set(names)):
        raise ValueError(f"two gaps named {max(names, key=names.count)!r}; give each a name of its own")
    for number, (left, right) in enumerate(pairwise(parts)):
        if isinstance(left, Gap) and isinstance(right, Gap) and left.length is None and right.length is None:
            raise ValueError(f"{place(parts, number + 1)}: {TOUCHING}")


def place(parts: Parts, number: int) -> str:
    """How an error names the gap that is part `number`: which one it is, and the text before it."""
    gaps = [part for part in parts[: number + 1] if isinstance(part, Gap)]
    before = next((str(part) for part in reversed(parts[:number]) if isinstance(part, str)), "")
    return f"gap {len(gaps)}, after {before[-30:]!r}" if before else f"gap {len(gaps)}"


def tidy(parts: Parts) -> list[str | Gap]:
    """The same text without empty parts, and with strings that follow each other joined."""
    result: list[str | Gap] = []
    for part in parts:
        if isinstance(part, str) and result and isinstance(result[-1], str):
            result[-1] += part
        elif part != "":
            result.append(part)
    return result
