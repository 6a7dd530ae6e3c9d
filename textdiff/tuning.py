"""Quicker calls of a stock model: layers compiled, calls recorded as CUDA graphs, weights of 8 or 16 bits.

    tune(model, "compile")              layers compiled by torch: seconds at the first call, and at new kinds of shapes
    tune(model, "int8")                 8-bit weights and activations of the layers (torchao), which are then compiled
    tune(model, "bf16")                 16-bit weights, for GPUs, and CPUs that multiply them (AMX); slower on others
    tune(model, "bf16", "graphs")       calls of the body recorded and replayed: a GPU then waits for no Python

compile is for models that read a text whole: beside a cache torch compiles again for each layer, and gives up at eight.
Compiled and recorded calls say what the model says, to rounding; 8 and 16 bits change it (docs/decoding.md has by how much).
For decoding alone: train first.
"""

import inspect
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from textdiff.denoiser import last
from textdiff.denoiser.head import with_hidden
from textdiff.validation import shown

HALVED = "textdiff_keeps_bf16"  # on a model: its 16 bits are what was asked for, not how its file happens to be
MOST = 64  # recorded calls that are kept, the latest
WARM = 3  # calls before one is recorded: what libraries set up at first is not to be in it


def tune(model: Any, *ways: str) -> Any:
    """The same model, changed in place: compile, int8, bf16, graphs, in this order. ValueError for what cannot be done."""
    unknown = [way for way in ways if not isinstance(way, str) or way not in WAYS]
    if unknown:
        raise ValueError(f"unknown way {shown(unknown[0])} to tune a model; there are {', '.join(WAYS)}")
    if not isinstance(model, torch.nn.Module):
        raise ValueError(f"model must be a torch module; got {shown(model)}")
    for name, way in WAYS.items():
        if name in ways:
            way(model)
    last.forget(model)
    return model


def _halved(model: Any) -> None:
    model.to(torch.bfloat16)
    setattr(model, HALVED, True)


def _quantized(model: Any) -> None:
    """Linear maps of the layers; embeddings and head, whose scores words are drawn from, stay as they are."""
    try:
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_
    except ImportError as error:
        raise ValueError("int8 needs torchao; install it with pip install 'textdiff[int8]'") from error
    found = _layers(model, "int8")
    # of the last layer hardly anything is computed where it answers for few places, and that is nothing to compile
    for layer in found[:-1] if last.able(model) else found:
        quantize_(layer, Int8DynamicActivationInt8WeightConfig())
    _compiled(model)  # eager, torchao's kernels are slower than what they replace


def _compiled(model: Any) -> None:
    """Layer by layer: they are alike, so that one is compiled for all, and hooks of the model stay outside."""
    for layer in _layers(model, "compile"):
        layer.compile()


def _layers(model: Any, way: str) -> list[nn.Module]:
    found = last.layers(model)
    if not found:
        raise ValueError(f"{type(model).__name__} has no list of like layers, so it cannot be tuned by {way}")
    return found


def _recorded(model: Any) -> None:
    body = model.base_model
    device = next(body.parameters()).device
    if device.type != "cuda":
        raise ValueError(f"graphs are recorded on CUDA devices alone, and the model is on {device}; leave graphs out")
    if not isinstance(body.forward, Recorded):
        body.__dict__["forward"] = Recorded(body.forward)


WAYS: dict[str, Callable[[Any], None]] = {
    "bf16": _halved,
    "int8": _quantized,
    "compile": _compiled,
    "graphs": _recorded,
}


class Recorded:
    """A body whose calls are recorded as CUDA graphs, one for every shape of its inputs, and replayed.

    A call with gradients, with a cache, or with inputs that are neither tensors nor plain goes the usual way.
    """

    def __init__(self, run: Callable[..., Any]) -> None:
        named = inspect.Parameter.POSITIONAL_OR_KEYWORD
        self.run = run
        self.names = [name for name, one in inspect.signature(run).parameters.items() if one.kind is named]
        self.kept: OrderedDict[Any, tuple[Any, dict[str, Tensor], Any]] = OrderedDict()
        self.pool: Any = None  # of memory, shared: no two graphs run at once, and what one says is copied

    def __call__(self, *args: Any, **inputs: Any) -> Any:
        if len(args) > len(self.names):
            return self.run(*args, **inputs)
        inputs |= dict(zip(self.names, args, strict=False))
        mask = inputs.get("attention_mask")
        if mask is not None and mask.dim() == 2 and bool(mask.all()):  # inside a graph nobody can look whether it is
            del inputs["attention_mask"]
        given = {name: what for name, what in inputs.items() if isinstance(what, Tensor)}
        plain = {name: what for name, what in inputs.items() if name not in given}
        known = all(isinstance(what, bool | int | float | str | None) for what in plain.values())
        if not known or torch.is_grad_enabled() or plain.get("use_cache"):
            return self.run(**inputs)
        name = tuple((k, v.shape, v.dtype) for k, v in given.items()), tuple(plain.items())
        if name not in self.kept:
            self.kept[name] = self._record(given, plain)
            while len(self.kept) > MOST:
                self.kept.popitem(last=False)
        self.kept.move_to_end(name)
        graph, held, output = self.kept[name]
        for key, value in given.items():
            held[key].copy_(value)
        graph.replay()
        return with_hidden(output, output[0].clone())  # the next replay writes over it

    def _record(self, given: dict[str, Tensor], plain: dict[str, Any]) -> tuple[Any, dict[str, Tensor], Any]:
        held = {name: what.clone() for name, what in given.items()}
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM):
                self.run(**held, **plain)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        self.pool = self.pool or torch.cuda.graph_pool_handle()
        with torch.cuda.graph(graph, pool=self.pool):
            output = self.run(**held, **plain)
        return graph, held, output
