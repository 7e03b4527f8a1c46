"""`aio.Store`: the Store for asyncio; the same names, awaitable.

Every call runs in a thread, so that a page that must be read, or a commit that waits for the
medium, never holds up the event loop; many waiting commits share one sync. Iterators fetch some
hundred records at a time and are snapshots, as they are without asyncio. Inside `async with
store.batch()` and `store.transaction()` changes are plain statements, since they only gather;
a transaction's reads are awaited.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from itertools import islice
from typing import Any, Final, Self

from siltstone.store import store as plain
from siltstone.store.face import Tree as PlainTree
from siltstone.store.snapshot import SnapshotTree
from siltstone.store.transaction import Batch, Transaction, TransactionTree
from siltstone.store.watch import Watch

FETCHED_AT_ONCE: Final = 256


def _awaited(name: str) -> Callable[..., Awaitable[Any]]:
    """A method that calls the one of the same name in a thread."""

    async def call(self: Any, *arguments: Any, **options: Any) -> Any:
        return await asyncio.to_thread(getattr(self._plain, name), *arguments, **options)

    call.__name__ = name
    call.__doc__ = f"`{name}` of `siltstone.Store`, awaitable."
    return call


async def _fetched(begin: Callable[[], Iterator[Any]]) -> AsyncIterator[Any]:
    """The items of an iterator, fetched in threads."""
    iterator = await asyncio.to_thread(begin)
    while chunk := await asyncio.to_thread(lambda: list(islice(iterator, FETCHED_AT_ONCE))):
        for item in chunk:
            yield item


class Reading:
    """What trees, snapshots and transactions have in common."""

    _plain: Any

    get = _awaited("get")
    first = _awaited("first")
    last = _awaited("last")
    next_after = _awaited("next_after")
    last_before = _awaited("last_before")

    async def contains(self, key: bytes) -> bool:
        """`key in store`."""
        return await asyncio.to_thread(self._plain.__contains__, key)

    async def count(self) -> int:
        """`len(store)`."""
        return await asyncio.to_thread(self._plain.__len__)

    def items(self, *bounds: Any, **more: Any) -> AsyncIterator[tuple[bytes, bytes]]:
        """(key, value) pairs of a range; bounds as of `siltstone.Store.items`."""
        return _fetched(lambda: iter(self._plain.items(*bounds, **more)))

    def keys(self, *bounds: Any, **more: Any) -> AsyncIterator[bytes]:
        """The keys of a range."""
        return _fetched(lambda: iter(self._plain.keys(*bounds, **more)))

    def values(self, *bounds: Any, **more: Any) -> AsyncIterator[bytes]:
        """The values of a range."""
        return _fetched(lambda: iter(self._plain.values(*bounds, **more)))

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self.keys()


class Tree(Reading):
    """A tree, awaitable."""

    def __init__(self, tree: PlainTree) -> None:
        self._plain: Any = tree

    set = _awaited("set")
    delete = _awaited("delete")
    pop = _awaited("pop")
    set_default = _awaited("set_default")
    pop_first = _awaited("pop_first")
    pop_last = _awaited("pop_last")
    compare_and_set = _awaited("compare_and_set")
    merge = _awaited("merge")
    update = _awaited("update")
    clear = _awaited("clear")

    def set_merge(self, function: Callable[[bytes, bytes | None, bytes], bytes | None]) -> None:
        """The function that `merge` uses; it runs in threads."""
        self._plain.set_merge(function)

    def watch(self, prefix: bytes = b"") -> Watch:
        """What is committed from now on under `prefix`, for `async for`."""
        watch: Watch = self._plain.watch(prefix)
        return watch


class Snapshot(Reading):
    """A snapshot, awaitable; `tree(name)` gives other trees."""

    def __init__(self, snapshot: SnapshotTree) -> None:
        self._plain: Any = snapshot

    async def tree(self, name: str) -> Snapshot:
        return Snapshot(await asyncio.to_thread(self._plain.tree, name))

    def close(self) -> None:
        self._plain.close()


class Transacted(Reading):
    """A tree in a transaction: reads are awaited, changes are statements."""

    def __init__(self, part: TransactionTree) -> None:
        self._plain: Any = part

    def __setitem__(self, key: bytes, value: bytes) -> None:
        self._plain[key] = value

    delete = _awaited("delete")
    pop = _awaited("pop")
    set_default = _awaited("set_default")

    async def tree(self, name: str) -> Transacted:
        return Transacted(await asyncio.to_thread(self._plain.tree, name))


class Store(Tree):
    """`await Store.open(path, ...)`, or `async with await Store.open(path) as store`."""

    def __init__(self, store: plain.Store) -> None:
        super().__init__(store)

    @classmethod
    async def open(cls, *arguments: Any, **options: Any) -> Self:
        """Open a store; arguments are those of `siltstone.Store`."""
        return cls(await asyncio.to_thread(plain.Store, *arguments, **options))

    sync = _awaited("sync")
    checkpoint = _awaited("checkpoint")
    verify = _awaited("verify")
    backup = _awaited("backup")
    generate_id = _awaited("generate_id")
    trees = _awaited("trees")
    drop_tree = _awaited("drop_tree")
    stats = _awaited("stats")
    close = _awaited("close")

    async def tree(self, name: str) -> Tree:
        """The tree of that name, made when there is none."""
        return Tree(await asyncio.to_thread(self._plain.tree, name))

    @contextlib.asynccontextmanager
    async def batch(self, durable: bool | None = None) -> AsyncIterator[Batch]:
        """A batch; its commit at the end is awaited."""
        batch: Batch = self._plain.batch(durable)
        try:
            yield batch
        except BaseException:
            batch.abandon()
            raise
        await asyncio.to_thread(batch.commit)

    @contextlib.asynccontextmanager
    async def transaction(self, durable: bool | None = None) -> AsyncIterator[Transacted]:
        """A transaction; Conflict at the end when others came between."""
        transaction: Transaction = await asyncio.to_thread(self._plain.transaction, durable)
        try:
            yield Transacted(transaction)
        except BaseException:
            transaction.abandon()
            raise
        await asyncio.to_thread(transaction.commit)

    @contextlib.asynccontextmanager
    async def snapshot(self) -> AsyncIterator[Snapshot]:
        """All trees as they are now."""
        snapshot = Snapshot(await asyncio.to_thread(self._plain.snapshot))
        try:
            yield snapshot
        finally:
            snapshot.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
