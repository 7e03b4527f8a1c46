"""Items in RAM: how they lie in frames, how room for them is found and given back.

An item is a 24-byte head, optional fields, then its content (key, then value). Small items lie in
one piece; larger ones are cut wherever a frame ends: the head is followed by *parts* in later
frames, linked both ways. Items are packed into the open frame of one of the shard's two queues.
All functions: under the shard's lock, sequence odd, but for the ones marked "reader".
"""
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from siltstone.cache.shard cimport cache_t, shard_t

cdef enum item_flag_t:
    ITEM_EXPIRY = 1         # int64 expire_ms follows the head
    ITEM_TAG = 2            # u64: tag hash (32) | generation (32)
    ITEM_PARTS = 4          # u64 next part's offset, u32 content bytes here, u32 zero
    ITEM_STR_KEY = 8        # the key was a str

cdef enum item_kind_t:      # zero is never valid
    KIND_HEAD = 1
    KIND_PART = 2
    KIND_DEAD_HEAD = 3
    KIND_DEAD_PART = 4

cdef struct item_t:         # 8 + 4 + 2 + 1 + 1 + 4 + 4 = 24 bytes
    uint64_t cas
    uint32_t value_size
    uint16_t key_less       # key size - 1
    uint8_t flags
    uint8_t kind
    uint32_t last_access    # seconds from the arena's creation
    uint32_t client_flags

cdef struct item_part_t:    # 8 + 4 + 2 + 1 + 1 + 8 = 24 bytes; `kind` lies where item_t has it
    uint64_t next           # arena offset, 0 = last
    uint32_t size           # content bytes here
    uint16_t zero
    uint8_t flags
    uint8_t kind
    uint64_t prev           # the former part, or the head

cdef struct item_link_t:    # 8 + 4 + 4 = 16 bytes, of items with ITEM_PARTS
    uint64_t next
    uint32_t size
    uint32_t zero

cdef inline uint32_t item_fields(uint8_t flags) noexcept nogil:
    # head and optional fields
    return 24 + (8 if flags & ITEM_EXPIRY else 0) + (8 if flags & ITEM_TAG else 0) + (
        16 if flags & ITEM_PARTS else 0)

cdef inline int64_t *item_expiry(item_t *item) noexcept nogil:
    return <int64_t *>(<char *>item + 24)

cdef inline uint64_t *item_tag(item_t *item) noexcept nogil:
    return <uint64_t *>(<char *>item + 24 + (8 if item.flags & ITEM_EXPIRY else 0))

cdef inline item_link_t *item_link(item_t *item) noexcept nogil:
    return <item_link_t *>(<char *>item + item_fields(item.flags) - 16)

cdef inline uint32_t item_key_size(item_t *item) noexcept nogil:
    return <uint32_t>item.key_less + 1

cdef inline uint64_t item_content(item_t *item) noexcept nogil:
    return <uint64_t>item_key_size(item) + item.value_size

cdef inline item_t *item_at(cache_t *cache, uint64_t offset) noexcept nogil:
    return <item_t *>(cache.arena.base + offset)

cdef inline uint64_t item_offset(cache_t *cache, item_t *item) noexcept nogil:
    return <uint64_t>(<char *>item - cache.arena.base)

# Make an item with room for its content; fields set but cas, last_access, client_flags.
# NULL: no frame to be had.
cdef item_t *item_new(cache_t *cache, shard_t *shard, int queue, uint32_t reserve, uint8_t flags,
                      uint32_t key_size, uint64_t value_size) noexcept nogil
cdef void item_free(cache_t *cache, shard_t *shard, item_t *item) noexcept nogil
# Content from `start` on: pointer to the bytes that lie there in one piece; *size = how many.
cdef char *item_span(cache_t *cache, item_t *item, uint64_t start, uint64_t *size) noexcept nogil
cdef void item_write(cache_t *cache, item_t *item, uint64_t start, const char *data,
                     uint64_t size) noexcept nogil
cdef void item_read(cache_t *cache, item_t *item, uint64_t start, char *data,
                    uint64_t size) noexcept nogil
cdef bint item_has_key(cache_t *cache, item_t *item, const char *key,
                       uint32_t key_size) noexcept nogil
# Under the lock, before an offset that was found in the arena is followed: is it the head of an
# item of this shard, all of whose parts are where they must be? Else the shard is damaged.
cdef bint parts_sound(cache_t *cache, shard_t *shard, uint64_t offset) noexcept nogil
cdef inline bint item_sound(cache_t *cache, shard_t *shard, uint64_t offset) noexcept nogil:
    cdef item_t *item = item_at(cache, offset)
    if offset < cache.frames_offset or offset + 24 > cache.arena_bytes or offset & 7:
        return False
    if cache.arena.frames[(offset - cache.frames_offset) >> cache.frame_shift].owner != (
            shard.number + 1) or item.kind != KIND_HEAD:
        return False
    if item.flags & ITEM_PARTS:
        return parts_sound(cache, shard, offset)
    return ((offset - cache.frames_offset) & (cache.frame_bytes - 1)) + (
        item_fields(item.flags) + item_content(item)) <= cache.frame_bytes
# The same for a part and its two neighbours.
cdef bint part_sound(cache_t *cache, shard_t *shard, uint64_t offset) noexcept nogil
# reader: a copy of the head at `offset`, each word loaded once, and how many content bytes follow
# its fields. False: that is no head, or its bytes do not lie inside one frame.
cdef bint item_snapshot(cache_t *cache, uint64_t offset, item_t *head,
                        uint64_t *here) noexcept nogil
# reader: copy content of an item with parts; False when an offset makes no sense (it changed)
cdef bint item_read_checked(cache_t *cache, item_t *item, uint64_t start, char *data,
                            uint64_t size) noexcept nogil
# Bytes of the entry (head or part, dead or alive) at `entry`, for walking a frame.
cdef uint32_t entry_bytes(char *entry) noexcept nogil
cdef void queue_close(cache_t *cache, shard_t *shard, int queue) noexcept nogil
cdef bint frame_release(cache_t *cache, shard_t *shard, uint32_t frame) noexcept nogil
# Move the head of an item that has parts; the caller lets the slot point to what is returned.
# NULL: no frame.
cdef item_t *head_move(cache_t *cache, shard_t *shard, int queue, uint32_t reserve,
                       item_t *item) noexcept nogil
# Move a live part elsewhere (its frame is being emptied). False: no frame.
cdef bint part_move(cache_t *cache, shard_t *shard, int queue, uint32_t reserve,
                    item_part_t *part) noexcept nogil
