"""The engines for asyncio: the names of `siltstone.Cache` and `siltstone.Store`, awaitable."""

from siltstone.aio.cache import Cache
from siltstone.aio.store import Store

__all__ = ["Cache", "Store"]
