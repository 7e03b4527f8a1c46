"""Eviction policies to compare with, simulated over equal-sized items: `request(key) -> hit`."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Protocol


class Policy(Protocol):
    def request(self, key: int) -> bool: ...


class FIFO:
    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.keys: set[int] = set()
        self.queue: deque[int] = deque()

    def request(self, key: int) -> bool:
        if key in self.keys:
            return True
        if len(self.queue) == self.capacity:
            self.keys.remove(self.queue.popleft())
        self.keys.add(key)
        self.queue.append(key)
        return False


class LRU:
    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.keys: OrderedDict[int, None] = OrderedDict()

    def request(self, key: int) -> bool:
        if key in self.keys:
            self.keys.move_to_end(key)
            return True
        if len(self.keys) == self.capacity:
            self.keys.popitem(last=False)
        self.keys[key] = None
        return False


class SIEVE:
    """A FIFO queue whose hand goes from old to new, spares what was visited, evicts the rest.

    The queue is a doubly linked list over slots; slot `capacity` is its ring's anchor.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = self.anchor = capacity
        self.slot_of: dict[int, int] = {}
        self.key_at = [0] * capacity
        self.visited = bytearray(capacity)
        self.newer = [self.anchor] * (capacity + 1)
        self.older = [self.anchor] * (capacity + 1)
        self.hand = self.anchor

    def request(self, key: int) -> bool:
        slot = self.slot_of.get(key)
        if slot is not None:
            self.visited[slot] = 1
            return True
        slot = len(self.slot_of) if len(self.slot_of) < self.capacity else self._evict()
        self.slot_of[key], self.key_at[slot], self.visited[slot] = slot, key, 0
        head = self.older[self.anchor]  # the newest
        self.older[slot], self.newer[slot] = head, self.anchor
        self.newer[head] = self.older[self.anchor] = slot
        return False

    def _evict(self) -> int:
        slot = self.hand
        while slot == self.anchor or self.visited[slot]:
            if slot != self.anchor:
                self.visited[slot] = 0
            slot = self.newer[slot]
        newer, older = self.newer[slot], self.older[slot]
        self.older[newer], self.newer[older] = older, newer
        self.hand = newer
        del self.slot_of[self.key_at[slot]]
        return slot


PEERS: dict[str, Callable[[int], Policy]] = {"SIEVE": SIEVE, "LRU": LRU, "FIFO": FIFO}
