"""Watches: what is committed under a prefix, in the order of commits, for whoever iterates.

A watch has a bounded queue. Writers never wait for it: when it is full, what comes is dropped and
counted, and the reader is told so by `errors.EventsLost`, once, at the place of the gap; iterating
again goes on behind it. A tree that is cleared or dropped as a whole is such a gap, too. Iterators
end when the watch or the store is closed and the queue is empty.
Events are published by committing threads while they hold `Watchers`' lock, so that the order of
events is the order of commits; readers may be any threads and event loops.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from typing import NamedTuple, Self

from siltstone.errors import EventsLost


class Event(NamedTuple):
    """A committed change: the new value, or None when the key was deleted."""

    key: bytes
    value: bytes | None


class _Gap:
    """Stands in a queue for events that were dropped."""

    def __init__(self) -> None:
        self.count = 0


class Watch:
    """An iterator and async iterator of `Event`. Close it, or use it with `with`."""

    def __init__(self, tree: str, prefix: bytes, limit: int, closed: Callable[[Watch], None]):
        self.tree, self.prefix, self.limit = tree, prefix, limit
        self._on_close = closed
        self._queue: deque[Event | _Gap] = deque()
        self._condition = threading.Condition()
        self._sleepers: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []
        self.closed = False

    # Writers

    def push(self, event: Event) -> None:
        """Queue an event, or drop and count it. Never waits for readers."""
        with self._condition:
            if self.closed:
                return
            if len(self._queue) < self.limit:
                self._queue.append(event)
            else:
                self._last_gap().count += 1
            self._wake()

    def lose(self, count: int) -> None:
        """A gap of so many events, that nobody tells one by one."""
        with self._condition:
            if not self.closed:
                self._last_gap().count += count
                self._wake()

    def _last_gap(self) -> _Gap:
        last = self._queue[-1] if self._queue else None
        if not isinstance(last, _Gap):
            last = _Gap()
            self._queue.append(last)
        return last

    def _wake(self) -> None:
        self._condition.notify()
        sleepers, self._sleepers = self._sleepers, []
        for loop, future in sleepers:
            try:
                loop.call_soon_threadsafe(_finish, future)
            except RuntimeError:
                pass  # that loop is closed: nobody waits there any more

    # Readers

    def poll(self) -> Event | None:
        """The next event if there is one now, else None."""
        with self._condition:
            return self._take()

    def _take(self) -> Event | None:
        if not self._queue:
            return None
        first = self._queue.popleft()
        if isinstance(first, _Gap):
            raise EventsLost(first.count)
        return first

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Event:
        """Waits for an event; ends when closed and empty."""
        with self._condition:
            while True:
                event = self._take()
                if event is not None:
                    return event
                if self.closed:
                    raise StopIteration
                self._condition.wait()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        while True:
            with self._condition:
                event = self._take()
                if event is not None:
                    return event
                if self.closed:
                    raise StopAsyncIteration
                loop = asyncio.get_running_loop()
                future: asyncio.Future[None] = loop.create_future()
                self._sleepers.append((loop, future))
            try:
                await future
            finally:  # also when the task is cancelled: no event may come for long
                with self._condition:
                    self._sleepers = [entry for entry in self._sleepers if entry[1] is not future]

    def __len__(self) -> int:
        """Events that wait to be read."""
        return len(self._queue)

    def __bool__(self) -> bool:
        return True

    def close(self) -> None:
        """No further events; what is queued can still be read. Idempotent."""
        with self._condition:
            if self.closed:
                return
            self.closed = True
            self._condition.notify_all()
            self._wake()
        self._on_close(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _finish(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class Watchers:
    """The watches of a store, and the lock under which it commits while there are any.

    `active` says whether there are: writers look at it first. A watch that nobody refers to any
    more is forgotten.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.RLock()
        self._watches: list[weakref.ref[Watch]] = []
        self.acquire = self._lock.acquire
        self.release = self._lock.release
        self.closed = False

    @property
    def active(self) -> bool:
        return bool(self._watches)

    def watch(self, tree: str, prefix: bytes) -> Watch:
        """A new watch: it sees all that is committed from now on."""
        made = Watch(tree, bytes(prefix), self._limit, self._forget)
        with self._lock:
            if self.closed:
                made.closed = True
            else:
                self._watches.append(weakref.ref(made))
        return made

    def _forget(self, gone: Watch | None = None) -> None:
        with self._lock:
            self._watches = [ref for ref in self._watches if ref() not in (None, gone)]

    def publish(self, changes: Iterable[tuple[str, bytes, bytes | None]]) -> None:
        """Tell of (tree, key, value) that were just committed; the lock is held."""
        watches = self._alive()
        for tree, key, value in changes:
            for watch in watches:
                if watch.tree == tree and key.startswith(watch.prefix):
                    watch.push(Event(key, value))

    def lose(self, tree: str, count: int) -> None:
        """A tree was emptied as a whole: its watches have a gap where so many events would be."""
        with self._lock:
            for watch in self._alive():
                if watch.tree == tree and count:
                    watch.lose(count)

    def _alive(self) -> list[Watch]:
        watches = [watch for ref in self._watches if (watch := ref()) is not None]
        if len(watches) < len(self._watches):
            self._forget()
        return watches

    def close(self) -> None:
        """The store is closed: iterators end."""
        with self._lock:
            self.closed = True
            watches, self._watches = self._watches, []
        for ref in watches:
            watch = ref()
            if watch is not None:
                watch.close()
