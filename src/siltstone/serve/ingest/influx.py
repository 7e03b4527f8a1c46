"""Influx' line protocol, read.

    weather,place=north\\ sea temperature=12.5,storm=f,gusts=3i 1465839830100400200

A field becomes a metric `measurement_field`, tags become labels; characters that their names may
not have become "_". Integers (i, u) and booleans become numbers, text is skipped and counted. Bad
lines are left out and reported, the others stand, as Influx has it ("partial write"). Pure
functions, any thread.
"""

from __future__ import annotations

import re
from typing import Final

from siltstone.errors import ConfigError, ProtocolError
from siltstone.serve.ingest.rows import (
    NAME_LABEL,
    Labels,
    Parsed,
    label_name,
    lines_of,
    metric_name,
    number,
    problem,
)

# Nanoseconds in a unit of the parameter `precision`.
PRECISIONS: Final = {
    "": 1, "n": 1, "ns": 1, "u": 10**3, "us": 10**3, "\N{MICRO SIGN}": 10**3, "ms": 10**6,
    "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9,
}  # fmt: skip
_HEAD: Final = re.compile(r"((?:[^ \\]|\\.)+) +")
_FIELD: Final = re.compile(r'((?:[^=,\\ ]|\\.)+)=("(?:[^"\\]|\\.)*"|[^", ]+)(,| +|$)')
_COMMA: Final = re.compile(r"(?<!\\),")
_EQUALS: Final = re.compile(r"(?<!\\)=")
_ESCAPE: Final = re.compile(r"\\([,= ])")
_INTEGER: Final = re.compile(r"[+-]?\d+[iu]")
_TRUE, _FALSE = {"t", "T", "true", "True", "TRUE"}, {"f", "F", "false", "False", "FALSE"}


def parse(body: bytes, *, precision: str = "", database: str = "") -> Parsed:
    """The samples of a request. `database`, if given, becomes the label `db`."""
    unit = PRECISIONS.get(precision)
    if unit is None:
        raise ConfigError(f"precision {precision!r}: use one of n, u, ms, s, m, h")
    parsed = Parsed()
    known: dict[tuple[str, str], Labels] = {}
    for count, line in enumerate(lines_of(body), 1):
        line = line.strip(" \r")
        if not line or line[0] == "#":
            continue
        before = len(parsed.rows), parsed.skipped
        try:
            _line(line, parsed, known, unit, database)
        except ProtocolError as error:
            del parsed.rows[before[0] :]
            parsed.skipped = before[1]
            parsed.problems.append(str(problem(count, str(error), line)))
    return parsed


def _line(
    line: str, parsed: Parsed, known: dict[tuple[str, str], Labels], unit: int, database: str
) -> None:
    head = _HEAD.match(line)
    if head is None:
        raise ProtocolError("no fields")
    fields: list[tuple[str, str]] = []
    at, end = head.end(), ","
    while end == ",":
        match = _FIELD.match(line, at)
        if match is None:
            raise ProtocolError(f"a field that makes no sense from {line[at : at + 20]!r} on")
        fields.append((match[1], match[2]))
        at, end = match.end(), match[3]
    time_ms = _time(line[at:], unit)
    for key, text in fields:
        value = _value(text)
        if value is None:
            parsed.skipped += 1
            continue
        labels = known.get((head[1], key))
        if labels is None:
            labels = known[head[1], key] = _labels(head[1], key, database)
        parsed.add(labels, time_ms, value)


def _time(text: str, unit: int) -> int | None:
    if not text:
        return None
    try:
        return int(text) * unit // 1_000_000
    except ValueError:
        raise ProtocolError(f"{text!r} is no time") from None


def _value(text: str) -> float | None:
    """None for text."""
    if text[0] == '"':
        return None
    if text in _TRUE or text in _FALSE:
        return float(text in _TRUE)
    try:
        return float(int(text[:-1])) if _INTEGER.fullmatch(text) else number(text)
    except (ValueError, OverflowError):
        raise ProtocolError(f"{text!r} is no value") from None


def _labels(head: str, field: str, database: str) -> Labels:
    measurement, *tags = _COMMA.split(head)
    if not measurement:
        raise ProtocolError("no measurement")
    labels = {NAME_LABEL: metric_name(f"{_plain(measurement)}_{_plain(field)}")}
    if database:
        labels["db"] = database
    for tag in tags:
        parts = _EQUALS.split(tag)
        if len(parts) != 2 or not parts[0]:
            raise ProtocolError(f"{tag!r} is no tag")
        name = label_name(_plain(parts[0]))
        if name in labels and name != "db":
            raise ProtocolError(f"the tag {name!r} twice")
        labels[name] = _plain(parts[1])
    return labels


def _plain(text: str) -> str:
    return _ESCAPE.sub(r"\1", text) if "\\" in text else text
