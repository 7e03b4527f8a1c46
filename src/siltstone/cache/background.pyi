from siltstone.cache.engine import CacheEngine
from siltstone.log.livemap import LiveMap

class Background:
    engine: CacheEngine
    live_map: LiveMap | None
    compact_under: int
    drop_under: int
    drop_unread: bool
    max_fragmentation: float
    def __init__(
        self,
        engine: CacheEngine,
        *,
        live_map: LiveMap | None = None,
        lock_descriptor: int = -1,
        compact_under: int = 1,
        max_fragmentation: float = 0.8,
        drop_unread: bool = False,
        drop_under: int = 1,
        flush_idle_ms: int = 1000,
    ) -> None: ...
    def start(self) -> None: ...
    def stop(self) -> None: ...
    def after_fork(self) -> None: ...
    def tick(self) -> bool: ...
