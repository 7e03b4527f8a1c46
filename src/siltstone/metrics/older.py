"""What tiers still know of time whose samples have expired: the last sample of each bucket.

Where a query reads samples and retention has dropped the oldest of them, these stand in: real
samples, only further apart. The finest tier that goes back so far is taken, beyond it the next.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from siltstone.metrics.registry import Ids
from siltstone.metrics.source import Series, Times, Values

if TYPE_CHECKING:
    from siltstone.metrics.engine import Engine

Found = tuple[list[Times], list[Values], list[tuple[int, int]]]


def with_older(
    engine: Engine, ids: Ids, series: list[Series], start: int, end: int
) -> list[Series]:
    """`series` are those of `ids`, with their samples within [start, end]; and what came before."""
    firsts = np.array(
        [int(one.times[0]) if one.times.size else end + 1 for one in series], np.int64
    )
    found = _found(engine, ids, firsts, start, end)
    return [
        one if not times else Series(
            one.labels, np.concatenate([*times, one.times]),
            _joined([*values, one.values]), one.pairs, tuple(coarse),
        )
        for one, (times, values, coarse) in zip(series, found, strict=True)
    ]  # fmt: skip


def _found(
    engine: Engine, ids: Ids, bounds: npt.NDArray[np.int64], start: int, end: int
) -> list[Found]:
    """Of each series (times, values, (until when, step) of each tier), below its bound."""
    found: list[Found] = [([], [], []) for _ in bounds]
    for tier, step in enumerate(engine.settings.tiers):
        points = engine.reader.points(ids, start, end + step, tier)
        for n, (ends, columns) in enumerate(points):
            times = ends - columns["lag"]
            kept = (times >= start) & (times < bounds[n])
            if not kept.any():
                continue
            every, values, coarse = found[n]
            every.insert(0, times[kept])
            values.insert(0, columns["last"].view(np.uint64)[kept].view(np.float64))
            coarse.insert(0, (int(bounds[n]), step))
            bounds[n] = int(ends[kept][0]) - step + 1
    return found


def _joined(values: list[Values]) -> Values:
    """By bits: a signalling NaN is a staleness marker."""
    return np.concatenate([one.view(np.uint64) for one in values]).view(np.float64)
