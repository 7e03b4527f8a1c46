"""A page of the Store in memory: what changes a node, and what makes nodes out of nodes.

Layout and search are in page.pxd; bytes on the device in image.pyx. One common prefix a node,
slots in key order, records behind a gap: an insert copies one record and moves slots, a record of
the same size is replaced in place, a deletion leaves its record dead. A node that is full moves to
a larger allocation, or to one of the same size when enough of it is dead; else nothing is
allocated. Sizes are soft: whoever owns the node splits it.

Nobody else may touch a node while it is changed: the caller holds the store's lock, or the node
is its own. Invariants (node_check): 1 kind, sizes and counts fit the allocation; 2 each record
lies inside the records; 3 records in use and dead ones make up `heap`; 4 keys rise; 5 heads are
those of the keys; 6 an inner node has entry 0 without key, and every payload is a pid, that of
its slot; 7 key and payload sizes are within their limits.
"""
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memmove, memset

from siltstone.store.cells cimport cell_give, cell_size, cell_take


cdef enum:
    # A node that is full grows by a third: a leaf that was cut, with half as much room again, is
    # copied once until it is cut again. By an eighth, copying was 6 % of a filling in batches.
    GROW_SHARE = 3


cdef inline uint32_t _gap(const node_t *node) noexcept nogil:
    return node.capacity - node.heap - <uint32_t>node_slots_end(node)


cdef inline uint32_t _common(const char *a, uint32_t a_size, const char *b,
                             uint32_t b_size) noexcept nogil:
    # Bytes that both begin with.
    cdef uint32_t size = a_size if a_size < b_size else b_size, at = 0
    while at < size and a[at] == b[at]:
        at += 1
    return at


cdef inline const char *_suffix(const node_t *node, uint32_t index, uint32_t *size) noexcept nogil:
    cdef const char *record = node_record(node, index)
    size[0] = word_key_size(record_word(record))
    return record + WORD_SIZE


# Making and giving back -------------------------------------------------------------------------

cdef node_t *_allocate(uint8_t kind, uint8_t level, const char *prefix, uint64_t prefix_size,
                       uint64_t room) noexcept nogil:
    # `room`: bytes for slots and records; prefix NULL: the caller writes it.
    cdef uint64_t size = cell_size(NODE_HEADER_SIZE + ((prefix_size + 7) & ~<uint64_t>7) + room)
    cdef node_t *node
    if size > NODE_SIZE_MAX:
        return NULL
    node = <node_t *>cell_take(size)
    if node == NULL:
        return NULL
    memset(node, 0, NODE_HEADER_SIZE)
    node.kind, node.level = kind, level
    node.capacity, node.prefix_size = <uint32_t>size, <uint32_t>prefix_size
    if prefix != NULL and prefix_size:
        memcpy(<char *>node_prefix(node), prefix, prefix_size)
    return node


cdef node_t *node_new(uint8_t kind, uint8_t level, uint32_t room) noexcept nogil:
    return _allocate(kind, level, NULL, 0, room)


cdef node_t *node_blob(const char *data, uint32_t size) noexcept nogil:
    """`data` NULL: the caller writes the content, which begins at node_prefix()."""
    return _allocate(PAGE_BLOB, 0, data, size, 0)


cdef void node_free(node_t *node) noexcept nogil:
    if node != NULL:
        cell_give(<char *>node, node.capacity)


cdef node_t *node_copy(const node_t *node) noexcept nogil:
    cdef node_t *copy = <node_t *>cell_take(node.capacity)
    if copy != NULL:
        memcpy(copy, node, node.capacity)
    return copy


cdef node_t *node_root(uint64_t child, uint8_t level) noexcept nogil:
    """An inner node with one child."""
    cdef node_t *node = node_new(PAGE_INNER, level, 256)
    if node != NULL:
        _put(node, 0, 0, NULL, 0, <const char *>&child, PID_SIZE, 0)
    return node


# Keys -------------------------------------------------------------------------------------------

cdef uint32_t node_key_size(const node_t *node, uint32_t index) noexcept nogil:
    if index < node_first(node):
        return 0
    return node.prefix_size + word_key_size(record_word(node_record(node, index)))


cdef uint32_t node_key(const node_t *node, uint32_t index, char *out) noexcept nogil:
    cdef uint32_t size
    cdef const char *suffix
    if index < node_first(node):
        return 0
    suffix = _suffix(node, index, &size)
    memcpy(out, node_prefix(node), node.prefix_size)
    memcpy(out + node.prefix_size, suffix, size)
    return node.prefix_size + size


# Rebuilding -------------------------------------------------------------------------------------

cdef uint32_t _prefix_of(const node_t *node, uint32_t begin, uint32_t end) noexcept nogil:
    # Length of what all keys of [begin, end) begin with; 0 if they are fewer than two. The first
    # entry of an inner node has no key, or is going to lose it.
    cdef uint32_t first = begin + node_first(node), first_size, last_size
    cdef const char *a
    cdef const char *b
    if first + 1 >= end:
        return 0
    a = _suffix(node, first, &first_size)
    b = _suffix(node, end - 1, &last_size)
    return node.prefix_size + _common(a, first_size, b, last_size)


cdef uint64_t _records_size(const node_t *node, uint32_t begin, uint32_t end) noexcept nogil:
    cdef uint64_t size = 0
    cdef uint32_t index
    for index in range(begin, end):
        size += word_bytes(record_word(node_record(node, index)))
    return size


cdef void _add_moved(node_t *node, uint32_t at, const node_t *source, uint32_t index,
                     bint keyless) noexcept nogil:
    # Fill slot `at` with an entry of `source`, whose prefix may be longer or shorter.
    cdef const char *record = node_record(source, index)
    cdef uint32_t word = record_word(record), size = word_key_size(word), more = 0, less = 0
    cdef uint32_t payload = word_payload_size(word), all_size
    cdef char *out
    if keyless or index < node_first(source):
        less = size
    elif node.prefix_size < source.prefix_size:
        more = source.prefix_size - node.prefix_size
    else:
        less = node.prefix_size - source.prefix_size
    all_size = size + more - less
    node.heap += WORD_SIZE + all_size + payload
    out = <char *>node + node.capacity - node.heap
    word = make_word(all_size, payload, word & RECORD_BLOB())
    memcpy(out, &word, WORD_SIZE)
    out += WORD_SIZE
    memcpy(out, node_prefix(source) + node.prefix_size, more)
    memcpy(out + more, record + WORD_SIZE + less, size - less + payload)
    slot_set(node, at, node.heap)


cdef node_t *_rebuild(const node_t *node, uint32_t begin, uint32_t end, uint32_t prefix_size,
                      uint64_t room) noexcept nogil:
    # Entries [begin, end) with another prefix and `room` free bytes.
    cdef uint64_t size = _records_size(node, begin, end) + room
    cdef uint32_t index, first, count = end - begin
    cdef node_t *made
    cdef const char *prefix
    size += <uint64_t>count * slot_size(node.kind)
    if prefix_size < node.prefix_size:
        size += <uint64_t>count * (node.prefix_size - prefix_size)
    made = _allocate(node.kind, node.level, NULL, prefix_size, size)
    if made == NULL:
        return NULL
    first = node.prefix_size if node.prefix_size < prefix_size else prefix_size
    memcpy(<char *>node_prefix(made), node_prefix(node), first)
    if prefix_size > first:
        # all of [begin, end) that have keys share it: the last one has it
        prefix = node_record(node, end - 1) + WORD_SIZE
        memcpy(<char *>node_prefix(made) + first, prefix, prefix_size - first)
    made.count = count
    for index in range(begin, end):
        _add_moved(made, index - begin, node, index, index == begin and node.kind == PAGE_INNER)
    return made


cdef node_t *_grown(const node_t *node, uint64_t room) noexcept nogil:
    # The same bytes in a larger allocation.
    cdef uint64_t size = cell_size(<uint64_t>node.capacity + room)
    cdef node_t *made
    if size > NODE_SIZE_MAX:
        return NULL
    made = <node_t *>cell_take(size)
    if made == NULL:
        return NULL
    memcpy(made, node, node_slots_end(node))
    made.capacity = <uint32_t>size
    memcpy(<char *>made + size - node.heap, <const char *>node + node.capacity - node.heap,
           node.heap)
    return made


cdef node_t *node_roomy(const node_t *node, uint64_t bytes, uint32_t entries,
                        uint32_t prefix_size) noexcept nogil:
    cdef uint64_t need = bytes + <uint64_t>entries * slot_size(node.kind)
    if prefix_size >= node.prefix_size and node.dead < need + (node.heap >> 2):
        return _grown(node, need + node.capacity // GROW_SHARE)
    return _rebuild(node, 0, node.count, min(prefix_size, node.prefix_size),
                    need + node.heap // GROW_SHARE)


cdef int node_reserve(node_t **node, uint64_t bytes, uint32_t entries,
                      uint32_t prefix_size) noexcept nogil:
    """Room as node_roomy() makes it; nothing is done if it is there already."""
    cdef node_t *old = node[0]
    cdef node_t *made
    if prefix_size >= old.prefix_size and _gap(old) >= bytes + <uint64_t>entries * slot_size(
            old.kind):
        return PAGE_OK
    made = node_roomy(old, bytes, entries, prefix_size)
    if made == NULL:
        return PAGE_NO_MEMORY
    node_free(old)
    node[0] = made
    return PAGE_OK


# Changes ----------------------------------------------------------------------------------------

cdef void _slot_open(node_t *node, uint32_t index) noexcept nogil:
    # Slot `index` is new. An array that moves makes way for the one before it.
    cdef uint32_t *heads = node_heads(node)
    cdef uint32_t *offsets = node_offsets(node)
    cdef uint64_t *pids = node_pids(node)
    cdef uint64_t behind = node.count - index
    if node.kind == PAGE_INNER:
        memmove(pids + index + 2, pids + index, behind * PID_SIZE)
        memmove(pids + 1, pids, index * PID_SIZE)
    memmove(offsets + index + 2, offsets + index, behind * 4)
    memmove(offsets + 1, offsets, index * 4)
    memmove(heads + index + 1, heads + index, behind * 4)
    node.count += 1


cdef void _slots_close(node_t *node, uint32_t begin, uint32_t end) noexcept nogil:
    # Slots [begin, end) go.
    cdef uint32_t *heads = node_heads(node)
    cdef uint32_t *offsets = node_offsets(node)
    cdef uint64_t *pids = node_pids(node)
    cdef uint64_t behind = node.count - end
    node.count -= end - begin
    memmove(heads + begin, heads + end, behind * 4)
    memmove(node_offsets(node), offsets, begin * 4)
    memmove(node_offsets(node) + begin, offsets + end, behind * 4)
    if node.kind == PAGE_INNER:
        memmove(node_pids(node), pids, begin * PID_SIZE)
        memmove(node_pids(node) + begin, pids + end, behind * PID_SIZE)


cdef void _put(node_t *node, uint32_t index, bint replace, const char *suffix, uint32_t size,
               const char *payload, uint32_t payload_size, uint32_t blob) noexcept nogil:
    # Write a record into the gap, which has room, and point slot `index` at it.
    cdef uint32_t word = make_word(size, payload_size, blob)
    cdef char *out
    if not replace:
        _slot_open(node, index)
    node.heap += WORD_SIZE + size + payload_size
    out = <char *>node + node.capacity - node.heap
    memcpy(out, &word, WORD_SIZE)
    memcpy(out + WORD_SIZE, suffix, size)
    memcpy(out + WORD_SIZE + size, payload, payload_size)
    slot_set(node, index, node.heap)


cdef bint _overwritten(node_t *node, uint32_t index, const char *payload, uint32_t payload_size,
                       uint32_t blob) noexcept nogil:
    # In place, if the new payload is not larger than the old one.
    cdef char *record = <char *>node_record(node, index)
    cdef uint32_t word = record_word(record), size = word_key_size(word)
    if word_payload_size(word) < payload_size:
        return False
    node.dead += word_payload_size(word) - payload_size
    word = make_word(size, payload_size, blob)
    memcpy(record, &word, WORD_SIZE)
    memcpy(record + WORD_SIZE + size, payload, payload_size)
    if node.kind == PAGE_INNER:
        memcpy(node_pids(node) + index, payload, PID_SIZE)
    return True


cdef uint32_t node_prefix_with(const node_t *node, const char *key, uint32_t size) noexcept nogil:
    """How much of the prefix remains when `key` comes in."""
    if node.count <= node_first(node):
        return 0
    return _common(node_prefix(node), node.prefix_size, key, size)


cdef int node_set(node_t **node, const char *key, uint32_t size, const char *payload,
                  uint32_t payload_size, uint32_t blob) noexcept nogil:
    cdef bint found
    cdef uint32_t index = node_search(node[0], key, size, &found), prefix
    if size == 0 and node[0].kind == PAGE_INNER:
        index, found = 0, node[0].count > 0
    if found:
        if _overwritten(node[0], index, payload, payload_size, blob):
            return PAGE_OK
        prefix = node[0].prefix_size
    else:
        prefix = node_prefix_with(node[0], key, size)
    if node_reserve(node, WORD_SIZE + <uint64_t>(size - (prefix if size else 0)) + payload_size,
                    0 if found else 1, prefix) != PAGE_OK:
        return PAGE_NO_MEMORY
    # the prefix of an entry that was found is the node's; a node without keys has lost its own
    prefix = node[0].prefix_size if size else 0
    if found:
        node[0].dead += word_bytes(record_word(node_record(node[0], index)))
    _put(node[0], index, found, key + prefix, size - prefix, payload, payload_size, blob)
    return PAGE_OK


cdef void node_delete(node_t *node, uint32_t index) noexcept nogil:
    node.dead += word_bytes(record_word(node_record(node, index)))
    _slots_close(node, index, index + 1)
    _emptied(node)


cdef void node_cut(node_t *node, uint32_t index) noexcept nogil:
    """Entry `index` and all behind it go."""
    node.dead += <uint32_t>_records_size(node, index, node.count)
    _slots_close(node, index, node.count)
    _emptied(node)


cdef void _emptied(node_t *node) noexcept nogil:
    if node.count == 0:
        node.heap = node.dead = node.prefix_size = 0


# Nodes from nodes -------------------------------------------------------------------------------

cdef node_t *node_slice(const node_t *node, uint32_t begin, uint32_t end,
                        uint32_t room) noexcept nogil:
    return _rebuild(node, begin, end, _prefix_of(node, begin, end), room)


cdef node_t *node_join(const node_t *left, const node_t *right, const char *separator,
                       uint32_t separator_size) noexcept nogil:
    cdef uint32_t prefix = left.prefix_size, index
    cdef uint64_t size = 0
    cdef uint64_t pid
    cdef node_t *made
    if left.count <= node_first(left):
        prefix = right.prefix_size
    elif right.count > node_first(right):
        prefix = _common(node_prefix(left), left.prefix_size, node_prefix(right),
                         right.prefix_size)
    if left.kind == PAGE_INNER:
        prefix = _common(node_prefix(left if left.count > 1 else right), prefix, separator,
                         separator_size)
    size = (<uint64_t>left.heap + right.heap + WORD_SIZE + separator_size + PID_SIZE
            + (<uint64_t>left.count + right.count) * slot_size(left.kind)
            + <uint64_t>left.count * (left.prefix_size - (
                prefix if prefix < left.prefix_size else left.prefix_size))
            + <uint64_t>right.count * (right.prefix_size - (
                prefix if prefix < right.prefix_size else right.prefix_size)))
    made = _allocate(left.kind, left.level,
                     node_prefix(left if left.count > node_first(left) else right), prefix, size)
    if made == NULL:
        return NULL
    made.count = left.count + right.count
    for index in range(left.count):
        _add_moved(made, index, left, index, False)
    for index in range(right.count):
        if index == 0 and left.kind == PAGE_INNER:
            pid = node_child(right, 0)
            _put(made, left.count, True, separator + prefix, separator_size - prefix,
                 <const char *>&pid, PID_SIZE, 0)
        else:
            _add_moved(made, left.count + index, right, index, False)
    return made


cdef uint32_t node_separator(const node_t *node, uint32_t index, char *out) noexcept nogil:
    cdef uint32_t left_size, right_size, common
    cdef const char *left = _suffix(node, index - 1, &left_size)
    cdef const char *right = _suffix(node, index, &right_size)
    common = _common(left, left_size, right, right_size) + 1
    memcpy(out, node_prefix(node), node.prefix_size)
    memcpy(out + node.prefix_size, right, common)
    return node.prefix_size + common


# Invariants -------------------------------------------------------------------------------------

cdef int node_check_entry(const node_t *node, uint32_t index) noexcept nogil:
    cdef const char *record = node_record(node, index)
    cdef uint32_t word = record_word(record), size = word_key_size(word)
    cdef uint32_t offset = node_offsets(node)[index]
    if offset > node.heap or offset < word_bytes(word):
        return 2
    if node_heads(node)[index] != key_head(record + WORD_SIZE, size):
        return 5
    if node.kind == PAGE_INNER and (
            word_payload_size(word) != PID_SIZE or word & RECORD_BLOB()
            or memcmp(record + WORD_SIZE + size, node_pids(node) + index, PID_SIZE) != 0):
        return 6
    if node.kind == PAGE_INNER and index == 0:
        return 6 if size else 0
    if node.prefix_size + size > KEY_SIZE_MAX:
        return 7
    if word & RECORD_BLOB() and not blob_valid(record + WORD_SIZE + size,
                                               word_payload_size(word)):
        return 7
    if index > node_first(node) and compare_record(node, index - 1, record + WORD_SIZE,
                                                   size) >= 0:
        return 4
    return 0


cdef int node_check(const node_t *node) noexcept nogil:
    cdef uint32_t index
    cdef uint64_t size = node_slots_end(node) + node.heap
    cdef int broken
    if not PAGE_LEAF <= node.kind <= PAGE_BLOB or size > node.capacity or node.zero:
        return 1
    if node.kind == PAGE_BLOB:
        return 1 if node.count or node.heap or node.dead else 0
    if (node.kind == PAGE_LEAF) != (node.level == 0):
        return 1
    if node.kind == PAGE_INNER and node.count == 0:
        return 6
    for index in range(node.count):
        broken = node_check_entry(node, index)
        if broken:
            return broken
    if _records_size(node, 0, node.count) + node.dead != node.heap:
        return 3
    return 0
