"""Time that somebody else's code may take: a bound that holds for Python code in any thread, and leaves Ctrl-C alone."""

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class _TimeIsUp(BaseException):
    """No code that catches Exception can swallow it."""


@contextmanager
def time_limit(seconds: float, what: str) -> Iterator[None]:
    """Raise ValueError in this thread if the block takes longer than so many seconds.

    For Python code alone: a call into C is interrupted when it returns. `what` names the code in the error.
    """
    thread, guard, over = threading.get_ident(), threading.Lock(), False

    def interrupt() -> None:
        with guard:
            if not over:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(_TimeIsUp))

    timer = threading.Timer(seconds, interrupt)
    timer.daemon = True
    timer.start()
    try:
        try:
            yield
        finally:
            with guard:
                over = True
            timer.cancel()
    except _TimeIsUp:
        raise ValueError(f"{what} took longer than {seconds:g} s, so it was stopped; use another one") from None
