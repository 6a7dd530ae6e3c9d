"""The language-model head, and so logits and loss, at chosen positions alone, for any stock model.

A forward hook hands the head only the chosen rows of the last hidden state: bit for bit what slicing the full logits
gives, without the (B, L, V) tensor that the rest of the field computes (at V = 50k it is most of the cost). What was
read once can be asked again, at other places or a few at a time: the body is then replaced by what it had said.
"""

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from textdiff.denoiser import last
from textdiff.denoiser.base import device_of
from textdiff.denoiser.swapping import instead, probing, unheard

PIECE, LARGE = 1 << 20, 1 << 27  # how many logits are held at once, on a CPU (what its cache is good for) and elsewhere


def logits_at(model: Any, where: Tensor, **inputs: Any) -> Tensor:
    """Logits (S, V) of `model(**inputs)` at the S places of `where` (B, L) bool, in row-major order."""
    return Reading(model, where.shape, **inputs).logits(where)


class Reading:
    """A batch as a stock model reads it, `shape` (B, L): its body runs once, when it is first asked.

    Where few places are asked the last layer answers for them alone (`last`); whoever asks for others has it read again.
    Inputs and places may be elsewhere than the model.
    """

    def __init__(self, model: Any, shape: torch.Size, **inputs: Any) -> None:
        self.model, self.shape, self.device = model, shape, device_of(model)
        self.inputs = {
            name: what.to(self.device) if isinstance(what, Tensor) else what for name, what in inputs.items()
        }
        self._said: Any = None  # the body's output, where the head can be asked without it
        self._chosen: last.Chosen | None = None  # the places that it is of, where these are not all

    def pieces(self, where: Tensor) -> Iterator[Tensor]:
        """The logits (s, V) at the S places `where` (B, L), in row-major order, a few places at a time."""
        self._choose(where)
        row, column = where.nonzero(as_tuple=True)
        size = piece(self.model, self.device)
        if len(row) <= size:
            yield self._ask(where)
            return
        for begin in range(0, len(row), size):
            part = torch.zeros_like(where)
            part[row[begin : begin + size], column[begin : begin + size]] = True
            yield self._ask(part)

    def logits(self, where: Tensor) -> Tensor:
        """Logits (S, V) at the S places of `where` (B, L) bool, in row-major order."""
        self._choose(where)
        return self._ask(where)

    def _ask(self, where: Tensor) -> Tensor:
        with self._rows(where):
            logits = self.model(**self.inputs).logits
        if logits.shape[:2] == (1, int(where.sum())):
            return logits[0]
        # a head that reads something else: ProphetNet's, Perceiver's
        return logits[:, : where.shape[1]][where.to(self.device)]

    def _choose(self, where: Tensor) -> None:
        """What is read next is to be of these places, if what was read is not of them."""
        if self._said is not None and (self._chosen is None or not bool((where & ~self._chosen.where).any())):
            return
        again, self._said = self._said is not None, None
        few = where.shape[1] >= last.LENGTH and int(where.sum(1).max()) <= last.SHARE * where.shape[1]
        wanted = few and not again and not self.model.training and bool(where.any())
        if self._chosen is None or again:
            self._chosen = last.Chosen(where) if wanted and self._able() else None

    def _able(self) -> bool:
        """Return whether the last layer can run at chosen places alone."""
        with probing(self.model):
            return last.able(self.model)

    def _moved(self, at: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(part.to(self.device) for part in at)

    @contextmanager
    def _rows(self, where: Tensor) -> Iterator[None]:
        """The head sees the chosen rows alone, whichever of body and head first has a row for each place."""
        body, head = self.model.base_model, self.model.get_output_embeddings()
        chosen, handles, again = False, [], self._said
        at = where.nonzero(as_tuple=True)
        # before the call: what is copied to a GPU later waits until the call is done
        there = self._moved(at)
        few = None if self._chosen is None else self._moved(self._chosen.index(at))

        def rows(hidden: Tensor) -> Tensor:
            nonlocal chosen
            if self._chosen is not None and self._chosen.used and not chosen:
                chosen = True
                return hidden[few][None]
            if chosen or hidden.shape[:-1] != where.shape:
                return hidden
            chosen = True
            return hidden[there][None]

        def after_body(module: nn.Module, args: Any, output: Any) -> Any:
            if self._chosen is not None and not self._chosen.used:
                self._chosen = None
            if not self.model.training and (self._chosen or output[0].shape[:-1] == where.shape):
                self._said = output
            return with_hidden(output, rows(output[0]))

        def before_head(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (rows(args[0]), *args[1:])

        if body is not self.model and again is None:
            handles.append(body.register_forward_hook(after_body))
        # T5 keeps encoder and decoder beside the head, and OPT's and BART's decoders never call the base model as such
        if head is not None:
            handles.append(head.register_forward_pre_hook(before_head))
        try:
            with ExitStack() as held:
                if again is not None:
                    said = with_hidden(again, rows(again[0]))
                    held.enter_context(unheard(body))
                    held.enter_context(instead(body, lambda *args, **kwargs: said))
                elif self._chosen is not None:
                    held.enter_context(last.at(self.model, self._chosen))
                yield
        finally:
            for handle in handles:
                handle.remove()


def with_hidden(output: Any, hidden: Tensor) -> Any:
    """The body's output with another last hidden state."""
    if isinstance(output, tuple):
        return (hidden, *output[1:])
    output = copy.copy(output)
    output.last_hidden_state = hidden
    return output


def piece(model: Any, device: torch.device) -> int:
    """How many places are asked at once."""
    head = model.get_output_embeddings()
    return max(1, (PIECE if device.type == "cpu" else LARGE) // (1 if head is None else head.weight.shape[0]))
