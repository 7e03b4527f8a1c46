"""Caches are killed with SIGKILL again and again; what comes back is never old and never wrong.

Every key has an operation number in a page that outlives the processes: `begun` is written before
the operation and `done` after it. A set's value names key and number; whether a number is a set or
a delete follows from both. After a kill a key may say what `done` or `begun` says, or nothing.
"""

from __future__ import annotations

import mmap
import os
import random
import signal
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from siltstone import Cache, errors
from siltstone.cache.attachment import _open_attachments
from siltstone.log.device import remove_files

pytestmark = [pytest.mark.crash, pytest.mark.slow]

KEYS = 2500
WRONG = 17
SETTINGS = {
    "ram": "1MiB",
    "flash": "5MiB",
    "segment_size": "64KiB",
    "buffer_size": "32KiB",
    "codec": "raw",
    "item_size_max": "256KiB",
    "flush_idle": 0.005,
    "recache_rate": 3,
}


class Numbers:
    """`begun` and `done` of every key, in memory that is shared with all children."""

    def __init__(self) -> None:
        self._page = mmap.mmap(-1, KEYS * 8, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)
        self._numbers = memoryview(self._page).cast("I")

    def begun(self, key: int) -> int:
        return self._numbers[2 * key]

    def done(self, key: int) -> int:
        return self._numbers[2 * key + 1]

    def begin(self, key: int, number: int) -> None:
        self._numbers[2 * key] = number

    def end(self, key: int, number: int) -> None:
        self._numbers[2 * key + 1] = number


def is_delete(key: int, number: int) -> bool:
    return number == 0 or (key * 7 + number * 13) % 5 == 0


def value_of(key: int, number: int) -> bytes:
    text = b"%d.%d;" % (key, number)
    size = 60_000 if (key, number % 3) == (key // 500 * 500, 0) else 40 + (key * 31 + number) % 2500
    return (text * (size // len(text) + 1))[:size]


def number_in(value: bytes, key: int) -> int:
    """The number that a value names; -1 when it is no value of that key."""
    head, _, _ = value.partition(b";")
    name, _, number = head.partition(b".")
    if name != b"%d" % key or not number.isdigit() or value != value_of(key, int(number)):
        return -1
    return int(number)


class Worker:
    """One process's life: check what is there, then change things until killed."""

    def __init__(self, path: Path, numbers: Numbers, seed: int, **settings: object) -> None:
        self.numbers = numbers
        self.rng = random.Random(seed)
        self.cache = Cache(path, **{**SETTINGS, **settings})  # type: ignore[arg-type]

    def check_all(self) -> int:
        """After a restart, while nobody changes anything; how many items are there."""
        found = 0
        for key in range(KEYS):
            value = self.cache.get(b"%d" % key)
            if value is None:
                continue
            found += 1
            number = number_in(value, key)
            allowed = {self.numbers.begun(key), self.numbers.done(key)}
            if number not in allowed or is_delete(key, number):
                raise Wrong(f"key {key} says {number}, allowed {allowed}: {value[:40]!r}")
        return found

    def read(self, key: int) -> None:
        least = self.numbers.done(key)
        value = self.cache.get(b"%d" % key)
        most = self.numbers.begun(key)
        if value is not None:
            number = number_in(value, key)
            if not least <= number <= most or is_delete(key, number):
                raise Wrong(f"key {key} says {number}, not {least}..{most}")

    def change(self, key: int) -> None:
        number = self.numbers.begun(key) + 1
        self.numbers.begin(key, number)
        name = b"%d" % key
        if is_delete(key, number):
            self.cache.delete(name)
        elif number % 3 == 1:
            self.cache.set(name, value_of(key, number), ttl=100_000)
        else:
            self.cache[name] = value_of(key, number)
        self.numbers.end(key, number)
        if number % 4 == 0:
            self.cache.touch(name, self.rng.choice([50_000, 200_000, None]))

    def run(self, first: int, step: int, rounds: int = 1 << 30) -> None:
        for _ in range(rounds):
            key = self.rng.randrange(first, KEYS, step)
            try:
                if self.rng.random() < 0.5:
                    self.change(key)
                else:
                    self.read(self.rng.randrange(KEYS))
            except errors.Busy:
                pass  # the number stays begun: either may be seen


class Wrong(Exception):
    pass


def in_child(work: Callable[[], None]) -> int:
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            _open_attachments.clear()
            work()
            code = 0
        except Wrong as wrong:
            os.write(2, f"{wrong}\n".encode())
            code = WRONG
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
        finally:
            os._exit(code)
    return pid


def kill_after(pid: int, seconds: float) -> None:
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)
    check_end(pid)


def check_end(pid: int) -> None:
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status) or os.waitstatus_to_exitcode(status) == 0, (
        f"a child saw a wrong value or failed: {status}"
    )


def started(ready: mmap.mmap) -> None:
    limit = time.monotonic() + 20
    while ready[0] == 0:
        assert time.monotonic() < limit, "the child does not come up"
        time.sleep(0.0005)


def test_with_the_arena_lost(tmp_path: Path, seed: int) -> None:
    """A private arena dies with its process: each life begins with a scan, some with an image."""
    numbers, found = Numbers(), 0
    rng = random.Random(seed)
    for life in range(60):
        ready = mmap.mmap(-1, 8, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)
        clean = life % 9 == 8

        def live(life: int = life, clean: bool = clean, ready: mmap.mmap = ready) -> None:
            worker = Worker(tmp_path, numbers, seed * 1000 + life, arena="private")
            ready[4:8] = struct.pack("I", worker.check_all())
            ready[0] = 1
            worker.run(0, 1, 1500 if clean else 1 << 30)
            worker.cache.close()

        pid = in_child(live)
        if clean:
            check_end(pid)
        else:
            started(ready)
            kill_after(pid, rng.random() * 0.06)
        found += struct.unpack("I", ready[4:8])[0]
    assert found > 60 * KEYS // 10  # much does come back


def test_with_the_arena_kept(tmp_path: Path, seed: int) -> None:
    """Two processes share an arena; both are killed, the next two go on with it."""
    numbers = Numbers()
    rng = random.Random(seed)
    for life in range(25):
        ready = [mmap.mmap(-1, 8, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS) for _ in range(2)]

        def live(which: int, life: int = life, ready: list[mmap.mmap] = ready) -> None:
            worker = Worker(tmp_path, numbers, seed * 1000 + life * 2 + which, arena="file")
            if which == 0:
                ready[0][4:8] = struct.pack("I", worker.check_all())
            ready[which][0] = 1
            worker.run(which, 2)

        pids = [in_child(lambda: live(0))]
        started(ready[0])
        pids.append(in_child(lambda: live(1)))
        started(ready[1])
        for pid in rng.sample(pids, 2):
            kill_after(pid, rng.random() * 0.03)
        if life % 5 == 4:  # what was in RAM goes; the rest is found on flash
            remove_files(tmp_path.glob("siltstone-*"))


def test_one_is_killed_while_others_go_on(tmp_path: Path, seed: int) -> None:
    """The survivor's reads are checked all the time; killed ones are replaced."""
    numbers = Numbers()
    rng = random.Random(seed)
    stop = mmap.mmap(-1, 8, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)

    def survive() -> None:
        worker = Worker(tmp_path, numbers, seed, arena="file")
        stop[1] = 1
        while stop[0] == 0:
            worker.run(0, 2, 50)
        worker.cache.verify()
        worker.cache.close()

    survivor = in_child(survive)
    limit = time.monotonic() + 20
    while stop[1] == 0 and time.monotonic() < limit:
        time.sleep(0.001)
    for life in range(40):
        ready = mmap.mmap(-1, 8, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)

        def live(life: int = life, ready: mmap.mmap = ready) -> None:
            worker = Worker(tmp_path, numbers, seed * 1000 + life, arena="file")
            ready[0] = 1
            worker.run(1, 2)

        pid = in_child(live)
        started(ready)
        kill_after(pid, rng.random() * 0.03)
    stop[0] = 1
    check_end(survivor)
    pid = in_child(lambda: [Worker(tmp_path, numbers, 0, arena="file").check_all()].clear())
    check_end(pid)
