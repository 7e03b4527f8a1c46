"""Cache engines behind the server's Backend, for tests of sessions and servers: in memory only,
and with flash on a device whose reads can be made to wait."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterable, Mapping
from typing import Any

from siltstone.cache.engine import CacheEngine, cache_section_bytes, geometry
from siltstone.cache.statistics import COUNTER_NAMES
from siltstone.cache.sweep import drain
from siltstone.clock import SYSTEM_CLOCK
from siltstone.config import KIB, MIB
from siltstone.log.arena import Arena
from siltstone.log.device import Device, MemoryDevice
from siltstone.log.device_io import DeviceHandle
from siltstone.log.layout import log_sections
from siltstone.log.log_face import Log
from siltstone.log.superblock import FIRST_DATA_OFFSET
from siltstone.serve.control import Control, ItemInfo, SegmentInfo
from siltstone.serve.memcache import Session
from siltstone.serve.settings import Settings

SECTION_CACHE = 1
SEGMENTS, SEGMENT_BYTES = 64, 256 * KIB
BUFFERS, BUFFER_BYTES = 16, 64 * KIB
NOWAIT = 1


class MemoryBackend:
    """An engine over a private arena, without flash."""

    def __init__(self, ram: int = 16 * MIB) -> None:
        shards, frame_bytes = geometry(ram)
        sections = {SECTION_CACHE: cache_section_bytes(shards), **self.log_sections()}
        size = ram + sum(sections.values())
        self.arena = Arena(size, size, frame_bytes, sections, SYSTEM_CLOCK.now_ms())
        self.engine = CacheEngine(self.arena, shards, self.make_log())
        self.tuned: list[tuple[str, float]] = []
        self.items: list[ItemInfo] = []
        self.pages: list[SegmentInfo] = []
        self.ram = ram

    def log_sections(self) -> dict[int, int]:
        return {}

    def make_log(self) -> Log | None:
        return None

    def stats(self) -> Mapping[str, Any]:
        totals = self.engine.totals()
        return {
            **dict(zip(COUNTER_NAMES, self.engine.counters(), strict=False)),
            "curr_items": totals["items_ram"] + totals["items_flash"],
            "bytes": totals["bytes_used"],
            "limit_maxbytes": self.ram,
            **totals,
        }

    def flush_at(self, due_ms: int) -> None:
        self.engine.flush_at(due_ms)

    def resize(self, ram: int) -> None:
        self.ram = ram

    def tune(self, name: str, value: float) -> None:
        self.tuned.append((name, value))

    def expire(self) -> int:
        return 0

    def scan(self) -> Iterable[ItemInfo]:
        return self.items

    def segments(self) -> Iterable[SegmentInfo]:
        return self.pages


class GatedDevice(Device):
    """Memory whose reads never come without waiting; `gate` holds them back."""

    def __init__(self) -> None:
        self.inner = MemoryDevice(SEGMENTS, SEGMENT_BYTES)
        self.growable = self.inner.growable
        self.handle = DeviceHandle.of_object(self, SEGMENT_BYTES, SEGMENTS, FIRST_DATA_OFFSET)
        self.superblock = self.inner.superblock
        self.gate = threading.Event()
        self.gate.set()
        self.waiting = 0
        self.reads = 0
        self.error = 0
        self._lock = threading.Lock()

    # what the handle calls

    def read(self, slot: int, offset: int, size: int, flags: int = 0) -> bytes:
        if flags & NOWAIT:
            raise BlockingIOError(errno.EAGAIN, "not in memory")
        with self._lock:
            self.waiting += 1
            self.reads += 1
        self.gate.wait(10)
        with self._lock:
            self.waiting -= 1
        if self.error:
            raise OSError(self.error, "the device failed")
        return self.inner.read(slot, offset, size)

    def write(self, slot: int, offset: int, data: bytes) -> None:
        self.inner.write(slot, offset, data)

    def sync(self) -> None:
        self.inner.sync()

    def slots_present(self) -> int:
        return self.inner.slots_present()

    @property
    def size_on_disk(self) -> int:
        return self.inner.size_on_disk

    def close(self) -> None:
        self.inner.close()


class FlashBackend(MemoryBackend):
    """An engine whose items go to flash when `to_flash()` is called."""

    def __init__(self, ram: int = 4 * MIB) -> None:
        self.device = GatedDevice()
        super().__init__(ram)

    def log_sections(self) -> dict[int, int]:
        return log_sections(SEGMENTS, 4, BUFFERS, BUFFER_BYTES)

    def make_log(self) -> Log | None:
        return Log.create(self.arena, self.device, buffer_bytes=BUFFER_BYTES, buffers=BUFFERS)

    def to_flash(self) -> None:
        """Everything in memory moves to the device, write buffers too."""
        drain(self.engine)
        self.engine.log.flush()  # type: ignore[attr-defined]
        assert self.engine.totals()["items_ram"] == 0


def make_session(backend: MemoryBackend | None = None, **settings: Any) -> Session:
    backend = backend or MemoryBackend()
    made = Settings(**settings)
    return Session(backend.engine, Control(backend, made), made)
