"""What tokens spell: text <-> bytes of tokens, for the tokenizers that pretrained models come with.

    text of w_1 .. w_n = spelling of w_1 + .. + spelling of w_n, in UTF-8 bytes, of which a token may hold a part

Byte-level BPE writes bytes by letters of its own, SentencePiece writes a space as "▁" and rare characters as <0xE6>, and
WordPiece writes no spaces: "##" says that there is none. All three are read from the tokenizer's own decoder.
"""

import json
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Bytes = tuple[bytes | None, ...]  # of each token; None where it is no text
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
# what the WordPiece decoder of tokenizers takes together again, one token at a time
_CLEAN = {" .": ".", " ?": "?", " !": "!", " ,": ",", " ' ": "'", " n't": "n't", " 'm": "'m", " do not": " don't"}
_CLEAN |= {" 's": "'s", " 've": "'ve", " 're": "'re"}


@lru_cache(maxsize=16)
def pieces(tokenizer: "PreTrainedTokenizerBase", size: int) -> Bytes:
    """What each of the ids 0..size-1 adds to a text, in UTF-8 bytes; None for special tokens and ids that it lacks.

    Joined, they are what decode gives, except that decode may leave out spaces at the beginning of a text and (WordPiece)
    shows the ## of a token that continues nothing. ValueError for a tokenizer with another kind of decoder.
    """
    steps = _decoder(tokenizer)
    return tuple(None if name is None else _piece(name, steps) or None for name in _names(tokenizer, size))


@lru_cache(maxsize=16)
def openings(tokenizer: "PreTrainedTokenizerBase", size: int) -> Bytes:
    """What each id adds to a text as the first token of a gap whose space before it is already there; None: it cannot."""
    inside, steps = pieces(tokenizer, size), _decoder(tokenizer)
    if _apart(steps):
        names = _names(tokenizer, size)
        starts = [name is not None and not _continues(name, steps) for name in names]
        return tuple(
            piece.removeprefix(b" ") if start and piece else None for piece, start in zip(inside, starts, strict=True)
        )
    if not any(piece and piece.startswith(b" ") for piece in inside):
        return inside
    return tuple(piece[1:] if piece and piece.startswith(b" ") else None for piece in inside)


def lead_of(tokenizer: "PreTrainedTokenizerBase", before: str) -> str:
    """ " " where the first token of a gap after the text `before` brings a space that is not the gap's text, else "".

    That is after a space; where a tokenizer puts one before every text, at its beginning; and for WordPiece wherever the
    text before does not run on into a word, as after a bracket.
    """
    steps = _decoder(tokenizer)
    if before.endswith(" "):
        return " "
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
    return b"".join(spelt).decode("utf-8", "replace")


def _names(tokenizer: "PreTrainedTokenizerBase", size: int) -> list[str | None]:
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    special |= set(tokenizer.all_special_ids)
    names = tokenizer.convert_ids_to_tokens(list(range(min(size, len(tokenizer)))))
    names = [None if number in special else name for number, name in enumerate(names)]
    return names + [None] * (size - len(names))


def _decoder(tokenizer: "PreTrainedTokenizerBase") -> list[dict[str, Any]]:
    """The steps by which the tokenizer's own decoder makes text of tokens."""
    from transformers import PreTrainedTokenizerFast

    kind = type(tokenizer).__name__
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ValueError(f"what tokens of a {kind} spell is not known; load its fast version (a tokenizer.json)")
    decoder = tokenizer.backend_tokenizer.decoder
    if decoder is None:
        return []
    state = json.loads(decoder.__getstate__())
    steps = state["decoders"] if state["type"] == "Sequence" else [state]
    known = ("ByteLevel", "WordPiece", "Metaspace", "Replace", "ByteFallback", "Fuse", "Strip")
    for step in steps:
        if step["type"] not in known or step["type"] == "Replace" and "String" not in step["pattern"]:
            raise ValueError(f"this tokenizer decodes by {step['type']}, which is not known here; use one of {known}")
    return steps


def _piece(name: str, steps: list[dict[str, Any]]) -> bytes:
    if _apart(steps) and not _continues(name, steps):
        name = " " + name
    for step in steps:
        match step["type"]:
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
