"""x0_hat ~ q(x0 | xt): what a denoiser returns, and how a guess is drawn from it."""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from textdiff.constraints import Automaton, Constraint
from textdiff.keys import Key
from textdiff.validation import check_integer, check_number, shown

Processor = Callable[[Tensor, Tensor], Tensor]  # transformers' LogitsProcessor: (ids (S, n), scores (S, V)) -> scores
Measure = Callable[[Tensor], Tensor]  # (S, V) logits -> (S,): the larger, the sooner a place is revealed


class Look(ABC):
    """What a model can say of the elements of a guess that are still open. It is asked where somebody wants to know."""

    @abstractmethod
    def words(self, where: Tensor) -> tuple[Tensor, Tensor]:
        """Words (S,) for the S open places `where` (B, M) bool, and their log-probability (S,)."""

    def measure(self, measure: Measure, where: Tensor) -> Tensor:
        """(S,) a figure of the distribution at each of the places, before a word is drawn."""
        raise ValueError(
            "this model draws its words one after the other, each given those before, so there is nothing to rank them by "
            "before they are drawn; use the rule ranked:drawn, ranked:left or ranked:random, or a parallel model"
        )


@dataclass(frozen=True)
class Draw:
    """A guess x0_hat and how it lies over xt.

    x0: the guess (for text `Tokens` (B, M) without markers).
    place: (B, M) int64, for each element of x0 the column of xt where it is seen: itself, its `[MASK]`, or the `[GAP]` it
        is missing in. Empty, shape (0,), where shapes do not change and every element is its own place.
    log_prob: (B, M), how sure the model was of each element that it drew.
    open: (B, M) bool, elements whose words are not drawn yet, and show a [MASK] whatever x_t shows; None where all are.
        Nothing may be read off the [MASK]: what looks at words draws them first.
    look: who can be asked for these.
    lane: (B, M) int64, the number of the block that each element is in, where the model writes block by block, each without
        sight of later ones; else None.
    """

    x0: Any
    place: Tensor
    log_prob: Tensor
    open: Tensor | None = None
    look: Look | None = None
    lane: Tensor | None = None

    def seen(self, column: Tensor) -> Tensor:
        """(B, M) what a column (B, L) of xt, such as its ids, holds where each element is."""
        return column.gather(1, self.place) if self.place.numel() else column

    def drawn(self, where: Tensor | None = None) -> "Draw":
        """The same guess with its words drawn at `where` (B, M) bool, or everywhere. The words do not depend on who asks."""
        if self.look is None or self.open is None:
            return self
        wanted = self.open if where is None else self.open & where
        if not bool(wanted.any()):
            return self
        words, sure = self.look.words(wanted)
        x0 = self.x0.with_(
            ids=self.x0.ids.masked_scatter(wanted, words), score=self.x0.score.masked_scatter(wanted, sure)
        )
        return replace(self, x0=x0, log_prob=self.log_prob.masked_scatter(wanted, sure), open=self.open & ~wanted)

    def measured(self, measure: Measure, where: Tensor) -> Tensor:
        """(B, M) a figure of what the model says at `where`, open places of x_t, before a word is drawn; 0 elsewhere.

        ValueError where the model can say nothing before it draws.
        """
        look = self.look or _NOBODY
        figures = torch.zeros(where.shape, device=where.device)
        return figures.masked_scatter(where, look.measure(measure, where).float()) if bool(where.any()) else figures


_TINY = 1e-30


@dataclass(frozen=True)
class Decode:
    """How x0_hat is drawn. The defaults draw from the model as it is; everything else leaves the exact law.

    temperature: 0 takes the most probable token. top_k, top_p: nucleus of the distribution kept (0 and 1 keep all).
    max_gap: longest content written into one gap at a time, in tokens.
    longest: longest text, in tokens with its markers; what is over is not written. None where the model has no limit.
    constraints: what the user asks of gaps; element by element `Tokens.slot` says which one holds.
    text: what every gap without an automaton of its own has to be, whole characters; None where all tokens are.
    processors: change the scores of words before one is drawn, in order, as in transformers.
    max_calls: how many texts with gaps may be tried, for each text, to find out how long its gaps are.
    min_p: words less probable than this share of the most probable one are left out; 0 keeps all.
    banned: ids that are never written.
    deadline: the time.monotonic() from which no more time is spent: open words are drawn at once from what was last read,
        and gaps that may end do. Infinity for none.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    max_gap: int = 64
    longest: int | None = None
    constraints: tuple[Constraint, ...] = ()
    text: Automaton | None = None
    processors: tuple[Processor, ...] = ()
    max_calls: int = 32
    min_p: float = 0.0
    banned: tuple[int, ...] = ()
    deadline: float = math.inf

    def __post_init__(self) -> None:
        check_number("temperature", self.temperature, least=0)
        check_number("top_p", self.top_p, above=0, most=1)
        check_number("min_p", self.min_p, least=0, most=1)
        # float32 cannot count with what is beyond: 1 / 1e99 is 0 there, and 0 times infinity is no number
        if self.temperature:
            object.__setattr__(self, "temperature", min(max(self.temperature, _TINY), 1 / _TINY))
        object.__setattr__(self, "top_p", max(self.top_p, _TINY))
        check_integer("top_k", self.top_k, least=0)
        check_integer("max_gap", self.max_gap, least=1)
        check_integer("max_calls", self.max_calls, least=0)

    @classmethod
    def within(cls, seconds: float | None) -> float:
        """Return the deadline so many seconds from now; None for no deadline. ValueError for no time at all."""
        return math.inf if seconds is None else time.monotonic() + check_number("max_time", seconds, above=0)

    def process(self, ids: Tensor, scores: Tensor) -> Tensor:
        """What the processors make of scores (S, V) after the texts ids (S, n).

        Raises:
            ValueError: Naming the processor that returns something else than scores: another shape, NaN, or infinity.
        """
        for processor in self.processors:
            found, name = processor(ids, scores), getattr(processor, "__name__", type(processor).__name__)
            if not isinstance(found, Tensor) or found.shape != scores.shape:
                got = tuple(found.shape) if isinstance(found, Tensor) else shown(found)
                raise ValueError(
                    f"logits_processor {name} must return scores of shape {tuple(scores.shape)}, as it got; got {got}"
                )
            if bool((found.isnan() & ~scores.isnan()).any()) or bool(found.isposinf().any()):
                raise ValueError(f"logits_processor {name} returned NaN or infinity; -inf alone leaves words out")
            scores = found
        return scores

    @property
    def expired(self) -> bool:
        """Whether the deadline has passed."""
        return time.monotonic() >= self.deadline

    @property
    def truncates(self) -> bool:
        """Whether some words that the model could say are left out for being improbable."""
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0

    @property
    def spells(self) -> bool:
        """Whether some gap is written under an automaton."""
        return any(constraint.automaton is not None for constraint in self.constraints)

    def room(self, sizes: Tensor) -> Tensor:
        """(B,) how many tokens may still be written into texts of these sizes (B,)."""
        return (
            (self.longest - sizes).clamp_min(0)
            if self.longest
            else torch.full_like(sizes, torch.iinfo(torch.int64).max)
        )


class Posterior(ABC):
    """q(x0 | xt).

    factorised: whether `log_prob` is of each element given x_t alone, a product. Bounds that reveal one token at a time
    hold only then: a chain rule lends later elements the truth of the earlier ones, which x_t does not show.
    """

    factorised: bool = False

    def need_product(self, bound: str) -> None:
        """ValueError where `log_prob` is no product, for a bound that holds only there."""
        if not self.factorised:
            raise ValueError(
                f"the bound of {bound} is for denoisers that say each token alone, as parallel ones do; an autoregressive "
                "one has an exact likelihood in one step, the bound of Deletion"
            )

    @abstractmethod
    def sample(self, decode: Decode, key: Key) -> Draw:
        """x0_hat ~ q(x0 | xt), one row of `key` per row of xt."""

    def draft(self, decode: Decode, key: Key) -> Draw:
        """The same guess, whose words are drawn when they are asked for, where the model can wait."""
        return self.sample(decode, key)

    @abstractmethod
    def log_prob(self, truth: Draw) -> Tensor:
        """log q of the truth per element, (B, M); 0 where nothing had to be guessed and on padding.

        What a gap's length costs is booked on the token left of its marker.
        """


class _Nobody(Look):
    def words(self, where: Tensor) -> tuple[Tensor, Tensor]:
        raise AssertionError("all words are drawn")


_NOBODY = _Nobody()
