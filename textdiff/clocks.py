"""Which rows of a batch go through the loop together, each at a clock of its own.

A row's number of turns is its own, whatever it is batched with (`sampler.Clock`), and so are its times and its random
numbers: what shares a run is a matter of speed alone.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from textdiff.tokens import Specials, Tokens

TOKENS = 2048  # at most so many are filled together on a CPU
TURNS = 64  # at most so many, where every token has one of its own


def clocks(x: Tokens, specials: Specials, steps: int | None) -> Tensor:
    """(B,) how many turns each row takes, whatever it is batched with."""
    if steps is not None:
        return torch.full((len(x),), steps, device=x.ids.device)
    return (x.ids == specials.mask).sum(1).clamp(1, TURNS)


def portions(x: Tokens) -> Iterator[Tensor]:
    """Rows that are filled together, those of like size: on a CPU no more than its cache is good for."""
    sizes = x.valid.sum(1)
    order = sizes.argsort(stable=True)
    if x.ids.device.type != "cpu":
        yield order
        return
    begin, rising = 0, sizes[order].tolist()
    while begin < len(rising):
        end = begin + 1
        while end < len(rising) and (end + 1 - begin) * rising[end] <= TOKENS:
            end += 1
        yield order[begin:end]
        begin = end


def narrowed(x: Tokens, specials: Specials) -> Tokens:
    """x without columns that are padding in all rows."""
    width = int(x.valid.sum(1).max())
    return x.take(torch.arange(width, device=x.ids.device).expand(len(x), -1), specials.pad)
