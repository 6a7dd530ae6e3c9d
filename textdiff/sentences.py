"""A text in sentences: a rule of thumb, in time linear in the text."""

import re
from collections.abc import Iterable, Iterator

PIECE = 20_000  # characters that are encoded at once: a tokenizer takes some hundred bytes for each
WORD, WORDS = 2_000, 5_000_000  # characters of a word, and of all such words, that a tokenizer is learned from
_CLOSERS = r"""["'”’»)\]]*+"""
_BOUNDARY = re.compile(  # possessive, and begun at the first of a run: linear time whatever the text
    rf"(?<![.!?…])(?P<stop>[.!?…]++)(?P<closers>{_CLOSERS})(?=\s+(?P<next>\S))"  # a full stop, before white space
    rf"|(?<![。！？])[。！？]++[」』”’）]*+(?=\S)"  # scripts that write no space between sentences
    r"|(?<=\S)(?=[^\S\n]*\n[^\S\n]*\n)"  # an empty line
)
_WORD = re.compile(r"\w[\w.]*\Z")
_INITIALS = re.compile(r"[A-HJ-Z]|(?:[A-Za-z]\.)+[A-Za-z]")  # J. Edgar, U.S., a.m.; but "you and I."
_ABBREVIATIONS = frozenset("mr mrs ms dr prof st gen sen rep gov lt col capt sgt rev hon messrs mt vs cf".split())
_BEFORE_NUMBERS = frozenset(
    "no nos vol fig sec art ch p pp jan feb mar apr jun jul aug sep sept oct nov dec".split()
)  # "No. 5" goes on; "No. We will not." does not


def sentences(text: str) -> list[str]:
    """The text in sentences, white space kept in front of the sentence it precedes: "".join gives the text back.

    A rule of thumb for European scripts: titles, initials and "U.S." end no sentence, so some ends are missed.
    """
    body = text.rstrip()  # white space at the very end stays with the last sentence
    ends = [match.end() for match in _BOUNDARY.finditer(body) if not _goes_on(match)]
    cuts = sorted({0, *ends, len(text)})
    return [text[start:end] for start, end in zip(cuts, cuts[1:], strict=False)]


def _goes_on(match: re.Match[str]) -> bool:
    """Whether the sentence continues after this full stop."""
    if not match["stop"]:
        return False
    if match["next"].islower():
        return True
    if match["stop"] != "." or match["closers"]:
        return False
    start = match.start()
    word = _WORD.search(match.string[max(0, start - 24) : start])
    if not word:
        return False
    lower = word[0].lower()
    numbered = lower in _BEFORE_NUMBERS and match["next"].isdigit()
    return numbered or lower in _ABBREVIATIONS or bool(_INITIALS.fullmatch(word[0]))


def pieces(text: str, most: int = PIECE) -> Iterator[str]:
    """Yield the sentences of a text, those of more than `most` characters in several: "".join gives the text back.

    A long one is cut before white space where there is any, else between characters.
    """
    for sentence in sentences(text):
        begin = 0
        while len(sentence) - begin > most:
            end = begin + most
            places = range(end, begin + most // 2, -1)
            cut = next((k for k in places if sentence[k].isspace() and not sentence[k - 1].isspace()), end)
            yield sentence[begin:cut]
            begin = cut
        yield sentence[begin:]


def learnable(texts: Iterable[str]) -> Iterator[str]:
    """Yield what a tokenizer is learned from: texts in pieces, in which words end where they do in the texts.

    Learning takes time quadratic in the longest word, and memory linear in all of them, so a text without white space is
    cut, and of such texts only the first 5 million characters are taken.
    """
    unbroken = 0
    for text in texts:
        for piece in pieces(text, WORD):
            if len(piece) == WORD and not any(map(str.isspace, piece)):
                unbroken += WORD
                if unbroken > WORDS:
                    continue
            yield piece
