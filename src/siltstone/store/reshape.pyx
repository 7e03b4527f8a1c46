"""How a tree keeps its shape: pages that grew are split, pages that shrank are joined or go.

Each step is a commit of its own that changes what no reader sees: the keys are the same before and
after. It follows the change that made it necessary in the same hold of the lock. If it cannot be
done then (no room in the log, a neighbour is not in memory), the page stays too large or too small
until its next change; only speed suffers.

How pages split is growth.pyx's. A root with one child becomes that child: its pid never changes.
"""
from libc.errno cimport ENOMEM
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset

from siltstone.log.log cimport part_t
from siltstone.store.image cimport fragment_add, fragment_free, fragment_t
from siltstone.store.blob cimport blob_free
from siltstone.store.descent cimport SEEK_AT, TREE_BROKEN, path_find, path_leaf, path_pid, path_t
from siltstone.store.growth cimport (page_grow, parents_grow, root_grow, sprouts_free,
                                     sprouts_t)
from siltstone.store.page cimport (CHANGE_DELETE, CHANGE_SET, KEY_SIZE_MAX, PAGE_INNER, PAGE_LEAF,
                                   PAGE_OK, PID_SIZE, RECORD_BLOB, WORD_SIZE, node_child,
                                   node_copy, node_free, node_image_size, node_join, node_key,
                                   node_new, node_record, node_t, record_word, word_key_size,
                                   word_payload_size)
from siltstone.store.pagecache cimport (PAGES_LARGE, PAGES_MISS, PAGES_OK, change_abandon,
                                        change_base, change_begin, change_commit, change_free,
                                        change_link, change_needs, change_t, entry_t, page_entry,
                                        pages_ready, pages_t)

cdef struct work_t:             # of one step
    change_t change
    fragment_t fragment         # for the parent
    char key[KEY_SIZE_MAX]


cdef inline node_t *_node(pages_t *pages, uint64_t pid) noexcept nogil:
    cdef entry_t *entry = page_entry(pages, pid)
    return <node_t *>entry.node if entry != NULL else NULL


cdef void _begin(work_t *work, pages_t *pages) noexcept nogil:
    change_begin(&work.change, pages)
    memset(&work.fragment, 0, sizeof(fragment_t))


cdef int _link(work_t *work, uint64_t pid) noexcept nogil:
    # The fragment that was gathered, as a link of `pid`.
    cdef part_t part
    part.data, part.size = work.fragment.data, work.fragment.size
    work.fragment.size = 0
    return change_link(&work.change, pid, &part, 1)


cdef int _finish(work_t *work, pages_t *pages, int result) noexcept nogil:
    # Commit, unless something went wrong before.
    cdef uint64_t bytes = 0
    cdef uint32_t records = 0
    if result == PAGES_OK:
        change_needs(&work.change, &bytes, &records)
        result = pages_ready(pages, bytes, records)
        if result == PAGES_LARGE:
            result = PAGES_OK           # nothing but the log's own waiting can help
    if result == PAGES_OK:
        result = change_commit(&work.change)
    else:
        change_abandon(&work.change)
    fragment_free(&work.fragment)
    return result


cdef int _base(work_t *work, uint64_t pid, node_t *node) noexcept nogil:
    cdef int result
    if node == NULL:
        return -ENOMEM
    result = change_base(&work.change, pid, <char *>node)
    if result != PAGES_OK:
        node_free(node)
    return result


# Splitting --------------------------------------------------------------------------------------

cdef int _split(pages_t *pages, path_t *path, uint32_t page_size, bint appended) noexcept nogil:
    # The leaf, and whatever above it has no room for what comes of that.
    cdef work_t work
    cdef sprouts_t sprouts
    cdef const node_t *leaf = path_leaf(path)
    cdef int result
    _begin(&work, pages)
    memset(&sprouts, 0, sizeof(sprouts_t))
    if path.depth == 1:
        result = root_grow(&work.change, path.pids[0], leaf, NULL, 0, page_size, appended, True)
    else:
        result = page_grow(&work.change, path_pid(path), leaf, NULL, 0, page_size, appended, True,
                           &sprouts)
    if result == PAGES_OK:
        result = parents_grow(&work.change, path.pids[0], &sprouts, page_size, &path.missing)
    sprouts_free(&sprouts)
    return _finish(&work, pages, result)


cdef int _free_blobs(work_t *work, const node_t *leaf, uint64_t *missing) noexcept nogil:
    # The pages of large values that a leaf refers to.
    cdef uint32_t index, word
    cdef const char *record
    cdef int result = PAGES_OK
    for index in range(leaf.count):
        record = node_record(leaf, index)
        word = record_word(record)
        if result == PAGES_OK and word & RECORD_BLOB():
            result = blob_free(&work.change, record + WORD_SIZE + word_key_size(word),
                               word_payload_size(word), missing)
    return result


# Joining ----------------------------------------------------------------------------------------

cdef int _drop_entry(work_t *work, const node_t *parent, uint64_t pid,
                     uint32_t index) noexcept nogil:
    # Child `index` of an inner page that has others goes.
    cdef uint32_t gone = index if index > 0 else 1, size = node_key(parent, gone, work.key)
    cdef uint64_t child
    cdef int result = PAGE_OK
    if index == 0:
        child = node_child(parent, 1)
        result = fragment_add(&work.fragment, CHANGE_SET, NULL, 0, <char *>&child, PID_SIZE, 0)
    if result == PAGE_OK:
        result = fragment_add(&work.fragment, CHANGE_DELETE, work.key, size, NULL, 0, 0)
    return _link(work, pid) if result == PAGE_OK else -ENOMEM


cdef int _remove(pages_t *pages, path_t *path, uint32_t depth, uint32_t *at) noexcept nogil:
    # A leaf goes, and parents that have no other child; *at: who lost an entry.
    cdef work_t work
    cdef node_t *node
    cdef uint32_t above = depth - 1, number
    cdef int result
    while above > 0 and _node(pages, path.pids[above]).count == 1:
        above -= 1
    node = _node(pages, path.pids[above])
    _begin(&work, pages)
    result = _free_blobs(&work, _node(pages, path.pids[depth]), &path.missing)
    if result != PAGES_OK:
        pass
    elif node.count == 1:
        result = _base(&work, path.pids[0], node_new(PAGE_LEAF, 0, 0))
    else:
        result = _drop_entry(&work, node, path.pids[above], path.indexes[above])
    for number in range(above + 1, depth + 1):
        if result == PAGES_OK:
            result = change_free(&work.change, path.pids[number])
    at[0] = above
    return _finish(&work, pages, result)


cdef int _join(pages_t *pages, path_t *path, uint32_t depth, uint32_t page_size,
               bint *joined) noexcept nogil:
    # With a neighbour under the same parent, if both are small enough together.
    cdef work_t work
    cdef node_t *parent = _node(pages, path.pids[depth - 1])
    cdef node_t *node = _node(pages, path.pids[depth])
    cdef node_t *other = NULL
    cdef uint32_t index = path.indexes[depth - 1], size
    cdef uint64_t pid = path.pids[depth], beside = 0
    cdef int result
    joined[0] = False
    if index + 1 < parent.count:
        beside = node_child(parent, index + 1)
        other = _node(pages, beside)
        index += 1
    if other == NULL or node_image_size(node) + node_image_size(other) > page_size // 4 * 3:
        index = path.indexes[depth - 1]
        if index == 0:
            return PAGES_OK
        beside, pid = pid, node_child(parent, index - 1)
        other, node = node, _node(pages, pid)
    if node == NULL or node_image_size(node) + node_image_size(other) > page_size // 4 * 3:
        return PAGES_OK
    if node.level != other.level:
        return TREE_BROKEN
    _begin(&work, pages)
    size = node_key(parent, index, work.key)
    result = _base(&work, pid, node_join(node, other, work.key, size))
    if result == PAGES_OK:
        result = change_free(&work.change, beside)
    if result == PAGES_OK:
        result = _drop_entry(&work, parent, path.pids[depth - 1], index)
    result = _finish(&work, pages, result)
    joined[0] = result == PAGES_OK
    return result


cdef int _collapse(pages_t *pages, uint64_t root) noexcept nogil:
    cdef work_t work
    cdef node_t *node = _node(pages, root)
    cdef node_t *child
    cdef uint64_t pid
    cdef int result = PAGES_OK
    while result == PAGES_OK and node != NULL and node.kind == PAGE_INNER and node.count == 1:
        pid = node_child(node, 0)
        child = _node(pages, pid)
        if child == NULL:
            break
        _begin(&work, pages)
        result = _base(&work, root, node_copy(child))
        if result == PAGES_OK:
            result = change_free(&work.change, pid)
        result = _finish(&work, pages, result)
        node = _node(pages, root)
    return result


# All together -----------------------------------------------------------------------------------

cdef int _shrink(pages_t *pages, path_t *path, uint32_t *depth, uint32_t page_size,
                 bint *changed) noexcept nogil:
    cdef node_t *node = _node(pages, path.pids[depth[0]])
    cdef int result
    changed[0] = False
    if node.count == 0:
        result = _remove(pages, path, depth[0], depth)
        changed[0] = result == PAGES_OK
        depth[0] += 1           # the caller goes on with the one above
        return result
    return _join(pages, path, depth[0], page_size, changed)


cdef int tree_reshape(pages_t *pages, path_t *path, uint32_t page_size,
                      bint appended) noexcept nogil:
    cdef uint32_t depth = path.depth - 1
    cdef node_t *node = _node(pages, path.pids[depth])
    cdef bint changed = True
    cdef int result = PAGES_OK
    if node == NULL:
        return PAGES_MISS
    if node_image_size(node) > page_size:
        path.nodes[depth] = node
        return _split(pages, path, page_size, appended) if node.count > 1 else PAGES_OK
    while result == PAGES_OK and changed and depth > 0:
        node = _node(pages, path.pids[depth])
        if node == NULL:
            return PAGES_MISS
        changed = False
        if node_image_size(node) < page_size // 4 or node.count == 0:
            result = _shrink(pages, path, &depth, page_size, &changed)
        depth -= 1
    if result == PAGES_OK:
        node = _node(pages, path.pids[0])
        if node != NULL and node.kind == PAGE_INNER and node.count == 1:
            result = _collapse(pages, path.pids[0])
    return result


# Sweeping ---------------------------------------------------------------------------------------

cdef int tree_sweep(pages_t *pages, uint64_t root, path_t *path, bint *done) noexcept nogil:
    """The first leaf of a subtree that nobody reads goes, whatever is in it."""
    cdef work_t work
    cdef uint32_t at = 0
    cdef int result = path_find(pages, root, SEEK_AT, NULL, 0, NULL, True, path)
    done[0] = False
    if result != PAGES_OK:
        return result
    if path.depth > 1:
        return _remove(pages, path, path.depth - 1, &at)
    done[0] = True
    if path.nodes[0].count == 0:
        return PAGES_OK
    _begin(&work, pages)
    result = _free_blobs(&work, path.nodes[0], &path.missing)
    if result == PAGES_OK:
        result = _base(&work, root, node_new(PAGE_LEAF, 0, 0))
    return _finish(&work, pages, result)
