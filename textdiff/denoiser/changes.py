"""Exactly k words are wrong: Su's second step for version B of his edit model (kexue.fm archives 9271).

    q(x0 | xt) = prod_i q_i(x0_i) 1[x0 differs from x_t in k places] / P(k),   P(k) = P(sum_i Bernoulli(p_i) = k),

with p_i = 1 - q_i(x_t,i): a parallel model's words, on the condition that as many of them are new as the process says it
has replaced. Which places change is a conditional Bernoulli law, drawn from the suffix sums
R_i(j) = p_i R_{i+1}(j - 1) + (1 - p_i) R_{i+1}(j); the words are then q_i without x_t,i.
"""

from typing import Any, Protocol

import torch
from torch import Tensor

from textdiff.denoiser.base import Denoiser
from textdiff.drawing import draw_tokens, truncate
from textdiff.keys import Key
from textdiff.posterior import Decode, Draw, Posterior
from textdiff.process.replacement import Replacement
from textdiff.tokens import Tokens

_NEVER = -1e30  # log 0, finite so that gradients are


class Product(Protocol):
    """A posterior that says each word alone."""

    def marginals(self) -> tuple[Tensor, Tensor]:
        """The S places (B, L) bool where a word has to be said, and the log-probability of every word there (S, V)."""


class Changes(Denoiser):
    """A parallel denoiser's x0_hat, made to differ from x_t in just round(beta(t) n) places.

    For `Replacement(different=True, counts=True)`. Where the model leaves fewer places in doubt, all of these change;
    where it rules x_t out in more, all of those.
    """

    def __init__(self, denoiser: Denoiser, process: Replacement) -> None:
        super().__init__()
        if not (process.different and process.uniform.counts):
            raise ValueError(
                f"different={process.different}, counts={process.uniform.counts} leave the number of changes open; "
                "Changes needs Replacement(different=True, counts=True)"
            )
        self.denoiser, self.process = denoiser, process

    @property
    def model(self) -> Any:
        """The stock model that is asked."""
        return self.denoiser.model

    def forward(self, xt: Tokens, t: Tensor) -> Posterior:
        product: Product = self.denoiser(xt, t)
        return _Changes(xt, *product.marginals(), self.process.count(xt, t))

    @property
    def longest(self) -> int | None:
        return self.denoiser.longest


class _Changes(Posterior):
    """where (B, L) bool: the open places. log_prob (S, V): what is said there. count (B,): how many of them change."""

    def __init__(self, xt: Tokens, where: Tensor, log_prob: Tensor, count: Tensor) -> None:
        self.xt, self.where, self.words, self.number = xt, where, log_prob.double(), count

    def sample(self, decode: Decode, key: Key) -> Draw:
        x0 = self.xt.with_(doubtful=torch.zeros_like(self.where))
        place = torch.arange(x0.ids.shape[1], device=x0.ids.device).expand_as(x0.ids)
        words = truncate(self.words / (decode.temperature or 1.0), decode).log_softmax(-1)
        keep, move = self._odds(words)
        if decode.temperature == 0:
            changed = self._likeliest(words)
        else:
            changed = self._drawn(keep, move, key.fold(0).uniform(x0.ids.shape[1]))
        seen = self.xt.ids[self.where][:, None]
        u = key.fold(1).uniform(x0.ids.shape[1])[self.where]
        # already cooled and truncated
        new, _ = draw_tokens(words.scatter(1, seen, -torch.inf), u, Decode(temperature=float(decode.temperature > 0)))
        said = torch.where(changed[self.where], new, seen[:, 0])
        score = self.words.gather(1, said[:, None])[:, 0].float()
        confidence = torch.zeros(place.shape, device=place.device).masked_scatter(self.where, score)
        ids = x0.ids.masked_scatter(self.where, said)
        return Draw(x0.with_(ids=ids, score=torch.where(self.where, confidence, x0.score)), place, confidence.detach())

    def log_prob(self, truth: Draw) -> Tensor:
        """(B, L) log q_i(x0_i); -log P(k) is booked on the first token. Minus infinity where not just k words differ."""
        x0, (keep, move) = truth.x0, self._odds(self.words)
        said = self.words.gather(1, x0.ids[self.where][:, None])[:, 0]
        result = torch.zeros(x0.ids.shape, dtype=torch.float64, device=x0.ids.device).masked_scatter(self.where, said)
        count = self._feasible(keep, move)
        total = _suffixes(keep, move)[0].gather(1, count[:, None])[:, 0]
        wrong = ((x0.ids != self.xt.ids) & self.where).sum(1) != count
        first = torch.where(wrong, -torch.inf, -total)
        return torch.cat([result[:, :1] + first[:, None], result[:, 1:]], 1)

    def _odds(self, words: Tensor) -> tuple[Tensor, Tensor]:
        """(B, L) log(1 - p_i) and log p_i; a place that is not open stays for sure."""
        seen = self.xt.ids[self.where][:, None]
        stay = words.gather(1, seen)[:, 0].clamp_min(_NEVER)
        other = words.scatter(1, seen, -torch.inf)
        certain = stay >= 0  # nothing else can be said
        go = other.masked_fill(certain[:, None], 0.0).logsumexp(1).masked_fill(certain, _NEVER).clamp_min(_NEVER)
        zero = torch.zeros(self.where.shape, dtype=torch.float64, device=words.device)
        return zero.masked_scatter(self.where, stay), (zero + _NEVER).masked_scatter(self.where, go)

    def _feasible(self, keep: Tensor, move: Tensor) -> Tensor:
        """(B,) the number of changes, as near to the one asked for as the model allows."""
        return self.number.clamp_max((move > _NEVER).sum(1)).maximum((keep <= _NEVER).sum(1))

    def _drawn(self, keep: Tensor, move: Tensor, u: Tensor) -> Tensor:
        """(B, L) which places change, given how many."""
        left, suffix = self._feasible(keep, move), _suffixes(keep, move)
        changed = torch.zeros_like(self.where)
        for i in range(keep.shape[1]):
            here = suffix[i].gather(1, left[:, None])[:, 0]
            rest = suffix[i + 1].gather(1, (left - 1).clamp_min(0)[:, None])[:, 0]
            pick = (u[:, i] < (move[:, i] + rest - here).exp()) & (left > 0)
            changed[:, i], left = pick, left - pick.long()
        return changed

    def _likeliest(self, words: Tensor) -> Tensor:
        """(B, L) the places whose change costs least, for temperature 0."""
        keep, move = self._odds(words)
        seen = self.xt.ids[self.where][:, None]
        best = torch.full_like(keep, _NEVER)
        best = best.masked_scatter(self.where, words.scatter(1, seen, -torch.inf).max(1).values.clamp_min(_NEVER))
        order = (best - keep).argsort(dim=1, descending=True, stable=True)
        column = torch.arange(order.shape[1], device=order.device).expand_as(order)
        return torch.empty_like(order).scatter(1, order, column) < self._feasible(keep, move)[:, None]


def _suffixes(keep: Tensor, move: Tensor) -> list[Tensor]:
    """R_i for i = 0 .. L, each (B, L + 1): log P of 0, 1, ... changes among the places from i on."""
    rows, columns = keep.shape
    last = torch.full((rows, columns + 1), _NEVER, dtype=torch.float64, device=keep.device)
    last = torch.cat([torch.zeros_like(last[:, :1]), last[:, 1:]], 1)
    result = [last]
    for i in reversed(range(columns)):
        one_more = torch.cat([torch.full_like(last[:, :1], _NEVER), last[:, :-1]], 1)
        last = torch.logaddexp(keep[:, i : i + 1] + last, move[:, i : i + 1] + one_more).clamp_min(_NEVER)
        result.append(last)
    return result[::-1]
