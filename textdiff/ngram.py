"""N-gram baselines: what a language model's nats must beat to have learned more than counts.

    unigram   p1(w)      = (c(w) + 1) / (N + V)                                     Laplace's rule
    trigram   p(w | u v) = λ3 p3(w | u v) + λ2 p2(w | v) + λ1 p1(w) + λ0 / V
              p3 = c(u v w) / c(u v ·), p2 = c(v w) / c(v ·);  where the context was never seen, the next lower order

Source: Jelinek and Mercer, "Interpolated estimation of Markov source parameters from sparse data" (1980); the weights λ
by EM on held-out text, as there, but one set of weights for all contexts.

A window is a list of ids that begins with BOS. BOS is context and is not scored: the first scored token is predicted
from (BOS, BOS), the next from (BOS, it). Nats are natural logarithms; divide a window's nats by ln 2 and by its length
in bytes for its bits per byte.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Windows = Sequence[Sequence[int]]

_HELD_OUT = 0.05


@dataclass(frozen=True)
class NGramScore:
    """The score of one text.

    Args:
        nats: mean −log p per scored token.
        tokens: number of scored tokens, i.e. all but each window's BOS.
        window_nats: (windows,) total nats of each window, in the order given; what a confidence interval is made from.
    """

    nats: float
    tokens: int
    window_nats: Floats = field(repr=False, compare=False)

    @property
    def perplexity(self) -> float:
        """exp(nats)."""
        return float(np.exp(self.nats))


def unigram_nll(train: Windows, test: Windows, vocab: int) -> NGramScore:
    """Scores `test` with the add-one unigram counted on `train`. Ids are in [0, vocab).

    Raises:
        ValueError: an empty window, an id out of range, or nothing to score.
    """
    tokens, scored = _Tokens.of(train, vocab), _Tokens.of(test, vocab)
    return _score(_Counts.of(tokens, vocab).unigram(scored.w), scored)


def trigram_nll(train: Windows, test: Windows, vocab: int) -> NGramScore:
    """Scores `test` with the interpolated trigram counted on `train`. Ids are in [0, vocab).

    Raises:
        ValueError: as `unigram_nll`; or `train` has fewer than two windows with tokens to fit the weights on.
    """
    scored = _Tokens.of(test, vocab)
    return _score(Trigram.fit(train, vocab).prob(scored.u, scored.v, scored.w), scored)


@dataclass(frozen=True)
class Trigram:
    """The interpolated trigram: counts, and the weights (λ3, λ2, λ1, λ0)."""

    counts: "_Counts"
    weights: Floats

    @classmethod
    def fit(cls, train: Windows, vocab: int) -> "Trigram":
        """Weights by EM on the last 5 % of the windows, counted on the others; then the counts of all windows."""
        held = max(1, round(_HELD_OUT * len(train)))
        rest, last = _Tokens.of(train[:-held], vocab), _Tokens.of(train[-held:], vocab)
        if not rest.w.size or not last.w.size:
            raise ValueError("the weights need tokens both to count and to hold out; give at least two windows")
        weights = _em(_Counts.of(rest, vocab).orders(last.u, last.v, last.w))
        return cls(_Counts.of(_Tokens.of(train, vocab), vocab), weights)

    def prob(self, u: Ints, v: Ints, w: Ints) -> Floats:
        """p(w | u v), elementwise over arrays of one shape (N,)."""
        return self.counts.orders(u, v, w) @ self.weights


@dataclass(frozen=True)
class _Tokens:
    """Every scored token w of some windows, with the two tokens before it, u v, and the number of its window."""

    u: Ints
    v: Ints
    w: Ints
    window: Ints
    windows: int

    @classmethod
    def of(cls, windows: Windows, vocab: int) -> "_Tokens":
        lengths = np.array([len(window) for window in windows], dtype=np.int64)
        if not lengths.all():
            raise ValueError("a window must begin with BOS; this one is empty")
        # One stream in which every window's BOS stands twice, so that u and v are the stream shifted by two and by one.
        stream = np.array([i for window in windows for i in (window[0], *window)], dtype=np.int64)
        if stream.size and not 0 <= stream.min() <= stream.max() < vocab:
            raise ValueError(f"ids must be in [0, {vocab}), found {stream.min()} to {stream.max()}")
        window = np.repeat(np.arange(len(lengths)), lengths + 1)
        start = np.cumsum(lengths + 1) - (lengths + 1)
        at = np.flatnonzero(np.arange(stream.size) - start[window] >= 2)
        return cls(stream[at - 2], stream[at - 1], stream[at], window[at], len(lengths))


@dataclass(frozen=True)
class _Table:
    """A sparse table of counts: sorted keys and how often each was seen."""

    keys: Ints
    counts: Ints

    @classmethod
    def of(cls, keys: Ints) -> "_Table":
        return cls(*np.unique(keys, return_counts=True))

    def __getitem__(self, keys: Ints) -> Ints:
        if not self.keys.size:
            return np.zeros(keys.shape, dtype=np.int64)
        at = np.minimum(np.searchsorted(self.keys, keys), self.keys.size - 1)
        return np.where(self.keys[at] == keys, self.counts[at], 0)


@dataclass(frozen=True)
class _Counts:
    """What all orders are made of. A context is counted once for each token scored after it."""

    vocab: int
    w: Ints  # (vocab,)
    v: Ints  # (vocab,) as the context of a bigram
    vw: _Table
    uv: _Table  # as the context of a trigram
    uvw: _Table

    @classmethod
    def of(cls, tokens: _Tokens, vocab: int) -> "_Counts":
        if vocab**3 >= 2**63:
            raise ValueError(f"a trigram of {vocab} ids does not fit in 64 bits")
        uv, vw = tokens.u * vocab + tokens.v, tokens.v * vocab + tokens.w
        return cls(
            vocab,
            np.bincount(tokens.w, minlength=vocab),
            np.bincount(tokens.v, minlength=vocab),
            _Table.of(vw),
            _Table.of(uv),
            _Table.of(uv * vocab + tokens.w),
        )

    def unigram(self, w: Ints) -> Floats:
        """p1(w): (N,) -> (N,)."""
        return (self.w[w] + 1) / (self.w.sum() + self.vocab)

    def orders(self, u: Ints, v: Ints, w: Ints) -> Floats:
        """p3, p2, p1 and 1/V of each token: three (N,) -> (N, 4)."""
        p1 = self.unigram(w)
        p2 = _ratio(self.vw[v * self.vocab + w], self.v[v], p1)
        uv = u * self.vocab + v
        p3 = _ratio(self.uvw[uv * self.vocab + w], self.uv[uv], p2)
        return np.stack([p3, p2, p1, np.full_like(p1, 1 / self.vocab)], axis=1)


def _ratio(part: Ints, whole: Ints, otherwise: Floats) -> Floats:
    return np.where(whole > 0, part / np.maximum(whole, 1), otherwise)


def _em(orders: Floats, tolerance: float = 1e-7, iterations: int = 2000) -> Floats:
    """The weights (4,) under which the held-out tokens, `orders` (N, 4), are likeliest.

    Each order is credited one token that was not there, so that no weight ends at zero and no token is impossible.
    """
    weights = np.full(orders.shape[1], 1 / orders.shape[1])
    for _ in range(iterations):
        joint = orders * weights
        credit = (joint / joint.sum(axis=1, keepdims=True)).sum(axis=0) + 1
        before, weights = weights, credit / credit.sum()
        if np.abs(weights - before).max() < tolerance:
            break
    return weights


def _score(prob: Floats, scored: _Tokens) -> NGramScore:
    if not prob.size:
        raise ValueError("nothing to score: every window is BOS alone")
    nats = -np.log(prob)
    totals = np.bincount(scored.window, weights=nats, minlength=scored.windows).astype(np.float64)
    return NGramScore(float(nats.mean()), int(prob.size), totals)
