"""A text with gaps as one that is written from left to right: its gaps, what may stand in them, what does already.

A `[GAP]` is a gap of unknown length, a run of `[MASK]` one of known length. Elements of one slot that follow each other are
one gap to its constraint, even where some of its words are given.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from textdiff.constraints import Constraint
from textdiff.denoiser.lengths import open_gaps
from textdiff.posterior import Decode, Draw
from textdiff.tokens import Specials, Tokens

LONG = 512  # tokens in a gap, where a model does not say how many it reads
FEW = 8  # numbers of tokens to choose from, where what is asked is longer than max_gap


@dataclass(frozen=True)
class Hole:
    """A gap of one text: `size` columns from `begin` on, `known` whether that is how many tokens it has, its slot, and the
    columns [first, stop) of that slot."""

    begin: int
    size: int
    known: bool
    slot: int
    first: int
    stop: int

    @property
    def end(self) -> int:
        """The column after it."""
        return self.begin + self.size


def holes_of(xt: Tokens, specials: Specials) -> list[list[Hole]]:
    """The gaps of each row, in order. ValueError for words in doubt and for packed documents."""
    if bool((xt.doubtful | xt.surplus).any()):
        raise ValueError("this model fills gaps, it does not correct words; use deletion or masking")
    if xt.packed:
        raise ValueError("packed documents are for training; give one text per row to fill")
    sizes, rows = xt.valid.sum(1).tolist(), zip(xt.ids.tolist(), xt.slot.tolist(), strict=True)
    return [_holes(ids[:n], slot[:n], specials) for (ids, slot), n in zip(rows, sizes, strict=True)]


def _holes(ids: list[int], slot: list[int], specials: Specials) -> list[Hole]:
    holes: list[Hole] = []
    column = 0
    while column < len(ids):
        end = column + 1
        if ids[column] == specials.mask:
            while end < len(ids) and ids[end] == specials.mask and slot[end] == slot[column]:
                end += 1
        elif ids[column] != specials.gap:
            column = end
            continue
        first, stop = column, end
        while slot[column] and slot[first - 1] == slot[column]:  # column 0 is BOS, under no slot
            first -= 1
        while slot[column] and stop < len(ids) and slot[stop] == slot[column]:
            stop += 1
        holes.append(Hole(column, end - column, ids[column] == specials.mask, slot[column], first, stop))
        column = end
    return holes


@dataclass(frozen=True)
class Leash:
    """What may still be written into a gap.

    longest: tokens at most, or exactly where `known`. state: of the constraint's automaton. rest: where the length is
    known, the ids of the slot's places from here on that are given, -1 where they are open.
    """

    longest: int
    known: bool
    constraint: Constraint
    state: int = 0
    rest: tuple[int, ...] = ()
    written: int = 0

    @property
    def full(self) -> bool:
        """Whether no token more can stand."""
        return self.written >= self.longest

    @property
    def may_end(self) -> bool:
        """Whether the gap may end here."""
        if self.known:
            return self.full
        if self.constraint.automaton is None:
            return self.written >= self.constraint.low
        return bool(self.constraint.may_end(torch.tensor([self.state]), torch.tensor([self.written])))

    def allowed(self, size: int) -> Tensor | None:
        """(size,) bool, the tokens that may be next; None for any."""
        if self.constraint.automaton is None:
            return None
        state = torch.tensor([self.state])
        if self.known:
            return self.constraint.fitting(state, torch.tensor(self.rest), size)
        return self.constraint.allowed(state, torch.tensor([self.written]), size, room=self.longest - self.written)[0]

    def push(self, token: int) -> "Leash":
        """After one token more."""
        return pushed([self], [token])[0]


def pushed(leashes: list[Leash], tokens: list[int]) -> list[Leash]:
    """Each after one token more."""
    states = [leash.state for leash in leashes]
    groups: dict[Constraint, list[int]] = {}
    for number, leash in enumerate(leashes):
        groups.setdefault(leash.constraint, []).append(number)
    for constraint, mine in groups.items():
        if constraint.automaton is not None:
            now, read = torch.tensor([states[k] for k in mine]), torch.tensor([tokens[k] for k in mine])
            for k, state in zip(mine, constraint.next(now, read).tolist(), strict=True):
                states[k] = state
    return [
        Leash(leash.longest, leash.known, leash.constraint, state, leash.rest[1:], leash.written + 1)
        for leash, state in zip(leashes, states, strict=True)
    ]


def _after(constraint: Constraint, state: int, token: int) -> int:
    """The automaton's state after a token."""
    if constraint.automaton is None or state < 0:
        return state
    return int(constraint.next(torch.tensor([state]), torch.tensor([token])))


def open_words(leashes: list[Leash], text: Tensor) -> Tensor:
    """(S, V) bool: the ids of `text` (V,) bool that may be next on each leash. What many leashes ask is found once."""
    found: dict[Leash, Tensor] = {}
    rows: list[Tensor] = []
    never = torch.zeros_like(text)
    for leash in leashes:
        if leash.full:
            rows.append(never)
            continue
        if leash not in found:
            allowed = leash.allowed(len(text))
            found[leash] = text if allowed is None else text & allowed.to(text.device)
        rows.append(found[leash])
    return torch.stack(rows)


@dataclass
class Page:
    """One text, and what has been written into its gaps so far, with the log-probability of each word."""

    ids: list[int]
    holes: list[Hole]
    specials: Specials
    decode: Decode
    room: int
    device: torch.device
    words: list[list[int]]
    scores: list[list[float]]

    def copy(self) -> "Page":
        """The same text, to be gone on with in another way."""
        return replace(self, words=[[*w] for w in self.words], scores=[[*s] for s in self.scores])

    def write(self, gap: int, word: int, score: float) -> None:
        """One word more in a gap."""
        self.words[gap].append(word)
        self.scores[gap].append(score)

    def between(self, start: int, stop: int) -> list[int]:
        """Columns [start, stop) as text: gaps with what is written in them; ids that the model lacks left out."""
        text: list[int] = []
        column = start
        opens = {hole.begin: (number, hole) for number, hole in enumerate(self.holes)}
        while column < stop:
            if column in opens:
                number, hole = opens[column]
                text += self.words[number]
                column += hole.size
                continue
            if not 0 < self.specials.size <= self.ids[column]:
                text.append(self.ids[column])
            column += 1
        return text

    def left(self, gap: int) -> list[int]:
        """All text left of a gap and in it."""
        hole = self.holes[gap]
        return self.between(0, hole.end)

    def right(self, gap: int) -> list[int]:
        """The text right of a gap as far as the next one."""
        follows = self.holes[gap + 1].begin if gap + 1 < len(self.holes) else len(self.ids)
        return self.between(self.holes[gap].end, follows)

    def is_last(self, gap: int) -> bool:
        """Whether the gap is one of unknown length that ends the text; -1 is none."""
        return gap >= 0 and not self.holes[gap].known and self.holes[gap].end == len(self.ids)

    def _later(self, gap: int) -> int:
        """How many tokens the gaps after this one need at least, of those whose number is not known."""
        slots = [hole.slot for hole in self.holes[gap + 1 :] if not hole.known and hole.slot]
        lengths = (self.decode.constraints[slot - 1].lengths(LONG) for slot in slots)
        return sum(next(iter(found), 0) for found in lengths)

    def leash(self, gap: int) -> Leash:
        """What may be written into a gap whose left neighbours are written. ValueError where nothing can be."""
        hole = self.holes[gap]
        constraint = self.decode.constraints[hole.slot - 1] if hole.slot else Constraint()
        if constraint.automaton is None and self.decode.text is not None:
            constraint = replace(constraint, automaton=self.decode.text)
        state = 0
        if hole.known:
            opens = {column for other in self.holes for column in range(other.begin, other.end)}
            rest = tuple(-1 if c in opens else self.ids[c] for c in range(hole.begin, hole.stop))
            for token in self.between(hole.first, hole.begin):
                state = _after(constraint, state, token)
            return Leash(hole.size, True, constraint, state, rest)
        used = sum(len(w) for w, other in zip(self.words[:gap], self.holes, strict=False) if not other.known)
        room = min(max(self.room - used - self._later(gap), 0), LONG)
        # what is asked for counts for more than what is usual: then the shortest that will do
        lengths = constraint.lengths(min(self.decode.max_gap, room)) or constraint.lengths(room)[:FEW]
        if not lengths:
            raise ValueError(
                f"no text of up to {room} tokens keeps what is asked of a gap; shorten the text, or ask for less"
            )
        return Leash(lengths[-1], False, constraint, state)


def pages_of(xt: Tokens, holes: list[list[Hole]], specials: Specials, decode: Decode) -> list[Page]:
    """The rows of xt as pages, nothing written yet."""
    sizes = xt.valid.sum(1)
    room, ids = decode.room(sizes).tolist(), xt.ids.tolist()
    return [
        Page(
            ids[r][:n],
            holes[r],
            specials,
            decode,
            room[r],
            xt.ids.device,
            [[] for _ in holes[r]],
            [[] for _ in holes[r]],
        )
        for r, n in enumerate(sizes.tolist())
    ]


def draw_of(xt: Tokens, pages: list[Page], specials: Specials) -> Draw:
    """The complete texts. What was written under a slot is counted and sealed, as is the token left of its marker: its
    length is decided once."""
    marker = (xt.ids == specials.gap) & xt.valid
    counts = torch.ones_like(xt.ids).masked_fill(~xt.valid, 0)
    lengths = [len(w) for p in pages for w, hole in zip(p.words, p.holes, strict=True) if not hole.known]
    counts[marker] = torch.tensor(lengths, dtype=counts.dtype, device=counts.device)
    ruled = marker & (xt.slot > 0)
    before = torch.zeros_like(ruled)
    before[:, :-1] = ruled[:, 1:]
    x0, place = open_gaps(xt.with_(counted=xt.counted | ruled, sealed=xt.sealed | ruled | before), counts, specials)
    seen = xt.ids.gather(1, place)
    where = ((seen == specials.gap) | (seen == specials.mask)) & x0.valid
    words = torch.tensor([w for p in pages for part in p.words for w in part], dtype=torch.int64, device=place.device)
    sure = torch.tensor([s for p in pages for part in p.scores for s in part], device=place.device)
    sure = sure.to(x0.score.dtype)
    log_prob = torch.zeros_like(x0.score).masked_scatter(where, sure)
    x0 = x0.with_(ids=x0.ids.masked_scatter(where, words), score=x0.score.masked_scatter(where, sure))
    return Draw(x0, place, log_prob)


class Lie(NamedTuple):
    """Where the words of a gap are in the truth: its elements [first, stop), and the element left of it."""

    first: int
    stop: int

    @property
    def left(self) -> int:
        """The element that the gap's end is booked on."""
        return max(self.first - 1, 0)


def lies_of(truth: Draw, holes: list[list[Hole]]) -> list[list[Lie]]:
    """Where the words of each gap of each row are."""
    result = []
    for row, places in enumerate(truth.place.tolist()):
        places = places[: int(truth.x0.valid[row].sum())]
        firsts = [sum(p < hole.begin for p in places) for hole in holes[row]]
        stops = [sum(p < hole.end for p in places) for hole in holes[row]]
        result.append([Lie(*ends) for ends in zip(firsts, stops, strict=True)])
    return result
