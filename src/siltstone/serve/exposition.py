"""Prometheus' text format, version 0.0.4: what siltstone says of itself, and federation.

Format: prometheus.io, "Exposition formats". Pure functions on what they are given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Sample:
    """One line: `time_ms` None is "now"."""

    name: str
    labels: Mapping[str, str]
    value: float
    time_ms: int | None = None


def number(value: float) -> str:
    """As Go prints it in this format ('g', shortest): 1e+06, 123456, 0.0001, 1e-05, +Inf."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    if value == 0:
        return "0"  # -0 too
    exact = Decimal(repr(float(value))).normalize()
    exponent = exact.adjusted()
    if -4 <= exponent < 6:
        return format(exact, "f")
    mantissa = format(exact.scaleb(-exponent), "f")
    return f"{mantissa}e{'-' if exponent < 0 else '+'}{abs(exponent):02d}"


def kind_of(name: str) -> str:
    """The type of siltstone's own metrics: their names say it."""
    return "counter" if name.endswith("_total") else "gauge"


def render(samples: Iterable[Sample], kind: Callable[[str], str] = kind_of) -> bytes:
    """The lines, those of one name together, under its TYPE."""
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.name, []).append(sample)
    lines = []
    for name, group in groups.items():
        lines.append(f"# TYPE {name} {kind(name)}")
        lines += [_line(sample) for sample in group]
    return ("\n".join(lines) + "\n").encode() if lines else b""


def _line(sample: Sample) -> str:
    labels = ",".join(f'{name}="{_escaped(value)}"' for name, value in sample.labels.items())
    text = f"{sample.name}{{{labels}}}" if labels else sample.name
    text += f" {number(sample.value)}"
    return text if sample.time_ms is None else f"{text} {sample.time_ms}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
