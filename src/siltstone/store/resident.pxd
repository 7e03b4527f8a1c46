"""What is in memory: asking for pages, bringing them in, and what goes when memory is short."""
from libc.stdint cimport uint32_t, uint64_t

from siltstone.store.state cimport entry_t, pages_t, snapshot_t

cdef int page_get(pages_t *pages, uint64_t pid, const snapshot_t *snapshot, bint scan, char **node,
                  uint64_t *stamp) noexcept nogil
cdef int pages_load(pages_t *pages, uint64_t pid, const snapshot_t *snapshot) noexcept nogil
cdef void pages_load_many(pages_t *pages, const uint64_t *pids, uint32_t count,
                          const snapshot_t *snapshot) noexcept nogil
cdef void pages_evict(pages_t *pages) noexcept nogil
# The table block of a pid, without the page. Without the lock.
cdef int block_load(pages_t *pages, uint64_t number) noexcept nogil
# What recovery left for later is done: blocks are read, changed, saved and dropped one by one.
cdef int blocks_settle(pages_t *pages) noexcept nogil

# Under the lock. The entry's node becomes `node` (may be NULL); the one before is released.
cdef void entry_set_node(pages_t *pages, uint64_t pid, entry_t *entry, char *node) noexcept nogil
# After page_writable(): it moved or grew, count it anew.
cdef void page_resized(pages_t *pages, uint64_t pid, char *node) noexcept nogil
