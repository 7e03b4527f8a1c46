"""`Tree`: an ordered mapping of bytes to bytes in a store; the hot half is in tree.pyx.

`Store` is its own default tree and gives others by name; all have the methods of this class.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from siltstone.errors import InvalidKey, InvalidValue, KeyMissing
from siltstone.store import tree as compiled
from siltstone.store.stream import BlobReader, BlobWriter
from siltstone.store.values import ValueReader, ValueWriter
from siltstone.store.watch import Watch

if TYPE_CHECKING:
    from siltstone.store.store import Store

NAME_BYTES_MAX = 1024


def check_name(name: object) -> None:
    """Of a tree; InvalidKey says what is wrong with it."""
    if not isinstance(name, str):
        raise InvalidKey(f"the name of a tree is a str, not {type(name).__name__}")
    if not 0 < len(name.encode("utf-8", "replace")) <= NAME_BYTES_MAX:
        raise InvalidKey(f"the name of a tree has 1 to {NAME_BYTES_MAX} bytes in UTF-8")
    if name.startswith("\0"):
        raise InvalidKey("names that begin with a zero byte are those of trees that were dropped")
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise InvalidKey(f"the name of a tree is text that UTF-8 can hold: {error}") from None


class Tree(compiled.Tree):
    """An ordered mapping of bytes to bytes."""

    _store: Store

    @property
    def _root(self) -> int:
        return self.root

    # What every mapping has

    def setdefault(self, key: Any, default: Any = b"") -> Any:
        """`set_default` by the name that mappings give it."""
        return self.set_default(key, default)

    def update(
        self,
        pairs: Mapping[bytes, Any] | Iterable[tuple[bytes, Any]] = (),
        /,
        *,
        durable: bool | None = None,
    ) -> None:
        """Set every pair, in one batch: all or none. `durable` as of `Store.batch`."""
        with self._store.batch(durable) as batch:
            batch.part_of(self).update(pairs)

    def popitem(self) -> tuple[bytes, bytes]:
        """Delete the last record and return it; KeyMissing when there is none."""
        found = self.pop_last()
        if found is None:
            raise KeyMissing("popitem: the tree is empty")
        return found

    # Large values

    def open(self, key: Any, mode: str = "rb", *, durable: bool | None = None) -> BinaryIO:
        """A value as a file. "rb": as of now, whatever comes later; KeyMissing if there is none.

        "wb": written in pieces and seen, whole, when the file is closed; not at all if it is left
        by an exception or has `abandon()` called.
        """
        name = compiled.key_of(key)
        if mode == "rb":
            return cast(BinaryIO, io.BufferedReader(ValueReader(name, BlobReader(self, name))))
        if mode != "wb":
            raise InvalidValue(f'mode {mode!r}: values are opened with "rb" or "wb"')
        self._store._check_writable()
        self._store._pages._usable()
        return cast(
            BinaryIO,
            ValueWriter(
                name,
                self._store.settings.value_size_max,
                lambda: BlobWriter(self, name),
                lambda value: self.set(name, value, durable=durable),
                durable,
            ),
        )

    # Watching

    def watch(self, prefix: bytes = b"") -> Watch:
        """What is committed from now on under `prefix`: an iterator, also for `async for`."""
        return self._store._watch(self.name, compiled.key_of(prefix))

    def __repr__(self) -> str:
        return f"<tree {self.name!r} of {self._store!r}>"


MutableMapping.register(Tree)
