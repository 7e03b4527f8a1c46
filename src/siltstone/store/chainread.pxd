"""Reading a page's records from the device and putting the page together again."""
from libc.stdint cimport uint32_t, uint64_t

from siltstone.store.state cimport pages_t, place_t

# The node that the records say. Without the lock. PAGES_OK, CORRUPT (*bad = the position),
# PAGES_LOG + ..., -ENOMEM.
cdef int chain_node(pages_t *pages, uint64_t pid, const place_t *places, uint32_t count,
                    char **node, uint64_t *bad) noexcept nogil
# For repair: the node as far as it can be read; NULL if nothing can. `spare` (or NULL, taken) is
# what changes are applied to when the base is lost. The positions that are lost, up to `most` of
# them, and their number. -ENOMEM is the only error.
cdef int chain_salvage(pages_t *pages, uint64_t pid, const place_t *places, uint32_t count,
                       char *spare, char **node, uint64_t *bad, uint32_t most,
                       uint32_t *lost) noexcept nogil
# An image that was cut into several KIND_TABLE records; malloc()ed.
cdef int table_image(pages_t *pages, uint64_t block, const place_t *places, uint32_t count,
                     char **image, uint64_t *size, uint64_t *bad) noexcept nogil
