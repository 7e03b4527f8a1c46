"""Random PromQL over known series: the same seed gives the same data and the same expressions."""

from __future__ import annotations

import random
import re

import numpy as np

from siltstone.metrics.source import STALE_NAN, Series

BEGIN_MS = 1_600_000_000_000
LENGTH_MS = 50 * 60_000
STEP_MS = 15_000

NAILED = re.compile(r" @ (?:start\(\)|end\(\)|[\d.]+)")
HOSTS = ("a", "b", "c")


def data(seed: int) -> list[Series]:
    """Counters with resets, gauges with gaps, NaN and infinities, histograms, info series."""
    chance = random.Random(seed)
    found = []

    def add(labels: dict[str, str], values: list[float], jitter: bool = False) -> None:
        times = [
            BEGIN_MS + STEP_MS * (n + 1) + (chance.randrange(-2000, 2000) if jitter else 0)
            for n in range(len(values))
        ]
        pairs = [(t, v) for t, v in zip(times, values, strict=True) if v is not None]
        found.append(
            Series(labels, np.array([t for t, _ in pairs], np.int64),
                   np.array([v for _, v in pairs], np.float64))
        )  # fmt: skip

    steps = LENGTH_MS // STEP_MS
    for host in HOSTS:
        for mode in ("idle", "user"):
            add({"__name__": "cpu_seconds_total", "host": host, "mode": mode},
                _counter(chance, steps), jitter=host == "b")  # fmt: skip
        add({"__name__": "memory_bytes", "host": host}, _gauge(chance, steps))
        add({"__name__": "temperature", "host": host, "unit": "C"}, _gauge(chance, steps, 20.0))
        add({"__name__": "host_info", "host": host, "rack": "r" + host, "os": "linux"},
            [1.0] * steps)  # fmt: skip
    add({"__name__": "temperature", "host": "a", "unit": "F"}, _gauge(chance, steps, 70.0))
    add({"__name__": "flapping", "host": "a"}, _holes(chance, steps))
    add({"__name__": "flapping", "host": "b"}, _holes(chance, steps))
    special = [0.0, -0.0, np.nan, np.inf, -np.inf, 1e-9, 1e300, -1e300, 2.5, -2.5]
    add({"__name__": "odd"}, [special[n % len(special)] for n in range(steps)])
    add({"__name__": "odd", "host": "a"}, [chance.choice(special) for _ in range(steps)])
    add({"__name__": "ties", "host": "a"}, [float(n % 3) for n in range(steps)])
    add({"__name__": "ties", "host": "b"}, [float(n % 2) for n in range(steps)])
    add({"__name__": "ties", "host": "c"}, [1.0] * steps)
    for path in ("/", "/x"):
        counts = [0.0] * 5
        rows: list[list[float]] = [[] for _ in counts]
        for _ in range(steps):
            bucket = chance.randrange(5)
            for number in range(bucket, 5):
                counts[number] += 1
            for row, count in zip(rows, counts, strict=True):
                row.append(count)
        for bound, row in zip(("0.1", "0.5", "1", "10", "+Inf"), rows, strict=True):
            add({"__name__": "latency_bucket", "path": path, "le": bound}, row)
    return found


def _counter(chance: random.Random, steps: int) -> list[float]:
    value, values = 0.0, []
    for _ in range(steps):
        value = 0.0 if chance.random() < 0.03 else value + chance.random() * 10
        values.append(value)
    return values


def _gauge(chance: random.Random, steps: int, around: float = 1000.0) -> list[float]:
    return [around * (1 + chance.gauss(0, 0.1)) for _ in range(steps)]


def _holes(chance: random.Random, steps: int) -> list[float | None]:  # type: ignore[misc]
    values: list[float | None] = []
    while len(values) < steps:
        values += [chance.random() for _ in range(chance.randrange(1, 15))]
        values += [STALE_NAN] if chance.random() < 0.6 else []
        values += [None] * chance.randrange(1, 40)
    return values[:steps]


class Generator:
    """Expressions up to a depth; `seed` decides everything."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)

    def pick(self, *options: str) -> str:
        return self.chance.choice(options)

    def duration(self) -> str:
        return self.pick("30s", "1m", "2m", "5m", "7m30s", "15m", "45s", "1m1s")

    def shift(self) -> str:
        roll = self.chance.random()
        if roll < 0.15:
            return f" offset {self.pick('', '-')}{self.duration()}"
        if roll < 0.22:
            moment = (BEGIN_MS + self.chance.randrange(LENGTH_MS)) / 1000
            return f" @ {moment:.3f}"
        if roll < 0.28:
            return f" @ {self.pick('start()', 'end()')}"
        if roll < 0.32:
            return f" @ {self.pick('start()', 'end()')} offset {self.duration()}"
        return ""

    def selector(self) -> str:
        return self.pick(
            "cpu_seconds_total", 'cpu_seconds_total{mode="idle"}', 'cpu_seconds_total{host!="a"}',
            'cpu_seconds_total{host=~"a|b"}', "memory_bytes", 'memory_bytes{host="a"}',
            "temperature", 'temperature{unit="C"}', "host_info", "flapping", "odd", "ties",
            '{__name__=~"memory_bytes|temperature"}', '{host="a"}', 'temperature{unit!~"F.*"}',
            "latency_bucket", 'latency_bucket{path="/"}', 'missing{host="a"}', 'odd{host=""}',
        )  # fmt: skip

    def matrix(self, depth: int) -> str:
        if depth > 0 and self.chance.random() < 0.3:
            step = self.pick("", "30s", "1m", "17s")
            return f"({self.vector(depth - 1)})[{self.duration()}:{step}]{self.shift()}"
        return f"{self.selector()}[{self.duration()}]{self.shift()}"

    def scalar(self, depth: int) -> str:
        if depth <= 0 or self.chance.random() < 0.6:
            return self.pick("0", "1", "2", "0.5", "3", "-1", "100", "1e3", "Inf", "NaN",
                             "time()", "0.9")  # fmt: skip
        return self.pick(
            f"scalar({self.vector(depth - 1)})",
            f"({self.scalar(depth - 1)} {self.arithmetic()} {self.scalar(depth - 1)})",
            f"({self.scalar(depth - 1)} {self.comparison()} bool {self.scalar(depth - 1)})",
            f"-{self.scalar(depth - 1)}",
            "pi()",
        )

    def arithmetic(self) -> str:
        return self.pick("+", "-", "*", "/", "%", "^", "atan2")

    def comparison(self) -> str:
        return self.pick("==", "!=", ">", "<", ">=", "<=")

    def labels(self) -> str:
        names = ["host", "mode", "unit", "path", "le", "rack", "__name__", "nope"]
        return ", ".join(self.chance.sample(names, self.chance.randrange(0, 3)))

    def vector(self, depth: int) -> str:
        if depth <= 0:
            return f"{self.selector()}{self.shift()}"
        kind = self.chance.choice(
            [self._selected, self._windowed, self._windowed, self._function, self._function,
             self._aggregation, self._aggregation, self._binary, self._binary, self._matched]
        )  # fmt: skip
        return kind(depth - 1)

    def _selected(self, depth: int) -> str:
        return f"{self.selector()}{self.shift()}"

    def _windowed(self, depth: int) -> str:
        name = self.pick(
            "rate", "increase", "delta", "irate", "idelta", "deriv", "changes", "resets",
            "sum_over_time", "avg_over_time", "min_over_time", "max_over_time", "count_over_time",
            "present_over_time", "last_over_time", "stdvar_over_time", "stddev_over_time",
            "absent_over_time", "quantile_over_time", "predict_linear", "holt_winters",
        )  # fmt: skip
        matrix = self.matrix(depth)
        if name in ("quantile_over_time", "predict_linear"):
            # 2.42 loses samples where @ meets a parameter that changes from step to step
            matrix = NAILED.sub("", matrix)
        if name == "quantile_over_time":
            return f"{name}({self.scalar(depth)}, {matrix})"
        if name == "predict_linear":
            return f"{name}({matrix}, {self.scalar(depth)})"
        if name == "holt_winters":
            return f"{name}({matrix}, {self.pick('0.5', '0.1')}, {self.pick('0.3', '0.9')})"
        return f"{name}({matrix})"

    def _function(self, depth: int) -> str:
        vector = self.vector(depth)
        if NAILED.search(vector):  # 2.42 takes the offset twice: timestamp(x @ 1 offset 5m)
            vector = f"({vector} + 0)"
        name = self.pick(
            "abs", "ceil", "floor", "exp", "sqrt", "ln", "log2", "log10", "sin", "cos", "tan",
            "asin", "acos", "atan", "sinh", "cosh", "tanh", "asinh", "acosh", "atanh", "deg",
            "rad", "sgn", "round", "clamp", "clamp_min", "clamp_max", "absent", "timestamp",
            "vector", "label_replace", "label_join", "sort", "sort_desc", "histogram_quantile",
            "histogram_quantile", "minute", "hour", "day_of_week", "days_in_month", "month",
            "year", "day_of_month", "day_of_year", "histogram_count",
        )  # fmt: skip
        if name in ("minute", "hour", "day_of_week", "days_in_month", "month", "year",
                    "day_of_month", "day_of_year"):  # fmt: skip
            return f"{name}({self.pick('', f'timestamp({vector})', 'host_info * 1e9')})"
        if name == "clamp":
            return f"clamp({vector}, {self.scalar(depth)}, {self.scalar(depth)})"
        if name in ("clamp_min", "clamp_max"):
            return f"{name}({vector}, {self.scalar(depth)})"
        if name == "round":
            return f"round({vector}{self.pick('', ', 0.1', ', 5', ', ' + self.scalar(depth))})"
        if name == "vector":
            return f"vector({self.scalar(depth)})"
        if name == "histogram_quantile":
            return (
                f"histogram_quantile({self.scalar(depth)}, "
                f"{self.pick('rate(latency_bucket[5m])', 'latency_bucket', vector)})"
            )
        if name == "label_replace":
            rest = self.pick(
                '"new", "$1-x", "host", "(.*)"', '"host", "z", "host", "a|b"',
                '"host", "", "mode", ".*"', '"__name__", "other", "host", "(a)"',
                '"new", "${1}$2$$", "mode", "(i|u)(.+)"', '"mode", "$name", "host", "(?P<name>.)"',
            )  # fmt: skip
            return f"label_replace({vector}, {rest})"
        if name == "label_join":
            rest = self.pick('"new", "-", "host", "mode"', '"host", "", "rack"', '"host", "+"')
            return f"label_join({vector}, {rest})"
        if name in ("exp", "sinh", "cosh"):  # else the last bit is all that is left in a remainder
            return f"{name}(clamp({vector}, -5, 5))"
        return f"{name}({vector})"

    def _aggregation(self, depth: int) -> str:
        name = self.pick(
            "sum", "avg", "min", "max", "count", "group", "stddev", "stdvar", "topk", "bottomk",
            "quantile", "count_values",
        )  # fmt: skip
        by = self.pick("", f"by ({self.labels()}) ", f"without ({self.labels()}) ")
        vector = self.vector(depth)
        if name in ("topk", "bottomk"):
            return f"{name} {by}({self.pick('1', '2', '3', '0', self.scalar(0))}, {vector})"
        if name == "quantile":
            return f"quantile {by}({self.scalar(depth)}, {vector})"
        if name == "count_values":
            return f'count_values {by}("{self.pick("v", "host")}", round({vector}))'
        return f"{name} {by}({vector})"

    def _binary(self, depth: int) -> str:
        operator = self.pick(
            self.arithmetic(), self.comparison(), self.comparison() + " bool",
        )  # fmt: skip
        sides = [self.vector(depth), self.scalar(depth)]
        if self.chance.random() < 0.4:
            sides.reverse()
        return f"({sides[0]} {operator} {sides[1]})"

    def _matched(self, depth: int) -> str:
        left, right = self.vector(depth), self.vector(depth)
        if self.chance.random() < 0.3:
            operator = self.pick("and", "or", "unless")
            return f"({left} {operator} {self._by()}{right})"
        operator = self.pick(
            self.arithmetic(), self.comparison(), self.comparison() + " bool",
        )  # fmt: skip
        by = self._by()
        if by and self.chance.random() < 0.5:
            by += f"{self.pick('group_left', 'group_right')} ({self.pick('', 'rack', 'os, unit')}) "
        return f"({left} {operator} {by}{right})"

    def _by(self) -> str:
        return self.pick("", f"on ({self.labels()}) ", f"ignoring ({self.labels()}) ", "on (host) ")
