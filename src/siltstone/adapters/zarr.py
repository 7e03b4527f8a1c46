"""Zarr 3 arrays in a `siltstone.Store`: `zarr.create_array(StoreOfChunks(store), ...)`.

Each zarr key is one record of a tree, so that chunks, metadata and other data may share a store;
what zarr changes is durable as the store's settings say. Calls run in threads: a chunk that has to
be read from the device holds up nobody else. Needs the extra [adapters].
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Any

import zarr.abc.store
from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.core.buffer.core import default_buffer_prototype

from siltstone.errors import SiltstoneError
from siltstone.store.store import Store

LISTED_AT_ONCE = 1000


class StoreOfChunks(zarr.abc.store.Store):
    """A zarr v3 store. `store`: a `siltstone.Store` or a path; `tree`: where in it."""

    supports_writes = True
    supports_deletes = True
    supports_listing = True
    supports_partial_writes = False

    def __init__(self, store: Any, *, tree: str = "zarr", read_only: bool = False) -> None:
        super().__init__(read_only=read_only)
        self._own = not isinstance(store, Store)
        self.store: Store = Store(store, read_only=read_only) if self._own else store
        self.name = tree
        try:
            self._tree = self.store.tree(tree) if tree else self.store
        except SiltstoneError:
            if self._own:
                self.store.close()
            raise

    def with_read_only(self, read_only: bool = False) -> StoreOfChunks:
        """The same chunks, with or without the right to write."""
        return type(self)(self.store, tree=self.name, read_only=read_only)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, StoreOfChunks)
            and self.store is other.store
            and self.name == other.name
            and self.read_only == other.read_only
        )

    __hash__ = None  # type: ignore[assignment]

    def __str__(self) -> str:
        return f"siltstone://{self.store.path or ''}#{self.name}"

    def __repr__(self) -> str:
        return f"StoreOfChunks({str(self)!r})"

    def close(self) -> None:
        """Closes the store, too, if it was given as a path."""
        super().close()
        if self._own:
            self.store.close()

    # Reading

    async def get(
        self,
        key: str,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        """The value, or the part of it that is asked for; None if there is none."""
        await self._ensure_open()
        made = (prototype or default_buffer_prototype()).buffer
        data = await asyncio.to_thread(self._read, key.encode(), byte_range)
        return None if data is None else made.from_bytes(data)

    def _read(self, key: bytes, wanted: ByteRequest | None) -> bytes | None:
        if wanted is None:
            whole: bytes | None = self._tree.get(key)
            return whole
        try:
            opened = self._tree.open(key, "rb")
        except KeyError:
            return None
        with opened as file:
            if isinstance(wanted, RangeByteRequest):
                file.seek(wanted.start)
                return file.read(wanted.end - wanted.start)
            size = file.seek(0, 2)
            if isinstance(wanted, OffsetByteRequest):
                file.seek(wanted.offset)
            elif isinstance(wanted, SuffixByteRequest):
                file.seek(max(0, size - wanted.suffix))
            else:
                raise TypeError(f"{wanted!r} is no byte range that zarr knows")
            return file.read()

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Several parts, at the same time."""
        asked = [self.get(key, prototype, wanted) for key, wanted in key_ranges]
        return list(await asyncio.gather(*asked))

    async def exists(self, key: str) -> bool:
        return await asyncio.to_thread(self._tree.__contains__, key.encode())

    async def getsize(self, key: str) -> int:
        """Bytes of the value."""

        def size() -> int:
            with self._tree.open(key.encode(), "rb") as file:
                return file.seek(0, 2)

        try:
            return await asyncio.to_thread(size)
        except KeyError:
            raise FileNotFoundError(key) from None

    # Writing

    async def set(self, key: str, value: Buffer) -> None:
        """Store a value, whole or not at all."""
        self._check_writable()
        await self._ensure_open()
        if not isinstance(value, Buffer):
            raise TypeError(f"zarr values are Buffers, not {type(value).__name__}")
        await asyncio.to_thread(self._tree.set, key.encode(), value.to_bytes())

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        self._check_writable()
        await self._ensure_open()
        swap: Callable[..., bool] = self._tree.compare_and_set
        await asyncio.to_thread(swap, key.encode(), None, value.to_bytes())

    async def delete(self, key: str) -> None:
        """Delete a value; nothing happens if there is none."""
        self._check_writable()
        await self._ensure_open()
        await asyncio.to_thread(self._tree.delete, key.encode())

    async def delete_dir(self, prefix: str) -> None:
        """Delete all below a directory, in one batch."""
        self._check_writable()
        await self._ensure_open()
        below = directory(prefix)

        def clear() -> None:
            with self.store.batch() as batch:
                part = batch.tree(self.name) if self.name else batch
                for key in self._tree.keys(prefix=below):
                    part.delete(key)

        await asyncio.to_thread(clear)

    # Listing

    async def list(self) -> AsyncIterator[str]:
        async for key in self.list_prefix(""):
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """All keys that start so, as of now."""
        keys = await asyncio.to_thread(lambda: self._tree.keys(prefix=prefix.encode()))
        while True:
            chunk = await asyncio.to_thread(lambda: [*itertools.islice(keys, LISTED_AT_ONCE)])
            for key in chunk:
                yield key.decode()
            if not chunk:
                return

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """The names directly below a directory, each once."""
        for name in await asyncio.to_thread(self._names, directory(prefix)):
            yield name

    def _names(self, below: bytes) -> Sequence[str]:
        """One seek for each name, however many keys lie below it."""
        names: Sequence[str] = ()
        start = below
        while True:
            key = next(iter(self._tree.keys(start, prefix=below, limit=1)), None)
            if key is None:
                return names
            name, slash, _ = key[len(below) :].partition(b"/")
            names = [*names, name.decode()]
            # "/" is followed by "0": the smallest key behind all that lie below this name
            start = below + name + (b"0" if slash else b"\0")


def directory(prefix: str) -> bytes:
    """The prefix of all keys below a directory; that of the root is empty."""
    name = prefix.strip("/")
    return name.encode() + b"/" if name else b""
