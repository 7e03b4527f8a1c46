from siltstone.log.arena import Arena

def geometry(limit_bytes: int) -> tuple[int, int]: ...
def cache_section_bytes(shards: int) -> int: ...

class CacheEngine:
    arena: Arena
    log: object
    def __init__(
        self, arena: Arena, shards: int, log: object | None = None, fresh: bool = True
    ) -> None: ...
    def configure(
        self,
        *,
        item_size_max: int | None = None,
        item_age_s: int | None = None,
        low_ttl_s: int | None = None,
        recache_rate: int | None = None,
        evict: bool | None = None,
        cas: bool | None = None,
        drop_unread: bool | None = None,
        item_size_min: int | None = None,
    ) -> None: ...
    def flush_at(self, due_ms: int) -> None: ...
    @property
    def recache_rate(self) -> int: ...
    def counters(self) -> list[int]: ...
    def totals(self) -> dict[str, int]: ...
