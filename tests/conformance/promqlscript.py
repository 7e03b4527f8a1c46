r"""PromQL scripts: series, queries, and the answers that must follow.

    # a comment
    load 30s                                  samples 30 s apart from 0 on; lines of tests/promqlrig
      requests_total{host="a"} 0+10x20
    at 5m sum(requests_total)                 an instant query
      {} 100                                  its answer: labels and value
    at 5m sort(requests_total)
      ordered                                 the order counts too
      requests_total{host="a"} 100
    range 0..4m by 2m rate(requests_total[1m])
      {host="a"} _ 0.5 0.5                    a value a step; _ is none
    at 5m requests_total[1m]
      requests_total{host="a"} 80@240 90@270 100@300      value@seconds
    at 5m 1 + 1
      scalar 2                                also: string "text", nothing, error the whole text
    at 5m limitk(1, requests_total)
      differs: newer than 2.42                Prometheus 2.42 answers otherwise; it is not asked
      ...

Times are seconds from 1970 or durations. Labels are written as in series.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from promqlrig import MemorySource, series

from siltstone.metrics.numbers import number_text
from siltstone.metrics.source import Series

FOLDER = Path(__file__).parent / "promql"
TOLERANCE = 1e-9
UNITS_MS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
RANGE = re.compile(r"range (\S+)\.\.(\S+) by (\S+) (.*)")
AT = re.compile(r"at (\S+) (.*)")


def duration_ms(text: str) -> int:
    """`1m30s`, or seconds."""
    if re.fullmatch(r"-?[\d.]+", text):
        return round(float(text) * 1000)
    sign = -1 if text.startswith("-") else 1
    parts = re.findall(r"(\d+)(ms|[smhd])", text)
    return sign * sum(int(count) * UNITS_MS[unit] for count, unit in parts)


@dataclass(slots=True)
class Case:
    """One query."""

    file: str
    line: int
    query: str
    times_ms: tuple[int, int, int]  # start, end, step; step 0: instant
    expected: list[str] = field(default_factory=list)
    differs: str = ""
    ordered: bool = False

    @property
    def title(self) -> str:
        return f"{self.file}:{self.line} {self.query}"

    def check(self, answer: dict[str, Any]) -> None:
        """`answer` in Prometheus' JSON form."""
        found = written(answer, self.times_ms)
        expected = self.expected
        if not self.ordered:
            found, expected = sorted(found), sorted(expected)
        fits = len(found) == len(expected) and all(map(same, found, expected))
        lines = [self.title, "expected", *self.expected, "found", *found]
        assert fits, "\n  ".join(lines)


@dataclass(slots=True)
class Script:
    """A file: what is loaded, and what is asked."""

    name: str
    series: list[Series]
    cases: list[Case]

    def source(self) -> MemorySource:
        return MemorySource(self.series)


def same(found: str, expected: str) -> bool:
    """Word by word; numbers may differ in their last bits."""
    one, other = found.split(" "), expected.split(" ")
    return len(one) == len(other) and all(
        a == b or close(a, b) for a, b in zip(one, other, strict=True)
    )


def close(a: str, b: str) -> bool:
    (value, _, at), (wanted, _, wanted_at) = a.partition("@"), b.partition("@")
    try:
        return at == wanted_at and math.isclose(
            float(value), float(wanted), rel_tol=TOLERANCE, abs_tol=1e-12
        )
    except ValueError:
        return False


def written(answer: dict[str, Any], times_ms: tuple[int, int, int]) -> list[str]:
    """An answer in the script's notation."""
    if answer["status"] == "error":
        return [f"error {answer['error']}"]
    kind, result = answer["data"]["resultType"], answer["data"]["result"]
    if kind in ("scalar", "string"):
        return [f"scalar {result[1]}" if kind == "scalar" else f'string "{result[1]}"']
    lines = []
    for row in result:
        if kind == "vector":
            words = [row["value"][1]]
        elif times_ms[2]:
            at = {round(moment * 1000): value for moment, value in row["values"]}
            steps = range(times_ms[0], times_ms[1] + 1, times_ms[2])
            words = [at.get(moment, "_") for moment in steps]
        else:
            words = [f"{value}@{number_text(moment)}" for moment, value in row["values"]]
        lines.append(f"{metric(row['metric'])} {' '.join(words)}")
    return lines or ["nothing"]


def metric(labels: dict[str, str]) -> str:
    rest = ", ".join(
        f'{name}="{escaped(value)}"' for name, value in sorted(labels.items()) if name != "__name__"
    )
    name = labels.get("__name__", "")
    return f"{name}{{{rest}}}" if rest or not name else name


def escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def read(path: Path) -> Script:
    script, case, step_ms = Script(path.stem, [], []), None, 0
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if line.startswith("#") or not line.strip():
            continue
        if line.startswith("load "):
            step_ms, case = duration_ms(line[5:]), None
        elif match := RANGE.fullmatch(line):
            times = tuple(duration_ms(text) for text in match.groups()[:3])
            case = Case(path.stem, number, match[4], times)  # type: ignore[arg-type]
            script.cases.append(case)
        elif match := AT.fullmatch(line):
            moment = duration_ms(match[1])
            case = Case(path.stem, number, match[2], (moment, moment, 0))
            script.cases.append(case)
        elif case is None:
            script.series.append(series(line.strip(), 0, step_ms))
        elif line.strip() == "ordered":
            case.ordered = True
        elif line.startswith("  differs: "):
            case.differs = line.removeprefix("  differs: ")
        else:
            case.expected.append(line.strip())
    return script


def scripts() -> Iterator[Script]:
    yield from (read(path) for path in sorted(FOLDER.glob("*.txt")))
