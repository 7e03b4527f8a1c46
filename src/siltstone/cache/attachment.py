"""One process's hold on one cache: arena, device, log and engine, and how they are found.

Two `Cache` objects of one path in a process share one attachment. A cache with a path is shared:
its data directory holds

    lock      the only door: byte n locked = process slot n lives; its text names the arena
    flash     the device (or the files that `files` names)
    live      the live map: which records count when the arena is lost
    index     written by the last one out, removed by the first one in

The arena lies in /dev/shm, else in a memfd, and by name only in the data directory.
"""

from __future__ import annotations

import atexit
import collections
import errno
import json
import logging
import os
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from siltstone import errors
from siltstone.cache import births, fork, orphans, restart, statistics
from siltstone.cache.background import Background
from siltstone.cache.engine import CacheEngine, cache_section_bytes, geometry
from siltstone.cache.orphans import DOOR_TEXT_BYTES, read_door
from siltstone.cache.report import Report
from siltstone.cache.sweep import drain, sweep, verify_items
from siltstone.clock import Clock
from siltstone.config import CacheSettings, format_size
from siltstone.log.arena import Arena
from siltstone.log.device import (
    FileDevice,
    close_descriptor,
    create_arena_file,
    create_memfd,
    identity,
    open_arena_file,
    open_live_map,
    open_lock_file,
    open_memfd_of,
    remove_files,
)
from siltstone.log.directory import check_free_for, make_directory
from siltstone.log.layout import log_sections
from siltstone.log.livemap import LiveMap, live_map_bytes
from siltstone.log.lockfile import LockFile, holder_text
from siltstone.log.log_face import Log
from siltstone.log.machine import boot_id, free_bytes, refuse_network_file_system

if TYPE_CHECKING:
    from siltstone.cache.cache import Cache

logger = logging.getLogger("siltstone.cache")

SHARED_MEMORY: Final = Path("/dev/shm")
PROCESS_SLOTS: Final = 128
DOOR_LIMIT_MS: Final = 10_000
BIRTH_LIMIT_MS: Final = 5_000
LAYOUT: Final = 2
SECTION_CACHE: Final = 1
SECTION_TAGS: Final = 4
TAG_BYTES: Final = 64 * 1024  # 3,577 tags, half a KiB of arena a shard or less
LEAVE_PAUSE_S: Final = 0.0005

_open_attachments: dict[object, Attachment] = {}  # those with a path, by its identity
_all_attachments: weakref.WeakSet[Attachment] = weakref.WeakSet()
_guard = threading.RLock()
_forgotten: collections.deque[Attachment] = collections.deque()  # whose release waits for the guard


def attach(settings: CacheSettings, clock: Clock) -> Attachment:
    """The attachment for these settings; one a path and process."""
    with _guard:
        while _forgotten:
            _release_or_log(_forgotten.popleft())
        key: object = object()
        if settings.path is not None:
            check_free_for("flash", settings.path)
            make_directory(settings.path)
            key = identity(settings.path)
            found = _open_attachments.get(key)
            if found is not None:
                found.check_same(settings)
                found.users += 1
                return found
        attachment = Attachment(settings, clock, key)
        _all_attachments.add(attachment)
        if settings.path is not None:
            _open_attachments[key] = attachment
        return attachment


class Attachment:
    """See the module's docstring. `engine` is what faces and sessions use."""

    def __init__(self, settings: CacheSettings, clock: Clock, key: object) -> None:
        self.settings = settings
        self.clock = clock
        self.users = 1
        self.key = key
        self.lock: LockFile | None = None
        self.device: FileDevice | None = None
        self.live_map: LiveMap | None = None
        self.log: Log | None = None
        self.arena_path = ""
        self.closed = False
        self.lost = 0  # records that a restart did not find as they were
        self.door: dict[str, Any] = {}
        self.faces: weakref.WeakSet[Cache] = weakref.WeakSet()
        self._memory_descriptor = -1
        self._files: list[int] = []
        self.private = settings.path is None or settings.arena == "private"
        self.pid = os.getpid()
        try:
            self._open()
        except BaseException:
            self._abandon()
            raise
        self.work()

    def work(self) -> None:
        """Start background work; with `workers` 0 there is none, and all is done by callers."""
        if self.settings.workers:
            self.background.start()

    # Opening --------------------------------------------------------------------------------

    def _open(self) -> None:
        settings = self.settings
        slot = 0
        self.fresh = True
        if settings.path is not None:
            slot = self._enter(settings.path)
        door = {} if self.lock is None else read_door(self.lock)
        self._open_device()
        self._open_arena(door)
        self.arena.occupy(slot, os.getpid(), self.clock.now_ms(), self._memory_descriptor)
        self._open_engine()
        if self.lock is not None:
            self._write_door()
            self._clean_orphans()
            self.lock.drop(LockFile.DOOR)

    def _enter(self, path: Path) -> int:
        """Through the door, which stays locked until the cache is open. The process's slot."""
        if not self.private:
            refuse_network_file_system(path)
        self.lock = open_lock_file(path / "lock", mode=self.settings.mode)
        self.lock.take_within(LockFile.DOOR, DOOR_LIMIT_MS)
        self.lock.take_or_refuse(LockFile.EXCLUSIVE, exclusive=self.private)
        return self._take_slot(self.lock)

    def _take_slot(self, lock: LockFile) -> int:
        for slot in range(PROCESS_SLOTS):
            if lock.take(slot):
                return slot
        raise errors.Locked(
            errno.EUSERS, f"{self.settings.path} is open in {PROCESS_SLOTS} processes, the most"
        )

    def _clean_orphans(self) -> None:
        assert self.settings.path is not None
        for directory in (SHARED_MEMORY, self.settings.path):
            for name in orphans.clean(directory, self.arena_path, self.clock.now_ms()):
                logger.info("removed %s, the memory of a cache that is gone", name)

    def others(self) -> list[int]:
        """Slots of other processes that have this cache open."""
        if self.lock is None:
            return []
        own = self.arena.slot if hasattr(self, "arena") else -1
        pid = os.getpid()
        return [
            slot
            for slot in range(PROCESS_SLOTS)
            if slot != own and self.lock.holder(slot) not in (0, pid)
        ]

    def _in_use(self, others: list[int]) -> str:
        assert self.lock is not None
        holder = self.lock.holder(others[0])
        return f"{self.settings.path} is in use by {holder_text(holder)}"

    def _write_door(self) -> None:
        if self.lock is None:
            return
        text = json.dumps(self.door).encode().ljust(DOOR_TEXT_BYTES)
        self.lock.write(0, text)

    def _open_device(self) -> None:
        settings = self.settings
        if not settings.flash:
            return
        if settings.path is None:
            # memcached's way: the file's contents end with the process
            remove_files(path for path, _ in settings.flash_files)
        self.device = FileDevice(
            settings.flash_files,
            settings.segment_size,
            engine="cache",
            direct=settings.direct,
            lock="exclusive" if self.private else "shared",
            mode=settings.mode,
            # a member that made a second file would write where nobody else looks
            create=not self.others(),
        )
        descriptor = -1
        if settings.path is not None:
            size = live_map_bytes(self.device.segment_count, settings.segment_size)
            descriptor, _ = open_live_map(settings.path / "live", size, mode=settings.mode)
            self._files.append(descriptor)
        self.live_map = LiveMap(
            self.device.segment_count, settings.segment_size, self.device.uuid, descriptor
        )

    def _sections(self) -> dict[int, int]:
        shards, _ = geometry(self.settings.ram)
        sections = {SECTION_CACHE: cache_section_bytes(shards), SECTION_TAGS: TAG_BYTES}
        if self.device is not None:
            count = max(2, self.settings.buffers // self.settings.buffer_size)
            sections |= log_sections(self.device.segment_count, 4, count, self.settings.buffer_size)
        return sections

    def _open_arena(self, door: dict[str, Any]) -> None:
        others = [] if self.private else self.others()
        if others:
            self._join(door, others)
            return
        if door.get("arena") and not self.private and self._inherit(door):
            return
        self._remove_arena(door)
        self._make_arena()

    def _make_arena(self) -> None:
        settings = self.settings
        descriptor = -1 if self.private else self._make_arena_file()
        maximum = settings.ram_max if self.private else settings.ram
        try:
            self.arena = Arena(
                settings.ram, maximum, geometry(settings.ram)[1], self._sections(),
                self.clock.now_ms(), descriptor,
            )  # fmt: skip
        except OSError as error:
            raise errors.OutOfMemory(
                error.errno, f"no memory for an arena of {format_size(settings.ram)}: {error}"
            ) from error
        if descriptor >= 0 and settings.path is not None:
            orphans.sign(descriptor, settings.path)
        self.door = self._describe(descriptor)

    def _describe(self, descriptor: int) -> dict[str, Any]:
        if self.private:
            return self._sizes()
        device, inode = identity(descriptor)
        return {
            **self._sizes(),
            "boot": boot_id().hex(),
            "lock": self._lock_identity(),
            "arena": self.arena_path or "memfd",
            "device": device,
            "inode": inode,
            "pid": os.getpid(),
        }

    def _sizes(self) -> dict[str, Any]:
        """What a tool must know to open this cache as it was (cache/existing.py)."""
        sizes = self._wanted()
        if self.private:
            sizes["private"] = True
        if self.settings.files:
            sizes["files"] = [[str(path), size] for path, size in self.settings.files]
            if len(json.dumps(sizes)) > DOOR_TEXT_BYTES // 2:
                sizes["files"] = []  # too many for the text: who opens it must name them
        return sizes

    def _make_arena_file(self) -> int:
        settings = self.settings
        kind = settings.arena
        if kind == "auto":
            kind = "shm" if free_bytes(SHARED_MEMORY) > settings.ram else "memfd"
            if kind == "memfd":
                logger.warning(
                    "%s has less than %s free: the cache's memory is a memfd, so what is in RAM "
                    "ends with the last process (flash stays). Give the container a larger one "
                    "(--shm-size), or use arena='file'",
                    SHARED_MEMORY,
                    format_size(settings.ram),
                )
        if kind == "memfd":
            self._memory_descriptor = create_memfd(settings.ram)
            self._files.append(self._memory_descriptor)
            return self._memory_descriptor
        assert settings.path is not None
        directory = SHARED_MEMORY if kind == "shm" else settings.path
        if free_bytes(directory) < settings.ram:
            raise errors.OutOfMemory(
                errno.ENOSPC,
                f"{directory} has no room for an arena of {format_size(settings.ram)}: make it "
                "larger, lower `ram`, or leave `arena` to auto",
            )
        descriptor, self.arena_path = create_arena_file(directory, settings.ram, mode=settings.mode)
        self._files.append(descriptor)
        return descriptor

    def _lock_identity(self) -> list[int]:
        # A copy of a data directory has the same text, but is another file.
        return [] if self.lock is None else list(identity(self.lock.descriptor))

    def _join(self, door: dict[str, Any], others: list[int]) -> None:
        """The arena that others use: that very one, or none."""
        if door.get("layout") != LAYOUT:
            raise errors.Locked(
                errno.EBUSY,
                f"{self._in_use(others)} with memory of layout {door.get('layout')}, this version "
                f"of siltstone has layout {LAYOUT}: close it there first",
            )
        if not self._same(door):
            raise errors.ConfigError(self._difference(door, others))
        try:
            self._attach_arena(self._open_arena_of(door, others), door)
        except errors.EnvironmentFailure as error:
            raise errors.Locked(
                errno.EBUSY,
                f"{self._in_use(others)} with another /dev/shm; "
                'start both with the same one, or use arena="file"',
            ) from error
        except errors.WrongFormat as error:
            raise errors.Locked(
                errno.EBUSY, f"{self._in_use(others)} with another layout of memory: {error}"
            ) from error

    def _inherit(self, door: dict[str, Any]) -> bool:
        """Go on with the arena that a killed process left; False: it is of no use."""
        if door.get("boot") != boot_id().hex() or not self._same(door):
            return False
        if door.get("lock") != self._lock_identity() or door["arena"] == "memfd":
            return False
        try:
            self._attach_arena(self._open_arena_of(door, []), door)
        except (errors.EnvironmentFailure, errors.WrongFormat) as error:
            logger.warning("%s: memory left behind is not used: %s", self.settings.path, error)
            self.fresh, self.arena_path, self.log = True, "", None
            return False
        return True

    def _attach_arena(self, descriptor: int, door: dict[str, Any]) -> None:
        self._files.append(descriptor)
        self.arena = Arena(0, 0, geometry(self.settings.ram)[1], {}, 0, descriptor, True)
        if door["arena"] == "memfd":
            self._memory_descriptor = descriptor
        else:
            self.arena_path = door["arena"]
        if self.device is not None:
            self.log = Log.attach(self.arena, self.device, live_map=self.live_map)
        self.door = {**door, "pid": os.getpid()}
        self.fresh = False

    def _open_arena_of(self, door: dict[str, Any], others: list[int]) -> int:
        if door.get("arena") != "memfd":
            return open_arena_file(
                str(door.get("arena")), int(door.get("device", 0)), int(door.get("inode", 0))
            )
        assert self.lock is not None
        failure = errors.EnvironmentFailure(errno.ESTALE, "no living process has the arena")
        for slot in others:
            text = self.lock.read(DOOR_TEXT_BYTES + slot * 32, 32).strip(b"\0 ")
            pid, _, descriptor = text.partition(b" ")
            if not pid.isdigit() or not descriptor.isdigit():
                continue
            try:
                return open_memfd_of(int(pid), int(descriptor), door["device"], door["inode"])
            except errors.EnvironmentFailure as error:
                failure = error  # its slot had another holder before: the next one may do
        raise failure

    def _same(self, door: dict[str, Any]) -> bool:
        return all(door.get(name) == value for name, value in self._wanted().items())

    def _wanted(self) -> dict[str, Any]:
        settings = self.settings
        return {
            "layout": LAYOUT,
            "ram": settings.ram,
            "flash": settings.flash,
            "segment": settings.segment_size,
            "buffer": settings.buffer_size,
            "buffers": settings.buffers,
        }

    def _difference(self, door: dict[str, Any], others: list[int]) -> str:
        told = ", ".join(
            f"{name} {door.get(name)} (asked: {value})"
            for name, value in self._wanted().items()
            if door.get(name) != value
        )
        return (
            f"{self._in_use(others)} with other settings: {told}; "
            "use the same, or close it there first"
        )

    def check_same(self, settings: CacheSettings) -> None:
        """A second opening in this process must want the same cache."""
        for name in ("ram", "flash", "segment_size", "buffer_size", "buffers"):
            if getattr(settings, name) != getattr(self.settings, name):
                raise errors.ConfigError(
                    f"{settings.path} is open in this process with {name} = "
                    f"{getattr(self.settings, name)}, not {getattr(settings, name)}"
                )

    def _remove_arena(self, door: dict[str, Any]) -> None:
        """What the door names is of no use, unless the door came here with a copy."""
        name = str(door.get("arena", ""))
        if door.get("lock") == self._lock_identity() and (
            os.path.basename(name).startswith(orphans.NAME_START)
        ):
            remove_files([name])

    def _open_engine(self) -> None:
        settings = self.settings
        shards, _ = geometry(settings.ram)
        if self.device is not None and self.fresh:
            self.log = Log.create(
                self.arena,
                self.device,
                buffer_bytes=settings.buffer_size,
                buffers=max(2, settings.buffers // settings.buffer_size),
                live_map=self.live_map,
            )
        elif self.log is not None:
            self.log.occupy()
        self.engine = CacheEngine(self.arena, shards, self.log, self.fresh)
        self.engine.configure(
            item_size_max=settings.item_size_max,
            item_size_min=settings.item_size_min,
            item_age_s=-1 if settings.item_age is None else int(settings.item_age),
            low_ttl_s=int(settings.low_ttl),
            low_ttl_min_ms=int(settings.low_ttl_min * 1000),
            recache_rate=settings.recache_rate,
            drop_unread=settings.drop_unread,
            evict=settings.evict,
            cas=settings.cas,
        )
        self.background = Background(
            self.engine,
            live_map=self.live_map,
            lock_descriptor=-1 if self.lock is None else self.lock.descriptor,
            compact_under=settings.compact_under,
            max_fragmentation=settings.max_fragmentation,
            drop_unread=settings.drop_unread,
            drop_under=settings.drop_under,
            flush_idle_ms=int(settings.flush_idle * 1000),
        )
        self._note_memfd()
        self.restored = 0
        if self.fresh:
            self.restored = restart.restore(self)
        else:
            restart.resume(self)

    def _note_memfd(self) -> None:
        if self.lock is not None and self._memory_descriptor >= 0:
            text = f"{os.getpid()} {self._memory_descriptor}".encode().ljust(32)
            self.lock.write(DOOR_TEXT_BYTES + self.arena.slot * 32, text)

    # Closing --------------------------------------------------------------------------------

    def forget(self) -> None:
        """As `release`, for a finalizer: it may run in any thread, also in one that whoever holds
        the guard waits for, so it must not wait for the guard itself."""
        if not _guard.acquire(blocking=False):
            _forgotten.append(self)
            return
        try:
            self.release()
        finally:
            _guard.release()

    def release(self) -> None:
        """One user less; the last one closes."""
        with _guard:
            self.users -= 1
            if self.users or self.closed:
                return
            self.closed = True
            _open_attachments.pop(self.key, None)
            if self.pid == os.getpid():
                self._close()

    def _close(self) -> None:
        self.background.stop()
        self.engine.close()
        while self.engine.inside:
            self.clock.sleep(LEAVE_PAUSE_S)
        try:
            if self.lock is not None:
                born = self.private or births.wait(BIRTH_LIMIT_MS)
                self.lock.take_within(LockFile.DOOR, DOOR_LIMIT_MS)
                if born and not self.others():
                    self._close_last()
                self.arena.vacate()
        finally:
            self._abandon()  # without the rest it is to others as if this process had been killed

    def _close_last(self) -> None:
        """Nobody else has it: all that is in RAM goes to flash, then the index is written."""
        if self.log is not None:
            drain(self.engine)
            try:
                self.log.flush()
                restart.save(self)
            except errors.EnvironmentFailure as error:
                # without the clean mark: what did reach the device is found by reading it
                logger.error("%s was not closed in order: %s", self.settings.path, error)
        if self.arena_path:
            remove_files([self.arena_path])
        self.door = self._sizes()  # without an arena: there is none
        self._write_door()

    def _abandon(self) -> None:
        """Let go of everything. A new arena that nobody was told of goes, too."""
        if self.lock is not None and self.arena_path and not self.closed and self.fresh:
            remove_files([self.arena_path])
        if self.device is not None:
            self.device.close()
        for descriptor in self._files:
            close_descriptor(descriptor)
        self._files.clear()
        if self.lock is not None:
            self.lock.close()
            self.lock = None

    # Forking --------------------------------------------------------------------------------

    def after_fork_in_child(self) -> None:
        """A private arena is a copy from here on, without flash; a shared one has a new member."""
        self.pid = os.getpid()
        self.background.after_fork()
        if self.private:
            fork.renew(self.engine)
            self._abandon()  # closes the child's descriptors of the parent's files
            self.log = self.device = self.live_map = None
            self.arena.occupy(0, self.pid, self.clock.now_ms())
        else:
            self._join_again()
        for face in list(self.faces):
            face._sleep()

    def _join_again(self) -> None:
        assert self.lock is not None
        self.engine.inside = 0
        try:
            self.lock.take_within(LockFile.DOOR, DOOR_LIMIT_MS)
            self.lock.take_or_refuse(LockFile.EXCLUSIVE, exclusive=False)
            slot = self._take_slot(self.lock)
            if self.device is not None:
                self.device.lock_again()
            door = read_door(self.lock)
            if (door.get("device"), door.get("inode")) != (
                self.door.get("device"), self.door.get("inode"),
            ):  # fmt: skip
                raise errors.Closed(f"{self.settings.path} was closed while this process forked")
        except errors.SiltstoneError as error:
            logger.error("the cache cannot be used in this forked process: %s", error)
            self._drop_out()
            return
        self.arena.occupy(slot, self.pid, self.clock.now_ms(), self._memory_descriptor)
        if self.log is not None:
            self.log.occupy()
        self._note_memfd()
        self.lock.drop(LockFile.DOOR)

    def _drop_out(self) -> None:
        self.closed = True
        _open_attachments.pop(self.key, None)
        for face in list(self.faces):
            face._unbind()
        self.engine.close()
        if self.lock is not None:
            self.lock.close()

    # What faces ask for ----------------------------------------------------------------------

    def member_alive(self, slot: int, started_ms: int) -> bool:
        """Does the process that had `slot` since `started_ms` still live?"""
        if slot >= PROCESS_SLOTS:
            return False  # as a client may have written it
        if slot == self.arena.slot:
            return started_ms == self.arena.process(slot)[1]
        if self.lock is None or self.lock.holder(slot) == 0:
            return False
        return started_ms == self.arena.process(slot)[1]

    def flush(self) -> None:
        if self.log is not None:
            self.log.flush()

    def sync(self) -> None:
        self.flush()
        if self.device is not None:
            self.device.sync()

    def clear(self) -> None:
        """Everything stored so far is gone, and counted as gone."""
        self.clear_at(1)  # a time that is past: now, whatever the clock's grain
        sweep(self.engine)

    def clear_at(self, due_ms: int) -> None:
        self.engine.flush_at(due_ms)

    def segments(self) -> list[dict[str, Any]]:
        return [] if self.log is None else self.log.segments()

    def stats(self) -> dict[str, Any]:
        return statistics.collect(self)

    def verify(self, progress: Callable[[int, int], None] | None = None) -> Report:
        report = verify_items(self.engine, progress)
        if self.lost:
            report.problems.append(
                f"{self.lost} records were damaged or gone when the cache was opened: "
                "they are misses now"
            )
        return report


def _close_at_exit() -> None:
    # A program that forgets close() still leaves what a warm restart needs.
    for attachment in list(_all_attachments):
        for face in list(attachment.faces):
            face._unbind()
        attachment.users = 1
        _release_or_log(attachment)


def _release_or_log(attachment: Attachment) -> None:
    """Where nobody asked for it: what goes wrong is nobody else's error."""
    try:
        attachment.release()
    except errors.SiltstoneError as error:
        logger.error("%s was not closed in order: %s", attachment.settings.path, error)


def _before_fork() -> None:
    _guard.acquire()
    opened = [attachment for attachment in _all_attachments if not attachment.closed]
    if not all(attachment.private for attachment in opened):
        births.expect()
    for attachment in opened:
        if attachment.private:
            fork.hold(attachment.engine)


def _after_fork_in_parent() -> None:
    fork.release()
    births.in_parent()
    _guard.release()


def _after_fork_in_child() -> None:
    global _guard
    _guard = threading.RLock()
    for attachment in list(_all_attachments):
        if not attachment.closed:
            attachment.after_fork_in_child()
    births.joined()


atexit.register(_close_at_exit)
os.register_at_fork(
    before=_before_fork,
    after_in_parent=_after_fork_in_parent,
    after_in_child=_after_fork_in_child,
)
