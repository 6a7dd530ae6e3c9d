"""The last layer of a model at chosen places alone: there it needs the keys and values of all places, and no other query.

A layer reads h (B, L, D); at a place its output is a function of h there and of everybody's keys and values. So it runs
twice: once up to its attention, where the keys and values of all places are caught, then on the chosen places, whose
attention is given those. No family of models is named: that the answers are the same is tried out once for each model
(`able`), and one of which it is not true, such as one whose attention knows where it stands, goes on in the usual way.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from textdiff.denoiser.swapping import instead

SHARE, LENGTH = 0.5, 48  # of the places asked at most, and of tokens at least, for it to be worth while
_CACHES = ("cache", "past_key_values", "past_key_value", "layer_past")
_PLAIN = (Tensor, bool, int, float, tuple, type(None))
_KNOWN: "WeakKeyDictionary[nn.Module, bool]" = WeakKeyDictionary()
_LAYERS: "WeakKeyDictionary[nn.Module, list[Any]]" = WeakKeyDictionary()


class _Caught(Exception):
    """What an attention was called with."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.args, self.kwargs = args, kwargs


class _Attention(TorchFunctionMode):
    """Calls of attention go to another function."""

    def __init__(self, answer: Callable[..., Tensor]) -> None:
        super().__init__()
        self.answer = answer

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return (self.answer if func is scaled_dot_product_attention else func)(*args, **(kwargs or {}))


class Chosen:
    """The places (B, L) bool that the last layer answers for. used: whether it did so, and its output is (B, S, D).

    Row b's place l is then in column `column[b, l]`.
    """

    def __init__(self, where: Tensor) -> None:
        self.where, self.used = where, False
        self.column = where.cumsum(1) - 1
        row, column = where.nonzero(as_tuple=True)
        # two at least: of a single query transformers packs grouped heads, which fits no keys that are repeated for them
        self.places = self.column.new_zeros(len(where), max(int(self.column[:, -1].max()) + 1, 2))
        self.places[row, self.column[row, column]] = column

    def index(self, at: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Rows and columns (S,) of its output (B, S, D) that are of the places `at` (S,), all of them chosen."""
        row, column = at
        return row, self.column[row, column]


@contextmanager
def at(model: Any, chosen: Chosen) -> Iterator[None]:
    """The model's last layer answers for the chosen places alone."""
    layer = layers(model)[-1]
    run = layer.forward

    def forward(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        cached = any(kwargs.get(name) is not None for name in _CACHES)
        if cached or not all(isinstance(arg, _PLAIN) for arg in args):  # a cache would take down every key twice
            return run(hidden, *args, **kwargs)
        try:
            with _Attention(_catch):
                run(hidden, *args, **kwargs)
        except _Caught as caught:
            query, key, value, *_ = caught.args
            mask, causal = caught.kwargs.get("attn_mask"), caught.kwargs.get("is_causal")
            fits = hidden.shape[:2] == chosen.where.shape and len(caught.args) == 3 and query.shape == key.shape
            if fits and not causal:  # no memory of earlier calls, no keys that several queries share
                chosen.used = True
                return _again(
                    run, hidden, args, kwargs, chosen.places.to(hidden.device), (key, value, mask, caught.kwargs)
                )
        return run(hidden, *args, **kwargs)

    with instead(layer, forward):
        yield


def _catch(*args: Any, **kwargs: Any) -> Tensor:
    raise _Caught(args, kwargs)


def _again(
    run: Callable[..., Any], hidden: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any], places: Tensor, seen: Any
) -> Any:
    """The layer on the places (B, S) alone, whose queries see the keys and values of all."""
    key, value, mask, options = seen
    if mask is not None and mask.shape[-2] > 1:
        mask = mask.expand(len(places), *mask.shape[1:]).gather(
            2, places[:, None, :, None].expand(-1, mask.shape[1], -1, mask.shape[3])
        )

    def attend(query: Tensor, *rest: Any, **own: Any) -> Tensor:
        return scaled_dot_product_attention(query, key, value, **{**options, "attn_mask": mask})

    placed = {name: _placed(what, places, hidden.shape[1]) for name, what in kwargs.items()}
    with _Attention(attend):
        return run(_placed(hidden, places, hidden.shape[1]), *args, **placed)


def _placed(what: Any, places: Tensor, length: int) -> Any:
    """What belongs to places (B or 1, L, D), rotary angles for one, at the chosen ones; all else as it is."""
    if isinstance(what, tuple):
        return tuple(_placed(one, places, length) for one in what)
    if not isinstance(what, Tensor) or what.dim() != 3 or what.shape[1] != length:
        return what
    return what.expand(len(places), -1, -1).gather(1, places[:, :, None].expand(-1, -1, what.shape[2]))


def layers(model: Any) -> list[Any]:
    """The model's layers; none where it has no list of like ones."""
    if model not in _LAYERS:
        _LAYERS[model] = _found(model)
    return _LAYERS[model]


def _found(model: Any) -> list[Any]:
    lists = [part for part in model.base_model.modules() if isinstance(part, nn.ModuleList) and len(part) > 1]
    alike = [part for part in lists if len({type(layer) for layer in part}) == 1]
    return [*max(alike, key=len)] if alike else []


@torch.no_grad()
def able(model: Any) -> bool:
    """Whether the last layer at chosen places says what the whole of it says there. Tried out once for each model."""
    if model not in _KNOWN:
        try:
            _KNOWN[model] = bool(layers(model)) and _alike(model)
        except Exception:  # whatever a family of models makes of it
            _KNOWN[model] = False
    return _KNOWN[model]


def forget(model: Any) -> None:
    """The model was changed: ask again."""
    _KNOWN.pop(model, None)
    _LAYERS.pop(model, None)


def _alike(model: Any) -> bool:
    weight = model.get_input_embeddings().weight
    numbers = torch.arange(2 * 2 * 12, device=weight.device) * 7919
    ids = (numbers % weight.shape[0]).view(2, 24)
    mask = torch.ones_like(ids)
    mask[1, 20:] = 0
    where = (numbers.view(2, 24) % 5 == 0) & mask.bool()
    inputs = {"input_ids": ids, "attention_mask": mask}
    if getattr(model.config, "use_cache", None) is not None:
        inputs["use_cache"] = False
    whole = model.base_model(**inputs)[0]
    chosen = Chosen(where)
    with at(model, chosen):
        part = model.base_model(**inputs)[0]
    right, near = whole[where], 1000 * torch.finfo(whole.dtype).eps
    return chosen.used and torch.allclose(
        part[chosen.index(where.nonzero(as_tuple=True))], right, atol=near * float(right.abs().max()), rtol=near
    )
