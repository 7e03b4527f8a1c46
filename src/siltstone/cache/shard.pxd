"""Shards: the unit of locking, ownership and damage. Structs, the two words of a slot, entering.

A slot is two 64-bit words:

    word 0:  63..60 hash 3..0 | 59 tagged | 58 won | 57 stale | 56 fetched | 55..54 hotness
             | 53..52 kind | 51..0 location
    word 1:  63..28 hash 39..4 | 27..0 expiry, seconds from the arena's creation (rounded up)

kind: 0 empty, 1 RAM (location = arena offset / 8), 2 flash (location = position / 16), 3 ghost
(location = the shard's eviction count at that time).
"""
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from siltstone.log.arena cimport (
    LOCK_BUSY, LOCK_OWNER_DIED, LOCK_TAKEN, arena_t, lock_drop, lock_repaired, lock_t, lock_take,
    lock_try,
)
from siltstone.log.atomics cimport (
    add64, fence_release, load64, load64_relaxed, store64, store64_relaxed,
)
from siltstone.log.log cimport LOG_ALIGNMENT, log_current, log_t

cdef enum:
    CAS_AHEAD = 1 << 20         # CAS numbers that are skipped when the arena is lost
    WORD_FORGOTTEN = 0          # of the arena's user words: segments forgotten with live records

cdef enum slot_kind_t:
    SLOT_EMPTY = 0
    SLOT_RAM = 1
    SLOT_FLASH = 2
    SLOT_GHOST = 3

cdef enum:
    GROUP_PAGES_MAX = 7         # then a group splits into two of four
    INDEX_PAGE_BYTES = 4096
    PAGE_SLOTS = 256
    DIRECTORY_PAGES = 16        # x 2,048 entries of u16
    GROUP_TABLE_PAGES = 256     # x 128 group descriptors
    QUEUES = 2
    QUEUE_SMALL = 0             # new items
    QUEUE_MAIN = 1              # items that were asked for again
    FRAME_INDEX = 1             # frame_t.kind
    FRAME_ITEMS = 2             # + queue number
    FRAME_SCRATCH = 4           # copies of index pages while their group is laid out anew
    FRAME_CLOSED = 256          # no more goes into it

cdef struct slot_t:
    uint64_t low
    uint64_t high

cdef struct group_t:            # 32 bytes: a run of index pages probed as one table
    uint8_t pages
    uint8_t depth               # directory bits that all its items share
    uint16_t used               # slots not empty
    uint32_t page[GROUP_PAGES_MAX]  # arena offset / INDEX_PAGE_BYTES

cdef struct queue_t:            # frames of items, oldest first, linked through frame_t
    uint32_t head               # frame number + 1
    uint32_t tail               # the open one
    uint32_t frames
    uint32_t pad

cdef struct shard_t:            # cache lines: the lock; what readers need; what sets change; pages
    lock_t lock                 # its `sequence` is odd while a change is under way
    uint64_t epoch              # flushes seen
    uint32_t number
    uint32_t damaged            # to be cleared before anybody uses it again
    uint32_t built              # the index has its directory. From here on: cleared in a reset
    uint32_t depth              # directory entries = roots << depth
    uint32_t groups             # group descriptors in use
    uint32_t index_pages        # in use
    uint32_t pages_free         # head of the list of free index pages (offset / 4096), 0 none
    uint32_t sweep_group        # where the sweeper goes on
    uint32_t scratch_pages      # copied there and not yet back in the index
    char pad_readers[20]
    uint64_t evictions          # evicted from the small queue: the age of ghosts
    uint64_t items_ram
    uint64_t items_flash
    uint64_t ghosts
    uint64_t bytes_ram          # key + value bytes of items in RAM
    uint64_t bytes_used         # arena bytes of live items
    char pad_counts[16]
    queue_t queue[QUEUES]
    uint32_t scratch[GROUP_PAGES_MAX]   # frame number + 1
    char pad_queues[4]
    uint32_t directory[DIRECTORY_PAGES]
    uint32_t group_table[GROUP_TABLE_PAGES]

cdef struct cache_t:
    arena_t *arena
    log_t *log                  # NULL: no flash
    shard_t *shards
    uint32_t shard_count
    uint32_t shard_shift        # shard = hash >> shard_shift
    uint32_t root_bits          # a shard starts with 1 << root_bits groups
    uint32_t hash_shift         # the 40 stored bits = hash >> hash_shift
    uint64_t index_page_first   # bounds of page numbers
    uint64_t index_page_last
    char *nowhere               # an empty page, where numbers beyond the bounds lead
    uint64_t arena_bytes        # bound of offsets
    uint64_t frames_offset      # where frames begin
    uint32_t frame_shift
    uint32_t frame_bytes
    uint32_t split_bytes        # items above this may be cut over frames
    uint32_t reserve_frames     # kept for those who evict
    uint32_t index_reserve      # frames that the index leaves: items must be able to come and go
    uint32_t evict_cursor       # where make_room looks next
    uint64_t item_size_max
    uint64_t item_bytes_ram_max # larger items go straight to flash
    uint64_t item_size_min      # smaller items never go to flash
    int64_t item_age_s          # demote idle items of this age even without pressure; -1 never
    int64_t low_ttl_s           # items with less left go to the low-TTL stream; 0 off
    int64_t low_ttl_min_ms      # items with less left never go to flash
    uint64_t recache_rate       # one in so many hot flash hits is taken back into RAM; 0 never
    uint64_t recache_counter
    bint evict_forbidden        # memcached -M: an error instead of eviction
    bint cas_disabled           # memcached -C
    bint drop_unread
    uint32_t segments_left      # free segments that only compaction may take
    uint32_t compact_under      # free segments at which compaction starts
    uint32_t drop_under         # ... at which unread items are dropped by it
    double max_fragmentation    # live share above which a segment is not worth it
    void *compactor             # compaction.pyx
    uint64_t *flush_note        # in the live map: the flush word as a restart shall see it, or NULL
    uint64_t *cas_ceiling       # in the live map: CAS numbers from it on were never given out
    int lock_descriptor         # of the lock file, whose bytes say which processes live
    int64_t *clock_ms           # tests: where the time is read; NULL: the system's

cdef extern from *:
    """
    #include <time.h>
    /* Unix milliseconds; the coarse clock (4 ms or finer) costs a few ns, expiry needs no more. */
    static inline int64_t silt_now_ms(void) {
        struct timespec now;
        clock_gettime(CLOCK_REALTIME_COARSE, &now);
        return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
    }
    """
    int64_t _system_now_ms "silt_now_ms"() noexcept nogil

cdef inline int64_t now_ms(cache_t *cache) noexcept nogil:
    return _system_now_ms() if cache.clock_ms == NULL else cache.clock_ms[0]

cdef inline uint32_t idle_seconds(cache_t *cache, uint32_t last_access, int64_t now) noexcept nogil:
    # Not below 0, should the clock have stepped back.
    cdef int64_t idle = (now - cache.arena.header.created_ms) // 1000 - last_access
    return <uint32_t>idle if idle > 0 else 0

cdef inline void count(cache_t *cache, int counter, uint64_t amount) noexcept nogil:
    add64(&cache.arena.process.counters[counter], amount)

cdef inline uint64_t cas_take(cache_t *cache) noexcept nogil:
    # The next CAS number. The live map says from where on a lost arena's successor may go on.
    cdef uint64_t number = add64(&cache.arena.header.cas_next, 1)
    if cache.cas_ceiling != NULL and number >= load64_relaxed(cache.cas_ceiling):
        store64(cache.cas_ceiling, number + CAS_AHEAD)
    return number

cdef inline uint64_t slot_kind(uint64_t low) noexcept nogil:
    return (low >> 52) & 3

cdef inline uint64_t slot_location(uint64_t low) noexcept nogil:
    return low & <uint64_t>0xfffffffffffff

cdef inline uint64_t slot_hotness(uint64_t low) noexcept nogil:
    return (low >> 54) & 3

cdef enum:
    SLOT_KIND_SHIFT = 52
    SLOT_HOT_SHIFT = 54
    EXPIRY_LOOK = 0xfffffff     # too far for 28 bits: the record says

# As C literals: Cython enums are ints
cdef extern from *:
    """
    #define SLOT_FETCHED (1ULL << 56)
    #define SLOT_STALE (1ULL << 57)
    #define SLOT_WON (1ULL << 58)
    #define SLOT_TAGGED (1ULL << 59)
    #define SLOT_STATE_MASK (0xf0ULL << 52)
    #define SLOT_HASH_MASK (0xfULL << 60)
    #define SLOT_HOT_MASK (3ULL << 54)
    #define SLOT_HIGH_HASH_MASK (~0xfffffffULL)
    """
    const uint64_t SLOT_FETCHED, SLOT_STALE, SLOT_WON, SLOT_TAGGED
    const uint64_t SLOT_STATE_MASK, SLOT_HASH_MASK, SLOT_HOT_MASK, SLOT_HIGH_HASH_MASK

cdef inline bint flash_current(cache_t *cache, uint64_t low) noexcept nogil:
    # Of a flash slot: is its segment still there? Never, when the cache lost its flash (a child
    # of fork with a private arena).
    return cache.log != NULL and log_current(cache.log, slot_location(low) * LOG_ALIGNMENT)

cdef inline uint64_t slot_hash_low(uint64_t hash40) noexcept nogil:
    return hash40 << 60

cdef inline uint64_t slot_hash_high(uint64_t hash40) noexcept nogil:
    return (hash40 >> 4) << 28

cdef inline uint64_t slot_hash40(uint64_t low, uint64_t high) noexcept nogil:
    return ((high >> 28) << 4) | (low >> 60)

cdef inline uint64_t slot_expiry(uint64_t high) noexcept nogil:
    return high & 0xfffffff

cdef inline bint slot_expired(cache_t *cache, uint64_t high, int64_t now) noexcept nogil:
    cdef uint64_t expiry = slot_expiry(high)
    return expiry != 0 and expiry != EXPIRY_LOOK and (
        cache.arena.header.created_ms + <int64_t>expiry * 1000 <= now)

cdef inline uint64_t slot_expiry_of(cache_t *cache, int64_t expire_ms) noexcept nogil:
    # Of a time in Unix ms, 0 = never, to the slot's: rounded up, never 0 for a time.
    cdef int64_t seconds
    if expire_ms == 0:
        return 0
    seconds = (expire_ms - cache.arena.header.created_ms + 999) // 1000
    if seconds < 1:
        return 1
    return <uint64_t>seconds if seconds < EXPIRY_LOOK else EXPIRY_LOOK

cdef inline shard_t *shard_of(cache_t *cache, uint64_t hash) noexcept nogil:
    return &cache.shards[hash >> cache.shard_shift]

cdef inline uint64_t hash40_of(cache_t *cache, uint64_t hash) noexcept nogil:
    return (hash >> cache.hash_shift) & <uint64_t>0xffffffffff

cdef inline uint32_t root_of(cache_t *cache, uint64_t hash) noexcept nogil:
    return <uint32_t>((hash >> (cache.hash_shift + 40)) & ((1 << cache.root_bits) - 1))

# Enter: take the lock, make the sequence odd, see flushes. 0 = busy (counted), nothing is held.
cdef bint shard_enter(cache_t *cache, shard_t *shard) noexcept nogil
cdef bint shard_try_enter(cache_t *cache, shard_t *shard) noexcept nogil
cdef void shard_leave(shard_t *shard) noexcept nogil
# Forget everything in the shard: clear live bits, empty index, items, queues, give frames back.
# False: the frame pool was busy; the shard stays `damaged`, and who enters next tries again.
cdef bint shard_clear(cache_t *cache, shard_t *shard) noexcept nogil
cdef uint64_t flush_epoch(cache_t *cache) noexcept nogil
# The live map learns of the arena's flush word. Before a flush is acknowledged.
cdef void flush_noted(cache_t *cache) noexcept nogil
