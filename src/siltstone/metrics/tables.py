"""Tables into samples: which column is what, and whose series each row belongs to.

A table with a column `value` is long: a row is one sample of the series named in `name` (a column,
or the argument, or a column `__name__`) whose labels are the other columns of text. Without one it
is wide: every column of numbers is a metric of that name, and each row a sample of each. Empty
cells are no samples, empty labels no labels. Rows are taken in order of time, whatever order they
come in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from siltstone.errors import InvalidValue, LimitReached
from siltstone.metrics.arrow_reader import batches
from siltstone.metrics.keys import key_of
from siltstone.metrics.source import NAME_LABEL
from siltstone.metrics.times import times_ms

if TYPE_CHECKING:
    from siltstone.metrics.engine import Engine

Ids = npt.NDArray[np.uint32]


def write_table(
    engine: Engine, table: Any, *, time: str, name: str | None, value: str, backfill: bool
) -> int:
    """How many samples were accepted. All rows are checked before the first is taken."""
    parts = [_samples(engine, batch, time, name, value) for batch in batches(table)]
    total = sum(ids.size for batch in parts for ids, _, _ in batch)
    if total > engine.settings.request_samples_max:
        raise LimitReached(
            f"{total} samples at once: request_samples_max allows "
            f"{engine.settings.request_samples_max}"
        )
    flat = [part for batch in parts for part in batch]
    if not flat:
        return 0
    ids = np.concatenate([part[0] for part in flat])
    times = np.concatenate([part[1] for part in flat])
    values = np.concatenate([part[2] for part in flat])
    order = np.argsort(times, kind="stable")
    bits = values.view(np.uint64)[order]  # not as numbers: a staleness marker keeps its bits
    accepted: int = engine.head.write(ids[order], times[order], bits.view(np.float64), backfill)
    return accepted


def _samples(
    engine: Engine, batch: dict[str, Any], time: str, name: str | None, value: str
) -> list[tuple[Ids, npt.NDArray[np.int64], npt.NDArray[np.float64]]]:
    times, present = _numbers(batch, time)
    moments = times_ms(times[present] if present is not None else times)
    there = np.ones(times.size, np.bool_) if present is None else present
    texts = {column: cells for column, cells in batch.items() if isinstance(cells, list)}
    if value in batch:
        columns = {value: batch[value]}
    else:
        columns = {
            column: cells
            for column, cells in batch.items()
            if column != time and not isinstance(cells, list) and cells[0].dtype.kind in "iuf"
        }
    if not columns:
        raise InvalidValue(
            f"the table has no column {value!r} and none of numbers: nothing to keep"
        )
    found = []
    for column, cells in columns.items():
        if isinstance(cells, list):
            raise InvalidValue(f"column {column!r} is text, not numbers")
        numbers, valid = cells
        kept = there if valid is None else there & valid
        fixed = name if column == value else column
        ids = _ids(engine, texts, np.flatnonzero(kept).tolist(), fixed)
        found.append((ids, moments[kept[there]], numbers[kept].astype(np.float64)))
    return found


def _numbers(batch: dict[str, Any], column: str) -> tuple[Any, Any]:
    if column not in batch:
        raise InvalidValue(f"the table has no column {column!r}: it has {', '.join(batch)}")
    if isinstance(batch[column], list):
        raise InvalidValue(f"column {column!r} is text, not times")
    numbers: tuple[Any, Any] = batch[column]
    return numbers


def _ids(
    engine: Engine, texts: dict[str, list[str | None]], rows: list[int], name: str | None
) -> Ids:
    """The series of each row."""
    columns = list(texts)
    named = NAME_LABEL in texts  # as in the table of a query's result
    if name is None and not named and "name" not in texts:
        raise InvalidValue("the table has no column 'name': give the metric's name as name=")
    known: dict[tuple[str | None, ...], int] = {}
    ids = np.empty(len(rows), np.uint32)
    for place, row in enumerate(rows):
        cells = tuple(texts[column][row] for column in columns)
        id = known.get(cells)
        if id is None:
            labels = {c: cell for c, cell in zip(columns, cells, strict=True) if cell}
            if name is not None:
                labels[NAME_LABEL] = name
            elif not named:
                labels[NAME_LABEL] = labels.pop("name", "")
            id = known[cells] = engine.live_id(key_of(labels, engine.limits))
        ids[place] = id
    return ids
