"""The seam between whoever keeps samples and whoever evaluates PromQL on them.

An engine is a `Source`: it finds series by label matchers and hands over their samples of a time
range, decoded. The evaluator (`promql.py`) knows no more of it than this. Times are int64 Unix
milliseconds, values float64; a sample whose value has the bits of `STALE_NAN` says that its series
ended there ("staleness marker"), every other NaN is a value like any other.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np
import numpy.typing as npt

A = TypeVar("A")

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
    pairs: tuple[tuple[str, str], ...] | None = None  # the labels as labels.py has them, if known
    # Where samples have expired and a tier's stand in: (until when, ms between them), rising.
    coarse: tuple[tuple[int, int], ...] = ()

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


@dataclass(frozen=True)
class Latest:
    """The newest sample of each series at one moment: a row a series, by their sorted labels."""

    pairs: Sequence[tuple[tuple[str, str], ...]]  # the labels as labels.py has them
    times: Times
    values: Values


@dataclass(frozen=True)
class PointSeries:
    """The points of one series in a tier: what the samples in (end - step, end] came to."""

    labels: Mapping[str, str]
    pairs: tuple[tuple[str, str], ...]
    ends: Times  # of the buckets, multiples of the step
    sum: Values  # of the numbers: NaN is none
    min: Values  # NaN where there is no number
    max: Values
    count: Times  # of the numbers
    nans: Times  # samples that are NaN, staleness markers not counted
    last: Values  # the newest sample, whatever it is
    lag: Times  # ms from that to the end


@dataclass(frozen=True)
class Points:
    """Points of a tier, a series each, by their sorted labels."""

    step_ms: int
    series: Sequence[PointSeries]


@runtime_checkable
class QuickSource(Source, Protocol):
    """A source that can do with less than `select`; the answers are those of `select`."""

    def latest(self, matchers: Sequence[Matcher], end_ms: int, lookback_ms: int) -> Latest:
        """Of each series the newest sample in [end_ms - lookback_ms, end_ms], if it has one."""

    def each(
        self, matchers: Sequence[Matcher], start_ms: int, end_ms: int,
        function: Callable[[list[Series]], A],
    ) -> Iterator[A]:  # fmt: skip
        """`function` of what `select` gives, some series at a time, in order: who is done with
        them can let them go. Other threads call it, several at once."""

    def points(
        self, matchers: Sequence[Matcher], start_ms: int, end_ms: int, grid_ms: int
    ) -> Points | None:
        """The points within [start_ms, end_ms] of the coarsest tier whose step divides `grid_ms`;
        None: there is none, or reading the samples takes no longer."""
