"""Netdata's dbengine files written: `Writer` for pages, `export` for all of a source's samples.

What is written is what Netdata 1.36 and later write: format 1.0, extents of at most 64 pages,
times in whole seconds, values as 24-bit decimal numbers (7 digits: lossy, see netdata_number), NaN
and infinities as empty slots. The data of an extent is written before the journal names it, both
are synced at the end, and after an error the files are removed. The caller's thread.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from siltstone.errors import ConfigError
from siltstone.log import device
from siltstone.log.directory import make_directory
from siltstone.log.foreign import NewFile, names_in
from siltstone.metrics import netdata_extent as extents
from siltstone.metrics import netdata_journal as journal
from siltstone.metrics import netdata_number, netdata_page
from siltstone.metrics.netdata import NAMES_FILE
from siltstone.metrics.netdata_extent import BLOCK, LZ4
from siltstone.metrics.netdata_number import EMPTY, Flags, Values
from siltstone.metrics.netdata_page import ARRAY, DESCRIPTOR, POINT_BYTES, TIER, TIER_POINT, Points
from siltstone.metrics.netdata_pair import (
    DATA_MAGIC,
    JOURNAL_MAGIC,
    data_name,
    journal_name,
    super_block,
)
from siltstone.metrics.source import Matcher, Source

PAGES_PER_EXTENT: Final = 64  # as Netdata until 2024
PAGE_BYTES: Final = 4096
# Netdata cuts a page at a hole; filling a short one with empty slots costs less than a page.
HOLE_SLOTS_MAX: Final = 64
DATAFILE_BYTES: Final = 64 << 20
SECOND_MS: Final = 1000
WINDOW_MS: Final = PAGE_BYTES // 4 * SECOND_MS
# Ids of series that have none: uuid5 of their labels in this name space.
NAMESPACE: Final = uuid.UUID("7c7bb3a4-7e0c-5a4e-9a57-3f7f0c9d5b21")

Times = npt.NDArray[np.int64]


@dataclass
class ExportReport:
    """What was written. `left_out`: samples that the format cannot hold (NaN, infinities, more
    than one in a second)."""

    series: int = 0
    samples: int = 0
    left_out: int = 0
    extents: int = 0
    bytes: int = 0


class Writer:
    """One directory of pairs, new. A page goes out when 64 have gathered, or at `close`."""

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        datafile_bytes: int = DATAFILE_BYTES,
        compression: int = LZ4,
    ) -> None:
        self.directory = Path(directory)
        make_directory(self.directory)
        if names := [name for name in names_in(self.directory) if name.endswith((".ndf", ".njf"))]:
            raise ConfigError(
                f"{self.directory} holds {names[0]} already: give a new directory to write to"
            )
        self.extents = self.bytes = 0
        self._datafile_bytes, self._compression = datafile_bytes, compression
        self._pages: list[bytes] = []
        self._descriptors: list[tuple[int, int, int, int, int, int]] = []
        self._number = self._transaction = 0
        self._files: list[NewFile] = []
        self._created: list[str] = []
        self._block = b""

    # Pages

    def samples(
        self,
        metric: uuid.UUID,
        times: Times,
        values: Values,
        step_ms: int = SECOND_MS,
        *,
        anomalous: Flags | None = None,
        reset: Flags | None = None,
    ) -> None:
        """Samples of a metric: whole seconds, strictly rising, later than all given before.

        They lie `step_ms` apart; a shorter or crooked distance starts a new page.
        """
        words = netdata_number.pack(values, anomalous=anomalous, reset=reset)
        empty = np.uint32(EMPTY)
        for start, page in _pages(times, words, step_ms, PAGE_BYTES // POINT_BYTES[ARRAY], empty):
            if bool((page != EMPTY).any()):
                self._page(metric, ARRAY, start, step_ms, len(page), page.astype("<u4").tobytes())

    def points(self, metric: uuid.UUID, points: Points, step_ms: int) -> None:
        """Points of a tier above 0, as `samples`; sums and limits become 32-bit floats."""
        cells = np.zeros(len(points.times), TIER_POINT)
        cells["sum"], cells["min"], cells["max"] = points.sum, points.min, points.max
        cells["count"], cells["anomalous"] = points.count, points.anomalies
        gap = np.zeros((), TIER_POINT)
        gap["sum"] = np.nan
        size = PAGE_BYTES // POINT_BYTES[TIER]
        for start, page in _pages(points.times, cells, step_ms, size, gap):
            self._page(metric, TIER, start, step_ms, len(page), page.tobytes())

    def _page(
        self, metric: uuid.UUID, kind: int, start_ms: int, step_ms: int, count: int, data: bytes
    ) -> None:
        end_ms = start_ms + (count - 1) * step_ms
        high, low = metric.int >> 64, metric.int & ((1 << 64) - 1)
        if not self._descriptors and not self._files:
            self._open_pair()
        self._pages.append(data)
        self._descriptors.append((kind, high, low, len(data), start_ms * 1000, end_ms * 1000))
        if len(self._pages) == PAGES_PER_EXTENT:
            self._write_extent()

    # Files

    def _open_pair(self) -> None:
        self._close_pair()
        self._number += 1
        for name, magic in (
            (data_name(self._number), DATA_MAGIC),
            (journal_name(self._number), JOURNAL_MAGIC),
        ):
            file = NewFile(self.directory / name)
            self._created.append(file.path)
            self._files.append(file)
            file.append(super_block(magic))

    def _write_extent(self) -> None:
        if not self._pages:
            return
        if self._files[0].size >= self._datafile_bytes:
            self._open_pair()
        data = self._files[0]
        descriptors = np.array(self._descriptors, DESCRIPTOR)
        extent = extents.build(descriptors, self._pages, self._compression)
        self._transaction += 1
        record = journal.build(
            journal.Transaction(self._transaction, data.size, len(extent), descriptors)
        )
        data.append(extent.ljust(extents.padded(len(extent)), b"\0"))
        if len(self._block) + len(record) > BLOCK:
            self._write_block()
        self._block += record
        self._pages, self._descriptors = [], []
        self.extents += 1

    def _write_block(self) -> None:
        if self._block:
            self._files[1].append(self._block.ljust(BLOCK, b"\0"))
            self._block = b""

    def _close_pair(self) -> None:
        if self._files:
            self._write_block()
        files, self._files = self._files, []
        for file in files:
            self.bytes += file.size
            file.close()

    def close(self) -> None:
        """Everything written and synced."""
        self._write_extent()
        self._close_pair()
        device.sync_directory(self.directory)

    def abandon(self) -> None:
        """Remove what was written."""
        for file in self._files:
            file.close(sync=False)
        self._files = []
        device.remove_files(self._created)

    def write_names(self, names: Mapping[str, Mapping[str, str]]) -> None:
        """`names.json`, from which `netdata.open` knows the metrics' labels."""
        file = NewFile(self.directory / NAMES_FILE)
        self._created.append(file.path)
        file.append(json.dumps(names, indent=1, sort_keys=True).encode())
        file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.abandon()
            return
        try:
            self.close()
        except BaseException:
            self.abandon()
            raise


def export(
    source: Source,
    directory: str | os.PathLike[str],
    start_ms: int,
    end_ms: int,
    *,
    matchers: Sequence[Matcher] = (),
    window_ms: int = WINDOW_MS,
    datafile_bytes: int = DATAFILE_BYTES,
) -> ExportReport:
    """Write the samples of [start_ms, end_ms] as a tier 0 directory, with a `names.json`.

    Times are rounded to the nearest second; of several samples in one second the last counts.
    A metric's id is its label `uuid`, or made of its labels. `window_ms` bounds memory: that much
    of all series is held at once, and no page is longer.
    """
    if window_ms < SECOND_MS or window_ms % SECOND_MS:
        raise ConfigError(f"window_ms {window_ms}: whole seconds, as {WINDOW_MS}")
    report = ExportReport()
    names: dict[str, Mapping[str, str]] = {}
    last: dict[str, int] = {}
    with Writer(directory, datafile_bytes=datafile_bytes) as writer:
        for first in range(start_ms, end_ms + 1, window_ms):
            until = min(first + window_ms - 1, end_ms)
            for series in source.select(matchers, first, until):
                metric = _id_of(series.labels)
                names.setdefault(str(metric), dict(series.labels))
                before = last.get(str(metric), -1)
                times, values = _whole_seconds(series.times, series.values, before)
                report.left_out += len(series.times) - len(times)
                if len(times):
                    report.samples += len(times)
                    last[str(metric)] = int(times[-1])
                    writer.samples(metric, times, values, _step_of(times))
        writer.write_names(names)
    report.series, report.extents, report.bytes = len(last), writer.extents, writer.bytes
    return report


# Leaves -------------------------------------------------------------------------------------


def _pages(
    times: Times, cells: npt.NDArray[Any], step_ms: int, size: int, gap: Any
) -> Iterator[tuple[int, npt.NDArray[Any]]]:
    """(start in ms, cells at equal steps) for each page; holes within a page are `gap`."""
    if not len(times):
        return
    if step_ms < SECOND_MS or step_ms % SECOND_MS or bool((times % SECOND_MS).any()):
        raise ConfigError("Netdata's files have times and steps of whole seconds")
    distances = np.diff(times)
    if bool((distances <= 0).any()):
        raise ConfigError("times must rise strictly")
    cut = (distances % step_ms != 0) | (distances > HOLE_SLOTS_MAX * step_ms)
    for run in _slices(cut):
        slots = (times[run] - times[run.start]) // step_ms
        for part in _slices(np.diff(slots // size) != 0):
            own = slots[part] - slots[part.start]
            page = np.full(int(own[-1]) + 1, gap, cells.dtype)
            page[own] = cells[run][part]
            yield int(times[run][part.start]), page


def _slices(cut: Flags) -> Iterable[slice]:
    """The runs between cuts; cut i lies between elements i and i + 1."""
    edges = [0, *(np.flatnonzero(cut) + 1).tolist(), len(cut) + 1]
    return [slice(first, last) for first, last in pairwise(edges)]


def _whole_seconds(times: Times, values: Values, after_ms: int) -> tuple[Times, Values]:
    """What the format can hold of samples: one a second, later than `after_ms`, finite."""
    rounded = (times + SECOND_MS // 2) // SECOND_MS * SECOND_MS
    keep = np.isfinite(values) & (rounded > after_ms)
    rounded, values = rounded[keep], values[keep]
    last = np.append(rounded[1:] != rounded[:-1], True)[: len(rounded)]
    return rounded[last], values[last]


def _step_of(times: Times) -> int:
    """The most frequent distance; a second when there is none."""
    if len(times) < 2:
        return SECOND_MS
    distances, counts = np.unique(np.diff(times), return_counts=True)
    return int(distances[np.argmax(counts)])


def _id_of(labels: Mapping[str, str]) -> uuid.UUID:
    try:
        return uuid.UUID(labels["uuid"])
    except (KeyError, ValueError):
        return uuid.uuid5(NAMESPACE, json.dumps(sorted(labels.items())))


assert netdata_page.PAGE_BYTES_MAX >= PAGE_BYTES
