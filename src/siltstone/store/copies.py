"""Copies of a store at one moment: backups, dumps, and loading them again.

A backup is a store by itself, written record by record from a snapshot while the store goes on, and
there only when it is whole; a dump is one stream of records (dump.py says how).
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from siltstone.errors import InvalidValue
from siltstone.log.directory import made_whole
from siltstone.store import dump as dumps
from siltstone.store.settings import StoreSettings
from siltstone.store.snapshot import Snapshot, SnapshotTree

if TYPE_CHECKING:
    from siltstone.store.store import Store

BATCH_RECORDS: Final = 2000
BATCH_BYTES: Final = 4 << 20
PROGRESS_RECORDS: Final = 1000

Progress = Callable[[int, int], object]


def trees_of(snapshot: Snapshot) -> Iterator[tuple[str, SnapshotTree]]:
    """(name, tree), the store's own first as ""."""
    yield "", snapshot
    for name in snapshot.trees():
        yield name, snapshot.tree(name)


def backup(
    snapshot: Snapshot,
    path: str,
    settings: StoreSettings,
    make: type[Store],
    progress: Progress | None,
) -> None:
    """Write the snapshot to a new store at `path`; an error leaves no store there that opens."""
    options: dict[str, Any] = {
        "segment_size": settings.segment_size,
        "buffer_size": settings.buffer_size,
        "page_size": settings.page_size,
        "value_size_max": settings.value_size_max,
        "compression": settings.compression,
        "mode": settings.mode,
    }
    trees = dict(trees_of(snapshot))
    total = sum(len(tree) for tree in trees.values())
    done = 0
    options |= {"durability": "none", "cache": settings.cache}
    with made_whole(path, "data") as part, make(part, **options) as copy:
        for name, tree in trees.items():
            done = _copy(tree, copy, name, done, total, progress)
        copy._pages.skip_ids(snapshot._store._pages.id_marker)
        copy.checkpoint()
    if progress is not None:
        progress(total, total)


def _copy(
    tree: SnapshotTree, copy: Store, name: str, done: int, total: int, progress: Progress | None
) -> int:
    target = copy.tree(name) if name else copy
    batch: list[tuple[bytes, bytes]] = []
    size = 0
    for key, value in tree.items():
        batch.append((key, value))
        size += len(key) + len(value)
        done += 1
        if len(batch) >= BATCH_RECORDS or size >= BATCH_BYTES:
            target.update(batch)
            batch, size = [], 0
        if progress is not None and done % PROGRESS_RECORDS == 0:
            progress(done, total)
    target.update(batch)
    return done


def dump(snapshot: Snapshot, file: BinaryIO) -> int:
    """All records of all trees; their number."""
    _check_file(file, "write")
    return dumps.write(file, ((name, tree.items()) for name, tree in trees_of(snapshot)))


def load(store: Store, file: BinaryIO) -> int:
    """Set every record of a dump, some thousand a commit; their number."""
    _check_file(file, "read")
    count, batch, size, filled = 0, store.batch(), 0, 0
    for name, key, value in dumps.read(file):
        part = batch.tree(name) if name else batch
        if key is None:
            continue
        part[key] = value
        count, filled, size = count + 1, filled + 1, size + len(key) + len(value)
        if filled >= BATCH_RECORDS or size >= BATCH_BYTES:
            batch.commit()
            batch, size, filled = store.batch(), 0, 0
    batch.commit()
    return count


def _check_file(file: object, method: str) -> None:
    if isinstance(file, io.TextIOBase) or not callable(getattr(file, method, None)):
        raise InvalidValue(f"{file!r} is no file that was opened as binary")
