"""The language-model head, and so logits and loss, at chosen positions alone, for any stock model.

A forward hook hands the head only the chosen rows of the last hidden state: bit for bit what slicing the full logits
gives, without the (B, L, V) tensor that the rest of the field computes (at V = 50k it is most of the cost).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


def logits_at(model: Any, where: Tensor, **inputs: Any) -> Tensor:
    """Logits (S, V) of `model(**inputs)` at the S places of `where` (B, L) bool, in row-major order."""
    with _rows(model, where):
        return model(**inputs).logits[0]


@contextmanager
def _rows(model: Any, where: Tensor) -> Iterator[None]:
    def after_body(module: nn.Module, args: Any, output: Any) -> Any:
        chosen = output[0][where][None]
        if isinstance(output, tuple):
            return (chosen, *output[1:])
        output.last_hidden_state = chosen
        return output

    def before_head(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0][where][None], *args[1:])

    if model.base_model is not model:
        handle = model.base_model.register_forward_hook(after_body)
    else:  # T5 keeps encoder and decoder beside the head
        handle = model.get_output_embeddings().register_forward_pre_hook(before_head)
    try:
        yield
    finally:
        handle.remove()
