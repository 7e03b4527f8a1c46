"""How many series, labels and values there are, and which have most: what makes a database of time
series large.

Of the series that are known at the moment: live ones, and those of segments that were asked for.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from siltstone.metrics.segment import FRESH, RAW
from siltstone.metrics.source import NAME_LABEL

if TYPE_CHECKING:
    from siltstone.metrics.engine import Engine

Counts = list[tuple[str, int]]  # the largest first, equal ones by name
HEADS_AT_ONCE: Final = 4096
EVER: Final = 1 << 62


@dataclass(frozen=True)
class Cardinality:
    """See the module's docstring. Times are those of samples, None without any."""

    series: int
    label_pairs: int  # distinct ones
    chunks: int
    start_ms: int | None
    end_ms: int | None
    series_of_names: Counts
    values_of_labels: Counts
    bytes_of_labels: Counts  # of all values
    series_of_pairs: Counts  # "name=value"


def cardinality(engine: Engine, most: int) -> Cardinality:
    """`most`: of each list the largest so many."""
    with engine.lock:
        series = len(engine.registry)
        sizes = engine.registry.sizes()
        chunks, start_ms, end_ms = _extent(engine)
    names = sizes.get(NAME_LABEL, {})
    pairs = {
        f"{name}={value}": count
        for name, values in sizes.items()
        for value, count in _largest(values, most)
    }
    return Cardinality(
        series,
        sum(len(values) for values in sizes.values()),
        chunks,
        start_ms,
        end_ms,
        _largest(names, most),
        _largest({name: len(values) for name, values in sizes.items()}, most),
        _largest({name: _bytes(values) for name, values in sizes.items()}, most),
        _largest(pairs, most),
    )


def _bytes(values: Mapping[str, int]) -> int:
    return sum(len(value.encode()) for value in values)


def _largest(counts: Mapping[str, int], most: int) -> Counts:
    return heapq.nsmallest(most, counts.items(), key=lambda entry: (-entry[1], entry[0]))


def _extent(engine: Engine) -> tuple[int, int | None, int | None]:
    """Chunks of samples, the time of the oldest and of the newest sample."""
    engine.gather()
    segments = [one for one in engine.segments.values() if one.kind in (FRESH, RAW)]
    pending = [rows for rows, _ in engine.pending if rows.size]
    starts = [one.start_ms for one in segments if one.chunk_count]
    starts += [int(rows["start_ms"].min()) for rows in pending]
    ends = [one.end_ms for one in segments if one.chunk_count]
    ends += [int(rows["end_ms"].max()) for rows in pending]
    ids = engine.head.table_of()[0]
    heads = [
        times
        for first in range(0, ids.size, HEADS_AT_ONCE)
        if (times := engine.head.snapshot(ids[first : first + HEADS_AT_ONCE], -EVER, EVER)[0]).size
    ]
    starts += [int(times.min()) for times in heads]
    ends += [int(times.max()) for times in heads]
    chunks = sum(one.chunk_count for one in segments) + sum(rows.size for rows in pending)
    return chunks, min(starts, default=None), max(ends, default=None)
