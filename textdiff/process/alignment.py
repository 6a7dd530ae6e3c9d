"""Which element of x_0 is seen where in x_t: all the ways y may have come from x_0, and one of them drawn as it is likely.

    F(i, j) = F(i-1, j-1) match(i, j) + F(i-1, j) drop(i, j) + F(i, j-1) insert(i, j)

sums over the alignments of the first i elements of x_0 with the first j of y (a pair-HMM: Durbin, Eddy, Krogh, Mitchison,
"Biological sequence analysis", 1998); going back from the end, each move in proportion to its part of the sum, draws one.
With weights 0 and 1 and no insertions F counts the embeddings of y in x_0, and the draw is uniform over them: the exact
posterior of deletion, where a search from the left is not.

In float64 logarithms, because counts outgrow every float: a logarithm is off by some 1e-16 of itself at each of its
i + j sums, the chance of a draw by some 1e-13 of itself on texts of hundreds of tokens.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from textdiff.keys import Key
from textdiff.tokens import Tokens

MATCH, DROP = 0, 1  # else an insertion


class Weights(NamedTuple):
    """Logarithms of what each move weighs, float64; -inf where it cannot be.

    match: (B, L, N), x_0's element i is seen as y's j.
    drop: (B, L, N + 1), x_0's element i is not seen, where j elements of y come before.
    insert: (B, L + 1, N), y's element j is none of x_0's, where i elements of x_0 come before.
    """

    match: Tensor
    drop: Tensor
    insert: Tensor


class Alignment(NamedTuple):
    """column (B, L): where in y each element of x_0 is seen, or the last column before it (-1: none); seen (B, L) bool."""

    column: Tensor
    seen: Tensor


class Alignments:
    """All alignments of texts of `sizes` (B,) with y of `others` (B,) elements.

    total: (B,) log of the sum of their weights, each the product of its moves'; -inf where there is none.
    """

    def __init__(self, weights: Weights, sizes: Tensor, others: Tensor) -> None:
        self.length = weights.match.shape[1]
        if 0 in weights.match.shape[1:]:  # room for an element that never is
            weights = Weights(*(pad(part, (0, 1, 0, 1), value=-torch.inf) for part in weights))
        self.weights, self.sizes, self.others = weights, sizes, others
        self.table = _forward(weights)  # (L + N + 1, B, L + 1): F(i, d - i) at [d, :, i]
        self.total = self._at(sizes, others)

    def draw(self, key: Key) -> Alignment:
        """One alignment of each row, as likely as its share of the total; of no meaning where there is none."""
        i, j = self.sizes.clone(), self.others.clone()
        rows = torch.arange(len(i), device=i.device)
        column = torch.zeros(self.weights.match.shape[:2], dtype=torch.int64, device=i.device)
        seen = torch.zeros_like(column, dtype=torch.bool)
        turns = self.table.shape[0] - 1
        for u in key.uniform(turns).T:
            move = self._choose(i, j, u)
            element = rows[(i > 0) & (move <= DROP)]
            at = i[element] - 1
            column[element, at] = j[element] - 1
            seen[element, at] = move[element] == MATCH
            going = (i > 0) | (j > 0)
            i, j = i - (going & (move <= DROP) & (i > 0)).long(), j - (going & (move != DROP) & (j > 0)).long()
        return Alignment(column[:, : self.length], seen[:, : self.length])

    def _choose(self, i: Tensor, j: Tensor, u: Tensor) -> Tensor:
        """(B,) the last move of an alignment of the first i and j elements."""
        rows, up, left = torch.arange(len(i), device=i.device), (i - 1).clamp_min(0), (j - 1).clamp_min(0)
        never = torch.full_like(u, -torch.inf)
        moves = torch.stack(
            [
                torch.where((i > 0) & (j > 0), self._at(up, left) + self.weights.match[rows, up, left], never),
                torch.where(i > 0, self._at(up, j) + self.weights.drop[rows, up, j], never),
                torch.where(j > 0, self._at(i, left) + self.weights.insert[rows, i, left], never),
            ],
            1,
        )
        share = (moves - moves.amax(1, keepdim=True).clamp_min(-1e300)).exp()
        cdf = share.cumsum(1)
        move = (cdf[:, :2] <= (u * cdf[:, 2])[:, None]).sum(1)
        possible = share.gather(1, move[:, None])[:, 0] > 0  # rounding may lead beyond the last one that is
        return torch.where(possible, move, share.argmax(1))

    def _at(self, i: Tensor, j: Tensor) -> Tensor:
        return self.table[i + j, torch.arange(len(i), device=i.device), i]


def _forward(weights: Weights) -> Tensor:
    """F along its diagonals i + j = d: as many steps as both texts have elements, each for a whole diagonal at once."""
    rows, length, other = weights.match.shape
    never = torch.full((rows, 1), -torch.inf, dtype=torch.float64, device=weights.match.device)
    i = torch.arange(length + 1, device=never.device)
    table = [torch.cat([torch.zeros_like(never), never.expand(-1, length)], 1)]
    for d in range(1, length + other + 1):
        j = d - i
        left = (j - 1).clamp(0, other - 1)
        insert = (table[-1] + weights.insert[:, i, left]).masked_fill(j < 1, -torch.inf)
        drop = torch.cat([never, table[-1][:, :-1] + weights.drop[:, i[1:] - 1, j[1:].clamp(0, other)]], 1)
        total = torch.logaddexp(insert, drop)
        if d > 1:
            match = torch.cat([never, table[-2][:, :-1] + weights.match[:, i[1:] - 1, left[1:]]], 1)
            total = torch.logaddexp(total, match.masked_fill(j < 1, -torch.inf))
        table.append(total.masked_fill((j < 0) | (j > other), -torch.inf))
    return torch.stack(table)


def embeddings(match: Tensor, drop: Tensor, sizes: Tensor, others: Tensor) -> Alignments:
    """Alignments that all weigh the same: where `match` (B, L, N) may be, and `drop` (B, L, N + 1), both bool."""
    rows, length, other = match.shape
    insert = torch.full((rows, 1, 1), -torch.inf, dtype=torch.float64, device=match.device)
    weights = Weights(log_of(match), log_of(drop), insert.expand(-1, length + 1, other))
    return Alignments(weights, sizes, others)


def count_embeddings(x0: Tensor, y: Tensor, sizes: Tensor | None = None, others: Tensor | None = None) -> Tensor:
    """(B,) float64 log of the number of ways y (B, N) is a subsequence of x0 (B, L); -inf where it is none.

    sizes, others: (B,) how many ids of each row of x0 and of y count; all, unless they are given.
    """
    return _plain(x0, y, sizes, others).total


def draw_embedding(
    x0: Tensor, y: Tensor, key: Key, sizes: Tensor | None = None, others: Tensor | None = None
) -> tuple[Alignment, Tensor]:
    """A uniform draw of the ways in which y (B, N) is a subsequence of x0 (B, L), and in which rows (B,) there is one."""
    ways = _plain(x0, y, sizes, others)
    return ways.draw(key), ways.total > -torch.inf


def _plain(x0: Tensor, y: Tensor, sizes: Tensor | None, others: Tensor | None) -> Alignments:
    rows, length, other = len(x0), x0.shape[1], y.shape[1]
    sizes = torch.full((rows,), length, device=x0.device) if sizes is None else sizes
    others = torch.full((rows,), other, device=x0.device) if others is None else others
    everywhere = torch.ones(1, 1, 1, dtype=torch.bool, device=x0.device).expand(rows, length, other + 1)
    return embeddings(x0[:, :, None] == y[:, None, :], everywhere, sizes, others)


def log_of(flag: Tensor) -> Tensor:
    """0 where the flag is set, -inf elsewhere, float64."""
    return torch.zeros(flag.shape, dtype=torch.float64, device=flag.device).masked_fill(~flag, -torch.inf)


class Seen(NamedTuple):
    """A state without its markers. y: what is left; column (B, N): where it was; marked (B, N): a marker stood after it."""

    y: Tokens
    column: Tensor
    marked: Tensor

    def drops(self, loose: Tensor) -> Tensor:
        """(B, L, N + 1) bool: elements of x_0 that may go, `loose` (B, L), go only where there was a marker."""
        first = torch.zeros_like(self.marked[:, :1])
        return loose[:, :, None] & torch.cat([first, self.marked], 1)[:, None, :]

    def agree(self, x0: Tokens) -> Tensor:
        """(B, L, N) bool: x_0's element and y's are the same one as far as their flags go."""
        pairs = ((getattr(x0, f), getattr(self.y, f)) for f in ("doc", "fixed", "counted", "sealed"))
        same = [mine[:, :, None] == other[:, None, :] for mine, other in pairs]
        return torch.stack(same).all(0)

    def place(self, alignment: Alignment) -> Tensor:
        """(B, L) the columns of the state: of a missing element that of its marker."""
        return self.column.gather(1, alignment.column.clamp_min(0)) + (~alignment.seen).long()


def closed(x0: Tokens, loose: Tensor) -> Tensor:
    """(B,) bool: no sealed place lies before a token that may go, `loose` (B, L), where a marker would say that it went.

    A condition on x_0 alone: a step that is exact for some x_t and the baseline for others would keep no law.
    """
    before = torch.zeros_like(loose)
    before[:, :-1] = loose[:, 1:]
    return ~(before & x0.joined() & x0.sealed).any(1)


def without_markers(xt: Tokens, gap: int, filler: int) -> Seen:
    """What a state shows besides its markers."""
    kept = xt.valid & (xt.ids != gap)
    column = torch.argsort((~kept).long(), dim=1, stable=True)[:, : int(kept.sum(1).max())]
    y = xt.take(column.masked_fill(~kept.gather(1, column), -1), filler)
    following = torch.cat([xt.ids == gap, torch.zeros_like(kept[:, :1])], 1)
    return Seen(y, column, following.gather(1, column + 1) & y.valid)
