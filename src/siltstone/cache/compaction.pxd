"""Reclaiming flash: compaction, and forgetting the oldest segment. Outside every lock."""
from libc.stdint cimport uint32_t

from siltstone.cache.shard cimport cache_t

cdef enum compact_t:
    COMPACT_NOTHING = 0         # no segment is worth it
    COMPACT_WORKED = 1          # a slice of work was done
    COMPACT_FREED = 2           # a segment became free
    COMPACT_ELSEWHERE = 3       # another thread of this process is at it
    COMPACT_BUSY = 4            # a lock was not had in time: its holder is stopped, perhaps
    COMPACT_WAITED = 5          # no buffer became free in some milliseconds: others write

# One slice of compaction: some hundred records, or the choice of a segment and its reading.
cdef int compact_slice(cache_t *cache) noexcept nogil
# After LOG_NO_SEGMENT: compact until a segment is free, else forget the oldest. 0: neither; -1: a
# lock or all buffers are held by somebody who does not go on.
cdef int reclaim(cache_t *cache) noexcept nogil
cdef bint forget_oldest(cache_t *cache) noexcept nogil
# Free segments below which the leader makes more, so that nobody else has to.
cdef uint32_t segments_ahead(cache_t *cache) noexcept nogil
# Once a process.
cdef bint compaction_open(cache_t *cache) noexcept nogil
cdef void compaction_close(cache_t *cache) noexcept nogil
