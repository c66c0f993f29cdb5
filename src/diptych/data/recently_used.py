"""A dictionary that stays small: what was not used for longest is forgotten first."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class RecentlyUsed(Generic[K, V]):
    """Holds at most `max_items` values that `size_of` says weigh at most `max_total` together; safe between threads.

    The newest value stays even where it alone is heavier.
    """

    def __init__(self, max_items: int, *, max_total: int | None = None, size_of: Callable[[V], int] = lambda _: 0):
        if max_items < 1:
            raise ValueError(f"a store of {max_items} values holds nothing; give 1 or more")
        self._max_items, self._max_total, self._size_of = max_items, max_total, size_of
        self._values: OrderedDict[K, V] = OrderedDict()
        self._total = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._values)

    @property
    def total(self) -> int:
        """What all values weigh together."""
        return self._total

    def __contains__(self, key: K) -> bool:
        return key in self._values

    def get(self, key: K) -> V | None:
        with self._lock:
            value = self._values.get(key)
            if value is not None:
                self._values.move_to_end(key)
            return value

    def put(self, key: K, value: V) -> V:
        with self._lock:
            if key in self._values:
                self._total -= self._size_of(self._values.pop(key))
            self._values[key] = value
            self._total += self._size_of(value)
            while len(self._values) > 1 and self._is_over():
                self._total -= self._size_of(self._values.popitem(last=False)[1])
        return value

    def get_or_make(self, key: K, make: Callable[[], V]) -> V:
        """The value kept under a key, or what `make` gives, kept from now on. Two threads may both make it."""
        value = self.get(key)
        return self.put(key, make()) if value is None else value

    def _is_over(self) -> bool:
        return len(self._values) > self._max_items or (self._max_total is not None and self._total > self._max_total)
