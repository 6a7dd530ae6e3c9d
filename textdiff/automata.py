"""Gaps that have to match: a pattern, choices, words, strings that must or must not occur -> one automaton over tokens.

    bytes of a token = what it adds to the text        step(s, token) = step(.. step(s, first byte) .., last byte)

Everything asked is first a finite automaton over UTF-8 bytes: a pattern by way of outlines_core (Willard and Louf,
arXiv:2307.09702), choices a trie, banned strings the complement of Aho and Corasick's (1975), one that must occur that of
Knuth, Morris and Pratt (`joining`); one that keeps all of them is their product. Then tokens are read byte by byte. So text
is whole characters, whichever bytes the tokens break at.

Whose is the space before a gap? `gaps.tokens_of` leaves it to the gap to write, as the space of its first word, and the
user sees it as part of the text. With lead=" " a gap's tokens spell " " + text (WordPiece: the first one starts a word),
and `text` is what has to match; a tokenizer none of whose tokens begins with a space spells the text alone.
"""

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache, reduce
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from textdiff.constraints import Automaton
from textdiff.joining import MAX_STATES, both, containing
from textdiff.spelling import Bytes, openings, pieces

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_TABLE = 1 << 25  # entries of 8 bytes
NEITHER = "give two whole numbers a <= b from 0 on, as in (2, 4); None for b is no limit"
# words as str.split() has them; Unicode's white space lacks the four separators of ASCII
_STOP, _END = 256, "\U0010ffff"  # outlines' own end of a text, and a character that is none
_WORD = r"[^\s\x1c-\x1f]+"


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
        \\d, \\w, \\s are of all of Unicode; of Python's they differ in marks (\\w) and \\x1c-\\x1f (\\s). A pattern with
        thousands of states, such as \\w{100}, takes its time.
    choices: what the text may be. words: from a to b of them, one space apart (b None: no limit). banned: strings that must
    not occur in it. must: strings each of which must; they may overlap. lead: " " where the gap's tokens begin with the
    space before it, see `lead_of`. forbidden: ids never allowed, such as `Specials.not_text`; special tokens never are.
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
    asked = pattern, tuple(choices), words, tuple(banned), tuple(dict.fromkeys(must))
    return _compiled(tokenizer, size, *asked, lead, frozenset(forbidden))


@lru_cache(maxsize=64)
def _compiled(
    tokenizer: "PreTrainedTokenizerBase",
    size: int,
    pattern: str | None,
    choices: tuple[str, ...],
    words: tuple[int, int | None] | None,
    banned: tuple[str, ...],
    must: tuple[str, ...],
    lead: str,
    forbidden: frozenset[int],
) -> Automaton:
    asked = {"pattern": pattern, "choices": choices, "words": words, "banned": banned, "must": must}
    shown = ", ".join(f"{name} {value!r}" for name, value in asked.items() if value not in (None, ()))
    machines = [] if pattern is None else [_regex(pattern)]
    machines += [_trie(choices)] if choices else []
    machines += [] if words is None else [_regex(_words_pattern(*words))]
    if not machines:
        machines.append(_regex("(?s).*"))  # whole characters
    machines += [_without(banned)] if banned else []
    machine = reduce(both, [*machines, *(containing(text.encode(), 256) for text in must)])
    if not bool(_coming(machine.step, machine.accept)[0]):
        raise ValueError(f"no text keeps {shown} all at once; ask for less")
    inside = _without_ids(pieces(tokenizer, size), forbidden)
    first = _without_ids(openings(tokenizer, size), forbidden) if lead else inside
    try:
        lifted = _lift(machine, inside, first)
    except _TooLarge:
        raise ValueError(
            f"the tables for {shown} are too large; ask for a shorter text, or for [0-9a-z], not \\w"
        ) from None
    if lifted is None:
        raise ValueError(f"this tokenizer has no tokens that spell a text with {shown}; ask for what it can write")
    return lifted


def _words_pattern(low: int, high: int | None) -> str:
    more = f"{max(low, 1) - 1},{'' if high is None else high - 1}"
    return f"({_WORD}( {_WORD}){{{more}}}){'?' if low == 0 else ''}"


def _without_ids(spelt: Bytes, forbidden: frozenset[int]) -> Bytes:
    return tuple(None if number in forbidden else piece for number, piece in enumerate(spelt))


# ---- automata over bytes: `Automaton` with V = 256 ----


def _regex(pattern: str) -> Automaton:
    """The automaton of the pattern.

    outlines_core 0.2.14 stops at the first place where a text may end, unless the token in hand goes on to another one:
    byte by byte, (red)( wine)? matches "red" alone. With a character behind it that no text has, no match ends early.
    """
    from outlines_core import Index, Vocabulary

    try:
        if not _balanced(pattern):  # in brackets "a)(b" could be read
            raise ValueError
        every = Vocabulary(_STOP, {bytes([byte]): [byte] for byte in range(256)})
        index = Index(f"(?:{pattern}){_END}", every)
    except ValueError as error:
        fault = "matches nothing" if "vocabulary" in str(error) else "cannot be used"
        raise ValueError(
            f"the pattern {pattern!r} {fault}; it describes a whole text, in the syntax of Rust's regex without anchors "
            "(^, $, \\b), look-around and back-references"
        ) from None
    moves, final, start = index.get_transitions(), set(index.get_final_states()), index.get_initial_state()
    states = [start, *sorted(set(moves) - final - {start})]
    if len(states) > MAX_STATES:
        raise ValueError(f"the pattern {pattern!r} needs {len(states)} states, more than {MAX_STATES}; ask for less")
    number = {state: i for i, state in enumerate(states)}
    edges = [(number[s], byte, number[to]) for s in states for byte, to in moves[s].items() if to not in final]
    step = torch.full((len(states), 256), -1)
    if edges:
        left, byte, to = torch.tensor(edges).T
        step[left, byte] = to
    return Automaton(step, torch.tensor([_walk(moves, state, _END.encode()) in final for state in states]))


def _balanced(pattern: str) -> bool:
    """Whether no bracket closes that was not opened."""
    depth = 0
    for sign in re.findall(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|[()]", pattern, re.DOTALL):
        depth += (sign == "(") - (sign == ")")
        if depth < 0:
            return False
    return True


def _walk(moves: dict[int, dict[int, int]], state: int | None, text: bytes) -> int | None:
    for byte in text:
        state = None if state is None else moves.get(state, {}).get(byte)
    return state


def _trie(texts: Sequence[str]) -> Automaton:
    rows, ends = [[-1] * 256], [False]
    for text in texts:
        state = 0
        for byte in text.encode():
            if rows[state][byte] < 0:
                rows[state][byte] = len(rows)
                rows.append([-1] * 256)
                ends.append(False)
            state = rows[state][byte]
        ends[state] = True
    return Automaton(torch.tensor(rows), torch.tensor(ends))


def _without(texts: Sequence[str]) -> Automaton:
    """All byte strings in which none of the texts occurs: the trie with its failure links, its matches removed."""
    trie = _trie(texts)
    rows, bad = trie.step.tolist(), trie.accept.tolist()
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


def _coming(step: Tensor, accept: Tensor) -> Tensor:
    """(S,) bool: the states from which an accepted one can be reached."""
    left, column = (step >= 0).nonzero(as_tuple=True)
    left, right = torch.stack([left, step[left, column]]).unique(dim=1)
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


@lru_cache(maxsize=64)
def new_word(tokenizer: "PreTrainedTokenizerBase", size: int, forbidden: tuple[int, ...]) -> Automaton:
    """Any text whose first token begins a word, as one after a space does; the empty text, too."""
    inside = _without_ids(pieces(tokenizer, size), frozenset(forbidden))
    first = openings(tokenizer, size)
    kinds = [2 if piece is None else int(first[number] is None) for number, piece in enumerate(inside)]
    step = torch.tensor([[1, -1, -1], [1, 1, -1]])
    return Automaton(step, torch.tensor([True, True]), torch.tensor(kinds))
