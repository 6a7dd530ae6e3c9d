"""What tokens spell: text <-> bytes of tokens, for the tokenizers that pretrained models come with.

    text of w_1 .. w_n = spelling of w_1 + .. + spelling of w_n, in UTF-8 bytes, of which a token may hold a part

Byte-level BPE writes bytes by letters of its own, SentencePiece writes a space as "▁" and rare characters as <0xE6>,
WordPiece writes no spaces: "##" says that there is none, and ByT5's tokens are bytes. All are read from the tokenizer's own
decoder. Between words of WordPiece stands SOFT: a space, but nothing after a letter of a script without spaces
(`characters`), nor before one.
"""

import json
import re
import unicodedata
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from textdiff.characters import unspaced

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Bytes = tuple[bytes | None, ...]  # of each token; None where it is no text
SOFT = b"\xff"  # no byte of UTF-8
_NEVER = re.compile(rb"[\xc0\xc1\xf5-\xff]")  # nor are these: who has a token for every byte has some that are no text
_SPACES = ("Ġ".encode(), "▁".encode())  # of byte-level BPE and of SentencePiece
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
# what the WordPiece decoder of tokenizers takes together again, one token at a time
_CLEAN = {" .": ".", " ?": "?", " !": "!", " ,": ",", " ' ": "'", " n't": "n't", " 'm": "'m", " do not": " don't"}
_CLEAN |= {" 's": "'s", " 've": "'ve", " 're": "'re"}


def check_tokenizer(tokenizer: "PreTrainedTokenizerBase") -> None:
    """Raise ValueError, with the remedy, for a tokenizer whose tokens spell no text that is known."""
    if not any(pieces(tokenizer, len(tokenizer))):
        raise ValueError(f"the {type(tokenizer).__name__} has no token that is text; give the model's own tokenizer")
    spaces = [
        piece for piece in pieces(tokenizer, len(tokenizer)) if piece and piece.removeprefix(b" ").startswith(_SPACES)
    ]
    if len(spaces) > len(tokenizer) // 20 + 1:
        raise ValueError(
            f"the tokenizer writes the space before a word as {spaces[0].decode().strip()[0]!r}, which its decoder does not "
            "read; give the model's own tokenizer, or set tokenizer.backend_tokenizer.decoder"
        )


@lru_cache(maxsize=16)
def pieces(tokenizer: "PreTrainedTokenizerBase", size: int) -> Bytes:
    """What each of the ids 0..size-1 adds to a text, in UTF-8 bytes; None for special tokens and ids that it lacks.

    Joined (`joined`), they are what decode gives, except that decode may leave out spaces at the beginning of a text and
    (WordPiece) shows the ## of a token that continues nothing, and spaces between letters that have none in writing.
    ValueError for a tokenizer with another kind of decoder.
    """
    names = _names(tokenizer, size)
    steps = _decoder(tokenizer)
    spelt = [None if name is None else _piece(name, steps) or None for name in names]
    spelt = [None if piece and _NEVER.search(piece) else piece for piece in spelt]
    if _apart(steps) and any(_solid(piece) for piece in spelt):
        spelt = [piece and (piece[1:] if _solid(piece) else piece.replace(b" ", SOFT, 1)) for piece in spelt]
    return tuple(spelt)


def _solid(piece: bytes | None) -> bool:
    """Whether a piece begins a word, by a letter of a script without spaces."""
    return piece is not None and piece.startswith(b" ") and unspaced(piece[1:].decode()[:1] or " ")


@lru_cache(maxsize=16)
def openings(tokenizer: "PreTrainedTokenizerBase", size: int) -> Bytes:
    """What each id adds to a text as the first token of a gap whose space before it is already there; None: it cannot."""
    inside = pieces(tokenizer, size)
    steps = _decoder(tokenizer)
    if _apart(steps):
        names = _names(tokenizer, size)
        starts = [name is not None and not _continues(name, steps) for name in names]
        return tuple(
            piece.removeprefix(b" ").removeprefix(SOFT) if start and piece else None
            for piece, start in zip(inside, starts, strict=True)
        )
    if not any(piece and piece.startswith(b" ") for piece in inside):
        return inside
    return tuple(piece[1:] if piece and piece.startswith(b" ") else None for piece in inside)


@lru_cache(maxsize=16)
def starts(tokenizer: "PreTrainedTokenizerBase", size: int) -> tuple[bool, ...]:
    """Which of the ids 0..size-1 begin a word wherever they stand: with a space, or a letter that needs none."""
    result = []
    for piece in pieces(tokenizer, size):
        begin = (piece or b"").decode("utf-8", "ignore")[:1]
        spaced = piece is not None and piece.startswith((b" ", SOFT))
        result.append(spaced or begin != "" and unspaced(begin))
    return tuple(result)


@lru_cache(maxsize=16)
def tokens_per_word(tokenizer: "PreTrainedTokenizerBase", size: int) -> int:
    """How many tokens a word of five letters has, rounded down: 1 by most tokenizers, 5 by one of letters or bytes.

    A letter of a script without spaces is a word.
    """
    texts = [(piece or b"").decode("utf-8", "ignore").strip() for piece in pieces(tokenizer, size)]
    parts = [1.0 if any(map(unspaced, text)) else min(len(text) / 5, 1.0) for text in texts if text]
    return max(1, int(len(parts) / max(sum(parts), 1.0)))


@lru_cache(maxsize=16)
def breaks_characters(tokenizer: "PreTrainedTokenizerBase", size: int) -> bool:
    """Whether some of the ids 0..size-1 are parts of characters, so that not every string of them is text."""
    for piece in pieces(tokenizer, size):
        try:
            (piece or b"").replace(SOFT, b" ").decode()
        except UnicodeDecodeError:
            return True
    return False


def joined(spelt: Sequence[bytes]) -> str:
    """The text of pieces that follow each other. Bytes that make no character, as where a text was cut, are left out."""
    first, *more = b"".join(spelt).split(SOFT)
    text = first.decode("utf-8", "ignore")
    for piece in more:
        text += ("" if text and unspaced(text[-1]) else " ") + piece.decode("utf-8", "ignore")
    return text


@lru_cache(maxsize=64)
def folding(tokenizer: "PreTrainedTokenizerBase") -> Callable[[str], str] | None:
    """How a tokenizer that knows one case alone, as of uncased models, changes letters; None for any other."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or backend.normalizer is None or "a" not in backend.normalizer.normalize_str("A"):
        return None
    bare = "é" not in unicodedata.normalize("NFC", backend.normalizer.normalize_str("é"))
    return _bare if bare else str.lower


def _bare(text: str) -> str:
    """In lower case and without accents."""
    marks = unicodedata.normalize("NFD", text.lower())
    return unicodedata.normalize("NFC", "".join(letter for letter in marks if unicodedata.category(letter) != "Mn"))


def as_asked(
    tokenizer: "PreTrainedTokenizerBase", text: str, choices: Sequence[str] = (), must: Sequence[str] = ()
) -> str:
    """The text of a gap with the letters of what was asked, where the tokenizer knows one case alone."""
    fold = folding(tokenizer)
    if fold is None:
        return text
    for choice in choices:
        if fold(choice) == text:
            return choice
    for string in must:
        text = text if string in text else text.replace(fold(string), string, 1)
    return text


def lead_of(tokenizer: "PreTrainedTokenizerBase", before: str) -> str:
    """ " " where the first token of a gap after the text `before` brings a space that is not the gap's text, else "".

    That is after a space; where a tokenizer puts one before every text, at its beginning; and for WordPiece wherever the
    text before does not run on into a word, as after a bracket.
    """
    if before.endswith(" "):
        return " "
    steps = _decoder(tokenizer)
    if _apart(steps):
        return " " if _split(tokenizer, before[-32:] + "x")[-1] == "x" else ""
    adds = any(s["type"] == "Strip" or s.get("prepend_scheme", "never") != "never" for s in steps)
    return " " if adds and not before else ""


def read_gap(tokenizer: "PreTrainedTokenizerBase", ids: Sequence[int], lead: str = "") -> str:
    """The text of a gap with the tokens `ids`, as the automaton read it; special tokens are left out."""
    if not ids:
        return ""
    size = len(tokenizer)
    inside = pieces(tokenizer, size)
    opening = openings(tokenizer, size)[ids[0]] if lead else None
    spelt = [inside[i] or b"" for i in ids]
    spelt[0] = spelt[0] if opening is None else opening
    return joined(spelt)


def read_text(tokenizer: "PreTrainedTokenizerBase", ids: Sequence[int]) -> str:
    """The text that begins with the tokens `ids`: what decode gives, without the spaces that WordPiece's decoder puts beside
    letters of scripts that have none."""
    if not _apart(_decoder(tokenizer)):
        return str(tokenizer.decode([*ids], skip_special_tokens=True, clean_up_tokenization_spaces=False))
    size = len(tokenizer)
    inside = pieces(tokenizer, size)
    return joined([inside[i] or b"" for i in ids if i < size]).removeprefix(" ")


def read_on(tokenizer: "PreTrainedTokenizerBase", prompt: Sequence[int], ids: Sequence[int]) -> str:
    """The text that `ids` are after the prompt's tokens: some tokenizers write a word differently at a text's beginning."""
    head, whole = read_text(tokenizer, prompt), read_text(tokenizer, [*prompt, *ids])
    return whole.removeprefix(head) if whole.startswith(head) else read_text(tokenizer, ids)


def _names(tokenizer: "PreTrainedTokenizerBase", size: int) -> list[str | None]:
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    special |= set(tokenizer.all_special_ids)
    names = tokenizer.convert_ids_to_tokens(list(range(min(size, len(tokenizer)))))
    names = [None if number in special else name for number, name in enumerate(names)]
    return names + [None] * (size - len(names))


def _decoder(tokenizer: "PreTrainedTokenizerBase") -> list[dict[str, Any]]:
    """The steps by which the tokenizer's own decoder makes text of tokens."""
    from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

    if isinstance(tokenizer, ByT5Tokenizer):
        return [{"type": "Bytes"}]
    kind = type(tokenizer).__name__
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ValueError(
            f"what the tokens of a {kind} spell is not known: it is written in Python, and is not ByT5's; use a model "
            "whose tokenizer has a tokenizer.json"
        )
    decoder = tokenizer.backend_tokenizer.decoder
    if decoder is None:
        return []
    state = json.loads(decoder.__getstate__())
    steps = state["decoders"] if state["type"] == "Sequence" else [state]
    known = ("ByteLevel", "WordPiece", "Metaspace", "Replace", "ByteFallback", "Fuse", "Strip")
    for step in steps:
        if step["type"] not in known or step["type"] == "Replace" and "String" not in step["pattern"]:
            raise ValueError(
                f"the tokenizer's decoder is a {step['type']}, and what its tokens spell is not known; use a model whose "
                f"tokenizer decodes by {', '.join(known)}"
            )
    return steps


def _piece(name: str, steps: list[dict[str, Any]]) -> bytes:
    if _apart(steps) and not _continues(name, steps):
        name = " " + name
    for step in steps:
        match step["type"]:
            case "Bytes":
                return bytes([ord(name)]) if len(name) == 1 and ord(name) < 256 else b""
            case "WordPiece":
                name = name.removeprefix(step["prefix"])
                for old, new in _CLEAN.items() if step["cleanup"] else ():
                    name = name.replace(old, new)
            case "Metaspace":
                name = name.replace(step["replacement"], " ")
            case "Replace":
                name = name.replace(step["pattern"]["String"], step["content"])
            case "ByteFallback" if found := _BYTE_TOKEN.fullmatch(name):
                return bytes([int(found[1], 16)])
            case "ByteLevel" if all(letter in _letters() for letter in name):
                return bytes(_letters()[letter] for letter in name)
    return name.encode("utf-8", "replace")


def _apart(steps: list[dict[str, Any]]) -> bool:
    """Whether the decoder puts a space before words, the tokens having none."""
    return not steps or any(step["type"] == "WordPiece" for step in steps)


def _continues(name: str, steps: list[dict[str, Any]]) -> bool:
    return any(step["type"] == "WordPiece" and name.startswith(step["prefix"]) for step in steps)


def _split(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[str]:
    backend = tokenizer.backend_tokenizer
    if backend.normalizer is not None:
        text = backend.normalizer.normalize_str(text)
    return [text] if backend.pre_tokenizer is None else [w for w, _ in backend.pre_tokenizer.pre_tokenize_str(text)]


@lru_cache(maxsize=1)
def _letters() -> dict[str, int]:
    """The byte of each letter of the byte-level alphabet of GPT-2: printable ones are themselves, the rest from 256 on."""
    own = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in own]
    return {chr(byte): byte for byte in own} | {chr(256 + i): byte for i, byte in enumerate(rest)}
