"""A forward process of one's own: hangman, which hides a letter wherever it stands. Run: python examples/new_process.py"""

import torch
from transformers import BertConfig, BertForMaskedLM

from textdiff import UDM, Draw, Key, Parallel, Process, sample
from textdiff.tokens import Specials, Tokens

SPECIALS = Specials(pad=0, bos=1, mask=2, gap=3)
LETTERS = "abcdefghijklmnopqrstuvwxyz"
FIRST = 4  # the id of "a"


class Hangman(Process):
    """x_t hides every letter of the alphabet whose u is below t, at all its places.

    `noise` and `corrupt` are enough: without `infer` it samples by Su's baseline, with it what was found stays found.
    """

    def noise(self, x0: Tokens, key: Key) -> torch.Tensor:
        return key.uniform(FIRST + len(LETTERS))  # one u per letter, shared by all its places

    def corrupt(self, x0: Tokens, noise: torch.Tensor, t: torch.Tensor) -> Tokens:
        hidden = (noise.gather(1, x0.ids) < t[:, None]) & x0.valid & ~x0.fixed
        return x0.with_(ids=x0.ids.masked_fill(hidden, SPECIALS.mask))

    def infer(self, xt: Tokens, draw: Draw, t: torch.Tensor, key: Key) -> torch.Tensor:
        u, zero, time = key.uniform(FIRST + len(LETTERS)), torch.zeros(len(xt), FIRST + len(LETTERS)), t[:, None]
        seen, guessed = zero.scatter(1, xt.ids, 1.0), zero.scatter(1, draw.x0.ids, 1.0)
        return torch.where(seen > 0, time + u * (1 - time), torch.where(guessed > 0, u * time, u))

    def align(self, x0: Tokens, noise: torch.Tensor, t: torch.Tensor) -> Draw:
        return Draw(x0, torch.arange(x0.ids.shape[1]).expand_as(x0.ids), x0.score)

    def size(self, x0: Tokens) -> torch.Tensor:
        return x0.sizes


def tokens(words: list[str]) -> Tokens:
    """Words as a batch of letters; _ is a letter to guess."""
    rows = [[SPECIALS.bos] + [FIRST + LETTERS.index(c) if c != "_" else SPECIALS.mask for c in word] for word in words]
    return Tokens.from_rows(rows, SPECIALS.pad)


def spell(x: Tokens) -> list[str]:
    """The rows as text."""
    shown = {SPECIALS.pad: "", SPECIALS.bos: "", SPECIALS.mask: "_"}
    return ["".join(shown.get(i, LETTERS[i - FIRST]) for i in row) for row in x.ids.tolist()]


def main(steps: int = 500) -> None:
    """Learn five words, then guess them from a blank page."""
    torch.manual_seed(0)
    x0 = tokens(["banana", "tattoo", "cocoon", "settee", "kayaks"])
    size = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = BertForMaskedLM(BertConfig(vocab_size=FIRST + len(LETTERS), max_position_embeddings=16, **size))
    udm = UDM(Hangman(), Parallel(model, SPECIALS))
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for step in range(steps):
        loss = udm(x0, Key.of(0, len(x0)).fold(step))
        (loss.total / loss.size).backward()
        optimizer.step()
        optimizer.zero_grad()
    udm.eval()
    page = tokens(["______"] * 4)
    for turn in sample(udm.denoiser, udm.process, page, steps=16, key=Key.of(1, len(page))):
        print(f"s = {turn.s[0]:.2f}", *spell(turn.x))


if __name__ == "__main__":
    main()
