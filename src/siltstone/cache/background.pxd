"""Background work of a cache: see background.pyx."""
from libc.stdint cimport int64_t, uint32_t, uint64_t

from siltstone.cache.engine cimport CacheEngine
from siltstone.cache.shard cimport cache_t

cdef class Background:
    cdef readonly CacheEngine engine
    cdef readonly object live_map
    cdef int stopping
    cdef bint leads
    cdef uint32_t free_low          # frames: below it room is made before a set needs it
    cdef public uint32_t compact_under
    cdef public double max_fragmentation
    cdef public bint drop_unread
    cdef public uint32_t drop_under
    cdef int64_t flush_idle_ms
    cdef object _thread

    cdef void _loop(self) noexcept nogil
    cdef bint _tick(self) noexcept nogil
    cdef bint _lead(self, cache_t *cache, int64_t now) noexcept nogil
