"""From a tree's root to a leaf: which pages, which children, and what bounds the leaf.

A tree is pages of two kinds: inner ones with child pids, and leaves. All leaves have level 0, each
inner page is one level above its children, and the root's pid stays the same for the tree's life.
There are no links between leaves: who goes on to the next one descends again with the key that
bounds this one. Nothing here waits, reads a device or changes anything.
"""
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from siltstone.log.atomics cimport prefetch
from siltstone.store.page cimport (PAGE_INNER, PAGE_LEAF, node_child, node_descend, node_search,
                                   node_t)
from siltstone.store.pagecache cimport (PAGES_ABSENT, PAGES_OK, page_entry, page_get, page_node,
                                        pages_t, snapshot_t)


cdef inline uint32_t _child(const node_t *node, seek_t seek, const char *key,
                            uint32_t size) noexcept nogil:
    cdef bint found
    if seek == SEEK_AT:
        return node_descend(node, key, size)
    if seek == SEEK_LAST:
        return node.count - 1
    return node_search(node, key, size, &found) - 1


cdef int path_inner(pages_t *pages, uint64_t root, uint8_t level, const char *key, uint32_t size,
                    path_t *path) noexcept nogil:
    cdef uint64_t pid = root
    cdef node_t *node = NULL
    cdef uint32_t depth, expected = 0
    cdef int result
    for depth in range(DEPTH_MAX):
        path.pids[depth] = path.missing = pid
        path.depth = depth + 1
        node = <node_t *>page_node(pages, pid, False)
        if node == NULL:
            result = page_get(pages, pid, NULL, False, <char **>&node, NULL)
            if result != PAGES_OK:
                return TREE_BROKEN if result == PAGES_ABSENT and depth else result
        path.nodes[depth] = node
        if node.kind != PAGE_INNER or node.level < level or (depth and node.level != expected):
            return TREE_BROKEN
        if node.level == level:
            return PAGES_OK
        path.indexes[depth] = node_descend(node, key, size)
        pid, expected = node_child(node, path.indexes[depth]), node.level - 1
    return TREE_BROKEN


cdef int path_near(pages_t *pages, uint64_t root, const char *key, uint32_t size,
                   path_t *path) noexcept nogil:
    cdef node_t *node = <node_t *>page_node(pages, root, True)
    cdef uint32_t depth = 0
    cdef int result
    path.pids[0], path.depth = root, 1
    if node == NULL or node.kind != PAGE_LEAF:
        result = path_inner(pages, root, 1, key, size, path)
        if result != PAGES_OK:
            return result
        if path.depth == DEPTH_MAX:
            return TREE_BROKEN
        node, depth = path.nodes[path.depth - 1], path.depth
        path.indexes[depth - 1] = node_descend(node, key, size)
        path.pids[depth] = node_child(node, path.indexes[depth - 1])
        path.depth = depth + 1
    path.nodes[depth] = <node_t *>page_node(pages, path.pids[depth], False)
    return PAGES_OK


cdef int path_find(pages_t *pages, uint64_t root, seek_t seek, const char *key, uint32_t size,
                   const snapshot_t *snapshot, bint scan, path_t *path) noexcept nogil:
    cdef uint64_t pid = root
    cdef node_t *node = NULL
    cdef node_t *above = NULL
    cdef uint32_t depth
    cdef bint last = False
    cdef int result
    for depth in range(DEPTH_MAX):
        path.pids[depth] = pid
        path.missing = pid
        path.depth = depth + 1
        node = NULL
        if snapshot == NULL:
            # a leaf's entry, which tells its stamp, comes together with the leaf, not before it
            if last:
                prefetch(page_entry(pages, pid))
                prefetch(<const char *>page_entry(pages, pid) + 64)
            node = <node_t *>page_node(pages, pid, scan and last)
        if node == NULL:
            # inner pages are hot whoever comes by
            result = page_get(pages, pid, snapshot, scan and last, <char **>&node, &path.stamp)
            if result != PAGES_OK:
                # what a parent names is there: at the root, the tree was dropped meanwhile
                return TREE_BROKEN if result == PAGES_ABSENT and above != NULL else result
        node_fetch(node)
        path.nodes[depth] = node
        if above != NULL and node.level + 1 != above.level:
            return TREE_BROKEN
        if node.kind == PAGE_LEAF:
            if snapshot == NULL:
                path.stamp = page_entry(pages, pid).stamp
            return PAGES_OK
        if node.kind != PAGE_INNER:
            return TREE_BROKEN
        path.indexes[depth] = _child(node, seek, key, size)
        pid = node_child(node, path.indexes[depth])
        above, last = node, node.level == 1
    return TREE_BROKEN


cdef int path_upper(const path_t *path) noexcept nogil:
    cdef int depth = <int>path.depth - 2
    while depth >= 0:
        if path.indexes[depth] + 1 < path.nodes[depth].count:
            return depth
        depth -= 1
    return -1


cdef int path_lower(const path_t *path) noexcept nogil:
    cdef int depth = <int>path.depth - 2
    while depth >= 0:
        if path.indexes[depth] > 0:
            return depth
        depth -= 1
    return -1


cdef uint32_t path_ahead(const path_t *path, bint reverse, uint64_t *pids,
                         uint32_t room) noexcept nogil:
    cdef const node_t *parent
    cdef uint32_t count = 0, index
    if path.depth < 2:
        return 0
    # after PAGES_MISS of the leaf itself its parent is the last node that was reached
    parent = path.nodes[path.depth - 2]
    index = path.indexes[path.depth - 2]
    while count < room and parent.level == 1:
        if reverse:
            if index == 0:
                break
            index -= 1
        else:
            index += 1
            if index >= parent.count:
                break
        pids[count] = node_child(parent, index)
        count += 1
    return count
