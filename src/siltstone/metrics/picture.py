"""A picture: the chunks that may hold samples of some series and range, at one moment.

Made under the engine's lock, read without it. Rows are sorted by series and time; a row's chunk
lies in `sources[places[row]]`.
"""

from __future__ import annotations

import dataclasses
import itertools
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from siltstone.metrics.arrangement import Chooser, in_order
from siltstone.metrics.chunkreader import Bytes, Held
from siltstone.metrics.registry import Ids
from siltstone.metrics.segment import RAW, Chunks, Segment, joined, picked
from siltstone.metrics.source import Times, Values

if TYPE_CHECKING:
    from siltstone.metrics.engine import Engine

Numbers = npt.NDArray[np.int64]


@dataclasses.dataclass
class HeadSamples:
    """What the heads of these series hold, series by series: in order, then what came late."""

    times: Times
    values: Values
    counts: Numbers  # of each series
    late: Numbers


@dataclasses.dataclass
class Picture:
    """See the module's docstring."""

    ids: Ids
    rows: Chunks
    places: Numbers
    sources: Sequence[Bytes]
    head: HeadSamples
    firsts: Numbers  # of each id: its rows are [first, last)
    lasts: Numbers
    held: Held = dataclasses.field(default_factory=dict)  # blocks that were read for it

    def spans(self, most: int, most_series: int = sys.maxsize) -> list[tuple[int, int]]:
        """The ids [first, last) of groups of about `most` samples."""
        if self.ids.size == 1:
            return [(0, 1)]
        counts = np.concatenate([[0], np.cumsum(self.rows["count"], dtype=np.int64)])
        sizes = counts[self.lasts] - counts[self.firsts]
        sizes += self.head.counts + self.head.late
        ends = np.diff(np.cumsum(sizes) // most) > 0
        ends |= np.diff(np.arange(sizes.size) // most_series) > 0
        bounds = [0, *(np.flatnonzero(ends) + 1).tolist(), sizes.size]
        return list(itertools.pairwise(bounds))

    def owners(self) -> Numbers:
        """Of each row, whose it is, as an index into `ids`."""
        order = np.argsort(self.ids)
        return order[np.searchsorted(self.ids[order], self.rows["series"])]

    def after(self, times: Numbers) -> Picture:
        """Without the chunks that end before their series' time."""
        kept = self.rows["end_ms"] >= times[self.owners()]
        if kept.all():
            return self
        rows, places = picked(self.rows, np.flatnonzero(kept)), self.places[kept]
        return sorted_picture(self.ids, rows, places, self.sources, self.head)


def picture_of(
    engine: Engine, ids: Ids, start: int, end: int, kinds: Sequence[int],
    live: bool | None = None,
) -> Picture:  # fmt: skip
    """What there is of these series; `live`: also what is not in segments yet, by default with
    raw data. Indexes are read before that: a thread that reads one needs the engine's lock."""
    live = RAW in kinds if live is None else live
    indexes: dict[int, Chunks] = {}
    while True:
        for segment in near(engine, start, end, kinds):
            if segment.sealed and segment.version not in indexes:
                indexes[segment.version] = engine.reader.chunks.index(segment)
        with engine.lock:
            segments = near(engine, start, end, kinds)
            if any(one.sealed and one.version not in indexes for one in segments):
                continue  # one was sealed meanwhile
            head, pending = _no_head(ids), []
            if live:
                head = HeadSamples(*engine.head.snapshot(np.ascontiguousarray(ids), start, end))
                engine.gather()
                pending = list(engine.pending)
        return _picture(ids, start, end, segments, indexes, pending, head)


def near(engine: Engine, start: int, end: int, kinds: Sequence[int]) -> list[Segment]:
    """The segments of these kinds that touch the range."""
    return [
        segment
        for segment in engine.segments.values()
        if segment.kind in kinds and segment.start_ms <= end and segment.end_ms >= start
    ]


def _no_head(ids: Ids) -> HeadSamples:
    none = np.zeros(ids.size, np.int64)
    return HeadSamples(np.empty(0, np.int64), np.empty(0, np.float64), none, none)


def _picture(
    ids: Ids, start: int, end: int, segments: list[Segment], indexes: dict[int, Chunks],
    pending: list[Any], head: HeadSamples,
) -> Picture:  # fmt: skip
    wanted = Chooser(ids, start, end)
    sources: list[Bytes] = []
    rows: list[Chunks] = []
    places = [np.empty(0, np.int64)]

    def take(chunks: Chunks, source: Bytes) -> None:
        found = wanted.places(chunks.view(np.uint8))
        if found.size:
            rows.append(picked(chunks, found))
            if not sources or sources[-1] is not source:
                sources.append(source)
            places.append(np.full(found.size, len(sources) - 1))

    for segment in segments:
        if segment.sealed:
            take(indexes[segment.version], segment)
        for part in segment.parts:
            take(part, segment)
    for chunks, data in pending:
        take(chunks, data)
    found, where = joined(rows), np.concatenate(places)
    return sorted_picture(ids, found, where, sources, head)


def sorted_picture(
    ids: Ids, rows: Chunks, places: Numbers, sources: Sequence[Bytes],
    head: HeadSamples | None = None,
) -> Picture:  # fmt: skip
    """Of rows in any order. `head`: of these ids in this order; None: they have none."""
    if not in_order(rows.view(np.uint8)):  # as those of one series often are
        order = np.lexsort((rows["start_ms"], rows["series"]))
        rows, places = picked(rows, order), places[order]
    series = np.ascontiguousarray(rows["series"])
    firsts, lasts = np.searchsorted(series, ids, "left"), np.searchsorted(series, ids, "right")
    return Picture(ids, rows, places, sources, head or _no_head(ids), firsts, lasts)
