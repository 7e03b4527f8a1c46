"""Native threads on one engine: nothing torn, nothing stale, and nothing lost without need.

Every value says whose it is, of which write, and how long it is; every key has one writer, which
knows what it did, and every reader knows which write had returned before it looked.
"""

from __future__ import annotations

import threading

import pytest
from cacherig import engine_of

from siltstone.cache.engine import CacheEngine
from siltstone.cache.invariants import check_invariants
from siltstone.cache.trial import Board

OPERATIONS = 60_000  # a thread; set it to 10 million to look further
WRONG = ("torn", "stale", "revived")
RESETS, BUSY, BAD_OFFSETS = 38, 39, 41


def pound(engine: CacheEngine, keys: int, threads: int, size_max: int, seed: int) -> dict[str, int]:
    """Sums over all threads of what they saw."""
    board = Board(engine, keys, threads)
    seen: list[dict[str, int]] = []

    def run(number: int) -> None:
        seen.append(board.pound(number, seed, OPERATIONS, size_max))

    workers = [threading.Thread(target=run, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(seen) == threads
    check_invariants(engine)
    counters = engine.counters()
    assert (counters[RESETS], counters[BUSY], counters[BAD_OFFSETS]) == (0, 0, 0)
    return {name: sum(each[name] for each in seen) for name in seen[0]}


@pytest.mark.slow
@pytest.mark.parametrize("threads", [2, 4])
def test_with_memory_to_spare_every_read_is_right(threads: int, seed: int) -> None:
    engine = engine_of(32 << 20, clock=False)
    seen = pound(engine, 1000, threads, 2048, seed)
    assert seen["hits"] > OPERATIONS // 4
    assert [seen[name] for name in (*WRONG, "lost", "refused")] == [0, 0, 0, 0, 0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("limit", "keys", "size_max", "shards", "frame_bytes"),
    [
        (2 << 20, 3000, 20_000, 4, 4096),
        (4 << 20, 2000, 100_000, 2, 8192),
        (8 << 20, 9000, 9000, 0, 0),
    ],
    ids=["tiny frames", "large values", "usual"],
)  # fmt: skip
def test_under_eviction_every_read_is_right(
    limit: int, keys: int, size_max: int, shards: int, frame_bytes: int, seed: int
) -> None:
    engine = engine_of(limit, shards=shards, frame_bytes=frame_bytes, clock=False)
    seen = pound(engine, keys, 3, size_max, seed)
    assert seen["hits"] > 500
    assert seen["lost"] > 0
    assert [seen[name] for name in (*WRONG, "refused")] == [0, 0, 0, 0]


@pytest.mark.slow
def test_flushes_while_others_read_and_write(seed: int) -> None:
    engine = engine_of(16 << 20, clock=False)
    done = threading.Event()

    def flush() -> None:
        while not done.wait(0.002):
            engine.flush_at(1)

    flusher = threading.Thread(target=flush)
    flusher.start()
    try:
        seen = pound(engine, 2000, 2, 4000, seed)
    finally:
        done.set()
        flusher.join()
    assert seen["lost"] > 0
    assert [seen[name] for name in (*WRONG, "refused")] == [0, 0, 0, 0]
