"""Devices, lock files, arena files and live maps: the only module that opens files.

A device is one or more files, or memory, cut into segments; segment *slots* are dealt round-robin
over the files until each file's own count is used up. Opening checks who the file belongs to
(superblock), that nobody else has it (fcntl lock) and that it is whole; every refusal says which
file, what was expected and what was found. After opening, data moves through `handle`
(log/device_io.pyx). Called by the control plane, on any thread; opening and closing are serialised.

fcntl locks belong to a process and fall when *any* descriptor of the file is closed, so that a
process opens a file once: `_open_files` holds that one descriptor. They are not inherited by fork.
"""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
import errno
import fcntl
import mmap
import os
import stat
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, Self

from siltstone.clock import SYSTEM_RANDOM, Random
from siltstone.errors import (
    ConfigError,
    Corruption,
    EnvironmentFailure,
    Locked,
    WrongFormat,
)
from siltstone.log import superblock as superblocks
from siltstone.log.device_io import DeviceHandle, punch_hole
from siltstone.log.lockfile import LockFile, OpenFile, holder_text, lock_bytes, lock_holder
from siltstone.log.machine import boot_id
from siltstone.log.slots import SEGMENTS_MAX, check_segment_bytes, deal, segments_in
from siltstone.log.superblock import FIRST_DATA_OFFSET, Superblock

HEADER_SLOT = 0xFFFFFFFF  # DEVICE_HEADER of device_io.pxd: file 0's header area
BLOCK = 4096

StrPath = str | os.PathLike[str]
LockKind = Literal["exclusive", "shared"]


# One descriptor a file -----------------------------------------------------------------------


_open_files: dict[tuple[int, int], OpenFile] = {}
_open_lock = threading.RLock()


def _renew_lock_in_child() -> None:
    global _open_lock
    _open_lock = threading.RLock()


os.register_at_fork(after_in_child=_renew_lock_in_child)


def _key(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _open_once(path: str, flags: int, mode: int = 0o600) -> OpenFile:
    """The process's one descriptor of `path`; `_close_once` when done."""
    with _open_lock:
        # Looked up by name first: opening and closing a second descriptor would drop our locks.
        with contextlib.suppress(OSError):
            known = _open_files.get(_key(os.stat(path)))
            if known is not None:
                if flags & os.O_RDWR and not known.writable:
                    _make_writable(known, flags)
                known.users += 1
                return known
        descriptor = os.open(path, flags | os.O_CLOEXEC, mode)
        found = OpenFile(descriptor, path, _key(os.fstat(descriptor)))
        found.writable = bool(flags & os.O_RDWR)
        _open_files[found.key] = found
        return found


def _make_writable(file: OpenFile, flags: int) -> None:
    """The same descriptor, for a writer beside a reader. Nobody has locked this file: whoever locks
    opens for writing."""
    descriptor = os.open(file.path, (flags & ~os.O_CREAT) | os.O_CLOEXEC)
    os.dup2(descriptor, file.descriptor, inheritable=False)
    os.close(descriptor)
    file.writable = True


def _close_once(file: OpenFile) -> None:
    with _open_lock:
        file.users -= 1
        if file.users == 0:
            del _open_files[file.key]
            os.close(file.descriptor)


def open_lock_file(path: StrPath, *, create: bool = True, mode: int = 0o600) -> LockFile:
    """The file whose bytes are locks; see LockFile. Opened for writing: `_make_writable`."""
    name = os.fspath(path)
    try:
        file = _open_once(name, os.O_RDWR | (os.O_CREAT if create else 0), mode)
    except OSError as error:
        raise _opening_failed(name, error) from error
    return LockFile(file, _close_once)


def superblock_of(path: StrPath) -> Superblock | None:
    """What a file says of itself, without locks; None: missing. WrongFormat, Corruption."""
    if not os.path.isfile(path):
        return None
    file = _open_once(os.fspath(path), os.O_RDONLY)
    try:
        header = os.pread(file.descriptor, FIRST_DATA_OFFSET, 0)
        return superblocks.newest(header, file.path) if header.strip(b"\0") else None
    finally:
        _close_once(file)


# What every device can do --------------------------------------------------------------------


class Device:
    """A superblock and segments. Subclasses set `handle` and `superblock`, and may refine close."""

    handle: DeviceHandle
    superblock: Superblock
    growable = False

    @property
    def segment_bytes(self) -> int:
        return self.superblock.segment_bytes

    @property
    def uuid(self) -> bytes:
        return self.superblock.uuid

    @property
    def segment_count(self) -> int:
        """Slots there are; of a growable device: may ever be."""
        return self.superblock.segment_count

    def read(self, slot: int, offset: int, size: int, flags: int = 0) -> bytes:
        return self.handle.read(slot, offset, size, flags)

    def write(self, slot: int, offset: int, data: bytes) -> None:
        self.handle.write(slot, offset, data)

    def sync(self) -> None:
        self.handle.sync()

    def write_superblock(self, *, sync: bool = True, **changes: Any) -> None:
        """The next generation, into the copy that is not the newest; durable if `sync`."""
        changed = dataclasses.replace(
            self.superblock,
            generation=self.superblock.generation + 1,
            boot_id=boot_id(),
            **changes,
        )
        self.handle.write(HEADER_SLOT, changed.offset, changed.pack().ljust(BLOCK, b"\0"), sync)
        self.superblock = changed

    def reload_superblock(self) -> Superblock:
        """As it stands on the device now (another process may have written it)."""
        header = self.handle.read(HEADER_SLOT, 0, FIRST_DATA_OFFSET)
        self.superblock = superblocks.newest(header, self.handle.names[0])
        return self.superblock

    def slots_present(self) -> int:
        """No slot at or above this number was ever written."""
        return self.segment_count

    def punch(self, slot: int, begin: int = 0) -> None:
        """Give a slot's blocks (from `begin` on) back, where that means anything."""

    def slots_with_holes(self) -> set[int]:
        """Present slots some of whose blocks the file system has yet to find."""
        return set()

    def truncate(self, slots: int) -> None:
        """Cut off the slots at and above `slots`, where the device can grow again."""

    @property
    def size_on_disk(self) -> int:
        return 0

    def close(self) -> None:
        """Idempotent; writes nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class MemoryDevice(Device):
    """Segments in anonymous memory: a log without a disk. Gone with the process."""

    def __init__(
        self,
        segment_count: int,
        segment_bytes: int,
        *,
        engine: str = "cache",
        rng: Random = SYSTEM_RANDOM,
    ) -> None:
        check_segment_bytes(segment_bytes)
        size = FIRST_DATA_OFFSET + segment_count * segment_bytes
        self._memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.handle = DeviceHandle.of_memory(
            self._memory, segment_bytes, segment_count, FIRST_DATA_OFFSET
        )
        self.superblock = Superblock(
            engine, rng.bytes(16), segment_bytes, segment_count, segment_count
        )
        self.write_superblock()


class FileDevice(Device):
    """One or more files. See the module's docstring.

    `paths_and_sizes`: (path, bytes of segments) a file; the header area of FIRST_DATA_OFFSET bytes
    comes on top. Size None: as the file says; for a new file of a growable device: no limit.
    `preallocate=False` makes the device growable: files are as long as what was written.
    """

    def __init__(
        self,
        paths_and_sizes: Sequence[tuple[StrPath, int | None]],
        segment_bytes: int,
        *,
        engine: str,
        create: bool = True,
        direct: bool = False,
        lock: LockKind | None = "exclusive",
        preallocate: bool = True,
        read_only: bool = False,
        mode: int = 0o600,
        rng: Random = SYSTEM_RANDOM,
    ) -> None:
        check_segment_bytes(segment_bytes)
        self.paths = [os.fspath(path) for path, _ in paths_and_sizes]
        self.growable = not preallocate
        self._lock: LockKind | None = lock
        self._files: list[OpenFile] = []
        self._locked: list[OpenFile] = []
        self._holding: list[OpenFile] = []
        self._created: list[str] = []
        self._read_only = read_only
        self._closed = False
        sizes = [size for _, size in paths_and_sizes]
        try:
            for path in self.paths:
                self._open(path, create and not read_only, direct, mode)
            headers = [self._header(file) for file in self._files]
            if all(not header.strip(b"\0") for header in headers):
                counts = self._counts(sizes, segment_bytes)
                self._create(counts, segment_bytes, engine, rng)
            else:
                counts = self._check(headers, sizes, segment_bytes, engine)
        except BaseException:
            self._abandon()
            raise
        self.handle = DeviceHandle.of_files(
            [file.descriptor for file in self._files],
            counts,
            segment_bytes,
            FIRST_DATA_OFFSET,
            direct=direct,
            shared=lock == "shared",
            names=self.paths,
            owner=self._files,
        )
        self._counts_of_files = counts

    # Opening

    def _open(self, path: str, create: bool, direct: bool, mode: int) -> None:
        flags = os.O_RDONLY if self._read_only else os.O_RDWR
        flags |= os.O_DIRECT if direct else 0
        existed = os.path.lexists(path)
        try:
            file = _open_once(path, flags | (os.O_CREAT if create else 0), mode)
        except OSError as error:
            raise _opening_failed(path, error) from error
        self._files.append(file)
        if not existed:
            self._created.append(path)
        if not stat.S_ISREG(os.fstat(file.descriptor).st_mode):
            raise ConfigError(f"{path} is not a regular file")
        self._take_lock(file)

    def _take_lock(self, file: OpenFile) -> None:
        if self._lock is None:
            return
        exclusive = self._lock == "exclusive"
        if file.exclusive_users or (exclusive and file.lock_users):
            raise Locked(errno.EAGAIN, f"{file.path} is in use by pid {os.getpid()} (this one)")
        kind = fcntl.F_WRLCK if exclusive else fcntl.F_RDLCK
        if not lock_bytes(file.descriptor, kind, 0, 1):
            holder = holder_text(lock_holder(file.descriptor, kind, 0, 1))
            raise Locked(errno.EAGAIN, f"{file.path} is in use by {holder}")
        file.lock_users += 1
        self._holding.append(file)
        if exclusive:
            file.exclusive_users += 1
            self._locked.append(file)

    def _header(self, file: OpenFile) -> bytes:
        with mmap.mmap(-1, FIRST_DATA_OFFSET) as aligned:  # O_DIRECT wants aligned memory
            try:
                got = os.preadv(file.descriptor, [aligned], 0)
            except OSError as error:
                raise EnvironmentFailure(
                    error.errno, f"{file.path} cannot be read: {error.strerror}"
                ) from error
            return aligned[:got]

    def _counts(self, sizes: Sequence[int | None], segment_bytes: int) -> list[int]:
        counts = []
        for path, size in zip(self.paths, sizes, strict=True):
            if size is None:
                if not self.growable:
                    raise ConfigError(f"{path} is new: say how large it shall be")
                size = SEGMENTS_MAX // len(sizes) * segment_bytes
            counts.append(segments_in(path, size, segment_bytes))
        if sum(counts) > SEGMENTS_MAX:
            raise ConfigError(
                f"{sum(counts)} segments are more than {SEGMENTS_MAX}: "
                f"use segments larger than {segment_bytes} bytes"
            )
        return counts

    def _create(self, counts: list[int], segment_bytes: int, engine: str, rng: Random) -> None:
        if self._read_only:
            raise WrongFormat(f"{self.paths[0]} is not a siltstone file", path=self.paths[0])
        uuid = rng.bytes(16)
        for file, count in zip(self._files, counts, strict=True):
            size = FIRST_DATA_OFFSET + (0 if self.growable else count * segment_bytes)
            _preallocate(file, size)
        # File 0 last: a device without its superblock was never finished and may be made again.
        for number in reversed(range(len(counts))):
            block = Superblock(
                engine,
                uuid,
                segment_bytes,
                sum(counts),
                counts[number],
                number,
                len(counts),
                boot_id=boot_id(),
            )
            file = self._files[number]
            with mmap.mmap(-1, BLOCK) as aligned:
                aligned[: superblocks.SUPERBLOCK_SIZE] = block.pack()
                os.pwritev(file.descriptor, [aligned], block.offset)
            os.fsync(file.descriptor)
            sync_directory(os.path.dirname(file.path) or ".")
            self.superblock = block

    def _check(
        self, headers: list[bytes], sizes: Sequence[int | None], segment_bytes: int, engine: str
    ) -> list[int]:
        blocks = []
        for path, header in zip(self.paths, headers, strict=True):
            if not header.strip(b"\0"):
                raise Corruption(
                    f"{path} is empty, but other files of its device are not",
                    path=path,
                    expected="a superblock",
                    found="zeros",
                )
            blocks.append(superblocks.newest(header, path))
        first = blocks[0]
        for number, (path, block) in enumerate(zip(self.paths, blocks, strict=True)):
            if block.engine != engine:
                raise WrongFormat(
                    f"{path} belongs to the engine {block.engine!r}, not {engine!r}",
                    path=path,
                    expected=engine,
                    found=block.engine,
                )
            if block.identity() != first.identity() or block.file_count != len(blocks):
                raise WrongFormat(
                    f"{path} is file {block.file_number + 1} of {block.file_count} "
                    f"of another device than {self.paths[0]}",
                    path=path,
                    expected=first.uuid.hex(),
                    found=block.uuid.hex(),
                )
            if block.file_number != number:
                raise ConfigError(
                    f"{path} is file {block.file_number + 1} of its device: "
                    "give the files in the order in which they were created"
                )
        if first.segment_bytes != segment_bytes:
            raise ConfigError(
                f"{self.paths[0]} has segments of {first.segment_bytes} bytes, not {segment_bytes}"
            )
        self._check_lengths(blocks, sizes)
        self.superblock = first
        return [block.file_segments for block in blocks]

    def _check_lengths(self, blocks: list[Superblock], sizes: Sequence[int | None]) -> None:
        for file, block, size in zip(self._files, blocks, sizes, strict=True):
            wanted = block.file_segments * block.segment_bytes
            if size is not None and size != wanted:
                raise ConfigError(f"{file.path} was made for {wanted} bytes, not {size}")
            whole = FIRST_DATA_OFFSET + (0 if self.growable else wanted)
            found = os.fstat(file.descriptor).st_size
            if found < whole:
                raise Corruption(
                    f"{file.path} is truncated: {found} of {whole} bytes",
                    path=file.path,
                    offset=found,
                    expected=whole,
                    found=found,
                )

    def _abandon(self) -> None:
        """Opening failed: leave nothing behind that was not there before."""
        for path in self._created:
            with contextlib.suppress(OSError):
                os.unlink(path)
        self.close()

    # Use

    def slots_present(self) -> int:
        lengths = [os.fstat(file.descriptor).st_size for file in self._files]
        reach = [-(-max(0, n - FIRST_DATA_OFFSET) // self.segment_bytes) for n in lengths]
        return bisect.bisect_left(
            range(self.segment_count + 1),
            True,
            key=lambda slots: all(
                have >= count or have == limit
                for have, count, limit in zip(
                    deal(self._counts_of_files, slots), reach, self._counts_of_files, strict=True
                )
            ),
        )

    def grow(self, segments: int) -> None:
        """More segments, from the next opening on. Of a growable device that is one file."""
        assert self.growable, self.paths
        assert len(self._files) == 1, self.paths
        if segments > SEGMENTS_MAX:
            raise ConfigError(
                f"{self.paths[0]}: {segments} segments are more than {SEGMENTS_MAX}, and their "
                f"size of {self.segment_bytes} bytes stays: back up into a new directory"
            )
        for _ in range(superblocks.COPIES):
            self.write_superblock(segment_count=segments, file_segments=segments)

    def lock_again(self) -> None:
        """In a forked child of a member: locks are not inherited."""
        for file in self._files:
            self._take_lock(file)

    def punch(self, slot: int, begin: int = 0) -> None:
        number, offset = self.handle.place(slot)
        size = self.segment_bytes - begin
        with contextlib.suppress(OSError):  # not every file system can: the space stays taken
            punch_hole(self._files[number].descriptor, offset + begin, size)

    def slots_with_holes(self) -> set[int]:
        found, holes = set(), [-1] * len(self._files)  # where each file's next hole begins
        for slot in range(self.slots_present()):
            number, offset = self.handle.place(slot)
            if holes[number] < offset:
                try:
                    holes[number] = os.lseek(self._files[number].descriptor, offset, os.SEEK_HOLE)
                except OSError:  # a file system that does not say: as if there were none
                    return set()
            if holes[number] < offset + self.segment_bytes:
                found.add(slot)
        return found

    def truncate(self, slots: int) -> None:
        if not self.growable:
            return
        for file, count in zip(self._files, deal(self._counts_of_files, slots), strict=True):
            wanted = FIRST_DATA_OFFSET + count * self.segment_bytes
            if os.fstat(file.descriptor).st_size > wanted:
                os.ftruncate(file.descriptor, wanted)

    @property
    def size_on_disk(self) -> int:
        return sum(os.fstat(file.descriptor).st_blocks * 512 for file in self._files)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        for file in self._holding:
            file.lock_users -= 1
        for file in self._locked:
            file.exclusive_users -= 1
            lock_bytes(file.descriptor, fcntl.F_UNLCK, 0, 1)
        for file in self._files:
            _close_once(file)


# Leaves --------------------------------------------------------------------------------------


def _opening_failed(path: str, error: OSError) -> EnvironmentFailure:
    reasons = {
        errno.EACCES: f"{path} is not writable for this user",
        errno.EPERM: f"{path} is not writable for this user",
        errno.EROFS: f"{path} is on a read-only file system",
        errno.EISDIR: f"{path} is a directory",
        errno.EINVAL: f"{path}: the file system does not support O_DIRECT",
    }
    reason = reasons.get(error.errno or 0)
    if error.errno == errno.ENOENT:
        directory = os.path.dirname(path) or "."
        missing = not os.path.isdir(directory)
        reason = f"directory {directory} does not exist" if missing else f"{path} does not exist"
    return EnvironmentFailure(error.errno, reason or f"{path}: {error.strerror}")


def _preallocate(file: OpenFile, size: int) -> None:
    try:
        os.posix_fallocate(file.descriptor, 0, size)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise EnvironmentFailure(error.errno, f"{file.path}: {error.strerror}") from error
        free = os.statvfs(os.path.dirname(file.path) or ".")
        raise EnvironmentFailure(
            error.errno,
            f"{file.path} needs {size} bytes, {free.f_bavail * free.f_frsize} are free",
        ) from error


def sync_directory(path: StrPath) -> None:
    """Make creations, renames and removals in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_files(paths: Iterable[StrPath]) -> None:
    """Remove files that are there, durably."""
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
            sync_directory(os.path.dirname(os.fspath(path)) or ".")


def rename_file(path: StrPath, to: StrPath) -> None:
    """Give a file of this file system its name, durably."""
    os.rename(path, to)
    sync_directory(os.path.dirname(os.fspath(to)) or ".")


def identity(path: StrPath | int) -> tuple[int, int]:
    """(device, inode): the same file, whatever its name."""
    return _key(os.stat(path))


def close_descriptor(descriptor: int) -> None:
    """Close what create_arena_file, open_live_map and the like opened."""
    os.close(descriptor)


# Memory shared by processes, and the live map -------------------------------------------------


def create_arena_file(
    directory: StrPath, size: int, *, mode: int = 0o600, rng: Random = SYSTEM_RANDOM
) -> tuple[int, str]:
    """A new file of a random name for an arena: (descriptor, path). No memory is behind it yet."""
    path = os.path.join(directory, f"siltstone-{rng.bytes(12).hex()}")
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, mode)
    except OSError as error:
        raise _opening_failed(path, error) from error
    os.ftruncate(descriptor, size)
    return descriptor, path


def open_arena_file(path: StrPath, device: int, inode: int) -> int:
    """The descriptor of exactly that inode, owned by this user; EnvironmentFailure otherwise."""
    name = os.fspath(path)
    try:
        descriptor = os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise _opening_failed(name, error) from error
    return _checked_arena(descriptor, name, device, inode)


def list_directory(directory: StrPath, start: str) -> Iterator[tuple[str, int, int]]:
    """This user's regular files whose names start so: (path, descriptor, changed in Unix ms).

    The caller closes the descriptors. Files that go meanwhile are left out.
    """
    try:
        names = [entry.path for entry in os.scandir(directory) if entry.name.startswith(start)]
    except OSError:
        return
    for name in names:
        try:
            descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            continue
        found = os.fstat(descriptor)
        if stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid():
            yield name, descriptor, found.st_mtime_ns // 1_000_000
        else:
            os.close(descriptor)


def create_memfd(size: int) -> int:
    """An arena without a name; others open it through /proc as long as a member lives."""
    descriptor = os.memfd_create("siltstone", os.MFD_CLOEXEC)
    os.ftruncate(descriptor, size)
    return descriptor


def open_memfd_of(pid: int, descriptor: int, device: int, inode: int) -> int:
    """Another process's memfd."""
    name = f"/proc/{pid}/fd/{descriptor}"
    try:
        opened = os.open(name, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise _opening_failed(name, error) from error
    return _checked_arena(opened, name, device, inode)


def _checked_arena(descriptor: int, name: str, device: int, inode: int) -> int:
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or _key(found) != (device, inode):
        os.close(descriptor)
        raise EnvironmentFailure(errno.ESTALE, f"{name} is another file than the arena agreed on")
    if found.st_uid != os.geteuid():
        os.close(descriptor)
        raise EnvironmentFailure(errno.EPERM, f"{name} belongs to user {found.st_uid}")
    return descriptor


def open_live_map(path: StrPath, size: int, *, mode: int = 0o600) -> tuple[int, bool]:
    """The live map, made of zeros when it is missing: (descriptor, whether it was made).

    All its blocks are allocated: a store into a hole of a full file system would be SIGBUS.
    """
    name = os.fspath(path)
    created = not os.path.exists(name)
    try:
        descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    except OSError as error:
        raise _opening_failed(name, error) from error
    try:
        if os.fstat(descriptor).st_size not in (0, size):
            os.ftruncate(descriptor, 0)  # of another geometry: its bits mean nothing
            created = True
        _preallocate(OpenFile(descriptor, name, (0, 0)), size)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor, created


def create_file(path: StrPath, size: int, *, mode: int = 0o600) -> int:
    """The descriptor of a new file of zeros, all allocated; what was there before is gone."""
    remove_files([path])
    return open_live_map(path, size, mode=mode)[0]


def open_file(path: StrPath) -> int:
    """The descriptor of a file that is there, for reading; -1 when it cannot be opened."""
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return -1
