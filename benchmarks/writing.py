"""Masks in texts filled by any rule, the calls that it takes, and what the model says of words that were written."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from infilling import Text
from torch import Tensor

from textdiff.clocks import narrowed, portions
from textdiff.denoiser import Denoiser
from textdiff.filling import start_state
from textdiff.gaps import Gap
from textdiff.keys import Key
from textdiff.posterior import Decode
from textdiff.rulebook import rule_of
from textdiff.sampler import finished, sample
from textdiff.tokenizer import encode
from textdiff.tokens import Tokens


@dataclass(frozen=True)
class Model:
    """What `Checkpoint.tools` gives, of a parallel model."""

    denoiser: Any
    process: Any
    tokenizer: Any
    specials: Any

    def start(self, texts: Sequence[Text]) -> tuple[Tokens, Tensor]:
        """Texts with as many masks in their gaps as the answers have tokens, and the truth's ids (B, L)."""
        sizes = [[len(encode(self.tokenizer, " " + answer)) for answer in text.answers] for text in texts]
        whole = [text.parts([Gap.of(n) for n in mine]) for text, mine in zip(texts, sizes, strict=True)]
        x = start_state(whole, self.tokenizer, self.specials)
        words = [token for text in texts for answer in text.answers for token in encode(self.tokenizer, " " + answer)]
        return x, x.ids.masked_scatter(x.ids == self.specials.mask, torch.tensor(words))


@contextmanager
def reads(model: Any) -> Iterator[list[int]]:
    """A list with one number: how many texts the body of the model has read meanwhile, each counted as often as it was."""
    count = [0]

    def add(module: Any, args: Any, inputs: dict[str, Any]) -> None:
        count[0] += len(inputs["input_ids"])

    handle = model.base_model.register_forward_pre_hook(add, with_kwargs=True)
    try:
        yield count
    finally:
        handle.remove()


def write(
    model: Model, x: Tokens, rule: str, steps: float, seed: int, temperature: float = 1.0,
    denoiser: Denoiser | None = None, single: bool = False,
) -> tuple[Tensor, float]:  # fmt: skip
    """The ids (B, L) of texts x with their masks filled, and the calls for each. single: one text at a time."""
    key, ids, decode = Key.of(seed, len(x)), x.ids.clone(), Decode(temperature=temperature)
    batches = [torch.tensor([row]) for row in range(len(x))] if single else list(portions(x, x.ids.device))
    with reads(model.denoiser.model) as count, torch.inference_mode():
        for mine in batches:
            now = model.process.prior(narrowed(x[mine], model.specials), key[mine].fold(1 << 40))
            run = sample(denoiser or model.denoiser, model.process, now, steps=steps, rule=rule_of(rule), decode=decode,
                         key=key[mine])  # fmt: skip
            for rows, x0 in finished(run):
                ids[mine[rows], : x0.ids.shape[1]] = x0.ids
    return torch.where(x.valid, ids, x.ids), count[0] / len(x)


def nats(model: Model, x: Tokens, ids: Tensor) -> np.ndarray:
    """(B,) -log q of the words `ids` (B, L) at the masks of x: one after the other in a random order."""
    where = x.ids == model.specials.mask
    order = Key.of(7, len(x)).uniform(where.shape[1]).masked_fill(~where, 2.0)
    total = torch.zeros(len(x), dtype=torch.float64)
    for part in where.nonzero().split(64):
        row, column = part.unbind(1)
        this = torch.zeros_like(where[row]).scatter(1, column[:, None], True)
        hidden = where[row] & (order[row] >= order[row, column][:, None])
        states = narrowed(x[row].with_(ids=ids[row].masked_fill(hidden, model.specials.mask)), model.specials)
        with torch.inference_mode():
            logits = model.denoiser.logits(states, this[:, : states.ids.shape[1]]).double()
        said = logits.log_softmax(-1).gather(1, ids[row, column][:, None])[:, 0]
        total.index_add_(0, row, -said)
    return total.numpy()
