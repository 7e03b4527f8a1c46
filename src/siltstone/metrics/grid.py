"""What a PromQL expression is while it is evaluated: values on a grid of steps.

A `Vector` has a row a label set and a column a step; `present` says where it has a sample (NaN is
a value). A scalar is an array with a number a step, a string a str.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from siltstone.errors import QueryFailed
from siltstone.metrics.labels import Labels
from siltstone.metrics.source import Times, Values

Coarse = tuple[tuple[int, int], ...]
Mask = npt.NDArray[np.bool_]

A = TypeVar("A")

SAME_LABELSET = "vector cannot contain metrics with the same labelset"


@dataclass(slots=True)
class Vector:
    """Rows by label set, columns by step."""

    labels: list[Labels]
    values: Values  # (series, step)
    present: Mask  # (series, step)

    def __len__(self) -> int:
        return len(self.labels)

    def occupied(self) -> Vector:
        """Without the rows that have no sample at all; the order stays."""
        some = self.present.any(axis=1)
        return self if some.all() else self.rows(np.flatnonzero(some))

    def rows(self, rows: npt.NDArray[np.intp] | Sequence[int]) -> Vector:
        index = np.asarray(rows, np.intp)
        return Vector(
            [self.labels[row] for row in index.tolist()], self.values[index], self.present[index]
        )


@dataclass(slots=True)
class Part:
    """Some series with their samples."""

    labels: list[Labels]
    times: list[Times]
    values: list[Values]
    coarse: list[Coarse] = field(default_factory=list)  # of each, or of none: see source.Series


class Parts(Protocol):
    def __call__(self, function: Callable[[Part], A], /) -> Iterator[tuple[list[Labels], A]]:
        """(labels of its series, `function` of it) of each part; perhaps in other threads."""


@dataclass(slots=True)
class Matrix:
    """The samples that a range selector or subquery looks at, and where its windows end."""

    each: Parts  # to be called once
    ends: Times  # of the window of each step
    range_ms: int
    fixed: bool  # by @: the window is the same at every step


Value = Vector | Values | str


def empty(steps: int) -> Vector:
    return Vector([], np.zeros((0, steps)), np.zeros((0, steps), np.bool_))


def one(values: Values, present: Mask | None = None, labels: Labels = ()) -> Vector:
    """A single row."""
    here = np.ones(len(values), np.bool_) if present is None else present
    return Vector([labels], values.reshape(1, -1), here.reshape(1, -1))


def rows_by_labels(labels: Sequence[Labels]) -> dict[Labels, list[int]]:
    """In the order of first appearance."""
    rows: dict[Labels, list[int]] = {}
    for row, key in enumerate(labels):
        rows.setdefault(key, []).append(row)
    return rows


def merged(vector: Vector) -> Vector:
    """Rows with the same labels as one; an error where two of them have a sample at one step."""
    rows = rows_by_labels(vector.labels)
    if len(rows) == len(vector.labels):
        return vector
    first = np.array([some[0] for some in rows.values()], np.intp)
    values, present = vector.values[first], vector.present[first]
    for target, some in enumerate(rows.values()):
        for row in some[1:]:
            here = vector.present[row]
            if (present[target] & here).any():
                raise QueryFailed(SAME_LABELSET)
            values[target][here] = vector.values[row][here]
            present[target] |= here
    return Vector(list(rows), values, present)


def distinct(vector: Vector) -> Vector:
    """`vector`, checked: no two rows with samples have the same labels, at whatever steps."""
    vector = vector.occupied()
    if len(set(vector.labels)) != len(vector.labels):
        raise QueryFailed(SAME_LABELSET)
    return vector
