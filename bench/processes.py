"""Several processes on one cache: 90 % get, 10 % set, 100-byte values.

Every process opens the same path, waits for the others at a barrier, and works through its own
shuffled order until the time is over. The single process is measured the same way.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import statistics
import time
from pathlib import Path
from typing import Any

from bench import embedded, harness
from bench.compiler import generator
from bench.harness import Row, Settings

TITLE = "Four processes on one cache: 90 % get, 10 % set, 100-byte values"
PROCESSES = 4
KEYS = 50_000
VALUE_SIZE = 100
BATCH = 500  # operations between two looks at the clock
GETS_OF_TEN = 9
PAIRS = (
    (f"{harness.OURS} {PROCESSES}", f"diskcache {PROCESSES}"),
    (f"{harness.OURS} 1", "diskcache 1"),
    (f"{harness.OURS} {PROCESSES}", f"{harness.OURS} 1"),
)


def _open(kind: str, path: Path) -> contextlib.AbstractContextManager[embedded.Side]:
    if kind == harness.OURS:
        return embedded.siltstone_cache(path, "raw", ram="64MiB", flash="256MiB")
    return embedded.diskcache_cache(path, 1 << 30)


def _work(side: embedded.Side, seed: int, seconds: float) -> tuple[float, float]:
    """(operations a second, CPU us an operation); every value read is one that was stored."""
    key_of, value_of = generator().key_of, generator().value_of
    order = random.Random(seed).choices(range(KEYS), k=20 * BATCH)
    pairs = [(key_of(index), value_of(index, VALUE_SIZE)) for index in order]
    batch = BATCH // side.share
    began, cpu = time.perf_counter(), time.thread_time()
    done = wrong = 0
    while (elapsed := time.perf_counter() - began) < seconds:
        at = done % len(pairs)
        for number, (key, value) in enumerate(pairs[at : at + batch]):
            if number % 10 >= GETS_OF_TEN:
                side.set(key, value)
            elif side.get(key) != value:
                wrong += 1
        done += len(pairs[at : at + batch])
    if wrong:
        raise AssertionError(f"{side.name}: {wrong} of {done} operations gave no or wrong bytes")
    return done / elapsed, (time.thread_time() - cpu) / done * 1e6


def _process(kind: str, path: Path, seed: int, seconds: float, barrier: Any, results: Any) -> None:
    try:
        with _open(kind, path) as side:
            barrier.wait(timeout=60)
            results.put(_work(side, seed, seconds))
            barrier.wait(timeout=60)
    except Exception as error:
        results.put(f"{type(error).__name__}: {error}")
        barrier.abort()


def _measure(kind: str, path: Path, count: int, seconds: float) -> tuple[float, float]:
    """Operations a second of `count` processes together; the mean CPU us an operation."""
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(count), context.Queue()
    workers = [
        context.Process(target=_process, args=(kind, path, seed, seconds, barrier, results))
        for seed in range(count)
    ]
    for worker in workers:
        worker.start()
    found = [results.get(timeout=120) for _ in workers]
    for worker in workers:
        worker.join()
    failed = [each for each in found if isinstance(each, str)]
    if failed:
        raise RuntimeError(f"{kind}: {failed[0]}")
    return sum(rate for rate, _ in found), statistics.mean(cpu for _, cpu in found)


def _fill(side: embedded.Side) -> None:
    key_of, value_of = generator().key_of, generator().value_of
    for index in range(KEYS):
        side.set(key_of(index), value_of(index, VALUE_SIZE))


def run(settings: Settings) -> list[Row]:
    seconds = settings.pick(3.0, 1.0)
    kinds = ["diskcache"] if settings.peers_only else [harness.OURS, "diskcache"]
    with settings.directory() as directory, contextlib.ExitStack() as stack:
        sides: dict[str, tuple[str, Path, int]] = {}
        for kind in kinds:
            path = directory / kind
            # This process keeps each cache open, so that nothing is lost between the rounds.
            _fill(stack.enter_context(_open(kind, path)))
            for count in (PROCESSES, 1):
                sides[f"{kind} {count}"] = (kind, path, count)
        both = harness.alternate(sides, lambda side: _measure(*side, seconds), settings.rounds)
    found = {name: [rate for rate, _ in measured] for name, measured in both.items()}
    cpu = {name: statistics.median(us for _, us in measured) for name, measured in both.items()}
    ours = found.get(f"{harness.OURS} {PROCESSES}", [])
    rows = [
        Row(
            f"{PROCESSES} processes, together",
            "op/s",
            ours,
            "diskcache",
            found[f"diskcache {PROCESSES}"],
            15.0,
        ),
        Row(
            "one process",
            "op/s",
            found.get(f"{harness.OURS} 1", []),
            "diskcache",
            found["diskcache 1"],
        ),
    ]
    if ours:
        share = min(PROCESSES, len(os.sched_getaffinity(0)))
        alone = [rate * share for rate in found[f"{harness.OURS} 1"]]
        rows.append(
            Row(
                f"{PROCESSES} processes against {share} x one alone",
                "op/s",
                ours,
                "one process per core",
                alone,
                0.8,
            )
        )
    for row, names in zip(rows, PAIRS, strict=False):
        row.notes["CPU us/op"] = " / ".join(f"{cpu[name]:.2f}" for name in names if name in cpu)
    return rows
