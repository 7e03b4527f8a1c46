"""Names for the engine's numbers: memcached's where it has one, ours beside them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from siltstone.cache.attachment import Attachment

# In the order of counter_t (engine.pxd).
COUNTER_NAMES: Final = (
    "get_hits", "get_misses", "get_expired", "get_flushed", "get_flash_hits", "cmd_get", "cmd_set",
    "cmd_flush", "cmd_touch", "cmd_meta", "delete_hits", "delete_misses", "incr_hits",
    "incr_misses", "decr_hits", "decr_misses", "cas_hits", "cas_misses", "cas_badval",
    "touch_hits", "touch_misses", "store_too_large", "store_no_memory", "total_items",
    "evictions", "evicted_unfetched", "expired_unfetched", "reclaimed", "flash_writes",
    "flash_write_bytes", "flash_misses", "flash_bad_checksums", "flash_read_errors", "recached",
    "compact_rescued", "compact_skipped", "compact_lost", "flash_evicted", "shards_reset", "busy",
    "read_retries", "bad_offsets", "crawled", "crawler_reclaimed", "segments_forgotten",
    "evicted_active", "reinserted",
)  # fmt: skip


def collect(attachment: Attachment) -> dict[str, Any]:
    """Everything that is counted, by name."""
    arena, engine = attachment.arena, attachment.engine
    stats: dict[str, Any] = dict(zip(COUNTER_NAMES, engine.counters(), strict=False))
    totals = engine.totals()
    stats |= totals
    stats["curr_items"] = totals["items_ram"] + totals["items_flash"]
    stats["bytes"] = totals["bytes_ram"]
    stats["limit_maxbytes"] = arena.limit_bytes
    stats["frame_bytes"] = arena.frame_bytes
    stats["frames_used"] = arena.frames_used
    stats["frames_limit"] = arena.frames_limit
    stats["eviction_policy"] = "s3-fifo"
    if attachment.log is not None:
        stats["log"] = attachment.log.stats()
        stats["restored_items"] = attachment.restored
    return stats
