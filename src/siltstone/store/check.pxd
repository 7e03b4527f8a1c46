"""Checks of the whole page cache: table against log and memory, pages against the device."""
from libc.stdint cimport int64_t, uint32_t, uint64_t

from siltstone.store.state cimport pages_t

cdef enum check_t:
    CHECK_OK = 0
    CHECK_LOST = 1          # a place in a segment that is not there: number = pid or block
    CHECK_LIVE = 2          # live bytes of a segment are not the sum: number = slot
    CHECK_COUNTS = 3        # what is counted in memory is not what is there

# With all blocks in memory and no change set open. Under the lock.
cdef int table_check(pages_t *pages, uint64_t *number, uint64_t *expected,
                     uint64_t *found) noexcept nogil
# Read a page from the device as if it was not in memory. Without the lock. OK, ABSENT, CORRUPT,
# PAGES_LOG + ...; *bad = position, *records and *bytes = what was read.
cdef int page_check(pages_t *pages, uint64_t pid, uint64_t *bad, uint32_t *records,
                    uint64_t *bytes) noexcept nogil
