"""Gaps that have to match: a pattern, choices, words, strings that must or must not occur -> one automaton over tokens.

    bytes of a token = what it adds to the text        step(s, token) = step(.. step(s, first byte) .., last byte)

Everything asked is first a finite automaton over UTF-8 bytes: a pattern by way of outlines_core (`patterns`), choices a
trie, numbers of words and strings that must occur by where words end (`wordcount`), banned strings the complement of Aho and
Corasick's (1975); one that keeps all of them is their product (`joining`). Then tokens are read byte by byte. So text is
whole characters, whichever bytes the tokens break at.

Whose is the space before a gap? `gaps.tokens_of` leaves it to the gap to write, as the space of its first word, and the
user sees it as part of the text. With lead=" " a gap's tokens spell " " + text (WordPiece: the first one starts a word),
and `text` is what has to match; a tokenizer none of whose tokens begins with a space spells the text alone.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import reduce
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from textdiff.caching import Cache
from textdiff.characters import ending_solid, whole_characters
from textdiff.constraints import KEPT_TOTALS, Automaton
from textdiff.joining import both, trie
from textdiff.patterns import compile_pattern
from textdiff.spelling import SOFT, Bytes, breaks_characters, folding, openings, pieces, starts
from textdiff.wordcount import containing_word, counted

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LONG = 1024  # tokens, where a model does not say how many it reads
MAX_TABLE = 1 << 25  # entries of 8 bytes
NEITHER = "give two whole numbers a <= b from 0 on, as in (2, 4); None for b is no limit"
MAX_STRINGS = 50_000  # bytes of the choices, and of the banned strings, of a gap
KEPT = 256 << 20  # bytes of automata that were asked for before


def compile_gap(
    tokenizer: "PreTrainedTokenizerBase",
    size: int,
    *,
    pattern: str | None = None,
    choices: Sequence[str] = (),
    words: tuple[int, int | None] | None = None,
    banned: Sequence[str] = (),
    must: Sequence[str] = (),
    lead: str = "",
    forbidden: Iterable[int] = (),
) -> Automaton | None:
    """The automaton over ids 0..size-1 of a gap that keeps everything asked; None where nothing is. Compiled once.

    pattern: what the whole text has to match, in the syntax of Rust's regex (no anchors, look-around, back-references).
        \\d, \\w, \\s are of all of Unicode; of Python's they differ in marks (\\w) and \\x1c-\\x1f (\\s).
    choices: what the text may be. words: from a to b of them (b None: no limit), see `wordcount`. banned: strings that must
    not occur in it. must: strings each of which must, as words of their own. lead: " " where the gap's tokens begin with the
    space before it, see `lead_of`. forbidden: ids never allowed, such as `Specials.not_text`; special tokens never are.
    Of a tokenizer that knows one case alone (`folding`), choices, banned and must are meant in that case.
    ValueError where a pattern cannot be read, nothing is left, this tokenizer cannot spell it, or tables grow too large.
    """
    if lead not in ("", " "):
        raise ValueError(f"lead {lead!r} is neither empty nor one space; see lead_of")
    for strings in (choices, banned, must):
        if isinstance(strings, str):
            raise ValueError(f"{strings!r} is one string; give a list of strings")
    for name, strings in {"banned": banned, "must": must}.items():
        if "" in strings:
            raise ValueError(f"{name} contains '', which occurs in every text; leave it out")
    if words is not None:
        low, high = words
        if low < 0 or high is not None and high < max(low, 1):
            raise ValueError(f"words {words} is no range; {NEITHER}")
    if pattern is None and not choices and words is None and not banned and not must:
        return None
    fold = folding(tokenizer) or str
    alternatives, without, within = (tuple(dict.fromkeys(map(fold, given))) for given in (choices, banned, must))
    mute = frozenset(forbidden)
    return _AUTOMATA.get(
        (tokenizer, size, pattern, words, alternatives, without, within, lead, mute),
        lambda: _compiled(tokenizer, size, pattern, words, alternatives, without, within, lead, mute),
    )


def _compiled(
    tokenizer: "PreTrainedTokenizerBase", size: int, pattern: str | None, words: tuple[int, int | None] | None,
    choices: tuple[str, ...], banned: tuple[str, ...], must: tuple[str, ...], lead: str, forbidden: frozenset[int],
) -> Automaton:  # fmt: skip
    asked = {"pattern": pattern, "choices": choices, "words": words, "banned": banned, "must": must}
    shown = ", ".join(f"{name} {_short(value)}" for name, value in asked.items() if value not in (None, ()))
    machines = [] if pattern is None else [compile_pattern(pattern)]
    machines += [_trie("choices", choices)] if choices else []
    machines += [] if words is None else [counted(*words)]
    if not machines:
        machines.append(whole_characters())
    machines += [_without(banned)] if banned else []
    machine = reduce(both, [*machines, *map(containing_word, must)])
    if not bool(_coming(machine.step, machine.accept)[0]):
        raise ValueError(f"no text keeps {shown} all at once; ask for less")
    inside = _without_ids(pieces(tokenizer, size), forbidden)
    first = _without_ids(openings(tokenizer, size), forbidden) if lead else inside
    try:
        lifted = _lift(_with_soft(machine, inside), inside, first)
    except _TooLarge:
        raise ValueError(
            f"the tables for {shown} are too large; ask for a shorter text, or for [0-9a-z], not \\w"
        ) from None
    if lifted is None:
        case = ", and this one knows lower case alone" if folding(tokenizer) else ""
        raise ValueError(
            f"this tokenizer has no tokens that spell a text with {shown}; ask for what it can write{case}"
        )
    if words is not None:
        begins = torch.tensor(starts(tokenizer, size))
        lifted = replace(lifted, fresh=begins)
    return lifted


def _short(value: object) -> str:
    """As Python writes it, cut where it is long."""
    shown = repr(value)
    return shown if len(shown) <= 200 else f"{shown[:200]}..."


def _bytes(machine: Automaton) -> int:
    """How much memory an automaton takes, with what it works out when it is used."""
    columns = 0 if machine.kind is None else len(machine.kind)
    totals = min(KEPT_TOTALS, (LONG + 2) * len(machine.step))
    return 8 * (4 * machine.step.numel() + 3 * columns) + 4 * totals


_AUTOMATA: Cache[Automaton] = Cache(KEPT, _bytes)


def text_automaton(
    tokenizer: "PreTrainedTokenizerBase", size: int, forbidden: Iterable[int] = (), lead: str = ""
) -> Automaton | None:
    """Any text: whole characters, and with `lead` " " one that begins a word. None where every string of tokens is that."""
    mute = frozenset(forbidden)
    if lead:
        return _AUTOMATA.get((tokenizer, size, "word", mute), lambda: _any_text(tokenizer, size, mute, True))
    if not breaks_characters(tokenizer, size):
        return None
    return _AUTOMATA.get((tokenizer, size, "text", mute), lambda: _any_text(tokenizer, size, mute, False))


def _any_text(tokenizer: "PreTrainedTokenizerBase", size: int, forbidden: frozenset[int], word: bool) -> Automaton:
    """Any text; the empty one, too."""
    inside = _without_ids(pieces(tokenizer, size), forbidden)
    first = _without_ids(openings(tokenizer, size), forbidden) if word else inside
    lifted = _lift(_with_soft(whole_characters(), inside), inside, first)
    if lifted is None:
        raise ValueError("the tokenizer has no token that is text; give the model's own tokenizer")
    return lifted


def _without_ids(spelt: Bytes, forbidden: frozenset[int]) -> Bytes:
    return tuple(None if number in forbidden else piece for number, piece in enumerate(spelt))


# ---- automata over bytes: `Automaton` with V = 256 ----


def _trie(name: str, texts: Sequence[str]) -> Automaton:
    size = sum(len(text.encode()) for text in texts)
    if size > MAX_STRINGS:
        raise ValueError(f"{name} have {size} bytes in all, more than {MAX_STRINGS}; give fewer, or shorter ones")
    return trie([text.encode() for text in texts], 256)


def _without(texts: Sequence[str]) -> Automaton:
    """All byte strings in which none of the texts occurs: the trie with its failure links, its matches removed."""
    found = _trie("banned strings", texts)
    rows, bad = found.step.tolist(), found.accept.tolist()
    queue, fail = [0], [0] * len(rows)
    for state in queue:  # breadth first, so that the states failed to are complete
        for byte, to in enumerate(rows[state]):
            back = rows[fail[state]][byte] if state else 0
            if to < 0:
                rows[state][byte] = back
            else:
                fail[to] = back
                bad[to] = bad[to] or bad[back]
                queue.append(to)
    step, ok = torch.tensor(rows), ~torch.tensor(bad)
    return Automaton(torch.where(ok[step], step, -1), ok)


def _with_soft(machine: Automaton, spelt: Bytes) -> Automaton:
    """The automaton that knows `spelling.SOFT`, where tokens have it: a space, or nothing after an unspaced letter."""
    soft = SOFT[0]
    if not any(SOFT in piece for piece in spelt if piece):
        return machine
    solid = ending_solid()
    space, nothing = soft, soft - 1  # two letters for the two things that it may be, of which one can stand
    left, right = machine.step.clone(), solid.step.clone()
    left[:, space], left[:, nothing] = left[:, ord(" ")], torch.arange(len(left))
    right[:, space] = torch.where(solid.accept, -1, right[:, ord(" ")])
    right[:, nothing] = torch.where(solid.accept, torch.arange(len(right)), -1)
    product = both(Automaton(left, machine.accept), Automaton(right, torch.ones_like(solid.accept)))
    product.step[:, soft] = torch.where(product.step[:, nothing] < 0, product.step[:, space], product.step[:, nothing])
    product.step[:, nothing] = -1
    return product


def _coming(step: Tensor, accept: Tensor) -> Tensor:
    """(S,) bool: the states from which an accepted one can be reached."""
    left, column = (step >= 0).nonzero(as_tuple=True)
    pairs = (left * len(step) + step[left, column]).unique()
    left, right = pairs // len(step), pairs % len(step)
    while True:
        more = accept.clone()
        more[left[accept[right]]] = True
        if torch.equal(more, accept):
            return accept
        accept = more


# ---- from bytes to tokens ----


def _functions(machine: Automaton, spelt: Bytes, states: Tensor) -> tuple[Tensor, Tensor]:
    """What tokens do: the state (K, N) that each of K kinds leads to from states (N,), S for none, and the kinds (V,).

    All tokens go byte by byte at once, and those that do the same so far go as one.
    """
    dead = len(machine.accept)
    letters, letter = machine.step.unique(dim=1, return_inverse=True)  # bytes that do the same, too
    letters = torch.cat([letters.masked_fill(letters < 0, dead), torch.full((1, letters.shape[1]), dead)])
    size = torch.tensor([-1 if piece is None else len(piece) for piece in spelt])
    longest = max(int(size.max()), 1)
    data = torch.frombuffer(bytearray(b"".join((p or b"").ljust(longest, b"\0") for p in spelt)), dtype=torch.uint8)
    data = data.view(len(spelt), longest)
    ways, way, active = states[None], torch.zeros_like(size), (size >= 0).nonzero()[:, 0]
    done, kind = [torch.full_like(ways, dead)], torch.zeros_like(size)  # kind 0: cannot be read
    for place in range(longest + 1):
        ended = active[size[active] == place]
        kind[ended] = way[ended] + sum(map(len, done))
        done.append(ways)
        active = active[size[active] > place]
        if not len(active):
            break
        code = way[active] * letters.shape[1] + letter[data[active, place].long()]
        code, inverse = code.unique(return_inverse=True)
        if len(code) * len(states) > MAX_TABLE:
            raise _TooLarge
        ways = letters[ways[code // letters.shape[1]], (code % letters.shape[1])[:, None]]
        ways, same = ways.unique(dim=0, return_inverse=True)
        way[active] = same[inverse]
    used, kind = kind.unique(return_inverse=True)
    result, same = torch.cat(done)[used].unique(dim=0, return_inverse=True)
    return result, same[kind]


class _TooLarge(Exception):
    pass


def _lift(machine: Automaton, inside: Bytes, first: Bytes) -> Automaton | None:
    """The automaton over tokens, of the states that tokens reach and that lead to an end; None where there are none.

    It has one state more, the beginning, where tokens may be spelt in another way.
    """
    dead = len(machine.accept)
    ways, kind = _functions(machine, inside, torch.arange(dead))
    starts, opening = _functions(machine, first, torch.zeros(1, dtype=torch.int64))
    both, kind = torch.stack([kind, opening]).unique(dim=1, return_inverse=True)
    if both.shape[1] * (dead + 1) > MAX_TABLE:
        raise _TooLarge
    step = torch.cat([ways[both[0]].T, starts[both[1]].T])
    step = step.masked_fill(step == dead, -1)
    accept = torch.cat([machine.accept, machine.accept[:1]])
    keep = _reached(step, dead) & _coming(step, accept)
    if not bool(keep[dead]):
        return None
    order = torch.cat([torch.tensor([dead]), keep[:dead].nonzero()[:, 0]])
    names = torch.full((dead + 2,), -1)  # the last: of -1
    names[order] = torch.arange(len(order))
    step, same = names[step[order]].unique(dim=1, return_inverse=True)
    return Automaton(step, accept[order], same[kind])


def _reached(step: Tensor, start: int) -> Tensor:
    """(S,) bool: the states that can be reached from `start`."""
    seen, frontier = torch.zeros(len(step), dtype=torch.bool), torch.tensor([start])
    while len(frontier):
        seen[frontier] = True
        found = step[frontier].unique()
        frontier = found[(found >= 0) & ~seen[found]]
    return seen
