"""Queries that are answered from tiers: the same answers as from samples, or a word about it."""

from __future__ import annotations

import numpy as np
import pytest
from metricsrig import T0, crash_device, opened

from siltstone.metrics.source import STALE_NAN

START = T0 // 600 * 600
SAMPLES = 3000
GRIDS = [  # range, step; the first step is START + 600
    ("60s", 60),
    ("120s", 60),
    ("60s", 300),
    ("10m", 600),
    ("20s", 10),
    ("30s", 30),
    ("60s", 90),
]
FUNCTIONS = ["sum", "avg", "min", "max", "count", "present"]


def filled(**options):
    metrics = opened(crash_device(96), **options)
    rng = np.random.default_rng(7)
    times = START + np.arange(SAMPLES)
    values = np.round(np.cumsum(rng.normal(size=SAMPLES)), 2)
    holes = rng.random(SAMPLES) < 0.9
    holes[1000:1130] = False
    strange = values.copy()
    strange[rng.random(SAMPLES) < 0.01] = np.nan
    strange[500:620] = np.nan
    strange[1200] = np.inf
    strange[1290:1300] = STALE_NAN  # until the end of a bucket
    strange[1500] = STALE_NAN
    metrics.extend("m", {"n": "whole"}, times, values)
    metrics.extend("m", {"n": "holes"}, times[holes], values[holes])
    metrics.extend("m", {"n": "strange"}, times, strange)
    metrics.extend("m", {"n": "odd"}, times[::7] + 0.25, values[::7])
    return metrics


@pytest.fixture(scope="module")
def both():
    """The same samples twice: read from tiers wherever they serve, and never."""
    tiers, samples = filled(tier_from_samples=0), filled(tier_from_samples=1 << 40)
    tiers.compact()
    yield tiers, samples
    tiers.close()
    samples.close()


def ask(metrics, query, step):
    return metrics.query_range(query, START + 600, START + SAMPLES - 1, step)


def assert_same(found, expected, *, exact=False):
    assert found.labels == expected.labels
    assert (found.present == expected.present).all()
    here, wanted = found.values[found.present], expected.values[expected.present]
    if exact:
        np.testing.assert_array_equal(here, wanted)
    else:
        np.testing.assert_allclose(here, wanted, rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(("window", "step"), GRIDS)
def test_functions_of_windows_are_those_of_the_samples(both, function, window, step):
    query = f"{function}_over_time(m[{window}])"
    found, expected = (ask(metrics, query, step) for metrics in both)
    assert expected.tiers == ()
    assert found.tiers == (("1m",) if window in ("60s", "120s", "10m") and step % 60 == 0
                           else ("10s",))  # fmt: skip
    assert found.warnings == ()
    assert_same(found, expected, exact=function in ("min", "max", "count", "present"))


@pytest.mark.parametrize(("step", "tier"), [(60, "1m"), (120, "1m"), (10, "10s"), (50, "10s")])
def test_an_instant_selector_sees_the_same_samples(both, step, tier):
    for query in ("m", "m offset 1m", "timestamp(m)"):
        found, expected = (ask(metrics, query, step) for metrics in both)
        assert found.tiers == (tier,)
        assert_same(found, expected, exact=True)


@pytest.mark.parametrize(
    "query",
    [
        "rate(m[1m])",
        "stddev_over_time(m[1m])",
        "quantile_over_time(0.5, m[1m])",
        "sum_over_time(m[61s])",
        "sum_over_time(m[1m] offset 1s)",
        "last_over_time(m[1m])",
    ],
)
def test_what_points_cannot_say_is_read_from_samples(both, query):
    found, expected = (ask(metrics, query, 60) for metrics in both)
    assert found.tiers == ()
    assert_same(found, expected, exact=True)


def test_a_grid_beside_the_buckets_reads_samples(both):
    tiers, samples = both
    found, expected = (
        metrics.query_range("sum_over_time(m[1m])", START + 601, START + 2000, 60)
        for metrics in (tiers, samples)
    )
    assert found.tiers == ()
    assert_same(found, expected, exact=True)


def test_one_moment_and_a_moment_fixed_by_at(both):
    for query in ("sum_over_time(m[10m])", f"max_over_time(m[5m] @ {START + 1200})"):
        found, expected = (metrics.query(query, START + 1800) for metrics in both)
        assert found.tiers == ("1m",)
        assert_same(found, expected)
    assert ask(both[0], f"sum_over_time(m[5m] @ {START + 1200})", 60).tiers == ("1m",)


def test_few_samples_are_read_as_they_are():
    with filled() as metrics:
        metrics.compact()
        assert ask(metrics, "sum_over_time(m[1m])", 60).tiers == ()
    with filled(tier_from_samples=SAMPLES // 2) as metrics:
        metrics.compact()
        assert ask(metrics, "sum_over_time(m[1m])", 60).tiers == ("1m",)


def test_what_came_late_counts_before_the_merge():
    with filled(tier_from_samples=0) as tiers, filled(tier_from_samples=1 << 40) as samples:
        tiers.compact()
        for metrics in (tiers, samples):
            late = [START + 900.5, START + 901.5, START + 2000.5]
            metrics.extend("m", {"n": "whole"}, late, [1e6, -1e6, 5e6], backfill=True)
            metrics.append("m", {"n": "new"}, START + 1000, 1, backfill=True)
        for _ in range(3):
            for query in ("max_over_time(m[1m])", "count_over_time(m[10m])", "m"):
                found, expected = (ask(metrics, query, 60) for metrics in (tiers, samples))
                assert_same(found, expected, exact=True)
            tiers.checkpoint()
            tiers.compact()


def test_deleted_samples_are_in_no_answer():
    with filled(tier_from_samples=0) as tiers, filled(tier_from_samples=1 << 40) as samples:
        tiers.compact()
        for metrics in (tiers, samples):
            metrics.delete('m{n="whole"}', START + 1000, START + 1313)
            metrics.delete('m{n="odd"}')
        for query in ("count_over_time(m[1m])", "min_over_time(m[2m])", "m"):
            found, expected = (ask(metrics, query, 60) for metrics in (tiers, samples))
            assert_same(found, expected, exact=True)


# Where samples have expired -------------------------------------------------------------------


@pytest.fixture(scope="module")
def expired():
    """A small quota: the samples of the first hours are gone, the tiers are not."""
    metrics = opened(crash_device(30), merge_samples=512)
    rng = np.random.default_rng(1)
    series = [metrics.series("m", n=str(n)) for n in range(4)]
    given = [np.cumsum(rng.random(60_000)) for _ in series]
    for first in range(0, 60_000, 500):
        part = slice(first, first + 500)
        for handle, values in zip(series, given, strict=True):
            handle.extend(START + np.arange(60_000)[part], values[part])
        metrics.engine.step()
    yield metrics, given
    metrics.close()


def first_sample(metrics):
    return int(min(one.times[0] for one in metrics.select("m"))) // 1000


def test_tiers_stand_in_for_samples_that_have_expired(expired):
    metrics, given = expired
    gone = first_sample(metrics)
    assert gone > START + 5000
    oldest = int(metrics.select("m", tier="1m")[0].times[0]) // 1000
    assert oldest < gone - 1000
    found = metrics.query_range("m", oldest + 7, gone - 1, 77)
    assert found.tiers != ()
    assert "have expired" in found.warnings[0]
    assert found.present[:, 1:].all()
    for batch in metrics.engine.reader.each([], 0, 1 << 50, list, stand_in=True):
        for series in batch:
            assert (np.diff(series.times) > 0).all()
            assert series.times[0] < gone * 1000 - 60_000 < series.times[-1]
    for row, labels in enumerate(found.labels):
        values = given[int(labels["n"])]
        for time, value in zip(found.times // 1000, found.values[row], strict=True):
            where = int(np.flatnonzero(values == value)[0])  # a sample that was given
            assert 0 <= time - (START + where) <= 60


def test_functions_of_windows_do_not_notice_that_samples_have_expired(expired):
    metrics, given = expired
    gone = first_sample(metrics)
    oldest = -(-int(metrics.select("m", tier="1m")[0].times[0]) // 60_000) * 60 + 60
    found = metrics.query_range("max_over_time(m[2m])", oldest + 60, gone, 60)
    assert found.tiers == ("1m",)
    assert found.warnings == ()
    for row, labels in enumerate(found.labels):
        values = given[int(labels["n"])]
        for time, value in zip(found.times // 1000 - START, found.values[row], strict=True):
            assert value == values[time - 120 : time + 1].max()


def test_a_rate_over_expired_samples_is_near(expired):
    metrics, _ = expired
    gone = first_sample(metrics)
    found = metrics.query_range("rate(m[10m])", gone - 1900, gone - 700, 61)
    assert "have expired" in found.warnings[0]
    assert found.present.all()
    np.testing.assert_allclose(found.values, 0.5, rtol=0.1)


def test_one_moment_whose_samples_have_expired(expired):
    metrics, given = expired
    moment = first_sample(metrics) - 631
    found = metrics.query("m", moment)
    assert found.present.all()
    for row, labels in enumerate(found.labels):
        where = int(np.flatnonzero(given[int(labels["n"])] == found.values[row, 0])[0])
        assert 0 <= moment - (START + where) <= 60


def test_it_is_remembered_what_has_expired(expired):
    metrics, _ = expired
    until = metrics.engine.retention.dropped_until_ms
    assert until > START * 1000
    device = metrics.engine.device
    with opened(device.reopened(device.content), merge_samples=512) as again:  # after a crash
        assert again.engine.retention.dropped_until_ms == until
    metrics.checkpoint()
    with opened(device.reopened(device.content), merge_samples=512) as again:
        assert again.engine.retention.dropped_until_ms == until
