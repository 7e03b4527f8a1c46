"""Warm restart: how long until a cache of many items answers again, after a good end and a bad one.

Three processes, one after another, open the same directory: one loads and closes; one opens, is
asked for a sample, and is killed with SIGKILL; one opens with another `ram`, which makes what is
left of the arena useless, so that the index is built again from the records on flash. The files
are in the page cache both times, as they are on a machine that only restarted its service.
"""

from __future__ import annotations

import random
import time
from typing import Any

from bench import child, disturbance
from bench.compiler import generator
from bench.harness import Row, Settings

TITLE = "Warm restart of a cache on flash, 100-byte values"
ITEMS = 10_000_000
QUICK_ITEMS = 300_000
VALUE_SIZE = 100
RECORD_SIZE = 176  # on flash, rounded up
RAM_AN_ITEM = 40
SAMPLE = 20_000

_open: list[Any] = []  # keeps a cache open until its process is killed


def geometry(items: int) -> dict[str, Any]:
    return {
        "ram": max(items * RAM_AN_ITEM, 8 << 20),
        "codec": "raw",
        "flash": max(items * RECORD_SIZE * 5 // 4, 64 << 20),
    }


def load(path: str, items: int) -> dict[str, float]:
    """Store everything, then close in good order."""
    import siltstone

    key_of, value_of = generator().key_of, generator().value_of
    cache = siltstone.Cache(path, **geometry(items))
    began = time.perf_counter()
    for index in range(items):
        cache.set(key_of(index), value_of(index, VALUE_SIZE))
    loaded = time.perf_counter()
    cache.close()
    return {"load": loaded - began, "close": time.perf_counter() - loaded}


def reopen(path: str, items: int, ram_more: int) -> dict[str, float]:
    """Seconds to open and to answer one get; then a sample is looked up and compared."""
    import siltstone

    options = geometry(items)
    options["ram"] += ram_more
    key_of, value_of = generator().key_of, generator().value_of
    began, cpu = time.perf_counter(), time.process_time()
    cache = siltstone.Cache(path, **options)
    cache.get(key_of(0))
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    _open.append(cache)
    found = wrong = 0
    for index in random.Random(4).sample(range(items), min(SAMPLE, items)):
        value = cache.get(key_of(index))
        found += value is not None
        wrong += value is not None and value != value_of(index, VALUE_SIZE)
    return {"seconds": seconds, "cpu": cpu, "found": found / min(SAMPLE, items), "wrong": wrong}


def _reopened(path: str, items: int, ram_more: int) -> dict[str, float]:
    found, others = disturbance.watched(
        lambda: child.call(reopen, path, items, ram_more, kill=True)
    )
    disturbance.shares.append(others)
    return found


def run(settings: Settings) -> list[Row]:
    if settings.peers_only:
        return []
    items = settings.items or settings.pick(ITEMS, QUICK_ITEMS)
    gib = items * RECORD_SIZE / 2**30
    with settings.directory() as directory:
        path = str(directory / "cache")
        loaded = child.call(load, path, items)
        # each once: a start changes what the next one finds
        clean, others = disturbance.watched(lambda: child.call(reopen, path, items, 0, kill=True))
        disturbance.shares.append(others)
        lost, others = disturbance.watched(
            lambda: child.call(reopen, path, items, 1 << 20, kill=True)
        )
        disturbance.shares.append(others)
    rows = [
        Row(
            "after a clean stop",
            "s",
            [clean["seconds"]],
            target=1.0,
            at_most=True,
            smaller_is_better=True,
        ),
        Row(
            "arena lost, a GiB of flash in use",
            "s",
            [lost["seconds"] / gib],
            target=1.0,
            at_most=True,
            smaller_is_better=True,
        ),
    ]
    # A fast start that has forgotten everything is no warm one.
    rows += [
        Row(f"items found, {when}", "%", [100 * found["found"]], target=99.0, exact=True)
        for when, found in (("after a clean stop", clean), ("arena lost", lost))
    ]
    for row, found in zip(rows[:2], (clean, lost), strict=True):
        row.notes = {
            "items": f"{items:,}",
            "GiB on flash": f"{gib:.2f}",
            "wrong": f"{found['wrong']:.0f}",
            "seconds": f"{found['seconds']:.3f}",
            "CPU seconds": f"{found['cpu']:.3f}",
        }
    rows[0].notes |= {"load s": f"{loaded['load']:.1f}", "close s": f"{loaded['close']:.2f}"}
    return rows
