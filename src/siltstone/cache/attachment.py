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
import errno
import json
import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from siltstone import errors
from siltstone.cache import restart, statistics
from siltstone.cache.background import Background
from siltstone.cache.engine import CacheEngine, cache_section_bytes, geometry
from siltstone.cache.report import Report
from siltstone.cache.sweep import drain, verify_items
from siltstone.clock import Clock
from siltstone.config import CacheSettings, format_size
from siltstone.log.arena import Arena
from siltstone.log.device import (
    FileDevice,
    boot_id,
    close_descriptor,
    create_arena_file,
    create_memfd,
    free_bytes,
    identity,
    make_directory,
    open_arena_file,
    open_live_map,
    open_lock_file,
    open_memfd_of,
    refuse_network_file_system,
    remove_files,
)
from siltstone.log.livemap import LiveMap, live_map_bytes
from siltstone.log.lockfile import LockFile
from siltstone.log.log import Log, log_sections

logger = logging.getLogger("siltstone.cache")

SHARED_MEMORY: Final = Path("/dev/shm")
PROCESS_SLOTS: Final = 128
DOOR_LIMIT_MS: Final = 10_000
LAYOUT: Final = 1
SECTION_CACHE: Final = 1
SECTION_TAGS: Final = 4
TAG_BYTES: Final = 64 * 1024
_DOOR_TEXT_BYTES: Final = 1024  # the lock file's text: one JSON object, padded with spaces

_open_attachments: dict[object, Attachment] = {}
_guard = threading.RLock()


def attach(settings: CacheSettings, clock: Clock) -> Attachment:
    """The attachment for these settings; one a path and process."""
    with _guard:
        key: object = object()
        if settings.path is not None:
            make_directory(settings.path)
            key = identity(settings.path)
            found = _open_attachments.get(key)
            if found is not None:
                found.check_same(settings)
                found.users += 1
                return found
        attachment = Attachment(settings, clock, key)
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
        self._memory_descriptor = -1
        self._files: list[int] = []
        self.private = settings.path is None or settings.arena == "private"
        self.pid = os.getpid()
        try:
            self._open()
        except BaseException:
            self._abandon()
            raise
        if settings.workers:
            self.background.start()

    # Opening --------------------------------------------------------------------------------

    def _open(self) -> None:
        settings = self.settings
        slot = 0
        self.fresh = True
        if settings.path is not None:
            if not self.private:
                refuse_network_file_system(settings.path)
            self.lock = open_lock_file(settings.path / "lock", mode=settings.mode)
            self.lock.take_within(LockFile.DOOR, DOOR_LIMIT_MS)
            if self.private:
                self.lock.take_or_refuse(LockFile.EXCLUSIVE)
            else:
                self.lock.take_or_refuse(LockFile.EXCLUSIVE, exclusive=False)
            slot = self._take_slot(self.lock)
        door = self._read_door()
        self._open_device()
        self._open_arena(door)
        self.arena.occupy(slot, os.getpid(), self.clock.now_ms(), self._memory_descriptor)
        self._open_engine()
        self._write_door()
        if self.lock is not None:
            self.lock.drop(LockFile.DOOR)

    def _take_slot(self, lock: LockFile) -> int:
        for slot in range(PROCESS_SLOTS):
            if lock.take(slot):
                return slot
        raise errors.Locked(
            errno.EUSERS, f"{self.settings.path} is open in {PROCESS_SLOTS} processes, the most"
        )

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

    def _read_door(self) -> dict[str, Any]:
        if self.lock is None:
            return {}
        text = self.lock.read(0, _DOOR_TEXT_BYTES).strip(b"\0 \n")
        try:
            door = json.loads(text) if text else {}
        except ValueError:
            door = {}
        return door if isinstance(door, dict) else {}

    def _write_door(self) -> None:
        if self.lock is None:
            return
        text = json.dumps(self.door).encode().ljust(_DOOR_TEXT_BYTES)
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
        settings = self.settings
        _, frame_bytes = geometry(settings.ram)
        if not self.private and door.get("arena") and self._reopen_arena(door):
            return
        descriptor = -1
        if not self.private:
            descriptor = self._make_arena_file()
        maximum = settings.ram_max if self.private else settings.ram
        try:
            self.arena = Arena(
                settings.ram, maximum, frame_bytes, self._sections(), self.clock.now_ms(),
                descriptor,
            )  # fmt: skip
        except OSError as error:
            raise errors.OutOfMemory(
                error.errno, f"no memory for an arena of {format_size(settings.ram)}: {error}"
            ) from error
        self.door = self._describe(descriptor)

    def _describe(self, descriptor: int) -> dict[str, Any]:
        if self.private:
            return self._sizes()
        device, inode = identity(descriptor)
        return {
            **self._sizes(),
            "boot": boot_id().hex(),
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
            if len(json.dumps(sizes)) > _DOOR_TEXT_BYTES // 2:
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

    def _reopen_arena(self, door: dict[str, Any]) -> bool:
        """The arena that others use, or that a killed process left; False: make a new one."""
        others = self.others()
        same_boot = door.get("boot") == boot_id().hex()
        if not others and not (same_boot and self._same(door)):
            self._remove_arena(door)
            return False
        if others and not self._same(door):
            raise errors.ConfigError(self._difference(door))
        try:
            descriptor = self._open_arena_of(door, others)
        except errors.EnvironmentFailure as error:
            if not others:
                self._remove_arena(door)
                return False
            raise errors.Locked(
                errno.EBUSY,
                f"{self.settings.path} is in use by pid {door.get('pid')} with another /dev/shm; "
                'start both with the same one, or use arena="file"',
            ) from error
        self._files.append(descriptor)
        self.arena = Arena(0, 0, geometry(self.settings.ram)[1], {}, 0, descriptor, True)
        self.arena_path = "" if door["arena"] == "memfd" else door["arena"]
        if door["arena"] == "memfd":
            self._memory_descriptor = descriptor
        self.door = {**door, "pid": os.getpid()}
        self.fresh = False
        return True

    def _open_arena_of(self, door: dict[str, Any], others: list[int]) -> int:
        if door["arena"] != "memfd":
            return open_arena_file(door["arena"], door["device"], door["inode"])
        assert self.lock is not None
        for slot in others:
            text = self.lock.read(_DOOR_TEXT_BYTES + slot * 32, 32).strip(b"\0 ")
            pid, _, descriptor = text.partition(b" ")
            if pid.isdigit() and descriptor.isdigit():
                return open_memfd_of(int(pid), int(descriptor), door["device"], door["inode"])
        raise errors.EnvironmentFailure(errno.ESTALE, "no living process has the arena")

    def _same(self, door: dict[str, Any]) -> bool:
        mine = {**self._wanted()}
        return all(door.get(name) == value for name, value in mine.items())

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

    def _difference(self, door: dict[str, Any]) -> str:
        told = ", ".join(
            f"{name} {door.get(name)} (asked: {value})"
            for name, value in self._wanted().items()
            if door.get(name) != value
        )
        return (
            f"{self.settings.path} is open in pid {door.get('pid')} with other settings: {told}; "
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
        name = str(door.get("arena", ""))
        if os.path.basename(name).startswith("siltstone-"):
            remove_files([name])

    def _open_engine(self) -> None:
        settings = self.settings
        shards, _ = geometry(settings.ram)
        if self.device is not None:
            count = max(2, settings.buffers // settings.buffer_size)
            self.log = (
                Log.create(
                    self.arena,
                    self.device,
                    buffer_bytes=settings.buffer_size,
                    buffers=count,
                    live_map=self.live_map,
                )
                if self.fresh
                else Log.attach(self.arena, self.device, live_map=self.live_map)
            )
        self.engine = CacheEngine(self.arena, shards, self.log, self.fresh)
        self.engine.configure(
            item_size_max=settings.item_size_max,
            item_size_min=settings.item_size_min,
            item_age_s=-1 if settings.item_age is None else int(settings.item_age),
            low_ttl_s=int(settings.low_ttl),
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
            self.lock.write(_DOOR_TEXT_BYTES + self.arena.slot * 32, text)

    # Closing --------------------------------------------------------------------------------

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
        if self.lock is not None:
            self.lock.take_within(LockFile.DOOR, DOOR_LIMIT_MS)
            if not self.others():
                self._close_last()
            self.arena.vacate()
        self._abandon()

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
        if self.device is not None:
            self.device.close()
        for descriptor in self._files:
            close_descriptor(descriptor)
        self._files.clear()
        if self.lock is not None:
            self.lock.close()
            self.lock = None

    # What faces ask for ----------------------------------------------------------------------

    def member_alive(self, slot: int, started_ms: int) -> bool:
        """Does the process that had `slot` since `started_ms` still live?"""
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
        """Everything stored so far is gone."""
        self.clear_at(1)  # a time that is past: now, whatever the clock's grain

    def clear_at(self, due_ms: int) -> None:
        self.engine.flush_at(due_ms)

    def segments(self) -> list[dict[str, Any]]:
        return [] if self.log is None else self.log.segments()

    def stats(self) -> dict[str, Any]:
        return statistics.collect(self)

    def verify(self, progress: Callable[[int, int], None] | None = None) -> Report:
        return verify_items(self.engine, progress)


@atexit.register
def _close_at_exit() -> None:
    # A program that forgets close() still leaves what a warm restart needs.
    for attachment in list(_open_attachments.values()):
        attachment.users = 1
        attachment.release()
