"""`aio.Store`: the Store for asyncio; the same names, awaitable.

Every call runs in a thread, so that a page that must be read, or a commit that waits for the
medium, never holds up the event loop; many waiting commits share one sync. Iterators fetch some
hundred records at a time and are snapshots, as they are without asyncio. Inside `async with
store.batch()` and `store.transaction()` changes are plain statements, since they only gather;
a transaction's reads, and changes that read, are awaited.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import itertools
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, BinaryIO

from siltstone.aio.face import OpenedLater, awaited, fetched
from siltstone.errors import Conflict
from siltstone.store import store as plain
from siltstone.store.report import Report
from siltstone.store.transaction import Batch, Transaction
from siltstone.store.watch import Watch


class Reading:
    """What trees, snapshots and transactions have in common."""

    def __init__(self, found: Any) -> None:
        self._found = found

    def _plain(self) -> Any:
        """What does the work, in threads."""
        return self._found

    get = awaited("get")
    first = awaited("first")
    last = awaited("last")
    next_after = awaited("next_after")
    last_before = awaited("last_before")

    async def contains(self, key: bytes) -> bool:
        """`key in store`."""
        return await asyncio.to_thread(lambda: key in self._plain())

    async def count(self) -> int:
        """`len(store)`."""
        return await asyncio.to_thread(lambda: len(self._plain()))

    def items(self, *bounds: Any, **more: Any) -> AsyncIterator[tuple[bytes, bytes]]:
        """(key, value) pairs of a range; bounds as of `siltstone.Store.items`."""
        return fetched(lambda: iter(self._plain().items(*bounds, **more)))

    def keys(self, *bounds: Any, **more: Any) -> AsyncIterator[bytes]:
        """The keys of a range."""
        return fetched(lambda: iter(self._plain().keys(*bounds, **more)))

    def values(self, *bounds: Any, **more: Any) -> AsyncIterator[bytes]:
        """The values of a range."""
        return fetched(lambda: iter(self._plain().values(*bounds, **more)))

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self.keys()


class Stream:
    """A large value, written or read piece by piece: `store.open(key, "wb")`."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def _plain(self) -> BinaryIO:
        return self._file

    read = awaited("read")
    write = awaited("write")
    seek = awaited("seek")
    tell = awaited("tell")


@contextlib.asynccontextmanager
async def _streamed(begin: Callable[[], BinaryIO]) -> AsyncIterator[Stream]:
    """A file, closed in a thread; the error that ends the block gives it up."""
    file = await asyncio.to_thread(begin)
    try:
        yield Stream(file)
    except BaseException as error:
        await asyncio.to_thread(file.__exit__, type(error), error, error.__traceback__)
        raise
    await asyncio.to_thread(file.__exit__, None, None, None)


class Tree(Reading):
    """A tree, awaitable."""

    get_many = awaited("get_many")
    set = awaited("set")
    delete = awaited("delete")
    pop = awaited("pop")
    set_default = awaited("set_default")
    pop_first = awaited("pop_first")
    pop_last = awaited("pop_last")
    compare_and_set = awaited("compare_and_set")
    merge = awaited("merge")
    setdefault = awaited("setdefault")
    popitem = awaited("popitem")
    update = awaited("update")
    delete_range = awaited("delete_range")
    clear = awaited("clear")

    @property
    def name(self) -> str:
        """The tree's; the store's own is ""."""
        return str(self._plain().name)

    def open(
        self, key: bytes, mode: str = "rb", *, durable: bool | None = None
    ) -> contextlib.AbstractAsyncContextManager[Stream]:
        """A large value, "rb" or "wb"; what is written is there at the end, whole or not at all."""
        return _streamed(lambda: self._plain().open(key, mode, durable=durable))

    def set_merge(self, function: Callable[[bytes, bytes | None, bytes], bytes | None]) -> None:
        """The function that `merge` uses; it runs in threads."""
        self._plain().set_merge(function)

    def watch(self, prefix: bytes = b"") -> Watch:
        """What is committed from now on under `prefix`, for `async for`."""
        watch: Watch = self._plain().watch(prefix)
        return watch


class Snapshot(Reading):
    """A snapshot, awaitable; `tree(name)` gives other trees."""

    get_many = awaited("get_many")
    trees = awaited("trees")

    def open(self, key: bytes, mode: str = "rb") -> contextlib.AbstractAsyncContextManager[Stream]:
        """A large value of that moment; only for reading."""
        return _streamed(lambda: self._plain().open(key, mode))

    async def tree(self, name: str) -> Snapshot:
        return Snapshot(await asyncio.to_thread(self._plain().tree, name))

    def close(self) -> None:
        self._plain().close()


class Transacted(Reading):
    """A tree in a transaction: reads are awaited, changes are statements."""

    def __setitem__(self, key: bytes, value: bytes) -> None:
        self._plain()[key] = value

    def set(self, key: bytes, value: bytes) -> None:
        """Set the value of a key."""
        self._plain().set(key, value)

    def update(self, pairs: Any) -> None:
        """Set every pair."""
        self._plain().update(pairs)

    delete = awaited("delete")
    pop = awaited("pop")
    set_default = awaited("set_default")

    async def tree(self, name: str) -> Transacted:
        return Transacted(await asyncio.to_thread(self._plain().tree, name))


class Store(OpenedLater, Tree):
    """`async with aio.Store(path, ...) as store`; arguments are those of `siltstone.Store`.

    The first call opens it, in a thread. Also as `await aio.Store(path)`.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__("store", plain.Store, *arguments, **options)

    sync = awaited("sync")
    checkpoint = awaited("checkpoint")
    verify = awaited("verify")
    backup = awaited("backup")
    generate_id = awaited("generate_id")
    trees = awaited("trees")
    drop_tree = awaited("drop_tree")
    stats = awaited("stats")
    refresh = awaited("refresh")
    segments = awaited("segments")
    dump = awaited("dump")
    load = awaited("load")

    @property
    def path(self) -> Path | None:
        """The data directory; None of a temporary store."""
        found: Path | None = self._plain().path
        return found

    @property
    def recovery(self) -> Any:
        """How opening went: `.ok`, `.problems`, `.outcome`."""
        return self._plain().recovery

    @property
    def was_recovered(self) -> bool:
        """Whether there was a store before this opening."""
        return bool(self._plain().was_recovered)

    @property
    def size_on_disk(self) -> int:
        """Bytes that its files take."""
        return int(self._plain().size_on_disk)

    @staticmethod
    async def repair(*arguments: Any, **options: Any) -> Report:
        """`siltstone.Store.repair`, awaitable."""
        return await asyncio.to_thread(lambda: plain.Store.repair(*arguments, **options))

    async def transact(
        self,
        function: Callable[[Any], Any],
        attempts: int = plain.ATTEMPTS,
        *,
        durable: bool | None = None,
    ) -> Any:
        """`function(transaction)` in a transaction, again when there was a conflict.

        A coroutine function gets a transaction whose reads are awaited; a plain one runs, with a
        plain transaction, in a thread.
        """
        plain.check_attempts(function, attempts)
        if not inspect.iscoroutinefunction(function):
            return await asyncio.to_thread(
                lambda: self._plain().transact(function, attempts, durable=durable)
            )
        for attempt in itertools.count(1):
            try:
                async with self.transaction(durable) as transaction:
                    return await function(transaction)
            except Conflict:
                if attempt == attempts:
                    raise
        raise AssertionError("the loop ends by return or Conflict")

    async def tree(self, name: str) -> Tree:
        """The tree of that name, made when there is none."""
        return Tree(await asyncio.to_thread(lambda: self._plain().tree(name)))

    @contextlib.asynccontextmanager
    async def batch(self, durable: bool | None = None) -> AsyncIterator[Batch]:
        """A batch; its commit at the end is awaited."""
        batch: Batch = await asyncio.to_thread(lambda: self._plain().batch(durable))
        try:
            yield batch
        except BaseException:
            batch.abandon()
            raise
        await asyncio.to_thread(batch.commit)

    @contextlib.asynccontextmanager
    async def transaction(self, durable: bool | None = None) -> AsyncIterator[Transacted]:
        """A transaction; Conflict at the end when others came between."""
        transaction: Transaction = await asyncio.to_thread(
            lambda: self._plain().transaction(durable)
        )
        try:
            yield Transacted(transaction)
        except BaseException:
            transaction.abandon()
            raise
        await asyncio.to_thread(transaction.commit)

    @contextlib.asynccontextmanager
    async def snapshot(self) -> AsyncIterator[Snapshot]:
        """All trees as they are now."""
        snapshot = Snapshot(await asyncio.to_thread(lambda: self._plain().snapshot()))
        try:
            yield snapshot
        finally:
            snapshot.close()
