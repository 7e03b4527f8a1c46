"""The stores that are compared, each used as one who knows it would use it from Python.

A side opens a directory and offers what a row asks for: `get` and `reader` (its fastest way to
read many), `put`, `put_batch`, `delete`, `scan`, `ranges`, `sync`. "Relaxed" does not wait for the
medium at each commit; "durable" is on the medium on return.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from bench import harness

Pair = tuple[bytes, bytes]
Get = Callable[[bytes], Any]
CACHE = 256 << 20
BULK = 1_000_000  # each page of a tree is then written a few times, not once a record
LMDB_MAP = 1 << 35  # address space only
LMDB_READERS = 64


def drain(iterator: Iterable[Any]) -> None:
    """Consume at C speed, so that the iterator is what is measured."""
    deque(iterator, maxlen=0)


class Side:
    """What the rows use; `close` is idempotent."""

    name = ""
    share = 1  # a side so slow that it is asked this many times less
    bulk = 10_000  # records of a batch, sorted, that fills a large store well
    get: Get
    put: Callable[[bytes, bytes], Any]
    delete: Get

    def __init__(self, path: Path, *, durable: bool = False, cache: int = CACHE) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        self.open(durable, cache)

    def open(self, durable: bool, cache: int) -> None:
        raise NotImplementedError

    def put_batch(self, pairs: list[Pair]) -> None:
        raise NotImplementedError

    @contextlib.contextmanager
    def reader(self) -> Iterator[Get]:
        yield self.get

    def scan(self, reverse: bool) -> None:
        """Read all records, in order."""
        raise NotImplementedError

    def ranges(self, starts: list[bytes], count: int) -> None:
        """From each start, read `count` records."""
        raise NotImplementedError

    def sync(self) -> None:
        pass

    def settle(self) -> None:
        """Let background work that a load left behind come to an end, as far as one can ask."""

    def close(self) -> None:
        pass

    def load(self, pairs: list[Pair], batch: int = 10_000) -> None:
        for start in range(0, len(pairs), batch):
            self.put_batch(pairs[start : start + batch])

    def size_on_disk(self) -> int:
        return directory_bytes(self.path)


def directory_bytes(path: Path) -> int:
    """Allocated blocks of all files below; what vanishes meanwhile counts nothing."""
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += os.stat(os.path.join(folder, name)).st_blocks * 512
    return total


# siltstone ------------------------------------------------------------------------------------


class Siltstone(Side):
    name = harness.OURS

    def open(self, durable: bool, cache: int) -> None:
        import siltstone

        durability = "sync" if durable else "interval"
        self.store = siltstone.Store(self.path / "store", durability=durability, cache=cache)
        self.get, self.put, self.delete = self.store.get, self.store.set, self.store.delete
        self.sync = self.store.sync

    def put_batch(self, pairs: list[Pair]) -> None:
        with self.store.batch() as batch:
            for key, value in pairs:
                batch[key] = value

    def scan(self, reverse: bool) -> None:
        drain(self.store.items(reverse=reverse))

    def ranges(self, starts: list[bytes], count: int) -> None:
        for start in starts:
            drain(self.store.items(start, limit=count))

    def close(self) -> None:
        self.store.close()


# py-lmdb --------------------------------------------------------------------------------------


class Lmdb(Side):
    """One transaction a write; one read transaction for many reads, with its `get` bound."""

    name = "py-lmdb"
    bulk = BULK

    def open(self, durable: bool, cache: int) -> None:
        import lmdb

        self.environment = environment = lmdb.open(
            str(self.path),
            map_size=LMDB_MAP,
            max_readers=LMDB_READERS,
            sync=durable,
            metasync=durable,
            readahead=False,
        )
        begin = environment.begin

        def get(key: bytes) -> bytes | None:
            with begin() as transaction:
                return transaction.get(key)

        def put(key: bytes, value: bytes) -> None:
            with begin(write=True) as transaction:
                transaction.put(key, value)

        def delete(key: bytes) -> None:
            with begin(write=True) as transaction:
                transaction.delete(key)

        self.get, self.put, self.delete = get, put, delete

    def put_batch(self, pairs: list[Pair]) -> None:
        with self.environment.begin(write=True) as transaction:
            transaction.cursor().putmulti(pairs)

    @contextlib.contextmanager
    def reader(self) -> Iterator[Get]:
        with self.environment.begin() as transaction:
            yield transaction.get

    def scan(self, reverse: bool) -> None:
        with self.environment.begin() as transaction:
            cursor = transaction.cursor()
            drain(cursor.iterprev() if reverse else cursor)

    def ranges(self, starts: list[bytes], count: int) -> None:
        with self.environment.begin() as transaction:
            cursor = transaction.cursor()
            for start in starts:
                if cursor.set_range(start):
                    drain(islice(cursor.iternext(), count))

    def sync(self) -> None:
        self.environment.sync(True)

    def close(self) -> None:
        self.environment.close()


# rocksdict ------------------------------------------------------------------------------------


class Rocksdict(Side):
    """Raw mode (bytes as they are), Bloom filters, a block cache as large as our cache."""

    name = "rocksdict"

    def open(self, durable: bool, cache: int) -> None:
        import rocksdict

        options = rocksdict.Options(raw_mode=True)
        options.create_if_missing(True)
        blocks = rocksdict.BlockBasedOptions()
        blocks.set_block_cache(rocksdict.Cache(cache))
        blocks.set_bloom_filter(10, False)
        blocks.set_cache_index_and_filter_blocks(cache < CACHE)  # a bound cache means all of it
        options.set_block_based_table_factory(blocks)
        if cache < CACHE:
            options.set_write_buffer_size(cache // 4)
        self.database = database = rocksdict.Rdict(str(self.path), options)
        if durable:
            writing = rocksdict.WriteOptions()
            writing.sync = True
            database.set_write_options(writing)
        self._new_batch = lambda: rocksdict.WriteBatch(raw_mode=True)
        self.get, self.put, self.delete = database.get, database.put, database.delete

    def put_batch(self, pairs: list[Pair]) -> None:
        batch = self._new_batch()
        for key, value in pairs:
            batch[key] = value
        self.database.write(batch)

    def scan(self, reverse: bool) -> None:
        drain(self.database.items(backwards=reverse))

    def ranges(self, starts: list[bytes], count: int) -> None:
        items = self.database.items
        for start in starts:
            drain(islice(items(from_key=start), count))

    def sync(self) -> None:
        self.database.flush_wal(True)

    def settle(self) -> None:
        self.database.flush()

    def close(self) -> None:
        self.database.close()


# sqlite3 --------------------------------------------------------------------------------------

UPSERT = "INSERT INTO pairs VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value"


class Sqlite(Side):
    """One table without rowid, write-ahead log, autocommit; NORMAL is its relaxed mode."""

    name = "sqlite3"
    share = 4
    bulk = BULK

    def open(self, durable: bool, cache: int) -> None:
        self.connection = connection = sqlite3.connect(
            self.path / "pairs.sqlite3", isolation_level=None, check_same_thread=False
        )
        for pragma in (
            "journal_mode=WAL",
            f"synchronous={'FULL' if durable else 'NORMAL'}",
            f"cache_size={-cache // 1024}",
            f"mmap_size={LMDB_MAP if cache >= CACHE else 0}",
        ):
            connection.execute(f"PRAGMA {pragma}")
        connection.execute(
            "CREATE TABLE IF NOT EXISTS pairs (key BLOB PRIMARY KEY, value BLOB) WITHOUT ROWID"
        )
        execute = connection.execute

        def get(key: bytes) -> bytes | None:
            row = execute("SELECT value FROM pairs WHERE key = ?", (key,)).fetchone()
            return row[0] if row else None

        self.get = get
        self.put = lambda key, value: execute(UPSERT, (key, value))
        self.delete = lambda key: execute("DELETE FROM pairs WHERE key = ?", (key,))

    def put_batch(self, pairs: list[Pair]) -> None:
        connection = self.connection
        connection.execute("BEGIN")
        connection.executemany(UPSERT, pairs)
        connection.execute("COMMIT")

    def scan(self, reverse: bool) -> None:
        order = "DESC" if reverse else "ASC"
        drain(self.connection.execute(f"SELECT key, value FROM pairs ORDER BY key {order}"))

    def ranges(self, starts: list[bytes], count: int) -> None:
        execute = self.connection.execute
        text = "SELECT key, value FROM pairs WHERE key >= ? ORDER BY key LIMIT ?"
        for start in starts:
            drain(execute(text, (start, count)))

    def close(self) -> None:
        self.connection.close()


PEERS: tuple[type[Side], ...] = (Lmdb, Rocksdict, Sqlite)


def sides(peers_only: bool) -> list[type[Side]]:
    return list(PEERS) if peers_only else [Siltstone, *PEERS]
