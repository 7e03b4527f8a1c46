"""Reading: from matchers and a range to series, out of segments, pending chunks and heads.

A reader takes a picture of what there is (picture.py), then reads without locks, some hundred
thousand samples at a time: segments never change, and one that is dropped meanwhile and written
over fails its checksums, whereupon the reader takes a new picture. Samples of equal times are
decided by their chunk's sequence; the head is above all chunks, and what came late above the head.
Damage reads as a gap, is counted once, and is what `verify` reports.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np
import numpy.typing as npt

from siltstone.errors import Corruption, DeviceFailed, LimitReached
from siltstone.metrics import chunks as codecs
from siltstone.metrics.arrangement import Arrangement
from siltstone.metrics.chunkreader import ChunkReader, Outdated
from siltstone.metrics.decoding import trim
from siltstone.metrics.older import with_older
from siltstone.metrics.picture import Picture, near, picture_of
from siltstone.metrics.registry import Ids, Matched
from siltstone.metrics.segment import FRESH, RAW, TIER, Chunks, Segment
from siltstone.metrics.source import Latest, Matcher, Points, PointSeries, Series, Times, Values

if TYPE_CHECKING:
    from siltstone.metrics.engine import Engine

A = TypeVar("A")

TRIES: Final = 5
ABOVE: Final = np.uint64(1 << 63)  # sequence of the head's samples
EVER: Final = 1 << 62
# Decoded at once: 4 MiB, which the allocator keeps for the next group. (A rate over 6.5 M samples
# took 98 ms with 2^18, 112 with 2^20, 152 with 2^15.) Of a select, which keeps all: few pieces.
GROUP_SAMPLES: Final = 1 << 18
SELECT_SAMPLES: Final = 1 << 22
GROUP_SERIES: Final = 256  # of few samples each: a group is one thread's work


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


@dataclasses.dataclass(slots=True)
class Run:
    """The samples of one series that were asked for, and the chunks that they came from."""

    times: Times
    values: Values
    rows: Chunks
    good: npt.NDArray[np.bool_]  # whether each chunk is sound
    plain: bool  # nothing was left out: chunks and head follow one another


class Reader:
    """See the module's docstring."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.chunks = ChunkReader(engine)

    # What callers ask for

    def select(self, matchers: Sequence[Matcher], start: int, end: int) -> list[Series]:
        """Series with samples within [start, end], by their labels."""
        batches = self.each(matchers, start, end, list, most=(SELECT_SAMPLES, sys.maxsize))
        return [one for batch in batches for one in batch]

    def each(
        self, matchers: Sequence[Matcher], start: int, end: int,
        function: Callable[[list[Series]], A], *, stand_in: bool = False,
        most: tuple[int, int] = (GROUP_SAMPLES, GROUP_SERIES),
    ) -> Iterator[A]:  # fmt: skip
        """`function` of what `select` gives, as much at a time as is decoded at once, in the
        thread that decoded it; in order. `stand_in`: with what tiers have of expired samples
        (older.py)."""
        start = max(start, self._engine.retention.horizon_ms())
        self._engine.counters["reads"] += 1

        def of_some(ids: Ids, batch: list[Series]) -> list[A]:
            if stand_in and start <= self._engine.retention.dropped_until_ms:
                batch = with_older(self._engine, ids, batch, start, end)
            some = [series for series in batch if series.times.size]
            return [function(some)] if some else []

        with self.reading():
            found = self.match(matchers, start, end, (FRESH, RAW))
            done = 0  # series
            for _ in range(TRIES):
                try:
                    groups = self._groups_of(found, done, start, end, most, of_some)
                    for count, results in groups:
                        done += count
                        yield from results
                    return
                except Outdated:
                    self._engine.counters["reads_again"] += 1
        raise too_fast()

    def _newest(self, ids: Ids, start: int, end: int) -> Iterator[tuple[int, int] | None]:
        """(time, bits of the value) of the newest sample of each id within [start, end]; of
        expired ones what stands in for it, as long as it does."""
        series = [Series({}, times, values) for times, values in self.raw(ids, start, end)]
        if series and start <= self._engine.retention.dropped_until_ms:
            coarsest = max(self._engine.settings.tiers, default=0)
            series = with_older(self._engine, ids, series, min(start, end - coarsest), end)
        for one in series:
            since = min(start, end - one.coarse[-1][1]) if one.coarse else start
            if one.times.size and one.times[-1] >= since:
                yield int(one.times[-1]), int(one.values.view(np.uint64)[-1])
            else:
                yield None

    def points_for(
        self, matchers: Sequence[Matcher], start: int, end: int, grid_ms: int
    ) -> Points | None:
        """See `QuickSource.points`. Below `tier_from_samples` of a series samples are read, which
        takes no longer and is exact to the last bit; unless some have expired."""
        steps = [step for step in self._engine.settings.tiers if grid_ms % step == 0]
        if not steps:
            return None
        if start > self._engine.retention.dropped_until_ms:
            with self.reading():
                ids = self.match(matchers, start, end, (FRESH, RAW)).ids
                rows = picture_of(self._engine, ids, start, end, (FRESH, RAW)).rows
            fewest = self._engine.settings.tier_from_samples * max(
                1, np.unique(rows["series"]).size
            )
            if int(rows["count"].sum(dtype=np.int64)) < fewest:
                return None
        number = self._engine.settings.tiers.index(steps[-1])
        self._engine.counters["tier_reads"] += 1
        return Points(steps[-1], self.tier(matchers, start, end, number))

    def _groups_of(
        self, found: Matched, done: int, start: int, end: int, most: tuple[int, int],
        function: Callable[[Ids, list[Series]], A],
    ) -> Iterator[tuple[int, A]]:  # fmt: skip
        """(how many series, `function` of them) of each group, without the first `done`."""
        ids, labels, pairs = found.ids[done:], found.labels[done:], found.pairs[done:]
        if not ids.size:
            return
        picture = picture_of(self._engine, ids, start, end, (FRESH, RAW))
        self.check_size(picture)

        def of_span(span: tuple[int, int]) -> tuple[int, A]:
            some = slice(*span)
            runs = self._group(picture, *span, start, end)
            batch = [
                Series(dict(one), run.times, run.values, both)
                for run, one, both in zip(runs, labels[some], pairs[some], strict=True)
            ]
            return len(batch), function(ids[some], batch)

        yield from self._engine.ahead.map(of_span, picture.spans(*most))

    def latest(self, matchers: Sequence[Matcher], start: int, end: int) -> Latest:
        """Of each series its newest sample within [start, end]. The head knows that of live
        series; the others' chunks are decoded."""
        engine = self._engine
        start = max(start, engine.retention.horizon_ms())
        engine.counters["reads"] += 1
        with self.reading():
            found = self.match(matchers, start, end, (FRESH, RAW))
            times, values, known = engine.head.latest(
                found.ids, end, engine.retention.dropped_until_ms
            )
            rest = np.flatnonzero(~known)
            for _ in range(TRIES):
                try:
                    for n, one in zip(rest, self._newest(found.ids[rest], start, end), strict=True):
                        if one is not None:
                            times[n], values.view(np.uint64)[n], known[n] = *one, True
                    break
                except Outdated:
                    engine.counters["reads_again"] += 1
            else:
                raise too_fast()
            here = known & (times >= start)
            here[rest] |= known[rest]
        if here.all():
            return Latest(found.pairs, times, values)
        rows = np.flatnonzero(here)
        return Latest([found.pairs[n] for n in rows.tolist()], times[rows], values[rows])

    def known(
        self, matchers: Sequence[Matcher], start: int, end: int
    ) -> tuple[Ids, list[dict[str, str]]]:
        """(ids, labels) of the series with chunks or points that touch the range, or in memory."""
        start = max(start, self._engine.retention.horizon_ms())
        kinds = (FRESH, RAW, *range(TIER, TIER + len(self._engine.settings.tiers)))
        with self.reading():
            found = self.match(matchers, start, end, kinds)
            if not found.ids.size:
                return found.ids, []
            picture = picture_of(self._engine, found.ids, start, end, kinds)
            here = (picture.head.counts + picture.head.late > 0) | (picture.lasts > picture.firsts)
        return found.ids[here], [dict(found.labels[n]) for n in np.flatnonzero(here).tolist()]

    def match(
        self, matchers: Sequence[Matcher], start: int, end: int, kinds: Sequence[int]
    ) -> Matched:
        """The series that match, by their labels. Indexes of the range's segments are loaded
        first, so that their series are known."""
        for segment in near(self._engine, start, end, kinds):
            self.chunks.index(segment)
        with self._engine.lock:
            return self._engine.registry.select(matchers)

    def reading(self) -> _Reading:
        """While it is open, no series leaves the registry, and merges let it go first."""
        return _Reading(self._engine)

    # Raw samples

    def raw(self, ids: Ids, start: int, end: int) -> Iterator[tuple[Times, Values]]:
        """(times, values) of each id, in their order. Outdated when the picture is."""
        if ids.size:
            picture = picture_of(self._engine, ids, start, end, (FRESH, RAW))
            self.check_size(picture)
            for run in self.runs(picture, start, end):
                yield run.times, run.values

    def raw_from(
        self, ids: Ids, starts: npt.NDArray[np.int64], end: int
    ) -> Iterator[tuple[Times, Values]]:
        """The same, of each from its own start on."""
        if ids.size:
            low = int(starts.min())
            picture = picture_of(self._engine, ids, low, end, (FRESH, RAW)).after(starts)
            for start, run in zip(starts.tolist(), self.runs(picture, low, end), strict=True):
                first = np.searchsorted(run.times, start)
                yield run.times[first:], run.values[first:]

    def check_size(self, picture: Picture) -> None:
        total = int(picture.rows["count"].sum(dtype=np.int64)) + picture.head.times.size
        if total > self._engine.settings.select_samples_max:
            raise LimitReached(
                f"about {total} samples: select_samples_max allows "
                f"{self._engine.settings.select_samples_max}; ask for less"
            )

    def runs(self, picture: Picture, start: int = -EVER, end: int = EVER) -> Iterator[Run]:
        """A run for each id of the picture, in order."""
        for span in picture.spans(GROUP_SAMPLES):
            yield from self._group(picture, *span, start, end)

    def _group(
        self, picture: Picture, first: int, last: int, start: int, end: int
    ) -> Iterator[Run]:
        """The runs of the picture's ids [first, last)."""
        head = picture.head
        group = Arrangement(
            picture.rows, picture.places, picture.firsts[first:last], picture.lasts[first:last],
            head.counts[first:last], head.late[first:last],
        )  # fmt: skip
        times, values = np.empty(group.total, np.int64), np.empty(group.total, np.float64)
        good = self.chunks.decode(
            group.rows, group.places, picture.sources, group.at, times, values, picture.held
        )
        if head.times.size:
            before = int(head.counts[:first].sum() + head.late[:first].sum()) if first else 0
            group.put_heads(times, values, head.times, head.values, before)
        mixed = group.mixed(times, good.view(np.uint8))
        bounds = trim(times, group.bases, group.ends, start, end)
        any_gone = bool(self._engine.tombstones)
        edges = group.edges.tolist()
        for number, ((low, high), is_mixed) in enumerate(zip(bounds, mixed, strict=True)):
            part = slice(edges[number], edges[number + 1])
            rows = group.rows[part]
            gone = self.tombstones_of(rows, start, end) if any_gone else []
            if not (is_mixed or gone):
                yield Run(times[low:high], values[low:high], rows, good[part], True)
                continue
            all_of_it = slice(group.bases[number], group.ends[number])
            late = int(head.late[first + number])
            kept = keep_last(times[all_of_it], values[all_of_it], rows, good[part], gone, late)
            within = slice(*np.searchsorted(kept[0], (start, end + 1)))
            yield Run(kept[0][within], kept[1][within], rows, good[part], False)

    def tombstones_of(
        self, rows: Chunks, start: int = -EVER, end: int = EVER
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

    def rows_of(self, id: int) -> Chunks:
        """The descriptors of all raw chunks of a series."""
        return picture_of(self._engine, np.array([id], np.uint32), -EVER, EVER, (FRESH, RAW)).rows

    # Tiers

    def select_tier(
        self, matchers: Sequence[Matcher], start: int, end: int, tier: int
    ) -> list[TierSeries]:
        """Points of a tier whose buckets end within [start, end] and have numbers."""
        found = []
        for one in self.tier(matchers, start, end, tier):
            some = one.count > 0
            if some.any():
                found.append(
                    TierSeries(
                        one.labels, one.ends[some], one.sum[some], one.min[some], one.max[some],
                        one.count[some],
                    )
                )  # fmt: skip
        return found

    def tier(
        self, matchers: Sequence[Matcher], start: int, end: int, tier: int
    ) -> list[PointSeries]:
        """All points of a tier whose buckets end within [start, end]."""
        step = self._engine.settings.tiers[tier]
        start = max(start, self._engine.retention.horizon_ms())
        kinds = (FRESH, RAW, TIER + tier)
        with self.reading():
            for _ in range(TRIES):
                try:
                    found = self.match(matchers, start - step, end, kinds)
                    points = self._engine.merger.tiers.read(found.ids, start, end, tier)
                    every = zip(found.labels, found.pairs, points, strict=True)
                    return [
                        PointSeries(dict(labels), pairs, ends, **columns)
                        for labels, pairs, (ends, columns) in every
                        if ends.size
                    ]
                except Outdated:
                    self._engine.counters["reads_again"] += 1
        raise too_fast()

    def points(
        self, ids: Ids, start: int, end: int, tier: int
    ) -> Iterator[tuple[Times, dict[str, npt.NDArray[Any]]]]:
        """The stored points of each id, in order of time; of equal times the newest."""
        step = self._engine.settings.tiers[tier]
        picture = picture_of(self._engine, ids, start, end, (TIER + tier,))
        both = zip(picture.firsts.tolist(), picture.lasts.tolist(), strict=True)
        for first, last in both:
            rows = picture.rows[first:last]
            gone = self.tombstones_of(rows, start - step, end)
            parts: list[Any] = []
            for n, row in enumerate(rows, first):
                source = picture.sources[picture.places[n]]
                assert isinstance(source, Segment)
                found = self._points(source, row)
                if found is not None:
                    parts.append((*found, np.full(found[0].size, row["sequence"], np.uint64)))
            yield _merged_points(parts, gone, step, start, end)

    def _points(
        self, segment: Segment, row: Any
    ) -> tuple[Times, dict[str, npt.NDArray[Any]]] | None:
        """The points of one chunk; None when it is damaged."""
        offset = int(row["offset"])
        try:
            data = self.chunks.chunk(segment, offset, int(row["size"]), int(row["crc"]))
            return codecs.decode_points(data, int(row["count"]))
        except Corruption:
            self.chunks.note_damage(segment, offset)
            return None


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


def too_fast() -> DeviceFailed:
    return DeviceFailed(5, "segments were dropped as fast as they were read: ask for less")


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
        return np.empty(0, np.int64), {
            name: np.empty(0, kind) for name, kind in codecs.FIELDS.items()
        }
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
