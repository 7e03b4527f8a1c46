"""`Deque`: a double-ended queue in a store, with the methods of `collections.deque`.

A value's key is its place, 8 bytes, big-endian, counted from the middle of all numbers, so that
both ends can grow. What is deleted inside leaves a gap, which nobody sees.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Final, Self

from siltstone.errors import ConfigError, InvalidValue, OutOfRange
from siltstone.recipes.kept import Kept
from siltstone.store.store import Store
from siltstone.store.transaction import Transaction

MIDDLE: Final = 1 << 63
PLACE_BYTES: Final = 8
Pair = tuple[bytes, bytes]


def _beside(end: Pair | None, step: int) -> bytes:
    """The key of the place beyond an end."""
    place = MIDDLE if end is None else int.from_bytes(end[0], "big") + step
    return place.to_bytes(PLACE_BYTES, "big")


class Deque(Kept, Sequence[Any]):
    """Values in order, kept in `directory` (None: in a temporary file).

    `maxlen`: with more, those at the other end go. Values: what the codec takes. Ends are reached
    in the time of one record, `deque[i]` in that of the way to `i` from the nearer end.
    """

    def __init__(
        self,
        iterable: Iterable[Any] = (),
        directory: str | os.PathLike[str] | None = None,
        maxlen: int | None = None,
        *,
        store: Store | None = None,
        codec: Any = "msgpack",
    ) -> None:
        _check_maxlen(maxlen)
        super().__init__(directory, store, codec)
        self._maxlen = maxlen
        self._do(lambda transaction: self._trim(transaction, right=False))
        self.extend(iterable)

    @classmethod
    def fromstore(
        cls, store: Store, iterable: Iterable[Any] = (), maxlen: int | None = None
    ) -> Self:
        """In a store that is open; it stays the caller's, and holds nothing else."""
        return cls(iterable, maxlen=maxlen, store=store)

    def __reduce__(self) -> Any:
        make, directory = self._reopening()
        return make, ((), directory, self._maxlen)

    @property
    def maxlen(self) -> int | None:
        """The most values that it keeps; setting it lets those at the left go."""
        return self._maxlen

    @maxlen.setter
    def maxlen(self, most: int | None) -> None:
        _check_maxlen(most)
        self._maxlen = most
        self._do(lambda transaction: self._trim(transaction, right=False))

    # Ends -----------------------------------------------------------------------------------

    def append(self, value: Any) -> None:
        """A value at the right end."""
        self.extend((value,))

    def appendleft(self, value: Any) -> None:
        """A value at the left end."""
        self.extendleft((value,))

    def extend(self, iterable: Iterable[Any]) -> None:
        """Values at the right end, in one step: all or none."""
        self._add(iterable, right=True)

    def extendleft(self, iterable: Iterable[Any]) -> None:
        """Values at the left end, one after another, so that the last is the leftmost."""
        self._add(iterable, right=False)

    def __iadd__(self, iterable: Iterable[Any]) -> Self:
        self.extend(iterable)
        return self

    def _add(self, iterable: Iterable[Any], *, right: bool) -> None:
        records = [self._encoded(value) for value in iterable]
        if records:
            self._do(lambda transaction: self._put(transaction, records, right=right))

    def _put(self, transaction: Transaction, records: list[bytes], *, right: bool) -> None:
        key = _beside(transaction.last() if right else transaction.first(), 1 if right else -1)
        for record in records:
            transaction[key] = record
            key = _beside((key, record), 1 if right else -1)
        self._grown += len(records)
        self._trim(transaction, right=not right)

    def _trim(self, transaction: Transaction, *, right: bool) -> None:
        """Let go, at one end, of what is above `maxlen`."""
        if self._maxlen is not None and self._count() > self._maxlen:
            gone = transaction.items(reverse=right, limit=self._count() - self._maxlen)
            for key, _ in list(gone):
                self._drop(transaction, key)

    def _drop(self, transaction: Transaction, key: bytes) -> None:
        del transaction[key]
        self._grown -= 1

    def pop(self) -> Any:
        """Take the value at the right end. OutOfRange (an IndexError) when there is none."""
        return self._decoded(self._do(lambda transaction: self._take(transaction, -1)))

    def popleft(self) -> Any:
        """Take the value at the left end. OutOfRange (an IndexError) when there is none."""
        return self._decoded(self._do(lambda transaction: self._take(transaction, 0)))

    def _take(self, transaction: Transaction, index: int) -> bytes:
        key, record = self._pair(transaction, index)
        self._drop(transaction, key)
        return record

    def peek(self) -> Any:
        """The value at the right end. OutOfRange (an IndexError) when there is none."""
        return self[-1]

    def peekleft(self) -> Any:
        """The value at the left end. OutOfRange (an IndexError) when there is none."""
        return self[0]

    # Places ---------------------------------------------------------------------------------

    def _pair(self, seen: Store | Transaction, index: int) -> Pair:
        try:
            place = operator.index(index)
        except TypeError:
            raise InvalidValue(f"a place is an int, not {type(index).__name__}") from None
        count = self._count()
        place += count if place < 0 else 0
        if not 0 <= place < count:
            raise OutOfRange(f"no value at {index}: there are {count}")
        right = place > count // 2
        steps = count - 1 - place if right else place
        pairs = seen.items(reverse=right, limit=steps + 1)
        found: Pair | None = next(islice(pairs, steps, None), None)
        if found is None:  # another thread took some meanwhile
            raise OutOfRange(f"no value at {index} any more")
        return found

    def __getitem__(self, index: Any) -> Any:
        return self._decoded(self._pair(self._seen(), index)[1])

    def __setitem__(self, index: int, value: Any) -> None:
        record = self._encoded(value)

        def change(transaction: Transaction) -> None:
            transaction[self._pair(transaction, index)[0]] = record

        self._do(change)

    def __delitem__(self, index: int) -> None:
        self._do(lambda transaction: self._take(transaction, index))

    def __len__(self) -> int:
        return self._count()

    def __iter__(self) -> Iterator[Any]:
        return map(self._decoded, self._seen().values())

    def __reversed__(self) -> Iterator[Any]:
        return map(self._decoded, self._seen().values(reverse=True))

    def __contains__(self, value: object) -> bool:
        return any(value == found for found in self)

    # All of it ------------------------------------------------------------------------------

    def remove(self, value: Any) -> None:
        """Delete the first value that equals this one. InvalidValue (a ValueError) if none does."""

        def change(transaction: Transaction) -> None:
            for key, record in transaction.items():
                if self._decoded(record) == value:
                    self._drop(transaction, key)
                    return
            raise InvalidValue(f"{value!r:.60} is not in the deque")

        self._do(change)

    def rotate(self, steps: int = 1) -> None:
        """Take that many values at the right end and put them to the left (below 0: the reverse).

        In one step; as much memory as what moves.
        """

        def change(transaction: Transaction) -> None:
            count = self._count()
            if count < 2:
                return
            forward = operator.index(steps) % count
            right = forward <= count - forward
            moved = list(
                transaction.items(reverse=right, limit=forward if right else count - forward)
            )
            for key, _ in moved:
                self._drop(transaction, key)
            self._put(transaction, [record for _, record in moved], right=not right)

        self._do(change)

    def reverse(self) -> None:
        """Turn the order around, in one step; reads all of it into memory."""

        def change(transaction: Transaction) -> None:
            pairs = list(transaction.items())
            for (key, _), (_, record) in zip(pairs, reversed(pairs), strict=True):
                transaction[key] = record

        self._do(change)

    def clear(self) -> None:
        """Delete every value."""

        def change(transaction: Transaction) -> None:
            for key in list(transaction.keys()):
                self._drop(transaction, key)

        self._do(change)

    def __eq__(self, other: object) -> Any:
        return self._compared(other, operator.eq)

    def __lt__(self, other: object) -> Any:
        return self._compared(other, operator.lt)

    def __le__(self, other: object) -> Any:
        return self._compared(other, operator.le)

    def __gt__(self, other: object) -> Any:
        return self._compared(other, operator.gt)

    def __ge__(self, other: object) -> Any:
        return self._compared(other, operator.ge)

    def _compared(self, other: object, how: Callable[[Any, Any], bool]) -> Any:
        if not isinstance(other, Iterable) or isinstance(other, (str, bytes)):
            return NotImplemented
        return how(list(self), list(other))

    __hash__ = None  # type: ignore[assignment]  # it changes

    def __repr__(self) -> str:
        where = None if self.directory is None else str(self.directory)
        return f"Deque(directory={where!r}, {len(self)} values)"


def _check_maxlen(most: int | None) -> None:
    if most is not None and (type(most) is not int or most < 0):
        raise ConfigError(f"maxlen: {most!r} is no number of values, use 0 or more")
