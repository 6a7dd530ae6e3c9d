"""x0_hat ~ q(x0 | xt): what a denoiser returns, and how a guess is drawn from it."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from textdiff.constraints import Constraint
from textdiff.keys import Key

Processor = Callable[[Tensor, Tensor], Tensor]  # transformers' LogitsProcessor: (ids (S, n), scores (S, V)) -> scores


@dataclass(frozen=True)
class Draw:
    """A guess x0_hat and how it lies over xt.

    x0: the complete guess (for text `Tokens` (B, M) without markers).
    place: (B, M) int64, for each element of x0 the column of xt where it is seen: itself, its `[MASK]`, or the `[GAP]` it
        is missing in. Empty, shape (0,), where shapes do not change and every element is its own place.
    log_prob: (B, M), how sure the model was of each element that it drew.
    """

    x0: Any
    place: Tensor
    log_prob: Tensor

    def seen(self, column: Tensor) -> Tensor:
        """(B, M) what a column (B, L) of xt, such as its ids, holds where each element is."""
        return column.gather(1, self.place) if self.place.numel() else column


@dataclass(frozen=True)
class Decode:
    """How x0_hat is drawn. The defaults draw from the model as it is; everything else leaves the exact law.

    temperature: 0 takes the most probable token. top_k, top_p: nucleus of the distribution kept (0 and 1 keep all).
    max_gap: longest content written into one gap at a time, in tokens.
    longest: longest text, in tokens with its markers; what is over is not written. None where the model has no limit.
    constraints: what the user asks of gaps; element by element `Tokens.slot` says which one holds.
    processors: change the scores of words before one is drawn, in order, as in transformers.
    max_calls: how many texts with gaps may be tried, for each text, to find out how long its gaps are.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    max_gap: int = 64
    longest: int | None = None
    constraints: tuple[Constraint, ...] = ()
    processors: tuple[Processor, ...] = ()
    max_calls: int = 32

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(
                f"temperature {self.temperature} is not a number from 0 on; 1 draws from the model as it is"
            )
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p {self.top_p} is not in (0, 1]; 1 keeps every token")
        if self.top_k < 0:
            raise ValueError(f"top_k {self.top_k} is negative; 0 keeps every token")
        if self.max_gap < 1:
            raise ValueError(f"max_gap {self.max_gap} leaves no room for text; give 1 or more")

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

    @abstractmethod
    def log_prob(self, truth: Draw) -> Tensor:
        """log q of the truth per element, (B, M); 0 where nothing had to be guessed and on padding.

        What a gap's length costs is booked on the token left of its marker.
        """


def draw_tokens(logits: Tensor, u: Tensor, decode: Decode) -> tuple[Tensor, Tensor]:
    """Tokens (S,) from logits (S, V) by inverting the distribution function at u (S,), and their log-probability (S,).

    In float64, and only for the rows asked for: float32 Gumbel noise lowers the temperature unasked (arXiv:2409.02908).
    The log-probability is the model's own, before temperature and truncation.
    """
    log_prob = logits.double().log_softmax(-1)
    if decode.temperature == 0:
        ids = log_prob.argmax(-1)
    else:
        scaled = truncate(log_prob / decode.temperature, decode)
        cdf = scaled.softmax(-1).cumsum(-1)
        # the last token with probability closes the interval, whatever rounding left of it
        ids = torch.searchsorted(cdf, (u[:, None] * cdf[:, -1:]), right=True).squeeze(-1)
        ids = ids.clamp_max(logits.shape[-1] - 1)
    return ids, log_prob.gather(-1, ids[:, None]).squeeze(-1).float()


def words_before(ids: Tensor, row: Tensor, column: Tensor, pad: int) -> Tensor:
    """(S, n) what stands left of S places (row, column) (S,) of `ids` (B, L), the last of it last, left-padded."""
    longest = max(int(column.max()), 1) if len(column) else 1
    index = column[:, None] - longest + torch.arange(longest, device=ids.device)
    return ids[row[:, None], index.clamp_min(0)].masked_fill(index < 0, pad)


def truncate(scores: Tensor, decode: Decode) -> Tensor:
    """Scores (S, V) with everything outside top_k and top_p at minus infinity; the best token always stays."""
    if decode.top_k and decode.top_k < scores.shape[-1]:
        threshold = scores.topk(decode.top_k, -1).values[:, -1:]
        scores = scores.masked_fill(scores < threshold, -torch.inf)
    if decode.top_p < 1:
        scores = _nucleus(scores, decode.top_p)
    return scores


def _nucleus(scores: Tensor, share: float, few: int = 256) -> Tensor:
    """Scores (S, V) with all but the most probable tokens that have this share together at minus infinity.

    The `few` most probable of a row are looked at first: mostly they have it, and a whole row need not be sorted.
    """
    probability = scores.softmax(-1)
    best, order = probability.topk(min(few, scores.shape[-1]), -1)
    before = best.cumsum(-1) - best
    kept = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, order, before < share)
    more = (before[:, -1] < share).nonzero()[:, 0]
    if few < scores.shape[-1] and len(more):
        kept[more] = _nucleus(scores[more], share, scores.shape[-1]) > -torch.inf
    return scores.masked_fill(~kept, -torch.inf)
