"""How long gaps become: what all of a text share, what is asked of one, and that it is decided row by row."""

import pytest
import torch
from test_laws import NAMED, X

from textdiff.constraints import Constraint
from textdiff.denoiser.lengths import LengthFirst
from textdiff.keys import Key
from textdiff.posterior import Decode
from textdiff.tokens import Specials, Tokens

LONG = Specials(pad=0, bos=1, mask=2, gap=3, lengths=tuple(range(20, 30)))


class Says(LengthFirst):
    """A model that wants a number of words in each gap, in their order."""

    factorised = True

    def __init__(self, xt: Tokens, counts: list[int]) -> None:
        super().__init__(xt, LONG)
        self.counts = counts

    def ask(self, x: Tokens, where: torch.Tensor) -> torch.Tensor:
        logits = torch.full((int(where.sum()), 30), -torch.inf)
        for row, count in enumerate(self.counts):
            logits[row, LONG.lengths[count]] = 0.0
        return logits

    def answer(self, states: Tokens, where: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


def opened(counts: list[int], longest: int | None) -> list[int]:
    """How many words the gaps of a text with three words get."""
    xt = Tokens.from_rows([[1, *[part for _ in counts for part in (X, NAMED.gap)]]], NAMED.pad)
    draw = Says(xt, counts).draft(Decode(longest=longest), Key.of(0, 1))
    return torch.bincount(draw.place[0], minlength=xt.ids.shape[1])[xt.ids[0] == NAMED.gap].tolist()


@pytest.mark.parametrize(
    ("room", "due"),
    [
        (None, [3, 0, 4]),
        (20, [3, 0, 4]),
        (7, [3, 0, 4]),
        (6, [3, 0, 3]),
        (3, [3, 0, 0]),
        (2, [2, 0, 0]),
        (0, [0, 0, 0]),
    ],
)
def test_gaps_share_the_room_that_is_left(room: int | None, due: list[int]) -> None:
    """The first take what they want, and the last what there is. A text of seven tokens, markers included."""
    assert opened([3, 0, 4], None if room is None else 7 + room) == due


@pytest.mark.parametrize("beside", [False, True])
def test_words_under_a_constraint_are_not_deleted_again(beside: bool) -> None:
    """Whether or not a text beside it has a gap whose length is to be said."""
    rows = [[1, X, X], [1, NAMED.gap, X]][: 1 + beside]
    xt = Tokens.from_rows(rows, NAMED.pad)
    slot = torch.zeros_like(xt.ids)
    slot[0, 2] = 1
    decode = Decode(constraints=(Constraint(0, 4),))
    draw = Says(xt.with_(slot=slot), [2] * beside).draft(decode, Key.of(0, len(rows)))
    assert draw.x0.counted[0, :3].tolist() == [False, False, True]
    assert not bool(draw.x0.counted[1:].any())
