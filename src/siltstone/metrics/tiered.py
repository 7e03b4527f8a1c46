"""Functions of a time window, answered from the points of a tier instead of samples.

A point stands for the samples in (end - step, end]; a window of PromQL holds both its ends. So a
window whose ends and length are multiples of the step holds whole buckets, and the sample right at
its start, if there is one: that one is the last of the bucket before, and points keep their last
sample. The answers are those of the samples, but for the order in which sums are rounded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from siltstone.metrics.grid import Mask
from siltstone.metrics.source import STALE_NAN_BITS, PointSeries, Times, Values

FUNCTIONS: Final = frozenset(
    {
        *("sum_over_time", "avg_over_time", "min_over_time", "max_over_time"),
        *("count_over_time", "present_over_time"),
    }
)


@dataclass(slots=True)
class _Windows:
    """Which points of a series lie in each window, and what stands right at its start."""

    pairs: npt.NDArray[np.int64]  # first, last of each window's points, one behind another
    some: Mask  # whether there are any
    edge: Mask  # whether there is a sample at the start
    edge_values: Values

    def reduced(self, how: np.ufunc, column: npt.NDArray[np.generic], none: float) -> Values:
        """`how` over the column's points in each window; `none` where there is none."""
        padded = np.append(column.astype(np.float64), none)
        found: Values = how.reduceat(padded, self.pairs)[::2]
        return np.where(self.some, found, none)


def _windows(series: PointSeries, ends: Times, range_ms: int) -> _Windows:
    starts = ends - range_ms
    first = np.searchsorted(series.ends, starts, "right")
    last = np.searchsorted(series.ends, ends, "right")
    pairs = np.stack([first, last], axis=1).ravel()
    edge = np.zeros(len(ends), np.bool_)
    edge_values = np.zeros(len(ends))
    if len(series.ends):
        before = np.maximum(first - 1, 0)
        bits = series.last.view(np.uint64)[before]
        edge = (series.ends[before] == starts) & (series.lag[before] == 0)
        edge &= bits != STALE_NAN_BITS
        edge_values = np.where(edge, series.last[before], 0.0)
    return _Windows(pairs, last > first, edge, edge_values)


def over_points(name: str, series: PointSeries, ends: Times, range_ms: int) -> tuple[Values, Mask]:
    """(values, present) of the function at each end. `ends` and `range_ms` are multiples of the
    tier's step."""
    windows = _windows(series, ends, range_ms)
    numbers = windows.reduced(np.add, series.count, 0)
    every = numbers + windows.reduced(np.add, series.nans, 0) + windows.edge
    present = every > 0
    if name == "count_over_time":
        return every, present
    if name == "present_over_time":
        return np.where(present, 1.0, 0.0), present
    if name in ("min_over_time", "max_over_time"):
        how, column = (np.fmin, series.min) if name == "min_over_time" else (np.fmax, series.max)
        best = windows.reduced(how, column, np.nan)
        at_edge = np.where(windows.edge, windows.edge_values, np.nan)
        return how(best, at_edge), present
    total = windows.reduced(np.add, series.sum, 0) + windows.edge_values
    total = np.where(windows.reduced(np.add, series.nans, 0) > 0, np.nan, total)
    if name == "sum_over_time":
        return total, present
    return total / np.where(present, every, 1), present
