"""Metrics against a model of dicts: anything in any order, restarts, merges, deletions."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import settings, strategies
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from metricsrig import T0, Model, assert_tier, bits, contents, crash_device, opened

from siltstone.metrics.source import STALE_NAN

NAMES = ("a", "b", "c")
names = strategies.sampled_from(NAMES)
values = strategies.one_of(
    strategies.integers(-1000, 1000).map(float),
    strategies.floats(-1e6, 1e6),
    strategies.sampled_from([0.0, -0.0, math.nan, math.inf, STALE_NAN, 5e-324, 1e15]),
)
finite = strategies.integers(-1000, 1000).map(float)


class MetricsMachine(RuleBasedStateMachine):
    @initialize()
    def begin(self):
        self.metrics = opened(crash_device())
        self.model = Model()
        self.now = T0 * 1000

    def handle(self, name):
        return self.metrics.series("m", n=name)

    @rule(name=names, ahead=strategies.integers(-150_000, 20_000), value=finite)
    def append(self, name, ahead, value):
        time = self.now + ahead
        self.now = max(self.now, time)
        accepted = self.handle(name).append(time / 1000, value)
        assert accepted == self.model.add(name, time, value)

    @rule(name=names, value=values)
    def append_any_bits(self, name, value):
        self.now += 1
        assert self.handle(name).append(self.now / 1000, value)
        self.model.add(name, self.now, value)

    @rule(
        name=names,
        count=strategies.integers(1, 900),
        step=strategies.sampled_from([1, 10, 1000, 15_000]),
        even=strategies.booleans(),
    )
    def extend(self, name, count, step, even):
        n = np.arange(count)
        times = self.now + step * n + (0 if even else n % 3)
        numbers = np.round(np.sin(n / 10) * 100, 2)
        accepted = self.handle(name).extend(times / 1000, numbers)
        self.now = max(self.now, int(times[-1]))
        right = sum(
            self.model.add(name, int(time), float(value))
            for time, value in zip(times, numbers, strict=True)
        )
        assert accepted == right

    @rule(name=names, back=strategies.integers(1, 400_000), count=strategies.integers(1, 300))
    def backfill(self, name, back, count):
        times = self.now - back + 7 * np.arange(count)
        numbers = np.arange(count, dtype=float)
        assert self.handle(name).extend(times / 1000, numbers, backfill=True) == count
        for time, value in zip(times.tolist(), numbers.tolist(), strict=True):
            self.model.add(name, time, value, backfill=True)
        self.now = max(self.now, int(times[-1]))

    @rule(name=names, back=strategies.integers(0, 200_000), size=strategies.integers(0, 100_000))
    def delete(self, name, back, size):
        start = self.now - back
        self.metrics.delete(f'm{{n="{name}"}}', start / 1000, (start + size) / 1000)
        self.model.delete(name, start, start + size)

    @rule()
    def step(self):
        self.metrics.engine.step()

    @rule()
    def write_pending(self):
        self.metrics.engine.write_pending()

    @rule()
    def checkpoint(self):
        self.metrics.checkpoint()

    @rule()
    def compact(self):
        self.metrics.compact()

    @rule()
    def merge_what_is_sealed(self):
        engine = self.metrics.engine
        sealed = [one for one in engine.segments.values() if one.kind == 0 and one.sealed]
        if sealed:
            engine.merger.merge(sealed)

    @rule()
    def reopen(self):
        device = self.metrics.engine.device
        self.metrics.close()
        self.metrics = opened(device.reopened(device.content), seed=self.now)

    @rule()
    def crash_after_sync(self):
        self.metrics.sync()
        device = self.metrics.engine.device
        self.metrics = opened(device.reopened(device.content), seed=self.now + 1)

    @rule(start=strategies.integers(-300_000, 0), size=strategies.integers(0, 300_000))
    def read_a_range(self, start, size):
        low = self.now + start
        found = contents(self.metrics, low / 1000, (low + size) / 1000)
        assert found == self.model.within(low, low + size)

    @rule()
    def read_all(self):
        assert contents(self.metrics) == self.model.within(-(1 << 62), 1 << 62)

    @rule(step=strategies.sampled_from([10_000, 60_000]))
    def read_tier(self, step):
        infinite = any(
            value in (bits(math.inf), bits(1e15))
            for samples in self.model.samples.values()
            for value in samples.values()
        )
        if not infinite:
            assert_tier(self.metrics, self.model, step)

    @rule()
    def verify(self):
        assert self.metrics.verify().problems == []

    @invariant()
    def nothing_exceeds_its_limits(self):
        if hasattr(self, "metrics"):
            self.metrics.engine.head.check_invariants()
            self.metrics.engine.log.check_invariants()

    def teardown(self):
        if hasattr(self, "metrics"):
            self.read_all()
            self.metrics.close()


TestMetricsModel = MetricsMachine.TestCase
TestMetricsModel.settings = settings(max_examples=15, stateful_step_count=20)
