"""The one loop: x0_hat ~ q(x0 | xt), then x_s = F_s(x0_hat, eps'), corrupted a little less (kexue.fm archives 9262)."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

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
    decode = decode or Decode()
    with torch.inference_mode():
        for number, (t, s) in enumerate(pairwise(_grid(start, steps))):
            now = torch.full((len(key),), t, dtype=torch.float64, device=key.state.device)
            then = torch.full_like(now, s)
            draw, x = _turn(denoiser, process, x, now, then, key, number, rule, decode)
            yield Step(x, draw, s)


def sample_each(
    denoiser: Denoiser, process: Process, x: State, *, steps: Tensor, key: Key, rule: Rule = posterior,
    decode: Decode | None = None,
) -> Iterator[tuple[Tensor, State]]:  # fmt: skip
    """Run the reverse process from t = 1, each row in as many equal steps as `steps` (B,) int64 says: rows at times of
    their own in one batch. Yields the rows (N,) that have come to t = 0, with their x0, as they do.

    A row's result is that of `sample` with its number of steps. ValueError for fewer than one step.
    """
    if len(steps) and int(steps.min()) < 1:
        raise ValueError(f"steps {int(steps.min())} is not positive; 1 draws everything at once")
    decode = decode or Decode()
    times = {count: _grid(1.0, count) for count in steps.unique().tolist()}
    rows = torch.arange(len(key), device=key.state.device)
    with torch.inference_mode():
        for number in range(max(times, default=0)):
            pairs = [times[count][number : number + 2] for count in steps[rows].tolist()]
            now, then = torch.tensor(pairs, dtype=torch.float64, device=rows.device).unbind(1)
            draw, x = _turn(denoiser, process, x, now, then, key[rows], number, rule, decode)
            done = steps[rows] == number + 1
            if bool(done.any()):
                yield rows[done], draw.x0[done]
                x, rows = x[~done], rows[~done]


def _grid(start: float, steps: int) -> list[float]:
    """The times from `start` to 0."""
    return torch.linspace(start, 0, steps + 1, dtype=torch.float64).tolist()


def _turn(
    denoiser: Denoiser, process: Process, x: State, t: Tensor, s: Tensor, key: Key, number: int, rule: Rule, decode: Decode
) -> tuple[Draw, State]:  # fmt: skip
    """The guess from x at times t (B,), and the state at s (B,)."""
    draw = denoiser(x, t).sample(decode, key.fold(2 * number))
    return draw, process.corrupt(draw.x0, rule(process, x, draw, t, s, key.fold(2 * number + 1)), s)
