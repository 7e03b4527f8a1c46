"""Deleting: a tombstone for the samples of some series within a range, in one moment.

A tombstone hides what lies in chunks up to its sequence. So the series are sealed first, at the
same moment: what is given afterwards lies above it. Tiers hide every bucket that the range touches,
and those that it only cuts through are derived again from what is left. The samples themselves go
when their chunks are merged or dropped, and the tombstone when nothing older than it is left.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from siltstone.metrics.segment import FRESH, RAW, TIER
from siltstone.metrics.source import Matcher
from siltstone.metrics.state import DELETED, Tombstone, pack

if TYPE_CHECKING:
    from siltstone.metrics.engine import Engine


def delete(engine: Engine, matchers: Sequence[Matcher], start: int, end: int) -> int:
    """How many series have, or had, samples in the range's segments or in memory."""
    kinds = (FRESH, RAW, *range(TIER, TIER + len(engine.settings.tiers)))
    with engine.work, engine.reader.reading():
        engine.retention.make_room(1 + len(engine.settings.tiers))
        ids = engine.reader.match(matchers, start, end, kinds).ids
        for some in _batches(engine, ids.tolist()):
            _delete(engine, some, start, end)
        engine.counters["deletes"] += 1
        engine.merger.tiers.derive_again(ids.tolist(), start, end)
    return int(ids.size)


def _delete(engine: Engine, ids: list[int], start: int, end: int) -> None:
    keys = [engine.key(id) for id in ids]

    def moment() -> Tombstone:
        record = Tombstone(keys, start, end, engine.head.sequence)
        engine.append(DELETED, pack(record))
        return record

    record = engine.head.at_once(moment, ids)
    while record is None:
        engine.relieve()
        record = engine.head.at_once(moment, ids)
    with engine.lock:
        engine.tombstones = [*engine.tombstones, record]


def _batches(engine: Engine, ids: list[int]) -> Iterator[list[int]]:
    """As many as one record holds."""
    room = engine.log.payload_max - 256
    batch: list[int] = []
    size = 0
    for id in ids:
        size += len(engine.key(id)) + 8
        if batch and size > room:
            yield batch
            batch, size = [], len(engine.key(id)) + 8
        batch.append(id)
    if batch:
        yield batch
