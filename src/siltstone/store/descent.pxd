"""From a tree's root to a leaf, under the lock of the pages. See descent.pyx."""
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from siltstone.log.atomics cimport prefetch
from siltstone.store.hints cimport hint_record
from siltstone.store.page cimport PAGE_INNER, PAGE_LEAF, node_child, node_descend, node_t
from siltstone.store.pagecache cimport pages_t, page_node, snapshot_t

cdef enum:
    DEPTH_MAX = 24              # 2 children a page at the very least: more pages than pids
    TREE_BROKEN = 50            # beside pages_result_t: a page is not what its parent says

cdef enum seek_t:
    SEEK_AT = 0                 # the leaf that holds the key, or would
    SEEK_BELOW = 1              # the leaf that holds the largest possible key below it
    SEEK_LAST = 2

cdef struct path_t:
    uint32_t depth              # pages on it; the leaf is the last
    uint64_t pids[DEPTH_MAX]
    uint32_t indexes[DEPTH_MAX] # of the child taken
    node_t *nodes[DEPTH_MAX]    # until anything changes
    uint64_t missing            # what to load after PAGES_MISS
    uint64_t stamp              # of the leaf

# PAGES_OK, MISS, ABSENT, TOO_OLD, TREE_BROKEN. `snapshot` NULL: the present.
cdef int path_find(pages_t *pages, uint64_t root, seek_t seek, const char *key, uint32_t size,
                   const snapshot_t *snapshot, bint scan, path_t *path) noexcept nogil

# As path_find(), at the key and at present, but the leaf is only named: its node is NULL if it is
# not in memory, and nobody has looked at it. For who goes on to other leaves before this one.
cdef int path_near(pages_t *pages, uint64_t root, const char *key, uint32_t size,
                   path_t *path) noexcept nogil

# The present path to the inner page of `level` below which `key` belongs, which is its last node.
cdef int path_inner(pages_t *pages, uint64_t root, uint8_t level, const char *key, uint32_t size,
                    path_t *path) noexcept nogil

cdef inline node_t *path_leaf(const path_t *path) noexcept nogil:
    return path.nodes[path.depth - 1]

cdef inline uint64_t path_pid(const path_t *path) noexcept nogil:
    return path.pids[path.depth - 1]

# The level of the inner page whose next entry (or the one taken) bounds the leaf from above (from
# below), or -1: nothing does.
cdef int path_upper(const path_t *path) noexcept nogil
cdef int path_lower(const path_t *path) noexcept nogil
# Up to `room` pids of leaves beside this one, in the direction of a scan, under the same parent.
cdef uint32_t path_ahead(const path_t *path, bint reverse, uint64_t *pids,
                         uint32_t room) noexcept nogil

# A node's first lines at once, not one after the other: what a search waits for is memory.
cdef inline void node_fetch(const node_t *node) noexcept nogil:
    prefetch(node)
    prefetch(<const char *>node + 64)
    prefetch(<const char *>node + 128)
    prefetch(<const char *>node + 192)

# The present leaf that holds `key`, as short as it can be said. NULL: *missing has to be loaded,
# or path_find() says what is wrong. `hint`: where in the leaf the record may be, or NULL.
cdef inline node_t *leaf_find(pages_t *pages, uint64_t pid, const char *key, uint32_t size,
                              const uint8_t *hint, uint64_t *missing) noexcept nogil:
    cdef node_t *node
    cdef uint32_t depth
    cdef uint8_t level = 0              # of the page above
    cdef const char *record
    for depth in range(DEPTH_MAX):
        node = <node_t *>page_node(pages, pid, False)
        node_fetch(node)
        if level == 1 and hint != NULL:
            record = hint_record(hint, node)
            prefetch(record)
            prefetch(record + 64)
            prefetch(record + 128)
        if node == NULL or node.kind != PAGE_INNER:
            missing[0] = pid
            return node if node != NULL and node.kind == PAGE_LEAF else NULL
        pid, level = node_child(node, node_descend(node, key, size)), node.level
    missing[0] = pid
    return NULL
