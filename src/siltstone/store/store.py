"""`Store`: a crash-safe, ordered key-value store that outgrows RAM, in one process.

Owns what Python users call for a store as a whole; single records are in tree.pyx, pages and the
log below. Promises: a commit counts whole or not at all; after a crash the store holds a prefix of
its commits, with every one that was durable; readers see one moment and never wait for writers.
Thread-safe; in a forked child it refuses to work.

Non-goals: several writing processes (one opens a store, others may read beside it), queries,
values that are no bytes (`Cache` has codecs).
"""

from __future__ import annotations

import errno
import itertools
import os
import tempfile
import weakref
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, BinaryIO, Self, TypeVar

from siltstone.clock import SYSTEM_CLOCK, SYSTEM_RANDOM, Clock, Random
from siltstone.config import build, data_directory
from siltstone.errors import Closed, Conflict, InvalidValue, KeyMissing, ReadOnly
from siltstone.log.device import Device, superblock_of
from siltstone.log.openers import kept_from_writers
from siltstone.store import copies
from siltstone.store.face import Tree, check_name
from siltstone.store.repair import repair
from siltstone.store.report import Report
from siltstone.store.settings import StoreSettings
from siltstone.store.snapshot import Snapshot
from siltstone.store.transaction import Batch, Transaction
from siltstone.store.tree_check import check_trees
from siltstone.store.trees import TreePages
from siltstone.store.upkeep import close_forgotten
from siltstone.store.watch import Watch, Watchers

R = TypeVar("R")
ATTEMPTS = 100


class Store(Tree):
    """An ordered mapping of bytes to bytes, and more trees of them, in a directory.

    `path`: the data directory, made when it is missing; None: a temporary store, gone when it is
    closed. `durability`: "sync" waits for the medium at each commit, "interval" lets a commit
    reach it within `flush_interval`, "none" at `sync()`, checkpoints and `close()`.
    `cache`: memory of pages. `read_only`: look beside a writing process, see `refresh()`.
    Further settings are those of `siltstone.store.settings.StoreSettings`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        durability: str = "interval",
        flush_interval: float | str | timedelta = "500ms",
        cache: int | str = "256MiB",
        read_only: bool = False,
        *,
        device: Device | None = None,
        background: bool = True,
        clock: Clock = SYSTEM_CLOCK,
        rng: Random = SYSTEM_RANDOM,
        **options: Any,
    ) -> None:
        directory = None if path is None else data_directory(path)
        self._given = {
            "path": directory,
            "durability": durability,
            "flush_interval": flush_interval,
            "cache": cache,
            "read_only": read_only,
            **options,
        }
        given = dict(self._given)
        if directory is not None and "segment_size" not in options:
            found = superblock_of(directory / "data")
            given |= {"segment_size": found.segment_bytes} if found else {}
        self.settings = build(StoreSettings, given, "Store()")
        self._seams: dict[str, Any] = {
            "device": device,
            "background": background,
            "clock": clock,
            "rng": rng,
        }
        self._trees: weakref.WeakSet[Tree] = weakref.WeakSet()  # refresh() binds them anew
        self._watchers = Watchers(self.settings.watch_events_max)
        self._closed = False
        self._store = self
        self._open()

    def _open(self) -> None:
        self._pages = TreePages()
        self._pages.page_size = self.settings.page_size
        self._pages.value_size_max = self.settings.value_size_max
        self._pages.hint(self.settings.cache)
        if self.settings.path is None and self._seams["device"] is None:
            # The files keep their space until they are closed, and no name: nothing can stay.
            with tempfile.TemporaryDirectory(prefix="siltstone-") as directory:
                settings = build(StoreSettings, self._given | {"path": directory})
                self._pages.open_with(settings, **self._seams)
        else:
            self._pages.open_with(self.settings, **self._seams)
        # a store that nobody refers to any more is closed
        self._release = weakref.finalize(self, close_forgotten, self._pages.close)
        self._bind(self._pages, "", self._pages.tree_open("", True))

    @property
    def path(self) -> Path | None:
        """The data directory; None of a temporary store."""
        return self.settings.path

    def __reduce__(self) -> Any:
        if self.settings.path is None:
            raise TypeError("a temporary store cannot be pickled: it has no path")
        return _opened, (self._given,)

    def __repr__(self) -> str:
        return f"Store({str(self.path) if self.path else None!r})"

    def _check_writable(self) -> None:
        if self.settings.read_only:
            raise ReadOnly(errno.EROFS, f"{self.path} was opened with read_only=True")

    # Trees ----------------------------------------------------------------------------------

    def tree(self, name: str) -> Tree:
        """The tree of that name, made when there is none. It has all methods of a store's own."""
        check_name(name)
        tree = Tree()
        tree._store = self
        tree._bind(self._pages, name, self._pages.tree_open(name, not self.settings.read_only))
        if self.settings.read_only:
            self._trees.add(tree)
        return tree

    def trees(self) -> list[str]:
        """The names of all trees but the store's own, sorted."""
        return sorted(self._pages.tree_names())

    def drop_tree(self, name: str) -> bool:
        """Delete a tree with all that is in it; whether there was one. The store's own cannot be
        dropped: `clear()` empties it."""
        self._check_writable()
        check_name(name)
        there = self._pages.tree_drop(name)
        if there:
            self._watchers.lose(name, 1)
        return there

    # Many changes ---------------------------------------------------------------------------

    def batch(self, durable: bool | None = None) -> Batch:
        """Changes that count together or not at all: `with store.batch() as b: b[k] = v`."""
        self._check_writable()
        return Batch(self, durable)

    def transaction(self, durable: bool | None = None) -> Transaction:
        """Serializable reads and changes; Conflict at the end when others came between."""
        self._check_writable()
        return Transaction(self, durable)

    def transact(
        self,
        function: Callable[[Transaction], R],
        attempts: int = ATTEMPTS,
        *,
        durable: bool | None = None,
    ) -> R:
        """`function(transaction)` in a transaction, again when there was a conflict.

        It may run several times: it should change nothing but the transaction. Conflict after
        `attempts`.
        """
        check_attempts(function, attempts)
        for attempt in itertools.count(1):
            try:
                with self.transaction(durable) as transaction:
                    return function(transaction)
            except Conflict:
                if attempt == attempts:
                    raise
        raise AssertionError("the loop ends by return or Conflict")

    def snapshot(self) -> Snapshot:
        """All trees as they are now, until it is closed."""
        return Snapshot(self)

    def _watch(self, tree: str, prefix: bytes) -> Watch:
        self._check_writable()  # a reader sees changes at refresh(), not as they come
        self._pages._usable()
        watch = self._watchers.watch(tree, prefix)
        self._pages.watchers = self._watchers
        return watch

    # The whole store ------------------------------------------------------------------------

    def generate_id(self) -> int:
        """A number that was never given out before, also not before a crash; they rise."""
        self._check_writable()
        return self._pages.generate_id()

    def sync(self) -> None:
        """All that was committed is on the medium afterwards."""
        self._pages.sync()

    def checkpoint(self) -> None:
        """Bound the work of the next opening, and give back space that nothing needs."""
        self._check_writable()
        self._pages.checkpoint()

    def step(self) -> bool:
        """One step of what the background threads do; whether there is more."""
        return self._pages.step()

    def tick(self) -> None:
        """What a background thread does at each `flush_interval`: sync, if anything waits."""
        self._pages.tick()

    def segments(self) -> list[dict[str, Any]]:
        """The segments of the log, for looking at: slot, version, state, bytes."""
        self._pages._usable()
        return self._pages.log.segments()

    def refresh(self) -> None:
        """Opened with read_only: see what the writer has made durable since. Snapshots end."""
        if self._closed:
            raise Closed("the store is closed")
        if not self.settings.read_only:
            return
        self._release()
        self._open()
        for tree in list(self._trees):
            try:
                tree._bind(self._pages, tree.name, self._pages.tree_open(tree.name, False))
            except KeyMissing:
                tree._bind_dropped(self._pages)

    def verify(self, progress: Callable[[int, int], object] | None = None) -> Report:
        """Read and check every page and record; `progress(done, of)` is told now and then."""
        report = self._pages.verify(progress)
        report.problems += check_trees(self._pages)
        with self.snapshot() as snapshot:
            trees = [snapshot, *map(snapshot.tree, snapshot.trees())]
            report.trees, report.records = len(trees), sum(map(len, trees))
        return report

    def backup(
        self,
        path: str | os.PathLike[str],
        progress: Callable[[int, int], object] | None = None,
    ) -> None:
        """Write a store of this moment to a new directory, while others go on."""
        with self.snapshot() as snapshot:
            copies.backup(snapshot, str(data_directory(path)), self.settings, Store, progress)

    @classmethod
    def repair(
        cls,
        path: str | os.PathLike[str],
        target: str | os.PathLike[str],
        progress: Callable[[int, int], object] | None = None,
        **options: Any,
    ) -> Report:
        """Make a new store at `target` of all that can still be read of the one at `path`.

        The damaged store is not changed; nobody may have it open for writing (Locked). The report
        is `ok` when nothing was lost; `problems` lists what is, or may be. `options`: settings of
        the new store.
        """
        damaged, made = str(data_directory(path)), str(data_directory(target))
        with kept_from_writers(damaged):
            return repair(damaged, made, cls, progress, options)

    def dump(self, file: BinaryIO) -> int:
        """Write all records to a file, in a form that later versions read; their number."""
        with self.snapshot() as snapshot:
            return copies.dump(snapshot, file)

    def load(self, file: BinaryIO) -> int:
        """Set all records of a dump; their number. What was there under other keys stays."""
        self._check_writable()
        return copies.load(self, file)

    def stats(self) -> dict[str, Any]:
        """Counters and sizes: bytes where the name says so."""
        self._pages._usable()
        log = self._pages.log
        found = self._pages.stats()
        return found | {
            "unsynced_bytes": log.end - log.stable_position,
            "conflicts": self._pages.conflict_count,
            "restarts": self._pages.restart_count,
            "records": len(self),
        }

    @property
    def recovery(self) -> Any:
        """How opening went: `.ok`, `.problems`, `.outcome`; None when a refresh failed."""
        return self._pages.recovery

    @property
    def was_recovered(self) -> bool:
        """Whether there was a store before this opening."""
        return self.recovery is not None and self.recovery.outcome != "new"

    @property
    def size_on_disk(self) -> int:
        """Bytes that its files take."""
        self._pages._usable()
        return self._pages.device.size_on_disk

    def close(self) -> None:
        """Make all durable and let go. Idempotent; in a forked child it touches nothing."""
        self._closed = True
        self._release.detach()
        try:
            self._pages.close()
        finally:
            self._watchers.close()

    def __enter__(self) -> Self:
        self._pages._usable()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def check_attempts(function: object, attempts: object) -> None:
    """Of transact(); InvalidValue says what is wrong with them."""
    if not callable(function):
        raise InvalidValue(f"{function!r} is no function of a transaction")
    if isinstance(attempts, bool) or not isinstance(attempts, int) or attempts < 1:
        raise InvalidValue(f"attempts: {attempts!r} is too few, use 1 or more")


def _opened(given: dict[str, Any]) -> Store:
    return Store(**given)
