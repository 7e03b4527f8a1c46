"""get_or_set and memoize: one computation at a time per key, over threads, tasks and processes."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import siltstone
from siltstone import errors


@pytest.fixture
def cache() -> Iterator[siltstone.Cache]:
    with siltstone.Cache(ram="4MiB") as opened:
        yield opened


class Slow:
    """A function that waits until it is let go, and counts its calls."""

    def __init__(self) -> None:
        self.begun, self.go = threading.Event(), threading.Event()
        self.calls = 0

    def __call__(self) -> str:
        self.calls += 1
        self.begun.set()
        assert self.go.wait(20)
        return "value"


def test_computed_once(cache: siltstone.Cache) -> None:
    calls = []
    for _ in range(3):
        assert cache.get_or_set("k", lambda: calls.append(1) or "v", ttl=100) == "v"
    assert calls == [1]
    assert cache.get_or_set("none", lambda: None) is None
    assert cache.get_or_set("none", lambda: calls.append(1)) is None
    assert calls == [1]


def test_threads_wait_for_one_computation(cache: siltstone.Cache) -> None:
    slow, found = Slow(), []
    threads = [
        threading.Thread(target=lambda: found.append(cache.get_or_set("k", slow, tag="t")))
        for _ in range(5)
    ]
    for thread in threads:
        thread.start()
    assert slow.begun.wait(20)
    slow.go.set()
    for thread in threads:
        thread.join()
    assert found == ["value"] * 5
    assert slow.calls == 1
    assert list(cache) == ["k"]
    assert cache.evict("t") == 1


def test_an_exception_frees_the_key(cache: siltstone.Cache) -> None:
    with pytest.raises(ZeroDivisionError):
        cache.get_or_set("k", lambda: 1 // 0)
    assert list(cache) == []
    assert cache.get_or_set("k", lambda: 2) == 2


def test_the_time_limit_passes_it_on() -> None:
    with siltstone.Cache(ram="4MiB", lease="50ms") as cache:
        slow = Slow()
        first: list[str] = []
        thread = threading.Thread(target=lambda: first.append(cache.get_or_set("k", slow)))
        thread.start()
        assert slow.begun.wait(20)
        assert cache.get_or_set("k", lambda: "second") == "second"
        slow.go.set()
        thread.join()
        assert first == ["value"]  # its own; the last to store wins
        assert cache["k"] == "value"


def test_a_killed_holder_passes_it_on_at_once(tmp_path: Path) -> None:
    ready, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        held = siltstone.Cache(tmp_path, ram="4MiB", flash=0, lease="60s")

        def hold() -> None:
            os.write(tell, b"1")
            time.sleep(60)

        held.get_or_set("k", hold)
        os._exit(1)
    with siltstone.Cache(tmp_path, ram="4MiB", flash=0, lease="60s") as cache:
        assert os.read(ready, 1) == b"1"
        threading.Timer(0.05, os.kill, (pid, signal.SIGKILL)).start()
        started = time.monotonic()
        assert cache.get_or_set("k", lambda: "mine") == "mine"
        assert time.monotonic() - started < 20
        os.waitpid(pid, 0)
    os.close(ready)
    os.close(tell)


def test_processes_compute_once(tmp_path: Path) -> None:
    with siltstone.Cache(tmp_path, ram="4MiB", flash=0) as cache:
        cache["calls"] = 0
        pids = []
        for _ in range(3):
            pid = os.fork()
            if pid == 0:
                with siltstone.Cache(tmp_path, ram="4MiB", flash=0) as mine:
                    for number in range(20):
                        mine.get_or_set(("k", number), lambda: mine.incr("calls"))
                os._exit(0)
            pids.append(pid)
        for pid in pids:
            assert os.waitpid(pid, 0)[1] == 0
        assert cache["calls"] == 20


# memoize -------------------------------------------------------------------------------------


def test_memoize(cache: siltstone.Cache) -> None:
    calls: list[Any] = []

    @cache.memoize(ttl=100, tag="f")
    def add(a: int, b: int = 2, *rest: int, **more: int) -> int:
        """Adds."""
        calls.append((a, b))
        return a + b

    assert add(1) == add(1) == 3
    assert add(1, 3) == 4
    assert add(1, b=3) == 4
    assert add(1, 2, x=1) == 3
    assert len(calls) == 4
    assert add.__name__ == "add"
    assert add.__doc__ == "Adds."
    assert add.__wrapped__(5) == 7
    assert add.__cache_key__(1) in cache
    del cache[add.__cache_key__(1)]
    add(1)
    assert len(calls) == 6
    assert cache.evict("f") == 5
    assert add.__cache_key__(1) not in cache
    with pytest.raises(errors.ConfigError, match="brackets"):
        cache.memoize(add)


def test_memoize_typed_and_ignore(cache: siltstone.Cache) -> None:
    calls: list[Any] = []

    @cache.memoize(typed=True, name="typed")
    def typed(value: Any) -> str:
        calls.append(value)
        return type(value).__name__

    @cache.memoize(ignore=(0, "log"))
    def ignoring(who: object, value: Any, log: Any = None) -> int:
        calls.append(value)
        return len(calls)

    assert typed(1) == "int"
    assert typed(1.0) == "float"
    assert typed("1") == "str"
    assert typed(b"1") == "bytes"
    assert typed.__cache_key__(1)[0] == "typed"
    calls.clear()
    assert ignoring(object(), 1, log=print) == ignoring(object(), 1, log=len) == 1
    assert ignoring(object(), 1.0) == 1
    assert ignoring(object(), 2) == 2


def test_memoize_arguments_of_all_kinds(cache: siltstone.Cache) -> None:
    @cache.memoize()
    def kind(value: Any) -> str:
        return repr(value)

    values = [None, True, 1, 1.5, "a", b"a", (1, 2), [1, 2], {"a": 1}, frozenset([1]), "x" * 70000]
    for value in values:
        assert kind(value) == repr(value)
        assert kind.__cache_key__(value) in cache
    assert len(cache) == len(values)
    assert kind("x" * 70001) == repr("x" * 70001)


def test_memoize_of_coroutines(cache: siltstone.Cache) -> None:
    calls = 0

    @cache.memoize(ttl=100)
    async def slow(number: int) -> int:
        nonlocal calls
        calls += 1
        await asyncio.sleep(0.01)
        if number < 0:
            raise ValueError(number)
        return number * 2

    async def main() -> None:
        assert await asyncio.gather(*(slow(4) for _ in range(8))) == [8] * 8
        assert calls == 1
        with pytest.raises(ValueError):
            await slow(-1)
        task = asyncio.create_task(slow(5))
        await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.wait_for(slow(5), 20) == 10

    asyncio.run(main())
    assert slow.__cache_key__(4) in cache
    assert len(list(cache)) == 2
