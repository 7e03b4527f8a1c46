"""Background work of a cache: see background.pyx."""
from libc.stdint cimport int64_t, uint32_t, uint64_t

from siltstone.cache.engine cimport CacheEngine
from siltstone.cache.flash cimport demotion_t
from siltstone.cache.shard cimport cache_t, group_t, shard_t

cdef class Background:
    cdef readonly CacheEngine engine
    cdef readonly object live_map
    cdef int stopping
    cdef bint leads
    cdef uint32_t free_low          # frames: below it room is made before a set needs it
    cdef int64_t flush_idle_ms
    cdef int64_t swept_ms           # when the last slice was swept
    cdef uint32_t sweep_shard       # where the next one begins
    cdef uint32_t sweep_group
    cdef uint64_t swept_forgotten   # segments forgotten before the last whole pass began
    cdef uint64_t pass_forgotten    # ... before this one began
    cdef demotion_t demotion        # of idle items
    cdef object _thread

    cdef void _loop(self) noexcept nogil
    cdef void _resign(self) noexcept nogil
    cdef bint _tick(self) noexcept nogil
    cdef bint _lead(self, cache_t *cache, int64_t now) noexcept nogil
    cdef bint _reclaim(self, cache_t *cache) noexcept nogil
    cdef void _sweep(self, cache_t *cache, int64_t now) noexcept nogil
    cdef bint _sweep_groups(self, cache_t *cache, int64_t now, uint32_t budget) noexcept nogil
    cdef void _demote_idle(self, cache_t *cache, shard_t *shard, group_t *group,
                           int64_t now) noexcept nogil
