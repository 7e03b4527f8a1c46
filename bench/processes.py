"""Several processes on one cache: 90 % get, 10 % set, 100-byte values.

Every process opens the same path, waits for the others at a barrier, and works through its own
shuffled order until the time is over. The single process is measured the same way.

What sharing costs is seen beside as many processes as there are cores, all at work at the same
time, each on a cache of its own ("apart"). One process alone is no measure of that: two virtual
cores may share a physical one, or its caches and clock; what the machine itself loses stands in a
row of its own.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import statistics
import time
from dataclasses import dataclass
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
CORES = min(PROCESSES, len(os.sched_getaffinity(0)))
TOGETHER, ALONE, APART = (f"{harness.OURS} {what}" for what in (PROCESSES, 1, "apart"))


@dataclass(frozen=True)
class Team:
    """`count` processes at work at the same time, on one cache or each on its own."""

    kind: str
    path: Path
    count: int
    apart: bool = False


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


def _process(team: Team, seed: int, seconds: float, barrier: Any, results: Any) -> None:
    path = team.path / str(seed) if team.apart else team.path
    try:
        with _open(team.kind, path) as side:
            if team.apart:
                _fill(side)
            barrier.wait(timeout=60)
            results.put(_work(side, seed, seconds))
            barrier.wait(timeout=60)
    except Exception as error:
        results.put(f"{type(error).__name__}: {error}")
        barrier.abort()


def _measure(team: Team, seconds: float) -> tuple[float, float]:
    """Operations a second of all its processes together; the mean CPU us an operation."""
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(team.count), context.Queue()
    workers = [
        context.Process(target=_process, args=(team, seed, seconds, barrier, results))
        for seed in range(team.count)
    ]
    for worker in workers:
        worker.start()
    found = [results.get(timeout=120) for _ in workers]
    for worker in workers:
        worker.join()
    failed = [each for each in found if isinstance(each, str)]
    if failed:
        raise RuntimeError(f"{team.kind}: {failed[0]}")
    return sum(rate for rate, _ in found), statistics.mean(cpu for _, cpu in found)


def _fill(side: embedded.Side) -> None:
    key_of, value_of = generator().key_of, generator().value_of
    for index in range(KEYS):
        side.set(key_of(index), value_of(index, VALUE_SIZE))


def run(settings: Settings) -> list[Row]:
    seconds = settings.pick(1.0, 0.5)
    kinds = ["diskcache"] if settings.peers_only else [harness.OURS, "diskcache"]
    with settings.directory() as directory, contextlib.ExitStack() as stack:
        teams: dict[str, Team] = {}
        for kind in kinds:
            path = directory / kind
            # This process keeps each cache open, so that nothing is lost between the rounds.
            _fill(stack.enter_context(_open(kind, path)))
            for count in (PROCESSES, 1):
                teams[f"{kind} {count}"] = Team(kind, path, count)
        if not settings.peers_only:
            teams[APART] = Team(harness.OURS, directory, CORES, apart=True)
        both = harness.alternate(teams, lambda team: _measure(team, seconds), settings.rounds)
    rates = {name: [rate for rate, _ in measured] for name, measured in both.items()}
    cpu = {name: statistics.median(us for _, us in measured) for name, measured in both.items()}
    return _rows(rates, cpu)


def _rows(rates: dict[str, list[float]], cpu: dict[str, float]) -> list[Row]:
    """Each side's rate beside another's, and what an operation took of a core."""

    def row(name: str, ours: str, theirs: str, peer: str, target: float | None, times: int) -> Row:
        found = [rate * times for rate in rates[theirs]]
        made = Row(name, "op/s", rates.get(ours, []), peer, found, target)
        made.notes["CPU us/op"] = " / ".join(f"{cpu[n]:.2f}" for n in (ours, theirs) if n in cpu)
        if ours in cpu:
            made.notes["ratio by CPU"] = f"{cpu[theirs] / cpu[ours]:.2f}"
        return made

    many = f"{PROCESSES} processes"
    rows = [
        row(f"{many}, together", TOGETHER, f"diskcache {PROCESSES}", "diskcache", 15.0, 1),
        row("one process", ALONE, "diskcache 1", "diskcache", None, 1),
    ]
    if APART in rates:
        rows += [
            row(f"{many} on one cache", TOGETHER, APART, "one per core, apart", 0.8, 1),
            row(f"{CORES} processes apart", APART, ALONE, f"{CORES} x one alone", None, CORES),
        ]
    return rows
