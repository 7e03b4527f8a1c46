"""The evaluator's edges: limits, time and cancellation, results in other forms, bad queries."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import ManualClock
from promqlrig import MemorySource, series

from siltstone.errors import (
    InvalidQuery,
    QueryCancelled,
    QueryFailed,
    QueryTimeout,
    QueryTooLarge,
)
from siltstone.metrics import promql, syntax, windows
from siltstone.metrics.numbers import number_text, sample_text
from siltstone.metrics.source import STALE_NAN, Matcher, Series
from siltstone.metrics.syntax import parse
from siltstone.metrics.syntax_tree import tree

TEXTS = (
    'up{host="a"} 1 NaN 3 _ 5',
    'up{host="b", zone="<x>"} -0.5 1e-9 stale 1e22',
    "requests 0+60x20",
)


@pytest.fixture
def source() -> MemorySource:
    return MemorySource([series(text, 0, 60_000) for text in TEXTS])


# Limits, time, cancellation -----------------------------------------------------------------


def test_a_query_that_reads_too_many_samples(source: MemorySource) -> None:
    limits = promql.Limits(samples_max=10)
    assert promql.query(source, 'up{host="a"}', 0, limits).values[0, 0] == 1
    with pytest.raises(QueryTooLarge, match=r"too many samples .* \(more than 10\)"):
        promql.query(source, "requests[20m]", 1_200_000, limits)


def test_the_values_of_a_grid_count_too(source: MemorySource) -> None:
    limits = promql.Limits(samples_max=1000)
    with pytest.raises(QueryTooLarge):
        promql.query_range(source, "requests + 1", 0, 1_000_000, 1000, limits)
    with pytest.raises(QueryTooLarge):  # before the steps are allocated
        promql.query(source, "sum_over_time(vector(1)[100y:1ms])", 0, limits)


def test_too_many_points(source: MemorySource) -> None:
    with pytest.raises(InvalidQuery, match=r"maximum resolution of 11,000 points"):
        promql.query_range(source, "up", 0, 11_001, 1)
    assert len(promql.query_range(source, "1", 0, 11_000, 1).times) == 11_001


@pytest.mark.parametrize(
    ("start", "end", "step", "text"),
    [(1, 0, 1, "end timestamp must not be before start time"),
     (0, 1, 0, "zero or negative query resolution step widths are not accepted"),
     (0, 1, -5, "zero or negative")],
)  # fmt: skip
def test_ranges_that_make_no_sense(
    source: MemorySource, start: int, end: int, step: int, text: str
) -> None:
    with pytest.raises(InvalidQuery, match=text):
        promql.query_range(source, "up", start, end, step)


class SlowSource(MemorySource):
    """Takes its time for each selector."""

    def __init__(self, clock: ManualClock, milliseconds: int) -> None:
        super().__init__([series(text, 0, 60_000) for text in TEXTS])
        self.clock, self.milliseconds = clock, milliseconds

    def select(
        self, matchers: Sequence[Matcher], start_ms: int, end_ms: int, step_hint_ms: int = 0
    ) -> list[Series]:
        self.clock.advance(self.milliseconds / 1000)
        return super().select(matchers, start_ms, end_ms, step_hint_ms)


def test_a_query_out_of_time() -> None:
    clock = ManualClock()
    slow = SlowSource(clock, 700)
    limits = promql.Limits(timeout_seconds=1.0)
    assert promql.query(slow, "up", 0, limits, clock=clock).values.shape == (2, 1)
    with pytest.raises(QueryTimeout, match="query timed out in expression evaluation"):
        promql.query(slow, "up + up", 0, limits, clock=clock)


def test_a_query_that_is_stopped(source: MemorySource) -> None:
    asked = 0

    def cancelled() -> bool:
        nonlocal asked
        asked += 1
        return asked > 3

    with pytest.raises(QueryCancelled, match="query was canceled"):
        promql.query(source, "up + (up + (up + up))", 0, cancelled=cancelled)
    assert asked == 4


def test_many_series_are_looked_after_in_batches() -> None:
    many = [series(f'm{{n="{n}"}} 1 2', 0, 1000) for n in range(600)]
    asked = []
    result = promql.query(
        MemorySource(many), "sum(rate(m[2s]))", 1000, cancelled=lambda: bool(asked.append(1))
    )
    assert result.values[0, 0] == pytest.approx(600 * 0.75, rel=1)
    assert len(asked) >= 600 / promql.BATCH_SERIES


# Bad queries --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("up{", "unexpected end of input"),
        ("foo bar", "parse error"),
        ("nosuch(up)", "nosuch"),
        ("rate(up)", "expected type matrix"),
        ("info(up)", 'function "info" is not supported'),
        ("limit_ratio(0.5, up)", 'aggregation "limit_ratio" is not supported'),
        ('up{a="b" or c="d"}', '"or" between label matchers is not supported'),
        ("up + on (a) fill(1) up", "fill modifiers are not supported"),
        ('up{a=~"("}', "illegal regex"),
        ("(" * 400 + "1" + ")" * 400, "expressions inside each other"),
        ("1" + "+1" * 20_000, "more than 1000 operators and brackets"),
        ("-(" * 20_000 + "1" + ")" * 20_000, "more than 1000 operators and brackets"),
        ("1" * (1 << 20) + "1", "bytes long"),
        ("", "no expression found"),
        ("up @ 1e17", "timestamp out of bounds for @ modifier"),
        ("rate(up[5m] @ -1e17)", "timestamp out of bounds for @ modifier"),
    ],
    ids=lambda text: text[:40],
)
def test_queries_that_are_refused(source: MemorySource, query: str, text: str) -> None:
    with pytest.raises(InvalidQuery) as caught:
        promql.query(source, query, 0)
    assert text in str(caught.value)
    assert str(caught.value).startswith('invalid parameter "query": parse error: ')


def test_long_strings_are_no_operators(source: MemorySource) -> None:
    text = "+" * 5000
    assert promql.query(source, f'"{text}"', 0).text == text
    assert not len(promql.query(source, f"up{{host='{text}'}}  # {text}", 0))


@pytest.mark.parametrize("query", ["up[5m]", "up[5m:1m]", "(up[5m])"])
def test_a_range_of_ranges(source: MemorySource, query: str) -> None:
    with pytest.raises(InvalidQuery, match="must be Scalar or instant Vector"):
        promql.query_range(source, query, 0, 1, 1)
    with pytest.raises(InvalidQuery, match='invalid expression type "string"'):
        promql.query_range(source, '"text"', 0, 1, 1)


def test_selectors() -> None:
    assert syntax.selector('up{a!="b"}') == [
        Matcher("a", "!=", "b"),
        Matcher("__name__", "=", "up"),
    ]
    for text in ("up offset 5m", "rate(up[5m])", "up[5m]", "1"):
        with pytest.raises(InvalidQuery, match=r'invalid parameter "match\[\]"'):
            syntax.selector(text)


def test_patterns_are_anchored_and_linear(source: MemorySource) -> None:
    evil = series('up{host="' + "a" * 5000 + '"} 1', 0, 60_000)
    assert not len(promql.query(MemorySource([evil]), 'up{host=~"(a+)+b"}', 0))
    assert len(promql.query(source, 'up{host=~"a"}', 0)) == 1


# What the source is asked -------------------------------------------------------------------


class AskedSource(MemorySource):
    """Notes what it is asked."""

    def __init__(self) -> None:
        super().__init__([])
        self.asked: list[tuple[int, int, int]] = []

    def select(
        self, matchers: Sequence[Matcher], start_ms: int, end_ms: int, step_hint_ms: int = 0
    ) -> list[Series]:
        self.asked.append((start_ms, end_ms, step_hint_ms))
        return []


@pytest.mark.parametrize(
    ("query", "asked"),
    [
        ("up", (700_000, 1_600_000, 60_000)),
        ("up offset 1m", (640_000, 1_540_000, 60_000)),
        ("up offset -1m", (760_000, 1_660_000, 60_000)),
        ("up @ 2000", (1_700_000, 2_000_000, 60_000)),
        ("rate(up[2m])", (880_000, 1_600_000, 0)),
        ("rate(up[2m] offset 1m)", (820_000, 1_540_000, 0)),
        ("max_over_time(up[2m:1m])", (600_000, 1_560_000, 60_000)),
        ("max_over_time(rate(up[2m])[2m:90s])", (780_000, 1_530_000, 0)),
    ],
)
def test_what_is_read(query: str, asked: tuple[int, int, int]) -> None:
    source = AskedSource()
    promql.query_range(source, query, 1_000_000, 1_600_000, 60_000)
    assert source.asked == [asked]


# Results ------------------------------------------------------------------------------------


def test_json_is_what_prometheus_sends(source: MemorySource) -> None:
    vector = promql.query(source, "up", 60_500)
    assert vector.to_json() == (
        '{"resultType":"vector","result":['
        '{"metric":{"__name__":"up","host":"a"},"value":[60.500,"NaN"]},'
        '{"metric":{"__name__":"up","host":"b","zone":"\\u003cx\\u003e"},"value":[60.500,"1e-09"]}]}'
    )
    matrix = promql.query_range(source, 'up{host="b"}', 60_000, 180_000, 60_000)
    assert json.loads(matrix.to_json())["result"][0]["values"] == [[60, "1e-09"], [180, "1e+22"]]
    scalar = promql.query(source, "1e22 / 2", 1_500)
    assert scalar.to_json() == '{"resultType":"scalar","result":[1.5,"5000000000000000000000"]}'
    text = promql.query(source, '"a\\"b"', 1_000)
    assert text.to_json() == '{"resultType":"string","result":[1,"a\\"b"]}'
    assert promql.query(source, "missing", 0).to_json() == '{"resultType":"vector","result":[]}'


@pytest.mark.parametrize(
    ("value", "plain", "sample"),
    [(1.0, "1", "1"), (-0.0, "-0", "-0"), (0.1, "0.1", "0.1"), (1e-6, "0.000001", "0.000001"),
     (1.5e-7, "0.00000015", "1.5e-07"), (1e20, "1" + "0" * 20, "1" + "0" * 20),
     (1e21, "1" + "0" * 21, "1e+21"), (123456789.125, "123456789.125", "123456789.125"),
     (np.inf, "+Inf", "+Inf"), (-np.inf, "-Inf", "-Inf"), (np.nan, "NaN", "NaN"),
     (5e-324, "0." + "0" * 323 + "5", "5e-324")],
)  # fmt: skip
def test_numbers(value: float, plain: str, sample: str) -> None:
    assert number_text(value) == plain
    assert sample_text(value) == sample


def test_arrays(source: MemorySource) -> None:
    result = promql.query_range(source, "up", 0, 240_000, 60_000)
    assert result.kind == "matrix"
    assert result.labels[0] == {"__name__": "up", "host": "a"}
    assert result.times.tolist() == [0, 60_000, 120_000, 180_000, 240_000]
    assert result.seconds.tolist() == [0, 60, 120, 180, 240]
    # NaN is a sample of a; b is gone at 120 s, where its staleness marker stands
    assert result.present.tolist() == [[True] * 5, [True, True, False, True, True]]
    assert np.isnan(result.to_numpy()[1, 2])
    assert result.values[0, 2] == 3


def test_a_matrix_of_samples(source: MemorySource) -> None:
    result = promql.query(source, "up[10m]", 240_000)
    assert result.times.tolist() == [0, 60_000, 120_000, 180_000, 240_000]
    assert result.present.tolist() == [
        [True, True, True, False, True],
        [True, True, False, True, False],
    ]


def test_frames(source: MemorySource) -> None:
    result = promql.query_range(source, "up", 0, 60_000, 60_000)
    pandas, polars = result.to_pandas(), result.to_polars()
    assert list(pandas.columns) == ["time", "__name__", "host", "zone", "value"]
    assert polars.columns == list(pandas.columns)
    assert polars["zone"].to_list() == [None, None, "<x>", "<x>"]
    assert polars["time"].dtype.time_zone == "UTC"  # type: ignore[attr-defined]
    assert polars["time"].dt.epoch("ms").to_list() == [0, 60_000, 0, 60_000]
    assert polars["value"].to_list()[2:] == [-0.5, 1e-9]
    assert pandas["time"].dt.tz is not None
    table = result.to_arrow()
    assert table.num_rows == 4
    assert table["host"].to_pylist() == ["a", "a", "b", "b"]
    table.validate(full=True)


def test_frames_of_nothing_and_of_awkward_names() -> None:
    empty = promql.query(MemorySource([]), "up", 0)
    assert empty.to_polars().columns == ["time", "value"]
    assert empty.to_arrow().num_rows == 0
    awkward = MemorySource([series('up{time="noon", value="high"} 1', 0, 1000)])
    assert promql.query(awkward, "up", 0).to_polars().columns == [
        "time", "__name__", "time_", "value_", "value",
    ]  # fmt: skip


def test_an_arrow_stream_that_nobody_takes_is_freed(source: MemorySource) -> None:
    from siltstone.metrics import arrow

    times = np.array([1], "datetime64[ms]")
    before = sys.getrefcount(times)
    for _ in range(100):
        arrow.export_stream({"time": times, "text": np.array(["é"], object)})
    assert sys.getrefcount(times) <= before + 1
    with pytest.raises(TypeError, match="no Arrow type for a column of int32"):
        arrow.export_stream({"n": np.array([1], np.int32)})


# The kernels' own checks --------------------------------------------------------------------


def test_times_and_values_of_different_length() -> None:
    times, values = [np.array([1, 2], np.int64)], [np.array([1.0])]
    with pytest.raises(ValueError, match="2 times and 1 values"):
        windows.instant(times, values, np.array([1], np.int64), 1)


def test_views_and_staleness_markers_inside_a_window() -> None:
    whole = np.arange(10, dtype=np.float64)
    whole[4] = STALE_NAN
    times = np.arange(0, 10_000, 1000, dtype=np.int64)
    one = Series({"__name__": "m"}, times[1:], whole[1:])
    one.values.flags.writeable = False
    result = promql.query(MemorySource([one]), "count_over_time(m[20s])", 9_000)
    assert result.values[0, 0] == 8
    strided = Series({"__name__": "m"}, times[::2], whole[::2])
    assert promql.query(MemorySource([strided]), "sum_over_time(m[20s])", 9_000).values[0, 0] == 16


def test_a_window_with_nothing_but_the_marker(source: MemorySource) -> None:
    only = Series({"__name__": "m"}, np.array([5], np.int64), np.array([STALE_NAN]))
    assert not len(promql.query(MemorySource([only]), "count_over_time(m[1m])", 5))
    assert not len(promql.query(MemorySource([only]), "m", 5))


def test_duplicates_after_the_name_is_gone() -> None:
    two = MemorySource([series('a{x="1"} 1', 0, 1000), series('b{x="1"} 2', 0, 1000)])
    with pytest.raises(QueryFailed, match="cannot contain metrics with the same labelset"):
        promql.query(two, '{x="1"} * 2', 0)


# The page of what is covered ----------------------------------------------------------------


def test_the_conformance_page_is_made_from_the_scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    tools = Path(__file__).parent.parent.parent / "tools"
    monkeypatch.syspath_prepend(str(tools))
    import promqlpage as page_maker

    assert page_maker.PAGE.read_text() == page_maker.page(), "run tools/promqlpage.py --write"


def test_every_function_is_covered(monkeypatch: pytest.MonkeyPatch) -> None:
    tools = Path(__file__).parent.parent.parent / "tools"
    monkeypatch.syspath_prepend(str(tools))
    import promqlpage as page_maker

    by_name = page_maker.cases_by_name()
    names = page_maker.ALL_FUNCTIONS | page_maker.AGGREGATIONS | page_maker.OPERATORS
    assert not [name for name in names - page_maker.NATIVE if name not in by_name]


# Trees --------------------------------------------------------------------------------------


UP = {"type": "vectorSelector", "name": "up", "offset": 0, "timestamp": None, "startOrEnd": None,
      "matchers": [{"name": "__name__", "type": "=", "value": "up"}]}  # fmt: skip
TWO = {"type": "numberLiteral", "val": "2"}
ONE_TO_ONE = {"card": "one-to-one", "labels": [], "on": False, "include": []}
RATE = {"name": "rate", "argTypes": ["matrix"], "variadic": 0, "returnType": "vector"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("up", UP),
        ("up offset -5m @ end()", {**UP, "offset": -300_000, "startOrEnd": "end"}),
        ("up @ 1.5", {**UP, "timestamp": 1500}),
        ("2", TWO),
        ("-Inf", {"type": "numberLiteral", "val": "-Inf"}),
        ("'a'", {"type": "stringLiteral", "val": "a"}),
        ("(up)", {"type": "parenExpr", "expr": UP}),
        ("-up", {"type": "unaryExpr", "op": "-", "expr": UP}),
        ("up[5m:30s] offset 1m", {"type": "subquery", "expr": UP, "range": 300_000, "step": 30_000,
                                  "offset": 60_000, "timestamp": None, "startOrEnd": None}),
        ("rate(up[5m])", {"type": "call", "func": RATE, "args": [
            {**UP, "type": "matrixSelector", "range": 300_000}]}),
        ("topk by (a) (2, up)", {"type": "aggregation", "op": "topk", "expr": UP, "param": TWO,
                                 "grouping": ["a"], "without": False}),
        ("sum without (a) (up)", {"type": "aggregation", "op": "sum", "expr": UP, "param": None,
                                  "grouping": ["a"], "without": True}),
        ("sum(up)", {"type": "aggregation", "op": "sum", "expr": UP, "param": None,
                     "grouping": [], "without": False}),
        ("up > bool 2", {"type": "binaryExpr", "op": ">", "lhs": UP, "rhs": TWO, "matching": None,
                         "bool": True}),
        ("up * up", {"type": "binaryExpr", "op": "*", "lhs": UP, "rhs": UP,
                     "matching": ONE_TO_ONE, "bool": False}),
        ("up unless up", {"type": "binaryExpr", "op": "unless", "lhs": UP, "rhs": UP,
                          "matching": {**ONE_TO_ONE, "card": "many-to-many"}, "bool": False}),
        ("up / on (a) group_right (b) up", {
            "type": "binaryExpr", "op": "/", "lhs": UP, "rhs": UP, "bool": False,
            "matching": {"card": "one-to-many", "labels": ["a"], "on": True, "include": ["b"]}}),
    ],
)  # fmt: skip
def test_trees_are_those_of_prometheus_3(text: str, expected: dict[str, Any]) -> None:
    assert tree(parse(text)) == expected


def test_scalars_are_not_matched() -> None:
    for text in ("up + time()", "up + (1 + 2)", "-(1) + up", "scalar(up) + up"):
        assert tree(parse(text))["matching"] is None
    assert tree(parse("vector(1) + up"))["matching"] == ONE_TO_ONE
