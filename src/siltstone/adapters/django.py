"""Django's cache in a `siltstone.Cache`: threads and processes of one machine share a directory.

    CACHES = {"default": {
        "BACKEND": "siltstone.adapters.django.SiltstoneCache",
        "LOCATION": "/var/cache/shop",                      # a directory; "" keeps it in memory
        "OPTIONS": {"ram": "256MiB", "flash": "10GiB"},     # as of siltstone.Cache
    }}

The default codec takes plain data, and gives tuples back as lists. Whoever caches other objects
(models, QuerySets, whole responses) says OPTIONS = {"codec": "pickle"} and trusts the directory.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any, Final

from django.core.cache.backends.base import DEFAULT_TIMEOUT, BaseCache

from siltstone.cache.cache import Cache
from siltstone.errors import ConfigError

# Django makes a backend for each thread; those of one place share what is open.
_opened: Final[dict[str, tuple[dict[str, Any], Cache]]] = {}
_guard: Final = threading.Lock()


def _open(location: str, options: dict[str, Any]) -> Cache:
    with _guard:
        found = _opened.get(location)
        if found is None or found[1].closed:
            cache = Cache(location or None, **options)
            _opened[location] = options, cache
            return cache
        if found[0] != options:
            raise ConfigError(
                f"CACHES: two with the LOCATION {location!r} and different OPTIONS: "
                "use the same, or another directory"
            )
        return found[1]


class SiltstoneCache(BaseCache):  # type: ignore[misc]  # django has no types
    """A backend of `CACHES`. Values that expire, versions and key functions as Django's."""

    def __init__(self, location: str, params: dict[str, Any]) -> None:
        super().__init__(params)
        own = ("MAX_ENTRIES", "CULL_FREQUENCY")  # of Django's: sizes are in bytes here
        given: dict[str, Any] = params.get("OPTIONS", {})
        self._options = {name: value for name, value in given.items() if name not in own}
        self._location = str(location)

    @property
    def cache(self) -> Cache:
        """The `siltstone.Cache`, opened with the first use."""
        return _open(self._location, self._options)

    def _ttl(self, timeout: Any) -> Any:
        """Seconds; None: for ever."""
        return self.default_timeout if timeout is DEFAULT_TIMEOUT else timeout

    def get(self, key: str, default: Any = None, version: int | None = None) -> Any:
        return self.cache.get(self.make_and_validate_key(key, version), default)

    def set(
        self, key: str, value: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None
    ) -> None:
        self.cache.set(self.make_and_validate_key(key, version), value, self._ttl(timeout))

    def add(
        self, key: str, value: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None
    ) -> bool:
        return self.cache.add(self.make_and_validate_key(key, version), value, self._ttl(timeout))

    def touch(self, key: str, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> bool:
        return self.cache.touch(self.make_and_validate_key(key, version), self._ttl(timeout))

    def delete(self, key: str, version: int | None = None) -> bool:
        return self.cache.delete(self.make_and_validate_key(key, version))

    def get_many(self, keys: Iterable[str], version: int | None = None) -> dict[str, Any]:
        names = {self.make_and_validate_key(key, version): key for key in keys}
        return {names[key]: value for key, value in self.cache.get_many(names).items()}

    def has_key(self, key: str, version: int | None = None) -> bool:
        return self.make_and_validate_key(key, version) in self.cache

    def incr(self, key: str, delta: int = 1, version: int | None = None) -> int:
        """ValueError when nothing is there, as Django says."""
        try:
            return self.cache.incr(self.make_and_validate_key(key, version), delta)
        except KeyError:
            raise ValueError(f"Key {key!r} not found") from None

    def get_or_set(
        self,
        key: str,
        default: Any | Callable[[], Any],
        timeout: Any = DEFAULT_TIMEOUT,
        version: int | None = None,
    ) -> Any:
        """A callable `default` is called by one thread of one process, the others wait for it."""
        if not callable(default):
            return super().get_or_set(key, default, timeout, version)
        name = self.make_and_validate_key(key, version)
        return self.cache.get_or_set(name, default, self._ttl(timeout))

    def clear(self) -> None:
        """Everything in the directory, of every KEY_PREFIX."""
        self.cache.clear()
