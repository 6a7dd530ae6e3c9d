"""A module of a stock model that answers otherwise for a while: its instance is changed, and changed back, not its class."""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from textdiff.denoiser.shared import lock_of


@contextmanager
def instead(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """The module answers by this function, also where it was compiled."""
    with _changed(module, forward=forward, _compiled_call_impl=None):
        yield


@contextmanager
def unheard(module: nn.Module) -> Iterator[None]:
    """None of the module's hooks hears of what happens meanwhile. The model's lock has to be held (`shared.lock_of`)."""
    with _changed(module, _forward_hooks=OrderedDict(), _forward_pre_hooks=OrderedDict()):
        yield


@contextmanager
def probing(model: Any) -> Iterator[None]:
    """Hold the lock of a model and mute the hooks of its body, so that the forward passes of a probe are not counted."""
    with lock_of(model), unheard(model.base_model):
        yield


@contextmanager
def _changed(module: nn.Module, **own: Any) -> Iterator[None]:
    before = {name: module.__dict__[name] for name in own if name in module.__dict__}
    module.__dict__.update(own)
    try:
        yield
    finally:
        for name in own:
            del module.__dict__[name]
        module.__dict__.update(before)
