"""Series in memory for tests of PromQL: a `Source`, and a short notation for samples."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from siltstone.metrics import labels as ls
from siltstone.metrics.source import STALE_NAN, Matcher, Series


class MemorySource:
    """Every series is looked at for every selector."""

    def __init__(self, series: Sequence[Series] = ()) -> None:
        self.series = sorted(series, key=lambda one: ls.from_mapping(one.labels))
        self.hints: list[int] = []

    def select(
        self, matchers: Sequence[Matcher], start_ms: int, end_ms: int, step_hint_ms: int = 0
    ) -> list[Series]:
        self.hints.append(step_hint_ms)
        fits = ls.predicate(matchers)
        found = []
        for one in self.series:
            if fits(one.labels):
                low, high = np.searchsorted(one.times, [start_ms, end_ms + 1])
                if high > low:
                    found.append(Series(one.labels, one.times[low:high], one.values[low:high]))
        return found


LABELS = re.compile(r'([a-zA-Z_]\w*)="((?:[^"\\]|\\.)*)"')
RUN = re.compile(r"(?P<first>[-+]?[\w.]+?)(?P<step>[-+][\w.]+)?x(?P<count>\d+)")


def series(text: str, start_ms: int, step_ms: int) -> Series:
    """`name{a="b"} 1 2 _ 4 stale 0+10x5`: samples a step apart; `_` is none, 0+10x5 is six."""
    head, _, tail = re.sub(r"^(\w*\{[^}]*\}|\w+)\s+", r"\1\n", text).partition("\n")
    name, _, inside = head.partition("{")
    labels = {"__name__": name} if name else {}
    labels.update((key, value.encode().decode("unicode_escape"))
                  for key, value in LABELS.findall(inside))  # fmt: skip
    values: list[float | None] = []
    for word in tail.split():
        run = RUN.fullmatch(word)
        if run and run["first"] == "_":
            values += [None] * int(run["count"])
        elif run:
            first, step = float(run["first"]), float(run["step"] or 0)
            values += [first + step * number for number in range(int(run["count"]) + 1)]
        else:
            values.append({"_": None, "stale": STALE_NAN}.get(word) if word in ("_", "stale")
                          else float(word))  # fmt: skip
    at = [number for number, value in enumerate(values) if value is not None]
    return Series(
        labels,
        start_ms + step_ms * np.array(at, np.int64),
        np.array([value for value in values if value is not None], np.float64),
    )
