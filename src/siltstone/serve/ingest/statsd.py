"""statsd: packets read, and gathered into series.

    name:value|type|@rate|#tag:value,tag:value      several values: name:1:2:3|ms

    c   counter: a cumulative sum          g   gauge; with a sign, a change of it
    ms, h, d   a summary: `_sum`, `_count` and the quantiles 0.5, 0.9, 0.99 of an interval
    s   set: how many different values there were in an interval

`Gatherer` keeps the state; `flush` gives the rows. Bad lines are left out and reported. Not
thread-safe: for the one thread of a server.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from siltstone.errors import ProtocolError
from siltstone.serve.ingest.rows import (
    NAME_LABEL,
    Labels,
    Parsed,
    label_name,
    metric_name,
    number,
    problem,
)

COUNTER, GAUGE, SET = "c", "g", "s"
TIMERS: Final = {"ms", "h", "d"}
SERIES_MAX: Final = 100_000
VALUES_MAX: Final = 10_000  # kept of a timer in an interval, for its quantiles; of a set: members
QUANTILES: Final = (0.5, 0.9, 0.99)

Key = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Event:
    """A value of a packet. `change`: a gauge moves by it. Text of a set stays text."""

    labels: Labels
    kind: str
    value: float
    text: str
    rate: float
    change: bool


@dataclass
class Timer:
    """What came in for one timer; `values` empties with each interval."""

    count: float = 0.0
    sum: float = 0.0
    values: list[float] = field(default_factory=list)


def events(line: str) -> list[Event]:
    """The values of one line. ProtocolError says what is wrong with it."""
    name, *parts = line.split("|")
    name, colon, text = name.partition(":")
    if not name or not colon or not parts:
        raise ProtocolError("not name:value|type")
    kind, rate, labels = parts[0], 1.0, {NAME_LABEL: metric_name(name)}
    if kind not in {COUNTER, GAUGE, SET} | TIMERS:
        raise ProtocolError(f"{kind!r} is no type")
    for part in parts[1:]:
        if part.startswith("@"):
            rate = _number(part[1:])
            if not 0 < rate <= 1:
                raise ProtocolError(f"a rate of {part[1:]}: above 0, at most 1")
        elif part.startswith("#"):
            labels.update(_tags(part[1:]))
        elif not part.startswith(("c:", "T")):  # a container, a time: extensions of some senders
            raise ProtocolError(f"{part!r} is neither rate nor tags")
    found = []
    for value in text.split(":") if kind != SET else [text]:
        number_of = 0.0 if kind == SET else _number(value)
        change = kind == GAUGE and value[:1] in ("+", "-")
        found.append(Event(labels, kind, number_of, value, rate, change))
    return found


class Gatherer:
    """Counters, gauges, timers and sets of all senders."""

    def __init__(self, *, series_max: int = SERIES_MAX) -> None:
        self.series_max = series_max
        self._counters: dict[Key, float] = {}
        self._gauges: dict[Key, float] = {}
        self._timers: dict[Key, Timer] = {}
        self._sets: dict[Key, set[str]] = {}

    @property
    def series(self) -> int:
        """How many names with labels are known."""
        values = len(self._counters) + len(self._gauges)
        return values + len(self._timers) + len(self._sets)

    def take(self, packet: bytes) -> list[str]:
        """The lines of a packet; returns what was wrong with those that were left out."""
        problems = []
        for count, raw in enumerate(packet.split(b"\n"), 1):
            line = raw.decode("utf-8", "replace").strip(" \t\r")
            if not line:
                continue
            try:
                for event in events(line):
                    self._add(event)
            except ProtocolError as error:
                problems.append(str(problem(count, str(error), line)))
        return problems

    def _add(self, event: Event) -> None:
        key = tuple(sorted(event.labels.items()))
        home: dict[Key, float] | dict[Key, Timer] | dict[Key, set[str]]
        if event.kind == COUNTER:
            home = self._counters
        elif event.kind == GAUGE:
            home = self._gauges
        else:
            home = self._sets if event.kind == SET else self._timers
        if key not in home and self.series >= self.series_max:
            raise ProtocolError(f"{self.series_max} series are known: no room for another")
        if event.kind == COUNTER:
            self._counters[key] = self._counters.get(key, 0.0) + event.value / event.rate
        elif event.kind == GAUGE:
            before = self._gauges.get(key, 0.0) if event.change else 0.0
            self._gauges[key] = before + event.value
        elif event.kind == SET:
            members = self._sets.setdefault(key, set())
            if len(members) < VALUES_MAX:
                members.add(event.text)
        else:
            timer = self._timers.setdefault(key, Timer())
            timer.count += 1 / event.rate
            timer.sum += event.value / event.rate
            if len(timer.values) < VALUES_MAX:
                timer.values.append(event.value)

    def flush(self, now_ms: int) -> Parsed:
        """What is known now; a new interval begins."""
        parsed = Parsed()
        for labels, value in self._rows():
            parsed.add(labels, now_ms, value)
        for timer in self._timers.values():
            timer.values = []
        for members in self._sets.values():
            members.clear()
        return parsed

    def _rows(self) -> Iterator[tuple[Labels, float]]:
        for values in (self._counters, self._gauges):
            for key, value in values.items():
                yield dict(key), value
        for key, members in self._sets.items():
            yield dict(key), float(len(members))
        for key, timer in self._timers.items():
            labels = dict(key)
            name = labels[NAME_LABEL]
            yield {**labels, NAME_LABEL: name + "_count"}, timer.count
            yield {**labels, NAME_LABEL: name + "_sum"}, timer.sum
            ordered = sorted(timer.values)
            for quantile in QUANTILES if ordered else ():
                place = max(0, math.ceil(quantile * len(ordered)) - 1)
                yield {**labels, "quantile": repr(quantile)}, ordered[place]


def _number(text: str) -> float:
    try:
        found = number(text)
    except ValueError:
        raise ProtocolError(f"{text!r} is no number") from None
    if not math.isfinite(found):
        raise ProtocolError(f"{text!r} is no number")
    return found


def _tags(text: str) -> dict[str, str]:
    """DataDog's tags; one without a value has "true"."""
    tags = {}
    for tag in filter(None, text.split(",")):
        name, colon, value = tag.partition(":")
        if not name:
            raise ProtocolError(f"{tag!r} is no tag")
        tags[label_name(name)] = value if colon else "true"
    tags.pop(NAME_LABEL, None)
    return tags
