"""What the asyncio faces share: methods that run in threads, iterators, opening with first use."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from itertools import islice
from typing import Any, Final, Self

from siltstone import errors

FETCHED_AT_ONCE: Final = 256


def awaited(name: str) -> Callable[..., Awaitable[Any]]:
    """A method that calls the one of the same name in a thread."""

    async def call(self: Any, *arguments: Any, **options: Any) -> Any:
        return await asyncio.to_thread(lambda: getattr(self._plain(), name)(*arguments, **options))

    call.__name__ = name
    call.__doc__ = f"`{name}` of the class without asyncio, awaitable."
    return call


async def fetched(begin: Callable[[], Iterator[Any]]) -> AsyncIterator[Any]:
    """The items of an iterator, fetched in threads."""
    iterator = await asyncio.to_thread(begin)
    while chunk := await asyncio.to_thread(lambda: list(islice(iterator, FETCHED_AT_ONCE))):
        for item in chunk:
            yield item


class OpenedLater:
    """An engine that the first call opens, in a thread; `async with` and `await` do so, too."""

    def __init__(
        self, noun: str, kind: Callable[..., Any], *arguments: Any, **options: Any
    ) -> None:
        self._noun = noun
        self._open = functools.partial(kind, *arguments, **options)
        self._found: Any = None
        self._closed = False
        self._guard = threading.Lock()

    def _plain(self) -> Any:
        """What does the work, in threads."""
        with self._guard:
            if self._closed:
                raise errors.Closed(f"the {self._noun} is closed")
            if self._found is None:
                self._found = self._open()
            return self._found

    async def _opened(self) -> Self:
        await asyncio.to_thread(self._plain)
        return self

    def __await__(self) -> Generator[Any, None, Self]:
        return self._opened().__await__()

    async def close(self) -> None:
        """Idempotent; what nobody used is not even opened."""
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        with self._guard:  # an opening that is under way comes first
            found, self._closed = self._found, True
        if found is not None:
            found.close()

    async def __aenter__(self) -> Self:
        return await self._opened()

    async def __aexit__(self, *_: object) -> None:
        await self.close()
