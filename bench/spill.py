"""Embedded use of a cache eight times larger than its RAM: 1 GiB of 4 KiB values, random access.

py-lmdb and diskcache have the whole page cache to themselves, without a limit; siltstone keeps to
its own. diskcache is filled in transactions of a thousand, which is its fastest way, and asked for
a twentieth of the sets.
"""

from __future__ import annotations

import contextlib
import random

from bench import embedded, harness
from bench.compiler import generator
from bench.embedded import Side
from bench.harness import Row, Settings

TITLE = "Embedded: 1 GiB of 4 KiB values through 128 MiB of RAM, random get and set"
VALUE_SIZE = 4096
ITEMS = 1 << 18
QUICK_ITEMS = 1 << 14
RAM_SHARE = 8
PROBES = 40_000
BULK = 1000


def run(settings: Settings) -> list[Row]:
    items = settings.pick(ITEMS, QUICK_ITEMS)
    total = items * VALUE_SIZE
    random_ = random.Random(3)
    probes = [random_.randrange(items) for _ in range(settings.pick(PROBES, 8000))]
    with settings.directory() as directory, contextlib.ExitStack() as stack:
        sides = [
            stack.enter_context(embedded.lmdb_environment(directory / "lmdb", 4 * total)),
            stack.enter_context(embedded.lmdb_environment(directory / "writemap", 4 * total, True)),
            stack.enter_context(embedded.diskcache_cache(directory / "diskcache", 4 * total)),
        ]
        if not settings.peers_only:
            sides.append(
                stack.enter_context(
                    embedded.siltstone_cache(
                        directory / "siltstone", "raw", ram=total // RAM_SHARE, flash=2 * total
                    )
                )
            )
        missing = {side.name: _fill(side, items) for side in sides}
        named = {side.name: side for side in sides}
        gets = harness.alternate(named, lambda side: _gets(side, probes), settings.rounds)
        sets = harness.alternate(named, lambda side: _sets(side, probes), settings.rounds)
    rows = embedded.compare("random get", gets, {"py-lmdb": 0.8, "diskcache": 5.0})
    rows += embedded.compare(
        "random set", sets, {"py-lmdb": 1.5, "py-lmdb writemap": None, "diskcache": None}
    )
    rows[0].notes["missing or wrong after the load"] = str(missing.get(harness.OURS, "-"))
    return rows


def _fill(side: Side, items: int) -> int:
    """Store everything, then read every byte back; how many did not come back as stored."""
    key_of, value_of = generator().key_of, generator().value_of
    for first in range(0, items, BULK):
        with side.bulk():
            for index in range(first, min(first + BULK, items)):
                side.set(key_of(index), value_of(index, VALUE_SIZE))
    return sum(side.get(key_of(index)) != value_of(index, VALUE_SIZE) for index in range(items))


def _gets(side: Side, probes: list[int]) -> float:
    key_of = generator().key_of
    return harness.get_nanoseconds(side.get, [key_of(p) for p in probes])


def _sets(side: Side, probes: list[int]) -> float:
    key_of, value_of = generator().key_of, generator().value_of
    pairs = [(key_of(p), value_of(p, VALUE_SIZE)) for p in probes[:: side.share]]
    return harness.set_nanoseconds(side.set, pairs)
