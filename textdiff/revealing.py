"""Rules that say which hidden tokens are revealed next, by what the model says of them: confidence, margin, entropy, place.

As noise: eps' is x_t's own, dealt out among the hidden tokens (`ranked`: as many are revealed as the noise says, the best
first), or drawn so that just the chosen ones are above beta_s (`threshold`, `within_budget`, `most_likely`). Where the
order looks at x_t alone, before a word is drawn, a perfect denoiser that reveals one token a step still samples the data.
Where it looks at the probability of the word already drawn, as MaskGIT and LLaDA do, the samples are biased whatever the
model.
"""

import math
from collections.abc import Callable
from functools import partial as bind

import torch
from torch import Tensor

from textdiff import drawing
from textdiff.keys import Key
from textdiff.posterior import Draw, Measure
from textdiff.process.base import Noise, Process, State
from textdiff.rules import Rule, by_noise, until_closed
from textdiff.validation import check_integer, check_number

Order = Callable[
    [Draw, Tensor, Key], Tensor
]  # (draw, places (B, M) that count, key) -> score (B, M), the largest first
Pick = Callable[[Draw, Tensor, Key], Tensor]  # -> (B, M) bool, which of the places are revealed


def drawn(draw: Draw, where: Tensor, key: Key) -> Tensor:
    """The log-probability of the word that was drawn (MaskGIT, arXiv:2202.04200; LLaDA, arXiv:2502.09992). Biased."""
    return draw.drawn(where).log_prob.masked_fill(~where, 0.0)  # elsewhere words may be drawn or not


def before(measure: Measure) -> Order:
    """A figure of what the model says, before a word is drawn: the order depends on x_t alone."""
    return lambda draw, where, key: draw.measured(measure, where)


probability, margin, certainty = before(drawing.probability), before(drawing.margin), before(drawing.certainty)


def at_random(draw: Draw, where: Tensor, key: Key) -> Tensor:
    """Any order (any-order autoregression)."""
    return key.uniform(where.shape[1])


def leftmost(draw: Draw, where: Tensor, key: Key) -> Tensor:
    """From left to right."""
    return -torch.arange(where.shape[1], device=where.device).expand(where.shape).double()


def ranked(order: Order = drawn, block: int = 0) -> Rule:
    """The posterior's noise, dealt out so that what has the largest score is revealed first.

    As many tokens are revealed as the posterior would; only which ones is changed. block: of the tokens that are the model's
    to write, so many after one another are all revealed before any of the next so many (semi-autoregressive); 0 for all.
    """
    _check_block(block)
    return Rule(bind(_ranked, order, block), by_noise)


def _ranked(order: Order, block: int, process: Process, xt: State, draw: Draw, t: Tensor, s: Tensor, key: Key) -> Noise:
    noise, hidden = process.infer(xt, draw, t, key), process.hidden(xt, draw)
    shown, lane = process.shown(draw.x0, noise, s), _turns(draw, block)
    due = (hidden if shown is None else hidden & shown).sum(1, keepdim=True)
    last = lane.masked_fill(~hidden, _FAR).sort(1).values.gather(1, (due - 1).clamp_min(0))
    near = hidden & (lane <= last) & (due > 0)  # no other one can be revealed in this step
    return process.rank(noise, xt, draw, order(draw, near, key.fold(_ORDER)), lane)


def revealing(pick: Pick, block: int = 0) -> Rule:
    """Reveal what `pick` picks of the hidden tokens, of those in the first block that has any. At s = 0 all are revealed."""
    _check_block(block)
    return Rule(bind(_revealing, pick, block), until_closed)


def _revealing(
    pick: Pick, block: int, process: Process, xt: State, draw: Draw, t: Tensor, s: Tensor, key: Key
) -> Noise:
    noise, hidden, lane = process.infer(xt, draw, t, key.fold(0)), process.hidden(xt, draw), _turns(draw, block)
    near = hidden & (lane == lane.masked_fill(~hidden, _FAR).amin(1, keepdim=True))
    now = near & pick(draw, near, key.fold(1)) | (s == 0)[:, None]
    return process.deal(noise, draw.x0, hidden & ~now, s, key.fold(2))


def threshold(least: float, block: int = 0) -> Rule:
    """All words with at least this probability, and the most probable one (Fast-dLLM, arXiv:2505.22618)."""
    if not 0 <= check_number("threshold", least) <= 1:
        raise ValueError(f"threshold {least} is not a probability; 1 reveals one word a step, 0 all at once")

    def pick(draw: Draw, where: Tensor, key: Key) -> Tensor:
        sure = draw.measured(drawing.probability, where)
        return (sure >= math.log(least) if least else where) | _best(sure, where, 1)

    return revealing(pick, block)


def within_budget(gamma: float, block: int = 0) -> Rule:
    """The surest words, as many as have entropies that add up to gamma nats without the last one's: at least one.

    Their joint entropy then differs from the sum of the single ones, by which they are drawn, by no more than gamma
    (Ben-Hamu et al., "Accelerated sampling from masked diffusion models via entropy bounded unmasking", arXiv:2505.24857).
    """
    if check_number("gamma", gamma) < 0:
        raise ValueError(f"gamma {gamma} is no number of nats from 0 on; 0 reveals one word a step, or certain ones")

    def pick(draw: Draw, where: Tensor, key: Key) -> Tensor:
        entropy = -draw.measured(drawing.certainty, where)
        ascending, order = entropy.double().masked_fill(~where, math.inf).sort(dim=1, stable=True)
        spent = ascending.masked_fill(ascending == math.inf, 0.0).cumsum(1)
        fits = spent - ascending.masked_fill(ascending == math.inf, 0.0) <= gamma
        return torch.zeros_like(where).scatter(1, order, fits)

    return revealing(pick, block)


def most_likely(count: int, order: Order = probability, block: int = 0) -> Rule:
    """The `count` best of each step (LLaDA's and Dream's fixed number of words a step)."""
    if check_integer("count", count) < 1:
        raise ValueError(f"{count} words a step would never end; give 1 or more")
    return revealing(lambda draw, where, key: _best(order(draw, where, key), where, count), block)


def _best(score: Tensor, where: Tensor, count: int) -> Tensor:
    """(B, M) bool, the places `where` with the `count` largest scores of each row."""
    best = score.double().masked_fill(~where, -math.inf).topk(min(count, score.shape[1]), 1).indices
    return torch.zeros_like(where).scatter(1, best, True) & where


_ORDER = 1 << 20  # a use of a key that no process has
_FAR = torch.iinfo(torch.int64).max
_LARGEST = 1 << 32  # tokens of a block: longer than any text, and a number that tensors can divide by


def lanes(draw: Draw, block: int) -> Tensor:
    """(B, M) the number of the block that each element is in, counted over what is not the user's; 0 without blocks.

    Counted anew in each block of the model's, where it has some (`Draw.lane`), so that none is in two of these.
    """
    free = (draw.x0.valid & ~draw.x0.fixed).long()
    if not block:
        return torch.zeros_like(free)
    before = free.cumsum(1) - free
    if draw.lane is None:
        return before.div(block, rounding_mode="floor")
    starts = torch.ones_like(draw.x0.fixed)
    starts[:, 1:] = draw.lane[:, 1:] != draw.lane[:, :-1]
    inside = before - before.masked_fill(~starts, 0).cummax(1).values
    return draw.lane * free.shape[1] + inside.div(block, rounding_mode="floor")


def _turns(draw: Draw, block: int) -> Tensor:
    """(B, M) in which turn each element comes: by the blocks of the rule, or where it has none by those of the model."""
    return lanes(draw, block) if block or draw.lane is None else draw.lane


def _check_block(block: int) -> None:
    if check_integer("block", block, most=_LARGEST) < 0:
        raise ValueError(f"block {block} is negative; 0 is one block for the whole text")
