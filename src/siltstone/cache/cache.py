"""`Cache`: a cache bigger than RAM, embedded; a mapping with expiry, tags and atomic operations.

Owns what Python users call; the hot half is in face.pyx, the storage behind it in attachment.py.
Promises: thread-safe; any number of processes may open the same `path` and see the same items; a
value is either what was last set under its key or missing, never something else.

Non-goals: durability (use `Store`), queries, transactions over several keys.
"""

from __future__ import annotations

import contextlib
import functools
import math
import operator
import os
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from siltstone import codecs, errors
from siltstone.cache.attachment import Attachment, attach
from siltstone.cache.face import Change, Face
from siltstone.cache.leases import compute_once, is_lease, memoized
from siltstone.cache.report import Report
from siltstone.cache.sweep import scan, sweep
from siltstone.clock import SYSTEM_CLOCK, Clock
from siltstone.codecs import Key
from siltstone.config import CacheSettings, build, data_directory, parse_duration, parse_size

V = TypeVar("V")
TTL = float | int | str | timedelta | None
MISSING: Final = object()
_TOKEN_TRIES: Final = 1000
_U64: Final = 1 << 64


class Cache(Face):
    """A cache in RAM and on local flash.

    `path`: the data directory, made when it is missing; None keeps everything in memory.
    `ram`: the memory limit in bytes or "64MiB"; items, index and buffers all count.
    `flash`: room on flash below `path`; 0 for none.
    `codec`: "msgpack", "json", "raw" (bytes, str and int only), "pickle" (only ever by this name:
    reading a pickle runs code), or an object with encode(value) and decode(data).
    Further settings are those of `siltstone.config.CacheSettings`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        ram: int | str = "64MiB",
        flash: int | str = "1GiB",
        codec: Any = "msgpack",
        *,
        clock: Clock = SYSTEM_CLOCK,
        **options: Any,
    ) -> None:
        super().__init__()
        self.settings = build(
            CacheSettings,
            {
                "path": None if path is None else data_directory(path),
                "ram": ram,
                "flash": flash,
                "codec": codec,
                **options,
            },
            "Cache()",
        )
        self._clock = clock
        self._resolved = codecs.resolve(self.settings.codec)
        self._attachment: Attachment = attach(self.settings, clock)
        self._bind(self._attachment.engine, self._resolved)
        self._attachment.faces.add(self)
        # a cache that nobody refers to any more lets go by itself
        self._release = weakref.finalize(self, self._attachment.forget)

    @property
    def path(self) -> Path | None:
        """The data directory."""
        return self.settings.path

    # A mapping ------------------------------------------------------------------------------

    def __len__(self) -> int:
        """Items that are not known to be gone; expired ones count until they are found."""
        self._check_open()
        totals = self.engine.totals()
        return totals["items_ram"] + totals["items_flash"]

    def __iter__(self) -> Iterator[Key]:
        """The keys, in no order. Items that are there throughout are seen exactly once."""
        self._check_open()
        for encoded, is_str, *_ in scan(self.engine):
            key = codecs.decode_key(encoded, is_str)
            if not is_lease(key):
                yield key

    keys = __iter__

    def items(self) -> Iterator[tuple[Key, Any]]:
        """(key, value) pairs, in no order; an item that goes meanwhile is left out."""
        for key in self:
            value = self.get(key, MISSING)
            if value is not MISSING:
                yield key, value

    def values(self) -> Iterator[Any]:
        """The values, in no order."""
        for _, value in self.items():
            yield value

    def setdefault(self, key: Key, default: Any = None) -> Any:
        """The value; when nothing is there, `default` is stored and given back."""
        while True:
            value = self.get(key, MISSING)
            if value is not MISSING:
                return value
            if self.add(key, default):
                return default

    def update(
        self, mapping: Mapping[Key, Any] | Iterable[tuple[Key, Any]] = (), **more: Any
    ) -> None:
        """Store every pair."""
        self.set_many(dict(mapping))
        self.set_many(dict(more.items()))

    # Storing --------------------------------------------------------------------------------

    def set(
        self, key: Key, value: Any, ttl: TTL = None, tag: str | None = None, *, expire: TTL = None
    ) -> bool:
        """Store `value`; with `ttl` (seconds, timedelta or "500ms") it expires. True.

        `tag` groups items for `evict`. `expire` is another name for `ttl`.
        """
        if ttl is None and expire is None and tag is None:
            self[key] = value
            return True
        return self._put(Change.SET, key, value, ttl if expire is None else expire, tag)

    def add(
        self, key: Key, value: Any, ttl: TTL = None, tag: str | None = None, *, expire: TTL = None
    ) -> bool:
        """Store only if nothing is there. Whether it was stored."""
        return self._put(Change.ADD, key, value, ttl if expire is None else expire, tag)

    def replace(
        self, key: Key, value: Any, ttl: TTL = None, tag: str | None = None, *, expire: TTL = None
    ) -> bool:
        """Store only if something is there. Whether it was stored."""
        return self._put(Change.REPLACE, key, value, ttl if expire is None else expire, tag)

    def _put(self, op: int, key: Key, value: Any, ttl: TTL, tag: str | None) -> bool:
        data, flags = codecs.encode_value(self._resolved, value)
        status, *_ = self._change(op, key, data, flags, self._until(ttl), tag=self._tag(tag))
        return status == Change.OK

    def _until(self, ttl: TTL) -> int:
        """Unix ms at which `ttl` ends; 0 = never, -1 = it has ended."""
        if ttl is None:
            return 0
        seconds = parse_duration(ttl) if not isinstance(ttl, (int, float)) else float(ttl)
        if seconds != seconds:
            raise errors.ConfigError("a ttl is a number of seconds, not nan")
        if seconds == math.inf:
            return 0
        if seconds <= 0:
            return -1
        return self._clock.now_ms() + min(int(seconds * 1000) or 1, 1 << 52)

    def _tag(self, tag: str | None) -> int:
        self._check_open()
        return 0 if tag is None else self.engine.tag_of(_tag_bytes(tag))

    def set_many(self, mapping: Mapping[Key, Any], ttl: TTL = None, tag: str | None = None) -> int:
        """Store every pair; how many were stored."""
        return sum(self.set(key, value, ttl, tag) for key, value in mapping.items())

    def get_many(self, keys: Iterable[Key]) -> dict[Key, Any]:
        """The values that are there, by key."""
        found = {}
        for key in keys:
            value = self.get(key, MISSING)
            if value is not MISSING:
                found[key] = value
        return found

    def delete_many(self, keys: Iterable[Key]) -> int:
        """Delete each key; how many were there."""
        return sum(self.delete(key) for key in keys)

    def delete(self, key: Key) -> bool:
        """Whether something was there to delete."""
        return self._change(Change.DELETE, key)[0] == Change.OK

    def compare_and_delete(self, key: Key, token: int) -> bool:
        """Delete only if nobody stored since the token was given. Whether it was deleted."""
        options = Change.CAS
        return self._change(Change.DELETE, key, options=options, cas=_token(token))[0] == Change.OK

    def pop(self, key: Key, default: Any = None) -> Any:
        """Delete the item and give back its value, or `default`."""
        status, _, _, data, flags = self._change(Change.DELETE, key, options=Change.WANT_VALUE)
        if status != Change.OK or data is None:
            return default
        return codecs.decode_value(self._resolved, data, flags)

    def touch(self, key: Key, ttl: TTL = None, *, expire: TTL = None) -> bool:
        """A new time to live (None: for ever). Whether the item was there."""
        until = self._until(ttl if expire is None else expire)
        return self._change(Change.TOUCH, key, expire_ms=until)[0] == Change.OK

    def ttl(self, key: Key) -> float | None:
        """Seconds that are left to the item; None when it has no end, or is not there."""
        found = self._get_meta(key)
        if found is None or not found[3]:
            return None
        left: float = max(0, found[3] - self._clock.now_ms()) / 1000
        return left

    # Reading and changing in one step -------------------------------------------------------

    def get_with_token(self, key: Key, default: Any = None) -> tuple[Any, int | None]:
        """(value, token) for `compare_and_set`; (default, None) when nothing is there."""
        found = self._get_meta(key)
        if found is None:
            return default, None
        data, flags, cas, _, _ = found
        return codecs.decode_value(self._resolved, data, flags), cas

    def compare_and_set(
        self, key: Key, value: Any, token: int | None, ttl: TTL = None, tag: str | None = None
    ) -> bool:
        """Store only if nobody stored since the token was given; None: only if nothing is there."""
        if token is None:
            return self.add(key, value, ttl, tag)
        data, flags = codecs.encode_value(self._resolved, value)
        status, *_ = self._change(
            Change.SET,
            key,
            data,
            flags,
            self._until(ttl),
            Change.CAS,
            _token(token),
            tag=self._tag(tag),
        )
        return status == Change.OK

    def incr(self, key: Key, delta: int = 1, default: int | None = None) -> int:
        """Add `delta` and give back the sum, atomically. A missing key counts as `default`;
        without one it is a KeyError. The time to live stays."""
        if type(delta) is int and 0 <= delta < _U64:
            status, number, _, _, _ = self._change(
                Change.INCR, key, delta=delta, options=Change.NO_WRAP
            )
            if status == Change.OK:
                return number
        return self._add_slowly(key, delta, default)

    def decr(self, key: Key, delta: int = 1, default: int | None = None) -> int:
        """As `incr`, downwards; unlike memcached's it may go below zero."""
        return self._add_slowly(key, -delta, default)

    def _add_slowly(self, key: Key, delta: int, default: int | None) -> int:
        # Negative and large numbers: compare and set until it holds.
        delta = _whole(delta, "delta")
        default = None if default is None else _whole(default, "default")
        for _ in range(_TOKEN_TRIES):
            found = self._get_meta(key)
            if found is None:
                if default is None:
                    raise errors.KeyMissing(key)
                data, flags = codecs.encode_value(self._resolved, default + delta)
                if self._change(Change.ADD, key, data, flags)[0] == Change.OK:
                    return default + delta
                continue
            data, flags, cas, _, _ = found
            try:
                number = int(data)
            except ValueError:
                raise errors.NotANumber(f"the value of {key!r} is not a whole number") from None
            new, flags = codecs.encode_value(self._resolved, number + delta)
            options = Change.CAS | Change.KEEP_TTL
            if self._change(Change.SET, key, new, flags, 0, options, cas)[0] == Change.OK:
                return number + delta
        raise errors.Busy(f"{key!r} is changed by others all the time; try again")

    def append(self, key: Key, data: bytes) -> bool:
        """Bytes behind a value that is bytes or str. False when nothing is there."""
        return self._join(Change.APPEND, key, _plain(data))

    def prepend(self, key: Key, data: bytes) -> bool:
        """Bytes before a value that is bytes or str. False when nothing is there."""
        return self._join(Change.PREPEND, key, _plain(data))

    def _join(self, operation: int, key: Key, data: bytes) -> bool:
        # What a codec made would be unreadable with bytes joined on: look first.
        for _ in range(_TOKEN_TRIES):
            found = self._get_meta(key)
            if found is None:
                return False
            _, flags, cas, _, _ = found
            if codecs.is_encoded(flags):
                raise errors.InvalidValue(
                    f"the value of {key!r} is encoded: only bytes and str can be joined on"
                )
            if self._change(operation, key, data, options=Change.CAS, cas=cas)[0] == Change.OK:
                return True
        raise errors.Busy(f"{key!r} is changed by others all the time; try again")

    # Computing once -------------------------------------------------------------------------

    def get_or_set(
        self,
        key: Key,
        function: Callable[[], V],
        ttl: TTL = None,
        tag: str | None = None,
        *,
        expire: TTL = None,
    ) -> V:
        """The value, computed by `function` when it is missing.

        One computation at a time a key, over threads and processes: others wait for it (at most
        `lease` seconds, then the next one computes). An exception frees the key and is raised.
        """
        value: V = compute_once(self, key, function, ttl if expire is None else expire, tag)
        return value

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
        """Decorator: keep the results of a function (def or async def) by its arguments.

        `typed`: 1 and 1.0 are different. `ignore`: positions and names that do not count.
        The wrapper has `__cache_key__(*args, **kwargs)`, and `__wrapped__` without the cache.
        """
        if callable(ttl):
            raise errors.ConfigError("memoize takes brackets: @cache.memoize()")
        time_to_live = ttl if expire is None else expire
        return functools.partial(
            memoized, self, ttl=time_to_live, tag=tag, typed=typed, ignore=set(ignore), name=name
        )

    # The whole cache ------------------------------------------------------------------------

    def evict(self, tag: str) -> int:
        """Make every item stored with `tag` vanish; how many were stored under it (items on flash
        that went meanwhile count too)."""
        self._check_open()
        return self.engine.evict_tag(_tag_bytes(tag))

    def expire(self) -> int:
        """Remove what has expired now instead of when it is met; how many."""
        self._check_open()
        return sweep(self.engine)

    def clear(self) -> None:
        """Delete everything."""
        self._check_open()
        self._attachment.clear()

    def clear_at(self, due_ms: int) -> None:
        """Delete what was stored before `due_ms` (Unix) once that time comes; a later call
        replaces one that has not come."""
        self._check_open()
        self._attachment.clear_at(due_ms)

    def resize(self, ram: int | str) -> None:
        """Another memory limit, at most `ram_max`; what is too much is evicted."""
        self._check_open()
        self.engine.set_limit(parse_size(ram))

    def tune(self, name: str, value: float) -> None:
        """Change a setting while running; ConfigError for one that cannot change."""
        self._check_open()
        background = self._attachment.background
        changed: dict[str, Any] = {}
        if name in ("compact_under", "drop_under", "max_fragmentation"):
            setattr(background, name, value)
        elif name in ("item_size_min", "recache_rate"):
            changed[name] = int(value)
        elif name in ("item_age", "low_ttl"):
            changed[f"{name}_s"] = int(value)
        elif name == "drop_unread":
            background.drop_unread = changed[name] = bool(value)
        else:
            raise errors.ConfigError(f"{name} cannot change while the cache is open")
        self.engine.configure(**changed)

    def flush(self) -> None:
        """Hand what waits in write buffers to the operating system. Deletes nothing; to delete
        everything see `clear`."""
        self._check_open()
        with self._inside():
            self._attachment.flush()

    def sync(self) -> None:
        """`flush`, and on to the medium."""
        self._check_open()
        with self._inside():
            self._attachment.sync()

    @contextlib.contextmanager
    def _inside(self) -> Iterator[None]:
        # close() in another thread waits for us
        engine = self.engine
        engine.enter()
        try:
            yield
        finally:
            engine.leave()

    def stats(self) -> dict[str, Any]:
        """Counters and sizes by name, memcached's where it has one."""
        self._check_open()
        return self._attachment.stats()

    def volume(self) -> int:
        """Bytes in use: memory of items and index, and live records on flash."""
        self._check_open()
        used = self.engine.arena.frames_used * self.engine.arena.frame_bytes
        live: int = sum(segment["live_bytes"] for segment in self._attachment.segments())
        return used + live

    def verify(self, progress: Callable[[int, int], None] | None = None) -> Report:
        """Read everything back and check it. `progress` is told (done, of)."""
        self._check_open()
        return self._attachment.verify(progress)

    def segments(self) -> list[dict[str, Any]]:
        """The flash segments: slot, state, stream, filled and live bytes, age."""
        self._check_open()
        return self._attachment.segments()

    def close(self) -> None:
        """Let go of the cache; the last one out writes what a warm restart needs."""
        if not self.closed:
            self._unbind()
            if self._release.detach() is not None:
                self._attachment.release()

    def _wake(self) -> None:
        super()._wake()
        self._attachment.work()

    def _check_open(self) -> None:
        if self.closed:
            raise errors.Closed("this cache is closed")

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        if self.settings.path is None:
            raise errors.ConfigError("a cache without a path cannot be sent to another process")
        return _reopen, (self.settings,)

    def __repr__(self) -> str:
        where = "memory" if self.settings.path is None else repr(str(self.settings.path))
        return f"<siltstone.Cache {where}{' closed' if self.closed else ''}>"


MutableMapping.register(Cache)


def _tag_bytes(tag: str) -> bytes:
    if not isinstance(tag, str):
        raise errors.InvalidKey(f"a tag is a str, not {type(tag).__name__}")
    try:
        return tag.encode()
    except UnicodeEncodeError as error:
        raise errors.InvalidKey(f"a tag must be encodable as UTF-8: {error}") from None


def _whole(number: int, what: str) -> int:
    try:
        return operator.index(number)
    except TypeError:
        raise errors.NotANumber(f"{what} {number!r} is not a whole number") from None


def _token(token: int) -> int:
    if type(token) is not int or not 0 <= token < _U64:
        raise errors.InvalidValue(f"a token is what get_with_token() gave, not {token!r:.40}")
    return token


def _plain(data: bytes) -> bytes:
    # bytes(5) would be five zeros
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise errors.InvalidValue(f"only bytes can be joined on, not {type(data).__name__}")
    return bytes(data)


def _reopen(settings: CacheSettings) -> Cache:
    from siltstone.config import names_of

    return Cache(**{name: getattr(settings, name) for name in names_of(CacheSettings)})
