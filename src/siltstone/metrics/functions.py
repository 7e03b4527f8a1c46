"""PromQL's functions of values: mathematics, calendar, labels, order, histograms.

Each takes its evaluated arguments (vectors, scalars as arrays, strings) and the grid's times.
Functions of time windows are in windows.pyx; `absent`, `timestamp` and the like, which must see the
expression itself, are in promql.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from siltstone.errors import InvalidQuery, QueryFailed
from siltstone.metrics import grouping
from siltstone.metrics import labels as ls
from siltstone.metrics.grid import Value, Vector, empty, merged, one
from siltstone.metrics.labels import Labels
from siltstone.metrics.source import NAME_LABEL, Times, Values

# The samples of a histogram's buckets: the label with the upper bound.
BUCKET_LABEL = "le"

Function = Callable[[list[Value], Times], Value]


def _named(value: Value) -> Vector:
    assert isinstance(value, Vector)
    return value


def _scalar(value: Value) -> Values:
    assert isinstance(value, np.ndarray)
    return value


def _string(value: Value) -> str:
    assert isinstance(value, str)
    return value


def nameless(vector: Vector, values: Values) -> Vector:
    """`values` in place of the vector's, without the metric's name: a result of a function."""
    return merged(Vector([ls.without_name(row) for row in vector.labels], values, vector.present))


# Mathematics --------------------------------------------------------------------------------


def _sign(values: Values) -> Values:
    return np.where(values < 0, -1.0, np.where(values > 0, 1.0, values))


ELEMENTWISE: dict[str, Callable[[Values], Values]] = {
    "abs": np.abs,
    "ceil": np.ceil,
    "floor": np.floor,
    "exp": np.exp,
    "sqrt": np.sqrt,
    "ln": np.log,
    "log2": np.log2,
    "log10": np.log10,
    "sin": np.sin,
    "cos": np.cos,
    "tan": np.tan,
    "asin": np.arcsin,
    "acos": np.arccos,
    "atan": np.arctan,
    "sinh": np.sinh,
    "cosh": np.cosh,
    "tanh": np.tanh,
    "asinh": np.arcsinh,
    "acosh": np.arccosh,
    "atanh": np.arctanh,
    "deg": lambda values: values * 180 / np.pi,
    "rad": lambda values: values * np.pi / 180,
    "sgn": _sign,
}


def _elementwise(function: Callable[[Values], Values]) -> Function:
    def apply(arguments: list[Value], times: Times) -> Value:
        vector = _named(arguments[0])
        return nameless(vector, function(vector.values))

    return apply


def _round(arguments: list[Value], times: Times) -> Value:
    vector = _named(arguments[0])
    # dividing by the inverse keeps decimal fractions exact
    inverse = 1.0 / (_scalar(arguments[1]) if len(arguments) > 1 else np.ones(len(times)))
    return nameless(vector, np.floor(vector.values * inverse + 0.5) / inverse)


def _largest(left: Values, right: Values) -> Values:
    """As Go's math.Max: NaN wins over all but +Inf."""
    infinite = (left == np.inf) | (right == np.inf)
    return np.where(infinite, np.inf, np.maximum(left, right))


def _least(left: Values, right: Values) -> Values:
    return -_largest(-left, -right)


def _clamp(arguments: list[Value], times: Times) -> Value:
    vector, low, high = _named(arguments[0]), _scalar(arguments[1]), _scalar(arguments[2])
    vector = Vector(vector.labels, vector.values, vector.present & ~(high < low))
    return nameless(vector, _largest(low, _least(high, vector.values)))


def _clamp_min(arguments: list[Value], times: Times) -> Value:
    vector = _named(arguments[0])
    return nameless(vector, _largest(_scalar(arguments[1]), vector.values))


def _clamp_max(arguments: list[Value], times: Times) -> Value:
    vector = _named(arguments[0])
    return nameless(vector, _least(_scalar(arguments[1]), vector.values))


def _to_scalar(arguments: list[Value], times: Times) -> Value:
    """The value where the vector has exactly one, else NaN."""
    vector = _named(arguments[0])
    alone = vector.present.sum(axis=0) == 1
    total = np.where(vector.present, vector.values, 0.0).sum(axis=0)
    return np.where(alone, total, np.nan)


def _to_vector(arguments: list[Value], times: Times) -> Value:
    return one(_scalar(arguments[0]))


# The calendar, UTC --------------------------------------------------------------------------


def _part(unit: str, within: str) -> Callable[[npt.NDArray[np.datetime64]], npt.NDArray[np.int64]]:
    """How many `unit`s since the beginning of the `within`."""

    def count(moments: npt.NDArray[np.datetime64]) -> npt.NDArray[np.int64]:
        begin = moments.astype(f"datetime64[{within}]").astype(f"datetime64[{unit}]")
        units: npt.NDArray[np.int64] = moments.astype(f"datetime64[{unit}]") - begin
        return units.astype(np.int64)

    return count


def _days_in_month(moments: npt.NDArray[np.datetime64]) -> npt.NDArray[np.int64]:
    month = moments.astype("datetime64[M]")
    after = month + np.timedelta64(1, "M")
    days: npt.NDArray[np.int64] = after.astype("datetime64[D]") - month.astype("datetime64[D]")
    return days.astype(np.int64)


CALENDAR: dict[str, Callable[[npt.NDArray[np.datetime64]], npt.NDArray[np.int64]]] = {
    "minute": _part("m", "h"),
    "hour": _part("h", "D"),
    "day_of_month": lambda moments: _part("D", "M")(moments) + 1,
    "day_of_year": lambda moments: _part("D", "Y")(moments) + 1,
    "month": lambda moments: _part("M", "Y")(moments) + 1,
    "year": lambda moments: moments.astype("datetime64[Y]").astype(np.int64) + 1970,
    # 1970-01-01 was a Thursday; Sunday is 0
    "day_of_week": lambda moments: (moments.astype("datetime64[D]").astype(np.int64) + 4) % 7,
    "days_in_month": _days_in_month,
}
# Seconds that numpy's calendar can take; beyond it, and for NaN, the answer is NaN.
SECONDS_MAX = 1e15


def _calendar(function: Callable[[npt.NDArray[np.datetime64]], npt.NDArray[np.int64]]) -> Function:
    def apply(arguments: list[Value], times: Times) -> Value:
        vector = _named(arguments[0]) if arguments else one(times / 1000.0)
        known = np.abs(vector.values) < SECONDS_MAX
        seconds = np.trunc(np.where(known, vector.values, 0.0)).astype(np.int64)
        parts = function(seconds.astype("datetime64[s]")).astype(np.float64)
        return nameless(vector, np.where(known, parts, np.nan))

    return apply


# Labels -------------------------------------------------------------------------------------

REFERENCE = re.compile(r"\$(?:(\$)|(\w+)|\{(\w+)\})", re.ASCII)


def _label_replace(arguments: list[Value], times: Times) -> Value:
    vector = _named(arguments[0])
    target, replacement, source, pattern = (_string(argument) for argument in arguments[1:5])
    try:
        match = ls.compile_pattern(pattern).fullmatch
        names = ls.compile_pattern(pattern).groupindex
    except InvalidQuery:
        raise QueryFailed(f"invalid regular expression in label_replace(): {pattern}") from None
    if not ls.LABEL_NAME.fullmatch(target):
        raise QueryFailed(f"invalid destination label name in label_replace(): {target}")

    def replaced(row: Labels) -> Labels:
        found = match(ls.get(row, source))
        if found is None:
            return row

        def group(reference: re.Match[str]) -> str:
            name = reference[2] or reference[3]
            if name is None:
                return "$"
            number = int(name) if name.isdigit() else names.get(name, -1)
            return (found.group(number) or "") if 0 <= number <= found.re.groups else ""

        return ls.replace(row, [(target, REFERENCE.sub(group, replacement))])

    return merged(Vector([replaced(row) for row in vector.labels], vector.values, vector.present))


def _label_join(arguments: list[Value], times: Times) -> Value:
    vector = _named(arguments[0])
    target, separator, *sources = (_string(argument) for argument in arguments[1:])
    for source in sources:
        if not ls.LABEL_NAME.fullmatch(source):
            raise QueryFailed(f"invalid source label name in label_join(): {source}")
    if not ls.LABEL_NAME.fullmatch(target):
        raise QueryFailed(f"invalid destination label name in label_join(): {target}")
    labels = [
        ls.replace(row, [(target, separator.join(ls.get(row, source) for source in sources))])
        for row in vector.labels
    ]
    return merged(Vector(labels, vector.values, vector.present))


# Order: of the one step of an instant query; over a range Prometheus' order is by labels -------


def _sort(descending: bool) -> Function:
    def apply(arguments: list[Value], times: Times) -> Value:
        vector = _named(arguments[0])
        if len(times) != 1:
            return vector
        column = vector.values[:, 0]
        # lexsort's last key is the first: NaN at the end, whichever way
        order = np.lexsort((-column if descending else column, np.isnan(column)))
        return vector.rows(order)

    return apply


def _sort_by_label(descending: bool) -> Function:
    def apply(arguments: list[Value], times: Times) -> Value:
        vector = _named(arguments[0])
        names = [_string(argument) for argument in arguments[1:]]

        def key(row: int) -> tuple[list[list[str | int]], Labels]:
            labels = vector.labels[row]
            return [_natural(ls.get(labels, name)) for name in names], labels

        return vector.rows(sorted(range(len(vector)), key=key, reverse=descending))

    return apply


def _natural(text: str) -> list[str | int]:
    """ "b10" after "b9": text and numbers by turns."""
    parts = re.split(r"(\d+)", text)
    return [int(part) if number % 2 else part for number, part in enumerate(parts)]


# Histograms ---------------------------------------------------------------------------------

GO_FLOAT = re.compile(
    r"[+-]?(?:inf(?:inity)?|(?:\d+(?:_?\d)*\.?\d*|\.\d+)(?:e[+-]?\d+)?)|nan", re.ASCII | re.I
)


def _bound(labels: Labels) -> float | None:
    text = ls.get(labels, BUCKET_LABEL)
    return float(text.replace("_", "")) if GO_FLOAT.fullmatch(text) else None


def _histogram_quantile(arguments: list[Value], times: Times) -> Value:
    q, vector = _scalar(arguments[0]), _named(arguments[1])
    buckets: dict[Labels, list[tuple[float, int]]] = {}
    for row, labels in enumerate(vector.labels):
        bound = _bound(labels)
        if bound is not None:
            histogram = ls.drop(labels, (NAME_LABEL, BUCKET_LABEL))
            buckets.setdefault(histogram, []).append((bound, row))
    if not buckets:
        return empty(len(times))
    ordered = [entry for entries in buckets.values() for entry in sorted(entries)]
    rows = np.array([row for _, row in ordered], np.intp)
    sizes = [len(entries) for entries in buckets.values()]
    values, present = grouping.histogram_quantile(
        q,
        np.array([bound for bound, _ in ordered]),
        np.ascontiguousarray(vector.values[rows]),
        np.ascontiguousarray(vector.present[rows]).view(np.uint8),
        np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
    )
    return Vector(list(buckets), values, present)


def _no_histograms(arguments: list[Value], times: Times) -> Value:
    """Functions of native histograms: there are none here, so there is nothing to answer."""
    return empty(len(times))


FUNCTIONS: dict[str, Function] = {
    **{name: _elementwise(function) for name, function in ELEMENTWISE.items()},
    **{name: _calendar(function) for name, function in CALENDAR.items()},
    "round": _round,
    "clamp": _clamp,
    "clamp_min": _clamp_min,
    "clamp_max": _clamp_max,
    "scalar": _to_scalar,
    "vector": _to_vector,
    "time": lambda arguments, times: times / 1000.0,
    "pi": lambda arguments, times: np.full(len(times), np.pi),
    "label_replace": _label_replace,
    "label_join": _label_join,
    "sort": _sort(False),
    "sort_desc": _sort(True),
    "sort_by_label": _sort_by_label(False),
    "sort_by_label_desc": _sort_by_label(True),
    "histogram_quantile": _histogram_quantile,
    "histogram_count": _no_histograms,
    "histogram_sum": _no_histograms,
    "histogram_fraction": _no_histograms,
    "histogram_avg": _no_histograms,
    "histogram_stddev": _no_histograms,
    "histogram_stdvar": _no_histograms,
}
