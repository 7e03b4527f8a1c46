"""Pages that become several, and what that means for the pages above them. See growth.pyx."""
from libc.stdint cimport uint32_t, uint64_t

from siltstone.store.edits cimport edit_t
from siltstone.store.page cimport node_t
from siltstone.store.pagecache cimport change_t

cdef struct sprout_t:           # a page that is new
    uint64_t pid
    uint64_t key_at             # of the smallest key that belongs there
    uint32_t key_size

cdef struct sprouts_t:          # of one level, by key; zero it before its first use
    sprout_t *list
    uint64_t count
    uint64_t capacity
    char *keys
    uint64_t key_bytes
    uint64_t key_capacity

cdef void sprouts_free(sprouts_t *sprouts) noexcept nogil

# What a page that is no root becomes, as items of `change`: `node`, which stays as it is, with the
# edits made, cut into pages. The first keeps `pid`, the others are noted in `sprouts`.
# `appended`: keys come in at its end, so the left pages are filled.
# `locked`: the caller holds the lock of the pages; else it is taken now and then.
cdef int page_grow(change_t *change, uint64_t pid, const node_t *node, const edit_t *edits,
                   uint64_t count, uint32_t page_size, bint appended, bint locked,
                   sprouts_t *sprouts) noexcept nogil
# The same for a tree's root, which moves into new pages and stays what is above them.
cdef int root_grow(change_t *change, uint64_t root, const node_t *node, const edit_t *edits,
                   uint64_t count, uint32_t page_size, bint appended, bint locked) noexcept nogil
# Under the lock: put `sprouts`, new leaves of the tree, into the pages above. Nothing in the tree
# may have changed since its leaves were looked at. PAGES_MISS: *missing; then give back what was
# added to the change and try again. `sprouts` stays as it is.
cdef int parents_grow(change_t *change, uint64_t root, const sprouts_t *sprouts,
                      uint32_t page_size, uint64_t *missing) noexcept nogil
