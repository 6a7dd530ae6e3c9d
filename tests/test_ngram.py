"""The n-gram baselines against a slow and plain reading of their equations, and against sources of known entropy."""

import math
from collections import Counter

import numpy as np
import pytest

from textdiff.ngram import NGramScore, Trigram, trigram_nll, unigram_nll

BOS = 0


def events(windows):
    """(u, v, w) of every scored token, by hand."""
    for window in windows:
        padded = [window[0], *window]
        yield from zip(padded, padded[1:], padded[2:], strict=False)


class PlainTrigram:
    """The same model with dictionaries, one token at a time."""

    def __init__(self, windows, vocab):
        triples = list(events(windows))
        self.vocab, self.n = vocab, len(triples)
        self.uvw, self.uv = Counter(triples), Counter((u, v) for u, v, _ in triples)
        self.vw, self.v = Counter((v, w) for _, v, w in triples), Counter(v for _, v, _ in triples)
        self.w = Counter(w for _, _, w in triples)

    def orders(self, u, v, w):
        p1 = (self.w[w] + 1) / (self.n + self.vocab)
        p2 = self.vw[v, w] / self.v[v] if self.v[v] else p1
        p3 = self.uvw[u, v, w] / self.uv[u, v] if self.uv[u, v] else p2
        return p3, p2, p1, 1 / self.vocab

    def fit(self, held):
        weights = [0.25] * 4
        for _ in range(3000):
            credit = [1.0] * 4
            for event in events(held):
                joint = [a * p for a, p in zip(weights, self.orders(*event), strict=True)]
                credit = [c + j / sum(joint) for c, j in zip(credit, joint, strict=True)]
            weights = [c / sum(credit) for c in credit]
        return weights


def random_windows(seed, count, length, vocab):
    """A Markov source: the next id is the last one plus 0, 1 or 2."""
    rng = np.random.default_rng(seed)
    windows = []
    for _ in range(count):
        window = [BOS]
        for _ in range(int(rng.integers(0, length))):
            window.append(1 + (window[-1] + int(rng.integers(0, 3))) % (vocab - 1))
        windows.append(window)
    return windows


def test_trigram_is_its_equation():
    train, test, vocab = random_windows(0, 40, 12, 7), random_windows(1, 10, 12, 7), 7
    weights = PlainTrigram(train[:38], vocab).fit(train[38:])
    model = PlainTrigram(train, vocab)
    expected = [
        -sum(math.log(sum(a * p for a, p in zip(weights, model.orders(*event), strict=True))) for event in events([x]))
        for x in test
    ]
    score = trigram_nll(train, test, vocab)
    np.testing.assert_allclose(score.window_nats, expected, atol=1e-4)
    assert score.tokens == sum(len(window) - 1 for window in test)
    assert score.nats == pytest.approx(sum(expected) / score.tokens, abs=1e-5)


def test_unigram_is_its_equation():
    train, test = [[0, 1, 1, 2], [0, 3]], [[0, 1, 4], [0], [0, 2]]
    score = unigram_nll(train, test, vocab=5)
    expected = [-math.log(3 / 9) - math.log(1 / 9), 0.0, -math.log(2 / 9)]  # 4 scored tokens + 5 imagined ones
    np.testing.assert_allclose(score.window_nats, expected, atol=1e-12)
    assert score.nats == pytest.approx(sum(expected) / 3)
    assert score.perplexity == pytest.approx(math.exp(score.nats))


@pytest.mark.parametrize("seed", range(3))
def test_probabilities_over_the_vocabulary_sum_to_one(seed):
    vocab = 23
    rng = np.random.default_rng(seed)
    model = Trigram.fit(random_windows(seed, 20, 15, vocab), vocab)
    assert model.weights.sum() == pytest.approx(1)
    everything = np.arange(vocab)
    for u, v in rng.integers(0, vocab, (50, 2)):  # seen contexts and unseen ones
        prob = model.prob(np.full(vocab, u), np.full(vocab, v), everything)
        assert prob.sum() == pytest.approx(1, abs=1e-9)
        assert prob.min() > 0
    assert sum(model.counts.unigram(everything)) == pytest.approx(1, abs=1e-9)


def test_trigram_learns_a_repetitive_source():
    """1 2 3 4 1 2 3 4 ...: the unigram knows one of four, the trigram knows all but the start of a window."""
    windows = [[BOS, *((start + i) % 4 + 1 for i in range(30))] for start in (0, 1, 2, 3) * 10]
    unigram, trigram = unigram_nll(windows, windows, 5), trigram_nll(windows, windows, 5)
    assert unigram.nats == pytest.approx(math.log(4), abs=0.02)
    assert trigram.nats < 0.15  # log(4) / 30 = 0.046 for the starts, the rest for smoothing


def independent(seed, tokens=20_000, vocab=20, length=50):
    rng = np.random.default_rng(seed)
    p = 1 / np.arange(1, vocab)
    ids = 1 + rng.choice(vocab - 1, size=(tokens // length, length), p=p / p.sum())
    return [[BOS, *row] for row in ids.tolist()], float(-(p / p.sum()) @ np.log(p / p.sum()))


def gap(seed):
    train, _ = independent(2 * seed)
    test, _ = independent(2 * seed + 1, tokens=5_000)
    return trigram_nll(train, test, 20).nats - unigram_nll(train, test, 20).nats


def test_trigram_gains_nothing_on_independent_tokens():
    """20,000 training and 5,000 test tokens: over seeds 0-199 the gap was 0.0002 to 0.0068 nats, none beyond the bound.

    Negative control: on the repetitive source above the gap is -1.2.
    """
    assert abs(gap(0)) < 0.02


def test_unigram_reaches_the_entropy_of_independent_tokens():
    """100,000 test tokens, standard deviation of -log p below 1: the bound is 6 standard errors or more."""
    train, _ = independent(0)
    test, entropy = independent(1, tokens=100_000)
    assert unigram_nll(train, test, 20).nats == pytest.approx(entropy, abs=0.02)


def test_a_token_never_seen_costs_finite_nats():
    """The weights keep a little of every order even where the held-out text never needs it."""
    windows = [[BOS] + [1, 2] * 20] * 40
    score = trigram_nll(windows, [[BOS, 3, 3, 1]], 4)
    assert np.isfinite(score.nats) and score.nats > 3


@pytest.mark.parametrize(
    ("train", "test", "complaint"),
    [
        ([[0, 1]] * 4, [[]], "BOS"),
        ([[0, 1]] * 4, [[0, 9]], "ids must be in"),
        ([[0, 1]] * 4, [[0, -1]], "ids must be in"),
        ([[0, 1]] * 4, [[0]], "nothing to score"),
        ([[0, 1]], [[0, 1]], "two windows"),
    ],
)
def test_errors_say_what_is_wrong(train, test, complaint):
    with pytest.raises(ValueError, match=complaint):
        trigram_nll(train, test, 5)


def test_scores_compare_by_value():
    assert NGramScore(1.0, 3, np.zeros(2)) == NGramScore(1.0, 3, np.zeros(2))
