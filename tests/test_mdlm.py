"""The weighted loss of masking is MDLM's (Sahoo et al., arXiv:2406.07524), number for number: see golden/README.md."""

import json
from pathlib import Path

import pytest
import torch

from textdiff.denoiser import Parallel
from textdiff.keys import Key
from textdiff.process import Masking
from textdiff.schedule import Linear, Schedule
from textdiff.tokens import Specials, Tokens
from textdiff.udm import UDM, Objective

SPECIALS = Specials(pad=0, bos=1, mask=2, gap=3)
V, L, B, WORD = 28, 64, 4, 4  # theirs counts the mask, the last one; ours has 27 words from WORD on
GOLDEN = json.loads((Path(__file__).parent / "golden" / "mdlm.json").read_text())["nlls"]


class LogLinear(Schedule):
    """Theirs: sigma = -log(1 - (1 - eps) t), so alpha = 1 - (1 - eps) t; here with nothing left at t = 1."""

    def alpha(self, t: torch.Tensor) -> torch.Tensor:
        return (1 - (1 - 1e-3) * t).masked_fill(t == 1, 0.0)

    def slope(self, t: torch.Tensor) -> torch.Tensor:
        return torch.full_like(t, -(1 - 1e-3))


class Frozen(Parallel):
    """A parallel model with given logits (B, 1 + L, vocabulary)."""

    def __init__(self, table: torch.Tensor) -> None:
        super().__init__(None, SPECIALS)
        self.table = table

    def read(self, x: Tokens) -> "Frozen":
        return self

    def logits(self, where: torch.Tensor) -> torch.Tensor:
        mute = torch.zeros(self.table.shape[2], dtype=torch.bool)
        mute[SPECIALS.not_text] = True
        return self.table[where].masked_fill(mute, -torch.inf)


def loss(seed: int, schedule: Schedule) -> float:
    key = Key.of(seed, B)
    words = (key.fold(10).uniform(L) * (V - 1)).long()
    logits = 8 * key.fold(11).uniform(L * V).view(B, L, V) - 4
    special = 5.0 + torch.zeros(B, L, WORD, dtype=torch.float64)
    special[..., SPECIALS.mask] = logits[..., -1]
    table = torch.cat([special, logits[..., :-1]], 2)
    table = torch.cat([torch.zeros_like(table[:, :1]), table], 1)
    x0 = Tokens.from_rows([[1, *row] for row in (words + WORD).tolist()], SPECIALS.pad)
    udm = UDM(Masking(SPECIALS, schedule), Frozen(table), Objective(weighted=True))
    return float(udm(x0, key).total)


@pytest.mark.parametrize("seed", range(50))
def test_the_weighted_loss_is_mdlm(seed: int) -> None:
    """Relative difference at most 1e-6 (ours takes the logarithm in float32, theirs was run in float64)."""
    assert loss(seed, LogLinear()) == pytest.approx(GOLDEN[seed], rel=1e-6)


def test_another_schedule_is_not() -> None:
    """The control: alpha = 1 - t, as close as a thousandth, masks another token now and then."""
    assert any(loss(seed, Linear()) != pytest.approx(GOLDEN[seed], rel=1e-6) for seed in range(50))
    assert len(GOLDEN) == 50 and loss(0, LogLinear()) != pytest.approx(GOLDEN[1], rel=0.1)
