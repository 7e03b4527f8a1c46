"""What a user may get wrong with time series: an error of ours that says so, nothing stored."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import pytest
from metricsrig import T0, opened

import siltstone
from siltstone import errors
from siltstone.log.device import MemoryDevice


@pytest.fixture
def metrics() -> Iterator[siltstone.Metrics]:
    with opened(MemoryDevice(48, 1 << 16, engine="metrics")) as one:
        yield one


NO_VALUES = ["1", b"1", None, 1j, 10**400, "x", [1], object()]


@pytest.mark.parametrize("value", NO_VALUES, ids=lambda value: repr(value)[:20])
def test_what_is_no_value(metrics, value):
    handle = metrics.series("a")
    with pytest.raises(errors.InvalidValue):
        handle.append(T0, value)
    for values in ([value], [1.0, value], np.array([value, 2.0], object)):
        with pytest.raises(errors.InvalidValue):
            handle.extend([T0 + n for n in range(len(values))], values)
    with pytest.raises(errors.InvalidValue):
        metrics.write([("a", {}, T0, 1.0), ("a", {}, T0 + 1, value)])
    assert metrics.select("a") == []


def test_numbers_of_every_kind_are_values(metrics):
    handle = metrics.series("a")
    kinds = [1, True, 2.5, np.float32(3.5), np.int8(-4), Fraction(1, 4), math.inf]
    for second, value in enumerate(kinds):
        assert handle.append(T0 + second, value)
    assert handle.extend(T0 + 7, np.array([8], np.uint16)) == 1
    assert handle.extend([T0 + 8], [Fraction(1, 2)]) == 1
    (found,) = metrics.select("a")
    assert found.values.tolist() == [1, 1, 2.5, 3.5, -4, 0.25, math.inf, 8, 0.5]


@pytest.mark.parametrize("values", [[[1.0]], np.zeros((1, 1))], ids=["list", "array"])
def test_values_have_one_dimension(metrics, values):
    with pytest.raises(errors.InvalidValue, match="one dimension"):
        metrics.series("a").extend([T0], values)


def test_sequences_within_sequences(metrics):
    handle = metrics.series("a")
    for times, values in (([T0, [T0]], [1.0, 2.0]), ([T0, T0 + 1], [1.0, [2.0]])):
        with pytest.raises(errors.InvalidValue, match="these are no"):
            handle.extend(times, values)


@pytest.mark.parametrize("labels", [{5: "x"}, {b"a": "x"}, [("a", "x")], "ab", 7])
def test_what_are_no_labels(metrics, labels):
    with pytest.raises(errors.InvalidValue, match="labels"):
        metrics.append("a", labels, T0, 1.0)
    with pytest.raises(errors.InvalidValue, match="labels"):
        metrics.write([("a", labels, T0, 1.0)])
    assert metrics.list_series() == []


@pytest.mark.parametrize("promql", [None, 5, b"up", ["up"]])
def test_queries_are_text(metrics, promql):
    with pytest.raises(errors.InvalidQuery, match="a str"):
        metrics.query(promql, T0)
    with pytest.raises(errors.InvalidQuery, match="a str"):
        metrics.query_range(promql, T0, T0 + 1, 1)


def test_everything_is_deleted_only_by_name(metrics):
    metrics.append("a", {}, T0, 1.0)
    with pytest.raises(errors.InvalidValue, match="say which"):
        metrics.delete(None)
    assert metrics.delete('{__name__=~".+"}') == 1
    assert metrics.select("a") == []


def test_what_is_closed_is_not_entered_again(metrics):
    metrics.close()
    with pytest.raises(errors.Closed), metrics:
        pass


def test_backups_go_to_any_kind_of_path(metrics, tmp_path):
    metrics.append("a", {}, T0, 1.0)
    for path in (str(tmp_path / "a"), tmp_path / "b", bytes(tmp_path / "c")):
        metrics.backup(path)
        with siltstone.Metrics(path) as copy:
            assert copy.label_values("__name__") == ["a"]
