"""Pages and changes of pages as bytes on the device: images, fragments, and the checks of both.

    image    := kind (1) | level (1) | zero (2) | entries (4) | prefix size (4) | prefix | record*
    record   := word (4) | key without the prefix | payload          as in memory (page.pxd)
    blob     := 3 | 0 | zero (2) | zero (4) | size (4) | content
    fragment := change*
    change   := op (1) | word (4) | key | payload       op 1 set, 2 delete, 3 cut at this key

Op 3 is read and no longer written: a page that is cut is written whole.
A fragment's keys are whole. In an inner node the empty key names entry 0, which can be set and
not deleted. Deleting what is absent changes nothing. What is decoded is not trusted: the log's
checksum says that the bytes are those which were written, these checks that they make sense, so
that whatever is accepted satisfies node_check().
"""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy

from siltstone.log.atomics cimport prefetch
from siltstone.store.page cimport (CHANGE_CUT, CHANGE_DELETE, CHANGE_HEADER_SIZE,
                                   CHANGE_SET, IMAGE_HEADER_SIZE, KEY_SIZE_MAX,
                                   NODE_SIZE_MAX, PAGE_BLOB, PAGE_INNER, PAGE_INVALID, PAGE_LEAF,
                                   PAGE_NO_MEMORY, PAGE_OK, PID_SIZE, RECORD_BLOB, WORD_SIZE,
                                   blob_valid, node_blob, node_check_entry,
                                   node_cut, node_delete, node_free, node_new, node_prefix,
                                   node_record, node_search, node_set, node_t,
                                   record_word, slot_set, slot_size, word_bytes, word_key_size,
                                   word_payload_size)

cdef enum:
    LEVEL_MAX = 64
    FETCHED_MAX = 8192          # of a node: larger ones are few


# Fragments --------------------------------------------------------------------------------------

cdef void fragment_free(fragment_t *fragment) noexcept nogil:
    free(fragment.data)
    fragment.data = NULL
    fragment.size = fragment.capacity = 0


cdef int fragment_add(fragment_t *fragment, uint8_t op, const char *key, uint32_t size,
                      const char *payload, uint32_t payload_size, uint32_t blob) noexcept nogil:
    cdef uint64_t needed = fragment.size + CHANGE_HEADER_SIZE + size + payload_size
    cdef uint64_t capacity = fragment.capacity
    cdef char *out
    if needed > capacity:
        capacity = needed + (needed >> 1) + 256
        out = <char *>realloc(fragment.data, capacity)
        if out == NULL:
            return PAGE_NO_MEMORY
        fragment.data, fragment.capacity = out, capacity
    change_put(fragment.data + fragment.size, op, key, size, payload, payload_size, blob)
    fragment.size = needed
    return PAGE_OK


cdef bint _change_valid(const node_t *node, uint8_t op, uint32_t word,
                        const char *content) noexcept nogil:
    cdef uint32_t size = word_key_size(word), payload_size = word_payload_size(word)
    if size > KEY_SIZE_MAX:
        return False
    if op == CHANGE_DELETE or op == CHANGE_CUT:
        return payload_size == 0 and not word & RECORD_BLOB() and (
            size > 0 or node.kind == PAGE_LEAF)
    if op != CHANGE_SET:
        return False
    if node.kind == PAGE_INNER:
        return payload_size == PID_SIZE and not word & RECORD_BLOB()
    return not word & RECORD_BLOB() or blob_valid(content + size, payload_size)


cdef bint _fragment_valid(const node_t *node, const char *fragment, uint64_t size) noexcept nogil:
    cdef uint64_t at = 0
    cdef uint32_t word
    if node.kind == PAGE_BLOB or size > NODE_SIZE_MAX // 2:
        return False
    while at < size:
        if size - at < CHANGE_HEADER_SIZE:
            return False
        memcpy(&word, fragment + at + 1, WORD_SIZE)
        if size - at < <uint64_t>1 + word_bytes(word):
            return False
        if not _change_valid(node, <uint8_t>fragment[at], word,
                             fragment + at + CHANGE_HEADER_SIZE):
            return False
        at += 1 + word_bytes(word)
    return True


cdef int fragment_apply(node_t **node, const char *fragment, uint64_t size) noexcept nogil:
    cdef uint64_t at = 0
    cdef uint32_t word, key_size, index
    cdef const char *key
    cdef uint8_t op
    cdef bint found
    if not _fragment_valid(node[0], fragment, size):
        return PAGE_INVALID
    while at < size:
        op = <uint8_t>fragment[at]
        memcpy(&word, fragment + at + 1, WORD_SIZE)
        key, key_size = fragment + at + CHANGE_HEADER_SIZE, word_key_size(word)
        at += 1 + word_bytes(word)
        if op == CHANGE_SET:
            if node_set(node, key, key_size, key + key_size, word_payload_size(word),
                        word & RECORD_BLOB()) != PAGE_OK:
                return PAGE_NO_MEMORY
            continue
        index = node_search(node[0], key, key_size, &found)
        if op == CHANGE_CUT:
            if index < node[0].count:
                node_cut(node[0], index)
        elif found:
            node_delete(node[0], index)
    return PAGE_OK


# Images -----------------------------------------------------------------------------------------

cdef void image_encode(const node_t *node, char *out) noexcept nogil:
    cdef uint32_t index, bytes, at = 0
    cdef const char *record
    cdef uint16_t zero = 0
    # records are met in any order: all lines at once come in a fraction of the time
    while node.count and at < node.capacity and at < FETCHED_MAX:
        prefetch(<const char *>node + at)
        at += 64
    out[0], out[1] = <char>node.kind, <char>node.level
    memcpy(out + 2, &zero, 2)
    memcpy(out + 4, &node.count, 4)
    memcpy(out + 8, &node.prefix_size, 4)
    memcpy(out + IMAGE_HEADER_SIZE, node_prefix(node), node.prefix_size)
    out += IMAGE_HEADER_SIZE + node.prefix_size
    for index in range(node.count):
        record = node_record(node, index)
        bytes = word_bytes(record_word(record))
        memcpy(out, record, bytes)
        out += bytes


cdef int _fill(node_t *node, const char *records, uint32_t size, uint32_t count) noexcept nogil:
    # Slots for `count` records that should tile `size` bytes.
    cdef uint32_t at = 0, index, word
    node.heap = size
    node.count = count
    memcpy(<char *>node + node.capacity - size, records, size)
    for index in range(count):
        if size - at < WORD_SIZE:
            return PAGE_INVALID
        memcpy(&word, records + at, WORD_SIZE)
        if size - at < word_bytes(word):
            return PAGE_INVALID
        slot_set(node, index, size - at)
        if node_check_entry(node, index) != 0:
            return PAGE_INVALID
        at += word_bytes(word)
    return PAGE_OK if at == size else PAGE_INVALID


cdef int image_decode(const char *image, uint64_t size, node_t **made) noexcept nogil:
    cdef uint32_t count, prefix_size, rest
    cdef uint16_t zero
    cdef uint8_t kind, level
    cdef node_t *node
    if size < IMAGE_HEADER_SIZE or size > NODE_SIZE_MAX // 4:
        return PAGE_INVALID
    kind, level = <uint8_t>image[0], <uint8_t>image[1]
    memcpy(&zero, image + 2, 2)
    memcpy(&count, image + 4, 4)
    memcpy(&prefix_size, image + 8, 4)
    rest = <uint32_t>size - IMAGE_HEADER_SIZE
    if zero or prefix_size > rest:
        return PAGE_INVALID
    if kind == PAGE_BLOB:
        if level or count or prefix_size != rest:
            return PAGE_INVALID
        made[0] = node_blob(image + IMAGE_HEADER_SIZE, rest)
        return PAGE_OK if made[0] != NULL else PAGE_NO_MEMORY
    rest -= prefix_size
    if (kind != PAGE_LEAF and kind != PAGE_INNER) or (kind == PAGE_LEAF) != (level == 0):
        return PAGE_INVALID
    if (level > LEVEL_MAX or prefix_size > KEY_SIZE_MAX or count > rest // WORD_SIZE
            or (kind == PAGE_INNER and count == 0)):
        return PAGE_INVALID
    node = node_new(kind, level, rest + count * slot_size(kind) + prefix_size + 8)
    if node == NULL:
        return PAGE_NO_MEMORY
    node.prefix_size = prefix_size
    memcpy(<char *>node_prefix(node), image + IMAGE_HEADER_SIZE, prefix_size)
    if _fill(node, image + IMAGE_HEADER_SIZE + prefix_size, rest, count) != PAGE_OK:
        node_free(node)
        return PAGE_INVALID
    made[0] = node
    return PAGE_OK
