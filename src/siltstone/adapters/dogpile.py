"""dogpile.cache regions in a `siltstone.Cache`: `region.configure("siltstone", arguments={...})`.

Threads and processes of one machine share the directory, and compute a value once: the region's
mutex is a lock in the cache, which the death of its holder frees.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Any

from dogpile.cache.api import NO_VALUE, CacheBackend, CantDeserializeException

from siltstone import codecs
from siltstone.cache.cache import Cache
from siltstone.errors import InvalidValue
from siltstone.recipes.locks import Lock


class SiltstoneBackend(CacheBackend):
    """A backend of values that are encoded without pickle.

    Arguments: `path` and others of `siltstone.Cache`, or `cache`, one that is open; `codec` encodes
    values ("msgpack"; "pickle" for other objects, by this name only). `distributed_lock` (True):
    one computation over all processes; `lock_timeout`: seconds after which it is given up.
    `expiration_time` of the region is by its own clock; `ttl`: seconds after which items go.
    """

    def __init__(self, arguments: dict[str, Any]) -> None:
        given = dict(arguments)
        self._locks = given.pop("distributed_lock", True)
        self._lock_timeout = given.pop("lock_timeout", None)
        self._ttl = given.pop("ttl", None)
        codec = codecs.resolve(given.pop("codec", "msgpack"))
        self.serializer = functools.partial(codecs.encoded, codec)
        self.deserializer = functools.partial(_read, codec)
        found = given.pop("cache", None)
        self.cache: Cache = Cache(codec="raw", **given) if found is None else found

    def get_mutex(self, key: str) -> Any:
        """A lock of that key over all processes; None: dogpile's own, of this one."""
        if not self._locks:
            return None
        return _Mutex(self.cache, ("dogpile.mutex", key), self._lock_timeout)

    def get(self, key: str) -> Any:
        return self.cache.get(key, NO_VALUE)

    def get_multi(self, keys: Iterable[str]) -> list[Any]:
        keys = list(keys)
        found = self.cache.get_many(keys)
        return [found.get(key, NO_VALUE) for key in keys]

    def set(self, key: str, value: Any) -> None:
        self.cache.set(key, value, self._ttl)

    def set_multi(self, mapping: Mapping[str, Any]) -> None:
        values: dict[Any, Any] = dict(mapping)
        self.cache.set_many(values, self._ttl)

    def delete(self, key: str) -> None:
        self.cache.delete(key)

    def delete_multi(self, keys: Iterable[str]) -> None:
        self.cache.delete_many(keys)


def _read(codec: codecs.Codec, data: bytes) -> Any:
    try:
        return codecs.decoded(codec, data)
    except InvalidValue as error:
        raise CantDeserializeException(str(error)) from error  # the region computes it anew


class _Mutex(Lock):
    """With dogpile's argument."""

    def acquire(self, wait: bool = True) -> bool:  # type: ignore[override]
        return super().acquire(None if wait else 0)
