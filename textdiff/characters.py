"""Characters as bytes: classes of them, which scripts are written without spaces, and automata over their UTF-8.

    step(s, character) = step(s, class of the character)       an automaton over classes -> the same one over bytes

Chinese, Japanese, Thai, Lao, Khmer, Burmese and Tibetan are written without spaces: each of their letters, with the marks
on it, counts as a word, and no space belongs between two of them. All other text has words between spaces, as str.split()
finds them.
"""

import unicodedata
from collections.abc import Mapping
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from textdiff.constraints import Automaton

# inclusive, from Unicode 16: Han with radicals and iteration marks, kana, bopomofo, and their compatibility forms
_UNSPACED = (
    (0x0E01, 0x0E3A), (0x0E40, 0x0E4E), (0x0E81, 0x0EDF), (0x0F40, 0x0FBC), (0x1000, 0x109F), (0x1780, 0x17D3),
    (0x2E80, 0x2FDF), (0x3005, 0x3007), (0x3021, 0x302F), (0x3031, 0x3035), (0x3038, 0x303C), (0x3040, 0x312F),
    (0x31A0, 0x31BF), (0x31F0, 0x31FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xAA60, 0xAA7F), (0xF900, 0xFAFF),
    (0xFF66, 0xFF9F), (0x1AFF0, 0x1B16F), (0x20000, 0x2FA1F), (0x30000, 0x323AF),
)  # fmt: skip
# punctuation that is set solid beside them: ideographic, vertical, small and full-width forms
_SOLID = ((0x3000, 0x303F), (0x30FB, 0x30FB), (0xFE10, 0xFE1F), (0xFE30, 0xFE6F), (0xFF00, 0xFF65))
# Greek, Armenian, Hebrew, Arabic, Indian and Ethiopic punctuation; general punctuation and symbols; pictures
_SIGNS = (
    (0x037E, 0x037E), (0x0387, 0x0387), (0x0589, 0x058A), (0x05BE, 0x05BE), (0x060C, 0x060C), (0x061B, 0x061F),
    (0x06D4, 0x06D4), (0x0964, 0x0965), (0x1361, 0x1368), (0x2000, 0x2BFF), (0x1F000, 0x1FAFF),
)  # fmt: skip
_JOINERS = (0x00AD, 0x200C, 0x200D, 0x2060, 0xFEFF)  # they are not seen, and hold letters together
NONE, LETTER, SIGN, UNSPACED, MARK = -1, 0, 1, 2, 3  # what is no character, of a word between spaces, punctuation, ...
# rows are compared by mixtures of their entries, in which unlike ones are the same once in 2^60 times
_ROW = np.random.default_rng(0).integers(1 << 62, size=64)
_MIX = torch.randint(1 << 62, (256,), generator=torch.Generator().manual_seed(0))
_LAST, _SURROGATES = 0x110000, slice(0xD800, 0xE000)


def _within(ranges: tuple[tuple[int, int], ...], character: str) -> bool:
    return any(first <= ord(character) <= last for first, last in ranges)


def unspaced(character: str) -> bool:
    """Whether the character is of a script that is written without spaces, or punctuation of such a script."""
    return _within(_UNSPACED, character) or _within(_SOLID, character)


@lru_cache(maxsize=1)
def solid() -> np.ndarray:
    """(N,) int8 of every code point: 1 where `unspaced`, else 0; -1 where it is no character."""
    return _filled(0, {1: [*_UNSPACED, *_SOLID]})


@lru_cache(maxsize=1)
def kinds() -> np.ndarray:
    """(N,) int8 of every code point: LETTER, SIGN, UNSPACED or MARK; NONE where it is white space or no character.

    SIGN goes with the word it follows and makes no longer word of it: punctuation and symbols. MARK is on a letter of a
    script without spaces, and begins nothing. Rare signs count as letters, which keeps automata small.
    """
    result = _filled(LETTER, {UNSPACED: [*_UNSPACED], SIGN: [*_SIGNS]})
    blocks = [(0, 0xBF), *_UNSPACED, *_SOLID]
    for number in (number for first, last in blocks for number in range(first, last + 1)):
        category = unicodedata.category(chr(number))
        if result[number] == UNSPACED and category[0] == "M":
            result[number] = MARK
        elif category[0] in "PS" and category != "Pc" or category == "Cc":
            result[number] = SIGN
    for number in range(0x3001):
        if chr(number).isspace():
            result[number] = NONE
    return result


@lru_cache(maxsize=1)
def joining() -> np.ndarray:
    """(N,) int8 of every code point: 0 for a LETTER, 1 for any other character, -1 where there is none.

    Beyond ASCII blocks of 64 are taken for what most of them are, but for the signs of scripts that write spaces.
    """
    exact = np.where(kinds() == LETTER, 0, 1).astype(np.int8)
    coarse = np.repeat((exact.reshape(-1, 64).sum(1) > 32).astype(np.int8), 64)
    coarse[:128] = exact[:128]
    for first, last in _SIGNS:
        coarse[first : last + 1] = 1
    coarse[[*_JOINERS]] = 0
    coarse[_SURROGATES] = NONE
    return coarse


def _filled(usual: int, classes: Mapping[int, list[tuple[int, int]]]) -> np.ndarray:
    result = np.full(_LAST, usual, dtype=np.int8)
    for number, ranges in classes.items():
        for first, last in ranges:
            result[first : last + 1] = number
    result[_SURROGATES] = NONE
    return result


def over_bytes(step: Tensor, accept: Tensor, classes: np.ndarray) -> Automaton:
    """The automaton over bytes that reads characters in UTF-8 and goes by their classes.

    step: (S, K) int64, the state after a character of each class, -1 where none can stand. accept: (S,) bool. classes: (N,)
    ints of every code point, below K; negative where there is no such character. State 0 is where texts begin, after which
    only whole characters are accepted.
    """
    root, nodes = _tree(classes)
    states, width = step.shape
    padded = torch.cat([step, torch.full((states, 1), -1)], 1)  # the last column: of what is no character
    read = torch.from_numpy(np.stack([root, *nodes]))
    # states 0..S-1 are between characters; the inner node k, counted from 0, of state s is S + k S + s
    inner = states + (read - width - 1)[:, None] * states + torch.arange(states)[None, :, None]
    ended = padded[:, read.clamp_max(width)].transpose(0, 1)  # (nodes, S, 256)
    rows = torch.where((read <= width)[:, None], ended, inner).reshape(-1, 256)
    return alike(Automaton(rows, torch.cat([accept, torch.zeros(states * len(nodes), dtype=torch.bool)])))


def _tree(classes: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """What each byte leads to, at the beginning of a character and at each inner node: (256,) ints.

    Below K+1: the class of the character that ends, K for none; from K+1 on: an inner node, counted from 0.
    """
    none = int(classes.max()) + 1
    shift = none + 1
    nodes: list[np.ndarray] = []
    known = {np.full(64, none, dtype=np.int64).tobytes(): none}

    def node(below: np.ndarray) -> int:
        """The number of the node whose continuation bytes lead to `below` (64,)."""
        spelt = below.tobytes()
        if spelt not in known:
            known[spelt] = shift + len(nodes)
            whole = np.full(256, none, dtype=np.int64)
            whole[128:192] = below
            nodes.append(whole)
        return known[spelt]

    def level(values: np.ndarray) -> np.ndarray:
        rows = values.reshape(-1, 64)
        _, first, back = np.unique(rows @ _ROW, return_index=True, return_inverse=True)
        return np.array([node(rows[number]) for number in first])[back]

    leaf = np.where(classes < 0, none, classes).astype(np.int64)
    root = np.full(256, none, dtype=np.int64)
    root[:128] = leaf[:128]
    root[0xC2:0xE0] = level(leaf[:0x800])[2:]
    three = leaf[:0x10000].copy()
    three[:0x800] = none
    root[0xE0:0xF0] = level(level(three))
    four = np.full(0x140000, none, dtype=np.int64)
    four[0x10000:_LAST] = leaf[0x10000:]
    root[0xF0:0xF5] = level(level(level(four)))
    return root, nodes


def alike(machine: Automaton) -> Automaton:
    """The same language without states that lead nowhere or are never reached; those that do the same within one
    character are one."""
    step, accept = machine.step, machine.accept
    for _ in range(4):  # bytes of a character
        lost = ~accept & (step < 0).all(1)
        lost[0] = False
        names = torch.arange(len(step) + 1)
        names[-1] = -1
        names[:-1][lost] = -1
        step = names[step]
        code = (step + 2) @ _MIX + accept
        _, kind = code.unique(return_inverse=True)
        first = torch.full((int(kind.max()) + 1,), len(kind)).scatter_reduce(0, kind, torch.arange(len(kind)), "amin")
        first, order = first.sort()  # the beginning stays the first
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order))
        step = torch.cat([back[kind], kind.new_full((1,), -1)])[step[first]]
        accept = accept[first]
    reached = torch.zeros(len(step), dtype=torch.bool)
    frontier = torch.zeros(1, dtype=torch.int64)
    while len(frontier):
        reached[frontier] = True
        found = step[frontier].unique()
        frontier = found[(found >= 0) & ~reached[found]]
    names = torch.full((len(step) + 1,), -1)
    names[:-1][reached] = torch.arange(int(reached.sum()))
    return Automaton(names[step[reached]], accept[reached])


@lru_cache(maxsize=1)
def whole_characters() -> Automaton:
    """Any text: bytes that are UTF-8."""
    return over_bytes(torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, dtype=torch.bool), np.minimum(solid(), 0))


@lru_cache(maxsize=1)
def ending_solid() -> Automaton:
    """Texts whose last character is `unspaced`."""
    return over_bytes(torch.tensor([[0, 1], [0, 1]]), torch.tensor([False, True]), solid())
