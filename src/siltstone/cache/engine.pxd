"""The cache engine's data plane as its faces (sessions, the Python class) see it. No GIL needed.

Reading (fast, no lock):

    cursor.tries, cursor.no_bump, cursor.no_wait = 0, False, False
    while True:
        status = cache_find(cache, key, key_size, hash, &cursor)
        if status != CACHE_FOUND: break            # MISS, FLASH, BUSY
        ... make room for cursor.value_size bytes, write a header from cursor.meta ...
        cache_copy(&cursor, destination)
        if cache_found(cache, &cursor): break      # accounted as a hit; else rewind and go round
    if status == CACHE_FLASH:
        status = cache_fetch(cache, key, key_size, hash, &cursor, record, LOG_NOWAIT or 0)
        # FOUND: cursor.meta and cursor.value (inside record) are right; MISS: gone;
        # WOULD_BLOCK: hand the record to a worker, which calls cache_fetch with flags 0

Changing (under the shard's lock): fill a request, call cache_execute(). CACHE_FLASH means that the
item lives on flash and the answer needs it: cache_read_record(), then cache_execute() again with
the record. A record that is no longer the item's is detected and answered by CACHE_FLASH again.
"""
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from siltstone.cache.shard cimport cache_t
from siltstone.log.arena cimport Arena
from siltstone.log.log_face cimport Log

cdef enum cache_status_t:
    CACHE_OK = 0            # stored, deleted, touched, changed: the operation was done
    CACHE_FOUND = 0
    CACHE_MISS = 1          # NOT_FOUND
    CACHE_NOT_STORED = 2    # add on an existing key; replace, append, prepend on a missing one
    CACHE_EXISTS = 3        # CAS did not match
    CACHE_FLASH = 4         # read the record first (see above)
    CACHE_WOULD_BLOCK = 5   # the record is not in memory: let a worker read it
    CACHE_TOO_LARGE = 6     # above item_size_max; a former value under the key was removed by set
    CACHE_NO_MEMORY = 7     # nothing could be evicted; a former value was removed by set
    CACHE_NOT_NUMBER = 8    # incr / decr on a value that is no unsigned decimal
    CACHE_BUSY = 9          # a lock was not had in time; nothing changed
    CACHE_IO = 10           # the device failed; the slot was removed: a miss that stays a miss

cdef enum cache_op_t:
    OP_SET = 0
    OP_ADD = 1
    OP_REPLACE = 2
    OP_APPEND = 3           # OPT_VIVIFY: create when absent (with vivify_expire_ms)
    OP_PREPEND = 4
    OP_DELETE = 5           # OPT_INVALIDATE: mark stale, new CAS, keep value; OPT_DROP_VALUE
    OP_INCR = 6             # OPT_VIVIFY: create with `initial` when absent
    OP_DECR = 7
    OP_TOUCH = 8            # new expire_ms
    OP_RECACHE = 10         # the engine's own: take a flash item up into RAM
    OP_META_GET = 9         # a get that changes: OPT_TOUCH, OPT_VIVIFY, OPT_WIN, OPT_CAS_NEW, stale

cdef enum cache_option_t:
    OPT_CAS = 1             # compare request.cas (meta C, classic cas); missing item -> CACHE_MISS
    OPT_CAS_NEW = 2         # the item gets request.cas_new (meta E)
    OPT_TOUCH = 4           # set expire_ms (gat, mg T, md T with I, ma T)
    OPT_VIVIFY = 8          # meta N: create on miss; vivify_expire_ms
    OPT_WIN = 16            # meta R: win if the TTL left is below win_below_ms
    OPT_INVALIDATE = 32     # meta I: ms with a lower CAS stores stale; md marks stale
    OPT_DROP_VALUE = 64     # md x: value becomes empty (client flags 0), the item stays
    OPT_NO_BUMP = 128       # mg without LRU effect (meta u is "no bump")
    OPT_KEEP_TTL = 256      # incr / append / set keeps the expiry of the item (embedded use)
    OPT_WANT_VALUE = 512    # META_GET, DELETE (pop), INCR: reply.value gets a copy
    OPT_STR_KEY = 1024      # the key was a str (iteration gives back what stored it)
    OPT_TAG = 2048          # request.tag
    OPT_NO_WRAP = 4096      # INCR, DECR: CACHE_NOT_NUMBER instead of passing 2^64 or 0

cdef struct meta_t:
    uint64_t cas
    uint64_t value_size
    int64_t expire_ms       # absolute Unix ms, 0 = never
    uint32_t client_flags
    uint32_t idle_s         # seconds since last access (flash: since stored there)
    bint fetched            # hit before (state before this command)
    bint stale              # meta X
    bint won                # meta W: the caller may refresh
    bint lost               # meta Z: somebody won before this command. After cache_find (on flash,
                            # too), stale and not lost: the win is to be had by OP_META_GET
    bint on_flash
    bint str_key

cdef struct read_t:
    meta_t meta
    uint64_t value_size
    uint64_t position       # when CACHE_FLASH
    const char *value       # after cache_fetch: inside the record
    uint32_t tries          # 0 before the first cache_find of a key
    bint no_bump            # the hit leaves no trace (meta u)
    bint no_wait            # CACHE_WOULD_BLOCK instead of waiting for a lock: for who has the GIL
    # the engine's own
    void *cache
    void *shard
    uint64_t sequence
    char *item
    uint64_t *slot
    uint64_t slot_word
    uint64_t slot_word_high
    bint locked

cdef struct record_t:
    # A flash record in memory; grows by realloc, owned by the caller (record_free).
    char *data
    uint64_t capacity
    uint64_t size
    uint64_t position       # of what `data` holds; 0 = nothing
    char *value             # large values are joined here
    uint64_t value_capacity
    uint64_t value_size
    int status              # of the last read

cdef struct request_t:
    uint8_t op
    uint32_t options
    const char *key
    uint32_t key_size
    uint64_t hash           # cache_hash(cache, key, key_size)
    const char *value
    uint64_t value_size
    uint32_t client_flags
    int64_t expire_ms       # absolute Unix ms; 0 = never; -1 = expired at once
    uint64_t cas
    uint64_t cas_new
    uint64_t delta
    uint64_t initial
    int64_t vivify_expire_ms
    int64_t win_below_ms
    uint64_t tag            # hash of the tag
    uint64_t position       # the engine's own: the value is on flash already; 0 = no. Start at 0

cdef struct reply_t:
    meta_t meta             # of the item after the operation (fetched, idle_s: before it)
    uint64_t number         # incr / decr
    uint64_t position       # when CACHE_FLASH
    int64_t expire_before_ms    # of the item before the operation
    bint created            # vivified
    char *value             # OPT_WANT_VALUE: a copy, grown by realloc; owned by the caller (free())
    uint64_t value_capacity

# Counters that faces add to: index into process_t.counters. Names are in cache/statistics.py.
cdef enum counter_t:
    COUNT_GET_HITS = 0
    COUNT_GET_MISSES = 1
    COUNT_GET_EXPIRED = 2
    COUNT_GET_FLUSHED = 3
    COUNT_GET_FLASH = 4             # hits answered from flash
    COUNT_CMD_GET = 5
    COUNT_CMD_SET = 6
    COUNT_CMD_FLUSH = 7
    COUNT_CMD_TOUCH = 8
    COUNT_CMD_META = 9
    COUNT_DELETE_HITS = 10
    COUNT_DELETE_MISSES = 11
    COUNT_INCR_HITS = 12
    COUNT_INCR_MISSES = 13
    COUNT_DECR_HITS = 14
    COUNT_DECR_MISSES = 15
    COUNT_CAS_HITS = 16
    COUNT_CAS_MISSES = 17
    COUNT_CAS_BADVAL = 18
    COUNT_TOUCH_HITS = 19
    COUNT_TOUCH_MISSES = 20
    COUNT_STORE_TOO_LARGE = 21
    COUNT_STORE_NO_MEMORY = 22
    COUNT_TOTAL_ITEMS = 23
    COUNT_EVICTIONS = 24            # items lost from RAM for want of memory (no flash, or refused)
    COUNT_EVICTED_UNFETCHED = 25
    COUNT_EXPIRED_UNFETCHED = 26
    COUNT_RECLAIMED = 27            # expired items whose memory was used again
    COUNT_FLASH_WRITES = 28         # items written to flash
    COUNT_FLASH_WRITE_BYTES = 29    # their key + value bytes
    COUNT_FLASH_MISSES = 30         # slot pointed to flash, the record was gone or another key's
    COUNT_FLASH_BAD = 31            # checksum
    COUNT_FLASH_ERRORS = 32         # read errors
    COUNT_RECACHED = 33
    COUNT_COMPACT_RESCUED = 34
    COUNT_COMPACT_SKIPPED = 35
    COUNT_COMPACT_LOST = 36
    COUNT_FLASH_EVICTED = 37        # live records forgotten with their segment
    COUNT_SHARDS_RESET = 38
    COUNT_BUSY = 39
    COUNT_READ_RETRIES = 40
    COUNT_BAD_OFFSETS = 41
    COUNT_CRAWLED = 42
    COUNT_CRAWLER_RECLAIMED = 43
    COUNT_SEGMENTS_FORGOTTEN = 44
    COUNT_EVICTED_ACTIVE = 45
    COUNT_REINSERTED = 46           # items that eviction kept, because they were hot


cdef uint64_t cache_hash(cache_t *cache, const char *key, uint32_t key_size) noexcept nogil
# Before looking up several keys: their misses of the processor's cache then overlap. 1..16 hashes.
cdef void cache_prefetch(cache_t *cache, const uint64_t *hashes, uint32_t count) noexcept nogil
cdef int cache_find(cache_t *cache, const char *key, uint32_t key_size, uint64_t hash,
                    read_t *cursor) noexcept nogil
cdef void cache_copy(read_t *cursor, char *destination) noexcept nogil
cdef bint cache_found(cache_t *cache, read_t *cursor) noexcept nogil
cdef int cache_fetch(cache_t *cache, const char *key, uint32_t key_size, uint64_t hash,
                     read_t *cursor, record_t *record, uint32_t flags) noexcept nogil
# The whole of a read, waiting for what has to be waited for: FOUND: cursor.value, inside `record`.
cdef int cache_read(cache_t *cache, const char *key, uint32_t key_size, uint64_t hash,
                    read_t *cursor, record_t *record) noexcept nogil
cdef int cache_read_record(cache_t *cache, uint64_t position, record_t *record,
                           uint32_t flags) noexcept nogil
cdef int cache_execute(cache_t *cache, request_t *request, record_t *record,
                       reply_t *reply) noexcept nogil
cdef void cache_count(cache_t *cache, int counter, uint64_t amount) noexcept nogil
cdef int64_t cache_now_ms(cache_t *cache) noexcept nogil
cdef void record_free(record_t *record) noexcept nogil

cdef class CacheEngine:
    """The engine over an arena and (optionally) a log; faces take `engine.cache`."""
    cdef cache_t *cache
    cdef int64_t manual_ms      # tests: the time, while cache.clock_ms points here
    cdef readonly Arena arena
    cdef readonly Log log
    cdef readonly bint closed   # device and files are gone: no thread may go in
    cdef public int inside      # threads that are in the engine without the GIL; under the GIL
