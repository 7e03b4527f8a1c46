"""A change to the set of segments: written beside what counts, then made to count in one record.

Everything that writes segments goes through here (what the head sealed, merges, tiers), and so do
drops. `commit` syncs the bytes, then appends one record that names them, then publishes them in
memory; until then nobody sees anything of it, and after a crash the bytes are overwritten.
The caller holds the engine's work lock, has asked retention for room, and makes one change at a
time: a change goes on where its kind's open segment ends.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from siltstone.metrics.segment import (
    FRESH,
    Chunks,
    Segment,
    extent_bytes,
    index_bytes,
    pack_header,
)
from siltstone.metrics.state import CHANGED, EVER, Changed, pack

if TYPE_CHECKING:
    from siltstone.metrics.engine import Engine

LATE_BIT = 0x80000000
Piece = tuple[Chunks, npt.NDArray[np.uint8]]


class Change:
    """See the module's docstring."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._segments: dict[int, Segment] = {}
        self._opened: list[Segment] = []
        self._dropped: list[Segment] = []
        self._consumed: list[npt.NDArray[np.uint32]] = []
        self.written_bytes = 0

    def write(self, kind: int, chunks: Chunks, data: npt.NDArray[np.uint8]) -> None:
        """Chunks of registry ids, their offsets into `data`; into the open segment of the kind."""
        for some, bytes_ in cut(chunks, data, self._engine.extent_bytes):
            segment = self._open(kind)
            made = self._extent(segment, some, bytes_)
            if made is None:
                self.seal(segment)
                made = self._extent(self._new(kind), some, bytes_)
                assert made is not None, "a chunk is smaller than a segment"
            payload, grown = made
            self._put(grown.slot, grown.end - len(payload), payload)
            self._segments[grown.version] = grown

    def consume(self, chunks: Chunks) -> None:
        """These chunks hold samples that the journal has: a replay leaves them out."""
        pairs = np.empty((chunks.size, 2), np.uint32)
        pairs[:, 0] = chunks["series"] | np.where(chunks["flags"] & 1, LATE_BIT, 0)
        pairs[:, 1] = chunks["consumed"]
        self._consumed.append(pairs)

    def seal(self, segment: Segment) -> None:
        """No more extents: the index goes behind them."""
        payload, sealed = index_bytes(segment)
        self._put(segment.slot, segment.end, payload)
        self._segments[segment.version] = sealed

    def drop(self, segment: Segment) -> None:
        self._dropped.append(segment)

    def commit(self, moment: int = EVER, pieces: tuple[Piece, ...] = ()) -> None:
        """From now on all of it counts; `pieces` are pending no more."""
        engine = self._engine
        if self._segments:
            engine.device.sync()
        record = Changed(
            [segment.row() for segment in self._segments.values()],
            [segment.version for segment in self._dropped],
            b"".join(part.astype("<u4").tobytes() for part in self._consumed),
            moment,
            engine.head.sequence,
        )
        engine.append(CHANGED, pack(record))
        self._opened = []  # the record may reach the medium: from here on there is no way back
        engine.publish(self._segments, self._dropped, pieces)
        if self._dropped:
            engine.log.sync()  # before another use of their slots
            for segment in self._dropped:
                engine.held.give(segment.slot)

    def abandon(self) -> None:
        """Nothing of it ever was, unless its record was written. Slots go back."""
        for segment in self._opened:
            self._engine.log.give_slot(segment.slot)

    # Inside

    def _open(self, kind: int) -> Segment:
        for segment in self._segments.values():
            if segment.kind == kind and not segment.sealed:
                return segment
        gone = {segment.version for segment in self._dropped} | self._segments.keys()
        for segment in self._engine.segments.values():
            if segment.kind == kind and not segment.sealed and segment.version not in gone:
                return segment
        return self._new(kind)

    def _new(self, kind: int) -> Segment:
        engine = self._engine
        slot = engine.take_slot()
        segment = Segment(kind, slot, engine.next_version(), engine.salt())
        self._opened.append(segment)
        header = pack_header(
            segment, engine.device.segment_bytes, engine.device.uuid, engine.clock.now_ms()
        )
        self._put(slot, 0, header)
        engine.counters["segments_opened"] += 1
        return segment

    def _extent(
        self, segment: Segment, chunks: Chunks, data: npt.NDArray[np.uint8]
    ) -> tuple[bytes, Segment] | None:
        engine = self._engine
        return extent_bytes(segment, engine.device.segment_bytes, chunks, data, engine.key)

    def _put(self, slot: int, offset: int, data: bytes) -> None:
        self._engine.device.write(slot, offset, data)
        self._engine.counters["segment_write_bytes"] += len(data)
        self._engine.counters["segment_writes"] += 1
        self.written_bytes += len(data)


def cut(
    chunks: Chunks, data: npt.NDArray[np.uint8], bytes_max: int
) -> Iterator[tuple[Chunks, npt.NDArray[np.uint8]]]:
    """Pieces whose data are about as large as an extent shall be. Chunks lie one behind another."""
    ends = chunks["offset"].astype(np.int64) + chunks["size"]
    first = 0
    while first < chunks.size:
        start = int(chunks["offset"][first])
        last = int(np.searchsorted(ends, start + bytes_max, "right"))
        last = min(max(last, first + 1), chunks.size)
        some = chunks[first:last].copy()
        some["offset"] -= np.uint32(start)
        yield some, data[start : int(ends[last - 1])]
        first = last


def fresh(segments: dict[int, Segment]) -> list[Segment]:
    """Those that wait for the merge, oldest first."""
    found = [segment for segment in segments.values() if segment.kind == FRESH]
    return sorted(found, key=lambda segment: segment.version)
