"""One directory of pairs: the index of its pages by metric, and their points.

The index holds a row a page (50 bytes) for all pairs; points are read an extent at a time, in the
order in which they were written. An extent that fails any check is noted as a problem, once, and
reads as a gap. Any thread: files are read by position, and what is kept (problems, a few unpacked
extents, what is known about number formats) is guarded by one lock.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from siltstone.errors import Closed, Corruption, DeviceFailed, SiltstoneError
from siltstone.log import foreign
from siltstone.metrics import netdata_extent as extents
from siltstone.metrics import netdata_page as pages
from siltstone.metrics.netdata_number import EMPTY
from siltstone.metrics.netdata_page import Bytes, Points, Rows
from siltstone.metrics.netdata_pair import JOURNAL, Pair, Place, Problem, data_name, pair_numbers

# A chart's dimensions share extents, and are often read one after the other. 256 KiB each.
EXTENTS_KEPT: Final = 16
# Extents looked at in a datafile to learn how it marks empty slots.
EXTENTS_SAMPLED: Final = 16
ALWAYS: Final = (-(1 << 62), 1 << 62)  # ms


class Loaded(NamedTuple):
    """An extent, checked and unpacked: rows of the index as its own descriptors say, and pages."""

    rows: Rows
    payload: Bytes


class Run(NamedTuple):
    """The points of one page, as `Tier.extent_runs` hands them over."""

    metric: int
    points: Points


class Tier:
    """What `directory` holds. SiltstoneError when not one of its pairs can be used."""

    def __init__(
        self,
        directory: Path,
        number: int,
        *,
        salvage: bool = True,
        zero_is_empty: bool | None = None,
    ) -> None:
        self.directory, self.number = directory, number
        self.pairs: list[Pair] = []
        self.problems: list[Problem] = []
        self._zero_is_empty: dict[int, bool] = {}
        self._zero_given = zero_is_empty
        self._noted: set[tuple[int, int]] = set()
        self._kept: OrderedDict[int, Loaded] = OrderedDict()
        self._lock = threading.Lock()
        self._closed = False
        self._open_pairs(salvage)
        self._build_index()

    def _open_pairs(self, salvage: bool) -> None:
        names = foreign.names_in(self.directory)
        numbers = pair_numbers(names)
        failed: SiltstoneError | None = None
        for number in numbers:
            try:
                pair = Pair(self.directory, number, salvage=salvage)
            except SiltstoneError as error:
                failed = failed or error
                path = str(self.directory / data_name(number))
                text = str(error).removeprefix(path).strip() + ": this pair is set aside"
                self.problems.append(Problem(path, -1, text))
            else:
                self.pairs.append(pair)
                self.problems += pair.problems
        if failed is not None and not self.pairs:
            raise failed
        for name in names:
            match = JOURNAL.fullmatch(name)
            if match and int(match[1]) not in numbers:
                path = str(self.directory / name)
                self.problems.append(Problem(path, -1, "a journal without its datafile"))

    def _build_index(self) -> None:
        counts = [len(pair.places) for pair in self.pairs]
        self._first_extents = np.cumsum([0, *counts])
        rows = np.concatenate([pair.pages for pair in self.pairs] or [np.empty(0, pages.PAGE)])
        rows["extent"] += np.repeat(
            self._first_extents[:-1], [len(pair.pages) for pair in self.pairs]
        ).astype(np.uint32)
        # A metric's pages lie together, in the order in which they were written.
        order = np.lexsort((rows["number"], rows["extent"], rows["low"], rows["high"]))
        self.pages: Rows = rows[order]
        high, low = self.pages["high"], self.pages["low"]
        changes = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
        starts = np.append(0, np.flatnonzero(changes) + 1) if len(rows) else np.empty(0, np.int64)
        self._bounds = np.append(starts, len(rows)).astype(np.int64)
        ids = zip(high[starts].tolist(), low[starts].tolist(), strict=True)
        self.metrics: dict[int, int] = {
            int(first) << 64 | int(second): number for number, (first, second) in enumerate(ids)
        }
        by_extent = np.argsort(self.pages["extent"], kind="stable")
        self._by_extent = by_extent
        self._extent_bounds = np.searchsorted(
            self.pages["extent"][by_extent], np.arange(self._first_extents[-1] + 1)
        )

    # What there is

    @property
    def extent_count(self) -> int:
        return int(self._first_extents[-1])

    def pages_of(self, metric: int) -> Rows:
        """The index rows of a metric (its UUID as a number), in the order of writing."""
        number = self.metrics.get(metric)
        if number is None:
            return self.pages[:0]
        return self.pages[self._bounds[number] : self._bounds[number + 1]]

    def place(self, extent: int) -> tuple[Pair, Place]:
        """Where an extent lies."""
        pair = int(np.searchsorted(self._first_extents, extent, side="right")) - 1
        return self.pairs[pair], self.pairs[pair].places[extent - int(self._first_extents[pair])]

    def check_invariants(self) -> None:
        """Plain facts about the index; for tests and `verify`."""
        assert len(self.metrics) == max(len(self._bounds) - 1, 0)
        assert bool((np.diff(self._bounds) > 0).all())
        assert bool((self.pages["extent"] < self.extent_count).all())
        assert bool((self.pages["start"] <= self.pages["end"]).all())

    # Reading

    def read(
        self, metrics: Sequence[int], start_ms: int = ALWAYS[0], end_ms: int = ALWAYS[1]
    ) -> list[Points]:
        """The points of each metric in [start_ms, end_ms]; each extent is read once."""
        found: list[list[Points]] = [[] for _ in metrics]
        chosen, owners = self._choose(metrics, start_ms, end_ms)
        edges = np.flatnonzero(np.diff(chosen["extent"])) + 1
        for rows, owner in zip(np.split(chosen, edges), np.split(owners, edges), strict=True):
            if len(rows):
                for place, points in self._decode(int(rows["extent"][0]), rows):
                    found[owner[place]].append(points)
        kind = pages.TIER if self.number else pages.ARRAY
        joined = (pages.join(parts) if parts else pages.nothing(kind) for parts in found)
        return [_clip(points, start_ms, end_ms) for points in joined]

    def _choose(
        self, metrics: Sequence[int], start_ms: int, end_ms: int
    ) -> tuple[Rows, npt.NDArray[np.int64]]:
        """The pages that reach into the range, by extent, and which of `metrics` each is for."""
        parts = [self.pages_of(metric) for metric in metrics]
        rows = np.concatenate([*parts, self.pages[:0]])
        owners = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        inside = (rows["end"] // 1000 >= start_ms) & (rows["start"] // 1000 <= end_ms)
        rows, owners = rows[inside], owners[inside]
        order = np.argsort(rows["extent"], kind="stable")
        return rows[order], owners[order]

    def extent_runs(self, extent: int) -> Iterator[Run]:
        """The points of every page of an extent, in the order of its descriptors."""
        here = slice(self._extent_bounds[extent], self._extent_bounds[extent + 1])
        rows = self.pages[self._by_extent[here]]
        rows = rows[np.argsort(rows["number"], kind="stable")]
        for place, points in self._decode(extent, rows, keep=False):
            yield Run(int(rows["high"][place]) << 64 | int(rows["low"][place]), points)

    def is_bad(self, extent: int) -> bool:
        """Whether this extent could not be had when it was read."""
        with self._lock:
            return (extent, -1) in self._noted

    def _decode(
        self, extent: int, rows: Rows, *, keep: bool = True
    ) -> Iterator[tuple[int, Points]]:
        """(which row, its points) for those of `rows`, all of one extent, that can be had."""
        loaded = self._load(extent, keep=keep)
        if loaded is None:
            return
        pair, _ = self.place(extent)
        zero_is_empty = self._zeros(pair) if not self.number else False
        numbers = rows["number"]
        same = numbers < len(loaded.rows)
        same &= loaded.rows[np.minimum(numbers, len(loaded.rows) - 1)] == rows
        for place, row in enumerate(rows):
            number = int(numbers[place])
            if not same[place]:
                self._note(extent, number, f"page {number} is another one than the journal says")
                continue
            try:
                yield place, _decode_page(row, loaded.payload, zero_is_empty)
            except Corruption as error:
                self._note(extent, number, str(error))

    def _load(self, extent: int, *, keep: bool = True) -> Loaded | None:
        """The extent; None, and a problem noted once, when it cannot be had."""
        if self._closed:
            raise Closed(f"{self.directory} is closed")
        with self._lock:
            if extent in self._kept:
                self._kept.move_to_end(extent)
                return self._kept[extent]
            if (extent, -1) in self._noted:  # it was bad when it was last read
                return None
        pair, _ = self.place(extent)
        try:
            found = pair.extent(extent - int(self._first_extents[self.pairs.index(pair)]))
            every = np.ones(len(found.descriptors), np.bool_)
            loaded = Loaded(pages.index(found.descriptors, extent, every), extents.unpack(found))
        except (Corruption, DeviceFailed) as error:
            self._note(extent, -1, str(error))
            return None
        if keep:
            with self._lock:
                self._kept[extent] = loaded
                while len(self._kept) > EXTENTS_KEPT:
                    self._kept.popitem(last=False)
        return loaded

    def _note(self, extent: int, number: int, text: str) -> None:
        pair, place = self.place(extent)
        with self._lock:
            if (extent, number) not in self._noted:
                self._noted.add((extent, number))
                self.problems.append(Problem(pair.data.path, place.offset, text))

    # How empty slots look

    def _zeros(self, pair: Pair) -> bool:
        """Whether a zero in this datafile is an empty slot, as it was before 1.36."""
        if self._zero_given is not None:
            return self._zero_given
        with self._lock:
            known = self._zero_is_empty.get(pair.number)
        if known is None:
            known = self._look_for_zeros(pair)
            with self._lock:
                self._zero_is_empty[pair.number] = known
        return known

    def _look_for_zeros(self, pair: Pair) -> bool:
        first = int(self._first_extents[self.pairs.index(pair)])
        count = min(len(pair.places), EXTENTS_SAMPLED)
        zeros = False
        for extent in np.linspace(first, first + len(pair.places) - 1, count).astype(int).tolist():
            loaded = self._load(extent, keep=False)
            if loaded is None:
                continue
            if bool((loaded.rows["type"] != pages.ARRAY).any()):
                return False  # such pages came later than 1.36
            words = loaded.payload[: len(loaded.payload) // 4 * 4].view("<u4")
            if bool((words == EMPTY).any()):
                return False
            zeros = zeros or bool((words == 0).any())
        return zeros

    def close(self) -> None:
        """Idempotent."""
        self._closed = True
        self._kept.clear()
        for pair in self.pairs:
            pair.close()


def _decode_page(row: Rows, payload: Bytes, zero_is_empty: bool) -> Points:
    if zero_is_empty and row["type"] == pages.ARRAY:
        # the same file after an upgrade: this page marks its empty slots in the new way
        zero_is_empty = not bool((pages.words_of(row, payload) == EMPTY).any())
    return pages.decode(row, payload, zero_is_empty=zero_is_empty)


def _clip(points: Points, start_ms: int, end_ms: int) -> Points:
    if not len(points.times) or (points.times[0] >= start_ms and points.times[-1] <= end_ms):
        return points
    first, last = np.searchsorted(points.times, [start_ms, end_ms + 1])
    return points.take(slice(int(first), int(last)))
