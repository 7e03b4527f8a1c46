"""Memoizing that computes a result anew, in the background, shortly before it expires.

Whoever reads a result decides by chance whether it is time: the likelier the longer the computation
took and the nearer the end is, so that seldom two begin and nobody waits. The rule is that of
Vattani, Chierichetti, Lowenstein: "Optimal Probabilistic Cache Stampede Prevention" (VLDB 2015).
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import math
import threading
from collections.abc import Callable, Iterable
from typing import Any

from siltstone.cache.cache import Cache
from siltstone.cache.leases import compute_once, compute_once_async, key_maker, lease_key
from siltstone.clock import Random, SystemRandom
from siltstone.codecs import Key
from siltstone.config import parse_duration
from siltstone.errors import ConfigError


class _Renewed:
    """The results of one function: [result, seconds that it took, Unix seconds of its end]."""

    def __init__(
        self, cache: Cache, expire: float, tag: str | None, beta: float, chance: Random
    ) -> None:
        self.cache, self.expire, self.tag, self.beta, self.chance = cache, expire, tag, beta, chance

    def now(self) -> float:
        return self.cache._clock.now_ms() / 1000

    def entry(self, result: Any, began_ns: int) -> list[Any]:
        took = (self.cache._clock.monotonic_ns() - began_ns) / 1e9
        return [result, took, self.now() + self.expire]

    def computed(self, call: Callable[[], Any]) -> list[Any]:
        began = self.cache._clock.monotonic_ns()
        return self.entry(call(), began)

    async def computed_async(self, call: Callable[[], Any]) -> list[Any]:
        began = self.cache._clock.monotonic_ns()
        return self.entry(await call(), began)

    def due(self, key: Key, entry: list[Any]) -> bool:
        """Whether the caller shall compute it anew now; said to one caller at a time."""
        _, took, end = entry
        early = -took * self.beta * math.log(1 - self.chance.uniform())
        if end - self.now() > early:
            return False
        mark = lease_key(("renewal", key))
        return self.cache.add(mark, b"", ttl=max(took, 0.001))

    def store(self, key: Key, entry: list[Any]) -> None:
        self.cache.set(key, entry, self.expire, self.tag)


def memoize_stampede(
    cache: Cache,
    expire: float | str,
    name: str | None = None,
    typed: bool = False,
    tag: str | None = None,
    beta: float = 1.0,
    ignore: Iterable[int | str] = (),
    *,
    chance: Random | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: as `Cache.memoize`, and results are renewed before they expire.

    `expire`: seconds that a result is kept. `beta`: above 1 renews earlier, below 1 later. Of a
    plain function the renewal runs in a thread, of a coroutine function in a task; an error in it
    leaves the old result until it expires. The cache's codec must take lists (raw does not).
    """
    seconds = parse_duration(expire)
    if seconds <= 0 or beta <= 0:
        raise ConfigError("memoize_stampede: expire and beta are more than 0")
    renewed = _Renewed(cache, seconds, tag, beta, chance or SystemRandom())

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        cache_key = key_maker(function, typed=typed, ignore=set(ignore), name=name)
        wrap = _wrapped_async if inspect.iscoroutinefunction(function) else _wrapped
        wrapper = wrap(renewed, function, cache_key)
        wrapper.__cache_key__ = cache_key  # type: ignore[attr-defined]
        return wrapper

    return decorate


def _wrapped(
    renewed: _Renewed, function: Callable[..., Any], cache_key: Callable[..., Key]
) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        key = cache_key(*args, **kwargs)
        compute = functools.partial(renewed.computed, functools.partial(function, *args, **kwargs))
        entry = compute_once(renewed.cache, key, compute, renewed.expire, renewed.tag)
        if renewed.due(key, entry):
            threading.Thread(
                target=lambda: renewed.store(key, compute()), name="siltstone-renewal", daemon=True
            ).start()
        return entry[0]

    return wrapper


def _wrapped_async(
    renewed: _Renewed, function: Callable[..., Any], cache_key: Callable[..., Key]
) -> Callable[..., Any]:
    tasks: set[asyncio.Task[None]] = set()  # the loop itself keeps only weak references

    @functools.wraps(function)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        key = cache_key(*args, **kwargs)
        call = functools.partial(function, *args, **kwargs)
        compute = functools.partial(renewed.computed_async, call)
        entry = await compute_once_async(renewed.cache, key, compute, renewed.expire, renewed.tag)
        if renewed.due(key, entry):

            async def renew() -> None:
                renewed.store(key, await compute())

            task = asyncio.create_task(renew())
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        return entry[0]

    return wrapper
