"""Mixtures: the laws of test_laws.py for processes that are several at once, and texts that keep to their component."""

import pytest
import torch
from test_laws import (
    COUNT,
    SPECIALS,
    A,
    B,
    S,
    data,
    directly,
    fit,
    law_of,
    many,
    patterned,
    plain,
    same,
    samples,
    step,
    tally,
    time,
)

from textdiff.denoiser import Oracle
from textdiff.keys import Key
from textdiff.posterior import Draw
from textdiff.process import Deletion, Masking, Mixture
from textdiff.remasking import forward_backward
from textdiff.rules import fresh, partial, posterior
from textdiff.tokens import Tokens
from textdiff.udm import UDM

PARTS = [(1.0, Deletion(SPECIALS, empty=1)), (3.0, Masking(SPECIALS))]
MIXED = Mixture(PARTS, SPECIALS.pad)
WORDS = [[], [A], [A, A], [A, A], [B, A, A], [A, B]]
RULES = [
    pytest.param(rule, id=name) for name, rule in (("fresh", fresh), ("rho", partial(0.3)), ("posterior", posterior))
]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("text", [plain, patterned])
def test_consistency(text, rule) -> None:
    """Identity 2, two samples of 50,000 texts, false alarm 1e-6."""
    assert same(step(MIXED, text, rule), directly(MIXED, text)) > 1e-6


def test_another_mixture_is_noticed() -> None:
    other = Mixture([(1.2, PARTS[0][1]), (2.8, PARTS[1][1])], SPECIALS.pad)
    assert same(step(MIXED, plain, posterior), directly(other, plain)) < 1e-6


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("steps", [1, 2, pytest.param(8, marks=pytest.mark.slow)])
def test_a_perfect_denoiser_samples_the_data(rule, steps) -> None:
    """Identity 3 for texts of one length, whose prior each component reaches. N = 50,000, false alarm 1e-6."""
    words = [[A, A, A]] * 3 + [[B, B, B]] * 2 + [[A, B, A]]
    assert fit(samples(Oracle(MIXED, data(words)), MIXED, words, rule, steps), law_of(words)) > 1e-6


class Switching(Mixture):
    """The control: on the way back the component is forgotten."""

    def infer(self, xt: Tokens, draw, t: torch.Tensor, key: Key):
        return super().infer(xt.with_(part=xt.part.flip(0) * xt.valid), draw, t, key)


def test_a_component_that_is_forgotten_is_noticed() -> None:
    process = Switching(PARTS, SPECIALS.pad)
    assert same(step(process, plain, posterior), directly(process, plain)) < 1e-6


def test_every_text_keeps_to_its_component() -> None:
    """Shares as the weights say (N = 40,000, 5 deviations), ids as the component makes them, also in mixed batches."""
    count = 40_000
    x0, key, t = many(plain(), count), Key.of(0, count), time(count, 0.6)
    xt = MIXED.corrupt(x0, MIXED.noise(x0, key), t)
    deleted = xt.part[:, 0] == 1
    assert abs(int(deleted.sum()) - count / 4) < 5 * (count * 3 / 16) ** 0.5
    assert not bool((xt.ids[deleted] == SPECIALS.mask).any()) and not bool((xt.ids[~deleted] == SPECIALS.gap).any())
    alone = MIXED.corrupt(x0[5:6], MIXED.noise(x0[5:6], key[torch.tensor([5])]), t[5:6])
    assert tally(alone.ids) == tally(xt[5:6].ids)
    page = x0[:8].with_(part=torch.ones_like(x0.ids[:8]))  # what a user writes goes to the first
    assert MIXED.noise(page, key[torch.arange(8)]).choice.tolist() == [0] * 8


class Returning(Mixture):
    """The control: data go to the first component, however they came about."""

    def infer(self, xt: Tokens, draw, t: torch.Tensor, key: Key):
        return super().infer(xt.with_(part=xt.valid.long()), draw, t, key)


def test_from_data_a_component_is_drawn_anew() -> None:
    """Su's law from t = 0, where rules that go forward again may pass: data do not tell which component they came from."""
    x0, zero, s = many(plain(), COUNT), time(COUNT, 0.0), time(COUNT, S)
    data_ = MIXED.corrupt(x0, MIXED.noise(x0, Key.of(3, COUNT)), zero)
    assert not bool(data_.part.any())
    for process, right in ((MIXED, True), (Returning(PARTS, SPECIALS.pad), False)):
        noise = forward_backward()(
            process, data_, Draw(data_, torch.empty(0).long(), data_.score), zero, s, Key.of(4, COUNT)
        )
        found = same(tally(process.corrupt(data_, noise, s).ids), directly(MIXED, plain))
        assert found > 1e-6 if right else found < 1e-6


def test_the_bound_is_that_of_the_first() -> None:
    words = [[A, A, A], [B, A, B], [B, A, B]]
    x0, key = data(words), Key.of(0, 3)
    shares = torch.tensor([1 / 3, 2 / 3, 2 / 3], dtype=torch.float64)
    torch.testing.assert_close(UDM(MIXED, Oracle(MIXED, data(words))).bound(x0, key), -shares.log())
    assert MIXED.size(x0).tolist() == [3, 3, 3]
    with pytest.raises(ValueError, match="weigh times differently"):
        MIXED.weight(time(3, 0.5))


@pytest.mark.parametrize("parts", [PARTS[:1], [(0.0, PARTS[0][1]), PARTS[1]]])
def test_what_is_no_mixture(parts) -> None:
    with pytest.raises(ValueError, match="two processes or more"):
        Mixture(parts, SPECIALS.pad)
