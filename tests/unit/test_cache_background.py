"""Background work: sweeping, idle items, free segments ahead of need, and rest when idle."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flashrig import Rig

from siltstone.cache.sweep import drain


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Any]:
    rigs: list[Rig] = []

    def opened(**options: Any) -> Rig:
        rigs.append(Rig(tmp_path, **options))
        return rigs[-1]

    yield opened
    for rig in rigs:
        rig.cache.close()


class Time:
    """The engine's clock, moved by hand; each step is one round of background work."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.now_ms = rig.cache._clock.now_ms() + 1000
        rig.cache.engine.set_clock(self.now_ms)

    def tick(self, rounds: int, step_ms: int = 250) -> None:
        for _ in range(rounds):
            self.now_ms += step_ms
            self.rig.cache.engine.set_clock(self.now_ms)
            self.rig.background.tick()


def test_what_expired_leaves_without_being_asked_for(make: Any) -> None:
    rig = make()
    for number in range(300):
        rig.cache.set(f"ram {number}", b"x", ttl=60)
        rig.cache.set(f"flash {number}", b"y" * 500, ttl=60)
        rig.cache[f"stays {number}"] = b"z"
    drain(rig.cache.engine)
    clock = Time(rig)
    clock.tick(8)
    assert len(rig.cache) == 900
    clock.tick(1, step_ms=61_000)
    clock.tick(60)
    assert len(rig.cache) == 300
    assert rig.counter("crawler_reclaimed") == 600
    rig.check()


def test_what_a_forgotten_segment_held_leaves_soon(make: Any) -> None:
    rig = make()
    rig.fill(1500)
    for _ in range(10):
        oldest = rig.log.oldest()
        rig.log.forget(oldest["slot"], oldest["version"])
    # as forget_oldest tells the sweeper; here the log was told behind its back
    clock = Time(rig)
    clock.tick(120)
    found = sum(f"key {number}" in rig.cache for number in range(1500))
    assert found < 1200
    assert len(rig.cache) == found


def test_counts_are_right_soon_after_reclaim(make: Any) -> None:
    rig = make()
    rig.fill(4000)
    clock = Time(rig)
    clock.tick(20)
    assert rig.counter("flash_evicted") > 0
    assert len(rig.cache) == sum(f"key {number}" in rig.cache for number in range(4000))


def test_idle_items_go_to_flash_without_pressure(make: Any) -> None:
    rig = make(item_age=30, item_size_min=100)
    for number in range(200):
        rig.cache[f"idle {number}"] = b"i" * 500
        rig.cache[f"small {number}"] = b"s"
    clock = Time(rig)
    clock.tick(20)
    assert rig.cache.stats()["items_flash"] == 0
    clock.tick(1, step_ms=40_000)
    rig.cache["young"] = b"y" * 500
    clock.tick(100)
    stats = rig.cache.stats()
    assert (stats["items_flash"], stats["items_ram"]) == (200, 201)
    assert rig.cache._get_meta("young")[4] is False
    assert all(rig.cache[f"idle {number}"] == b"i" * 500 for number in range(200))
    rig.check()


def test_segments_are_free_before_they_are_needed(make: Any) -> None:
    rig = make()
    for turn in range(6000):
        rig.cache[f"key {turn % 3500}"] = b"%05d" % turn * 200
        if turn % 20 == 0:
            rig.background.tick()
    assert rig.cache.stats()["log"]["segment_waits"] == 0


def test_a_threads_cache_rests_when_idle(make: Any) -> None:
    rig = make(workers=2)
    rig.fill(500)
    rig.cache.flush()
    before = time.process_time()
    time.sleep(0.5)
    used = time.process_time() - before
    assert used < 0.05  # an idle thread uses below 1 %; this only tells rest from a busy loop
