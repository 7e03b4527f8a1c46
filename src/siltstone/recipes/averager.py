"""A running average in a cache, over threads and processes."""

from __future__ import annotations

import struct
from typing import Final

from siltstone.cache.cache import TTL, Cache
from siltstone.codecs import Key

STATE: Final = struct.Struct("<dQ")  # total, how many


class Averager:
    """The mean of what was added; `expire` (seconds) counts from the last addition."""

    def __init__(self, cache: Cache, key: Key, expire: TTL = None, tag: str | None = None) -> None:
        self._cache, self._key, self._expire, self._tag = cache, key, expire, tag

    def _state(self) -> tuple[float, int, int | None]:
        value, token = self._cache.get_with_token(self._key)
        if not isinstance(value, bytes) or len(value) != STATE.size:
            return 0.0, 0, token
        total, count = STATE.unpack(value)
        return total, count, token

    def add(self, value: float) -> None:
        """One more value."""
        while True:
            total, count, token = self._state()
            state = STATE.pack(total + value, count + 1)
            if self._cache.compare_and_set(self._key, state, token, self._expire, self._tag):
                return

    def get(self) -> float | None:
        """The mean; None when nothing was added."""
        total, count, _ = self._state()
        return total / count if count else None

    def pop(self) -> float | None:
        """The mean, and begin anew."""
        while True:
            total, count, token = self._state()
            if token is None or self._cache.compare_and_delete(self._key, token):
                return total / count if count else None
