"""PromQL's binary operators: arithmetic, comparison, sets, and which rows belong together.

Vectors are matched by a signature of their labels. What Prometheus checks at each step (a match
must be unique on one side; results must differ in their labels) is checked here for all steps at
once, and the error of the earliest step is the one that is raised.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from siltstone.errors import QueryFailed
from siltstone.metrics import labels as ls
from siltstone.metrics.grid import Mask, Vector, empty, merged, rows_by_labels
from siltstone.metrics.labels import Labels
from siltstone.metrics.source import NAME_LABEL, Values

Signature = Callable[[Labels], Labels]

ARITHMETIC: dict[str, Callable[[Values, Values], Values]] = {
    "+": np.add,
    "-": np.subtract,
    "*": np.multiply,
    "/": np.divide,
    "%": np.fmod,
    "^": np.power,
    "atan2": np.arctan2,
}
COMPARISON: dict[str, Callable[[Values, Values], Mask]] = {
    "==": np.equal,
    "!=": np.not_equal,
    ">": np.greater,
    "<": np.less,
    ">=": np.greater_equal,
    "<=": np.less_equal,
}
# Results of arithmetic are no longer the metric; 2.42 forgets that for atan2, and so do we.
NAMELESS = frozenset(ARITHMETIC) - {"atan2"}
MANY_TO_ONE = (
    "multiple matches for labels: many-to-one matching must be explicit (group_left/group_right)"
)
NOT_UNIQUE = "multiple matches for labels: grouping labels must ensure unique matches"


@dataclass(frozen=True, slots=True)
class Matching:
    """How the rows of two vectors are paired."""

    on: bool = False  # by these labels alone; else by all but these and the name
    names: tuple[str, ...] = ()
    many: str = ""  # the side of which several rows may match: "", "left" or "right"
    include: tuple[str, ...] = ()  # labels taken over from the other side
    return_bool: bool = False
    hidden: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "hidden", frozenset((*self.names, NAME_LABEL)))

    def signature(self, labels: Labels) -> Labels:
        if self.on:
            return ls.keep(labels, self.names)
        return ls.drop(labels, self.hidden)


def scalars(op: str, left: Values, right: Values) -> Values:
    """Two scalars; comparisons give 0 or 1."""
    if op in ARITHMETIC:
        return ARITHMETIC[op](left, right)
    return COMPARISON[op](left, right).astype(np.float64)


def with_scalar(
    op: str, vector: Vector, scalar: Values, scalar_left: bool, return_bool: bool
) -> Vector:
    """A vector and a scalar, `scalar_left` if that stood first."""
    left, right = (scalar, vector.values) if scalar_left else (vector.values, scalar)
    if op in ARITHMETIC:
        values, present = ARITHMETIC[op](left, right), vector.present
    elif return_bool:
        values, present = COMPARISON[op](left, right).astype(np.float64), vector.present
    else:
        return Vector(vector.labels, vector.values, vector.present & COMPARISON[op](left, right))
    nameless = op in NAMELESS or return_bool
    labels = [ls.without_name(row) for row in vector.labels] if nameless else vector.labels
    return merged(Vector(labels, values, present))


# Two vectors --------------------------------------------------------------------------------


def with_vector(op: str, left: Vector, right: Vector, matching: Matching) -> Vector:
    """Arithmetic or comparison of the rows that match."""
    many, single = (right, left) if matching.many == "right" else (left, right)
    groups = rows_by_labels([matching.signature(row) for row in single.labels])
    pairs = [
        (row, partner)
        for row, labels in enumerate(many.labels)
        for partner in groups.get(matching.signature(labels), ())
    ]
    error = _duplicates(many, single, groups, matching)
    if not pairs:
        if error:
            raise error.error
        return empty(left.values.shape[1])
    at = np.array(pairs, np.intp)
    many_values, single_values = many.values[at[:, 0]], single.values[at[:, 1]]
    present = many.present[at[:, 0]] & single.present[at[:, 1]]
    operands = (
        (single_values, many_values) if matching.many == "right" else (many_values, single_values)
    )
    if op in ARITHMETIC:
        values = ARITHMETIC[op](*operands)
    elif matching.return_bool:
        values = COMPARISON[op](*operands).astype(np.float64)
    else:
        values = operands[0]
        present &= COMPARISON[op](*operands)
    nameless = op in NAMELESS or matching.return_bool
    labels = [
        _result_labels(many.labels[row], single.labels[partner], nameless, matching)
        for row, partner in pairs
    ]
    signatures = [matching.signature(single.labels[partner]) for _, partner in pairs]
    clash = _clashes(signatures, labels, present, matching)
    if error and (not clash or error.step <= clash.step):
        raise error.error
    if clash:
        raise clash.error
    return merged(Vector(labels, values, present).occupied())


@dataclass(frozen=True, slots=True)
class _Failure:
    step: int
    error: QueryFailed


def _duplicates(
    many: Vector, single: Vector, groups: dict[Labels, list[int]], matching: Matching
) -> _Failure | None:
    """The earliest step at which two rows of the side that must be unique match the same."""
    asked = many.present.any(axis=0)
    worst: tuple[int, int, int] | None = None
    for rows in groups.values():
        if len(rows) < 2:
            continue
        twice = (single.present[rows].sum(axis=0) > 1) & asked
        if not twice.any():
            continue
        step = int(np.argmax(twice))
        first, second = [row for row in rows if single.present[row, step]][:2]
        if worst is None or (step, second) < worst[:2]:
            worst = step, second, first
    if worst is None:
        return None
    step, second, first = worst
    side = "left" if matching.many == "right" else "right"
    group = ls.text(matching.signature(single.labels[second]))
    return _Failure(
        step,
        QueryFailed(
            f"found duplicate series for the match group {group} on the {side} hand-side of the "
            f"operation: [{ls.text(single.labels[second])}, {ls.text(single.labels[first])}]"
            ";many-to-many matching not allowed: matching labels must be unique on one side"
        ),
    )


def _clashes(
    signatures: list[Labels], labels: list[Labels], present: Mask, matching: Matching
) -> _Failure | None:
    """The earliest step at which one match group gives two results that must be one."""
    keys: dict[object, list[int]] = {}
    for row, signature in enumerate(signatures):
        key = (signature, labels[row]) if matching.many else signature
        keys.setdefault(key, []).append(row)
    steps = [
        int(np.argmax(twice))
        for rows in keys.values()
        if len(rows) > 1 and (twice := present[rows].sum(axis=0) > 1).any()
    ]
    if not steps:
        return None
    return _Failure(min(steps), QueryFailed(NOT_UNIQUE if matching.many else MANY_TO_ONE))


def _result_labels(many: Labels, single: Labels, nameless: bool, matching: Matching) -> Labels:
    labels = ls.without_name(many) if nameless else many
    if not matching.many:
        if matching.on:
            labels = ls.keep(labels, matching.names)
        else:
            labels = ls.drop(labels, matching.names)
    if matching.include:
        labels = ls.replace(labels, ((name, ls.get(single, name)) for name in matching.include))
    return labels


# Sets ---------------------------------------------------------------------------------------


def sets(op: str, left: Vector, right: Vector, matching: Matching) -> Vector:
    """and, or, unless."""
    if op == "or":
        present = right.present & ~_matched(right, left, matching)
        return merged(
            Vector(
                left.labels + right.labels,
                np.concatenate([left.values, right.values]),
                np.concatenate([left.present, present]),
            ).occupied()
        )
    matched = _matched(left, right, matching)
    if op == "and":
        return Vector(left.labels, left.values, left.present & matched).occupied()
    return Vector(left.labels, left.values, left.present & ~matched).occupied()


def _matched(vector: Vector, other: Vector, matching: Matching) -> Mask:
    """Where `other` has, at the same step, some row of the same signature."""
    groups = rows_by_labels([matching.signature(row) for row in other.labels])
    here = {key: other.present[rows].any(axis=0) for key, rows in groups.items()}
    never = np.zeros(vector.values.shape[1], np.bool_)
    if not vector.labels:
        return np.zeros_like(vector.present)
    return np.stack([here.get(matching.signature(row), never) for row in vector.labels])
