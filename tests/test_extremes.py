"""Numbers at the end of their range: a temperature near 0 is the most probable word, one without bound any word alike."""

import pytest
import torch
from scipy import stats

from textdiff.constraints import Automaton, Constraint
from textdiff.denoiser.words import _draw
from textdiff.drawing import draw_tokens
from textdiff.posterior import Decode

LOGITS = torch.tensor([[2.0, -1.0, 0.5, -torch.inf, 1.0]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [1e-320, 1e-46, 1e-39, 1e-5])
def test_a_temperature_near_0_takes_the_most_probable_word(temperature: float, dtype: torch.dtype) -> None:
    u = torch.linspace(1e-6, 1 - 1e-6, 50, dtype=torch.float64)
    ids, sure = draw_tokens(LOGITS.to(dtype).expand(50, -1), u, Decode(temperature))
    assert ids.tolist() == [0] * 50 and bool(sure.isfinite().all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [1e30, 1e39, 1e99, 1e308])
def test_a_temperature_without_bound_draws_any_word_alike(temperature: float, dtype: torch.dtype) -> None:
    """4,000 draws of four words, at a false-alarm rate of 1e-6; the word of no probability never comes."""
    u = torch.rand(4000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    counts = draw_tokens(LOGITS.to(dtype).expand(4000, -1), u, Decode(temperature))[0].bincount(minlength=5)
    assert counts[3] == 0
    assert stats.chisquare(counts[[0, 1, 2, 4]].tolist()).pvalue > 1e-6


@pytest.mark.parametrize("options", [{"top_p": 1e-320}, {"top_p": 1e-46}, {"min_p": 1.0}, {"top_k": 1}])
def test_what_is_left_of_the_words_is_never_none(options: dict) -> None:
    u = torch.linspace(1e-6, 1 - 1e-6, 50, dtype=torch.float64)
    assert draw_tokens(LOGITS.expand(50, -1), u, Decode(**options))[0].tolist() == [0] * 50


@pytest.mark.parametrize(
    ("temperature", "words"), [(1e-320, {(0, 2)}), (1e99, {(0, 2), (1, 2), (2, 0), (2, 1), (4, 2)})]
)
def test_under_a_constraint_as_well(temperature: float, words: set) -> None:
    """Two words, one of which alone is the third, at temperatures of every size."""
    step = torch.tensor([[0, 0, 1, 0, 0], [1, 1, -1, 1, 1]])
    constraint = Constraint(automaton=Automaton(step, torch.tensor([False, True])))
    seen = set()
    for number in range(60):
        u = torch.rand(2, generator=torch.Generator().manual_seed(number), dtype=torch.float64)
        drawn = _draw(
            constraint, LOGITS.double().log_softmax(-1).expand(2, -1), torch.full((2,), -1), u, Decode(temperature)
        )
        seen.add(tuple(drawn.tolist()))
    assert all(2 in row and 3 not in row for row in seen)
    assert seen <= {(0, 2), (2, 0)} if temperature < 1 else len(seen) >= len(words)
