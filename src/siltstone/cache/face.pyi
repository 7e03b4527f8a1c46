from typing import Any

from siltstone.cache.engine import CacheEngine
from siltstone.codecs import Codec, Key

class Change:
    SET: int
    ADD: int
    REPLACE: int
    APPEND: int
    PREPEND: int
    DELETE: int
    INCR: int
    DECR: int
    TOUCH: int
    META_GET: int
    CAS: int
    KEEP_TTL: int
    WANT_VALUE: int
    VIVIFY: int
    NO_WRAP: int
    OK: int
    MISS: int
    NOT_STORED: int
    EXISTS: int
    NOT_NUMBER: int

def raise_for(status: int, key: Key | None = None) -> None: ...

class Face:
    engine: CacheEngine
    def __init__(self, *args: Any, **options: Any) -> None: ...
    @property
    def closed(self) -> bool: ...
    def _bind(self, engine: CacheEngine, codec: Codec) -> None: ...
    def _unbind(self) -> None: ...
    def _sleep(self) -> None: ...
    def _wake(self) -> None: ...
    def get(self, key: Key, default: Any = None) -> Any: ...
    def _get_now(self, key: Key, default: Any, later: Any) -> Any: ...
    def __getitem__(self, key: Key, /) -> Any: ...
    def __contains__(self, key: object, /) -> bool: ...
    def __setitem__(self, key: Key, value: Any, /) -> None: ...
    def __delitem__(self, key: Key, /) -> None: ...
    def _get_meta(self, key: Key) -> tuple[bytes, int, int, int, bool] | None: ...
    def _change(
        self,
        op: int,
        key: Key,
        data: bytes = b"",
        flags: int = 0,
        expire_ms: int = 0,
        options: int = 0,
        cas: int = 0,
        delta: int = 0,
        initial: int = 0,
        tag: int = 0,
    ) -> tuple[int, int, int, bytes | None, int]: ...
