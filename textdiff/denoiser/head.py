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
        logits = model(**inputs).logits
    if logits.shape[:2] == (1, int(where.sum())):
        return logits[0]
    return logits[:, : where.shape[1]][where]  # a head that reads something else: ProphetNet's, Perceiver's


@contextmanager
def _rows(model: Any, where: Tensor) -> Iterator[None]:
    """The head sees the chosen rows alone, whichever of body and head first has a row for each place."""
    chosen = False

    def rows(hidden: Tensor) -> Tensor:
        nonlocal chosen
        if chosen or hidden.shape[:-1] != where.shape:
            return hidden
        chosen = True
        return hidden[where][None]

    def after_body(module: nn.Module, args: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (rows(output[0]), *output[1:])
        output.last_hidden_state = rows(output[0])
        return output

    def before_head(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (rows(args[0]), *args[1:])

    handles = []
    if model.base_model is not model:
        handles.append(model.base_model.register_forward_hook(after_body))
    # T5 keeps encoder and decoder beside the head, and OPT's and BART's decoders never call the base model as such
    if (head := model.get_output_embeddings()) is not None:
        handles.append(head.register_forward_pre_hook(before_head))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
