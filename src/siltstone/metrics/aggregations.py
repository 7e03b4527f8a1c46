"""PromQL's aggregations: sum, topk, quantile, count_values and the others, by or without labels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from siltstone.errors import QueryFailed
from siltstone.metrics import grouping
from siltstone.metrics import labels as ls
from siltstone.metrics.grid import Vector, empty
from siltstone.metrics.labels import Labels
from siltstone.metrics.numbers import number_text, sample_text
from siltstone.metrics.source import NAME_LABEL, Values

PLAIN = frozenset(grouping.OPERATIONS)
COUNTED = frozenset({"topk", "bottomk", "limitk"})
# what converts to a Go int64
COUNT_MAX = 2.0**63


@dataclass(frozen=True, slots=True)
class Grouping:
    """`by` the names, or `without` them; by none is one group of all."""

    names: frozenset[str] = frozenset()
    without: bool = False

    def key(self, labels: Labels) -> Labels:
        if self.without:
            return tuple(p for p in labels if p[0] not in self.names and p[0] != NAME_LABEL)
        return ls.keep(labels, self.names) if self.names else ls.NO_LABELS


def aggregate(op: str, vector: Vector, by: Grouping, parameter: Values | str | None) -> Vector:
    """`parameter`: k or q of each step, or the label of count_values."""
    vector = vector.occupied()
    if op == "count_values":
        assert isinstance(parameter, str)
        return _count_values(parameter, vector, by)
    k = _counts(parameter, len(vector)) if op in COUNTED else None
    if not vector.labels:
        return empty(vector.values.shape[1])
    labels, group = _groups(vector, by)
    present = vector.present.view(np.uint8)
    values = np.ascontiguousarray(vector.values)
    if op in PLAIN:
        return Vector(labels, *grouping.aggregate(op, values, present, group, len(labels)))
    assert isinstance(parameter, np.ndarray)
    if op == "quantile":
        return Vector(labels, *grouping.quantile(values, present, group, len(labels), parameter))
    assert k is not None
    if op == "limitk":
        return _limit(vector, group, k)
    selected, order = grouping.select_k(op == "topk", values, present, group, len(labels), k)
    chosen = Vector(vector.labels, vector.values, selected)
    # at one step the order is part of the answer
    return chosen.rows(order) if values.shape[1] == 1 else chosen.occupied()


def _groups(vector: Vector, by: Grouping) -> tuple[list[Labels], npt.NDArray[np.int64]]:
    index: dict[Labels, int] = {}
    group = [index.setdefault(by.key(labels), len(index)) for labels in vector.labels]
    return list(index), np.array(group, np.int64)


def _counts(parameter: Values | str | None, rows: int) -> npt.NDArray[np.int64]:
    assert isinstance(parameter, np.ndarray)
    # NaN fails both comparisons
    fits = (parameter > -COUNT_MAX) & (parameter < COUNT_MAX)
    if not fits.all():
        wrong = parameter[int(np.argmin(fits))]
        raise QueryFailed(f"Scalar value {sample_text(wrong)} overflows int64")
    return np.clip(np.trunc(parameter), 0, rows).astype(np.int64)


def _limit(vector: Vector, group: npt.NDArray[np.int64], k: npt.NDArray[np.int64]) -> Vector:
    """The first k of each group, as they come."""
    selected = np.zeros_like(vector.present)
    for number in range(int(group.max()) + 1):
        rows = np.flatnonzero(group == number)
        present = vector.present[rows]
        selected[rows] = present & (np.cumsum(present, axis=0) <= k)
    return Vector(vector.labels, vector.values, selected).occupied()


def _count_values(label: str, vector: Vector, by: Grouping) -> Vector:
    if not ls.LABEL_NAME.fullmatch(label):
        raise QueryFailed(f'invalid label name "{label}"')
    if not by.without:
        by = Grouping(by.names | {label})
    counts: dict[Labels, Values] = {}
    for row, labels in enumerate(vector.labels):
        steps = np.flatnonzero(vector.present[row])
        # by their bits: 0 and -0 are written differently
        bits = np.ascontiguousarray(vector.values[row, steps]).view(np.uint64)
        values, inverse = np.unique(bits, return_inverse=True)
        for number, value in enumerate(values.view(np.float64)):
            key = by.key(ls.replace(labels, [(label, number_text(value))]))
            count = counts.setdefault(key, np.zeros(vector.values.shape[1]))
            count[steps[inverse == number]] += 1
    if not counts:
        return empty(vector.values.shape[1])
    found = np.stack(list(counts.values()))
    return Vector(list(counts), found, found > 0)
