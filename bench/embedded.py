"""Embedded use, one process: a get that hits and a set of a 100-byte value, beside what people use.

Every side gets the same bytes keys in the same shuffled order. py-lmdb runs without durability
(`sync=False`), one transaction an operation, as a cache would use it, and a second time with
`writemap`, its fastest and least safe way; diskcache with its defaults and a twentieth of the
items, in its favour. A round measures every side once.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import harness
from bench.compiler import generator
from bench.harness import Row, Settings

TITLE = "Embedded: get hit and set, one thread, 100-byte values"
KEYS = 100_000
VALUE_SIZE = 100
DISKCACHE_SHARE = 20  # it is slow: it holds, and is asked for, this many times less


@dataclass
class Side:
    name: str
    get: Callable[[Any], Any]
    set: Callable[[Any, Any], Any]
    share: int = 1
    bulk: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext


# The peers ------------------------------------------------------------------------------------


def dictionary() -> Side:
    store: dict[Any, Any] = {}
    return Side("dict", store.get, store.__setitem__)


def cachetools_lru(size: int = 2 * KEYS) -> Side:
    import cachetools

    store: Any = cachetools.LRUCache(size)
    return Side("cachetools", store.__getitem__, store.__setitem__)


@contextlib.contextmanager
def lmdb_environment(path: Path, map_size: int, writemap: bool = False) -> Iterator[Side]:
    import lmdb

    with lmdb.open(
        str(path),
        map_size=map_size,
        sync=False,
        metasync=False,
        writemap=writemap,
        map_async=writemap,
    ) as environment:

        def get(key: bytes) -> bytes | None:
            with environment.begin() as transaction:
                return transaction.get(key)

        def put(key: bytes, value: bytes) -> None:
            with environment.begin(write=True) as transaction:
                transaction.put(key, value)

        yield Side("py-lmdb writemap" if writemap else "py-lmdb", get, put)


@contextlib.contextmanager
def diskcache_cache(path: Path, size_limit: int) -> Iterator[Side]:
    import diskcache

    with diskcache.Cache(str(path), size_limit=size_limit) as store:
        yield Side("diskcache", store.get, store.set, DISKCACHE_SHARE, store.transact)


@contextlib.contextmanager
def siltstone_cache(path: Path | None, codec: str, **options: Any) -> Iterator[Side]:
    import siltstone

    with siltstone.Cache(str(path) if path else None, codec=codec, **options) as cache:
        yield Side(harness.OURS, cache.get, cache.set)


# Measuring ------------------------------------------------------------------------------------


def fill(side: Side, keys: list[Any], values: dict[Any, Any]) -> None:
    held = asked(side, keys)
    for key in held:
        side.set(key, values[key])
    for key in random.Random(2).sample(held, 1000):
        if side.get(key) != values[key]:
            raise AssertionError(f"{side.name} does not give back what was stored")


def asked(side: Side, keys: list[Any]) -> list[Any]:
    """What a side holds and one round asks for: all, or a part if it is slow."""
    return keys[: len(keys) // side.share]


def time_gets(side: Side, keys: list[Any]) -> float:
    return harness.get_nanoseconds(side.get, asked(side, keys))


def time_sets(side: Side, keys: list[Any], values: dict[Any, Any]) -> float:
    return harness.set_nanoseconds(side.set, [(key, values[key]) for key in asked(side, keys)])


def measure(
    sides: list[Side], keys: list[Any], values: dict[Any, Any], rounds: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Nanoseconds of gets and of sets, by side and round."""
    named = {side.name: side for side in sides}
    return (
        harness.alternate(named, lambda side: time_gets(side, keys), rounds),
        harness.alternate(named, lambda side: time_sets(side, keys, values), rounds),
    )


def run(settings: Settings) -> list[Row]:
    value_of, key_of = generator().value_of, generator().key_of
    keys = [key_of(index) for index in range(KEYS)]
    values = {key: value_of(index, VALUE_SIZE) for index, key in enumerate(keys)}
    shuffled = random.Random(1).sample(keys, len(keys))
    with settings.directory() as directory, contextlib.ExitStack() as stack:
        sides = [
            dictionary(),
            cachetools_lru(),
            stack.enter_context(lmdb_environment(directory / "lmdb", 1 << 28)),
            stack.enter_context(lmdb_environment(directory / "writemap", 1 << 28, True)),
            stack.enter_context(diskcache_cache(directory / "diskcache", 1 << 30)),
        ]
        if not settings.peers_only:
            sides.append(stack.enter_context(siltstone_cache(None, "raw", ram="64MiB", flash=0)))
        for side in sides:
            fill(side, shuffled, values)
        gets, sets = measure(sides, shuffled, values, settings.rounds)
    rows = compare(
        "get hit", gets, {"dict": None, "cachetools": 1.0, "py-lmdb": 2.5, "diskcache": 20.0}
    )
    rows += compare(
        "set",
        sets,
        {
            "dict": None,
            "cachetools": 0.5,
            "py-lmdb": None,
            "py-lmdb writemap": None,
            "diskcache": 100.0,
        },
    )
    return rows if settings.peers_only else rows + _codecs(settings)


def compare(
    name: str, nanoseconds: dict[str, list[float]], targets: dict[str, float | None]
) -> list[Row]:
    """Rates, so that a ratio above one is good; the nanoseconds stand beside."""
    rates = {side: [1e9 / ns for ns in found] for side, found in nanoseconds.items()}
    rows = []
    for peer, target in targets.items():
        row = Row(name, "op/s", rates.get(harness.OURS, []), peer, rates[peer], target)
        row.notes["best ns"] = " / ".join(
            f"{min(nanoseconds[side]):.0f}" for side in (harness.OURS, peer) if side in rates
        )
        rows.append(row)
    return rows


def _codecs(settings: Settings) -> list[Row]:
    """Text and small objects with the default codec, beside cachetools, which stores references."""
    keys = [f"user:{index}" for index in range(KEYS)]
    shuffled = random.Random(1).sample(keys, len(keys))
    kinds: dict[str, dict[str, Any]] = {
        "text of 100": {key: f"{key:-<100}" for key in keys},
        "small object": {
            key: {"id": index, "name": key, "tags": ["a", "b"], "score": 0.5}
            for index, key in enumerate(keys)
        },
    }
    rows = []
    for kind, values in kinds.items():
        with siltstone_cache(None, "msgpack", ram="64MiB", flash=0) as ours:
            sides = [ours, cachetools_lru()]
            for side in sides:
                fill(side, keys, values)
            gets, sets = measure(sides, shuffled, values, settings.rounds)
        rows += compare(f"get hit, {kind}, msgpack", gets, {"cachetools": None})
        rows += compare(f"set, {kind}, msgpack", sets, {"cachetools": None})
    return rows
