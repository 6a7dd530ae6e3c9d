"""Tiny checkpoints with random weights, for the tests that need something to load, fill and save."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from textdiff.checkpoint import Checkpoint, DiffusionConfig
from textdiff.models import SIZES, new_model
from textdiff.tokenizer import specials, train_tokenizer

KINDS = ("parallel", "autoregressive", "seq2seq")
WORDS = ["We the people.", "A more perfect union, of the people.", "It is 1787; we go on and on."]
SHAPE = {"hidden": 32, "layers": 1, "heads": 2, "inner": 32}


def tiny_checkpoint(
    kind: str = "parallel", texts: Sequence[str] = WORDS, *, vocab: int = 300, lengths: int = 8, reads: int = 64,
    **config: Any,
) -> Checkpoint:  # fmt: skip
    """A model of the kind that has learned nothing, with a tokenizer trained on the texts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIZES, "tiny", replace(SIZES["tiny"], **SHAPE))
        tokenizer = train_tokenizer(texts, vocab, lengths=lengths)
        torch.manual_seed(0)
        model = new_model(kind, "tiny", specials(tokenizer), len(tokenizer), reads).eval()
    return Checkpoint(model, tokenizer, DiffusionConfig(denoiser=kind, **config))
