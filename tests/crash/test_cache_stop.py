"""Processes that share a cache are stopped (SIGSTOP): the others get a bounded, counted Busy.

Never a wrong value, never a miss of what is there, never a change that was refused and happens
later.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from killrig import SETTINGS, Rig, check_engine

import siltstone
from siltstone import errors
from siltstone.cache import trial
from siltstone.cache.engine import geometry
from siltstone.serve.control import Control
from siltstone.serve.memcache import Session
from siltstone.serve.settings import Settings

pytestmark = [pytest.mark.crash, pytest.mark.slow]

STOPS = int(os.environ.get("SILTSTONE_STOPS", "25"))
LIMIT_MS = 1000  # of a lock
SHORT_MS = 250  # of each operation after one that waited in vain; the machine may be busy


def test_stopped_at_any_instruction(tmp_path: Path, rng: random.Random) -> None:
    rig = Rig(tmp_path / "cache", rng)
    rig.stop_often(STOPS)
    rig.settle()
    # an operation waits once for a lock and once for room; a busy machine adds to it
    assert max(rig.board.slowest_ms) < 6 * LIMIT_MS


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[siltstone.Cache]:
    settings: dict[str, Any] = {**SETTINGS, "workers": 0}
    with siltstone.Cache(tmp_path / "cache", **settings) as opened:
        opened["there"] = 1
        opened["text"] = b"abc"
        opened.set("expired", 1, ttl=0.001)
        yield opened


class Holder:
    """A member that is stopped while it is inside every shard."""

    def __init__(self, cache: siltstone.Cache) -> None:
        self.pid = os.fork()
        if self.pid == 0:
            with contextlib.suppress(BaseException):
                trial.enter_shards(cache.engine)
                os.kill(os.getpid(), signal.SIGSTOP)
                trial.leave_shards(cache.engine)
                os._exit(0)
            os._exit(1)
        assert os.WIFSTOPPED(os.waitpid(self.pid, os.WUNTRACED)[1])

    def go_on(self) -> None:
        os.kill(self.pid, signal.SIGCONT)
        assert os.waitpid(self.pid, 0)[1] == 0

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


def spent_ms(operation: Callable[[], Any]) -> float:
    started = time.monotonic()
    with pytest.raises(errors.Busy):
        operation()
    return (time.monotonic() - started) * 1000


def operations(cache: siltstone.Cache) -> list[Callable[[], Any]]:
    return [
        lambda: cache.get("there"),
        lambda: cache["there"],
        lambda: cache.get("missing"),
        lambda: cache.get("expired"),
        lambda: "there" in cache,
        lambda: cache.get_with_token("there"),
        lambda: cache.get_many(["missing", "there"]),
        lambda: cache.set("there", 2),
        lambda: cache.set("missing", 2),
        lambda: cache.set("missing", bytes(900_000)),  # too large for memory: straight to flash
        lambda: cache.add("missing", 2),
        lambda: cache.replace("there", 2),
        lambda: cache.delete("there"),
        lambda: cache.pop("there"),
        lambda: cache.incr("there"),
        lambda: cache.decr("there"),
        lambda: cache.append("text", b"d"),
        lambda: cache.touch("there", 60),
        lambda: cache.compare_and_set("there", 2, 1),
        lambda: cache.get_or_set("missing", lambda: 2),
        lambda: list(cache),
    ]


def test_who_needs_a_shard_that_a_stopped_process_is_in(cache: siltstone.Cache) -> None:
    holder = Holder(cache)
    before = cache.stats()["busy"]
    all_operations = operations(cache)
    first = spent_ms(all_operations[0])
    assert 0.8 * LIMIT_MS <= first < 3 * LIMIT_MS
    for number, operation in enumerate(all_operations):
        # a second after a wait in vain the next one is a whole second again
        assert spent_ms(operation) < LIMIT_MS + SHORT_MS, number
    assert cache.stats()["busy"] - before >= len(all_operations)
    assert len(cache) == 3
    holder.go_on()
    assert cache["there"] == 1
    assert cache["text"] == b"abc"
    assert "missing" not in cache
    assert "expired" not in cache
    assert cache.ttl("there") is None
    assert cache.stats()["shards_reset"] == 0
    check_engine(cache)


def test_a_client_is_told_that_it_is_busy(cache: siltstone.Cache) -> None:
    made = Settings()
    session = Session(cache.engine, Control(cache, made), made)
    holder = Holder(cache)
    busy = b"SERVER_ERROR busy\r\n"
    for line in (b"get there", b"gets missing there", b"gat 9 there", b"mg there v", b"md there",
                 b"ma there", b"incr there 1", b"delete there", b"touch there 9",
                 b"set there 0 0 1\r\n2", b"ms there 1\r\n2",
                 b"append text 0 0 1\r\nd"):  # fmt: skip
        assert session.feed(line + b"\r\n") == busy, line
    holder.go_on()
    assert session.feed(b"get there text\r\n").endswith(
        b"\r\n1\r\nVALUE text 0 3\r\nabc\r\nEND\r\n"
    )


def test_the_stopped_process_is_killed(cache: siltstone.Cache) -> None:
    holder = Holder(cache)
    spent_ms(lambda: cache["there"])
    holder.kill()
    assert cache.get("there") is None  # its shards are forgotten, and say so
    cache["there"] = 2
    assert cache["there"] == 2
    for number in range(200):
        cache[number] = number
    assert all(cache[number] == number for number in range(200))
    assert cache.stats()["shards_reset"] == geometry(cache.settings.ram)[0]
    check_engine(cache)
