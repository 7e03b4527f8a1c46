"""Functions of windows (metrics/windows.pyx) beside plain loops."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from siltstone.metrics.windows import over_time

RANGE_MS = 10_000


def increase(times: Any, values: Any, end: int) -> float | None:
    """What Prometheus does, one sample after the other: the sum's last bits depend on that."""
    inside = [n for n, time in enumerate(times.tolist()) if end - RANGE_MS <= time <= end]
    if len(inside) < 2:
        return None
    first, last = inside[0], inside[-1]
    change = values[last] - values[first]
    for n in inside[1:]:
        if values[n] < values[n - 1]:
            change += values[n - 1]
    sampled = (times[last] - times[first]) / 1000
    distance = sampled / (len(inside) - 1)
    to_start, to_end = (times[first] - (end - RANGE_MS)) / 1000, (end - times[last]) / 1000
    if change > 0 and values[first] >= 0:
        to_start = min(to_start, sampled * (values[first] / change))
    stretched = sampled
    stretched += to_start if to_start < distance * 1.1 else distance / 2
    stretched += to_end if to_end < distance * 1.1 else distance / 2
    return float(change * (stretched / sampled))


@given(st.data(), st.integers(0, 2**32), st.integers(1, 13))
def test_an_increase_adds_what_came_before_each_reset_in_order(
    data: st.DataObject, seed: int, windows: int
) -> None:
    """Windows of many resets and of none, with and without samples, in any number."""
    rng = np.random.default_rng(seed)
    series = []
    for _ in range(data.draw(st.integers(1, 3))):
        moments = np.sort(rng.choice(60_000, data.draw(st.integers(0, 200)), replace=False))
        values = rng.normal(3, 1, moments.size) if rng.random() < 0.7 else moments / 7
        series.append((moments.astype(np.int64), values))
    ends = np.sort(rng.integers(0, 80_000, windows)).astype(np.int64)
    nothing = np.zeros(windows)
    found, present = over_time(
        "increase", [one for one, _ in series], [one for _, one in series], ends, RANGE_MS,
        ends, nothing, nothing,
    )  # fmt: skip
    for row, (times, values) in enumerate(series):
        for step, end in enumerate(ends.tolist()):
            wanted = increase(times, values, end)
            assert present[row, step] == (wanted is not None)
            if wanted is not None:
                assert found[row, step] == wanted


@pytest.mark.parametrize("name", ["rate", "sum_over_time"])
def test_windows_of_no_series(name: str) -> None:
    ends = np.arange(3)
    values, present = over_time(name, [], [], ends, 1, ends, np.zeros(3), np.zeros(3))
    assert values.shape == present.shape == (0, 3)
