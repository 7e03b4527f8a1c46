"""Flash records of the cache: what an item looks like on the log, reading and writing it."""
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from siltstone.cache.engine cimport record_t
from siltstone.cache.items cimport item_t
from siltstone.cache.shard cimport cache_t, shard_t

cdef enum:
    RECORD_ITEM = 1             # log record kinds of the cache; zero is never valid
    RECORD_PART = 2             # a part of a large value: named by the item record that follows
    FLASH_PARTS_MAX = 4096      # of one value
    STREAM_FRESH = 0            # the log's streams
    STREAM_COMPACTED = 1
    STREAM_LARGE = 2
    STREAM_LOW_TTL = 3
    FLAG_STALE = 64             # flash_item_t.flags beside ITEM_*
    FLAG_WON = 128

cdef struct flash_item_t:       # 8 + 4 + 2 + 1 + 1 + 4 + 4 + 4 + 2 + 2 = 32 bytes
    uint64_t cas
    uint32_t value_size
    uint16_t key_less           # key size - 1
    uint8_t flags               # ITEM_TAG, ITEM_STR_KEY, ITEM_PARTS: positions follow; stale, won
    uint8_t zero
    uint32_t client_flags
    uint32_t stored_s           # Unix seconds of the last access when it went to flash
    uint32_t expires_s          # Unix seconds, rounded up; 0 = never
    uint16_t epoch              # flushes seen when it was written
    uint16_t parts              # part records, each 8 bytes of position behind the tag

cdef inline uint32_t flash_key_size(flash_item_t *head) noexcept nogil:
    return <uint32_t>head.key_less + 1

cdef inline uint32_t flash_idle_s(flash_item_t *head, int64_t now_ms) noexcept nogil:
    cdef int64_t idle_s = now_ms // 1000 - head.stored_s
    return <uint32_t>idle_s if idle_s > 0 else 0

cdef struct flash_part_t:       # 8 + 8 = 16 bytes, then the bytes of the part
    uint64_t cas                # of the item that it belongs to
    uint64_t start              # offset in the value

cdef struct demotion_t:
    # Progress of moving one item to flash: parts that are written survive leaving the lock.
    uint64_t hash
    uint64_t cas
    uint64_t value_done
    uint32_t parts
    uint64_t *positions         # FLASH_PARTS_MAX, only when a value needs parts
    uint32_t capacity

# The item behind `record.data`, checked against record.size; NULL when it makes no sense.
cdef flash_item_t *record_item(record_t *record) noexcept nogil
cdef char *record_key(record_t *record) noexcept nogil
cdef uint64_t record_tag(record_t *record) noexcept nogil
cdef char *record_value(record_t *record) noexcept nogil
# Write `item` to its stream. Log results, LOG_OK: *position is the record. Under the shard's lock.
cdef int flash_write(cache_t *cache, shard_t *shard, uint64_t hash, item_t *item, uint64_t slot_low,
                     int64_t now_ms, demotion_t *demotion, uint64_t *position) noexcept nogil
# The same for a value that never was in RAM (too large for it).
cdef int flash_write_raw(cache_t *cache, flash_item_t *head, uint64_t tag, const char *key,
                         const char *value, demotion_t *demotion,
                         uint64_t *position) noexcept nogil
# Read, verify and join: CACHE_FOUND, MISS (gone or damaged), IO, WOULD_BLOCK, NO_MEMORY.
cdef int flash_read(cache_t *cache, uint64_t position, record_t *record,
                    uint32_t flags) noexcept nogil
# Room for `size` bytes in record.value; False: no memory.
cdef bint flash_record_room(record_t *record, uint64_t size) noexcept nogil
cdef void flash_record_free(record_t *record) noexcept nogil
# Outside every lock, after LOG_SHORT: room for `capacity` positions. False: no memory.
cdef bint demotion_grow(demotion_t *demotion) noexcept nogil
cdef void demotion_free(demotion_t *demotion) noexcept nogil
