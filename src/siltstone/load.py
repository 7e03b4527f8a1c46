"""A small measurement that anyone can run: sets, then gets in random order, timed one by one.

For `siltstone bench`. The comparison with other caches is in the source tree's bench/. Removes
what it stored. One thread.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from time import perf_counter_ns
from typing import NamedTuple

from rich.table import Table

import siltstone
from siltstone.client import MemcachedClient

PREFIX = "siltstone-bench-"
SEED = 1


class Measured(NamedTuple):
    """One operation, many times."""

    operation: str
    per_second: float
    p50_us: float
    p99_us: float
    misses: int


def ram_for(items: int, value_bytes: int) -> int:
    """Memory that holds so many items with room to spare."""
    return max(16 << 20, items * (value_bytes + 160) * 3 // 2)


def timed(operation: str, call: Callable[[str], object], keys: Sequence[str]) -> Measured:
    """Call with each key; None or False counts as a miss."""
    durations = [0] * len(keys)
    misses = 0
    started = perf_counter_ns()
    for number, key in enumerate(keys):
        before = perf_counter_ns()
        answer = call(key)
        durations[number] = perf_counter_ns() - before
        misses += answer is None or answer is False
    seconds = (perf_counter_ns() - started) / 1e9
    durations.sort()
    return Measured(
        operation,
        len(keys) / seconds,
        durations[len(keys) // 2] / 1000,
        durations[len(keys) * 99 // 100] / 1000,
        misses,
    )


def _keys(items: int) -> tuple[list[str], list[str]]:
    keys = [f"{PREFIX}{number}" for number in range(items)]
    shuffled = keys.copy()
    random.Random(SEED).shuffle(shuffled)
    return keys, shuffled


def embedded(cache: siltstone.Cache, items: int, value_bytes: int) -> list[Measured]:
    keys, shuffled = _keys(items)
    value = b"x" * value_bytes
    return [
        timed("set", lambda key: cache.set(key, value), keys),
        timed("get", cache.get, shuffled),
        timed("delete", cache.delete, keys),
    ]


def of_store(store: siltstone.Store, items: int, value_bytes: int) -> list[Measured]:
    """Relaxed sets in random order, gets in another, durable sets, a scan of it all, deletes."""
    keys, shuffled = _keys(items)
    value = b"x" * value_bytes
    durable = shuffled[: max(1, items // 100)]

    def put(key: str, wait: bool | None) -> bool:
        store.set(key.encode(), value, durable=wait)
        return True

    measured = [
        timed("set", lambda key: put(key, None), shuffled),
        timed("get", lambda key: store.get(key.encode()), keys),
        timed("durable set", lambda key: put(key, True), durable),
    ]
    records = iter(store.items(prefix=PREFIX.encode()))
    measured.append(timed("scanned record", lambda _: next(records, None), keys))
    return [*measured, timed("delete", lambda key: store.delete(key.encode()), shuffled)]


def against_server(address: str, items: int, value_bytes: int) -> list[Measured]:
    keys, shuffled = _keys(items)
    value = b"x" * value_bytes

    with MemcachedClient(address) as client:

        def store(key: str) -> bool:
            client.set(key.encode(), value)
            return True

        return [
            timed("set", store, keys),
            timed("get", lambda key: client.get(key.encode()), shuffled),
            timed("delete", lambda key: client.delete(key.encode()), keys),
        ]


def table(results: Sequence[Measured], items: int, value_bytes: int) -> Table:
    shown = Table(title=f"{items:,} items of {value_bytes:,} bytes, one thread")
    shown.add_column("operation")
    for name in ("a second", "p50", "p99", "misses"):
        shown.add_column(name, justify="right")
    for result in results:
        shown.add_row(
            result.operation,
            f"{result.per_second:,.0f}",
            f"{result.p50_us:.1f} us",
            f"{result.p99_us:.1f} us",
            f"{result.misses:,}",
        )
    return shown
