"""Edits of a tree: what is to become of each of many keys, sorted, how large that makes a page, and
what it says in the log.

Sorting is by merging, on the first eight bytes of the keys as a number: most comparisons need
nothing else, and keys that come sorted cost one look each.
"""
from libc.errno cimport ENOMEM
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from siltstone.store.image cimport change_put
from siltstone.store.page cimport (CHANGE_DELETE, CHANGE_HEADER_SIZE, CHANGE_SET, WORD_SIZE,
                                   compare_keys, node_image_size, node_prefix_with, node_t)
from siltstone.store.pagecache cimport PAGES_OK, change_room, change_t, pages_fragment_max

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>
    static inline uint64_t silt_head64(const char *key, uint32_t size) {
        uint64_t word = 0;
        memcpy(&word, key, size < 8 ? size : 8);
        return __builtin_bswap64(word);
    }
    """
    uint64_t head64 "silt_head64"(const char *key, uint32_t size) noexcept nogil

cdef struct place_t:
    uint64_t head               # the first bytes of the key, zeros behind a shorter one
    const edit_t *edit


cdef inline bint _above(const place_t *a, const place_t *b) noexcept nogil:
    if a.head != b.head:
        return a.head > b.head
    return compare_keys(a.edit.key, a.edit.key_size, b.edit.key, b.edit.key_size) > 0


cdef void _merge(const place_t *left, uint64_t left_count, const place_t *right,
                 uint64_t right_count, place_t *out) noexcept nogil:
    while left_count and right_count:
        if _above(left, right):
            out[0] = right[0]
            right += 1
            right_count -= 1
        else:
            out[0] = left[0]
            left += 1
            left_count -= 1
        out += 1
    memcpy(out, left, left_count * sizeof(place_t))
    memcpy(out + left_count, right, right_count * sizeof(place_t))


cdef place_t *_sorted(place_t *places, place_t *other, uint64_t count) noexcept nogil:
    # Which of the two holds the result.
    cdef uint64_t width = 1, at, left, right
    cdef place_t *swapped
    while width < count:
        at = 0
        while at < count:
            left = width if count - at > width else count - at
            right = count - at - left if count - at - left < width else width
            if right == 0 or not _above(&places[at + left - 1], &places[at + left]):
                memcpy(other + at, places + at, (left + right) * sizeof(place_t))
            else:
                _merge(places + at, left, places + at + left, right, other + at)
            at += left + right
        swapped, places, other = places, other, places
        other = swapped
        width *= 2
    return places


cdef int edits_sort(edit_t *edits, uint64_t count) noexcept nogil:
    cdef place_t *places
    cdef place_t *result
    cdef edit_t *copy
    cdef uint64_t at
    cdef bint sorted_already = True
    for at in range(1, count):
        if compare_keys(edits[at - 1].key, edits[at - 1].key_size, edits[at].key,
                        edits[at].key_size) > 0:
            sorted_already = False
            break
    if sorted_already:
        return 0
    places = <place_t *>malloc(2 * count * sizeof(place_t))
    copy = <edit_t *>malloc(count * sizeof(edit_t))
    if places == NULL or copy == NULL:
        free(places)
        free(copy)
        return -ENOMEM
    memcpy(copy, edits, count * sizeof(edit_t))
    for at in range(count):
        places[at].head = head64(copy[at].key, copy[at].key_size)
        places[at].edit = &copy[at]
    result = _sorted(places, places + count, count)
    for at in range(count):
        edits[at] = result[at].edit[0]
    free(places)
    free(copy)
    return 0


cdef uint64_t edits_grown(const node_t *node, const edit_t *edits, uint64_t count) noexcept nogil:
    cdef uint64_t size = node_image_size(node), at
    cdef uint32_t prefix, kept
    if count == 0:
        return size
    prefix = node_prefix_with(node, edits[0].key, edits[0].key_size)
    kept = node_prefix_with(node, edits[count - 1].key, edits[count - 1].key_size)
    if kept < prefix:       # what both ends share, all share
        prefix = kept
    size += <uint64_t>(node.prefix_size - prefix) * node.count
    for at in range(count):
        if not edits[at].effect:
            continue
        if edits[at].payload != NULL:
            kept = prefix if prefix < edits[at].key_size else edits[at].key_size
            size += WORD_SIZE + edits[at].key_size - kept + edits[at].payload_size
        size -= edits[at].before
    return size


cdef uint64_t edits_bytes(const edit_t *edits, uint64_t count) noexcept nogil:
    cdef uint64_t bytes = 0, at
    for at in range(count):
        if edits[at].effect:
            bytes += CHANGE_HEADER_SIZE + edits[at].key_size + edits[at].payload_size
    return bytes


cdef int edits_link(change_t *change, uint64_t pid, const edit_t *edits,
                    uint64_t count) noexcept nogil:
    cdef uint64_t room = pages_fragment_max(change.pages), bytes, more, at = 0, end
    cdef char *out = NULL
    cdef int result
    while True:
        bytes, end = 0, at
        while end < count:
            more = edits_bytes(edits + end, 1)
            if bytes and bytes + more > room:
                break
            bytes += more
            end += 1
        if bytes == 0:
            return PAGES_OK
        result = change_room(change, pid, bytes, &out)
        if result != PAGES_OK:
            return result
        for at in range(at, end):
            if edits[at].effect:
                out = change_put(out, CHANGE_DELETE if edits[at].payload == NULL else CHANGE_SET,
                                 edits[at].key, edits[at].key_size, edits[at].payload,
                                 edits[at].payload_size, edits[at].blob)
        at = end
