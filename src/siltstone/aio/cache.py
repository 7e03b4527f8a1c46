"""`aio.Cache`: the Cache for asyncio; the same names, awaitable.

Promises: what is in RAM is read at once, without a thread; everything that may wait (for the
device, for a lock that another process holds) runs in a thread and never holds up the loop.
Iterators fetch some hundred items at a time.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import AsyncIterator, Callable, Iterable
from datetime import timedelta
from typing import Any, Final

from siltstone import errors
from siltstone.aio.face import OpenedLater, awaited, fetched
from siltstone.cache import cache as plain
from siltstone.cache.leases import compute_once_async, key_maker
from siltstone.codecs import Key

TTL = float | int | str | timedelta | None
_LATER: Final = object()


class Cache(OpenedLater):
    """`async with aio.Cache(path, ...) as cache`; arguments are those of `siltstone.Cache`.

    The first call opens it, in a thread. Also as `await aio.Cache(path)`. Several tasks, threads
    and processes may have one `path` open, also with `siltstone.Cache`.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__("cache", plain.Cache, *arguments, **options)

    # Reading --------------------------------------------------------------------------------

    async def get(self, key: Key, default: Any = None) -> Any:
        """The value under `key`, or `default`."""
        found = self._found
        if found is not None and not self._closed:
            value = found._get_now(key, default, _LATER)
            if value is not _LATER:
                return value
        return await asyncio.to_thread(lambda: self._plain().get(key, default))

    async def get_many(self, keys: Iterable[Key]) -> dict[Key, Any]:
        """The values that are there, by key."""
        wanted = list(keys)
        return await asyncio.to_thread(lambda: self._plain().get_many(wanted))

    async def contains(self, key: Key) -> bool:
        """`key in cache`."""
        return await asyncio.to_thread(lambda: key in self._plain())

    async def count(self) -> int:
        """`len(cache)`."""
        return await asyncio.to_thread(lambda: len(self._plain()))

    def keys(self) -> AsyncIterator[Key]:
        """The keys, in no order. Items that are there throughout are seen exactly once."""
        return fetched(lambda: iter(self._plain().keys()))

    def values(self) -> AsyncIterator[Any]:
        """The values, in no order."""
        return fetched(lambda: iter(self._plain().values()))

    def items(self) -> AsyncIterator[tuple[Key, Any]]:
        """(key, value) pairs, in no order."""
        return fetched(lambda: iter(self._plain().items()))

    def __aiter__(self) -> AsyncIterator[Key]:
        return self.keys()

    get_with_token = awaited("get_with_token")
    ttl = awaited("ttl")

    # Changing -------------------------------------------------------------------------------

    set = awaited("set")
    add = awaited("add")
    replace = awaited("replace")
    delete = awaited("delete")
    pop = awaited("pop")
    incr = awaited("incr")
    decr = awaited("decr")
    append = awaited("append")
    prepend = awaited("prepend")
    touch = awaited("touch")
    compare_and_set = awaited("compare_and_set")
    compare_and_delete = awaited("compare_and_delete")
    set_many = awaited("set_many")
    delete_many = awaited("delete_many")
    setdefault = awaited("setdefault")
    update = awaited("update")

    # Computing once -------------------------------------------------------------------------

    async def get_or_set(
        self,
        key: Key,
        function: Callable[[], Any],
        ttl: TTL = None,
        tag: str | None = None,
        *,
        expire: TTL = None,
    ) -> Any:
        """The value, computed by `function` when it is missing.

        `function` is a coroutine function, or a plain one, which runs in a thread. One computation
        at a time a key, over tasks, threads and processes; others wait for it.
        """
        value = await self.get(key, _LATER)
        if value is not _LATER:
            return value
        cache = await asyncio.to_thread(self._plain)
        call = functools.partial(_computed, function)
        return await compute_once_async(cache, key, call, ttl if expire is None else expire, tag)

    def memoize(
        self,
        ttl: TTL = None,
        tag: str | None = None,
        typed: bool = False,
        ignore: Iterable[int | str] = (),
        *,
        expire: TTL = None,
        name: str | None = None,
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Decorator: keep the results of a function (async def, or def, which then runs in a
        thread) by its arguments. The wrapper is a coroutine function; else as `Cache.memoize`."""
        if callable(ttl):
            raise errors.ConfigError("memoize takes brackets: @cache.memoize()")
        time_to_live = ttl if expire is None else expire

        def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
            cache_key = key_maker(function, typed=typed, ignore=set(ignore), name=name)

            @functools.wraps(function)
            async def wrapper(*args: Any, **kwargs: Any) -> Any:
                call = functools.partial(function, *args, **kwargs)
                return await self.get_or_set(cache_key(*args, **kwargs), call, time_to_live, tag)

            wrapper.__cache_key__ = cache_key  # type: ignore[attr-defined]
            return wrapper

        return decorate

    # The whole cache ------------------------------------------------------------------------

    evict = awaited("evict")
    expire = awaited("expire")
    clear = awaited("clear")
    clear_at = awaited("clear_at")
    resize = awaited("resize")
    tune = awaited("tune")
    flush = awaited("flush")
    sync = awaited("sync")
    stats = awaited("stats")
    volume = awaited("volume")
    verify = awaited("verify")
    segments = awaited("segments")


async def _computed(function: Callable[[], Any]) -> Any:
    if inspect.iscoroutinefunction(inspect.unwrap(getattr(function, "func", function))):
        return await function()
    found = await asyncio.to_thread(function)
    return await found if inspect.isawaitable(found) else found
