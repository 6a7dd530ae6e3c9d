"""A model that several threads share: one of them runs it at a time, and each counts its own calls.

Logits at chosen places are read by hooks on the stock module (`head`), so two calls at once would hook each other. What a
call remembers of the texts it has read is its own (`Denoiser.session`); the model and its hooks are shared, under one lock.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

_LOCKS: "WeakKeyDictionary[nn.Module, threading.RLock]" = WeakKeyDictionary()
_GUARD = threading.Lock()


def lock_of(model: nn.Module) -> Any:
    """Return the lock of a model, the same for every pipeline and denoiser that uses the model; it may be taken twice."""
    with _GUARD:
        return _LOCKS.setdefault(model, threading.RLock())


@contextmanager
def counting(model: Any) -> Iterator[list[int]]:
    """Yield a list with one number: how often this thread has run the model's body since."""
    calls, thread = [0], threading.get_ident()

    def count(module: Any, args: Any, kwargs: Any) -> None:
        calls[0] += threading.get_ident() == thread

    with lock_of(model):
        handle = model.base_model.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield calls
    finally:
        with lock_of(model):
            handle.remove()
