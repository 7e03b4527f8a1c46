"""Batches and transactions: many changes, of several trees, that are committed together.

Both gather their changes in memory and change nothing for others before their commit; then all of
them count from one moment on, also after a crash. A transaction reads from a snapshot and sees its
own changes; it notes the pages that it read, and its commit raises `errors.Conflict` if one of them
has changed meanwhile, so that all transactions that were committed could have run one after
another. One that changes nothing never conflicts. Each belongs to one thread at a time.
"""

from __future__ import annotations

import abc
import sys
import types
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, Self

from siltstone.errors import Closed, Conflict, InvalidValue, KeyMissing
from siltstone.store.changes import Changes, Part
from siltstone.store.face import check_name
from siltstone.store.tree import Tree, View, key_of, limit_of
from siltstone.store.trees import Reads, Snapshot

if TYPE_CHECKING:
    from siltstone.store.store import Store

Pair = tuple[bytes, bytes]
UNCHANGED: Final = object()
MISSING: Final = object()


class _Writes(Part):
    """What parts of batches and of transactions have in common."""

    def update(self, pairs: Mapping[bytes, Any] | Iterable[tuple[bytes, Any]]) -> None:
        """Set every pair."""
        if not isinstance(pairs, Iterable):
            raise InvalidValue(f"update takes a mapping or pairs, not {type(pairs).__name__}")
        for pair in pairs.items() if isinstance(pairs, Mapping) else pairs:
            try:
                key, value = pair
            except (TypeError, ValueError):
                raise InvalidValue(f"{pair!r} is no pair of a key and a value") from None
            self[key] = value


class _Commit(abc.ABC):
    """The end of a batch or transaction: `commit()`, `abandon()`, or leaving `with`."""

    _store: Store
    _durable: bool | None
    _ended: bool

    @abc.abstractmethod
    def commit(self) -> None:
        """All changes count, or an error says why none does."""

    @abc.abstractmethod
    def abandon(self) -> None:
        """None of the changes will count."""

    def _check(self) -> None:
        if self._ended:
            raise Closed(f"this {type(self).__name__.lower()} has ended")

    def __enter__(self) -> Self:
        self._check()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        if kind is not None:
            self.abandon()
        elif not self._ended:
            self.commit()


class Batch(_Commit, _Writes):
    """Blind changes: all of them or none. `tree(name)` gives the part for another tree."""

    def __init__(self, store: Store, durable: bool | None) -> None:
        self._store, self._durable, self._ended = store, durable, False
        self._changes = Changes(store._pages)
        self._bind(self._changes, store._root)
        self._parts: dict[str, _Writes] = {}

    def __len__(self) -> int:
        """Keys that it changes."""
        return len(self._changes)

    def tree(self, name: str) -> _Writes:
        """The part for another tree, which is made with the commit if there is none."""
        self._check()
        check_name(name)
        part = self._parts.get(name)
        if part is None:
            part = _Writes()
            part._bind(self._changes, self._root_of(name))
            self._parts[name] = part
        return part

    def part_of(self, tree: Tree) -> _Writes:
        """The part for this tree, and no later one of its name; KeyMissing: it was dropped."""
        part = _Writes()
        part._bind(self._changes, tree.root)
        len(tree)  # its root was still its own when the part was bound to it
        return part

    def _root_of(self, name: str) -> int:
        try:
            return self._store._pages.tree_open(name, False)
        except KeyMissing:
            return self._changes.new_tree(name)

    def commit(self) -> None:
        """All changes count from now on; waits for the medium if that was asked for."""
        self._check()
        self._ended = True
        self._changes.commit(self._durable)

    def abandon(self) -> None:
        """Forget the changes. Idempotent."""
        self._ended = True
        self._changes.close()


class TransactionTree(_Writes):
    """A tree as a transaction sees it: the snapshot with its own changes."""

    _view: View
    name: str

    def _open(self, transaction: Transaction, name: str, root: int) -> None:
        self._bind(transaction._changes, root)
        self.name = name
        self._view = View(
            transaction._store._pages, name, root, transaction._snapshot, transaction._reads
        )

    # Reading

    def get(self, key: Any, default: Any = None) -> Any:
        """The value, or `default`."""
        changed = self.changes.get(self.root, key, UNCHANGED)
        if changed is UNCHANGED:
            return self._view.get(key, default)
        return default if changed is None else changed

    def __getitem__(self, key: Any) -> bytes:
        value = self.get(key, MISSING)
        if value is MISSING:
            raise KeyMissing(f"no record under the key {bytes(key)!r}")
        return bytes(value)

    def __contains__(self, key: Any) -> bool:
        return self.get(key, MISSING) is not MISSING

    def items(
        self,
        start: Any = None,
        stop: Any = None,
        *,
        reverse: bool = False,
        limit: int | None = None,
        **bounds: Any,
    ) -> Iterator[Pair]:
        """(key, value) pairs of a range, in order; bounds as of `Store.items`."""
        ours = self.changes.items(self.root, start, stop, reverse=reverse, **bounds)
        theirs = self._view.items(start, stop, reverse=reverse, **bounds)
        most = None if limit is None else min(limit_of(limit), sys.maxsize)
        return islice(_overlaid(iter(ours), iter(theirs), reverse), most)

    def keys(self, start: Any = None, stop: Any = None, **bounds: Any) -> Iterator[bytes]:
        return (key for key, _ in self.items(start, stop, **bounds))

    def values(self, start: Any = None, stop: Any = None, **bounds: Any) -> Iterator[bytes]:
        return (value for _, value in self.items(start, stop, **bounds))

    def __iter__(self) -> Iterator[bytes]:
        return self.keys()

    def __len__(self) -> int:
        """Counts: reads the whole tree, so that any change of it is a conflict."""
        return sum(1 for _ in self.items())

    def first(self) -> Pair | None:
        return next(self.items(limit=1), None)

    def last(self) -> Pair | None:
        return next(self.items(reverse=True, limit=1), None)

    def next_after(self, key: Any) -> Pair | None:
        return next(self.items(key_of(key), include_start=False, limit=1), None)

    def last_before(self, key: Any) -> Pair | None:
        return next(self.items(None, key_of(key), reverse=True, limit=1), None)

    # Changing what was read

    def __delitem__(self, key: Any) -> None:
        if not self.delete(key):
            raise KeyMissing(f"no record under the key {bytes(key)!r}")

    def delete(self, key: Any) -> bool:  # type: ignore[override]  # a batch does not look
        """Whether it was there."""
        there = key in self
        if there:
            super().delete(key)
        return there

    def pop(self, key: Any, default: Any = MISSING) -> Any:
        """Delete the record and return its value."""
        value = self.get(key, MISSING)
        if value is not MISSING:
            super().delete(key)
        elif default is MISSING:
            raise KeyMissing(f"no record under the key {bytes(key)!r}")
        return default if value is MISSING else value

    def set_default(self, key: Any, value: Any) -> Any:
        """The value; `value` is stored and given back if there is none."""
        found = self.get(key, MISSING)
        if found is MISSING:
            self[key] = value
            return bytes(value)
        return found


class Transaction(_Commit, TransactionTree):
    """Serializable reads and writes. `tree(name)` gives another tree in the same transaction."""

    def __init__(self, store: Store, durable: bool | None) -> None:
        self._store, self._durable, self._ended = store, durable, False
        self._changes = Changes(store._pages)
        self._reads = Reads(store._pages)
        self._snapshot: Snapshot = store._pages.snapshot()
        self._parts: dict[str, TransactionTree] = {"": self}
        self._open(self, "", store._root)

    def tree(self, name: str) -> TransactionTree:
        """Another tree, which is made at once if there is none.

        Conflict when it was made after this transaction had begun to read.
        """
        self._check()
        if name != "":
            check_name(name)
        part = self._parts.get(name)
        if part is None:
            part = self._parts[name] = TransactionTree()
            part._open(self, name, self._root_of(name))
        return part

    def _root_of(self, name: str) -> int:
        root = self._store.tree(name)._root
        try:
            return self._store._pages.tree_open(name, False, self._snapshot)
        except KeyMissing:
            if len(self._reads):
                raise Conflict(f"the tree {name!r} was made after what was read") from None
        self._snapshot.close()
        self._snapshot = self._store._pages.snapshot()
        for known, part in self._parts.items():
            part._open(self, known, part.root)
        return root

    def commit(self) -> None:
        """All or nothing. Conflict: what was read has changed since; begin again."""
        self._check()
        self._ended = True
        try:
            if len(self._changes):
                self._changes.commit(self._durable, self._reads)
            elif self._waits():
                self._store.sync()  # what it has read is durable now
        finally:
            self._end()

    def _waits(self) -> bool:
        default = self._store.settings.durability == "sync"
        return default if self._durable is None else self._durable

    def abandon(self) -> None:
        """Forget the changes. Idempotent."""
        self._ended = True
        self._end()

    def _end(self) -> None:
        self._snapshot.close()
        self._changes.close()


def _overlaid(
    ours: Iterator[tuple[bytes, bytes | None]], theirs: Iterator[Pair], reverse: bool
) -> Iterator[Pair]:
    """Two sorted ranges as one; ours win, and None deletes."""
    mine, other = next(ours, None), next(theirs, None)
    while mine is not None or other is not None:
        if mine is None:
            assert other is not None
            yield other
            other = next(theirs, None)
        elif other is not None and ((other[0] > mine[0]) if reverse else (other[0] < mine[0])):
            yield other
            other = next(theirs, None)
        else:
            if other is not None and other[0] == mine[0]:
                other = next(theirs, None)
            if mine[1] is not None:
                yield mine[0], mine[1]
            mine = next(ours, None)
