"""Snapshots: all trees as they were at one moment, for as long as somebody holds them.

Writers never wait for a snapshot: what it needs of pages that change is kept in memory, within
`snapshot_bytes_max`; beyond it the oldest snapshot ends with `errors.SnapshotTooOld`. It ends at
`close()` or with the store. Any thread may read it.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any, BinaryIO, Self, cast

from siltstone.errors import InvalidValue
from siltstone.store.face import check_name
from siltstone.store.stream import BlobReader
from siltstone.store.tree import View, key_of
from siltstone.store.trees import Snapshot as Moment
from siltstone.store.values import ValueReader

if TYPE_CHECKING:
    from siltstone.store.store import Store


class SnapshotTree(View):
    """A tree at the moment of a snapshot: all reading methods of a tree."""

    def open(self, key: Any, mode: str = "rb") -> BinaryIO:
        """The value as a file; only for reading."""
        if mode != "rb":
            raise InvalidValue(f'mode {mode!r}: a snapshot is only read, "rb"')
        name = key_of(key)
        return cast(BinaryIO, io.BufferedReader(ValueReader(name, BlobReader(self, name))))


class Snapshot(SnapshotTree):
    """The store at one moment; `tree(name)` gives its other trees at that moment."""

    def __init__(self, store: Store) -> None:
        self._moment: Moment = store._pages.snapshot()
        self._store = store
        super().__init__(store._pages, "", store._root, self._moment)

    def tree(self, name: str) -> SnapshotTree:
        """A tree that was there then; KeyMissing for others."""
        check_name(name)
        pages = self._store._pages
        root = pages.tree_open(name, False, self._moment)
        return SnapshotTree(pages, name, root, self._moment)

    def trees(self) -> list[str]:
        """The names of the trees there were, sorted."""
        return sorted(self._store._pages.tree_names(self._moment))

    def close(self) -> None:
        """Let go of what it holds. Idempotent."""
        self._moment.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
