"""A memory-only cache engine behind the server's Backend, for tests of sessions and servers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from siltstone.cache.engine import CacheEngine, cache_section_bytes, geometry
from siltstone.clock import SYSTEM_CLOCK
from siltstone.config import MIB
from siltstone.log.arena import Arena
from siltstone.serve.control import Control, ItemInfo, SegmentInfo
from siltstone.serve.memcache import Session
from siltstone.serve.settings import Settings

SECTION_CACHE = 1


class MemoryBackend:
    """An engine over a private arena, without flash."""

    def __init__(self, ram: int = 16 * MIB) -> None:
        shards, frame_bytes = geometry(ram)
        self.arena = Arena(
            ram, ram, frame_bytes, {SECTION_CACHE: cache_section_bytes(shards)},
            SYSTEM_CLOCK.now_ms(),
        )  # fmt: skip
        self.engine = CacheEngine(self.arena, shards)
        self.tuned: list[tuple[str, float]] = []
        self.items: list[ItemInfo] = []
        self.pages: list[SegmentInfo] = []
        self.ram = ram

    def stats(self) -> Mapping[str, Any]:
        totals = self.engine.totals()
        return {
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


def make_session(backend: MemoryBackend | None = None, **settings: Any) -> Session:
    backend = backend or MemoryBackend()
    made = Settings(**settings)
    return Session(backend.engine, Control(backend, made), made)
