"""Moving pages out of sparse segments, so that those can be used again. See cleaning.pyx."""
from libc.stdint cimport int64_t, uint32_t, uint64_t

from siltstone.store.state cimport pages_t

cdef struct space_t:
    uint64_t segment_bytes
    uint64_t segments           # with a version, the open one included
    uint64_t live_bytes
    uint64_t empty              # of them: without live bytes, waiting for checkpoints

cdef void space_take(pages_t *pages, space_t *space) noexcept nogil
# The sealed segment that is best moved: slot and version; -1: none is less than `below` (of 1000)
# full of live bytes and of a version below `before` (what was just moved is not moved again).
cdef int64_t space_victim(pages_t *pages, uint32_t below, uint64_t before,
                          uint64_t *version) noexcept nogil
# Move what lives in it. Without the lock. OK; PAGES_CORRUPT: some of it cannot be read, and the
# segment is pinned, never to be looked at again; PAGES_WAIT: an open group has records there.
cdef int segment_clean(pages_t *pages, uint32_t slot, uint64_t version) noexcept nogil
