"""Metrics on devices that tests can crash and break, and a model: dicts of times and values."""

from __future__ import annotations

import math
import struct
from collections import defaultdict
from typing import Any

import numpy as np
from fakes import CrashDevice, ManualClock, SeededRandom

from siltstone.log.device import Device
from siltstone.metrics.metrics import Metrics
from siltstone.metrics.settings import MetricsSettings

SEGMENT = 1 << 16
T0 = 1_700_000_000
WINDOW_S = 100


def settings(slots: int = 48, **options: Any) -> MetricsSettings:
    given = {
        "retention_size": slots * SEGMENT + 8192,
        "segment_size": SEGMENT,
        "out_of_order_window": WINDOW_S,
        "tiers": ("10s", "60s"),
        "background": False,
        "cache": 1 << 20,
    }
    return MetricsSettings(**{**given, **options})


def crash_device(slots: int = 48) -> CrashDevice:
    return CrashDevice(slots, SEGMENT, engine="metrics")


def opened(device: Device, seed: int = 0, **options: Any) -> Metrics:
    chosen = settings(device.segment_count, **options)
    return Metrics.on_device(device, chosen, clock=ManualClock(), rng=SeededRandom(seed))


def bits(value: float) -> int:
    """All 64 of them: NaN differs from NaN, 0.0 from -0.0."""
    found: int = struct.unpack("<Q", struct.pack("<d", value))[0]
    return found


def contents(metrics: Metrics, start: Any = None, end: Any = None) -> dict[str, dict[int, int]]:
    """Series by the value of label `n`: time in ms -> bits of the value."""
    found = {}
    for series in metrics.select('{n=~".+"}', start, end):
        assert (np.diff(series.times) > 0).all()
        pairs = zip(series.times.tolist(), series.values.view(np.uint64).tolist(), strict=True)
        found[series.labels["n"]] = dict(pairs)
    return found


class Model:
    """What a Metrics must hold."""

    def __init__(self) -> None:
        self.samples: dict[str, dict[int, int]] = defaultdict(dict)
        self.newest: dict[str, int] = {}

    def add(self, name: str, time: int, value: float, *, backfill: bool = False) -> bool:
        newest = self.newest.get(name)
        if newest is not None and not backfill and time < newest - WINDOW_S * 1000:
            return False
        self.samples[name][time] = bits(value)
        self.newest[name] = time if newest is None else max(newest, time)
        return True

    def delete(self, name: str, start: int, end: int) -> None:
        for time in [time for time in self.samples[name] if start <= time <= end]:
            del self.samples[name][time]

    def within(self, start: int, end: int) -> dict[str, dict[int, int]]:
        found = {
            name: {time: value for time, value in samples.items() if start <= time <= end}
            for name, samples in self.samples.items()
        }
        return {name: samples for name, samples in found.items() if samples}

    def points(self, name: str, step: int) -> dict[int, tuple[float, float, float, int]]:
        """The buckets of a tier: end -> sum, min, max, count."""
        buckets: dict[int, list[float]] = defaultdict(list)
        for time, value in sorted(self.samples[name].items()):
            number = struct.unpack("<d", struct.pack("<Q", value))[0]
            if not math.isnan(number):
                buckets[-(-time // step) * step].append(number)
        return {
            end: (math.fsum(some), min(some), max(some), len(some)) for end, some in buckets.items()
        }


def assert_tier(metrics: Metrics, model: Model, step: int) -> None:
    found = {series.labels["n"]: series for series in metrics.select('{n=~".+"}', tier=step / 1000)}
    for name in model.samples:
        expected = model.points(name, step)
        if not expected:
            assert name not in found
            continue
        series = found[name]
        assert series.times.tolist() == sorted(expected), name
        for n, end in enumerate(series.times.tolist()):
            total, low, high, count = expected[end]
            assert series.count[n] == count
            assert (series.min[n], series.max[n]) == (low, high)
            assert math.isclose(series.sum[n], total, rel_tol=1e-9, abs_tol=1e-6)
