"""Samples that recovery finds in the journal: whose they are, in which order, and which count.

The journal holds all samples since the checkpoint. Some are in chunks that were written since (the
records say how many of each series), some were deleted; the rest is what the heads held. Collects
arrays record by record, and sorts them out once, at the end: no loop over samples.
"""

from __future__ import annotations

import itertools
import struct
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from siltstone.errors import Corruption
from siltstone.metrics.state import Changed, Tombstone

LATE: Final = 0x80000000
POINT: Final = np.dtype([("id", "<u4"), ("time", "<i8"), ("value", "<f8")])
_ENTRY: Final = struct.Struct("<II")
_RUN: Final = struct.Struct("<IIIIqq")
UNEVEN: Final = 1


@dataclass
class Arrived:
    """What is left of a series' samples, in the order in which they came."""

    id: int
    late: bool
    times: npt.NDArray[np.int64]
    values: npt.NDArray[np.float64]
    newest: int  # of all that came, also of what is not left


class Arrivals:
    """See the module's docstring. `start`: position of the checkpoint that the replay begins at."""

    def __init__(self) -> None:
        self.start = 0
        self.keys: dict[int, bytes] = {}
        self.largest = 0
        self._id_of: dict[bytes, int] = {}
        self._ids: list[npt.NDArray[np.uint32]] = []
        self._times: list[npt.NDArray[np.int64]] = []
        self._values: list[npt.NDArray[np.float64]] = []
        self._count = 0
        self._changes: list[Changed] = []
        self._same: dict[int, int] = {}  # id: the first one with the same key
        self._deleted: list[tuple[int, Tombstone]] = []  # after so many samples

    def series(self, payload: bytes) -> None:
        at = 0
        while at < len(payload):
            id, size = _ENTRY.unpack_from(payload, at)
            at += _ENTRY.size
            self._define(id, payload[at : at + size])
            at += size

    def _define(self, id: int, key: bytes) -> None:
        # A series that was forgotten and came back before the second checkpoint has two ids.
        self.largest = max(self.largest, id)
        first = self._id_of.setdefault(key, id)
        if first == id:
            self.keys[id] = key
        else:
            self._same[id] = first

    def points(self, payload: bytes) -> None:
        if len(payload) % POINT.itemsize:
            raise Corruption(f"a record of points has {len(payload)} bytes")
        points = np.frombuffer(payload, POINT)
        self._add(points["id"], points["time"], points["value"])

    def run(self, payload: bytes) -> None:
        id, count, flags, _, first, step = _RUN.unpack_from(payload)
        arrays = 2 if flags & UNEVEN else 1
        if len(payload) != _RUN.size + arrays * 8 * count:
            raise Corruption(f"a run of {count} samples has {len(payload)} bytes")
        values = np.frombuffer(payload, "<f8", count, _RUN.size)
        if flags & UNEVEN:
            times = np.frombuffer(payload, "<i8", count, _RUN.size + 8 * count)
        else:
            times = first + step * np.arange(count, dtype=np.int64)
        self._add(np.full(count, id, np.uint32), times, values)

    def _add(self, ids: Any, times: Any, values: Any) -> None:
        self._ids.append(ids)
        self._times.append(times)
        self._values.append(values)
        self._count += len(ids)

    def changed(self, record: Changed) -> None:
        if record.consumed:
            self._changes.append(record)

    def deleted(self, record: Tombstone) -> None:
        self._deleted.append((self._count, record))

    def left(self) -> Iterator[Arrived]:
        """In order first, then what came late, series by series."""
        if not self._count:
            return
        consumed = self._consumed()
        ids = self._one_id(np.concatenate(self._ids))
        order = np.argsort(ids, kind="stable")
        ids = ids[order]
        times = np.concatenate(self._times)[order]
        values = np.concatenate(self._values).view(np.uint64)[order].view(np.float64)
        starts = np.concatenate([[0], np.flatnonzero(np.diff(ids)) + 1, [ids.size]]).tolist()
        gone = self._tombstones_by_id()
        # Ids with the late bit sort behind all others.
        for first, end in itertools.pairwise(starts):
            id = int(ids[first])
            part = slice(first, end)
            kept = _alone(times[part]) if not id & LATE else np.ones(end - first, np.bool_)
            kept[np.flatnonzero(kept)[: consumed.get(id, 0)]] = False
            _without(kept, times[part], order[part], gone.get(id & ~LATE, []))
            late = bool(id & LATE)
            left = times[part][kept]
            newest = int(times[part].max())
            yield Arrived(id & ~LATE, late, left, _picked(values[part], kept), newest)

    def _one_id(self, ids: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
        for id, first in self._same.items():
            ids[ids == id] = first
            ids[ids == id | LATE] = first | LATE
        return ids

    def _consumed(self) -> dict[int, int]:
        found: dict[int, int] = defaultdict(int)
        for record in self._changes:
            if self.start < record.moment:
                pairs = np.frombuffer(record.consumed, "<u4").reshape(-1, 2)
                ids = self._one_id(pairs[:, 0].copy())
                for id, count in zip(ids.tolist(), pairs[:, 1].tolist(), strict=True):
                    found[id] += count
        return found

    def _tombstones_by_id(self) -> dict[int, list[tuple[int, Tombstone]]]:
        found: dict[int, list[tuple[int, Tombstone]]] = defaultdict(list)
        for moment, record in self._deleted:
            for key in record.keys:
                if key in self._id_of:
                    found[self._id_of[key]].append((moment, record))
        return found


def _alone(times: Any) -> npt.NDArray[np.bool_]:
    """The newest sample given again: the later one counts, in the same place of the head."""
    kept = np.ones(times.size, np.bool_)
    kept[:-1] = times[1:] != times[:-1]
    return kept


def _without(
    kept: npt.NDArray[np.bool_], times: Any, moments: Any, gone: list[tuple[int, Tombstone]]
) -> None:
    for moment, record in gone:
        kept &= (moments >= moment) | (times < record.start_ms) | (times > record.end_ms)


def _picked(values: Any, kept: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """By bits: a signalling NaN is a staleness marker."""
    return np.ascontiguousarray(values).view(np.uint64)[kept].view(np.float64)
