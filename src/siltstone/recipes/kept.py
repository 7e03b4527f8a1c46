"""What Deque and Index share: a store of their own or of the caller's, and joint changes.

They keep what they are given: nothing is evicted, and all of it survives a crash as the store's
durability says. One process at a time has the directory open; any number of its threads.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from siltstone import codecs
from siltstone.errors import ConfigError
from siltstone.store.store import Store
from siltstone.store.transaction import Transaction

R = TypeVar("R")
FLAGS_BYTES: Final = 4  # before each value: the codec's flags, little-endian


class Kept:
    """A container in a store; `transact()` makes several calls one."""

    def __init__(self, directory: Any, store: Store | None, codec: Any) -> None:
        self._codec_given, self._codec = codec, codecs.resolve(codec)
        self._own = store is None
        self.store = Store(directory) if store is None else store
        self._lock = threading.RLock()
        self._joint: Transaction | None = None
        self._thread = 0  # whose transaction is open
        self._grown = 0  # records that the open transaction added, less those it took

    @property
    def directory(self) -> Path | None:
        """Where it is kept; None: in a temporary file."""
        return self.store.path

    @contextlib.contextmanager
    def transact(self) -> Iterator[None]:
        """All calls inside count at the end, all or none; other threads wait meanwhile."""
        with self._lock:
            if self._joint is not None:
                yield
                return
            with self.store.transaction() as transaction:
                self._joint, self._thread, self._grown = transaction, threading.get_ident(), 0
                try:
                    yield
                finally:
                    self._joint, self._thread = None, 0

    def _do(self, change: Callable[[Transaction], R]) -> R:
        """`change` in a transaction: the joint one, or its own."""
        with self._lock:
            if self._joint is not None:
                return change(self._joint)

            def begin(transaction: Transaction) -> R:
                self._grown = 0
                return change(transaction)

            self._thread = threading.get_ident()
            try:
                return self.store.transact(begin)
            finally:
                self._thread = self._grown = 0

    def _seen(self) -> Store | Transaction:
        """What this thread reads: its open transaction, or what was committed."""
        if self._joint is not None and self._thread == threading.get_ident():
            return self._joint
        return self.store

    def _count(self) -> int:
        """Records of the main tree, as this thread sees them."""
        return len(self.store) + (self._grown if self._thread == threading.get_ident() else 0)

    def _encoded(self, value: Any) -> bytes:
        data, flags = codecs.encode_value(self._codec, value)
        return flags.to_bytes(FLAGS_BYTES, "little") + data

    def _decoded(self, record: bytes) -> Any:
        flags = int.from_bytes(record[:FLAGS_BYTES], "little")
        return codecs.decode_value(self._codec, record[FLAGS_BYTES:], flags)

    def sync(self) -> None:
        """All changes are on the medium when this returns."""
        self.store.sync()

    def close(self) -> None:
        """Let go of the directory; a store that was given stays open. Idempotent."""
        if self._own:
            self.store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _reopening(self) -> tuple[Callable[..., Self], Path]:
        """What pickle notes: how to make it, and of which directory."""
        if self.directory is None or not self._own:
            raise ConfigError("only what has a directory of its own can be sent elsewhere")
        return functools.partial(type(self), codec=self._codec_given), self.directory
