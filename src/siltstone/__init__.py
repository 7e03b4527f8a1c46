"""siltstone: Python data that outgrows RAM, kept on local flash."""

from siltstone import errors
from siltstone.cache.cache import Cache

__version__ = "0.1.0"
__all__ = ["Cache", "__version__", "errors"]
