"""Processes that share a log are killed at any instruction, and stopped, while others go on."""

from __future__ import annotations

import mmap
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from logrig import BLOCK, BUSY, GONE, IO, NO_BUFFER, NO_SEGMENT, OK, arena_for

from siltstone import errors
from siltstone.log.device import FileDevice
from siltstone.log.livemap import LiveMap
from siltstone.log.log_face import Log

pytestmark = [pytest.mark.crash, pytest.mark.slow]

SEGMENTS, SEGMENT_BYTES, BUFFERS = 12, 4 * BLOCK, 8
WRONG, CORRUPT, DEVICE = 11, 12, 13


class Shared:
    """One log in a shared arena, and a page through which the parent talks to its children."""

    def __init__(self, directory: Path) -> None:
        fd = os.memfd_create("arena")
        self.device = FileDevice(
            [(directory / "flash", SEGMENTS * SEGMENT_BYTES)],
            SEGMENT_BYTES,
            engine="cache",
            lock="shared",
        )
        self.arena = arena_for(SEGMENTS, BLOCK, BUFFERS, fd=fd)
        self.live_map = LiveMap(SEGMENTS, SEGMENT_BYTES, self.device.superblock.uuid, shared=True)
        self.log = Log.create(
            self.arena, self.device, buffer_bytes=BLOCK, buffers=BUFFERS, live_map=self.live_map
        )
        self.dead = mmap.mmap(-1, 4096, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)
        self.progress = mmap.mmap(-1, 4096, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)

    def log_of(self, slot: int) -> Log:
        return Log.attach(self.arena, self.device, live_map=self.live_map, process_slot=slot)

    def start(self, slot: int, seed: int) -> int:
        pid = os.fork()
        if pid == 0:
            code = 99
            try:
                code = Worker(self, slot, seed).run()
            finally:
                os._exit(code)
        return pid

    def note_dead(self, slot: int) -> None:
        self.dead[slot] = 1

    def wait_for_progress(self, slot: int, rounds: int) -> None:
        """The child in that slot does `rounds` more rounds, within 20 s."""
        first, limit = self.progress[slot], time.monotonic() + 20
        while (self.progress[slot] - first) % 256 < rounds:
            assert time.monotonic() < limit, f"the process in slot {slot} hangs"
            time.sleep(0.0005)


class Worker:
    """Appends, reads, links and unlinks in one process until it is killed."""

    def __init__(self, shared: Shared, slot: int, seed: int) -> None:
        self.shared, self.slot = shared, slot
        self.log = shared.log_of(slot)
        self.rng = random.Random(seed)
        self.mine: list[tuple[int, bytes]] = []

    def run(self) -> int:
        try:
            while True:
                for slot in range(128):
                    if self.shared.dead[slot]:
                        self.log.assume_dead(slot)
                for _ in range(20):
                    self.step()
                self.shared.progress[self.slot] = (self.shared.progress[self.slot] + 1) % 256
        except errors.Corruption:
            return CORRUPT
        except errors.DeviceFailed:
            return DEVICE
        except AssertionError:
            return WRONG

    def step(self) -> None:
        stamp = self.rng.randbytes(16)
        data = stamp * self.rng.randrange(1, 190)
        status, position = self.log.try_append(self.rng.randrange(4), 1, data)
        if status in (NO_BUFFER, BUSY):
            assert self.log.make_room() in (OK, BUSY, IO)
        elif status == NO_SEGMENT:
            info = self.log.oldest()
            if info is None:
                self.log.write_one()
            else:
                assert self.log.forget(info["slot"], info["version"]) in (OK, GONE, BUSY)
        else:
            assert status == OK
            if self.log.live(position):
                self.mine.append((position, data))
        if len(self.mine) > 40:
            self.log.dead(self.mine.pop(self.rng.randrange(40))[0])
        if self.mine:
            position, data = self.rng.choice(self.mine)
            found = self.log.read(position)
            assert found is None or found == (1, data)
            assert found is not None or not self.log.is_live(position)


def settle(shared: Shared) -> None:
    """With every child gone: one process finishes what the dead left, and all is consistent."""
    log = shared.log_of(127)
    for slot in range(127):
        log.assume_dead(slot)
    for stream in range(4):  # takes every stream's lock, and with it every repair
        while True:
            status, _ = log.try_append(stream, 1, b"after")
            if status == OK:
                break
            log.make_room()
            info = log.oldest()
            if info is not None and status == NO_SEGMENT:
                log.forget(info["slot"], info["version"])
    log.flush()
    log.check_invariants(exact=False)
    assert log.stats()["buffers_free"] == BUFFERS
    for info in log.segments():
        if info["state"] == "sealed":
            assert len(log.records(info["slot"], info["version"]) or []) >= info["live_records"] - 1
    assert log.stats()["checksum_failures"] == 0


def ended(pid: int) -> int:
    _, status = os.waitpid(pid, 0)
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


@pytest.fixture
def shared(tmp_path: Path) -> Shared:
    return Shared(tmp_path)


def kill_round(shared: Shared, kills: int, rng: random.Random) -> None:
    running = {slot: shared.start(slot, rng.getrandbits(32)) for slot in (1, 2)}
    try:
        for following in range(3, 3 + kills):
            slot = rng.choice(sorted(running))
            other = next(number for number in running if number != slot)
            shared.wait_for_progress(slot, 1)
            time.sleep(rng.random() * 0.004)  # any instruction will do
            os.kill(running[slot], signal.SIGKILL)
            assert ended(running.pop(slot)) == -signal.SIGKILL
            shared.note_dead(slot)
            running[following] = shared.start(following, rng.getrandbits(32))
            shared.wait_for_progress(other, 1)
    finally:
        for pid in running.values():
            os.kill(pid, signal.SIGKILL)
        codes = [ended(pid) for pid in running.values()]
    assert codes == [-signal.SIGKILL] * 2
    settle(shared)


def test_kill_9_at_any_instruction(tmp_path: Path, rng: random.Random) -> None:
    stats: dict[str, int] = {}
    for number in range(2):
        directory = tmp_path / str(number)
        directory.mkdir()
        shared = Shared(directory)
        kill_round(shared, 100, rng)
        for name, value in shared.log.stats().items():
            if isinstance(value, int):
                stats[name] = stats.get(name, 0) + value
    assert stats["segments_forgotten"] > 100
    assert stats["write_errors"] == stats["read_errors"] == 0


def until(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.001)


def test_a_stopped_process_makes_others_busy_but_never_wrong(
    shared: Shared, rng: random.Random
) -> None:
    stopped, other = shared.start(1, 1), shared.start(2, 2)
    try:
        for _ in range(6):
            shared.wait_for_progress(1, 1)
            time.sleep(rng.random() * 0.004)
            os.kill(stopped, signal.SIGSTOP)
            shared.wait_for_progress(2, 1)
            os.kill(stopped, signal.SIGCONT)
    finally:
        for pid in (stopped, other):
            os.kill(pid, signal.SIGKILL)
        codes = [ended(stopped), ended(other)]
    assert codes == [-signal.SIGKILL] * 2
    settle(shared)
