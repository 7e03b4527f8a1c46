"""Computing a value once: leases for `get_or_set`, and the memoize decorator on them.

A lease is an item beside the value's, stored by `add` with a time limit, so that it holds over
threads, tasks and processes, and passes on when its holder dies. Waiters look again with growing
pauses.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import inspect
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, Final

from siltstone import codecs
from siltstone.cache.holders import is_alive, new_token
from siltstone.codecs import Key
from siltstone.errors import InvalidKey

if TYPE_CHECKING:
    from siltstone.cache.cache import Cache

_MISSING: Final = object()
_PAUSE_MIN_S: Final = 0.001
_PAUSE_MAX_S: Final = 0.05

_LEASE: Final = "\0siltstone.lease"  # first element of the tuple that is a lease's key


def lease_key(key: Key) -> Key:
    """Where the lease of a computation is; no iteration over the cache shows it."""
    return (_LEASE, codecs.encode_key(key))


def is_lease(key: Key) -> bool:
    """Not an item of the user's."""
    return isinstance(key, tuple) and len(key) == 2 and key[0] == _LEASE


def _attempts(cache: Cache, key: Key) -> Generator[float, None, tuple[bool, Any]]:
    """Yield pauses until the value is there (False, value) or ours to compute (True, token)."""
    token = new_token(cache).encode()
    pause = _PAUSE_MIN_S
    while True:
        value = cache.get(key, _MISSING)
        if value is not _MISSING:
            return False, value
        if cache.add(lease_key(key), token, ttl=cache.settings.lease):
            value = cache.get(key, _MISSING)  # stored between our look and our lease?
            if value is _MISSING:
                return True, token
            _give_back(cache, key, token)
            return False, value
        if _take_orphan(cache, key):
            continue
        yield pause
        pause = min(pause * 2, _PAUSE_MAX_S)


def _take_orphan(cache: Cache, key: Key) -> bool:
    """Whether the lease's process was dead (the lease is gone then)."""
    held, token = cache.get_with_token(lease_key(key))
    if not isinstance(held, bytes):
        return True
    if is_alive(cache, held.decode("latin-1")):
        return False
    if token is not None:
        cache.compare_and_delete(lease_key(key), token)
    return True


def _give_back(cache: Cache, key: Key, token: bytes) -> None:
    # Only our own: after the time limit it may be another's.
    held, cas = cache.get_with_token(lease_key(key))
    if held == token and cas is not None:
        cache.compare_and_delete(lease_key(key), cas)


def compute_once(
    cache: Cache, key: Key, function: Callable[[], Any], ttl: Any, tag: str | None
) -> Any:
    """See Cache.get_or_set."""
    attempts = _attempts(cache, key)
    while True:
        try:
            cache._clock.sleep(next(attempts))
        except StopIteration as end:
            ours, found = end.value
            break
    if not ours:
        return found
    try:
        value = function()
        cache.set(key, value, ttl, tag)
        return value
    finally:
        _give_back(cache, key, found)


async def compute_once_async(
    cache: Cache, key: Key, function: Callable[[], Any], ttl: Any, tag: str | None
) -> Any:
    """The same for a coroutine function; waiting does not block the loop."""
    attempts = _attempts(cache, key)
    while True:
        try:
            await asyncio.sleep(next(attempts))
        except StopIteration as end:
            ours, found = end.value
            break
    if not ours:
        return found
    try:
        value = await function()
        cache.set(key, value, ttl, tag)
        return value
    finally:
        _give_back(cache, key, found)


def full_name(function: Callable[..., Any]) -> str:
    """`module.qualified.name`: under which a decorated function keeps what it keeps."""
    return f"{function.__module__}.{function.__qualname__}"


def key_maker(
    function: Callable[..., Any], *, typed: bool, ignore: set[int | str], name: str | None
) -> Callable[..., Key]:
    """The function that makes the key of a call of `function`."""
    base = name or full_name(function)

    def cache_key(*args: Any, **kwargs: Any) -> Key:
        kept = [value for place, value in enumerate(args) if place not in ignore]
        named = sorted((key, value) for key, value in kwargs.items() if key not in ignore)
        parts = [_hashable(value, typed) for value in kept]
        parts += [(key, _hashable(value, typed)) for key, value in named]
        return _short((base, *parts, "") if named else (base, *parts))

    return cache_key


def memoized(
    cache: Cache,
    function: Callable[..., Any],
    *,
    ttl: Any,
    tag: str | None,
    typed: bool,
    ignore: set[int | str],
    name: str | None,
) -> Callable[..., Any]:
    """See Cache.memoize."""
    cache_key = key_maker(function, typed=typed, ignore=ignore, name=name)

    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def wrapper(*args: Any, **kwargs: Any) -> Any:
            call = functools.partial(function, *args, **kwargs)
            return await compute_once_async(cache, cache_key(*args, **kwargs), call, ttl, tag)

    else:

        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            call = functools.partial(function, *args, **kwargs)
            return compute_once(cache, cache_key(*args, **kwargs), call, ttl, tag)

    wrapper.__cache_key__ = cache_key  # type: ignore[attr-defined]
    return wrapper


def _short(key: tuple[Key, ...]) -> Key:
    """The key, or its digest when the arguments are too long for one."""
    try:
        codecs.encode_key(key)
    except InvalidKey:
        return (key[0], hashlib.blake2b(repr(key).encode(), digest_size=32).digest())
    return key


def _hashable(value: Any, typed: bool) -> Key:
    """An argument as part of a key: what the key encoding knows, else its codec-free text."""
    if isinstance(value, bool) or not isinstance(value, (str, bytes, int, tuple)):
        if isinstance(value, float) and not typed and value.is_integer():
            return int(value)
        return (type(value).__name__, repr(value))
    if isinstance(value, tuple):
        return ("tuple", *(_hashable(part, typed) for part in value))
    return value
