"""Pages that grow beyond their size become several, and the pages above them learn of it.

Edits of one page are made on a copy, in order. Where the copy has grown to several pages, those in
front are cut off as new pages while the edits go on: it never gets much larger, however many edits
there are, and each record is copied about twice. All pieces are written whole, also the one that
keeps its pid: damage to one record of the log costs one page. A new page has a sprout, the
smallest key that belongs there, and the sprouts of one level are the edits of the next one up.

A root's pid stays: all its pieces are new pages, and it becomes an inner page above them.

Half of a page that is cut in two stays in it; of many, each is filled to three quarters, so that
the next changes find room; and where keys rise, to nine tenths, because none will come there.
"""
from libc.errno cimport ENOMEM
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy, memset

from siltstone.store.descent cimport path_inner, path_pid, path_t, path_upper
from siltstone.store.edits cimport edits_grown, edits_link
from siltstone.store.page cimport (KEY_SIZE_MAX, PAGE_INNER, PAGE_LEAF, PAGE_OK, PID_SIZE,
                                   WORD_SIZE, compare_keys, node_delete, node_free,
                                   node_image_size, node_key, node_prefix_with, node_record,
                                   node_roomy, node_root, node_search, node_separator, node_set,
                                   node_slice, node_t, record_word, slot_size, word_bytes)
from siltstone.store.pagecache cimport (PAGES_OK, change_allocate, change_base, pages_lock,
                                        pages_unlock)

cdef enum:
    WORK_PAGES = 16             # a copy with edits that is larger is cut

cdef struct growth_t:
    change_t *change
    sprouts_t *sprouts
    uint64_t pid                # of the first piece
    uint64_t pieces
    node_t *held                # the first piece of a root, until there is a second
    bint is_root
    bint locked
    uint32_t page_size
    uint32_t key_size
    char key[KEY_SIZE_MAX]      # the smallest that belongs to what has not been cut off yet


# Sprouts ----------------------------------------------------------------------------------------

cdef void sprouts_free(sprouts_t *sprouts) noexcept nogil:
    free(sprouts.list)
    free(sprouts.keys)
    memset(sprouts, 0, sizeof(sprouts_t))


cdef int _sprouts_add(sprouts_t *sprouts, const char *key, uint32_t size,
                      uint64_t pid) noexcept nogil:
    cdef uint64_t capacity = sprouts.capacity
    cdef sprout_t *larger
    cdef char *keys
    if sprouts.count == capacity:
        capacity = 2 * capacity + 8
        larger = <sprout_t *>realloc(sprouts.list, capacity * sizeof(sprout_t))
        if larger == NULL:
            return -ENOMEM
        sprouts.list, sprouts.capacity = larger, capacity
    capacity = sprouts.key_capacity
    if sprouts.key_bytes + size > capacity:
        capacity = 2 * capacity + size + 256
        keys = <char *>realloc(sprouts.keys, capacity)
        if keys == NULL:
            return -ENOMEM
        sprouts.keys, sprouts.key_capacity = keys, capacity
    sprouts.list[sprouts.count].pid = pid
    sprouts.list[sprouts.count].key_at = sprouts.key_bytes
    sprouts.list[sprouts.count].key_size = size
    memcpy(sprouts.keys + sprouts.key_bytes, key, size)
    sprouts.key_bytes += size
    sprouts.count += 1
    return PAGES_OK


cdef edit_t *_as_edits(const sprouts_t *sprouts) noexcept nogil:
    # What the pages above them have to set; points into `sprouts`.
    cdef edit_t *edits = <edit_t *>malloc((sprouts.count + 1) * sizeof(edit_t))
    cdef uint64_t at
    if edits == NULL:
        return NULL
    memset(edits, 0, (sprouts.count + 1) * sizeof(edit_t))
    for at in range(sprouts.count):
        edits[at].key = sprouts.keys + sprouts.list[at].key_at
        edits[at].key_size = sprouts.list[at].key_size
        edits[at].payload = <const char *>&sprouts.list[at].pid
        edits[at].payload_size = PID_SIZE
        edits[at].effect = 1
    return edits


# Pieces -----------------------------------------------------------------------------------------

cdef int _allocate(growth_t *growth, uint64_t *pid) noexcept nogil:
    cdef int result
    if not growth.locked:
        pages_lock(growth.change.pages)
    result = change_allocate(growth.change, pid)
    if not growth.locked:
        pages_unlock(growth.change.pages)
    return result


cdef int _base(growth_t *growth, uint64_t pid, node_t *node) noexcept nogil:
    # Takes the node in any case.
    cdef int result = change_base(growth.change, pid, <char *>node)
    if result != PAGES_OK:
        node_free(node)
    return result


cdef int _put(growth_t *growth, node_t *piece) noexcept nogil:
    # The next piece, which begins at `growth.key`.
    cdef uint64_t pid = growth.pid
    cdef int result = PAGES_OK
    if piece == NULL:
        return -ENOMEM
    growth.pieces += 1
    if growth.pieces == 1 and growth.is_root:
        growth.held = piece
        return PAGES_OK
    if growth.held != NULL:
        result = _allocate(growth, &growth.pid)
        if result == PAGES_OK:
            result = _base(growth, growth.pid, growth.held)
            growth.held = NULL
    if growth.pieces > 1 and result == PAGES_OK:
        result = _allocate(growth, &pid)
        if result == PAGES_OK:
            result = _sprouts_add(growth.sprouts, growth.key, growth.key_size, pid)
    if result != PAGES_OK:
        node_free(piece)
        return result
    return _base(growth, pid, piece)


cdef uint32_t _spare(const growth_t *growth, uint32_t size, bint appended) noexcept nogil:
    # Of a piece of so many bytes: half as much again, or what the page can still take. The next
    # changes would make the room anyway, one copy after the other.
    cdef uint32_t most = growth.page_size + growth.page_size // 16
    if appended or size >= most:
        return 0
    return min(size >> 1, most - size)


cdef int _pieces(growth_t *growth, const node_t *node, uint32_t end, uint32_t wanted,
                 bint appended, uint32_t *left, uint32_t *rest) noexcept nogil:
    # Pieces of at least `wanted` bytes from entries [0, end); those from *left on, of *rest bytes,
    # are in none.
    cdef uint32_t begin = 0, size = 0, index, least = 2 if node.kind == PAGE_INNER else 1
    cdef int result = PAGES_OK
    for index in range(end):
        if size >= wanted and index - begin >= least and node.count - index >= least:
            result = _put(growth, node_slice(node, begin, index, _spare(growth, size, appended)))
            if result != PAGES_OK:
                return result
            if node.kind == PAGE_LEAF:
                growth.key_size = node_separator(node, index, growth.key)
            else:
                growth.key_size = node_key(node, index, growth.key)
            begin, size = index, 0
        size += word_bytes(record_word(node_record(node, index)))
    left[0], rest[0] = begin, size
    return PAGES_OK


cdef int _finish(growth_t *growth, const node_t *node, node_t **own, bint appended) noexcept nogil:
    # All that is left becomes pieces: the last one is *own itself, if that is `node` and fits.
    cdef uint32_t size = node_image_size(node), full = growth.page_size // 4 * 3, wanted, left = 0
    cdef uint32_t memory = size + node.count * slot_size(node.kind)
    cdef node_t *piece
    cdef int result
    if size > growth.page_size:
        wanted = size // max(2, (size + full - 1) // full)
        if appended:
            wanted = growth.page_size // 10 * 9
        result = _pieces(growth, node, node.count, wanted, appended, &left, &size)
        if result != PAGES_OK:
            return result
    if left == 0 and own != NULL and own[0].capacity // 4 * 3 <= memory + _spare(growth, size,
                                                                                 appended):
        piece = own[0]
        own[0] = NULL
        return _put(growth, piece)
    return _put(growth, node_slice(node, left, node.count, _spare(growth, size, appended)))


cdef node_t *_copy(growth_t *growth, const node_t *node, const edit_t *edits,
                   uint64_t count) noexcept nogil:
    # With room for the edits, or for as many as come before the next cut.
    cdef uint32_t prefix = node.prefix_size, kept
    cdef uint64_t bytes = 0, at = 0, limit = WORK_PAGES * <uint64_t>growth.page_size
    while at < count and bytes < limit:
        if edits[at].payload != NULL:
            bytes += WORD_SIZE + edits[at].key_size + edits[at].payload_size
        kept = node_prefix_with(node, edits[at].key, edits[at].key_size)
        if kept < prefix and edits[at].payload != NULL:
            prefix = kept
        at += 1
    return node_roomy(node, bytes, <uint32_t>at, prefix)


cdef int _make(growth_t *growth, node_t **work, const edit_t *edits, uint64_t count,
               bint appended) noexcept nogil:
    cdef uint64_t limit = WORK_PAGES * <uint64_t>growth.page_size, at
    cdef const edit_t *edit
    cdef node_t *rest
    cdef uint32_t index, left = 0, size = 0
    cdef bint found
    cdef int result = PAGES_OK
    for at in range(count):
        edit = &edits[at]
        if not edit.effect:
            continue
        if edit.payload == NULL:
            index = node_search(work[0], edit.key, edit.key_size, &found)
            if found:
                node_delete(work[0], index)
        elif node_set(work, edit.key, edit.key_size, edit.payload, edit.payload_size,
                      edit.blob) != PAGE_OK:
            return -ENOMEM
        if node_image_size(work[0]) > limit:
            # what is not above this key is as it is going to be
            index = node_search(work[0], edit.key, edit.key_size, &found)
            result = _pieces(growth, work[0], index, growth.page_size // 4 * 3 if not appended
                             else growth.page_size // 10 * 9, appended, &left, &size)
            if result == PAGES_OK and left:
                rest = node_slice(work[0], left, work[0].count,
                                  WORK_PAGES // 4 * growth.page_size)
                node_free(work[0])
                work[0] = rest
                result = PAGES_OK if rest != NULL else -ENOMEM
            if result != PAGES_OK:
                return result
            limit = WORK_PAGES * <uint64_t>growth.page_size
            if 2 * node_image_size(work[0]) > limit:
                limit = 2 * node_image_size(work[0])        # most of it is above
    return PAGES_OK


cdef int _grow(growth_t *growth, const node_t *node, const edit_t *edits, uint64_t count,
               bint appended) noexcept nogil:
    cdef node_t *work
    cdef int result
    if count == 0:
        return _finish(growth, node, NULL, appended)
    work = _copy(growth, node, edits, count)
    if work == NULL:
        return -ENOMEM
    result = _make(growth, &work, edits, count, appended)
    if result == PAGES_OK:
        result = _finish(growth, work, &work, appended)
    node_free(work)
    return result


cdef void _begin(growth_t *growth, change_t *change, uint64_t pid, uint32_t page_size,
                 bint locked, sprouts_t *sprouts) noexcept nogil:
    growth.change, growth.sprouts, growth.pid = change, sprouts, pid
    growth.page_size, growth.locked, growth.is_root = page_size, locked, False
    growth.pieces, growth.key_size, growth.held = 0, 0, NULL


cdef int page_grow(change_t *change, uint64_t pid, const node_t *node, const edit_t *edits,
                   uint64_t count, uint32_t page_size, bint appended, bint locked,
                   sprouts_t *sprouts) noexcept nogil:
    cdef growth_t growth
    _begin(&growth, change, pid, page_size, locked, sprouts)
    return _grow(&growth, node, edits, count, appended)


cdef int root_grow(change_t *change, uint64_t root, const node_t *node, const edit_t *edits,
                   uint64_t count, uint32_t page_size, bint appended, bint locked) noexcept nogil:
    cdef growth_t growth
    cdef sprouts_t sprouts, below
    cdef edit_t *made = NULL
    cdef node_t *above = NULL
    cdef uint8_t level = node.level
    cdef int result
    memset(&sprouts, 0, sizeof(sprouts_t))
    memset(&below, 0, sizeof(sprouts_t))
    while True:
        _begin(&growth, change, root, page_size, locked, &sprouts)
        growth.is_root = True
        result = _grow(&growth, node, edits, count, appended)
        free(made)
        node_free(above)
        made, above = NULL, NULL
        sprouts_free(&below)
        if result != PAGES_OK or growth.held != NULL:
            break
        # another level
        level += 1
        below, count = sprouts, sprouts.count
        memset(&sprouts, 0, sizeof(sprouts_t))
        node = above = node_root(growth.pid, level)
        edits = made = _as_edits(&below)
        if made == NULL or above == NULL:
            result = -ENOMEM
            break
    if result == PAGES_OK:
        result = _base(&growth, root, growth.held)
    else:
        node_free(growth.held)
    free(made)
    node_free(above)
    sprouts_free(&sprouts)
    sprouts_free(&below)
    return result


# The pages above --------------------------------------------------------------------------------

cdef int _level_grow(change_t *change, uint64_t root, uint8_t level, const edit_t *edits,
                     uint64_t count, uint32_t page_size, sprouts_t *above,
                     uint64_t *missing) noexcept nogil:
    # Edits of all pages of one level.
    cdef char fence[KEY_SIZE_MAX]
    cdef uint64_t first = 0, end
    cdef uint32_t size
    cdef path_t path
    cdef node_t *node
    cdef int result, depth
    while first < count:
        result = path_inner(change.pages, root, level, edits[first].key, edits[first].key_size,
                            &path)
        missing[0] = path.missing
        if result != PAGES_OK:
            return result
        depth = path_upper(&path)
        size = node_key(path.nodes[depth], path.indexes[depth] + 1, fence) if depth >= 0 else 0
        end = first + 1
        while end < count and (depth < 0 or compare_keys(edits[end].key, edits[end].key_size,
                                                         fence, size) < 0):
            end += 1
        node = path.nodes[path.depth - 1]
        if edits_grown(node, edits + first, end - first) <= page_size:
            result = edits_link(change, path_pid(&path), edits + first, end - first)
        elif path.depth == 1:
            result = root_grow(change, root, node, edits + first, end - first, page_size, False,
                               True)
        else:
            result = page_grow(change, path_pid(&path), node, edits + first, end - first,
                               page_size, False, True, above)
        if result != PAGES_OK:
            return result
        first = end
    return PAGES_OK


cdef int parents_grow(change_t *change, uint64_t root, const sprouts_t *sprouts,
                      uint32_t page_size, uint64_t *missing) noexcept nogil:
    cdef sprouts_t now = sprouts[0], above
    cdef edit_t *edits
    cdef uint8_t level = 1
    cdef int result = PAGES_OK
    while now.count and result == PAGES_OK:
        memset(&above, 0, sizeof(sprouts_t))
        edits = _as_edits(&now)
        if edits == NULL:
            result = -ENOMEM
        else:
            result = _level_grow(change, root, level, edits, now.count, page_size, &above,
                                 missing)
        free(edits)
        if level > 1:
            sprouts_free(&now)
        now = above
        level += 1
    if level > 1 and now.list != NULL:
        sprouts_free(&now)
    return result
