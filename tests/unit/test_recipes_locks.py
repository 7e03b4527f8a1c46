"""Recipes on a cache: locks over threads and processes, throttle, averager, early renewal."""

from __future__ import annotations

import asyncio
import multiprocessing
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.fakes import ManualClock

import siltstone
from siltstone import errors
from siltstone.recipes import (
    Averager,
    BoundedSemaphore,
    Lock,
    RLock,
    barrier,
    memoize_stampede,
    throttle,
)


@pytest.fixture
def cache() -> Iterator[siltstone.Cache]:
    with siltstone.Cache(None) as opened:
        yield opened


class Timed(ManualClock):
    """A clock of the cache's faces and of its engine."""

    cache: siltstone.Cache | None = None

    def advance(self, seconds: float) -> None:
        super().advance(seconds)
        if self.cache is not None:
            self.cache.engine.set_clock(self.wall_ms)


@pytest.fixture
def clock() -> Timed:
    return Timed()


@pytest.fixture
def timed(clock: Timed) -> Iterator[siltstone.Cache]:
    with siltstone.Cache(None, clock=clock) as opened:
        clock.cache = opened
        clock.advance(0)
        yield opened


@pytest.mark.parametrize("kind", [Lock, RLock, BoundedSemaphore])
def test_threads_exclude_each_other(cache: siltstone.Cache, kind: Any) -> None:
    lock, inside, worst = kind(cache, "lock"), 0, 0

    def work() -> None:
        nonlocal inside, worst
        for _ in range(20):
            with lock:
                inside += 1
                worst = max(worst, inside)
                time.sleep(0)  # lets the others try
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert worst == 1
    assert "lock" not in cache


def test_a_lock_is_held_once_and_released_by_who_holds_it(cache: siltstone.Cache) -> None:
    lock, other = Lock(cache, ("a", 1)), Lock(cache, ("a", 1))
    assert not lock.locked()
    assert lock.acquire()
    assert lock.locked()
    assert other.locked()
    assert not other.acquire(timeout=0)
    with pytest.raises(errors.NotHeld, match="not held"):
        other.release()
    lock.release()
    with pytest.raises(AssertionError):  # as diskcache's
        lock.release()
    assert other.acquire(timeout=0)


def test_an_expired_lock_belongs_to_the_next(timed: siltstone.Cache, clock: Timed) -> None:
    cache = timed
    first, second = Lock(cache, "k", expire=5), Lock(cache, "k", expire=5)
    first.acquire()
    clock.advance(6)
    assert second.acquire(timeout=0)
    with pytest.raises(errors.NotHeld):
        first.release()
    assert second.locked()


def test_a_reentrant_lock_counts(cache: siltstone.Cache) -> None:
    lock, taken = RLock(cache, "k"), []
    with lock, lock:
        thread = threading.Thread(target=lambda: taken.append(lock.acquire(timeout=0)))
        thread.start()
        thread.join()
        lock.release()
        assert "k" in cache
        lock.acquire()
    assert taken == [False]
    with pytest.raises(errors.NotHeld):
        lock.release()


def test_a_semaphore_has_places(cache: siltstone.Cache) -> None:
    first, second = BoundedSemaphore(cache, "k", 2), BoundedSemaphore(cache, "k", 2)
    assert first.acquire()
    assert second.acquire()
    assert not first.acquire(timeout=0)
    second.release()
    assert first.acquire(timeout=0)
    with pytest.raises(errors.NotHeld):
        second.release()
    first.release()
    first.release()
    assert "k" not in cache
    with pytest.raises(errors.ConfigError, match="1 or more"):
        BoundedSemaphore(cache, "k", 0)


def _hold(path: Path, ready: Any) -> None:
    cache = siltstone.Cache(path)
    for kind in (Lock, RLock, BoundedSemaphore):
        kind(cache, kind.__name__).acquire()
    ready.set()
    threading.Event().wait()


def test_what_a_killed_process_held_is_free_again(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    with siltstone.Cache(tmp_path) as cache:
        ready = context.Event()
        process = context.Process(target=_hold, args=(tmp_path, ready), daemon=True)
        process.start()
        assert ready.wait(60)
        locks = [kind(cache, kind.__name__) for kind in (Lock, RLock, BoundedSemaphore)]
        assert not any(lock.acquire(timeout=0) for lock in locks)
        process.kill()
        process.join()
        assert all(lock.acquire(timeout=30) for lock in locks)


def test_a_barrier_makes_calls_wait(cache: siltstone.Cache) -> None:
    held = []

    @barrier(cache, Lock, name="here")
    def work(number: int) -> int:
        held.append("here" in cache)
        return number + 1

    assert [work(1), work(2)] == [2, 3]
    assert held == [True, True]
    assert "here" not in cache
    assert work.__wrapped__.__name__ == "work"  # type: ignore[attr-defined]


def test_a_throttle_lets_a_burst_through_and_then_a_steady_stream(
    timed: siltstone.Cache, clock: Timed
) -> None:
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        clock.advance(seconds + 0.001)  # the clock counts milliseconds

    cache = timed

    @throttle(cache, 2, 1, sleep_func=sleep)
    def work() -> None: ...

    for _ in range(2):
        work()
    assert slept == []
    for _ in range(4):
        work()
    assert slept == pytest.approx([0.5] * 4, abs=0.01)
    clock.advance(100)
    slept.clear()
    for _ in range(2):
        work()
    assert slept == []
    with pytest.raises(errors.ConfigError):
        throttle(cache, 0, 1)


def test_a_coroutine_function_is_throttled_by_awaiting(
    timed: siltstone.Cache, clock: Timed
) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        clock.advance(seconds + 0.001)

    cache = timed

    @throttle(cache, 1, "100ms", sleep_func=sleep)
    async def work(number: int) -> int:
        return number

    async def use() -> list[int]:
        return [await work(number) for number in range(3)]

    assert asyncio.run(use()) == [0, 1, 2]
    assert slept == pytest.approx([0.1, 0.1], abs=0.01)


def test_an_average_over_threads(cache: siltstone.Cache) -> None:
    average = Averager(cache, "latency")
    assert average.get() is None
    assert average.pop() is None

    def work() -> None:
        for number in range(100):
            Averager(cache, "latency").add(number)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert average.get() == pytest.approx(49.5)
    assert average.pop() == pytest.approx(49.5)
    assert average.get() is None


class Chance:
    """As told."""

    def __init__(self) -> None:
        self.number = 0.0

    def uniform(self) -> float:
        return self.number

    def bytes(self, size: int) -> bytes:
        return bytes(size)


def test_a_result_is_renewed_before_it_expires(timed: siltstone.Cache, clock: Timed) -> None:
    cache, chance, calls = timed, Chance(), []
    renewed = threading.Event()

    @memoize_stampede(cache, 10, chance=chance)
    def slow(number: int) -> list[int]:
        calls.append(number)
        clock.advance(1)  # it takes a second
        if len(calls) == 2:
            renewed.set()
        return [number, len(calls)]

    assert slow(5) == [5, 1]
    chance.number = 0.9  # -ln(1 - 0.9) = 2.3 seconds before the end
    clock.advance(7)
    assert slow(5) == [5, 1]
    assert len(calls) == 1
    clock.advance(1)
    assert slow(5) == [5, 1]  # the old one, at once
    assert renewed.wait(30)
    chance.number = 0.0
    for _ in range(1000):
        if slow(5) == [5, 2]:
            break
        time.sleep(0.001)
    assert slow(5) == [5, 2]
    assert calls == [5, 5]
    assert list(cache) == [slow.__cache_key__(5)]  # type: ignore[attr-defined]
    with pytest.raises(errors.ConfigError):
        memoize_stampede(cache, 0)


def test_a_coroutine_functions_result_is_renewed_by_a_task(
    timed: siltstone.Cache, clock: Timed
) -> None:
    cache, chance, calls = timed, Chance(), []

    @memoize_stampede(cache, 10, chance=chance)
    async def slow() -> int:
        calls.append(1)
        clock.advance(1)
        return len(calls)

    async def use() -> None:
        assert await slow() == 1
        chance.number = 0.99999  # -ln(1 - it) = 11.5 seconds
        assert await slow() == 1
        chance.number = 0.0
        for _ in range(10):
            await asyncio.sleep(0)  # the task's turn
        assert await slow() == 2

    asyncio.run(use())


def test_a_semaphore_that_could_not_be_released_is_held_still(
    cache: siltstone.Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    semaphore = BoundedSemaphore(cache, "places", 2)
    assert semaphore.acquire()

    def busy(*_: object) -> None:
        raise errors.Busy("a shard is held")

    with monkeypatch.context() as patch:
        patch.setattr(siltstone.Cache, "get_with_token", busy)
        with pytest.raises(errors.Busy):
            semaphore.release()
    semaphore.release()
    with pytest.raises(errors.NotHeld):
        semaphore.release()
    assert "places" not in cache


@pytest.mark.parametrize(
    "value", [b"\xb2.1.1", b"1.\xb2.1", b"999.1.1.1", b"9" * 30 + b".1", b"x", b",,", b"\xff"]
)
def test_what_names_no_holder_holds_nothing(tmp_path: Path, value: bytes) -> None:
    with siltstone.Cache(tmp_path / "c", ram="4MiB") as shared:
        shared["lock"] = value
        with Lock(shared, "lock") as lock:
            assert lock.locked()


@pytest.mark.parametrize("kind", [Lock, BoundedSemaphore])
def test_a_barrier_makes_coroutines_wait(cache: siltstone.Cache, kind: Any) -> None:
    inside: list[int] = []

    async def use() -> None:
        go_on = asyncio.Event()

        @barrier(cache, kind)
        async def alone(number: int) -> int:
            inside.append(number)
            assert len(inside) == 1
            await go_on.wait()
            inside.remove(number)
            return number

        calls = [asyncio.ensure_future(alone(number)) for number in range(5)]
        while not inside:
            await asyncio.sleep(0)
        go_on.set()
        assert await asyncio.gather(*calls) == list(range(5))

    asyncio.run(use())


@pytest.mark.parametrize("timeout", ["5s", float("nan"), b"1", [1]])
def test_a_timeout_is_a_number_of_seconds(cache: siltstone.Cache, timeout: Any) -> None:
    for lock in (Lock(cache, "l"), RLock(cache, "r"), BoundedSemaphore(cache, "s")):
        with pytest.raises(errors.ConfigError, match="no number of seconds"):
            lock.acquire(timeout)
        assert lock.acquire(float("inf"))


@pytest.mark.parametrize("count", [0, "3", None, 2.5])
def test_a_throttle_counts_whole_calls(cache: siltstone.Cache, count: Any) -> None:
    with pytest.raises(errors.ConfigError, match="at least one call"):
        throttle(cache, count, 1)
