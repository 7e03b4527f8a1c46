"""Who has a Store or Metrics open: one writer, readers beside it. The locks of the file `lock`.

The writer holds LockFile.EXCLUSIVE. A reader holds, shared, the byte of the checkpoint that it
looks at (`reader_byte`), and takes it *before* it trusts that checkpoint; the writer asks for these
locks after a new checkpoint is durable and before it frees anything that older ones need. Positions
stand for checkpoints; two that share a byte keep each other, which costs room only.

fcntl locks are a process's: openers of the same one are counted here, in memory. In a forked child
nothing is held. Where the lock file cannot be opened (a read-only medium, another user's data)
readers go without: what they need may vanish, and reading says SnapshotTooOld.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import threading
from collections import Counter
from collections.abc import Iterator

from siltstone.errors import EnvironmentFailure, Locked
from siltstone.log.device import identity, open_lock_file
from siltstone.log.lockfile import LockFile, lock_bytes, locked_bytes

READER_BYTES = 4096
RECORD_ALIGNMENT = 16

_writers: set[tuple[int, int]] = set()  # lock files that this process has for writing
_readers: Counter[tuple[int, int, int]] = Counter()  # lock file and byte: readers of this process
# Reentrant: the garbage collector may close a forgotten store inside of it.
_guard = threading.RLock()


def _forget_in_child() -> None:
    global _guard
    _guard = threading.RLock()
    _writers.clear()
    _readers.clear()


os.register_at_fork(after_in_child=_forget_in_child)


def reader_byte(position: int) -> int:
    """The lock byte that stands for the checkpoint at a position."""
    return position // RECORD_ALIGNMENT % READER_BYTES


def lock_path(path: str) -> str:
    return os.path.join(path, "lock")


class Writer:
    """The one lock of a writing opener. Locked, with the holder's pid, if there is one already."""

    def __init__(self, path: str, *, create: bool = True, mode: int = 0o600) -> None:
        self._file = open_lock_file(lock_path(path), create=create, mode=mode)
        self._key = identity(self._file.descriptor)
        try:
            with _guard:
                if self._key in _writers:
                    raise Locked(
                        errno.EAGAIN,
                        f"{self._file.path} is in use by pid {os.getpid()} (this one): "
                        "use that object, its methods may be called by any thread",
                    )
                self._file.take_or_refuse()
                _writers.add(self._key)
        except BaseException:
            self._file.close()
            raise
        self._strangers: set[int] = set()
        self._pid = os.getpid()

    def looked_at(self, position: int) -> bool:
        """Whether a reader, of this or another process, looks at the checkpoint there. Position 0
        stands for those that readers looked at before this writer came, as well."""
        bytes_asked = {reader_byte(position)} | (set() if position else self._strangers)
        return bool(bytes_asked & self._held())

    def others(self, *known: int) -> bool:
        """Whether a reader looks at a checkpoint that is none of these; asked at the opening."""
        self._strangers = self._held() - {reader_byte(position) for position in known}
        return bool(self._strangers)

    def _held(self) -> set[int]:
        with _guard:
            here = {byte for *key, byte in list(_readers) if tuple(key) == self._key}
        return here | set(locked_bytes(self._file.descriptor, 0, READER_BYTES))

    def close(self) -> None:
        if self._pid == os.getpid():
            with _guard:
                _writers.discard(self._key)
        self._file.close()


class Reader:
    """The lock of a reading opener on one checkpoint at a time."""

    def __init__(self, path: str) -> None:
        self._file: LockFile | None = None
        self._held = -1
        self._pid = os.getpid()
        try:
            self._file = open_lock_file(lock_path(path), create=False)
        except EnvironmentFailure:
            return  # no writer can be there, or it cannot know of us
        self._key = identity(self._file.descriptor)

    @property
    def protected(self) -> bool:
        """Whether a writer knows of this reader."""
        return self._file is not None

    def look_at(self, position: int) -> None:
        """Hold this checkpoint, and no other any more."""
        if self._file is None:
            return
        byte = reader_byte(position)
        with _guard:
            if not _readers[*self._key, byte]:
                lock_bytes(self._file.descriptor, fcntl.F_RDLCK, byte, 1)
            _readers[*self._key, byte] += 1
            before, self._held = self._held, byte
            self._drop(before)

    def _drop(self, byte: int) -> None:
        if byte < 0 or self._file is None or self._pid != os.getpid():
            return
        _readers[*self._key, byte] -= 1
        if _readers[*self._key, byte] <= 0:
            del _readers[*self._key, byte]
            lock_bytes(self._file.descriptor, fcntl.F_UNLCK, byte, 1)

    def close(self) -> None:
        if self._file is None:
            return
        with _guard:
            self._drop(self._held)
        self._held = -1
        self._file.close()
        self._file = None


@contextlib.contextmanager
def kept_from_writers(path: str) -> Iterator[None]:
    """While a store is read that nobody may change meanwhile. Locked, if somebody has it."""
    try:
        writer = Writer(path, create=False)
    except Locked:
        raise
    except EnvironmentFailure:
        yield  # no lock file, or a read-only medium: no writer
        return
    try:
        yield
    finally:
        writer.close()
