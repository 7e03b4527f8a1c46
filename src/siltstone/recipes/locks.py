"""Locks in a cache, over threads and processes: Lock, RLock, BoundedSemaphore, and `barrier`.

A lock is one item: ASCII, the tokens of those who hold it (cache/holders.py). What a process that
ended held is free again, `expire` or not. A cache that is full may evict a lock that nobody asked
for in a long time, as any item: where that must not happen, open the cache with `evict=False`.
"""

from __future__ import annotations

import abc
import asyncio
import functools
import inspect
import math
import threading
from collections.abc import Callable
from typing import Any, Final, Self

from siltstone.cache.cache import TTL, Cache
from siltstone.cache.holders import is_alive, new_token, thread_token
from siltstone.cache.leases import full_name
from siltstone.codecs import Key
from siltstone.errors import ConfigError, NotHeld

PAUSE_S: Final = 0.001


class _Held(abc.ABC):
    """An item that names its holders; `_take` tries once, `acquire` until it succeeds."""

    def __init__(self, cache: Cache, key: Key, expire: TTL = None, tag: str | None = None) -> None:
        self._cache, self._key, self._expire, self._tag = cache, key, expire, tag

    def _holders(self) -> tuple[list[str], int | None]:
        """(tokens of those alive, what to change it by)."""
        value, token = self._cache.get_with_token(self._key, b"")
        text = value.decode("latin-1") if isinstance(value, bytes) else ""
        held = [holder for holder in text.split(",") if holder and is_alive(self._cache, holder)]
        return held, token

    def _change(self, holders: list[str], token: int | None) -> bool:
        """Whether nobody else changed it meanwhile."""
        if not holders:
            return token is None or self._cache.compare_and_delete(self._key, token)
        value = ",".join(holders).encode()
        return self._cache.compare_and_set(self._key, value, token, self._expire, self._tag)

    @abc.abstractmethod
    def _take(self) -> bool:
        """Try once. Whether it is ours now."""

    def acquire(self, timeout: float | None = None) -> bool:
        """Wait until it is ours, at most `timeout` seconds (None: for ever). Whether it is."""
        clock = self._cache._clock
        end = math.inf if timeout is None else clock.monotonic_ns() + _nanoseconds(timeout)
        while not self._take():
            if clock.monotonic_ns() >= end:
                return False
            clock.sleep(PAUSE_S)
        return True

    @abc.abstractmethod
    def release(self) -> None:
        """Let go. NotHeld when it is not ours (or has expired)."""

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class Lock(_Held):
    """One holder at a time; any thread may release what this object acquired.

    `key`: where it is in the cache. `expire`: seconds after which it is free in any case.
    """

    _token = ""

    def _take(self) -> bool:
        held, token = self._holders()
        mine = new_token(self._cache)
        if held or not self._change([mine], token):
            return False
        self._token = mine
        return True

    def release(self) -> None:
        """Let go. NotHeld when it is not ours (or has expired)."""
        held, token = self._holders()
        if held != [self._token] or not self._change([], token):
            raise NotHeld(f"the lock {self._key!r} is not held by this object: cannot release it")

    def locked(self) -> bool:
        """Whether anybody holds it."""
        return bool(self._holders()[0])


class RLock(_Held):
    """One thread at a time, which may acquire it again; free after as many releases."""

    def _take(self) -> bool:
        held, token = self._holders()
        mine = thread_token(self._cache)
        return set(held) <= {mine} and self._change([*held, mine], token)

    def release(self) -> None:
        """Let go once. NotHeld when this thread does not hold it."""
        mine = thread_token(self._cache)
        while True:
            held, token = self._holders()
            if mine not in held:
                raise NotHeld(f"the lock {self._key!r} is not held by this thread")
            if self._change(held[1:], token):
                return


class BoundedSemaphore(_Held):
    """At most `value` holders at a time; any thread may release what this object acquired."""

    def __init__(
        self,
        cache: Cache,
        key: Key,
        value: int = 1,
        expire: TTL = None,
        tag: str | None = None,
    ) -> None:
        super().__init__(cache, key, expire, tag)
        if type(value) is not int or value < 1:
            raise ConfigError(f"value: {value!r} holders make no semaphore, use 1 or more")
        self._value = value
        self._tokens: list[str] = []
        self._guard = threading.Lock()

    def _take(self) -> bool:
        held, token = self._holders()
        mine = new_token(self._cache)
        if len(held) >= self._value or not self._change([*held, mine], token):
            return False
        with self._guard:
            self._tokens.append(mine)
        return True

    def release(self) -> None:
        """Let one place go. NotHeld when this object has none."""
        with self._guard:
            mine = self._tokens.pop() if self._tokens else ""
        try:
            while mine:
                held, token = self._holders()
                if mine not in held:
                    break
                if self._change([holder for holder in held if holder != mine], token):
                    return
        except BaseException:  # it is held still, and may be let go later
            with self._guard:
                self._tokens.append(mine)
            raise
        raise NotHeld(f"the semaphore {self._key!r} is not held by this object")


def _nanoseconds(timeout: float) -> float:
    if isinstance(timeout, (int, float)) and not math.isnan(timeout):
        return timeout * 1e9
    raise ConfigError(f"timeout: {timeout!r} is no number of seconds")


def barrier(
    cache: Cache,
    lock_factory: Callable[..., Any],
    name: str | None = None,
    expire: TTL = None,
    tag: str | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: calls of the function (def, async def) wait for each other, over processes, too.

    `lock_factory`: Lock, RLock, BoundedSemaphore, or what takes (cache, key, expire=, tag=).
    `name`: the lock's key; the function's full name without it.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        lock = lock_factory(cache, name or full_name(function), expire=expire, tag=tag)

        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def wrapper(*args: Any, **kwargs: Any) -> Any:
                while not lock.acquire(0):
                    await asyncio.sleep(PAUSE_S)
                try:
                    return await function(*args, **kwargs)
                finally:
                    lock.release()

        else:

            @functools.wraps(function)
            def wrapper(*args: Any, **kwargs: Any) -> Any:
                with lock:
                    return function(*args, **kwargs)

        return wrapper

    return decorate
