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
        stats["restored_items"] = attachment.restored
        log = attachment.log.stats()
        stats |= _device(stats, log)
        stats["log"] = log
    return stats


def _device(stats: dict[str, Any], log: dict[str, Any]) -> dict[str, Any]:
    """What the device did: bytes, errors, times; bytes written for each byte stored."""
    stored = stats["flash_write_bytes"]
    return {
        "device_reads": log["device_reads"],
        "device_writes": log["device_writes"],
        "device_bytes_read": log["device_bytes_read"],
        "device_bytes_written": log["device_bytes_written"],
        "device_read_errors": log["read_errors"],
        "device_write_errors": log["write_errors"],
        "device_read_p50_us": percentile_us(log["read_latency_us"], 0.5),
        "device_read_p99_us": percentile_us(log["read_latency_us"], 0.99),
        "device_write_p50_us": percentile_us(log["write_latency_us"], 0.5),
        "device_write_p99_us": percentile_us(log["write_latency_us"], 0.99),
        "write_amplification": round(log["device_bytes_written"] / stored, 3) if stored else 0.0,
    }


def percentile_us(buckets: list[int], share: float) -> int:
    """Upper end of the bucket that holds the percentile; bucket n: [2^n, 2^(n+1)) us."""
    total = sum(buckets)
    below = 0
    for number, count in enumerate(buckets):
        below += count
        if total and below >= share * total:
            return 1 << (number + 1)
    return 0
