"""Which of several fillings of one text is given: the most fluent, the likeliest, or the one most like the others."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from textdiff.denoiser.base import Denoiser
from textdiff.tokens import Tokens


@dataclass(frozen=True)
class Select:
    """note: what is noted of finished texts x0 (N, L), one each. merits: a figure for each note, more is better."""

    note: Callable[[Denoiser, Tokens], list[Any]]
    merits: Callable[[list[Any]], list[float]] = list


def _likelihood(denoiser: Denoiser, x0: Tokens) -> list[float]:
    written = x0.valid & ~x0.fixed
    return x0.score.double().masked_fill(~written, 0.0).sum(1).tolist()


def _words(denoiser: Denoiser, x0: Tokens) -> "list[Counter[Any]]":
    """The words that were written, alone and with the one that follows in the text."""
    notes = []
    for ids, written, size in zip(x0.ids.tolist(), (~x0.fixed).tolist(), x0.valid.sum(1).tolist(), strict=True):
        found: Counter[Any] = Counter(ids[k] for k in range(size) if written[k])
        found.update((ids[k], ids[k + 1]) for k in range(size - 1) if written[k] or written[k + 1])
        notes.append(found)
    return notes


def _centrality(notes: "list[Counter[Any]]") -> list[float]:
    return [sum(_alike(one, other) for other in notes) for one in notes]


def _alike(one: "Counter[Any]", other: "Counter[Any]") -> float:
    """F1 of what two fillings have in common; two that write nothing are the same."""
    total = one.total() + other.total()
    return 2 * (one & other).total() / total if total else 1.0


SELECTS = {
    "fluent": Select(lambda denoiser, x0: denoiser.fluency(x0).tolist()),
    "likely": Select(_likelihood),
    "mbr": Select(_words, _centrality),
}
"""fluent: `Denoiser.fluency`. likely: the sum of the log-probabilities with which words were drawn; it prefers short ones.
mbr: minimum Bayes risk, the filling that has most in common with all others by F1 of words and pairs of words (Kumar and
Byrne, "Minimum Bayes-risk decoding for statistical machine translation", NAACL 2004)."""
