"""siltstone: Python data that outgrows RAM, kept on local flash."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from siltstone import errors

if TYPE_CHECKING:
    from siltstone.cache.cache import Cache
    from siltstone.metrics.metrics import Metrics
    from siltstone.store.pages import PageCache
    from siltstone.store.store import Store

__version__ = "0.1.0"
__all__ = ["Cache", "Metrics", "PageCache", "Store", "__version__", "errors"]

_ENGINES = {
    "Cache": "siltstone.cache.cache",
    "Metrics": "siltstone.metrics.metrics",
    "PageCache": "siltstone.store.pages",
    "Store": "siltstone.store.store",
}


def __getattr__(name: str) -> Any:
    """Engines come with their first use: who wants one pays for no other."""
    module = _ENGINES.get(name)
    if module is None:
        raise AttributeError(f"module 'siltstone' has no attribute {name!r}")
    try:
        found = getattr(import_module(module), name)
    except ModuleNotFoundError as error:
        if name != "Metrics":
            raise
        raise ImportError(
            f"Metrics needs the package {error.name}: pip install 'siltstone[metrics]'"
        ) from error
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
