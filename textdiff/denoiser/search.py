"""How many tokens belong in a gap, asked of a masked language model that has no word for it.

    p(n | context) ~ p(n) p(context | n masks)
    log p(context | n masks) = 1/2 sum_i log q(r_i | left, n masks, r_1 .. r_(i-1)) + 1/2 (left and right exchanged)

Bayes turns the question round: the gap is opened to n masks, the words beside it are hidden, too, and the model says them
again, nearest first, reading what it has said. They are the same words for every n, so nothing favours short gaps; the
probability of the words written into the gap, summed or averaged, is nearly blind to n. Each side alone estimates the same
posterior, and is exact for a model whose conditionals agree with each other: hence the mean of the two. Nothing is fitted
to the model at hand; of the prior see `prior`. Measured in `benchmarks/lengths.py`.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from textdiff.constraints import Constraint
from textdiff.denoiser.words import own
from textdiff.drawing import draw_tokens
from textdiff.keys import Key
from textdiff.posterior import Decode
from textdiff.tokens import Specials, Tokens, repeat

LONGEST = 8  # tokens in a gap of which the user says nothing
WITNESSES, HIDDEN = 4, 8  # words on each side that are said again, and how many are hidden while they are
LONG = 512  # tokens, where a model does not say how many it reads
MIDDLE = 3  # tokens that a gap has while another one is looked at
ROWS, TOKENS = 32, 8192  # at most so many rows and tokens go through the model at once


class Speaker(Protocol):
    """A masked language model, as the search asks it."""

    specials: Specials

    @property
    def longest(self) -> int | None:
        """How many tokens it reads."""

    def logits(self, x: Tokens, where: Tensor) -> Tensor:
        """(S, V) at `where` (B, L)."""


def search(denoiser: Speaker, x: Tokens, decode: Decode, key: Key) -> Tokens:
    """x (B, L) with every marker opened to as many masks as its gap is to have tokens: (B, M).

    The masks are `counted` and keep their `slot`: what [GAP:n] gives. A gap has the lengths that its constraint allows, up
    to `decode.max_gap` unless it asks for more; without a constraint 1 to 8. At temperature 0 it gets the most probable
    one, else one drawn from `key` (B rows). At most `decode.max_calls` rows a text go through the model: the fewer, the
    fewer words bear witness; where they are fewer than the lengths, some lengths alone are tried, with a straight line
    between them. ValueError where no allowed lengths fit what the model reads.
    """
    marks = (x.ids == denoiser.specials.gap) & x.valid
    counts = x.valid.long()
    u = key.uniform(x.ids.shape[1])
    rows = marks.any(1).nonzero()[:, 0].tolist()
    asked = [_ask(denoiser, x[row : row + 1], decode) for row in rows]
    scores = iter(_say(denoiser, [look for one in asked for look in one.looks], decode))
    for row, one in zip(rows, asked, strict=True):
        said = [next(scores) for _ in one.looks]
        # where the deadline left no time for all looks, their lengths would not compare: the prior alone decides
        found = one.evidence([score for score in said if score is not None] if None not in said else [0.0] * len(said))
        counts[row, one.columns] = one.choose(found, decode, u[row, one.columns]).to(counts)
    return opened(x, counts, denoiser.specials)


def opened(x: Tokens, counts: Tensor, specials: Specials) -> Tokens:
    """x with counts (B, L) masks in place of each marker, as if the user had given these lengths."""
    marks = x.ids == specials.gap
    before = marks.roll(-1, 1)
    before[:, -1] = False  # nothing more can be missing after the token left of a gap
    x = x.with_(
        ids=x.ids.masked_fill(marks, specials.mask),
        counted=x.counted | marks,
        sealed=x.sealed | marks | before,
    )
    return x.take(repeat(counts), specials.pad)


def prior(lengths: Tensor) -> Tensor:
    """log p(n) up to a constant, where nothing is known: after every token comes another one in four cases of five."""
    return lengths.double() * math.log(0.8)


def _feasible(constraint: Constraint | None, decode: Decode) -> list[int]:
    """The numbers of tokens that a gap may have. ValueError where there is none."""
    limits = constraint or Constraint(low=1)
    usual = max(LONGEST, limits.low + LONGEST - 1) if limits.high is None else limits.high
    # what is asked for counts for more than what is usual
    lengths = limits.decided(min(usual, decode.max_gap)) or limits.decided(decode.longest or LONG)[:LONGEST]
    if not lengths:
        raise ValueError("no number of tokens that the model reads fits what is asked of a gap; ask for less")
    return lengths


@dataclass(frozen=True)
class _Asked:
    """What is asked of one text: the columns (G,) of its gaps, the lengths each may have, those of them that are tried, how
    many tokens there is room for, and the rows for the model."""

    columns: Tensor
    allowed: list[list[int]]
    tried: list[list[int]]
    room: int
    looks: "list[_Look]"

    def evidence(self, scores: list[float]) -> list[Tensor]:
        """log p(context | n masks) at every length tried of every gap, from what each look said."""
        found = {(gap, n): 0.0 for gap, lengths in enumerate(self.tried) for n in lengths}
        for look, score in zip(self.looks, scores, strict=True):
            found[look.gap, look.length] += score / look.sides
        return [
            torch.tensor([found[gap, n] for n in lengths], dtype=torch.float64)
            for gap, lengths in enumerate(self.tried)
        ]

    def choose(self, found: list[Tensor], decode: Decode, u: Tensor) -> Tensor:
        """(G,) how many tokens each gap gets, drawn by u (G,)."""
        chosen: list[int] = []
        for gap, lengths in enumerate(self.allowed):
            rest = sum(map(min, self.allowed[gap + 1 :]))
            n = torch.tensor([k for k in lengths if sum(chosen) + k + rest <= self.room])
            score = prior(n) + _between(n, self.tried[gap], found[gap])
            chosen.append(int(n[draw_tokens(score[None], u[gap : gap + 1].cpu(), decode)[0]]))
        return torch.tensor(chosen)


def _ask(denoiser: Speaker, text: Tokens, decode: Decode) -> _Asked:
    """What is asked of one text (1, L): how it is padded and batched is none of its business."""
    specials = denoiser.specials
    text = text.take(torch.arange(int(text.valid.sum()), device=text.ids.device)[None], specials.pad)
    columns = (text.ids[0] == specials.gap).nonzero()[:, 0]
    slots = text.slot[0, columns].tolist()
    allowed = [_feasible(decode.constraints[slot - 1] if slot else None, decode) for slot in slots]
    limits = [limit for limit in (denoiser.longest, decode.longest) if limit is not None]
    size = text.ids.shape[1] - len(columns)
    room = min(limits, default=size + sum(map(max, allowed))) - size
    allowed = _fitting(allowed, room, size)
    tried, each = _plan(allowed, decode.max_calls)
    return _Asked(columns, allowed, tried, room, _looked(text, columns, allowed, tried, each, room, specials))


def _fitting(allowed: list[list[int]], room: int, size: int) -> list[list[int]]:
    """The lengths that leave the other gaps their shortest ones. ValueError where even those do not fit."""
    least = sum(map(min, allowed))
    if least > room:
        raise ValueError(
            f"the text has {size} tokens and its {len(allowed)} gaps at least {least}, the model reads {size + room}; "
            "shorten the text or split it"
        )
    return [[n for n in lengths if least - min(lengths) + n <= room] for lengths in allowed]


def _plan(allowed: list[list[int]], calls: int) -> tuple[list[list[int]], int]:
    """Which lengths of each gap are looked up, and in how many rows each, so that `calls` rows are enough."""
    choices = [lengths if len(lengths) > 1 else [] for lengths in allowed]
    each = calls // max(sum(map(len, choices)), 1)
    if each:
        return choices, each
    share = calls // max(sum(map(bool, choices)), 1)
    return [_thinned(lengths, share) for lengths in choices], 1


def _thinned(lengths: list[int], count: int) -> list[int]:
    """At most `count` of them, from the first to the last, at distances that grow; none where there is no choice."""
    if count >= len(lengths):
        return lengths
    if count < 2:
        return []
    grid = torch.logspace(0, 1, count, base=len(lengths), dtype=torch.float64).round().long() - 1
    return [lengths[i] for i in grid.unique().tolist()]


def _between(n: Tensor, tried: list[int], found: Tensor) -> Tensor:
    """The evidence at lengths n (N,) from that at the lengths tried, on a straight line between neighbours."""
    if not tried:
        return torch.zeros(len(n), dtype=torch.float64)
    at = torch.tensor(tried)
    right = torch.searchsorted(at, n).clamp(1, len(at) - 1)
    share = (n - at[right - 1]) / (at[right] - at[right - 1])
    return found[right - 1] + share * (found[right] - found[right - 1])


@dataclass(frozen=True)
class _Look:
    """A row for the model, `text` (1, M): with `length` tokens in `gap`, what is asked of all that is hidden."""

    gap: int
    length: int
    sides: int
    text: Tokens
    hidden: Tensor
    asked: Tensor


def _looked(text: Tokens, columns: Tensor, allowed: list[list[int]], tried: list[list[int]], each: int, room: int,
            specials: Specials) -> list[_Look]:  # fmt: skip
    """The rows that say log p(context | n masks) at every length tried of every gap, the others middling meanwhile."""
    least = torch.tensor([min(lengths) for lengths in allowed])
    middle = torch.tensor([min(lengths, key=lambda n: abs(n - MIDDLE)) for lengths in allowed])
    rows: list[_Look] = []
    for gap, lengths in enumerate(tried):
        sides = _sides(text, int(columns[gap]), specials)[:each]
        for n in lengths:
            sizes = middle.clone()
            sizes[gap] = n
            if int(sizes.sum()) > room:
                sizes = least.clone()
                sizes[gap] = n
            rows += _looks(text, columns, sizes, gap, sides, each // max(len(sides), 1), specials)
    return rows


def evidence(denoiser: Speaker, text: Tokens, columns: Tensor, allowed: list[list[int]], tried: list[list[int]],
              each: int, room: int) -> list[Tensor]:  # fmt: skip
    """log p(context | n masks) of one text (1, L), at every length tried of every gap."""
    one = _Asked(columns, allowed, tried, room, _looked(text, columns, allowed, tried, each, room, denoiser.specials))
    return one.evidence([score for score in _say(denoiser, one.looks, Decode()) if score is not None])


def _sides(text: Tokens, column: int, specials: Specials) -> list[list[int]]:
    """Columns of the words right of a marker, nearest first, and of those left of it; a side without words is left out."""
    silent = torch.tensor([*specials.not_text, specials.bos, specials.mask, specials.gap], device=text.ids.device)
    words = (~torch.isin(text.ids[0], silent) & (text.doc[0] == text.doc[0, column])).nonzero()[:, 0].tolist()
    right, left = [word for word in words if word > column], [word for word in reversed(words) if word < column]
    return [side[:HIDDEN] for side in (right, left) if side]


def _looks(text: Tokens, columns: Tensor, sizes: Tensor, gap: int, sides: list[list[int]], count: int,
           specials: Specials) -> Iterator[_Look]:  # fmt: skip
    """On every side at most `count` words, one after the other, nearest first: each is hidden with all that lie beyond."""
    counts = torch.ones_like(text.ids)
    counts[0, columns] = sizes.to(counts)
    index, whole = repeat(counts), opened(text, counts, specials)
    for side in sides:
        turn = torch.full_like(text.ids, -1)
        turn[0, side] = torch.arange(len(side), device=turn.device)
        turn = turn.gather(1, index)
        for now in range(min(count, WITNESSES, len(side))):
            yield _Look(gap, int(sizes[gap]), len(sides), whole, turn >= now, turn == now)


def _say(denoiser: Speaker, rows: list[_Look], decode: Decode) -> list[float | None]:
    """What each row says of the words it is asked for, summed. Rows of like width go together, whatever their texts.

    None for rows that the deadline left no time for.
    """
    sizes = [look.text.ids.shape[1] for look in rows]
    order = sorted(range(len(rows)), key=lambda row: sizes[row])
    scores: list[float | None] = [None] * len(rows)
    begin = 0
    while begin < len(order) and not decode.expired:
        end = begin + 1
        while end < len(order) and end - begin < ROWS and (end + 1 - begin) * sizes[order[end]] <= TOKENS:
            end += 1
        said = _said(denoiser, [rows[row] for row in order[begin:end]])
        for row, score in zip(order[begin:end], said, strict=True):
            scores[row] = score
        begin = end
    return scores


def _said(denoiser: Speaker, part: list[_Look]) -> list[float]:
    """The same of a batch."""
    specials = denoiser.specials
    ids, doc = _rows([look.text.ids for look in part], specials.pad), _rows([look.text.doc for look in part], -1)
    hidden, asked = _rows([look.hidden for look in part], 0), _rows([look.asked for look in part], 0)
    state = Tokens.of(ids.masked_fill(hidden, specials.mask), doc, torch.zeros_like(hidden))
    said = own(denoiser.logits(state, asked), ids[asked])
    return said.new_zeros(len(part)).index_add(0, asked.nonzero()[:, 0], said).tolist()


def _rows(parts: list[Tensor], fill: int) -> Tensor:
    """(S, M): rows (1, m), padded on the right."""
    return pad_sequence([part[0] for part in parts], batch_first=True, padding_value=fill)
