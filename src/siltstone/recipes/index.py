"""`Index`: a mapping in a store that remembers the order in which keys came, also as queues.

Two trees. The main one has a record an item, by the number that its key got with its arrival: 8
bytes, big-endian; the record is u8 "the key was a str", u32 size of the key (little-endian), the
key, the value. The tree `keys` has these numbers by key.
"""

from __future__ import annotations

import functools
import os
import struct
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from typing import Any, Final, Self

from siltstone import codecs
from siltstone.cache.leases import key_maker
from siltstone.codecs import Key
from siltstone.errors import InvalidValue, KeyMissing
from siltstone.recipes.kept import Kept
from siltstone.store.store import Store
from siltstone.store.transaction import Transaction

HEAD: Final = struct.Struct("<BI")
NUMBER: Final = struct.Struct(">Q")
KEYS: Final = "keys"
# Keys of push(): 15 digits, counted both ways from the middle, so that text sorts as numbers do.
QUEUE_DIGITS: Final = 15
QUEUE_MIDDLE: Final = 500_000_000_000_000
QUEUE_ENDS: Final = (10**14, 10**15 - 1)
MISSING: Final = object()


class Index(Kept, MutableMapping[Key, Any]):
    """Keys and values in the order in which the keys came, kept in `directory`.

    `Index(directory, mapping or pairs, **more)`; without a directory in a temporary file. Keys as
    those of a Cache (str, bytes, int, tuples of these); values: what the codec takes. A key that
    is set again keeps its place.
    """

    def __init__(
        self, *arguments: Any, store: Store | None = None, codec: Any = "msgpack", **more: Any
    ) -> None:
        directory = None
        if arguments and (arguments[0] is None or isinstance(arguments[0], (str, os.PathLike))):
            directory, *arguments = arguments  # type: ignore[assignment]
        super().__init__(directory, store, codec)
        self.store.tree(KEYS)
        self.update(*arguments, **more)

    @classmethod
    def fromstore(cls, store: Store, *arguments: Any, **more: Any) -> Self:
        """In a store that is open; it stays the caller's, and holds nothing else."""
        return cls(*arguments, store=store, **more)

    def __reduce__(self) -> Any:
        make, directory = self._reopening()
        return make, (directory,)

    # Items ----------------------------------------------------------------------------------

    def _record(self, key: Key, value: Any) -> bytes:
        data = codecs.encode_key(key)
        return HEAD.pack(isinstance(key, str), len(data)) + data + self._encoded(value)

    def _item(self, record: bytes) -> tuple[Key, Any]:
        was_str, size = HEAD.unpack_from(record)
        end = HEAD.size + size
        return codecs.decode_key(record[HEAD.size : end], was_str), self._decoded(record[end:])

    def _put(self, transaction: Transaction, key: Key, record: bytes) -> None:
        data, keys = codecs.encode_key(key), transaction.tree(KEYS)
        number = keys.get(data)
        if number is None:
            last = transaction.last()
            number = NUMBER.pack(NUMBER.unpack(last[0])[0] + 1 if last else 0)
            keys[data] = number
            self._grown += 1
        transaction[number] = record

    def _take(self, transaction: Transaction, key: Key) -> Any:
        number = transaction.tree(KEYS).pop(codecs.encode_key(key), None)
        if number is None:
            return MISSING
        self._grown -= 1
        return self._item(transaction.pop(number))[1]

    def __getitem__(self, key: Key) -> Any:
        value = self._do(lambda transaction: self._found(transaction, key))
        if value is MISSING:
            raise KeyMissing(key)
        return value

    def _found(self, transaction: Transaction, key: Key) -> Any:
        number = transaction.tree(KEYS).get(codecs.encode_key(key))
        return MISSING if number is None else self._item(transaction[number])[1]

    def __setitem__(self, key: Key, value: Any) -> None:
        record = self._record(key, value)
        self._do(lambda transaction: self._put(transaction, key, record))

    def __delitem__(self, key: Key) -> None:
        if self._do(lambda transaction: self._take(transaction, key)) is MISSING:
            raise KeyMissing(key)

    def __contains__(self, key: Any) -> bool:
        return self._do(lambda transaction: codecs.encode_key(key) in transaction.tree(KEYS))

    def __len__(self) -> int:
        return self._count()

    def __iter__(self) -> Iterator[Key]:
        return (self._item(record)[0] for record in self._seen().values())

    def __reversed__(self) -> Iterator[Key]:
        return (self._item(record)[0] for record in self._seen().values(reverse=True))

    def update(self, *arguments: Any, **more: Any) -> None:
        """Set every pair, in one step: all or none."""
        pairs = dict(*arguments, **more)
        records = [(key, self._record(key, value)) for key, value in pairs.items()]

        def change(transaction: Transaction) -> None:
            for key, record in records:
                self._put(transaction, key, record)

        if records:
            self._do(change)

    def setdefault(self, key: Key, default: Any = None) -> Any:
        """The value; `default` is stored and given back when there is none."""
        record = self._record(key, default)

        def change(transaction: Transaction) -> Any:
            found = self._found(transaction, key)
            if found is MISSING:
                self._put(transaction, key, record)
                return default
            return found

        return self._do(change)

    def pop(self, key: Key, default: Any = MISSING) -> Any:
        """Delete the item and give back its value; without it `default`, or KeyMissing."""
        value = self._do(lambda transaction: self._take(transaction, key))
        if value is not MISSING:
            return value
        if default is MISSING:
            raise KeyMissing(key)
        return default

    # Ends and queues ------------------------------------------------------------------------

    def peekitem(self, last: bool = True) -> tuple[Key, Any]:
        """(key, value) that came last, or first. KeyMissing when there is none."""
        seen = self._seen()
        end = seen.last() if last else seen.first()
        if end is None:
            raise KeyMissing("the index is empty")
        return self._item(end[1])

    def popitem(self, last: bool = True) -> tuple[Key, Any]:
        """Take what came last, or first. KeyMissing when there is nothing."""

        def change(transaction: Transaction) -> tuple[Key, Any]:
            end = transaction.last() if last else transaction.first()
            if end is None:
                raise KeyMissing("the index is empty")
            key, value = self._item(end[1])
            self._take(transaction, key)
            return key, value

        return self._do(change)

    def push(self, value: Any, prefix: str | None = None, side: str = "back") -> Key:
        """A value at an end of a queue; the key that it got. `prefix` names the queue."""
        _check_side(side)
        self._encoded(value)  # what cannot be stored is said before anything is read

        def change(transaction: Transaction) -> Key:
            end = self._queue_end(transaction, prefix, side)
            number = QUEUE_MIDDLE if end is None else end + (1 if side == "back" else -1)
            key = _queue_key(prefix, number)
            self._put(transaction, key, self._record(key, value))
            return key

        return self._do(change)

    def pull(
        self, prefix: str | None = None, default: Any = (None, None), side: str = "front"
    ) -> Any:
        """Take (key, value) at an end of a queue; `default` when it is empty."""
        _check_side(side)

        def change(transaction: Transaction) -> Any:
            end = self._queue_end(transaction, prefix, side)
            if end is None:
                return default
            key = _queue_key(prefix, end)
            return key, self._take(transaction, key)

        return self._do(change)

    def _queue_end(self, transaction: Transaction, prefix: str | None, side: str) -> int | None:
        """The number of the value at that end; other keys that look alike are passed over."""
        low, high = (codecs.encode_key(_queue_key(prefix, end)) for end in QUEUE_ENDS)
        skipped = len(low) - QUEUE_DIGITS
        for key in transaction.tree(KEYS).keys(
            low, high, include_stop=True, reverse=side == "back"
        ):
            digits = key[skipped:]
            if len(key) == len(low) and digits.isdigit():
                return int(digits)
        return None

    # All of it ------------------------------------------------------------------------------

    def clear(self) -> None:
        """Delete every item."""

        def change(transaction: Transaction) -> None:
            for key in list(transaction.keys()):
                del transaction[key]
                self._grown -= 1
            keys = transaction.tree(KEYS)
            for key in list(keys.keys()):
                del keys[key]

        self._do(change)

    def memoize(
        self, typed: bool = False, ignore: Iterable[int | str] = (), name: str | None = None
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Decorator: keep the results of a function by its arguments, for ever."""

        def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
            cache_key = key_maker(function, typed=typed, ignore=set(ignore), name=name)

            @functools.wraps(function)
            def wrapper(*args: Any, **kwargs: Any) -> Any:
                key = cache_key(*args, **kwargs)
                found = self.get(key, MISSING)
                if found is MISSING:
                    found = self[key] = function(*args, **kwargs)
                return found

            wrapper.__cache_key__ = cache_key  # type: ignore[attr-defined]
            return wrapper

        return decorate

    def __eq__(self, other: object) -> bool:
        """Of an Index or an OrderedDict the order counts, too."""
        if isinstance(other, Index) or hasattr(other, "move_to_end"):
            return list(self.items()) == list(other.items())  # type: ignore[attr-defined]
        return super().__eq__(other)

    __hash__ = None  # type: ignore[assignment]  # it changes

    def __repr__(self) -> str:
        where = None if self.directory is None else str(self.directory)
        return f"Index({where!r}, {len(self)} items)"


def _queue_key(prefix: str | None, number: int) -> Key:
    return number if prefix is None else f"{prefix}-{number:015d}"


def _check_side(side: str) -> None:
    if side not in ("front", "back"):
        raise InvalidValue(f'side: {side!r} is no end of a queue, use "front" or "back"')
