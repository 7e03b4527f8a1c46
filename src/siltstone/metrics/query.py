"""Reading: from matchers and a range to series, out of segments, pending chunks and heads.

A reader takes a picture of what there is (the table of segments, pending pieces, the heads'
samples), then reads without locks: segments never change, and one that is dropped meanwhile and
written over fails its checksums, whereupon the reader takes a new picture. Samples of equal times
are decided by their chunk's sequence; the head is above all chunks, and what came late above the
head. Damage reads as a gap, is counted once, and is what `verify` reports.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from siltstone.errors import Corruption, DeviceFailed, LimitReached, SnapshotTooOld
from siltstone.metrics import chunks as codecs
from siltstone.metrics.head import CHUNK
from siltstone.metrics.keys import labels_of
from siltstone.metrics.readcache import BLOCK_BYTES
from siltstone.metrics.registry import Ids
from siltstone.metrics.segment import (
    FRESH,
    RAW,
    TIER,
    Chunks,
    Segment,
    load_index,
    read_header,
    salvage,
)
from siltstone.metrics.source import Matcher, Series

if TYPE_CHECKING:
    from siltstone.metrics.engine import Engine

TRIES: Final = 5
ABOVE: Final = np.uint64(1 << 63)  # sequence of the head's samples
Times = npt.NDArray[np.int64]
Values = npt.NDArray[np.float64]


class Outdated(Exception):
    """A segment of the picture is gone."""


@dataclasses.dataclass(frozen=True)
class TierSeries:
    """The points of one series in a tier: `times` are the ends of buckets (t - step, t]."""

    labels: Mapping[str, str]
    times: Times
    sum: Values
    min: Values
    max: Values
    count: Times

    @property
    def seconds(self) -> Values:
        return self.times / 1000.0

    @property
    def values(self) -> Values:
        """The means."""
        return self.sum / self.count


@dataclasses.dataclass
class _Picture:
    """Chunks that may hold samples of the range, and where each of them lies."""

    rows: Chunks
    places: list[int]  # index into `sources`
    sources: list[Segment | npt.NDArray[np.uint8]]
    head: tuple[Times, Values, Times, Times] | None

    def __post_init__(self) -> None:
        # Columns as lists: one look into a structured array costs as much as ten into a list.
        self.offsets = self.rows["offset"].tolist()
        self.sizes = self.rows["size"].tolist()
        self.crcs = self.rows["crc"].tolist()
        self.codecs = self.rows["codec"].tolist()
        self.counts = self.rows["count"].tolist()


class Reader:
    """See the module's docstring."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._damaged: set[tuple[int, int]] = set()

    # What callers ask for

    def select(self, matchers: Sequence[Matcher], start: int, end: int) -> list[Series]:
        """Series with samples within [start, end], by their labels."""
        start = max(start, self._engine.retention.horizon_ms())
        with self.reading():
            self._engine.counters["reads"] += 1
            for _ in range(TRIES):
                try:
                    found = self._series(matchers, start, end)
                    return [series for series in found if series.times.size]
                except Outdated:
                    self._engine.counters["reads_again"] += 1
        raise DeviceFailed(5, "segments were dropped as fast as they were read: ask for less")

    def _series(self, matchers: Sequence[Matcher], start: int, end: int) -> list[Series]:
        ids, keys = self.match(matchers, start, end, (FRESH, RAW))
        return [
            Series(labels, times, values)
            for labels, (times, values) in zip(keys, self.raw(ids, start, end), strict=True)
        ]

    def known(
        self, matchers: Sequence[Matcher], start: int, end: int
    ) -> tuple[Ids, list[dict[str, str]]]:
        """(ids, labels) of the series with chunks or points that touch the range, or in memory."""
        start = max(start, self._engine.retention.horizon_ms())
        kinds = (FRESH, RAW, *range(TIER, TIER + len(self._engine.settings.tiers)))
        with self.reading():
            ids, labels = self.match(matchers, start, end, kinds)
            if not ids.size:
                return ids, labels
            picture = self._picture(ids, start, end, kinds)
            assert picture.head is not None
            _, _, counts, late = picture.head
            here = (counts + late > 0) | np.isin(ids, picture.rows["series"])
        return ids[here], [one for one, is_here in zip(labels, here, strict=True) if is_here]

    def match(
        self, matchers: Sequence[Matcher], start: int, end: int, kinds: Sequence[int]
    ) -> tuple[Ids, list[dict[str, str]]]:
        """(ids, labels) of the series that match, by their labels. Indexes of the range's segments
        are loaded first, so that their series are known."""
        for segment in self._near(start, end, kinds):
            self.index(segment)
        with self._engine.lock:
            ids = self._engine.registry.match(matchers)
            keys = [self._engine.registry.key(int(id)) for id in ids]
        labels = [labels_of(key) for key in keys]
        order = sorted(range(len(labels)), key=lambda n: list(labels[n].items()))
        return ids[order] if order else ids, [labels[n] for n in order]

    def reading(self) -> _Reading:
        """While it is open, no series leaves the registry, and merges let it go first."""
        return _Reading(self._engine)

    # Raw samples

    def raw(self, ids: Ids, start: int, end: int) -> Iterator[tuple[Times, Values]]:
        """(times, values) of each id, in their order. Outdated when the picture is."""
        if not ids.size:
            return
        picture = self._picture(ids, start, end, (FRESH, RAW))
        assert picture.head is not None
        head_times, head_values, counts, late = picture.head
        head_ends = np.cumsum(counts + late)
        rows = picture.rows
        firsts = np.searchsorted(rows["series"], ids, "left").tolist()
        lasts = np.searchsorted(rows["series"], ids, "right").tolist()
        total = int(rows["count"].sum(dtype=np.int64)) + head_times.size
        if total > self._engine.settings.select_samples_max:
            raise LimitReached(
                f"about {total} samples: select_samples_max allows "
                f"{self._engine.settings.select_samples_max}; ask for less"
            )
        for n, (first, last) in enumerate(zip(firsts, lasts, strict=True)):
            low = int(head_ends[n] - counts[n] - late[n])
            newest = slice(low, int(head_ends[n]))
            yield self._one(
                picture, first, last, head_times[newest], head_values[newest], int(late[n]),
                start, end,
            )  # fmt: skip

    def _picture(self, ids: Ids, start: int, end: int, kinds: Sequence[int]) -> _Picture:
        """What there is of these series, at one moment. Indexes are read before that: a thread
        that reads one needs the engine's lock."""
        engine = self._engine
        indexes: dict[int, Chunks] = {}
        while True:
            for segment in self._near(start, end, kinds):
                if segment.sealed and segment.version not in indexes:
                    indexes[segment.version] = self.index(segment)
            with engine.lock:
                near = self._near(start, end, kinds)
                if any(one.sealed and one.version not in indexes for one in near):
                    continue  # one was sealed meanwhile
                if RAW not in kinds:
                    return _found(ids, start, end, near, indexes, [], None)
                head = engine.head.snapshot(np.ascontiguousarray(ids), start, end)
                engine.gather()
                pending = list(engine.pending)
            return _found(ids, start, end, near, indexes, pending, head)

    def _near(self, start: int, end: int, kinds: Sequence[int]) -> list[Segment]:
        return [
            segment
            for segment in self._engine.segments.values()
            if segment.kind in kinds and segment.start_ms <= end and segment.end_ms >= start
        ]

    def _one(
        self, picture: _Picture, first: int, last: int, head_times: Times, head_values: Values,
        late: int, start: int, end: int,
    ) -> tuple[Times, Values]:  # fmt: skip
        """One series: its chunks' samples and the head's, merged."""
        rows = picture.rows[first:last]
        sizes = picture.counts[first:last]
        total = sum(sizes)
        times = np.empty(total + head_times.size, np.int64)
        values = np.empty(times.size, np.float64)
        good = np.ones(len(sizes), np.bool_)
        at = 0
        for n, size in enumerate(sizes):
            codec = picture.codecs[first + n]
            data = self._data(picture, first + n)
            good[n] = data is not None and self._decoded(
                picture, first + n, lambda: codecs.decode_into(
                    codec, data, times[at : at + size], values[at : at + size]  # noqa: B023
                )
            )  # fmt: skip
            at += size
        times[total:] = head_times
        values.view(np.uint64)[total:] = head_values.view(np.uint64)
        ends = rows["end_ms"]
        apart = not late and bool((rows["start_ms"][1:] > ends[:-1]).all())
        if apart and head_times.size and len(sizes):
            apart = bool(head_times[0] > ends[-1])
        gone = self.tombstones_of(rows, start, end)
        if not (apart and good.all() and not gone):
            times, values = keep_last(times, values, rows, good, gone, late)
        low, high = np.searchsorted(times, start), np.searchsorted(times, end, "right")
        return times[low:high], values[low:high]

    def tombstones_of(
        self, rows: Chunks, start: int = -(1 << 62), end: int = 1 << 62
    ) -> list[tuple[int, int, int]]:
        """(start, end, sequence) of the deletions that touch these chunks of one series."""
        tombstones = self._engine.tombstones
        if not tombstones or not rows.size:
            return []
        key = self._engine.registry.key(int(rows["series"][0]))
        return [
            (one.start_ms, one.end_ms, one.sequence)
            for one in tombstones
            if one.start_ms <= end and one.end_ms >= start and key in one.keys
        ]

    def _data(self, picture: _Picture, n: int) -> bytes | None:
        """The bytes of that chunk; None when they are damaged."""
        source = picture.sources[picture.places[n]]
        offset, size = picture.offsets[n], picture.sizes[n]
        if not isinstance(source, Segment):
            return source[offset : offset + size].tobytes()
        try:
            return self.chunk(source, offset, size, picture.crcs[n])
        except Corruption:
            self._note_damage(source, offset)
            return None

    def _decoded(self, picture: _Picture, n: int, decode: Callable[[], None]) -> bool:
        try:
            decode()
        except Corruption:
            source = picture.sources[picture.places[n]]
            assert isinstance(source, Segment)
            self._note_damage(source, picture.offsets[n])
            return False
        return True

    def _note_damage(self, segment: Segment, offset: int) -> None:
        """Counted once a chunk. Outdated when the segment is simply gone."""
        if segment.version not in self._engine.segments:
            raise Outdated
        if self._engine.settings.read_only:
            self._check_still_there(segment)
        if (segment.version, offset) not in self._damaged:
            self._damaged.add((segment.version, offset))
            self._engine.counters["corrupt_chunks"] += 1

    def _check_still_there(self, segment: Segment) -> None:
        """Beside a writer: damage, or dropped by it?"""
        try:
            read_header(self._engine.device, segment)
        except Corruption:
            raise SnapshotTooOld(
                "the writer has dropped what this read-only opening saw: refresh() it"
            ) from None

    def rows_of(self, id: int) -> Chunks:
        """The descriptors of all raw chunks of a series."""
        ids = np.array([id], np.uint32)
        return self._picture(ids, -(1 << 62), 1 << 62, (FRESH, RAW)).rows

    # Bytes

    def chunk(self, segment: Segment, offset: int, size: int, crc: int) -> bytes:
        """A chunk's bytes, checked."""
        self._engine.counters["chunk_reads"] += 1
        if segment.sealed:
            data = self._blocks(segment, offset, size)
        else:
            data = self._read(segment, offset, size)
        if codecs.checksum(data, segment.salt, segment.version, offset) != crc:
            where = self._engine.device.handle.describe(segment.slot, offset)
            raise Corruption(f"the chunk at {where} fails its checksum", path=where, offset=offset)
        return data

    def _blocks(self, segment: Segment, offset: int, size: int) -> bytes:
        first, last = offset // BLOCK_BYTES, (offset + size - 1) // BLOCK_BYTES
        parts = []
        for number in range(first, last + 1):
            base = number * BLOCK_BYTES

            def read(base: int = base) -> tuple[bytes, int]:
                data = self._read(segment, base, min(BLOCK_BYTES, segment.end - base))
                return data, len(data)

            block = self._engine.cache.get((segment.version, number), read)
            parts.append(block[max(0, offset - base) : offset + size - base])
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _read(self, segment: Segment, offset: int, size: int) -> bytes:
        try:
            return self._engine.device.read(segment.slot, offset, size)
        except DeviceFailed as error:
            self._engine.counters["read_errors"] += 1
            if error.errno == 61:  # ENODATA: the file ends before it
                raise Corruption(str(error), offset=offset) from None
            raise

    def index(self, segment: Segment) -> Chunks:
        """The descriptors of a sealed segment; of one that is not sealed it has them itself."""
        if not segment.sealed:
            return np.empty(0, CHUNK)
        engine = self._engine

        def read() -> tuple[Chunks, int]:
            engine.counters["index_reads"] += 1
            try:
                chunks = load_index(engine.device, segment, engine.intern)
            except Corruption:
                if segment.version not in engine.segments:
                    return np.empty(0, CHUNK), 0
                if engine.settings.read_only:
                    self._check_still_there(segment)
                engine.counters["corrupt_indexes"] += 1
                chunks = salvage(engine.device, segment, engine.intern)
            return chunks, int(chunks.nbytes)

        found: Chunks = engine.cache.get((segment.version, -1), read)
        return found

    # Tiers

    def select_tier(
        self, matchers: Sequence[Matcher], start: int, end: int, tier: int
    ) -> list[TierSeries]:
        """Points of a tier whose buckets end within [start, end]."""
        step = self._engine.settings.tiers[tier]
        start = max(start, self._engine.retention.horizon_ms())
        with self.reading():
            for _ in range(TRIES):
                try:
                    kinds = (FRESH, RAW, TIER + tier)
                    ids, keys = self.match(matchers, start - step, end, kinds)
                    found = self._engine.merger.tiers.read(ids, start, end, tier)
                    both = zip(keys, found, strict=True)
                    return [
                        TierSeries(labels, times, **columns)
                        for labels, (times, columns) in both
                        if times.size
                    ]
                except Outdated:
                    self._engine.counters["reads_again"] += 1
        raise DeviceFailed(5, "segments were dropped as fast as they were read: ask for less")

    def points(
        self, ids: Ids, start: int, end: int, tier: int
    ) -> Iterator[tuple[Times, dict[str, npt.NDArray[Any]]]]:
        """The stored points of each id, in order of time; of equal times the newest."""
        step = self._engine.settings.tiers[tier]
        picture = self._picture(ids, start, end, (TIER + tier,))
        firsts = np.searchsorted(picture.rows["series"], ids, "left").tolist()
        lasts = np.searchsorted(picture.rows["series"], ids, "right").tolist()
        for first, last in zip(firsts, lasts, strict=True):
            rows = picture.rows[first:last]
            gone = self.tombstones_of(rows, start - step, end)
            parts: list[Any] = []
            for n in range(first, last):
                data, count = self._data(picture, n), picture.counts[n]
                sequence = np.full(count, picture.rows["sequence"][n], np.uint64)
                if data is not None:
                    self._decoded(
                        picture, n, lambda: parts.append(  # noqa: B023
                            (*codecs.decode_points(data, count), sequence)  # noqa: B023
                        )
                    )  # fmt: skip
            yield _merged_points(parts, gone, step, start, end)


class _Reading:
    """While it is open, series that readers may know of stay in the registry."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __enter__(self) -> None:
        with self._engine.lock:
            self._engine.readers += 1

    def __exit__(self, *_: object) -> None:
        with self._engine.lock:
            self._engine.readers -= 1


def _found(
    ids: Ids, start: int, end: int, segments: list[Segment], indexes: dict[int, Chunks],
    pending: list[Any], head: tuple[Times, Values, Times, Times] | None,
) -> _Picture:  # fmt: skip
    """The descriptors of these series, by series and time."""
    largest = int(ids.max()) if ids.size else 0
    wanted = np.zeros(largest + 2, np.bool_)
    wanted[ids] = True
    sources: list[Any] = []
    rows, places = [np.empty(0, CHUNK)], [np.empty(0, np.int64)]

    def take(chunks: Chunks, source: Any) -> None:
        near = (chunks["start_ms"] <= end) & (chunks["end_ms"] >= start)
        near &= wanted[np.minimum(chunks["series"], largest + 1)]
        if near.any():
            rows.append(chunks[near])
            places.append(np.full(rows[-1].size, len(sources)))
            sources.append(source)

    for segment in segments:
        if segment.sealed:
            take(indexes[segment.version], segment)
        for part in segment.parts:
            take(part, segment)
    for chunks, data in pending:
        take(chunks, data)
    found, where = np.concatenate(rows), np.concatenate(places)
    order = np.lexsort((found["start_ms"], found["series"]))
    return _Picture(found[order], where[order].tolist(), sources, head)


def keep_last(
    times: Times, values: Values, rows: Chunks, good: npt.NDArray[np.bool_],
    gone: list[tuple[int, int, int]], late: int,
) -> tuple[Times, Values]:  # fmt: skip
    """In order of time, one sample each: that of the highest sequence, what came last."""
    counts = rows["count"].astype(np.int64)
    in_chunks = int(counts.sum())
    sequence = np.empty(times.size, np.uint64)
    sequence[:in_chunks] = np.repeat(rows["sequence"], counts)
    sequence[in_chunks:] = ABOVE
    sequence[times.size - late :] = ABOVE + np.uint64(1)
    kept = np.ones(times.size, np.bool_)
    kept[:in_chunks] = np.repeat(good, counts)
    for start, end, to in gone:
        kept &= (sequence > to) | (times < start) | (times > end)
    times, sequence = times[kept], sequence[kept]
    bits = values.view(np.uint64)[kept]
    order = np.lexsort((sequence, times))  # stable: of equal ones the last that came is last
    times, bits = times[order], bits[order]
    last = np.ones(times.size, np.bool_)
    last[:-1] = times[1:] != times[:-1]
    return times[last], bits[last].view(np.float64)


def _merged_points(
    parts: list[Any], gone: list[tuple[int, int, int]], step: int, start: int, end: int
) -> tuple[Times, dict[str, npt.NDArray[Any]]]:
    if not parts:
        empty = {
            name: np.empty(0, np.int64 if name == "count" else np.float64) for name in codecs.FIELDS
        }
        return np.empty(0, np.int64), empty
    times = np.concatenate([part[0] for part in parts])
    sequence = np.concatenate([part[2] for part in parts])
    columns = {name: np.concatenate([part[1][name] for part in parts]) for name in codecs.FIELDS}
    kept = (times >= start) & (times <= end)
    for low, high, to in gone:
        kept &= (sequence > to) | (times < low) | (times - step >= high)
    order = np.flatnonzero(kept)
    order = order[np.lexsort((sequence[order], times[order]))]
    ordered = times[order]
    last = np.ones(ordered.size, np.bool_)
    last[:-1] = ordered[1:] != ordered[:-1]
    picked = order[last]
    return times[picked], {name: column[picked] for name, column in columns.items()}
