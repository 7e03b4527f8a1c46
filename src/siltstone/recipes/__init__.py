"""Ready-made parts on a `Cache` or a `Store`, with diskcache's names and meaning.

On a cache, over threads and processes: Lock, RLock, BoundedSemaphore, barrier, throttle, Averager,
memoize_stampede. On a store, so that nothing is ever evicted: Deque, Index.
"""

from siltstone.recipes.averager import Averager
from siltstone.recipes.deque import Deque
from siltstone.recipes.index import Index
from siltstone.recipes.locks import BoundedSemaphore, Lock, RLock, barrier
from siltstone.recipes.stampede import memoize_stampede
from siltstone.recipes.throttle import throttle

__all__ = [
    "Averager",
    "BoundedSemaphore",
    "Deque",
    "Index",
    "Lock",
    "RLock",
    "barrier",
    "memoize_stampede",
    "throttle",
]
