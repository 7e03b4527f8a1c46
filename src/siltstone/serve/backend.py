"""A `Cache` as the server's commands see it: memcached's names for what it counts and can change.

Promises: what is renamed here is measured, not guessed; a setting that cannot change while
running is refused. Called by Control, in the server's thread.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from siltstone.cache.cache import Cache
from siltstone.cache.engine import CacheEngine
from siltstone.cache.sweep import scan
from siltstone.clock import SYSTEM_CLOCK, Clock
from siltstone.serve.control import ItemInfo, SegmentInfo

PAGE_BYTES: Final = 4096  # of the index

# memcached's name -> ours
RENAMED: Final = {
    "recache_from_extstore": "recached",
    "miss_from_extstore": "flash_misses",
    "badcrc_from_extstore": "flash_bad_checksums",
    "extstore_compact_lost": "compact_lost",
    "extstore_compact_rescues": "compact_rescued",
    "extstore_compact_skipped": "compact_skipped",
    "extstore_page_evictions": "segments_forgotten",
    "extstore_objects_evicted": "flash_evicted",
    "extstore_objects_written": "flash_writes",
    "extstore_objects_used": "items_flash",
    "extstore_bytes_written": "flash_write_bytes",
    "crawler_items_checked": "crawled",
}
RENAMED_LOG: Final = {
    "extstore_page_allocs": "segments_opened",
    "extstore_page_reclaims": "segments_freed",
    "extstore_pages_free": "segments_free",
    "extstore_bytes_read": "device_bytes_read",
}
AGE_NEVER: Final = 0xFFFFFFFF


class CacheBackend:
    """Control's `Backend` over a `Cache`."""

    def __init__(self, cache: Cache, clock: Clock = SYSTEM_CLOCK) -> None:
        self.cache = cache
        self.clock = clock

    @property
    def engine(self) -> CacheEngine:
        return self.cache.engine

    def stats(self) -> Mapping[str, Any]:
        stats = self.cache.stats()
        log = stats.pop("log", None)
        stats["hash_bytes"] = stats.get("index_pages", 0) * PAGE_BYTES
        stats |= {name: stats.get(ours, 0) for name, ours in RENAMED.items()}
        if log is not None:
            stats |= self._flash_stats(stats, log)
            stats |= {
                f"log_{name}": value
                for name, value in log.items()
                if isinstance(value, (int, float, str))
            }
        return stats

    def _flash_stats(self, stats: Mapping[str, Any], log: Mapping[str, Any]) -> dict[str, Any]:
        found = {name: log.get(ours, 0) for name, ours in RENAMED_LOG.items()}
        segment_bytes = self.cache.settings.segment_size or 0
        used = log["segments_total"] - log["segments_free"]
        live = sum(segment.live_bytes for segment in self.segments())
        asked = stats.get("get_flash_hits", 0) + stats.get("flash_misses", 0)
        return found | {
            "get_extstore": asked,
            "extstore_objects_read": asked,
            "extstore_pages_used": used,
            "extstore_bytes_used": live,
            "extstore_bytes_fragmented": max(0, used * segment_bytes - live),
            "extstore_limit_maxbytes": log["segments_total"] * segment_bytes,
        }

    def flush_at(self, due_ms: int) -> None:
        self.cache.clear_at(due_ms)

    def resize(self, ram: int) -> None:
        self.cache.resize(ram)

    def tune(self, name: str, value: float) -> None:
        # memcached's "never" is the largest 32-bit number
        if name == "item_age" and value == AGE_NEVER:
            value = -1
        self.cache.tune(name, value)

    def expire(self) -> int:
        return self.cache.expire()

    def scan(self) -> Iterator[ItemInfo]:
        now_ms = self.clock.now_ms()
        for key, _, expire_ms, idle_s, cas, fetched, size, flags, on_flash in scan(self.engine):
            accessed = now_ms - idle_s * 1000
            yield ItemInfo(key, size, flags, cas, expire_ms, accessed, fetched, on_flash)

    def segments(self) -> Iterable[SegmentInfo]:
        for segment in self.cache.segments():
            yield SegmentInfo(segment["version"], segment["live_bytes"], segment["stream"] or 0)
