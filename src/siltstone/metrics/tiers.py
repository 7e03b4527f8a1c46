"""Tiers: what the samples in each step of time came to, for as long as that fits.

A bucket is (end - step, end], its point stands at `end`, a multiple of the step: sum, min, max and
count of its numbers, how many NaN there were beside (`nans`; staleness markers are none), its last
sample whatever that is, and by how much that came before the end (`lag`, ms). With it a query gets
from points what it would get from samples (tiered.py). A bucket without samples has no point.

Points are derived from the merged raw data, so each
sample counts once, and only where no sample within the out-of-order window can still come; what
is newer is computed from raw samples when it is asked for. A deletion or a late import marks its
series, whose buckets are derived again and win by their higher sequence.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from siltstone.metrics import bucketing
from siltstone.metrics import chunks as codecs
from siltstone.metrics.courtesy import Courtesy
from siltstone.metrics.head import CHUNK, NONE_MS
from siltstone.metrics.picture import picture_of
from siltstone.metrics.registry import Ids
from siltstone.metrics.segment import FRESH, TIER

if TYPE_CHECKING:
    from siltstone.metrics.change import Change
    from siltstone.metrics.engine import Engine

POINTS_MAX: Final = 4096  # of one chunk
SERIES_AT_ONCE: Final = 256
NAMES: Final = ("sum", "min", "max", "count", "nans", "last", "lag")  # as bucketing.pyx has them
Columns = dict[str, npt.NDArray[Any]]


def bucket(
    times: npt.NDArray[np.int64], values: npt.NDArray[np.float64], step: int
) -> tuple[npt.NDArray[np.int64], Columns]:
    """(ends, columns) of the buckets that have samples."""
    found = bucketing.bucket(np.ascontiguousarray(times), np.ascontiguousarray(values), step)
    return found[0], dict(zip(NAMES, found[1:], strict=True))


def floor_to(time: int, step: int) -> int:
    return time // step * step


class Tiers:
    """Derives and reads. The caller of what writes holds the engine's work lock."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @property
    def steps(self) -> tuple[int, ...]:
        return self._engine.settings.tiers

    # Deriving

    def derive(
        self, ids: Sequence[int], firsts: dict[int, int] | None = None, *, final: bool = False
    ) -> None:
        """Bring the tiers of these series up to what can be final; `final`: up to their end.
        `firsts`: of series of which nothing is derived, where to begin, if that is known."""
        from siltstone.metrics.change import Change

        if not self.steps:
            return
        for first in range(0, len(ids), SERIES_AT_ONCE):
            ranges = self._ranges(ids[first : first + SERIES_AT_ONCE], firsts or {}, final)
            if not ranges:
                continue
            change = Change(self._engine)
            try:
                self._write(change, ranges, final)
                change.commit()
            except BaseException:
                change.abandon()
                raise
            for id, (_, to) in ranges.items():
                self._engine.set_derived(id, to)

    def _ranges(
        self, ids: Sequence[int], firsts: dict[int, int], final: bool
    ) -> dict[int, tuple[int, int]]:
        """For each series that lacks points: samples after the first time up to the second."""
        found = {}
        window = self._engine.settings.window_ms
        for id in ids:
            newest, derived = self._engine.newest(id), self._engine.derived(id)
            if newest == NONE_MS:
                continue
            to = newest if final else newest - window
            if derived == NONE_MS:
                derived = firsts[id] - 1 if id in firsts else self._oldest(id) - 1
            steps = self.steps if final else self.steps[:1]
            if any(floor_to(to, step) > floor_to(derived, step) for step in steps) or (
                final and to > derived
            ):
                found[id] = (derived, to)
        return found

    def _oldest(self, id: int) -> int:
        """Where its raw samples begin."""
        start = self._engine.newest(id)
        rows = self._engine.reader.rows_of(id)
        return int(rows["start_ms"].min()) if rows.size else start

    def _write(self, change: Change, ranges: dict[int, tuple[int, int]], final: bool) -> None:
        ids = np.array(sorted(ranges), np.uint32)
        coarsest = self.steps[-1]
        low = min(floor_to(derived, coarsest) for derived, _ in ranges.values()) + 1
        high = max(to for _, to in ranges.values())
        rows: list[list[Any]] = [[] for _ in self.steps]
        data: list[list[bytes]] = [[] for _ in self.steps]
        raw = self._engine.reader.raw(ids, low, high)
        courtesy = Courtesy(self._engine)
        for id, (times, values) in zip(ids.tolist(), raw, strict=True):
            derived, to = ranges[id]
            for tier, step in enumerate(self.steps):
                first = floor_to(derived, step) + 1
                last = to if final else floor_to(to, step)
                part = slice(np.searchsorted(times, first), np.searchsorted(times, last, "right"))
                ends, columns = bucket(times[part], values[part], step)
                self._encode(rows[tier], data[tier], id, step, ends, columns)
            courtesy.step()
        for tier in range(len(self.steps)):
            if rows[tier]:
                self._put(change, tier, rows[tier], data[tier])

    def _encode(
        self, rows: list[Any], data: list[bytes], id: int, step: int,
        ends: npt.NDArray[np.int64], columns: Columns,
    ) -> None:  # fmt: skip
        most = min(POINTS_MAX, self._engine.settings.segment_size // 512)
        for first in range(0, ends.size, most):
            part = slice(first, first + most)
            encoded = codecs.encode_points(
                ends[part], {name: column[part] for name, column in columns.items()}
            )
            row = np.zeros((), CHUNK)
            row["series"], row["size"], row["count"] = id, len(encoded), ends[part].size
            row["start_ms"], row["end_ms"] = ends[part][0], ends[part][-1]
            row["codec"] = codecs.POINTS
            rows.append(row)
            data.append(encoded)
            self._engine.counters["tier_points"] += int(ends[part].size)

    def _put(self, change: Change, tier: int, rows: list[Any], data: list[bytes]) -> None:
        chunks = np.array(rows, CHUNK)
        sizes = chunks["size"].astype(np.int64)
        chunks["offset"] = np.cumsum(sizes) - sizes
        # One number for all: a deletion that comes later is above it, a derivation too.
        self._engine.head.sequence += 1
        chunks["sequence"] = self._engine.head.sequence
        change.write(TIER + tier, chunks, np.frombuffer(b"".join(data), np.uint8))

    def derive_again(self, ids: Sequence[int], start: int, end: int) -> None:
        """Buckets that a deletion cut through: from what is left in them, at once."""
        from siltstone.metrics.change import Change

        if not self.steps or not ids:
            return
        change = Change(self._engine)
        try:
            array = np.array(sorted(ids), np.uint32)
            for tier, step in enumerate(self.steps):
                rows: list[Any] = []
                data: list[bytes] = []
                for low, high in _edges(start, end, step):
                    raw = self._engine.reader.raw(array, low + 1, high)
                    for id, (times, values) in zip(array.tolist(), raw, strict=True):
                        derived = self._engine.derived(id)
                        if derived != NONE_MS and high <= floor_to(derived, step):
                            ends, columns = bucket(times, values, step)
                            self._encode(rows, data, id, step, ends, columns)
                if rows:
                    self._put(change, tier, rows, data)
            change.commit()
        except BaseException:
            change.abandon()
            raise

    # Reading

    def read(self, ids: Ids, start: int, end: int, tier: int) -> Iterator[tuple[Any, Columns]]:
        """Of each id: stored points, then those of samples that are in no stored point yet."""
        step = self.steps[tier]
        stored = self._engine.reader.points(ids, start, end, tier)
        floor = floor_to(start - 1, step)
        known = np.array([self._known(id, floor, step) for id in ids.tolist()], np.int64)
        unmerged = self._unmerged(ids, floor + 1, end)
        known = np.minimum(known, (unmerged - 1) // step * step)
        raw = self._engine.reader.raw_from(ids, known + 1, end)
        for (times, columns), (raw_times, raw_values) in zip(stored, raw, strict=True):
            ends, fresh = bucket(raw_times, raw_values, step)
            inside = (ends >= start) & (ends <= end)
            if inside.any():
                fresh = {name: column[inside] for name, column in fresh.items()}
                yield _united(times, columns, ends[inside], fresh)
            else:
                yield times, columns

    def _known(self, id: int, floor: int, step: int) -> int:
        """Up to where the stored points have all samples, but for those that came later."""
        derived = self._engine.derived(id)
        return floor if derived == NONE_MS else max(floor, floor_to(derived, step))

    def _unmerged(self, ids: Ids, start: int, end: int) -> npt.NDArray[np.int64]:
        """Of each id, the time of its first sample that no merge has seen. (What came late, or
        was imported, may be older than what points were derived up to.)"""
        picture = picture_of(self._engine, ids, start, end, (FRESH,), live=True)
        found = np.full(ids.size, end + 1)
        np.minimum.at(found, picture.owners(), picture.rows["start_ms"])
        held = picture.head.counts + picture.head.late
        np.minimum.at(found, np.repeat(np.arange(ids.size), held), picture.head.times)
        return found


def _united(
    times: npt.NDArray[np.int64], columns: Columns, ends: npt.NDArray[np.int64], fresh: Columns
) -> tuple[npt.NDArray[np.int64], Columns]:
    """Stored points and those made of samples. A bucket that both have: the one that knows more
    samples, since late ones are in no stored point, and expired ones no samples any more."""
    both = np.concatenate([times, ends])
    joined = {name: np.concatenate([column, fresh[name]]) for name, column in columns.items()}
    samples = joined["count"] + joined["nans"]
    order = np.lexsort((samples, both))  # stable: of equal ones the fresh one is last
    ordered = both[order]
    last = np.ones(ordered.size, np.bool_)
    last[:-1] = ordered[1:] != ordered[:-1]
    picked = order[last]
    return both[picked], {name: column[picked] for name, column in joined.items()}


def _edges(start: int, end: int, step: int) -> list[tuple[int, int]]:
    """The buckets, as (low, high], that [start, end] cuts through."""
    edges = []
    for time in (start, end):
        high = -(-time // step) * step
        whole = start <= high - step + 1 and end >= high
        if not whole and (high - step, high) not in edges:
            edges.append((high - step, high))
    return edges
