"""Page descriptors and pages of Netdata's dbengine files.

    descriptor, 37 bytes, the same in extents and journals
    offset  0        1                                   17        21        29
            type     metric id, a UUID's 16 bytes        length    start     end
            u8                                           u32       u64 us    u64 us
    type 0  array of u32 storage numbers; 1: array of 16-byte tier points; 2: Gorilla-coded type 0,
            whose `end` holds u32 entries and u32 (end - start) in seconds

A page has no times inside: point i of n lies at start + i x (end - start) / (n - 1). A point's
time is the end of what it covers. Pure functions on arrays; what a descriptor says is checked
here, before anything is allocated for it. Any thread.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from siltstone.errors import Corruption
from siltstone.metrics import netdata_gorilla, netdata_number
from siltstone.metrics.netdata_number import Flags, Values, Words

ARRAY, TIER, GORILLA = 0, 1, 2
POINT_BYTES: Final = {ARRAY: 4, TIER: 16, GORILLA: 512}  # of a Gorilla page: of a buffer
GORILLA_ENTRIES_MAX: Final = 512 * 8  # a buffer's bits: every entry takes at least one
# Netdata's pages are at most 4,096 bytes, Gorilla's 4,608; the rest is room for later releases.
PAGE_BYTES_MAX: Final = 16384
TIME_MAX_US: Final = (1 << 33) * 1_000_000  # the year 2242
STEP_MIN_US: Final = 1000

DESCRIPTOR: Final = np.dtype(
    [
        ("type", "u1"),
        ("high", ">u8"),  # the UUID as two numbers whose order is the order of its text
        ("low", ">u8"),
        ("length", "<u4"),
        ("start", "<u8"),
        ("end", "<u8"),
    ]
)
assert DESCRIPTOR.itemsize == 1 + 16 + 4 + 8 + 8
TIER_POINT: Final = np.dtype(
    [("sum", "<f4"), ("min", "<f4"), ("max", "<f4"), ("count", "<u2"), ("anomalous", "<u2")]
)
assert TIER_POINT.itemsize == 3 * 4 + 2 * 2

# What the index keeps of a page.
PAGE: Final = np.dtype(
    [
        ("high", "u8"),
        ("low", "u8"),
        ("start", "i8"),
        ("end", "i8"),
        ("extent", "u4"),  # number in the tier's list of extents
        ("points", "u4"),
        ("offset", "u4"),  # in the extent's payload, unpacked
        ("length", "u4"),
        ("number", "u1"),  # in its extent
        ("type", "u1"),
    ]
)

Bytes = npt.NDArray[np.uint8]
Rows = npt.NDArray[np.void]


@dataclass(frozen=True)
class Points:
    """Points of one metric; at tier 0 `values`, above it also the parts that make the average.

    `times` are int64 Unix milliseconds, strictly rising. A gap is a point that is not there.
    """

    times: npt.NDArray[np.int64]
    values: Values
    flags: npt.NDArray[np.uint8] | None = None  # tier 0: see netdata_number.flags_of
    sum: Values | None = None  # tiers above 0, as are the rest
    min: Values | None = None
    max: Values | None = None
    count: npt.NDArray[np.uint16] | None = None
    anomalies: npt.NDArray[np.uint16] | None = None

    @property
    def anomalous(self) -> Flags:
        """Where the collector's model called a sample, or one of a point's samples, anomalous."""
        if self.flags is None:
            assert self.anomalies is not None
            return np.asarray(self.anomalies > 0)
        return np.asarray((self.flags & 1) == 0)

    @property
    def reset(self) -> Flags:
        """Where a counter started again before the sample; tier points do not know."""
        if self.flags is None:
            return np.zeros(len(self.times), np.bool_)
        return np.asarray((self.flags & 2) != 0)

    @property
    def seconds(self) -> Values:
        """The times as Unix seconds."""
        return self.times / 1000.0

    def columns(self) -> tuple[npt.NDArray[Any] | None, ...]:
        """The fields, in order."""
        return (
            self.times, self.values, self.flags, self.sum, self.min, self.max, self.count,
            self.anomalies,
        )  # fmt: skip

    def take(self, chosen: Flags | npt.NDArray[np.intp] | slice) -> Points:
        """Only the chosen points."""
        columns: list[Any] = [None if one is None else one[chosen] for one in self.columns()]
        return Points(*columns)


def spans(descriptors: Rows) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    """Number of points and end in us, of each descriptor; sense is made of them by `faults`."""
    kind = descriptors["type"]
    end = descriptors["end"].astype(np.uint64)
    points = descriptors["length"].astype(np.uint64) // np.where(kind == TIER, 16, 4).astype(
        np.uint64
    )
    gorilla = kind == GORILLA
    if gorilla.any():
        low = end & np.uint64(0xFFFFFFFF)
        seconds = end >> np.uint64(32)
        start = descriptors["start"].astype(np.uint64)
        points = np.where(gorilla, low, points)
        end = np.where(gorilla, start + seconds * np.uint64(1_000_000), end)
    return points, end


FAULTS: Final = (
    "",
    "page type {type} is not supported",
    "a page of {length} bytes",
    "a page without points",
    "a page whose times do not fit its points",
)


def faults(descriptors: Rows) -> npt.NDArray[np.uint8]:
    """Which entry of FAULTS each descriptor deserves; 0 for a good one."""
    kind, length = descriptors["type"], descriptors["length"]
    points, end = spans(descriptors)
    start = descriptors["start"].astype(np.uint64)
    unit = np.select([kind == ARRAY, kind == TIER], [4, 16], 512)
    found = np.zeros(len(descriptors), np.uint8)
    # The last assignment wins: from the least to the most telling.
    timed = (start <= end) & (end <= np.uint64(TIME_MAX_US))
    length_us = np.where(timed, end - start, 0).astype(np.int64)
    steps = np.minimum(points, np.uint64(1 << 32)).astype(np.int64) - 1
    fits = timed & np.where(steps == 0, length_us == 0, length_us >= steps * STEP_MIN_US)
    found[~fits] = 4
    buffers = length // np.uint32(POINT_BYTES[GORILLA])
    crowded = (kind == GORILLA) & (points > buffers.astype(np.uint64) * GORILLA_ENTRIES_MAX)
    found[(points == 0) | crowded] = 3
    found[(length % unit != 0) | (length == 0) | (length > PAGE_BYTES_MAX)] = 2
    found[kind > GORILLA] = 1
    return found


def fault_text(descriptor: Rows, fault: int) -> str:
    """The fault in words, for a report."""
    return FAULTS[fault].format(type=int(descriptor["type"]), length=int(descriptor["length"]))


def index(descriptors: Rows, extent: int, chosen: Flags) -> Rows:
    """Rows of the index for the chosen descriptors of one extent."""
    lengths = descriptors["length"].astype(np.int64)
    offsets = np.cumsum(lengths) - lengths
    points, end = spans(descriptors)
    rows = np.empty(int(np.count_nonzero(chosen)), PAGE)
    rows["high"], rows["low"] = descriptors["high"][chosen], descriptors["low"][chosen]
    rows["start"], rows["end"] = descriptors["start"][chosen], end[chosen]
    rows["extent"], rows["points"] = extent, points[chosen]
    rows["offset"], rows["length"] = offsets[chosen], lengths[chosen]
    rows["number"], rows["type"] = np.flatnonzero(chosen), descriptors["type"][chosen]
    return rows


# Pages --------------------------------------------------------------------------------------


def times_of(row: Rows) -> npt.NDArray[np.int64]:
    """The times of a page's points in ms."""
    points, start = int(row["points"]), int(row["start"])
    if points == 1:
        return np.array([start // 1000], np.int64)
    step, rest = divmod(int(row["end"]) - start, points - 1)
    if rest == 0 and step % 1000 == 0:
        return np.arange(points, dtype=np.int64) * (step // 1000) + start // 1000
    times = np.arange(points, dtype=np.int64) * (int(row["end"]) - start)
    times //= points - 1
    times += start
    times //= 1000
    return times


def words_of(row: Rows, payload: Bytes) -> Words:
    """The storage numbers of a page of type 0 or 2."""
    page = payload[int(row["offset"]) : int(row["offset"]) + int(row["length"])]
    if row["type"] == ARRAY:
        return page.view("<u4").astype(np.uint32, copy=False)
    words = np.empty(int(row["points"]), np.uint32)
    if netdata_gorilla.decode(page, words) != len(words):
        raise Corruption(f"page {int(row['number'])}: its Gorilla code makes no sense")
    return words


def decode(row: Rows, payload: Bytes, *, zero_is_empty: bool = False) -> Points:
    """The points of one page that are there. Corruption when the page contradicts itself."""
    times = times_of(row)
    if row["type"] != TIER:
        words = words_of(row, payload)
        empty = netdata_number.is_empty(words, zero_is_empty=zero_is_empty)
        if empty.any():
            times, words = times[~empty], words[~empty]
        return Points(times, netdata_number.unpack(words), netdata_number.flags_of(words))
    page = payload[int(row["offset"]) : int(row["offset"]) + int(row["length"])]
    cells = page.view(TIER_POINT)
    # A gap has a sum of NaN; a point of no samples is none either.
    there = ~np.isnan(cells["sum"]) & (cells["count"] > 0)
    if not there.all():
        times, cells = times[there], cells[there]
    total, count = cells["sum"].astype(np.float64), cells["count"].astype(np.uint16)
    low, high = cells["min"].astype(np.float64), cells["max"].astype(np.float64)
    anomalies = cells["anomalous"].astype(np.uint16)
    return Points(times, total / count, None, total, low, high, count, anomalies)


def join(parts: list[Points]) -> Points:
    """One run of strictly rising times of parts in the order in which they were written.

    Where pages overlap, of points with one time the one that was written last counts.
    """
    if len(parts) == 1:
        return parts[0]
    every = zip(*(part.columns() for part in parts), strict=True)
    columns: list[Any] = [None if one[0] is None else np.concatenate(one) for one in every]
    points = Points(*columns)
    times = points.times
    if len(times) < 2 or bool((times[1:] > times[:-1]).all()):
        return points
    order = np.argsort(times, kind="stable")
    ordered = times[order]
    last = np.append(ordered[1:] != ordered[:-1], True)
    return points.take(order[last])


def nothing(kind: int) -> Points:
    """No points, of a page type."""
    times, none, counts = np.empty(0, np.int64), np.empty(0), np.empty(0, np.uint16)
    if kind != TIER:
        return Points(times, none, np.empty(0, np.uint8))
    return Points(times, none, None, none, none, none, counts, counts)
