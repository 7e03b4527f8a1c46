"""At most so many calls in so much time, over threads and processes."""

from __future__ import annotations

import asyncio
import functools
import inspect
import struct
from collections.abc import Callable, Iterator
from typing import Any, Final

from siltstone.cache.cache import TTL, Cache
from siltstone.cache.leases import full_name
from siltstone.config import parse_duration
from siltstone.errors import ConfigError

STATE: Final = struct.Struct("<dd")  # when it was written (seconds), calls that were allowed then


def throttle(
    cache: Cache,
    count: int,
    seconds: float | str,
    name: str | None = None,
    expire: TTL = None,
    tag: str | None = None,
    time_func: Callable[[], float] | None = None,
    sleep_func: Callable[[float], Any] | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: `count` calls in `seconds`; what comes too early waits (async def: awaits).

    A token bucket: `count` calls may come at once after a pause, then one every
    `seconds` / `count`. `name`: the key of its state; the function's full name without it.
    """
    period = parse_duration(seconds)
    if not isinstance(count, int) or count < 1 or period <= 0:
        raise ConfigError("throttle: use at least one call in more than 0 seconds")
    now = time_func or (lambda: cache._clock.now_ms() / 1000)

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        key = name or full_name(function)

        def pauses() -> Iterator[float]:
            """Seconds to wait, until a call is allowed."""
            while True:
                value, token = cache.get_with_token(key)
                last, allowed = now(), float(count)
                if isinstance(value, bytes) and len(value) == STATE.size:
                    then, left = STATE.unpack(value)
                    allowed = min(allowed, left + max(0.0, last - then) * count / period)
                if allowed < 1:
                    yield (1 - allowed) * period / count
                elif cache.compare_and_set(key, STATE.pack(last, allowed - 1), token, expire, tag):
                    return

        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def wrapper(*args: Any, **kwargs: Any) -> Any:
                for pause in pauses():
                    await (sleep_func or asyncio.sleep)(pause)
                return await function(*args, **kwargs)

        else:

            @functools.wraps(function)
            def wrapper(*args: Any, **kwargs: Any) -> Any:
                for pause in pauses():
                    (sleep_func or cache._clock.sleep)(pause)
                return function(*args, **kwargs)

        return wrapper

    return decorate
