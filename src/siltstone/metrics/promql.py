"""PromQL, evaluated with numpy over a grid of steps: the whole range of a query at once.

`query` and `query_range` parse, evaluate against a `Source` (source.py) and give a `Result`. The
meaning is Prometheus 2.42's: a sample counts for five minutes unless a staleness marker ends its
series, ranges are closed on both sides, rates are extrapolated to their window. A query is one
thread's; it looks at the clock and at its caller's wish to stop between batches of series.

Non-goals: native histograms, and what the parser knows of Prometheus 3 (syntax.py lists it).
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar, cast

import numpy as np
import promql_parser as parser
from promql_parser import Expr

from siltstone.clock import SYSTEM_CLOCK, Clock
from siltstone.config import format_duration
from siltstone.errors import (
    InvalidQuery,
    QueryCancelled,
    QueryFailed,
    QueryTimeout,
    QueryTooLarge,
)
from siltstone.metrics import labels as ls
from siltstone.metrics import matching, tiered, windows
from siltstone.metrics.aggregations import Grouping, aggregate
from siltstone.metrics.functions import FUNCTIONS
from siltstone.metrics.grid import (
    Coarse,
    Mask,
    Matrix,
    Part,
    Parts,
    Value,
    Vector,
    distinct,
    empty,
    merged,
    one,
)
from siltstone.metrics.labels import Labels
from siltstone.metrics.result import Kind, Result
from siltstone.metrics.source import (
    NAME_LABEL,
    STALE_NAN_BITS,
    Points,
    QuickSource,
    Series,
    Source,
    Times,
    Values,
)
from siltstone.metrics.syntax import (
    matchers_of,
    matching_of,
    milliseconds,
    moment_ms,
    parse,
    unwrapped,
)

A = TypeVar("A")

# A subquery without a step of its own takes Prometheus' default evaluation interval.
SUBQUERY_STEP_MS = 60_000
# The clock and the wish to stop are looked at between batches of this many series.
BATCH_SERIES = 256

Columns = tuple[Values, Mask, Times]  # of an instant selector: what windows.instant() gives

SETS = frozenset({"and", "or", "unless"})
# Window functions that take no parameter keep their name in these alone.
KEEP_NAME = frozenset({"last_over_time", "first_over_time"})
WINDOWED = frozenset(
    "rate increase delta irate idelta sum_over_time avg_over_time min_over_time max_over_time "
    "count_over_time present_over_time last_over_time first_over_time stdvar_over_time "
    "stddev_over_time changes resets quantile_over_time mad_over_time deriv predict_linear "
    "holt_winters double_exponential_smoothing".split()
)
SMOOTHING = frozenset({"holt_winters", "double_exponential_smoothing"})


@dataclass(frozen=True, slots=True)
class Limits:
    """What one query may cost; reaching a limit is an error that names it."""

    timeout_seconds: float = 120.0
    points_max: int = 11_000  # steps of a range query
    samples_max: int = 50_000_000  # read from the source, and values on grids of steps
    lookback_ms: int = 300_000  # how long a sample counts


@dataclass(slots=True)
class Budget:
    """One query's time and samples; `cancelled` is asked now and then."""

    limits: Limits
    clock: Clock = SYSTEM_CLOCK
    cancelled: Callable[[], bool] | None = None
    samples: int = 0
    tiers: set[int] = field(default_factory=set)  # steps of those that were read, ms
    expired_ms: int | None = None  # up to there tiers stood in for samples
    started_ns: int = field(init=False)

    def __post_init__(self) -> None:
        self.started_ns = self.clock.monotonic_ns()

    def check(self) -> None:
        """Raises where the query must stop."""
        if self.cancelled is not None and self.cancelled():
            raise QueryCancelled("query was canceled in expression evaluation")
        elapsed_ns = self.clock.monotonic_ns() - self.started_ns
        if elapsed_ns > self.limits.timeout_seconds * 1e9:
            raise QueryTimeout("query timed out in expression evaluation")

    def note(self, stand_ins: Iterable[Coarse]) -> None:
        """Where tiers stand in for samples that have expired."""
        for coarse in stand_ins:
            self.tiers.update(step for _, step in coarse)
            self.expired_ms = max(coarse[-1][0], self.expired_ms or coarse[-1][0])

    def warnings(self) -> tuple[str, ...]:
        if self.expired_ms is None:
            return ()
        until = np.datetime64(self.expired_ms, "ms")
        return (
            f"samples before {until}Z have expired: there the answer is made of what tiers kept, "
            "one sample a step",
        )

    def take(self, samples: int) -> None:
        self.samples += samples
        if self.samples > self.limits.samples_max:
            raise QueryTooLarge(
                "query processing would load too many samples into memory in query execution"
                f" (more than {self.limits.samples_max})"
            )


def query(
    source: Source,
    text: str,
    time_ms: int,
    limits: Limits | None = None,
    *,
    clock: Clock = SYSTEM_CLOCK,
    cancelled: Callable[[], bool] | None = None,
) -> Result:
    """`text` at one moment (Unix milliseconds).

    Raises `InvalidQuery` (cannot be parsed), `QueryFailed` (no answer on this data),
    `QueryTooLarge`, `QueryTimeout`, `QueryCancelled`.
    """
    tree = parse(text)
    times = np.array([time_ms], np.int64)
    budget = Budget(limits or Limits(), clock, cancelled)
    evaluator = Evaluator(source, times, 0, time_ms, time_ms, budget)
    with np.errstate(all="ignore"):
        bare = unwrapped(tree)
        if isinstance(bare, parser.MatrixSelector | parser.SubqueryExpr):
            return evaluator.raw(bare)
        value = evaluator.evaluate(tree)
    if isinstance(value, str):
        nothing = np.zeros((0, 1))
        return Result("string", [], times, nothing, nothing.astype(np.bool_), value)
    if isinstance(value, Vector):
        return _result("vector", value.occupied(), times, budget)
    return _result("scalar", one(value), times, budget)


def query_range(
    source: Source,
    text: str,
    start_ms: int,
    end_ms: int,
    step_ms: int,
    limits: Limits | None = None,
    *,
    clock: Clock = SYSTEM_CLOCK,
    cancelled: Callable[[], bool] | None = None,
) -> Result:
    """`text` at start, start + step, ... up to end (Unix milliseconds); a matrix, sorted by labels.

    Raises as `query` does.
    """
    limits = limits or Limits()
    if step_ms <= 0:
        raise InvalidQuery(
            "zero or negative query resolution step widths are not accepted. Try a positive integer"
        )
    if end_ms < start_ms:
        raise InvalidQuery("end timestamp must not be before start time")
    if (end_ms - start_ms) // step_ms > limits.points_max:
        raise InvalidQuery(
            f"exceeded maximum resolution of {limits.points_max:,} points per timeseries. "
            "Try decreasing the query resolution (?step=XX)"
        )
    tree = parse(text)
    times = np.arange(start_ms, end_ms + 1, step_ms, dtype=np.int64)
    evaluator = Evaluator(
        source, times, step_ms, start_ms, end_ms, Budget(limits, clock, cancelled)
    )
    bare = unwrapped(tree)
    if isinstance(bare, parser.MatrixSelector | parser.SubqueryExpr | parser.StringLiteral):
        kind = "string" if isinstance(bare, parser.StringLiteral) else "range vector"
        raise InvalidQuery(
            f'invalid expression type "{kind}" for range query, must be Scalar or instant Vector'
        )
    with np.errstate(all="ignore"):
        value = evaluator.evaluate(tree)
    assert not isinstance(value, str)
    vector = value.occupied() if isinstance(value, Vector) else one(value)
    order = sorted(range(len(vector)), key=vector.labels.__getitem__)
    return _result("matrix", vector.rows(order), times, evaluator.budget)


def _result(kind: Kind, vector: Vector, times: Times, budget: Budget) -> Result:
    return Result(
        kind, vector.labels, times, vector.values, vector.present,
        tiers=tuple(format_duration(step / 1000) for step in sorted(budget.tiers)),
        warnings=budget.warnings(),
    )  # fmt: skip


@dataclass(slots=True)
class Evaluator:
    """One grid of steps; a subquery gets an evaluator of its own on the same budget."""

    source: Source
    times: Times  # of the steps
    step_ms: int  # 0: one step only
    start_ms: int  # of the whole query: start() and end()
    end_ms: int
    budget: Budget

    @property
    def quick(self) -> QuickSource | None:
        """The source, if it is one."""
        return cast(QuickSource, self.source) if _is_quick(type(self.source)) else None

    def evaluate(self, node: Expr) -> Value:
        self.budget.check()
        value = self._node(node)
        if isinstance(value, Vector):
            self.budget.take(value.values.size)
        return value

    def _node(self, node: Expr) -> Value:
        if isinstance(node, parser.NumberLiteral):
            return np.full(len(self.times), node.val)
        if isinstance(node, parser.StringLiteral):
            return node.val
        if isinstance(node, parser.ParenExpr):
            return self.evaluate(node.expr)
        if isinstance(node, parser.VectorSelector):
            return self._instant(node)[0]
        if isinstance(node, parser.Call):
            return self._call(node)
        if isinstance(node, parser.AggregateExpr):
            return self._aggregate(node)
        if isinstance(node, parser.BinaryExpr):
            return self._binary(node)
        if isinstance(node, parser.UnaryExpr):
            return self._negated(node)
        raise InvalidQuery(f"parse error: {type(node).__name__} is not expected here")

    def _vector(self, node: Expr) -> Vector:
        value = self.evaluate(node)
        assert isinstance(value, Vector), "the parser checks types"
        return value

    def _scalar(self, node: Expr) -> Values:
        value = self.evaluate(node)
        assert isinstance(value, np.ndarray), "the parser checks types"
        return value

    # Selectors ------------------------------------------------------------------------------

    def _references(self, node: parser.VectorSelector | parser.SubqueryExpr) -> tuple[Times, bool]:
        """The moments that a selector looks back from, and whether `@` makes them one."""
        moment = moment_ms(node, self.start_ms, self.end_ms)
        offset_ms = milliseconds(node.offset)
        if moment is None:
            return self.times - offset_ms, False
        return np.full(len(self.times), moment - offset_ms, np.int64), True

    def _select(
        self, node: parser.VectorSelector, first_ms: int, last_ms: int, hint_ms: int,
        function: Callable[[Part], A],
    ) -> Iterator[tuple[list[Labels], A]]:  # fmt: skip
        """See grid.Parts: the series of a selector, some at a time."""

        def work(series: Sequence[Series]) -> tuple[list[Labels], int, list[Coarse], A]:
            part = _part(series)
            samples = sum(len(times) for times in part.times)
            return part.labels, samples, [one for one in part.coarse if one], function(part)

        matchers = matchers_of(node)
        quick = self.quick
        if quick is not None:
            found = quick.each(matchers, first_ms, last_ms, work)
        else:
            series = self.source.select(matchers, first_ms, last_ms, hint_ms)
            found = (work(series[batch]) for batch in _batches(len(series)))
        for labels, samples, stand_ins, result in found:
            self.budget.take(samples)
            self.budget.note(stand_ins)
            self.budget.check()
            yield labels, result

    def _instant(self, node: parser.VectorSelector) -> tuple[Vector, Times]:
        """The newest sample of each series at each step, and its time."""
        references, fixed = self._references(node)
        if fixed:
            references = references[:1]
        lookback_ms = self.budget.limits.lookback_ms
        first, last = int(references[0]), int(references[-1])
        labels: list[Labels] = []
        parts = []
        quick = self.quick
        if len(references) == 1 and quick is not None:
            latest = quick.latest(matchers_of(node), last, lookback_ms)
            labels = list(latest.pairs)
            self.budget.take(2 * len(labels))
            here = latest.values.view(np.uint64) != STALE_NAN_BITS
            columns = (latest.values, here, latest.times)
            parts.append(tuple(column.reshape(-1, 1) for column in columns))
        else:

            def newest(part: Part) -> Columns:
                return _instant(part, references, lookback_ms)

            thinned = self._thinned(node, references)
            for names, columns in (
                _ready(*thinned)(newest) if thinned
                else self._select(node, first - lookback_ms, last, self.step_ms, newest)
            ):  # fmt: skip
                self.budget.take(len(names) * len(references))
                labels += names
                parts.append(columns)
        if not labels:
            return empty(len(self.times)), np.zeros((0, len(self.times)), np.int64)
        found, present, sampled = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        if fixed:
            found, present, sampled = (
                np.repeat(array, len(self.times), axis=1) for array in (found, present, sampled)
            )
        some = present.any(axis=1)
        if some.all():
            return Vector(labels, found, present), sampled
        rows = np.flatnonzero(some)
        return Vector(labels, found, present).rows(rows), sampled[rows]

    def _points(
        self, node: parser.VectorSelector, first_ms: int, last_ms: int, grid_ms: int
    ) -> Points | None:
        """Points of a tier that serve as well as samples, if there are such."""
        quick = self.quick
        if quick is None:
            return None
        found = quick.points(matchers_of(node), first_ms, last_ms, grid_ms)
        if found is not None:
            self.budget.take(sum(one.ends.size for one in found.series))
            self.budget.tiers.add(found.step_ms)
        return found

    def _thinned(self, node: parser.VectorSelector, references: Times) -> list[Part] | None:
        """Of each series the samples that an instant selector sees: where the steps are multiples
        of a tier's, those are the last of its buckets."""
        first, last = int(references[0]), int(references[-1])
        grid_ms = math.gcd(first, self.step_ms)
        found = self._points(node, first - self.budget.limits.lookback_ms, last, grid_ms)
        if found is None:
            return None
        return [
            Part(
                [one.pairs for one in found.series],
                [one.ends - one.lag for one in found.series],
                [np.ascontiguousarray(one.last) for one in found.series],
            )
        ]

    def _range(self, node: Expr) -> Matrix:
        """What a range selector or a subquery looks at."""
        node = unwrapped(node)
        if isinstance(node, parser.SubqueryExpr):
            return self._subquery(node)
        assert isinstance(node, parser.MatrixSelector), "the parser checks types"
        range_ms = milliseconds(node.range)
        ends, fixed = self._references(node.vector_selector)
        first, last = int(ends[0]) - range_ms, int(ends[-1])

        def each(function: Callable[[Part], A]) -> Iterator[tuple[list[Labels], A]]:
            # hint 0: a function of a window needs the samples themselves
            return self._select(node.vector_selector, first, last, 0, function)

        return Matrix(each, ends, range_ms, fixed)

    def _subquery(self, node: parser.SubqueryExpr) -> Matrix:
        range_ms = milliseconds(node.range)
        step_ms = milliseconds(node.step) or SUBQUERY_STEP_MS
        ends, fixed = self._references(node)
        # its steps are multiples of the step, whatever the outer grid
        first = -(-(int(ends[0]) - range_ms) // step_ms) * step_ms
        last = int(ends[-1])
        self.budget.take(max((last - first) // step_ms, 0))
        times = np.arange(first, last + 1, step_ms, dtype=np.int64)
        if not len(times):
            return Matrix(_ready(), ends, range_ms, fixed)
        inner = Evaluator(self.source, times, step_ms, self.start_ms, self.end_ms, self.budget)
        value = inner.evaluate(node.expr)
        assert not isinstance(value, str), "the parser checks types"
        vector = value if isinstance(value, Vector) else one(value)
        part = Part(
            vector.labels,
            [times[present] for present in vector.present],
            [row[present] for row, present in zip(vector.values, vector.present, strict=True)],
        )
        return Matrix(_ready(part), ends, range_ms, fixed)

    def raw(self, node: Expr) -> Result:
        """The samples of a range selector themselves, at one step."""
        matrix = self._range(node)
        end = int(matrix.ends[0])
        rows = []

        def all_of(part: Part) -> list[tuple[Labels, Times, Values]]:
            return list(zip(part.labels, part.times, part.values, strict=True))

        every = (some for _, some in matrix.each(all_of))
        for labels, times, values in itertools.chain.from_iterable(every):
            inside = (times >= end - matrix.range_ms) & (times <= end)
            inside &= values.view(np.uint64) != STALE_NAN_BITS
            if inside.any():
                rows.append((labels, times[inside], values[inside]))
        moments = np.unique(np.concatenate([times for _, times, _ in rows] or [matrix.ends[:0]]))
        self.budget.take(len(rows) * len(moments))
        found = np.zeros((len(rows), len(moments)))
        present = np.zeros(found.shape, np.bool_)
        for row, (_, times, values) in enumerate(rows):
            at = np.searchsorted(moments, times)
            found[row, at], present[row, at] = values, True
        vector = Vector([row[0] for row in rows], found, present)
        return _result("matrix", vector, moments, self.budget)

    # Functions ------------------------------------------------------------------------------

    def _call(self, node: parser.Call) -> Value:
        name = node.func.name
        if name in WINDOWED:
            return self._windowed(name, node.args)
        if name in ("absent", "absent_over_time"):
            return self._absent(name, node.args[0])
        if name == "timestamp":
            return self._timestamp(node.args[0])
        if name not in FUNCTIONS:
            raise InvalidQuery(f'parse error: function "{name}" is not supported')
        arguments = [self.evaluate(argument) for argument in node.args]
        return FUNCTIONS[name](arguments, self.times)

    def _over_points(self, name: str, node: Expr) -> Vector | None:
        """A function of a range selector from the points of a tier, if one serves."""
        node = unwrapped(node)
        if name not in tiered.FUNCTIONS or not isinstance(node, parser.MatrixSelector):
            return None
        range_ms = milliseconds(node.range)
        ends, fixed = self._references(node.vector_selector)
        ends = ends[:1] if fixed else ends
        grid_ms = math.gcd(int(ends[0]), range_ms, self.step_ms if len(ends) > 1 else 0)
        points = self._points(node.vector_selector, int(ends[0]) - range_ms, int(ends[-1]), grid_ms)
        if points is None:
            return None
        self.budget.take(len(points.series) * len(ends))
        steps = len(self.times)
        found = [tiered.over_points(name, one, ends, range_ms) for one in points.series]
        if not found:
            return empty(steps)
        values, present = (np.stack(column) for column in zip(*found, strict=True))
        if fixed:
            values, present = (np.repeat(array, steps, axis=1) for array in (values, present))
        return Vector([one.pairs for one in points.series], values, present)

    def _windowed(self, name: str, arguments: list[Expr]) -> Vector:
        matrix_first = name != "quantile_over_time"
        samples = arguments[0 if matrix_first else 1]
        rest = arguments[1:] if matrix_first else arguments[:1]
        parameters = [self._scalar(argument) for argument in rest]
        vector = self._over_points(name, samples)
        if vector is None:
            vector = self._over_time(name, self._range(samples), parameters)
        if name in SMOOTHING and vector.labels:
            _check_smoothing(*parameters)
        if name not in KEEP_NAME:
            vector.labels = [ls.without_name(labels) for labels in vector.labels]
        return distinct(vector)

    def _over_time(self, name: str, matrix: Matrix, parameters: list[Values]) -> Vector:
        steps = len(self.times)
        # where nothing depends on the step, one window is enough
        same = matrix.fixed and not parameters
        ends = matrix.ends[:1] if same else matrix.ends
        none = np.zeros(steps)
        first, second = (np.ascontiguousarray(one) for one in [*parameters, none, none][:2])
        labels: list[Labels] = []
        rows = []

        def over_time(part: Part) -> tuple[Values, Mask]:
            return windows.over_time(
                name, part.times, part.values, ends, matrix.range_ms, self.times, first, second
            )

        for some, columns in matrix.each(over_time):
            self.budget.take(len(some) * len(ends))
            labels += some
            rows.append(columns)
        if not labels:
            return empty(steps)
        values, present = (np.concatenate(column) for column in zip(*rows, strict=True))
        if same:
            values, present = (np.repeat(array, steps, axis=1) for array in (values, present))
        return Vector(labels, values, present)

    def _absent(self, name: str, argument: Expr) -> Vector:
        if name == "absent":
            vector = self._vector(argument)
        else:
            vector = self._over_time("present_over_time", self._range(argument), [])
        present: Mask = np.asarray(vector.present.any(axis=0))
        return one(np.ones(len(self.times)), ~present, _labels_of_absent(argument))

    def _timestamp(self, argument: Expr) -> Vector:
        bare = unwrapped(argument)
        if isinstance(bare, parser.VectorSelector):
            vector, sampled = self._instant(bare)
            values = sampled / 1000.0
        else:
            vector = self._vector(argument)
            values = np.broadcast_to(self.times / 1000.0, vector.values.shape)
        labels = [ls.without_name(row) for row in vector.labels]
        return merged(Vector(labels, values, vector.present))

    # Operators ------------------------------------------------------------------------------

    def _aggregate(self, node: parser.AggregateExpr) -> Vector:
        parameter: Values | str | None = None
        if node.param is not None:
            value = self.evaluate(node.param)
            assert not isinstance(value, Vector), "the parser checks types"
            parameter = value
        by = Grouping()
        if node.modifier is not None:
            without = node.modifier.type == parser.AggModifierType.Without
            by = Grouping(frozenset(node.modifier.labels), without)
        return aggregate(str(node.op), self._vector(node.expr), by, parameter)

    def _binary(self, node: parser.BinaryExpr) -> Value:
        op, how = str(node.op), matching_of(node)
        left, right = self.evaluate(node.lhs), self.evaluate(node.rhs)
        assert not isinstance(left, str), "the parser checks types"
        assert not isinstance(right, str), "the parser checks types"
        if isinstance(left, Vector) and isinstance(right, Vector):
            if op in SETS:
                return matching.sets(op, left, right, how)
            return matching.with_vector(op, left, right, how)
        if isinstance(left, Vector):
            assert isinstance(right, np.ndarray)
            return matching.with_scalar(op, left, right, False, how.return_bool)
        if isinstance(right, Vector):
            return matching.with_scalar(op, right, left, True, how.return_bool)
        return matching.scalars(op, left, right)

    def _negated(self, node: parser.UnaryExpr) -> Value:
        value = self.evaluate(node.expr)
        assert not isinstance(value, str), "the parser checks types"
        if not isinstance(value, Vector):
            return -value
        labels = [ls.without_name(row) for row in value.labels]
        return distinct(Vector(labels, -value.values, value.present))


@functools.cache  # isinstance() looks through the protocol every time: 45 us
def _is_quick(kind: type) -> bool:
    return issubclass(kind, QuickSource)


def _batches(count: int) -> list[slice]:
    return [slice(begin, begin + BATCH_SERIES) for begin in range(0, count, BATCH_SERIES)]


def _part(series: Sequence[Series]) -> Part:
    return Part(
        [ls.from_mapping(one.labels) if one.pairs is None else one.pairs for one in series],
        [np.ascontiguousarray(one.times, np.int64) for one in series],
        [np.ascontiguousarray(one.values, np.float64) for one in series],
        [one.coarse for one in series],
    )


def _ready(*parts: Part) -> Parts:
    def each(function: Callable[[Part], A]) -> Iterator[tuple[list[Labels], A]]:
        return ((part.labels, function(part)) for part in parts)

    return each


def _instant(part: Part, references: Times, lookback_ms: int) -> Columns:
    """(values, present, times of the samples). A sample that stands in for expired ones counts
    until the next one is due."""
    steps = [step for coarse in part.coarse for _, step in coarse]
    longest = max([lookback_ms, *steps])
    found: Columns
    found = windows.instant(part.times, part.values, references, longest)
    if longest > lookback_ms:
        for row, coarse in enumerate(part.coarse):
            allowed = np.full(len(references), lookback_ms)
            for until_ms, step in reversed(coarse):
                allowed[found[2][row] < until_ms] = max(step, lookback_ms)
            found[1][row] &= references - found[2][row] <= allowed
    return found


def _check_smoothing(smoothing: Values, trend: Values) -> None:
    for values, what, symbol in ((smoothing, "smoothing", "sf"), (trend, "trend", "tf")):
        wrong = values[(values <= 0) | (values >= 1)]
        if len(wrong):
            raise QueryFailed(
                f"invalid {what} factor. Expected: 0 < {symbol} < 1, got: {wrong[0]:f}"
            )


def _labels_of_absent(argument: Expr) -> Labels:
    """What the missing series would be called: labels that the selector demands, each once."""
    argument = unwrapped(argument)
    if isinstance(argument, parser.MatrixSelector):
        argument = argument.vector_selector
    if not isinstance(argument, parser.VectorSelector):
        return ls.NO_LABELS
    wanted: dict[str, str] = {}
    unclear = set()
    for matcher in matchers_of(argument):
        if matcher.name == NAME_LABEL:
            continue
        if matcher.op == "=" and matcher.name not in wanted:
            wanted[matcher.name] = matcher.value
        else:
            unclear.add(matcher.name)
    return ls.drop(ls.from_mapping(wanted), unclear)
