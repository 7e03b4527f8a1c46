"""The cache of what is read of segments: blocks of 64 KiB, and the indexes of sealed segments.

A block that is read for the first time enters a queue on probation (a tenth of the room); one that
is asked for again is kept in the main queue, whose oldest goes when nobody asked for it meanwhile.
So one long scan passes through probation and pushes out nothing that is in use. Threads that want
the same block at the same time share one read. What is cached never changes: a segment is written
once, and its version is part of the key. Any thread may call.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final

BLOCK_BYTES: Final = 1 << 16
PROBATION_SHARE: Final = 10  # a tenth, at least one block

Key = tuple[int, int]  # version of the segment, number of the block; -1 = its index


class _Entry:
    __slots__ = ("asked", "size", "value")

    def __init__(self, value: Any, size: int) -> None:
        self.value, self.size, self.asked = value, size, False


class _Flight:
    """A read under way, and what came of it."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.value: Any = None
        self.error: BaseException | None = None


class ReadCache:
    """See the module's docstring. `bytes_max`: of values; 0 keeps nothing but merges reads."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self._lock = threading.Lock()
        self._probation: OrderedDict[Key, _Entry] = OrderedDict()
        self._main: OrderedDict[Key, _Entry] = OrderedDict()
        self._flights: dict[Key, _Flight] = {}
        self._sizes = {"probation": 0, "main": 0}
        self.counters = dict.fromkeys(("hits", "misses", "merged", "insertions", "evictions"), 0)

    def get(self, key: Key, read: Callable[[], tuple[Any, int]]) -> Any:
        """The value, else what `read` gives: (value, its size). Its error reaches all who wait."""
        with self._lock:
            entry = self._main.get(key)
            if entry is None:
                entry = self._promoted(key)
            if entry is not None:
                entry.asked = True
                self.counters["hits"] += 1
                return entry.value
            flight = self._flights.get(key)
            mine = flight is None
            if flight is None:
                flight = self._flights[key] = _Flight()
                self.counters["misses"] += 1
            else:
                self.counters["merged"] += 1
        if not mine:
            flight.done.wait()
            if flight.error is not None:
                raise flight.error
            return flight.value
        try:
            flight.value, size = read()
        except BaseException as error:
            flight.error = error
            raise
        finally:
            with self._lock:
                del self._flights[key]
                if flight.error is None:
                    self._insert(key, flight.value, size)
            flight.done.set()
        return flight.value

    def _promoted(self, key: Key) -> _Entry | None:
        entry = self._probation.pop(key, None)
        if entry is not None:
            self._sizes["probation"] -= entry.size
            self._sizes["main"] += entry.size
            self._main[key] = entry
        return entry

    def _insert(self, key: Key, value: Any, size: int) -> None:
        if size > self.bytes_max:
            return
        self.counters["insertions"] += 1
        self._probation[key] = _Entry(value, size)
        self._sizes["probation"] += size
        while self._sizes["probation"] + self._sizes["main"] > self.bytes_max:
            self._evict()

    def _evict(self) -> None:
        room = max(self.bytes_max // PROBATION_SHARE, BLOCK_BYTES)
        if self._probation and (self._sizes["probation"] > room or not self._main):
            _, entry = self._probation.popitem(last=False)
            self._sizes["probation"] -= entry.size
        else:
            key, entry = self._main.popitem(last=False)
            if entry.asked:
                entry.asked = False
                self._main[key] = entry  # asked for since it came: once more round
                return
            self._sizes["main"] -= entry.size
        self.counters["evictions"] += 1

    def forget(self, version: int) -> None:
        """A segment is gone."""
        with self._lock:
            for queue, name in ((self._probation, "probation"), (self._main, "main")):
                for key in [key for key in queue if key[0] == version]:
                    self._sizes[name] -= queue.pop(key).size

    def values(self) -> list[tuple[Key, Any]]:
        """What is cached at the moment."""
        with self._lock:
            both = [*self._probation.items(), *self._main.items()]
            return [(key, entry.value) for key, entry in both]

    def stats(self) -> dict[str, int]:
        with self._lock:
            return {
                **self.counters,
                "bytes": self._sizes["probation"] + self._sizes["main"],
                "entries": len(self._probation) + len(self._main),
            }

    def check_invariants(self) -> None:
        with self._lock:
            assert self._sizes["probation"] == sum(e.size for e in self._probation.values())
            assert self._sizes["main"] == sum(e.size for e in self._main.values())
            assert self._sizes["probation"] + self._sizes["main"] <= self.bytes_max
            assert not self._probation.keys() & self._main.keys()
            counted = self.counters["insertions"] - self.counters["evictions"]
            assert counted >= len(self._probation) + len(self._main)
