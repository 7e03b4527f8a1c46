"""POSIX byte-range locks, and the file whose bytes are locks. Opens nothing (device.py does).

fcntl locks are a process's: not inherited by fork, released after its last thread has ended, and
also when *any* descriptor of the file is closed; device.py therefore keeps one descriptor a file.
Called by the control plane while something is opened, closed or its liveness asked.
"""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import os
import struct
from collections.abc import Callable
from typing import Self

from siltstone.clock import SYSTEM_CLOCK, Clock
from siltstone.errors import Busy, Closed, Locked
from siltstone.log.device_io import read_at, write_at


@dataclasses.dataclass
class OpenFile:
    """A process's one descriptor of a file, and how many use it."""

    descriptor: int
    path: str
    key: tuple[int, int]
    users: int = 1
    exclusive_users: int = 0
    lock_users: int = 0
    writable: bool = True


_FLOCK = struct.Struct("hhqqi4x")  # struct flock on 64-bit Linux: type, whence, start, length, pid


def lock_bytes(descriptor: int, kind: int, start: int, length: int) -> bool:
    """Set or drop a lock without waiting; False when another process is in the way."""
    wanted = _FLOCK.pack(kind, os.SEEK_SET, start, length, 0)
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETLK, wanted)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        raise
    return True


def lock_holder(descriptor: int, kind: int, start: int, length: int) -> int:
    """Pid of another process whose lock conflicts; 0 when there is none."""
    asked = _FLOCK.pack(kind, os.SEEK_SET, start, length, 0)
    found = _FLOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_GETLK, asked))
    if found[0] == fcntl.F_UNLCK:
        return 0
    # In another pid namespace the kernel says 0: held all the same.
    return int(found[4]) or -1


def locked_bytes(descriptor: int, start: int, length: int) -> list[int]:
    """Bytes of a range on which other processes have locks. (Of several the kernel names any.)"""
    found: list[int] = []
    todo = [(start, start + length)]
    while todo:
        low, high = todo.pop()
        if low >= high:
            continue
        asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, low, high - low, 0)
        kind, _, first, size, _ = _FLOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_GETLK, asked))
        if kind == fcntl.F_UNLCK:
            continue
        end = high if size == 0 else min(high, first + size)
        found += range(max(low, first), end)
        todo += [(low, first), (end, high)]
    return found


def holder_text(pid: int) -> str:
    return f"pid {pid}" if pid > 0 else "a process of another pid namespace"


class LockFile:
    """A file whose bytes are locks, and whose contents say what the holders agreed on.

    Byte `slot` locked = the member process `slot` lives (rules: membership of a cache). EXCLUSIVE
    is the Store's and Metrics' one lock, DOOR is held while members come and go.
    """

    EXCLUSIVE = 1 << 20
    DOOR = (1 << 20) + 1

    def __init__(self, file: OpenFile, close: Callable[[OpenFile], None]) -> None:
        self.path = file.path
        self._file: OpenFile | None = file
        self._close = close
        self._held: set[int] = set()
        self._pid = os.getpid()

    @property
    def descriptor(self) -> int:
        if self._file is None:
            raise Closed(f"{self.path} is closed")
        return self._file.descriptor

    def take(self, byte: int, *, exclusive: bool = True) -> bool:
        """Take the lock if it is free; False otherwise, also when this object holds it."""
        if self._pid != os.getpid():
            self._held.clear()  # locks are not inherited by fork
            self._pid = os.getpid()
        if byte in self._held:
            return False
        kind = fcntl.F_WRLCK if exclusive else fcntl.F_RDLCK
        if not lock_bytes(self.descriptor, kind, byte, 1):
            return False
        self._held.add(byte)
        return True

    def take_or_refuse(self, byte: int = EXCLUSIVE, *, exclusive: bool = True) -> None:
        """Take the lock or raise Locked, naming who has it."""
        if not self.take(byte, exclusive=exclusive):
            raise Locked(errno.EAGAIN, f"{self.path} is in use by {self._holder_text(byte)}")

    def take_within(
        self, byte: int, limit_ms: int, *, exclusive: bool = True, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        """Wait at most `limit_ms`, then Busy: the holder may be stopped."""
        end_ns = clock.monotonic_ns() + limit_ms * 1_000_000
        while not self.take(byte, exclusive=exclusive):
            if clock.monotonic_ns() >= end_ns:
                holder = self._holder_text(byte)
                raise Busy(errno.ETIMEDOUT, f"{self.path} is held by {holder} for {limit_ms} ms")
            clock.sleep(0.002)

    def drop(self, byte: int) -> None:
        if byte in self._held and self._pid == os.getpid():
            self._held.discard(byte)
            lock_bytes(self.descriptor, fcntl.F_UNLCK, byte, 1)

    def holder(self, byte: int) -> int:
        """Pid of the holder (-1: not to be seen from here), 0 = free. Own locks: own pid."""
        if byte in self._held and self._pid == os.getpid():
            return os.getpid()
        return lock_holder(self.descriptor, fcntl.F_WRLCK, byte, 1)

    def _holder_text(self, byte: int) -> str:
        return holder_text(self.holder(byte) or os.getpid())

    def read(self, offset: int, size: int) -> bytes:
        return read_at(self.descriptor, offset, size)

    def write(self, offset: int, data: bytes, *, sync: bool = False) -> None:
        write_at(self.descriptor, offset, data, sync)

    def close(self) -> None:
        """Drop this object's locks; the descriptor goes with its last user."""
        if self._file is None:
            return
        for byte in list(self._held):
            self.drop(byte)
        self._close(self._file)
        self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
