"""What a word is, and where one ends: for lengths in words, and for strings that must be in a gap.

Between spaces, as str.split() has them, with the punctuation on them; in scripts without spaces each letter is a word of its
own (`characters`). Two words that are set apart have one space between them, none beside a letter of such a script.
"""

import torch

from textdiff.characters import LETTER, MARK, NONE, SIGN, UNSPACED, joining, kinds, over_bytes
from textdiff.constraints import Automaton
from textdiff.joining import MAX_STATES

MOST = 150  # words in a gap that can be counted


def count_words(text: str) -> int:
    """How many words a text has."""
    total, before = 0, NONE
    for kind in kinds()[[ord(character) for character in text if not 0xD800 <= ord(character) < 0xE000]].tolist():
        begins = kind == UNSPACED or kind >= 0 and before == NONE or kind == LETTER and before == UNSPACED
        total += begins
        # punctuation and marks leave the word as it is
        before = before if kind in (SIGN, MARK) and before != NONE else LETTER if kind in (SIGN, MARK) else kind
    return total


def counted(low: int, high: int | None) -> Automaton:
    """Over bytes: texts of low to high words, with single spaces between those that spaces set apart, none around them.

    None for high is no limit. ValueError where more than MOST have to be told apart.
    """
    top = low if high is None else high
    if top > MOST:
        raise ValueError(f"{top} words are more than can be counted, {MOST}; give fewer, or the length in tokens")
    # states: 0 nothing yet; then for each number of words after a letter, after an unspaced letter, after a space
    number = {(0, "begin"): 0}
    for count in range(1, max(top, 1) + 1):
        for kind in ("letter", "solid", "space"):
            number[count, kind] = len(number)
    step, accept = torch.full((len(number), 5), -1), torch.zeros(len(number), dtype=torch.bool)

    def more(count: int) -> int | None:
        """The number after one word more; None where there can be no more."""
        if count < top or count == 0 and high is None:
            return count + 1
        return max(count, 1) if high is None else None

    for (count, kind), state in number.items():
        after = more(count)
        fresh = {LETTER: "letter", SIGN: "letter", UNSPACED: "solid"}
        for sign, name in fresh.items():
            begins = kind in ("begin", "space") or sign == UNSPACED or kind == "solid" and sign == LETTER
            to = after if begins else count
            if to is not None and (to, name) in number:
                step[state, sign] = number[to, kind if not begins else name]
        if kind in ("letter", "solid"):
            step[state, MARK] = state
            step[state, 4] = number[count, "space"]
            accept[state] = count >= low
    accept[0] = low == 0
    # a space is the one white space between words
    classes = kinds().copy()
    classes[ord(" ")] = 4
    return over_bytes(step, accept, classes)


def containing_word(string: str) -> Automaton:
    """Over bytes: texts in which the string occurs, its first and last letter not in the middle of a word.

    "war" is in "the war" and in "post-war", not in "warm"; in scripts without spaces a word begins and ends at every letter.
    """
    signs = sorted({*string})
    classes = joining().copy()
    joins = [not classes[ord(sign)] for sign in signs] + [True, False]
    for place, sign in enumerate(signs):
        classes[ord(sign)] = place + 2
    columns = [*range(2, len(signs) + 2), 0, 1]  # of `joins`
    read = [signs.index(sign) for sign in string]
    first, last, size = joins[read[0]], joins[read[-1]], len(string)
    # states: how much of the string each place that it may begin at has seen; whether a letter came last; found
    found = (frozenset[int](), False, True)
    begin = (frozenset({0}), False, False)
    number, queue = {begin: 0, found: 1}, [begin]
    rows: dict[int, list[int]] = {1: [1] * len(columns)}
    for state in queue:
        seen, _, _ = state
        row = [0] * len(columns)
        for place, column in enumerate(columns):
            if size in seen and not (last and joins[place]):
                row[column] = 1
                continue
            grown = {k + 1 for k in seen if k < size and place < len(signs) and read[k] == place}
            grown |= set() if first and joins[place] else {0}
            after = (frozenset(grown), joins[place], False)
            if after not in number:
                number[after] = len(number)
                queue.append(after)
                if len(queue) > MAX_STATES:
                    raise ValueError(f"must {string[:60]!r} is too long; give a shorter string")
            row[column] = number[after]
        rows[number[state]] = row
    accept = torch.zeros(len(number), dtype=torch.bool)
    accept[1] = True
    for (seen, _, _), place in number.items():
        accept[place] |= size in seen
    return over_bytes(torch.tensor([rows[k] for k in range(len(rows))]), accept, classes)
