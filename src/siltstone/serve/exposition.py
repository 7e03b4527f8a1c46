"""Prometheus' text format, version 0.0.4: what siltstone says of itself, and federation.

Format: prometheus.io, "Exposition formats". Pure functions on what they are given.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_NAME = re.compile(r"[^a-zA-Z0-9_:]")


@dataclass(frozen=True, slots=True)
class Sample:
    """One line: `time_ms` None is "now"."""

    name: str
    labels: Mapping[str, str]
    value: float
    time_ms: int | None = None


def number(value: float) -> str:
    """As Go prints it, which is what parsers of the format expect."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(float(value))


def render(samples: Iterable[Sample], kinds: Mapping[str, str] | None = None) -> bytes:
    """The lines, those of one name together; `kinds` gives names their TYPE."""
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.name, []).append(sample)
    lines = []
    for name, group in groups.items():
        lines.append(f"# TYPE {name} {(kinds or {}).get(name, _kind(name))}")
        lines += [_line(sample) for sample in group]
    return ("\n".join(lines) + "\n").encode() if lines else b""


def _kind(name: str) -> str:
    return "counter" if name.endswith("_total") else "gauge"


def _line(sample: Sample) -> str:
    labels = ",".join(f'{name}="{_escaped(value)}"' for name, value in sample.labels.items())
    text = f"{sample.name}{{{labels}}}" if labels else sample.name
    text += f" {number(sample.value)}"
    return text if sample.time_ms is None else f"{text} {sample.time_ms}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def flattened(prefix: str, stats: Mapping[str, Any]) -> Iterator[Sample]:
    """Numbers of an engine's `stats()`, nested ones with their names joined; the rest is skipped.

    {"items": 3, "device": {"read_bytes": 9}} as "siltstone_cache" gives siltstone_cache_items and
    siltstone_cache_device_read_bytes.
    """
    for key, value in stats.items():
        name = f"{prefix}_{_NAME.sub('_', str(key))}"
        if isinstance(value, Mapping):
            yield from flattened(name, value)
        elif isinstance(value, (int, float)):
            yield Sample(name, {}, float(value))
