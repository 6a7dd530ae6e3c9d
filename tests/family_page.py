"""What docs/models.md says of every type, read back, and where it is wrong."""

import re
from pathlib import Path

PAGE = Path(__file__).resolve().parent.parent / "docs" / "models.md"
MAPPINGS = {"AutoModelForMaskedLM": "masked", "AutoModelForSeq2SeqLM": "seq2seq", "AutoModelForCausalLM": "causal"}
HEADING = re.compile(r"^## .*`(\w+)`", re.MULTILINE)
LINE = re.compile(r"^\| `([\w-]+)` \| `\w+` \| \w* \| (.+?) \|", re.MULTILINE)


def read(page: str) -> tuple[str, list[tuple[str, str]]]:
    """The version of transformers that it was written with, and its lines: mapping and type, what becomes of a text."""
    (version,) = re.findall(r"^Written by .* transformers (\S+) maps", page, re.MULTILINE)
    _, *parts = HEADING.split(page)
    lines = []
    for auto, text in zip(parts[::2], parts[1::2], strict=True):
        lines += [(f"{MAPPINGS[auto]} {name}", said.replace("\\|", "|")) for name, said in LINE.findall(text)]
    return version, lines


def on_page() -> set[str]:
    """Mapping and type of every line."""
    return {known for known, _ in read(PAGE.read_text(encoding="utf-8"))[1]}


def faults(page: str, version: str, here: list[str], refused: dict[str, str], not_built: dict[str, str]) -> list[str]:
    """What must be written anew, given what is known and `here`, the types of the transformers that is installed.

    The lines have to say what is known of their types, and all that is known has to stand in a line, whatever is
    installed. The types themselves are compared only with the very release that the page was written with: a later one
    may have more, or fewer, and an earlier one as well, without a word on the page being wrong.
    """
    written, lines = read(page)
    listed = [known for known, _ in lines]
    wrong = [f"{known}: {said}" for known, said in lines if not agrees(said, refused.get(known), not_built.get(known))]
    wrong += [f"{known}: no line" for known in sorted({*refused, *not_built} - set(listed))]
    wrong += [f"{known}: {listed.count(known)} lines" for known in sorted(set(listed)) if listed.count(known) > 1]
    if version == written and listed != here:
        wrong += [f"not the types of transformers {version}: {sorted(set(listed) ^ set(here)) or 'their order'}"]
    return wrong


def agrees(said: str, refused: str | None, not_built: str | None) -> bool:
    """Whether a line's result is the known one, its reason included."""
    if not_built is not None:
        return said == f"not built: {not_built}"
    if refused is not None:
        return said.startswith("refused: ") and refused in said
    return said == "fills"
