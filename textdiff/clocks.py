"""Which rows of a batch go through the loop together, each at a clock of its own.

A row's number of turns is its own, whatever it is batched with (`sampler.Clock`), and so are its times and its random
numbers: what shares a run is a matter of speed alone.
"""

import math
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor

from textdiff.rules import Rule, until_closed
from textdiff.tokens import Specials, Tokens

TOKENS = 2048  # at most so many are filled together on a CPU
MOST = 10**6  # steps that can be counted; "inf" is more
TURNS = 64  # at most so many, where every token has one of its own
UNKNOWN = 16  # tokens that a gap counts for where its length is not known
SHARED = 0.5  # others that a word is drawn together with, on average, where steps are chosen here
Steps = float | Literal["auto"] | None


def steps_of(value: Any) -> Steps:
    """num_steps as users give it: a number, "inf" (one word after the other), "auto" (see `clocks`), or None."""
    if value in ("auto", None):
        return value
    try:
        steps = math.nan if isinstance(value, bool | bytes) else float(value)
    except (TypeError, ValueError):
        steps = math.nan
    if not steps >= 1 or steps != math.inf and (steps % 1 or steps > MOST):
        raise ValueError(
            f"num_steps must be a whole number from 1, which fills all at once, to {MOST:,}, or auto, or inf; got {value}"
        )
    return steps


def clocks(x: Tokens, specials: Specials, steps: Steps, rule: Rule, joint: bool) -> Tensor:
    """(B,) how many turns each row takes, whatever it is batched with. None: one for every hidden token, 64 at most.

    "auto" keeps small what the guess errs by: words that are drawn in one step, each alone, lose what they say of each
    other. Of n hidden tokens in N steps each shares its step with (n - 1) / N others on average, so N = 2 (n - 1) makes it
    half a word, and costs n (1 - e^-0.5) / 0.5 = 0.79 n calls. A joint guess (`Denoiser.joint`) loses nothing: one step.
    Rules that reveal by a budget of their own, such as threshold, get a step for every token, and end before. A gap of
    unknown length counts for 16 tokens.
    """
    hidden = (x.ids == specials.mask).sum(1)
    if steps == "auto":
        hidden = hidden + UNKNOWN * (x.ids == specials.gap).sum(1)
    if steps is None or steps == "auto" and rule.when is until_closed:
        return hidden.clamp(1, TURNS) if steps is None else hidden.clamp_min(1)
    if steps == "auto":
        return torch.ones_like(hidden) if joint else ((hidden - 1) / SHARED).ceil().clamp_min(1)
    return torch.full((len(x),), float(steps), dtype=torch.float64, device=x.ids.device)


def portions(x: Tokens, device: torch.device) -> Iterator[Tensor]:
    """Rows that are filled together, those of like size: by a model on a CPU no more than its cache is good for."""
    sizes = x.valid.sum(1)
    order = sizes.argsort(stable=True)
    if device.type != "cpu":
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
