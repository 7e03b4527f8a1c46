"""Processes on one cache that are killed, stopped and started again; what they must never see.

A *board* in memory that all share holds, for every key, bounds on what may be read. Each key has
one writing process at a time, which numbers its writes: `intent` is the highest number that was
begun, `floor` the lowest that may still be read: a write that was done, or one that was read,
hides all before it; a key that was missed may come back only by a later write. Every value says
its key and number and ends in a checksum.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import signal
import struct
import sys
import time
import traceback
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import siltstone
from siltstone import errors
from siltstone.cache import attachment, trial

KEYS, COMMON, WORKERS = 400, 12, 8
ROUND = 12  # operations between two looks at the board
HANG_S = 60.0
WRONG, BROKEN = 11, 12
SETTINGS: dict[str, Any] = {
    "ram": "3MiB",
    "flash": "2MiB",
    "segment_size": "64KiB",
    "buffer_size": "16KiB",
    "buffers": "128KiB",
    "flush_idle": 0.005,
}


class Board:
    """The bounds, and what the processes tell each other. Aligned words, so stores are whole."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 8 * (3 * KEYS + 5 * WORKERS))
        words = memoryview(self._memory).cast("Q")
        self.intent, self.done = words[:KEYS], words[KEYS : 2 * KEYS]
        self.floor = words[2 * KEYS : 3 * KEYS]
        self.progress, self.busy, self.slowest_ms, self.opens, self.doomed = (
            words[3 * KEYS + n * WORKERS : 3 * KEYS + (n + 1) * WORKERS] for n in range(5)
        )

    def raise_floor(self, number: int, to: int) -> None:
        # Two at once may lower it again: then a later look is less strict, never wrong.
        if to > self.floor[number]:
            self.floor[number] = to


def key_of(number: int) -> str:
    return f"{'counter' if number % 8 == 0 else 'list' if number % 8 == 1 else 'key'}:{number}"


def plain(key: str, number: int, size: int) -> bytes:
    body = f"{key}|{number}|".encode()
    body += (f"{key}.{number};".encode() * (size // 8 + 1))[:size]
    return body + struct.pack("<I", zlib.crc32(body))


def number_in(key: str, value: bytes) -> int:
    body, check = value[:-4], value[-4:]
    assert struct.pack("<I", zlib.crc32(body)) == check, f"{key}: torn value {value[:60]!r}"
    name, number, _ = body.split(b"|", 2)
    assert name.decode() == key, f"{key}: value of {name!r}"
    return int(number)


def entry(key: str, number: int) -> bytes:
    text = f"{key},{number}".encode()
    return text + b",%08x;" % zlib.crc32(text)


def last_of_list(key: str, value: bytes) -> int:
    last = 0
    assert value.endswith(b";")
    for part in value[:-1].split(b";"):
        name, number, check = part.split(b",")
        assert name.decode() == key, f"{key}: entry of {name!r}"
        assert int(check, 16) == zlib.crc32(name + b"," + number), f"{key}: torn entry"
        assert int(number) > last, f"{key}: entries out of order"
        last = int(number)
    return last


def check_read(board: Board, cache: siltstone.Cache, number: int) -> None:
    """Read a key and hold it against the board."""
    key = key_of(number)
    floor, done = board.floor[number], board.done[number]
    value = cache.get(key)
    if value is None:
        board.raise_floor(number, done + 1)
        return
    if number % 8 == 0:
        found = int(value)
    else:
        found = (last_of_list if number % 8 == 1 else number_in)(key, value)
    assert found >= floor, f"{key}: {found} came back, at least {floor} is due"
    assert found <= board.intent[number], f"{key}: {found} was never written"
    board.raise_floor(number, found)


DOOR_MS = 300  # the product's 10 s for each that is stopped at the door would make a slow test


class Worker:
    """One process's life: operations until it is killed."""

    def __init__(self, board: Board, path: Path, place: int, seed: int, **settings: Any) -> None:
        self.board, self.path, self.place = board, path, place
        self.settings = {**SETTINGS, **settings}
        self.rng = random.Random(seed)

    def run(self, workers: int) -> None:
        attachment.DOOR_LIMIT_MS = DOOR_MS  # type: ignore[misc]
        mine = [number for number in range(KEYS) if number % workers == self.place]
        while True:
            try:
                cache = siltstone.Cache(self.path, **self.settings)
            except errors.Busy:  # somebody stopped at the door
                self.board.busy[self.place] += 1
                continue
            self.board.opens[self.place] += 1
            for _ in range(self.rng.randrange(1, 40)):
                for _ in range(ROUND):
                    self.timed(cache, mine)
                    if self.board.doomed[self.place]:
                        self.die_inside(cache)
                self.board.progress[self.place] += 1
            try:
                cache.close()
            except errors.Busy:
                return  # somebody stopped at the door: our locks end with us

    def die_inside(self, cache: siltstone.Cache) -> None:
        """In every shard at once: a kill from outside hits the inside of one too rarely."""
        while True:
            with contextlib.suppress(errors.Busy):
                trial.enter_shards(cache.engine)
                os.kill(os.getpid(), signal.SIGKILL)

    def timed(self, cache: siltstone.Cache, mine: list[int]) -> None:
        started = time.monotonic()
        try:
            self.step(cache, mine)
        except errors.Busy:
            self.board.busy[self.place] += 1
        spent = int((time.monotonic() - started) * 1000)
        if spent > self.board.slowest_ms[self.place]:
            self.board.slowest_ms[self.place] = spent

    def step(self, cache: siltstone.Cache, mine: list[int]) -> None:
        choice = self.rng.random()
        if choice < 0.45:
            check_read(self.board, cache, self.rng.randrange(KEYS))
        elif choice < 0.55:
            self.common(cache)
        elif choice < 0.62:
            self.write(cache, self.rng.choice(mine), self.delete)
        else:
            number = self.rng.choice(mine)
            kinds: dict[int, Callable[..., int]] = {0: self.count, 1: self.extend}
            self.write(cache, number, kinds.get(number % 8, self.store))

    def write(self, cache: siltstone.Cache, number: int, do: Callable[..., int]) -> None:
        """`do` gives back the floor from then on."""
        following = self.board.intent[number] + 1
        self.board.intent[number] = following
        try:
            floor = do(cache, number, following)
        except errors.Busy:
            if number % 8:  # nothing was changed (of what counters do, the first half may be)
                self.board.intent[number] = following - 1
            raise
        self.board.done[number] = following
        self.board.raise_floor(number, floor)

    def store(self, cache: siltstone.Cache, number: int, following: int) -> int:
        size = self.rng.choice((10, 100, 900, 3000, 12000, 40000))
        cache.set(key_of(number), plain(key_of(number), following, size))
        return following

    def delete(self, cache: siltstone.Cache, number: int, following: int) -> int:
        cache.delete(key_of(number))
        return following + 1

    def count(self, cache: siltstone.Cache, number: int, following: int) -> int:
        floor = self.board.floor[number]
        try:
            found: int = cache.incr(key_of(number))
        except KeyError:
            cache.set(key_of(number), following)
            return following
        assert floor < found <= following, f"counter {number}: {found}, not {floor}..{following}"
        # a counter may lag behind its number: what is missed later may have been this one
        cache.set(key_of(number), following)
        return following

    def extend(self, cache: siltstone.Cache, number: int, following: int) -> int:
        key = key_of(number)
        if self.rng.random() < 0.05 or not cache.append(key, entry(key, following)):
            cache.set(key, entry(key, following))
        return following

    def common(self, cache: siltstone.Cache) -> None:
        """Keys that everybody writes: whole values only."""
        key = f"common:{self.rng.randrange(COMMON)}"
        choice = self.rng.random()
        if choice < 0.4:
            cache.set(key, plain(key, self.place, self.rng.randrange(5000)), ttl=30)
        elif choice < 0.5:
            cache.delete(key)
        elif choice < 0.6:
            value, token = cache.get_with_token(key)
            if token is not None:
                number_in(key, value)
                cache.compare_and_set(key, plain(key, self.place, 77), token)
        else:
            value = cache.get(key)
            assert value is None or number_in(key, value) < WORKERS


class Rig:
    """Starts, kills and ends the workers. Opens the cache itself only in `settle`."""

    def __init__(
        self,
        path: Path,
        rng: random.Random,
        workers: int = 3,
        settings: dict[str, Any] | None = None,
    ) -> None:
        self.path, self.rng, self.workers = path, rng, workers
        self.settings = settings or {}
        self.board = Board()
        self.running: dict[int, int] = {}
        self.kills = self.kills_inside = 0

    def start(self, place: int) -> None:
        seed = self.rng.getrandbits(32)
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            code = BROKEN
            try:
                Worker(self.board, self.path, place, seed, **self.settings).run(self.workers)
                code = 0
            except AssertionError:
                code = WRONG
                traceback.print_exc()
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        self.running[place] = pid

    def wait_for_progress(self, place: int, rounds: int = 1, or_busy: bool = False) -> None:
        first, limit = self.board.progress[place], time.monotonic() + HANG_S
        busy = self.board.busy[place]
        while self.board.progress[place] - first < rounds:
            if or_busy and self.board.busy[place] != busy:
                return
            self.check_alive(place)
            assert time.monotonic() < limit, f"worker {place} hangs"
            time.sleep(0.0005)

    def check_alive(self, place: int) -> None:
        pid, status = os.waitpid(self.running[place], os.WNOHANG)
        if pid:
            del self.running[place]
            assert os.WIFEXITED(status), f"worker {place} died of signal {os.WTERMSIG(status)}"
            assert os.WEXITSTATUS(status) == 0, f"worker {place}: {os.WEXITSTATUS(status)}"
            self.start(place)

    def kill(self, place: int) -> None:
        self.check_alive(place)
        pid = self.running.pop(place)
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        assert not os.WIFEXITED(status) or os.WEXITSTATUS(status) == 0, os.WEXITSTATUS(status)
        self.kills += 1

    def kill_inside(self, place: int) -> None:
        self.check_alive(place)
        self.board.doomed[place] = 1
        _, status = os.waitpid(self.running.pop(place), 0)
        self.board.doomed[place] = 0
        assert os.WIFSIGNALED(status), f"worker {place}: {os.WEXITSTATUS(status)}"
        self.kills += 1
        self.kills_inside += 1

    @contextlib.contextmanager
    def nobody_is_left(self) -> Iterator[None]:
        """A test that fails leaves no worker behind."""
        try:
            yield
        finally:
            for pid in self.running.values():
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            self.running.clear()

    def kill_often(self, kills: int) -> None:
        with self.nobody_is_left():
            self._kill_often(kills)

    def _kill_often(self, kills: int) -> None:
        for place in range(self.workers):
            self.start(place)
        while self.kills < kills:
            place = self.rng.randrange(self.workers)
            kind = self.rng.random()
            if kind < 0.15:
                self.kill_inside(place)
            elif kind < 0.7:
                self.wait_for_progress(place)
                time.sleep(self.rng.random() * 0.004)  # any instruction will do
                self.kill(place)
            elif kind < 0.95:
                self.kill(place)
                self.start(place)
                time.sleep(self.rng.random() * 0.03)  # while it opens
                self.kill(place)
            else:
                for other in list(self.running):  # all at once: the memory outlives them
                    self.kill(other)
            for other in range(self.workers):
                if other not in self.running:
                    self.start(other)
        self.end()

    def stop_often(self, stops: int) -> None:
        """One is stopped at any instruction; each of the others goes on meanwhile."""
        with self.nobody_is_left():
            self._stop_often(stops)

    def _stop_often(self, stops: int) -> None:
        for place in range(self.workers):
            self.start(place)
        for _ in range(stops):
            place = self.rng.randrange(self.workers)
            self.wait_for_progress(place)
            time.sleep(self.rng.random() * 0.004)
            with self.stopped(place):
                for other in list(self.running):
                    if other != place:
                        self.wait_for_progress(other, or_busy=True)
                if self.rng.random() < 0.2:
                    self.kill(place)
            if place not in self.running:
                self.start(place)
        self.end()

    @contextlib.contextmanager
    def stopped(self, place: int) -> Iterator[None]:
        self.check_alive(place)
        pid = self.running[place]
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            if self.running.get(place) == pid:
                os.kill(pid, signal.SIGCONT)

    def end(self) -> None:
        for place in list(self.running):
            self.wait_for_progress(place)
        for place in list(self.running):
            self.kill(place)
            self.kills -= 1

    def settle(self) -> dict[str, Any]:
        """Everybody is gone: what is left is whole. The statistics."""
        with siltstone.Cache(self.path, **{**SETTINGS, **self.settings}) as cache:
            for number in range(KEYS):
                check_read(self.board, cache, number)
            for key in list(cache):
                cache.get(key)
            check_engine(cache)
            assert cache.verify().ok
            stats: dict[str, Any] = cache.stats()
        return stats


def check_engine(cache: siltstone.Cache) -> None:
    """Every structure, while nobody else changes anything."""
    try:
        from siltstone.cache.invariants import check_invariants
    except ImportError:
        pass
    else:
        check_invariants(cache.engine)
    cache.engine.arena.check_invariants()
