"""A page of the Store in memory: a packed, sorted node of keys and payloads. See page.pyx.

    node_t, prefix, padding to 8 | slots | gap | records, newest first
    slots  = head (4) * count | offset (4) * count | in an inner node: pid (8) * count
    record = word (4) | key without the prefix | payload
    word   = key bytes without the prefix (17 bits) | payload bytes (14 bits) | RECORD_BLOB

A `head` is the first four bytes of a key behind the prefix, big-endian, zeros behind a shorter
key, so that a search reads few cache lines and mostly one record. Offsets count from the node's
end: a node grows without touching them. In an inner node payloads are child pids, which stand
among the slots once more: who only comes by reads no record at all. Entry 0 of an inner node has
no key: it stands for all below the key of entry 1, and the prefix leaves it out.
Searching is inline here; all that changes a node is in page.pyx. No function takes a lock.
"""
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

cdef extern from *:
    """
    #ifndef SILT_PAGE
    #define SILT_PAGE
    #include <stdint.h>
    #include <string.h>
    static inline uint32_t silt_head(const char *key, uint32_t size) {
        uint32_t word = 0;
        if (__builtin_expect(size >= 4, 1)) {
            memcpy(&word, key, 4);
            return __builtin_bswap32(word);
        }
        for (uint32_t at = 0; at < size; at++)
            word |= (uint32_t)(unsigned char)key[at] << (24 - 8 * at);
        return word;
    }

    #define SILT_WINDOW 16
    typedef uint32_t silt_lanes __attribute__((vector_size(16), aligned(4)));

    /* How many of `size` numbers that rise are below `head`. Halves until the answer lies in a
       window, then counts in that, all at once: nothing to mispredict, and no step waits for the
       one before. A get of 1,000 records in two levels takes 115 ns instead of 133. */
    static inline uint32_t silt_below(const uint32_t *heads, uint32_t size, uint32_t head) {
        uint32_t low = 0, left = size, half;
        const uint32_t least = size < SILT_WINDOW ? 1 : SILT_WINDOW;
        while (left > least) {
            half = left >> 1;
            low += half & -(uint32_t)(heads[low + half - 1] < head);
            left -= half;
        }
        if (size < SILT_WINDOW)
            return low + (left && heads[low] < head);
        if (low > size - SILT_WINDOW)
            low = size - SILT_WINDOW;
        silt_lanes wanted = {head, head, head, head}, count = {0, 0, 0, 0};
        const silt_lanes *lanes = (const silt_lanes *)(heads + low);
        for (int number = 0; number < SILT_WINDOW / 4; number++)
            count -= (silt_lanes)(lanes[number] < wanted);
        return low + count[0] + count[1] + count[2] + count[3];
    }
    #endif
    """
    uint32_t heads_below "silt_below"(const uint32_t *heads, uint32_t size,
                                      uint32_t head) noexcept nogil
    # The first four bytes as a number that sorts as they do.
    uint32_t key_head "silt_head"(const char *key, uint32_t size) noexcept nogil

cdef enum:
    PAGE_LEAF = 1
    PAGE_INNER = 2
    PAGE_BLOB = 3               # bytes of a large value, or pids of such pages
    KEY_SIZE_MAX = 1 << 16
    PAYLOAD_SIZE_MAX = (1 << 14) - 1
    KEY_BITS = 17
    KEY_MASK = (1 << KEY_BITS) - 1
    PAYLOAD_MASK = PAYLOAD_SIZE_MAX
    WORD_SIZE = 4
    PID_SIZE = 8
    NODE_HEADER_SIZE = 1 + 1 + 2 + 4 + 4 + 4 + 4 + 4
    NODE_SIZE_MAX = 1 << 30
    IMAGE_HEADER_SIZE = 1 + 1 + 2 + 4 + 4
    PAGE_OK = 0
    PAGE_NO_MEMORY = -1
    PAGE_INVALID = -2           # bytes that are no image, or no fragment for this node

cdef enum change_t:             # of a fragment: op (1) | word (4) | key | payload
    CHANGE_SET = 1
    CHANGE_DELETE = 2
    CHANGE_CUT = 3              # this key and all above it go

cdef enum:
    CHANGE_HEADER_SIZE = 1 + 4

cdef inline uint32_t RECORD_BLOB() noexcept nogil:
    return <uint32_t>1 << 31    # the payload is a blob reference (below)

cdef struct node_t:             # NODE_HEADER_SIZE bytes
    uint8_t kind
    uint8_t level               # 0 for leaves
    uint16_t zero
    uint32_t capacity           # bytes of the allocation
    uint32_t count
    uint32_t prefix_size        # of a blob: bytes of its content, which stands there
    uint32_t heap               # bytes of records, from the end
    uint32_t dead               # of them: not in use

cdef inline const char *node_prefix(const node_t *node) noexcept nogil:
    return <const char *>node + NODE_HEADER_SIZE

cdef inline uint32_t slot_size(uint8_t kind) noexcept nogil:
    return 4 + 4 + (PID_SIZE if kind == PAGE_INNER else 0)

# Each array begins where the one before ends.
cdef inline uint32_t *node_heads(const node_t *node) noexcept nogil:
    return <uint32_t *>(<char *>node + NODE_HEADER_SIZE
                        + ((node.prefix_size + 7) & ~<uint32_t>7))

cdef inline uint32_t *node_offsets(const node_t *node) noexcept nogil:
    return node_heads(node) + node.count

cdef inline uint64_t *node_pids(const node_t *node) noexcept nogil:
    return <uint64_t *>(node_heads(node) + 2 * <uint64_t>node.count)

cdef inline uint64_t node_slots_end(const node_t *node) noexcept nogil:
    # Bytes from the node's beginning.
    return <uint64_t>(<char *>node_heads(node) - <char *>node) + (
        <uint64_t>node.count * slot_size(node.kind))

cdef inline const char *node_record(const node_t *node, uint32_t index) noexcept nogil:
    return <const char *>node + node.capacity - node_offsets(node)[index]

cdef inline uint32_t record_word(const char *record) noexcept nogil:
    cdef uint32_t word
    memcpy(&word, record, WORD_SIZE)
    return word

cdef inline uint32_t word_key_size(uint32_t word) noexcept nogil:
    return word & KEY_MASK

cdef inline uint32_t word_payload_size(uint32_t word) noexcept nogil:
    return (word >> KEY_BITS) & PAYLOAD_MASK

cdef inline uint32_t word_bytes(uint32_t word) noexcept nogil:
    return WORD_SIZE + word_key_size(word) + word_payload_size(word)

cdef inline uint32_t make_word(uint32_t key_size, uint32_t payload_size,
                               uint32_t blob) noexcept nogil:
    return key_size | (payload_size << KEY_BITS) | blob

cdef inline void slot_set(node_t *node, uint32_t index, uint32_t offset) noexcept nogil:
    # All that a slot says of the record that stands at `offset`. A payload in an inner node is a
    # pid, or is found not to be one by whoever checks the record.
    cdef const char *record = <const char *>node + node.capacity - offset
    cdef uint32_t word = record_word(record)
    node_offsets(node)[index] = offset
    node_heads(node)[index] = key_head(record + WORD_SIZE, word_key_size(word))
    if node.kind == PAGE_INNER and word_payload_size(word) == PID_SIZE:
        memcpy(node_pids(node) + index, record + WORD_SIZE + word_key_size(word), PID_SIZE)

cdef inline uint32_t node_first(const node_t *node) noexcept nogil:
    # the first entry that has a key
    return 1 if node.kind == PAGE_INNER else 0

cdef inline uint64_t node_child(const node_t *node, uint32_t index) noexcept nogil:
    return node_pids(node)[index]

cdef inline uint32_t node_image_size(const node_t *node) noexcept nogil:
    return IMAGE_HEADER_SIZE + node.prefix_size + node.heap - node.dead

# A blob reference: bytes of the value (8) | bytes of each part but the last (4) | depth (4) | pids.
# Depth 0: pids of the parts; 1, 2: of pages that hold pids, all full but the last.
cdef enum:
    BLOB_HEADER_SIZE = 8 + 4 + 4
    BLOB_PIDS_MAX = 8               # in a leaf; more go to pages of their own
    BLOB_DEPTH_MAX = 2

cdef struct blob_t:                 # BLOB_HEADER_SIZE bytes, then pids
    uint64_t size
    uint32_t part_size
    uint32_t depth

cdef inline bint blob_valid(const char *payload, uint32_t size) noexcept nogil:
    cdef blob_t blob
    if size < BLOB_HEADER_SIZE + PID_SIZE or (size - BLOB_HEADER_SIZE) % PID_SIZE:
        return False
    memcpy(&blob, payload, BLOB_HEADER_SIZE)
    return (blob.depth <= BLOB_DEPTH_MAX and blob.part_size > 0
            and (size - BLOB_HEADER_SIZE) // PID_SIZE <= BLOB_PIDS_MAX)

cdef inline int compare_keys(const char *a, uint32_t a_size, const char *b,
                             uint32_t b_size) noexcept nogil:
    cdef int order = memcmp(a, b, a_size if a_size < b_size else b_size)
    if order != 0:
        return order
    return <int>(a_size > b_size) - <int>(a_size < b_size)

cdef inline int compare_record(const node_t *node, uint32_t index, const char *suffix,
                               uint32_t size) noexcept nogil:
    # Of a record's key behind the prefix with `suffix`.
    cdef const char *record = node_record(node, index)
    return compare_keys(record + WORD_SIZE, word_key_size(record_word(record)), suffix, size)

cdef inline uint32_t search_ties(const node_t *node, uint32_t low, uint32_t head,
                                 const char *suffix, uint32_t size, bint *found) noexcept nogil:
    # `low` is the first with this head; heads that are equal say nothing.
    cdef const uint32_t *heads = node_heads(node)
    cdef uint32_t high = low + 1, middle
    cdef int order
    if high < node.count and heads[high] == head:
        if head == <uint32_t>-1:
            high = node.count
        else:
            high += heads_below(heads + high, node.count - high, head + 1)
    while low < high:
        middle = (low + high) >> 1
        order = compare_record(node, middle, suffix, size)
        if order == 0:
            found[0] = True
            return middle
        if order < 0:
            low = middle + 1
        else:
            high = middle
    return low

cdef inline uint32_t node_search(const node_t *node, const char *key, uint32_t size,
                                 bint *found) noexcept nogil:
    # Index of the first entry whose key is not below `key`; *found: it is equal. Entry 0 of an
    # inner node is never found.
    cdef const uint32_t *heads = node_heads(node)
    cdef uint32_t prefix, low, head
    cdef int order
    prefix = node.prefix_size
    found[0] = False
    if prefix != 0:
        order = memcmp(key, node_prefix(node), prefix if prefix < size else size)
        if order > 0:
            return node.count
        if order < 0 or size < prefix:
            return node_first(node)
        key += prefix
        size -= prefix
    head = key_head(key, size)
    low = node_first(node)
    low += heads_below(heads + low, node.count - low, head)
    if low < node.count and heads[low] == head:
        return search_ties(node, low, head, key, size, found)
    return low

cdef inline uint32_t node_descend(const node_t *node, const char *key,
                                  uint32_t size) noexcept nogil:
    # Of an inner node: index of the child that holds `key`.
    cdef bint found
    cdef uint32_t index = node_search(node, key, size, &found)
    return index if found else index - 1

# Making and giving back. NULL: no memory.
cdef node_t *node_new(uint8_t kind, uint8_t level, uint32_t room) noexcept nogil
cdef node_t *node_blob(const char *data, uint32_t size) noexcept nogil
cdef void node_free(node_t *node) noexcept nogil
cdef node_t *node_copy(const node_t *node) noexcept nogil
cdef node_t *node_root(uint64_t child, uint8_t level) noexcept nogil

# Key of an entry: with the prefix, into `out`; returns its size.
cdef uint32_t node_key_size(const node_t *node, uint32_t index) noexcept nogil
cdef uint32_t node_key(const node_t *node, uint32_t index, char *out) noexcept nogil

# Changes. The node may move: *node is where it is afterwards. PAGE_OK or PAGE_NO_MEMORY, and then
# nothing was changed.
cdef int node_set(node_t **node, const char *key, uint32_t size, const char *payload,
                  uint32_t payload_size, uint32_t blob) noexcept nogil
cdef int node_reserve(node_t **node, uint64_t bytes, uint32_t entries,
                      uint32_t prefix_size) noexcept nogil
cdef uint32_t node_prefix_with(const node_t *node, const char *key, uint32_t size) noexcept nogil
cdef void node_delete(node_t *node, uint32_t index) noexcept nogil
cdef void node_cut(node_t *node, uint32_t index) noexcept nogil

# New nodes from old ones. `begin` > 0 of an inner node: its first entry loses its key.
cdef node_t *node_slice(const node_t *node, uint32_t begin, uint32_t end,
                        uint32_t room) noexcept nogil
# A copy with room for `bytes` of records and `entries` slots; its prefix is not longer than said.
cdef node_t *node_roomy(const node_t *node, uint64_t bytes, uint32_t entries,
                        uint32_t prefix_size) noexcept nogil
# `right` behind `left`; of inner nodes, `separator` becomes the key of right's first entry.
cdef node_t *node_join(const node_t *left, const node_t *right, const char *separator,
                       uint32_t separator_size) noexcept nogil
# The shortest key above entry index - 1 and not above entry `index`; returns its size.
cdef uint32_t node_separator(const node_t *node, uint32_t index, char *out) noexcept nogil

cdef int node_check_entry(const node_t *node, uint32_t index) noexcept nogil
# check_invariants: 0, or the number of the rule that is broken (page.pyx lists them).
cdef int node_check(const node_t *node) noexcept nogil
