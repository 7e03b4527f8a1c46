"""Pages and changes of pages as bytes on the device. See image.pyx."""
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from libc.string cimport memcpy

from siltstone.store.page cimport CHANGE_HEADER_SIZE, WORD_SIZE, make_word, node_t

cdef struct fragment_t:         # a growing list of changes; zero it before its first use
    char *data
    uint64_t size
    uint64_t capacity

cdef void fragment_free(fragment_t *fragment) noexcept nogil
# Append a change. PAGE_OK, PAGE_NO_MEMORY (and then the fragment is as before).
cdef int fragment_add(fragment_t *fragment, uint8_t op, const char *key, uint32_t size,
                      const char *payload, uint32_t payload_size, uint32_t blob) noexcept nogil

# Write one change; returns where the next one begins.
cdef inline char *change_put(char *to, uint8_t op, const char *key, uint32_t size,
                             const char *payload, uint32_t payload_size,
                             uint32_t blob) noexcept nogil:
    cdef uint32_t word = make_word(size, payload_size, blob)
    to[0] = <char>op
    memcpy(to + 1, &word, WORD_SIZE)
    memcpy(to + CHANGE_HEADER_SIZE, key, size)
    memcpy(to + CHANGE_HEADER_SIZE + size, payload, payload_size)
    return to + CHANGE_HEADER_SIZE + size + payload_size

# Apply every change of a fragment to a node, which may move. PAGE_INVALID: nothing was changed.
# PAGE_NO_MEMORY: some changes were made; forget the node and read the page again.
cdef int fragment_apply(node_t **node, const char *fragment, uint64_t size) noexcept nogil

# node_image_size() bytes into `out`.
cdef void image_encode(const node_t *node, char *out) noexcept nogil
# A node from bytes that may be anything. PAGE_OK, PAGE_INVALID, PAGE_NO_MEMORY.
cdef int image_decode(const char *image, uint64_t size, node_t **made) noexcept nogil
