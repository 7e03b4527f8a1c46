"""Retention: what goes when, so that the quota is never exceeded and nothing outlives its time.

The device has a fixed number of slots; a segment is opened only into a free one. Before one is
needed, the oldest sealed segment of the kind that is furthest above its share is dropped: by size,
raw data has a share of 1, tier k of 1/2^k, of what the journal leaves. By time, a segment goes when
its newest sample is too old; what it holds too much until then is hidden from readers.

Before raw data goes, the tiers are brought up to it. The caller holds the engine's work lock.
"""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING, Final

import numpy as np

from siltstone.config import format_size
from siltstone.errors import ConfigError, EnvironmentFailure
from siltstone.log.superblock import FIRST_DATA_OFFSET, Superblock
from siltstone.metrics.change import Change
from siltstone.metrics.segment import FRESH, RAW, TIER, Segment

if TYPE_CHECKING:
    from siltstone.metrics.engine import Engine

KEPT_FOR_CHECKPOINTS: Final = 2  # the log's own: slots_kept
KEPT_FOR_MERGING: Final = 2
_QUOTA: Final = struct.Struct("<I")  # the engine's data in the superblock: slots; 0 = all


def quota_of(superblock: Superblock) -> int:
    """Slots that may be used, of a file that may have more of them."""
    (slots,) = _QUOTA.unpack_from(superblock.engine_data)
    return slots or superblock.segment_count


class Retention:
    """See the module's docstring."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.making_room = False  # the kept slots are for what that takes
        self.protected: set[int] = set()  # versions that a merge is reading
        self.dropped_until_ms = -(1 << 62)  # of raw data: what the head remembers may be gone

    def horizon_ms(self) -> int:
        """Samples before it are gone; a very small number without a retention time."""
        seconds = self._engine.settings.retention_time
        if seconds is None:
            return -(1 << 62)
        return self._engine.clock.now_ms() - round(seconds * 1000)

    def expire(self) -> int:
        """Drop what is too old altogether; how many segments."""
        horizon = self.horizon_ms()
        with self._engine.work:
            old = [
                segment
                for segment in self._engine.segments.values()
                if segment.sealed and segment.end_ms < horizon
            ]
            for segment in old:
                self._drop(segment)
            return len(old)

    def keep_quota(self) -> None:
        """After opening: the quota of the settings counts from now on. ConfigError when what is
        stored does not fit and may not be dropped."""
        engine = self._engine
        slots = min(engine.settings.slots, engine.device.segment_count)
        before = quota_of(engine.device.superblock)
        engine.log.slots_max = slots
        if slots < before and engine.log.slots_free < KEPT_FOR_CHECKPOINTS + KEPT_FOR_MERGING:
            if not engine.settings.retention_drop:
                raise self._would_drop()
            with engine.work:
                self.make_room(0)
        if slots != before:
            data = _QUOTA.pack(slots).ljust(len(engine.device.superblock.engine_data), b"\0")
            engine.device.write_superblock(engine_data=data)

    def _would_drop(self) -> ConfigError:
        engine, size = self._engine, self._engine.settings.segment_size
        engine.log.slots_max = engine.device.segment_count
        used = engine.device.segment_count - engine.log.slots_free
        enough = (used + KEPT_FOR_CHECKPOINTS + KEPT_FOR_MERGING) * size + FIRST_DATA_OFFSET
        oldest = min((one.start_ms for one in engine.segments.values()), default=0)
        return ConfigError(
            f"retention_size {format_size(engine.settings.retention_size)} is less than the "
            f"{format_size(used * size)} that are stored (from {np.datetime64(oldest, 'ms')} on): "
            f"the oldest would be deleted. Give {format_size(enough)} or more to keep all, or "
            "retention_drop=True to have that done"
        )

    def make_room(self, wanted: int) -> None:
        """So many slots for what comes next, beside those that are kept; before a change begins.
        What making room takes itself may use the kept ones. EnvironmentFailure: it cannot be."""
        if self.making_room:
            return
        self.making_room = True
        try:
            self._make_room(KEPT_FOR_CHECKPOINTS + KEPT_FOR_MERGING + wanted)
        finally:
            self.making_room = False

    def _make_room(self, wanted: int) -> None:
        checkpoints = 0
        self._engine.held.release()
        while self._engine.log.slots_free < wanted:
            journal_is_long = self._journal_slots() > 2 * self._engine.journal_segments_max + 4
            if journal_is_long and checkpoints < 2:
                self._engine.checkpoint()
                checkpoints += 1
            elif self.drop_oldest():
                continue
            elif checkpoints < 2:
                self._engine.checkpoint()
                checkpoints += 1
            elif self._engine.held.give_oldest():
                continue
            elif self._engine.log.slots_free > KEPT_FOR_CHECKPOINTS:
                return  # tight, but it goes on
            else:
                raise self.full()

    def drop_oldest(self) -> bool:
        """Whether there was a segment to drop."""
        victim = self._victim()
        if victim is None:
            return False
        self._before_raw_goes(victim)
        if victim.version in self._engine.segments:
            self._drop(victim)
        return True

    def _journal_slots(self) -> int:
        return (
            self._engine.settings.slots - self._engine.log.slots_free - len(self._engine.segments)
        )

    def full(self) -> EnvironmentFailure:
        return EnvironmentFailure(
            errno.ENOSPC,
            f"retention_size {self._engine.settings.retention_size} has no room for the journal",
        )

    def _victim(self) -> Segment | None:
        """The oldest sealed segment of the kind furthest above its share."""
        kinds = [RAW, *range(TIER, TIER + len(self._engine.settings.tiers))]
        shares = {kind: 0.5 ** max(0, kind - TIER + 1) for kind in kinds}
        used = dict.fromkeys(kinds, 0)
        sealed: dict[int, list[Segment]] = {kind: [] for kind in kinds}
        for segment in self._engine.segments.values():
            kind = RAW if segment.kind == FRESH else segment.kind
            used[kind] += 1
            if segment.sealed and segment.version not in self.protected:
                sealed[kind].append(segment)
        kinds = [kind for kind in kinds if sealed[kind]]
        if not kinds:
            return None
        kind = max(kinds, key=lambda one: (used[one] / shares[one], -one))
        # Fresh segments are dropped only when nothing merged is left of the raw data.
        merged = [segment for segment in sealed[kind] if segment.kind != FRESH]
        return min(merged or sealed[kind], key=lambda one: (one.end_ms, one.version))

    def _before_raw_goes(self, segment: Segment) -> None:
        if segment.kind in (RAW, FRESH):
            self._engine.merger.derive_before_drop(segment)

    def _drop(self, segment: Segment) -> None:
        change = Change(self._engine)
        change.drop(segment)
        change.commit()
        counters = self._engine.counters
        counters["segments_dropped"] += 1
        counters["dropped_bytes"] += segment.end
        counters["dropped_samples"] += segment.samples
        self.note_dropped(segment)

    def note_dropped(self, segment: Segment) -> None:
        if segment.kind in (RAW, FRESH):
            self.dropped_until_ms = max(self.dropped_until_ms, segment.end_ms)

    def forecast(self) -> dict[str, float]:
        """What the data at hand say: bytes a second of raw data, and how long the quota lasts."""
        segments = [one for one in self._engine.segments.values() if one.kind in (RAW, FRESH)]
        if not segments:
            return {"bytes_per_second": 0.0, "seconds": 0.0}
        span = max(one.end_ms for one in segments) - min(one.start_ms for one in segments)
        rate = sum(one.end for one in segments) / max(span / 1000, 1.0)
        shares = 1 + sum(0.5 ** (k + 1) for k in range(len(self._engine.settings.tiers)))
        room = self._engine.settings.retention_size / shares
        return {"bytes_per_second": rate, "seconds": room / rate if rate else 0.0}
