"""The one loop: x0_hat ~ q(x0 | xt), then x_s = F_s(x0_hat, eps'), corrupted a little less (kexue.fm archives 9262)."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch

from textdiff.denoiser.base import Denoiser
from textdiff.keys import Key
from textdiff.posterior import Decode, Draw
from textdiff.process.base import Process, State
from textdiff.rules import Rule, posterior


@dataclass(frozen=True)
class Step:
    """One turn of the loop: the state x at time s, and the guess it was made from."""

    x: State
    draw: Draw
    s: float


def sample(
    denoiser: Denoiser,
    process: Process,
    x: State,
    *,
    steps: int,
    key: Key,
    rule: Rule = posterior,
    decode: Decode | None = None,
    start: float = 1.0,
) -> Iterator[Step]:
    """Run the reverse process from x at t = `start` to t = 0 in `steps` equal steps, yielding every state.

    x is any legitimate state at that time: at 1 the prior, or a text whose fixed tokens are the user's; below 1 a draft
    corrupted so far. `key` has a row per row of x. ValueError for fewer than one step, or a start outside (0, 1].
    """
    if steps < 1:
        raise ValueError(f"steps {steps} is not positive; 1 draws everything at once, more look again in between")
    if not 0 < start <= 1:
        raise ValueError(f"start {start} is not a time in (0, 1]; 1 is noise, small times change little")
    grid = torch.linspace(start, 0, steps + 1, dtype=torch.float64).tolist()
    decode = decode or Decode()
    with torch.inference_mode():
        for number, (t, s) in enumerate(pairwise(grid)):
            now = torch.full((len(key),), t, dtype=torch.float64, device=key.state.device)
            then = torch.full_like(now, s)
            draw = denoiser(x, now).sample(decode, key.fold(2 * number))
            x = process.corrupt(draw.x0, rule(process, x, draw, now, then, key.fold(2 * number + 1)), then)
            yield Step(x, draw, s)
