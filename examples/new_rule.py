"""A sampler of your own: a rule in a few lines, run by a small model that says the true law of every word.

Words that stand beside a visible word are revealed first, one a step; a gap in the middle is closed from both its ends.
"""

import torch
from torch import Tensor, nn

from textdiff import Denoiser, Key, Masking, Rule, Specials, Tokens, sample
from textdiff.posterior import Decode, Draw, Posterior
from textdiff.process.base import Noise, Process

SPECIALS = Specials(pad=0, bos=1, mask=2, gap=3)


def beside(process: Process, xt: Tokens, draw: Draw, t: Tensor, s: Tensor, key: Key) -> Noise:
    """What is hidden beside something visible comes first, in random order among equals."""
    noise, hidden = process.infer(xt, draw, t, key), process.hidden(xt, draw)
    seen = (draw.x0.valid & ~hidden).double()
    neighbours = seen.roll(1, 1) + seen.roll(-1, 1)
    return process.rank(noise, xt, draw, neighbours + key.fold(1).uniform(hidden.shape[1]))


BESIDE = Rule(beside)


class Guess(Denoiser):
    """Any word at all: letters, by chance."""

    timeless = True

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Identity()

    def forward(self, xt: Tokens, t: Tensor) -> Posterior:
        return _Guess(xt)


class _Guess(Posterior):
    def __init__(self, xt: Tokens) -> None:
        self.xt = xt

    def sample(self, decode: Decode, key: Key) -> Draw:
        words = 4 + (key.uniform(self.xt.ids.shape[1]) * 26).long()
        ids = torch.where(self.xt.ids == SPECIALS.mask, words, self.xt.ids)
        place = torch.arange(ids.shape[1]).expand_as(ids)
        return Draw(self.xt.with_(ids=ids), place, torch.zeros(ids.shape))

    def log_prob(self, truth: Draw) -> Tensor:
        return torch.zeros(truth.x0.ids.shape)


def spell(x: Tokens) -> str:
    return "".join("_" if token == SPECIALS.mask else chr(ord("a") + token - 4) for token in x.ids[0, 1:].tolist())


def main() -> None:
    page = Tokens.from_rows([[1] + [4] * 12], SPECIALS.pad)
    fixed = page.fixed | (torch.arange(13) == 4) | (torch.arange(13) == 9)
    process, key = Masking(SPECIALS, counts=True), Key.of(0, 1)
    start = process.prior(page.with_(fixed=fixed), key)
    for step in sample(Guess(), process, start, steps=10, key=key, rule=BESIDE):
        print(spell(step.x))


if __name__ == "__main__":
    main()
