"""What all tests of the store share: the smallest settings, an ordered model, and bounds by hand.

`TINY` makes every mechanism happen within a few dozen records: pages of 256 bytes, segments of
16 KiB, a cache that holds a fraction of the data.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable
from typing import Any

from fakes import SeededRandom

import siltstone

TINY: dict[str, Any] = {
    "segment_size": "16KiB",
    "buffer_size": "4KiB",
    "page_size": 256,
    "cache": "64KiB",
    "flush_interval": 3600,
}


class Model:
    """A sorted dict of bytes with the store's range methods: slow, short, and right."""

    def __init__(self, pairs: Iterable[tuple[bytes, bytes]] = ()) -> None:
        self.pairs = dict(pairs)

    def copy(self) -> Model:
        return Model(self.pairs.items())

    def items(
        self,
        start: bytes | None = None,
        stop: bytes | None = None,
        *,
        prefix: bytes | None = None,
        reverse: bool = False,
        include_start: bool = True,
        include_stop: bool = False,
        limit: int | None = None,
    ) -> list[tuple[bytes, bytes]]:
        found = [
            (key, self.pairs[key])
            for key in sorted(self.pairs, reverse=reverse)
            if (prefix is None or key.startswith(prefix))
            and (start is None or key > start or (include_start and key == start))
            and (stop is None or key < stop or (include_stop and key == stop))
        ]
        return found[:limit]

    def next_after(self, key: bytes) -> tuple[bytes, bytes] | None:
        keys = sorted(self.pairs)
        place = bisect.bisect_right(keys, key)
        return (keys[place], self.pairs[keys[place]]) if place < len(keys) else None

    def last_before(self, key: bytes) -> tuple[bytes, bytes] | None:
        keys = sorted(self.pairs)
        place = bisect.bisect_left(keys, key)
        return (keys[place - 1], self.pairs[keys[place - 1]]) if place else None

    def merge(self, key: bytes, operand: bytes) -> None:
        value = joined(key, self.pairs.get(key), operand)
        if value is None:
            self.pairs.pop(key, None)
        else:
            self.pairs[key] = value


def joined(key: bytes, old: bytes | None, operand: bytes) -> bytes | None:
    """The merge function of the tests: a list of operands, cut off by b"!"; b"-" deletes."""
    if operand == b"-":
        return None
    if operand == b"!" or old is None:
        return operand
    return old + b"," + operand


TREES = ("", "users", "log")


def on_device(device: Any, **options: Any) -> Any:
    """A store over a device of the tests, without threads: `step()` does background work."""
    seed = options.pop("rng_seed", 1)
    options.setdefault("rng", SeededRandom(seed))
    options.setdefault("workers", 0)  # callers do all I/O: one order of events
    return siltstone.Store(None, device=device, background=False, **{**TINY, **options})


def contents(store: Any) -> dict[str, dict[bytes, bytes]]:
    """All trees, read with a cursor's eyes: keys must rise."""
    found = {}
    for name in ("", *store.trees()):
        pairs = list((store.tree(name) if name else store).items())
        keys = [key for key, _ in pairs]
        assert keys == sorted(set(keys)), f"tree {name!r} is out of order"
        found[name] = dict(pairs)
    return found


class States:
    """`now` is what a store must hold; `all` what it held after each commit."""

    def __init__(self, now: dict[str, dict[bytes, bytes]]) -> None:
        self.now = now
        self.all: list[dict[str, dict[bytes, bytes]]] = []
        self.take()

    def take(self) -> None:
        self.all.append({name: dict(pairs) for name, pairs in self.now.items()})
