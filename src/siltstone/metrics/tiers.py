"""Tiers: sum, min, max and count of the samples in each step of time, for as long as they fit.

A bucket is (end - step, end], its point stands at `end`, a multiple of the step. NaN does not
count; a bucket without samples has no point. Points are derived from the merged raw data, so each
sample counts once, and only where no sample within the out-of-order window can still come; what
is newer is computed from raw samples when it is asked for. A deletion or a late import marks its
series, whose buckets are derived again and win by their higher sequence.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from siltstone.metrics import chunks as codecs
from siltstone.metrics.head import CHUNK, NONE_MS
from siltstone.metrics.registry import Ids
from siltstone.metrics.segment import TIER

if TYPE_CHECKING:
    from siltstone.metrics.change import Change
    from siltstone.metrics.engine import Engine

POINTS_MAX: Final = 4096  # of one chunk
SERIES_AT_ONCE: Final = 256
Columns = dict[str, npt.NDArray[Any]]


def bucket(
    times: npt.NDArray[np.int64], values: npt.NDArray[np.float64], step: int
) -> tuple[npt.NDArray[np.int64], Columns]:
    """(ends, columns) of the buckets that have samples."""
    kept = ~np.isnan(values)
    if not kept.all():
        times, values = times[kept], values[kept]
    ends = -(-times // step) * step
    firsts = np.flatnonzero(np.diff(ends, prepend=ends[:1] - 1)) if ends.size else np.empty(0, int)
    if not ends.size:
        empty = np.empty(0, np.float64)
        return ends, {"sum": empty, "min": empty, "max": empty, "count": np.empty(0, np.int64)}
    return ends[firsts], {
        "sum": np.add.reduceat(values, firsts),
        "min": np.minimum.reduceat(values, firsts),
        "max": np.maximum.reduceat(values, firsts),
        "count": np.diff(firsts, append=ends.size).astype(np.int64),
    }


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
        for id, (times, values) in zip(ids.tolist(), raw, strict=True):
            derived, to = ranges[id]
            for tier, step in enumerate(self.steps):
                first = floor_to(derived, step) + 1
                last = to if final else floor_to(to, step)
                part = slice(np.searchsorted(times, first), np.searchsorted(times, last, "right"))
                ends, columns = bucket(times[part], values[part], step)
                self._encode(rows[tier], data[tier], id, step, ends, columns)
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
        stored = list(self._engine.reader.points(ids, start, end, tier))
        floor = floor_to(start - 1, step)
        known = []
        for id, (times, _) in zip(ids.tolist(), stored, strict=True):
            derived = self._engine.derived(id)
            if derived != NONE_MS:
                known.append(max(floor, floor_to(derived, step)))
            else:
                known.append(int(times[-1]) if times.size else floor)
        raw = self._engine.reader.raw(ids, min(known, default=end) + 1, end)
        for at, (times, columns), (raw_times, raw_values) in zip(known, stored, raw, strict=True):
            # A bucket that was closed early, since its raw data went, may have got more samples.
            kept = times <= at
            if not kept.all():
                times, columns = times[kept], {n: c[kept] for n, c in columns.items()}
            first = np.searchsorted(raw_times, at + 1)
            ends, fresh = bucket(raw_times[first:], raw_values[first:], step)
            inside = (ends >= start) & (ends <= end)
            if inside.any():
                times = np.concatenate([times, ends[inside]])
                columns = {
                    name: np.concatenate([column, fresh[name][inside]])
                    for name, column in columns.items()
                }
            yield times, columns


def _edges(start: int, end: int, step: int) -> list[tuple[int, int]]:
    """The buckets, as (low, high], that [start, end] cuts through."""
    edges = []
    for time in (start, end):
        high = -(-time // step) * step
        whole = start <= high - step + 1 and end >= high
        if not whole and (high - step, high) not in edges:
            edges.append((high - step, high))
    return edges
