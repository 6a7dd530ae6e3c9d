"""What was made once is kept, up to so many bytes: a server that is asked for something else every time stays as it is."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class Cache(Generic[T]):
    """Results by key; of more than `limit` bytes in all, those that were asked for longest ago are dropped. For threads.

    A result that alone has more is not kept.
    """

    def __init__(self, limit: int, size: Callable[[T], int]) -> None:
        self.limit, self.size = limit, size
        self._kept: OrderedDict[Hashable, tuple[T, int]] = OrderedDict()
        self._lock, self._bytes = threading.Lock(), 0

    @property
    def bytes(self) -> int:
        """How many are kept."""
        return self._bytes

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """What was made for the key. Two threads that ask at once may both make it; one result is kept."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key][0]
        made = make()
        with self._lock:
            if key in self._kept:
                return self._kept[key][0]
            size = self.size(made)
            if size <= self.limit:
                self._kept[key] = made, size
                self._bytes += size
            while self._bytes > self.limit:
                self._bytes -= self._kept.popitem(last=False)[1][1]
        return made
