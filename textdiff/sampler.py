"""The one loop: x0_hat ~ q(x0 | xt), then x_s = F_s(x0_hat, eps'), corrupted a little less (kexue.fm archives 9262)."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from textdiff.denoiser.base import Denoiser
from textdiff.keys import Key
from textdiff.posterior import Decode, Draw
from textdiff.process.base import Process, State
from textdiff.rules import Rule, Times, always, posterior
from textdiff.validation import check_number, shown

MOST = 2**53  # the most steps that float64 counts

Stop = Callable[[State, Tensor], Tensor]
"""(x, t (B,)) -> (B,) bool, rows whose next step is to be their last, all that is hidden then drawn at once."""


def never(x: State, t: Tensor) -> Tensor:
    """No row is ended before its time."""
    return torch.zeros_like(t, dtype=torch.bool)


@dataclass(frozen=True)
class Step:
    """One turn of the loop.

    x: the state of `rows` (N,), those of the batch that took part, at their times `s` (N,). draw: the guess it was made
    from. done: (N,) bool, rows that have taken their last step; they take part in no other.
    """

    x: State
    draw: Draw
    s: Tensor
    rows: Tensor
    done: Tensor


def sample(
    denoiser: Denoiser,
    process: Process,
    x: State,
    *,
    steps: float | Tensor,
    key: Key,
    rule: Rule = posterior,
    decode: Decode | None = None,
    start: float = 1.0,
    stop: Stop = never,
) -> Iterator[Step]:
    """Run the reverse process from x at t = `start` to t = 0, yielding every state. Rows are at times of their own.

    x is any legitimate state at that time: at 1 the prior, or a text whose fixed tokens are the user's; below 1 a draft
    corrupted so far. steps: how many, or of each row how many (B,); infinity steps from one moment of change to the next.
    `key` has a row per row of x, and a row's result is the same whatever it is batched with. stop: which rows are to be
    ended (see `Stop`), asked before every step. Past `decode.deadline` all rows are.

    A step in which a row would not change is not taken (`Rule.when`), and words that a step does not show are not drawn: the
    model is called for a row at its moments of change alone. ValueError for fewer than one step, a start outside (0, 1],
    and infinitely many steps of what does not know its moments.
    """
    clock = Clock.of(steps, start, len(key), key.device, rule.times)
    when = rule.when if denoiser.timeless else always
    rows = torch.arange(len(key), device=key.device)
    decode = decode or Decode()
    while len(rows):
        # neither while the caller has the step: whoever drops the loop would keep them
        with denoiser.lock, torch.inference_mode():
            ended = stop(x, clock.t) | decode.expired
            ahead = clock.to(torch.where(ended, 0.0, when(process, x, clock.t)))
            turn = key.fold(2 * (ahead.number - 1)), key.fold(2 * (ahead.number - 1) + 1)
            draw = denoiser(x, clock.t).draft(decode, turn[0])
            draw = draw.drawn(process.reads(draw))
            noise = rule(process, x, draw, clock.t, ahead.t, turn[1])
            draw = draw.drawn(process.shown(draw.x0, noise, ahead.t))
            x, clock = process.corrupt(draw.x0, noise, ahead.t), ahead
            step = Step(x, draw, clock.t, rows, clock.done)
            rows, x, key, clock = left(clock.done, rows, x, key, clock)
        yield step


def finished(run: Iterator[Step]) -> Iterator[tuple[Tensor, State]]:
    """The rows (N,) that come to their end, with their x0, as they do."""
    for step in run:
        if bool(step.done.any()):
            yield step.rows[step.done], step.draw.x0[step.done]


@dataclass(frozen=True)
class Clock:
    """Where each row is on its way: after `number` (B,) int64 of `steps` (B,) float64 steps, at time `t` (B,) float64."""

    steps: Tensor
    number: Tensor
    t: Tensor
    start: float
    times: Times
    endless: Tensor

    @classmethod
    def of(cls, steps: float | Tensor, start: float, rows: int, device: torch.device, times: Times) -> "Clock":
        """At the beginning. ValueError for fewer than one step, or a start outside (0, 1]."""
        steps = _counts(steps, device).expand(rows)
        if not 0 < check_number("start", start) <= 1:
            raise ValueError(f"start {start} is not a time in (0, 1]; 1 is noise, small times change little")
        zero, now = torch.zeros_like(steps, dtype=torch.int64), torch.full_like(steps, start)
        return cls(steps, zero, now, start, times, steps.isinf())

    @cached_property
    def done(self) -> Tensor:
        """(B,) bool, rows that have come to the end."""
        return (self.number >= self.steps) | self.endless & (self.t == 0)

    def to(self, moment: Tensor) -> "Clock":
        """The first of the steps ahead of each row that is at or below the moment (B,); the next one at least."""
        # a hair early: one step too many changes nothing, one too few would
        needed = (self.steps * (1 - moment / self.start) * (1 - 1e-9)).ceil()
        following, unknown = self.number + 1.0, moment >= self.t
        number = torch.where(self.endless | unknown, following, needed.maximum(following)).minimum(self.steps)
        t = self.start * self.times(number, self.steps)
        if bool(self.endless.any()):
            if bool((self.endless & unknown & (self.number > 0)).any()):
                raise ValueError(
                    "num_steps inf is for masks (process masking, or staged deletion) and rules that keep their noise: "
                    "only there is it known when a word comes next; give a number of steps"
                )
            t = torch.where(self.endless, moment.minimum(self.t * (1 - 1e-12)), t)
        return replace(self, number=number.long(), t=t)

    def __getitem__(self, rows: Tensor) -> "Clock":
        return Clock(self.steps[rows], self.number[rows], self.t[rows], self.start, self.times, self.endless[rows])


def _counts(steps: float | Tensor, device: torch.device) -> Tensor:
    """Numbers of steps as float64: whole ones from 1 on, or infinity. ValueError for others."""
    try:
        counts = torch.as_tensor(math.nan if isinstance(steps, bool) else steps, dtype=torch.float64, device=device)
    except (TypeError, ValueError, RuntimeError):
        counts = torch.full((), math.nan)
    wrong = ~((counts >= 1) & (counts == counts.floor()) & ((counts <= MOST) | counts.isinf()))
    if not bool(wrong.any()):
        return counts
    value = float(counts[wrong].flatten()[0])
    if value < 1:
        raise ValueError(f"steps {value:g} is not positive; 1 draws everything at once, more look again between")
    raise ValueError(f"steps must be a whole number from 1 to 2 ** 53, or infinity; got {shown(steps)}")


def left(done: Tensor, rows: Tensor, x: State, key: Key, clock: Clock) -> tuple[Tensor, State, Key, Clock]:
    """What is left of a batch without the rows that are done."""
    if not bool(done.any()):
        return rows, x, key, clock
    stay = ~done
    return rows[stay], x[stay], key[stay], clock[stay]
