"""Automata made of others, or of strings: what is one of them, what contains one, what several automata accept.

    step(s, a) = the longest beginning of the string that ends s a        (Knuth, Morris and Pratt 1977)
    step((s, r), a) = (step(s, a), step(r, a))

The product of the automata of several strings knows of each whether it has come: how much of it, or all. Strings may share
what they have in common: "ab" and "bc" are both in "abc".
"""

from collections.abc import Iterable, Sequence
from functools import reduce

import torch

from textdiff.constraints import Automaton

MAX_STATES = 20_000


def containing(string: Sequence[int], columns: int) -> Automaton:
    """Everything, in an alphabet of so many letters, in which the string (at least one letter) occurs."""
    size, back = len(string), 0
    step = torch.zeros(size + 1, columns, dtype=torch.int64)
    step[size] = size
    for state, letter in enumerate(string):
        if state:
            step[state] = step[back]
            back = int(step[back, letter])
        step[state, letter] = state + 1
    return Automaton(step, torch.arange(size + 1) == size)


def forced(strings: Sequence[Sequence[int]], size: int, forbidden: Iterable[int] = ()) -> Automaton:
    """All texts of ids 0..size-1, none of them forbidden, in which each of the strings of ids occurs.

    ValueError for an empty string, an id that is forbidden or that is none, and more than MAX_STATES states.
    """
    ids, mute = sorted({number for string in strings for number in string}), [*forbidden]
    if not all(len(string) for string in strings):
        raise ValueError("forced has an empty string of ids; leave it out")
    wrong = [number for number in ids if not 0 <= number < size or number in mute]
    if wrong:
        raise ValueError(f"forced id {wrong[0]} is no text of this model's; give ids of words, below {size}")
    letter = {number: place for place, number in enumerate(ids, 1)}  # 0: any other
    kind = torch.zeros(size, dtype=torch.int64)
    kind[ids] = torch.arange(1, len(ids) + 1)
    kind[mute] = len(ids) + 1
    machine = reduce(both, [containing([letter[i] for i in string], len(ids) + 1) for string in strings])
    dead = machine.step.new_full((len(machine.step), 1), -1)
    return Automaton(torch.cat([machine.step, dead], 1), machine.accept, kind)


def trie(strings: Sequence[Sequence[int]], columns: int) -> Automaton:
    """The strings themselves, in an alphabet of so many letters."""
    rows, ends = [[-1] * columns], [False]
    for string in strings:
        state = 0
        for letter in string:
            if rows[state][letter] < 0:
                rows[state][letter] = len(rows)
                rows.append([-1] * columns)
                ends.append(False)
            state = rows[state][letter]
        ends[state] = True
    return Automaton(torch.tensor(rows), torch.tensor(ends))


def alternatives(strings: Sequence[Sequence[int]], size: int) -> Automaton:
    """The strings of ids 0..size-1 themselves."""
    ids = sorted({number for string in strings for number in string})
    letter = {number: place for place, number in enumerate(ids, 1)}  # 0: any other
    machine = trie([[letter[number] for number in string] for string in strings], len(ids) + 1)
    kind = torch.zeros(size, dtype=torch.int64)
    kind[ids] = torch.arange(1, len(ids) + 1)
    return Automaton(machine.step, machine.accept, kind)


def conjoined(one: Automaton, two: Automaton) -> Automaton:
    """The strings of tokens that both accept, which know the same ids."""
    kinds = [torch.arange(a.size) if a.kind is None else a.kind for a in (one, two)]
    pairs, kind = torch.stack(kinds).unique(dim=1, return_inverse=True)
    machine = both(Automaton(one.step[:, pairs[0]], one.accept), Automaton(two.step[:, pairs[1]], two.accept))
    return Automaton(machine.step, machine.accept, kind, one.fresh if two.fresh is None else two.fresh)


def both(one: Automaton, two: Automaton) -> Automaton:
    """The strings that both accept, letter by letter of one alphabet: of the pairs of states that are reached.

    ValueError where these are more than MAX_STATES.
    """
    width = len(two.accept)
    seen = frontier = torch.zeros(1, dtype=torch.int64)
    rows = []
    while len(frontier):
        left, right = one.step[frontier // width], two.step[frontier % width]
        rows.append(torch.where((left < 0) | (right < 0), -1, left * width + right))
        found = rows[-1].unique()
        frontier = found[(found >= 0) & ~torch.isin(found, seen)]
        seen = torch.cat([seen, frontier])
        if len(seen) > MAX_STATES:
            raise ValueError(f"what is asked of a gap needs more than {MAX_STATES} states at once; ask for less")
    order = seen.argsort()
    table = torch.cat(rows)
    step = torch.where(table < 0, -1, order[torch.searchsorted(seen[order], table.clamp_min(0))])
    return Automaton(step, one.accept[seen // width] & two.accept[seen % width])
