"""The seam between whoever keeps samples and whoever evaluates PromQL on them.

An engine is a `Source`: it finds series by label matchers and hands over their samples of a time
range, decoded. The evaluator (`promql.py`) knows no more of it than this. Times are int64 Unix
milliseconds, values float64; a sample whose value has the bits of `STALE_NAN` says that its series
ended there ("staleness marker"), every other NaN is a value like any other.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import numpy.typing as npt

NAME_LABEL = "__name__"
STALE_NAN_BITS = 0x7FF0000000000002
STALE_NAN: float = struct.unpack("<d", struct.pack("<Q", STALE_NAN_BITS))[0]

Times = npt.NDArray[np.int64]
Values = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Matcher:
    """One condition on a label. A label that a series does not have counts as ""."""

    name: str
    op: str  # "=", "!=", "=~" or "!~"; patterns must match the whole value, in RE2's syntax
    value: str


@dataclass(frozen=True)
class Series:
    """The samples of one series in a range: `times` strictly rising, `values` as long."""

    labels: Mapping[str, str]  # with the metric's name under "__name__", if it has one
    times: Times
    values: Values

    @cached_property
    def seconds(self) -> Values:
        """The times as Unix seconds."""
        return self.times / 1000.0


class Source(Protocol):
    """What the evaluator asks of an engine."""

    def select(
        self, matchers: Sequence[Matcher], start_ms: int, end_ms: int, step_hint_ms: int = 0
    ) -> list[Series]:
        """Every series that satisfies all `matchers` and has samples in [start_ms, end_ms].

        Both ends are inclusive. The series come in a stable order (by their sorted labels), each
        once. `step_hint_ms` is the distance of the points that will be computed, 0 if there is one
        only: an engine may answer from coarser data where that serves as well. Never mutated by
        the caller: the arrays may be views of what the engine keeps.
        """
