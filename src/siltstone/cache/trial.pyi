from typing import Any

from siltstone.cache.engine import CacheEngine

class Options:
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
    CAS_NEW: int
    TOUCH_TTL: int
    VIVIFY: int
    WIN: int
    INVALIDATE: int
    DROP_VALUE: int
    NO_BUMP: int
    KEEP_TTL: int
    WANT_VALUE: int
    TAG: int
    OK: int
    MISS: int
    NOT_STORED: int
    EXISTS: int
    TOO_LARGE: int
    NO_MEMORY: int
    NOT_NUMBER: int

def execute(
    engine: CacheEngine,
    op: int,
    key: bytes,
    value: bytes = b"",
    *,
    options: int = 0,
    client_flags: int = 0,
    expire_ms: int = 0,
    cas: int = 0,
    cas_new: int = 0,
    delta: int = 0,
    initial: int = 0,
    vivify_expire_ms: int = 0,
    win_below_ms: int = 0,
    tag: int = 0,
) -> tuple[int, dict[str, Any]]: ...
def find(
    engine: CacheEngine, key: bytes, no_bump: bool = False
) -> tuple[bytes, dict[str, Any]] | None: ...
def spoil(engine: CacheEngine, place: int, word: int) -> None: ...
def enter_shards(engine: CacheEngine) -> None: ...
def leave_shards(engine: CacheEngine) -> None: ...
def enter_stream(engine: CacheEngine, stream: int) -> None: ...
def leave_stream(engine: CacheEngine, stream: int) -> None: ...

class Board:
    def __init__(self, engine: CacheEngine, keys: int, threads: int) -> None: ...
    def pound(
        self, thread: int, seed: int, operations: int, size_max: int, *, reads: int = 60
    ) -> dict[str, int]: ...
