"""How good a model is: the likelihood bound in bits per byte, and gaps of unknown length in texts it has never seen."""

import math
import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

import torch

from textdiff.data import to_tokens
from textdiff.filling import Infill
from textdiff.gaps import Gap, Parts
from textdiff.keys import Key
from textdiff.sentences import sentences
from textdiff.udm import UDM


@dataclass(frozen=True)
class Bound:
    """An upper bound on -log p: nats per token and bits per byte, with the standard error of the nats over texts."""

    nats: float
    error: float
    bits_per_byte: float
    texts: int

    def __str__(self) -> str:
        return f"{self.nats:.3f} ± {self.error:.3f} nats/token, {self.bits_per_byte:.3f} bits/byte"


def bound(udm: UDM, rows: Sequence[list[int]], sizes: Sequence[int], *, pad: int, seed: int = 0, draws: int = 1,
          batch: int = 64) -> Bound:  # fmt: skip
    """The bound of texts given as token rows (BOS first) with their sizes in bytes.

    Rows are looked at shortest first, so that little is padded; the noise is that of the row, not of the batch.
    """
    device = next(udm.parameters()).device
    training, nats = udm.training, torch.zeros(len(rows), dtype=torch.float64)
    udm.eval()
    order = sorted(range(len(rows)), key=lambda number: len(rows[number]))
    for begin in range(0, len(order), batch):
        mine = order[begin : begin + batch]
        x0 = to_tokens([rows[number] for number in mine], pad).to(device)
        key = Key.of(seed, torch.tensor(mine)).to(device)
        nats[mine] = udm.bound(x0, key, draws).cpu()
    udm.train(training)
    tokens = torch.tensor([len(row) - 1 for row in rows], dtype=torch.float64)
    rate = nats.sum() / tokens.sum()
    # the standard error of a ratio of sums, over texts
    error = (nats - rate * tokens).square().sum().sqrt() / tokens.sum()
    return Bound(float(rate), float(error), float(nats.sum()) / math.log(2) / sum(sizes), len(rows))


@dataclass(frozen=True)
class Case:
    """A text with one stretch of words taken out."""

    left: str
    answer: str
    right: str

    @property
    def parts(self) -> Parts:
        """The text with a gap of unknown length."""
        return [self.left, Gap(), self.right]


def finite(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row of figures as JSON can hold it: None for a figure that is not finite."""
    return {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in row.items()}


_WORD = re.compile(r"\S+")


def gap_cases(texts: Iterable[str], count: int, *, words: tuple[int, int] = (1, 5), seed: int = 0,
              longest: int = 220) -> list[Case]:  # fmt: skip
    """`count` gaps of words[0]..words[1] words in sentences of the texts, at most one in each, punctuation left standing.

    The sentence's total length says nothing of the gap's: gaps are placed uniformly in sentences as they come.
    """
    chance = random.Random(seed)
    pool = [s.strip() for text in texts for s in sentences(text)]
    pool = [s for s in pool if len(s) <= longest and len(_WORD.findall(s)) >= words[1] + 6]
    chance.shuffle(pool)
    cases = []
    for sentence in pool:
        found = list(_WORD.finditer(sentence))
        size = chance.randint(*words)
        first = chance.randrange(1, len(found) - size)
        begin, end = found[first].start(), found[first + size - 1].end()
        answer = sentence[begin:end].rstrip(".,;:!?\"')")
        if answer:
            cases.append(Case(sentence[:begin], answer, sentence[begin + len(answer) :]))
        if len(cases) == count:
            break
    return cases


@dataclass(frozen=True)
class GapScore:
    """Share of gaps filled exactly, its 95 % Wilson interval, and the mean error of the length in words."""

    exact: float
    low: float
    high: float
    length_error: float
    count: int

    def __str__(self) -> str:
        return f"exact {self.exact:.1%} [{self.low:.1%}, {self.high:.1%}], length error {self.length_error:.2f} words"


def gap_score(cases: Sequence[Case], filled: Sequence[Infill]) -> GapScore:
    """Compare the first gap of each filled text with the answer."""
    return score_answers([case.answer for case in cases], [result.gaps[0].text for result in filled])


def score_answers(answers: Sequence[str], given: Sequence[str]) -> GapScore:
    """Exact matches up to surrounding spaces, with their interval."""
    count, z = len(answers), 1.96
    exact = mean(a.strip() == g.strip() for a, g in zip(answers, given, strict=True))
    error = mean(abs(len(a.split()) - len(g.split())) for a, g in zip(answers, given, strict=True))
    centre = (exact + z * z / (2 * count)) / (1 + z * z / count)
    reach = z * math.sqrt(exact * (1 - exact) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return GapScore(exact, max(centre - reach, 0.0), min(centre + reach, 1.0), error, count)
