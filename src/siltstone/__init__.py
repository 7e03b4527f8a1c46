"""siltstone: Python data that outgrows RAM, kept on local flash."""

from typing import TYPE_CHECKING, Any

from siltstone import errors
from siltstone.cache.cache import Cache
from siltstone.store.store import Store

if TYPE_CHECKING:
    from siltstone.metrics.metrics import Metrics
    from siltstone.store.pages import PageCache

__version__ = "0.1.0"
__all__ = ["Cache", "Metrics", "PageCache", "Store", "__version__", "errors"]


def __getattr__(name: str) -> Any:
    """Engines come with their first use: who wants a cache pays for no other."""
    if name == "PageCache":
        from siltstone.store.pages import PageCache

        return PageCache
    if name == "Metrics":
        try:
            from siltstone.metrics.metrics import Metrics
        except ModuleNotFoundError as error:
            raise ImportError(
                f"Metrics needs the package {error.name}: pip install 'siltstone[metrics]'"
            ) from error
        return Metrics
    raise AttributeError(f"module 'siltstone' has no attribute {name!r}")
