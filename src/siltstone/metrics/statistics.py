"""What `Metrics.stats()` tells: counters of everything, sizes, and how long the quota lasts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from siltstone.metrics.segment import FRESH, RAW, TIER

if TYPE_CHECKING:
    from siltstone.metrics.engine import Engine


def statistics(engine: Engine) -> dict[str, Any]:
    """Counts unless the name ends in a unit. Groups: head, segments, journal, cache, device."""
    kinds = {"fresh": FRESH, "raw": RAW}
    kinds |= {f"tier_{n + 1}": TIER + n for n in range(len(engine.settings.tiers))}
    segments = list(engine.segments.values())
    by_kind = {}
    for name, kind in kinds.items():
        some = [segment for segment in segments if segment.kind == kind]
        by_kind[name] = {
            "segments": len(some),
            "sealed": sum(segment.sealed for segment in some),
            "bytes": sum(segment.end for segment in some),
            "chunks": sum(segment.chunk_count for segment in some),
            "samples": sum(segment.samples for segment in some),
            "start_ms": min((segment.start_ms for segment in some), default=None),
            "end_ms": max((segment.end_ms for segment in some), default=None),
        }
    head = engine.head.stats()
    journal = engine.log.stats()
    written = engine.counters["segment_write_bytes"] + head["journal_bytes"]
    return {
        **head,
        **engine.counters,
        "series_live": engine.head.live,
        "series_known": len(engine.registry),
        "tombstones": len(engine.tombstones),
        "pending_chunks": sum(int(piece[0].size) for piece in engine.pending),
        "problems": list(engine.problems),
        "segments": by_kind,
        "slots": engine.settings.slots,
        "slots_free": engine.log.slots_free,
        "slots_held": len(engine.held),  # for readers beside this writer
        "size_on_disk": engine.device.size_on_disk,
        "retention_size": engine.settings.retention_size,
        "write_amplification": written / (16 * head["samples"]) if head["samples"] else 0.0,
        "retention": engine.retention.forecast(),
        "cache": engine.cache.stats(),
        "journal": journal,
        "device": engine.device.handle.stats(),
    }


def segment_map(engine: Engine) -> list[dict[str, Any]]:
    """Every slot of the device, as `Cache.segments()` tells them: state, stream, bytes.

    Streams: "journal", "fresh", "raw", "tier_1", ... All that is filled of a segment of chunks is
    live until retention drops it whole.
    """
    names = {FRESH: "fresh", RAW: "raw"}
    slots = {
        slot["slot"]: {**slot, "stream": None if slot["state"] == "free" else "journal"}
        for slot in engine.log.segments()
    }
    for segment in engine.segments.values():
        slots[segment.slot] = {
            "slot": segment.slot,
            "state": "sealed" if segment.sealed else "open",
            "stream": names.get(segment.kind, f"tier_{segment.kind - TIER + 1}"),
            "version": segment.version,
            "filled_bytes": segment.end,
            "live_bytes": segment.end,
        }
    free = {"state": "free", "stream": None, "version": 0, "filled_bytes": 0, "live_bytes": 0}
    count = max(engine.settings.slots, 1 + max(slots, default=0))
    return [slots.get(slot, free | {"slot": slot}) for slot in range(count)]
