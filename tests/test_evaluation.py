"""What the evaluation measures: intervals, gaps whose length nothing gives away, bounds that do not depend on batches."""

import math
import random

import pytest
import torch

from textdiff.data import load_texts
from textdiff.denoiser import Parallel
from textdiff.evaluation import bound, gap_cases, score_answers
from textdiff.models import new_model
from textdiff.process import Masking
from textdiff.tokens import Specials
from textdiff.udm import UDM

IDS = Specials(pad=0, bos=1, mask=2, gap=3, fill=4, end=5, lengths=tuple(range(6, 16)))


def explained(visible: list[int], gap: list[int]) -> float:
    """Share of the gap lengths' variance that the best straight line in the visible length explains."""
    pairs = torch.tensor([visible, gap], dtype=torch.float64)
    return float(torch.corrcoef(pairs)[0, 1] ** 2)


def test_total_length_gives_no_gap_away() -> None:
    """On the test years, counting the visible words explains less than a tenth of the variance of the gap's length.

    1,000 sentences; if nothing but chance were at work the share would exceed 0.02 once in 10^5 draws. Some of it is not
    chance: a longer gap leaves fewer words of the same sentence. Control: texts of one length, where counting says it all.
    """
    cases = gap_cases(load_texts("data/sotu", "test")["text"], 1000)
    visible = [len((case.left + " " + case.right).split()) for case in cases]
    assert len(cases) == 1000
    assert explained(visible, [len(case.answer.split()) for case in cases]) < 0.1
    chance = random.Random(0)
    sizes = [chance.randint(1, 5) for _ in range(1000)]
    assert explained([30 - size for size in sizes], sizes) > 0.99


def test_cases_rebuild_their_sentence() -> None:
    text = "We will now build many more good roads and bridges, for the people of this great nation. "
    for case in gap_cases([text * 5], 5):
        assert (case.left + case.answer + case.right) == text.strip()
        assert 1 <= len(case.answer.split()) <= 5


def test_wilson_interval() -> None:
    """10 of 100: the interval of the textbooks, 5.5 % to 17.4 %."""
    score = score_answers(["a"] * 100, ["a"] * 10 + ["b c"] * 90)
    assert (score.exact, score.length_error) == (0.1, 0.9)
    assert score.low == pytest.approx(0.0552, abs=5e-4)
    assert score.high == pytest.approx(0.1744, abs=5e-4)


def test_bound_does_not_depend_on_batches() -> None:
    torch.manual_seed(0)
    rows = [[1, *torch.randint(16, 40, (int(n),)).tolist()] for n in torch.randint(3, 20, (30,))]
    udm = UDM(Masking(IDS), Parallel(new_model("parallel", "tiny", IDS, 40, 64), IDS))
    figures = [bound(udm, rows, [len(row) for row in rows], pad=IDS.pad, batch=size) for size in (1, 7, 64)]
    assert figures[0].nats == pytest.approx(figures[1].nats, rel=1e-5) == pytest.approx(figures[2].nats, rel=1e-5)
    # an untrained model is near the uniform guess over the 24 words and the 10 entries that are no text
    assert figures[0].nats == pytest.approx(math.log(24), abs=0.3)
    assert figures[0].error > 0
