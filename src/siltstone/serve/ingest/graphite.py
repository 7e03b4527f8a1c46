"""Graphite's plaintext protocol, read.

    servers.web1.cpu.user 12.5 1465839830
    disk.used;host=web1;device=sda 55 1465839830

The path becomes the metric's name, tags become labels; characters that names may not have (the
dots) become "_". A time of -1, N, or none is now. Each line stands for itself: bad ones are left
out and reported. Pure functions, any thread.
"""

from __future__ import annotations

import math

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

NOW = {"-1", "N", "n"}


def parse(body: bytes) -> Parsed:
    """The samples of whole lines."""
    parsed = Parsed()
    known: dict[str, Labels] = {}
    for count, raw in enumerate(body.split(b"\n"), 1):
        line = raw.decode("utf-8", "replace").strip(" \t\r")
        if not line:
            continue
        try:
            _line(line, parsed, known)
        except ProtocolError as error:
            parsed.problems.append(str(problem(count, str(error), line)))
    return parsed


def _line(line: str, parsed: Parsed, known: dict[str, Labels]) -> None:
    if "\N{REPLACEMENT CHARACTER}" in line:
        raise ProtocolError("not UTF-8")
    parts = line.split()
    if len(parts) not in (2, 3):
        raise ProtocolError("not a path, a value and a time")
    try:
        value = number(parts[1])
    except ValueError:
        raise ProtocolError(f"{parts[1]!r} is no number") from None
    time_ms = None
    if len(parts) == 3 and parts[2] not in NOW:
        try:
            time_ms = round(number(parts[2]) * 1000)
        except (ValueError, OverflowError):
            raise ProtocolError(f"{parts[2]!r} is no time") from None
    labels = known.get(parts[0])
    if labels is None:
        labels = known[parts[0]] = labels_of(parts[0])
    if math.isnan(value):
        parsed.skipped += 1  # Graphite's "no value"
        return
    parsed.add(labels, time_ms, value)


def labels_of(path: str) -> Labels:
    """The labels of `path;tag=value;...`."""
    name, *tags = path.split(";")
    if not name:
        raise ProtocolError("no path")
    labels = {NAME_LABEL: metric_name(name)}
    for tag in tags:
        key, equals, value = tag.partition("=")
        if not key or not equals:
            raise ProtocolError(f"{tag!r} is no tag")
        if label_name(key) in labels:
            raise ProtocolError(f"the tag {key!r} twice")
        labels[label_name(key)] = value
    return labels
