"""One change of one key. See write.pyx."""
from libc.stdint cimport uint32_t, uint64_t

from siltstone.store.descent cimport path_t
from siltstone.store.pagecache cimport change_t, pages_t

cdef struct write_t:
    # In
    uint32_t root               # its id: for the count
    uint32_t page_size
    const char *key
    uint32_t key_size
    bint delete_                # else: set
    const char *payload         # the value, or a reference to a large one
    uint32_t payload_size
    uint32_t blob               # RECORD_BLOB or 0
    change_t *change            # with the pages of a large value; NULL: there are none
    # Where: by path_find() and node_search()
    path_t path
    uint32_t index
    bint found
    # Out
    bint done                   # something was committed
    uint64_t bytes              # what to wait for, after PAGES_WAIT
    uint32_t records

# Under the lock. PAGES_OK: committed, and the pages are in shape again. Else nothing was changed;
# PAGES_MISS: path.missing. A `change` that was given is abandoned only by a failed commit, and
# then zeroed (change.items == NULL).
cdef int tree_write(pages_t *pages, write_t *write) noexcept nogil
# Leaves that are too large, or small enough to go, are seen to. For who changed them by himself.
# PAGES_OK, or why it could not be done.
cdef int leaf_settle(pages_t *pages, path_t *path, uint32_t page_size, bint appended,
                     bint deleted) noexcept nogil
