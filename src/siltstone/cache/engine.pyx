"""The cache engine: finding, reading and changing items (how to call it: engine.pxd).

Owns the rules of every operation; index, items, flash and eviction do the work. Callable from any
thread of any process that maps the arena, without the GIL. Lock order: shard, stream, segment
table, frame pool; nobody holds two shards.
"""
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memcmp, memcpy, memset

from siltstone.cache.change cimport NEED_FRAMES, NEED_INDEX, NEED_REPLY, change_apply
from siltstone.cache.compaction cimport compaction_close, compaction_open
from siltstone.cache.engine cimport *
from siltstone.cache.eviction cimport make_room, unlink
from siltstone.cache.flash cimport (
    flash_idle_s, flash_item_t, flash_key_size, flash_read, flash_record_free,
    flash_record_room, record_item, record_key, record_tag, record_value,
)
from siltstone.cache.hashing cimport siphash13
from siltstone.cache.index cimport index_prefetch, index_probe
from siltstone.cache.large cimport large_write
from siltstone.cache.items cimport *
from siltstone.cache.shard cimport *
from siltstone.cache.tags cimport tag_count, tag_evict, tag_fresh, tag_word, tags_init
from siltstone.log.arena cimport (
    PROCESS_COUNTERS, PROCESS_SLOTS, SECTION_CACHE, SECTION_PROCESSES, Arena, frame_size,
    frames_free, frames_trim, lock_init, lock_timeouts, process_t, section,
)
from siltstone.log.atomics cimport add64, cas64, cpu_pause, fence_acquire, load64
from siltstone.log.log_face cimport Log
from siltstone.log.log cimport LOG_ALIGNMENT

from siltstone import errors

cdef enum:
    READ_TRIES = 8          # then the reader takes the shard's lock
    BUMP_AFTER_S = 60       # last access moves at most this often
    FETCH_TRIES = 8         # moves of an item between finding and reading it
    CHANGE_TRIES = 64       # rounds of making room before a change is refused
    SQUEEZE_PAGES = 12      # an index of fewer pages is not worth forgetting its shard

cdef uint64_t cache_hash(cache_t *cache, const char *key, uint32_t key_size) noexcept nogil:
    return siphash13(cache.arena.header.secret, key, key_size)

cdef void cache_prefetch(cache_t *cache, const uint64_t *hashes, uint32_t count) noexcept nogil:
    index_prefetch(cache, hashes, count)

cdef void cache_count(cache_t *cache, int counter, uint64_t amount) noexcept nogil:
    count(cache, counter, amount)

cdef int64_t cache_now_ms(cache_t *cache) noexcept nogil:
    return now_ms(cache)

cdef int cache_read_record(cache_t *cache, uint64_t position, record_t *record,
                           uint32_t flags) noexcept nogil:
    return flash_read(cache, position, record, flags)

cdef void record_free(record_t *record) noexcept nogil:
    flash_record_free(record)

# Reading ------------------------------------------------------------------------------------

cdef enum:
    LOOK_AGAIN = 100        # what was read makes no sense: take the lock
    LOOK_REMOVE = 101       # expired, or its segment is gone: take the slot away, then a miss

cdef int _look(cache_t *cache, shard_t *shard, const char *key, uint32_t key_size, uint64_t hash,
               read_t *cursor, int64_t now) noexcept nogil:
    # What the index says about the key; the caller validates the sequence.
    cdef slot_t *slot = index_probe(cache, shard, hash)
    cdef uint64_t low, kind
    if slot == NULL:
        return CACHE_MISS
    low = slot.low
    kind = slot_kind(low)
    if kind == SLOT_GHOST or kind == SLOT_EMPTY:
        return CACHE_MISS
    cursor.slot = <uint64_t *>slot
    cursor.slot_word = low
    cursor.slot_word_high = slot.high
    if kind == SLOT_RAM:
        return _look_ram(cache, key, key_size, cursor, now)
    if slot_expired(cache, cursor.slot_word_high, now):
        return LOOK_REMOVE
    cursor.position = slot_location(low) * LOG_ALIGNMENT
    if not flash_current(cache, low):
        return LOOK_REMOVE
    _slot_meta(&cursor.meta, low)
    return CACHE_FLASH

cdef int _look_ram(cache_t *cache, const char *key, uint32_t key_size, read_t *cursor,
                   int64_t now) noexcept nogil:
    # Everything is taken from `head`, a copy whose bounds were checked.
    cdef uint64_t offset = slot_location(cursor.slot_word) * 8, here = 0
    cdef item_t head
    cdef item_t *item = item_at(cache, offset)
    cdef char *content
    if not item_snapshot(cache, offset, &head, &here):
        return LOOK_AGAIN
    if item_key_size(&head) != key_size:
        return CACHE_MISS
    content = <char *>item + item_fields(head.flags)
    if here < key_size:
        if not cursor.locked or not item_sound(cache, <shard_t *>cursor.shard, offset):
            return LOOK_AGAIN
        if not item_has_key(cache, item, key, key_size):
            return CACHE_MISS
    elif memcmp(content, key, key_size) != 0:
        return CACHE_MISS
    cursor.meta.expire_ms = item_expiry(item)[0] if head.flags & ITEM_EXPIRY else 0
    if cursor.meta.expire_ms and cursor.meta.expire_ms <= now:
        return LOOK_REMOVE
    if cursor.slot_word & SLOT_TAGGED and head.flags & ITEM_TAG and (
            not tag_fresh(cache.arena, (<uint64_t *>(
                <char *>item + 24 + (8 if head.flags & ITEM_EXPIRY else 0)))[0])):
        return LOOK_REMOVE
    cursor.item = <char *>item
    cursor.value = NULL if head.flags & ITEM_PARTS else content + key_size
    cursor.meta.cas = head.cas
    cursor.meta.value_size = cursor.value_size = head.value_size
    cursor.meta.client_flags = head.client_flags
    cursor.meta.idle_s = idle_seconds(cache, head.last_access, now)
    cursor.meta.str_key = (head.flags & ITEM_STR_KEY) != 0
    _slot_meta(&cursor.meta, cursor.slot_word)
    cursor.meta.on_flash = False
    return CACHE_FOUND

cdef inline void _slot_meta(meta_t *meta, uint64_t low) noexcept nogil:
    meta.fetched = (low & SLOT_FETCHED) != 0
    meta.stale = (low & SLOT_STALE) != 0
    meta.lost = (low & SLOT_WON) != 0
    meta.won = False

cdef int cache_find(cache_t *cache, const char *key, uint32_t key_size, uint64_t hash,
                    read_t *cursor) noexcept nogil:
    cdef shard_t *shard = shard_of(cache, hash)
    cdef int64_t now = now_ms(cache)
    cdef int status
    cursor.cache = cache
    cursor.shard = shard
    cursor.locked = False
    while True:
        if cursor.tries >= READ_TRIES:
            status = _enter(cache, shard, cursor.no_wait)
            if status != CACHE_OK:
                return status
            cursor.locked = True
        else:
            cursor.sequence = load64(&shard.lock.sequence)
            if cursor.sequence & 1 or shard.epoch != flush_epoch(cache):
                if not cursor.sequence & 1:
                    cursor.tries = READ_TRIES       # a flush: entering makes the shard see it
                cursor.tries += 1
                cpu_pause()
                continue
        status = _look(cache, shard, key, key_size, hash, cursor, now)
        if not cursor.locked:
            fence_acquire()
            if load64(&shard.lock.sequence) != cursor.sequence:
                cursor.tries += 1
                count(cache, COUNT_READ_RETRIES, 1)
                continue
            if status == LOOK_AGAIN:
                cursor.tries = READ_TRIES
                continue
        return _found_or_left(cache, shard, hash, cursor, status, key, key_size)

cdef inline int _enter(cache_t *cache, shard_t *shard, bint no_wait) noexcept nogil:
    if no_wait:
        return CACHE_OK if shard_try_enter(cache, shard) else CACHE_WOULD_BLOCK
    return CACHE_OK if shard_enter(cache, shard) else CACHE_BUSY

cdef int _found_or_left(cache_t *cache, shard_t *shard, uint64_t hash, read_t *cursor, int status,
                        const char *key, uint32_t key_size) noexcept nogil:
    # Only FOUND keeps the lock (until cache_found); all else lets go of it.
    cdef int removed
    if status == CACHE_FOUND:
        return status
    if cursor.locked:
        if status == LOOK_AGAIN:        # under the lock that is damage: forget the shard
            count(cache, COUNT_BAD_OFFSETS, 1)
            shard_clear(cache, shard)
        shard_leave(shard)
        cursor.locked = False
    if status == LOOK_REMOVE:
        removed = _remove_exact(cache, shard, hash, cursor, now_ms(cache))
        if removed != CACHE_OK:
            return removed
        if slot_kind(cursor.slot_word) == SLOT_RAM and cursor.slot_word & SLOT_TAGGED and (
                not slot_expired(cache, cursor.slot_word_high, now_ms(cache))):
            count(cache, COUNT_GET_FLUSHED, 1)
        elif slot_kind(cursor.slot_word) == SLOT_RAM or (
                slot_expired(cache, cursor.slot_word_high, now_ms(cache))):
            count(cache, COUNT_GET_EXPIRED, 1)
        else:
            count(cache, COUNT_FLASH_MISSES, 1)
        status = CACHE_MISS
    if status == LOOK_AGAIN:
        status = CACHE_MISS
    if status == CACHE_MISS:
        count(cache, COUNT_GET_MISSES, 1)
    return status

cdef int _remove_exact(cache_t *cache, shard_t *shard, uint64_t hash, read_t *cursor,
                       int64_t now) noexcept nogil:
    # The slot goes if it still says the very same place. A miss must stay a miss. A place in RAM
    # may hold a younger item by now, so that one must have expired (or been evicted) too.
    cdef uint64_t word = cursor.slot_word
    cdef slot_t *slot
    cdef int status = _enter(cache, shard, cursor.no_wait)
    if status != CACHE_OK:
        return status
    slot = index_probe(cache, shard, hash)
    if slot != NULL and slot_kind(slot.low) == slot_kind(word) and (
            slot_location(slot.low) == slot_location(word)) and (
            slot_kind(word) == SLOT_FLASH or _expired(cache, slot, now)):
        unlink(cache, shard, hash, slot)
    shard_leave(shard)
    return CACHE_OK

cdef inline bint _expired(cache_t *cache, slot_t *slot, int64_t now) noexcept nogil:
    # Of an item in RAM, under the lock.
    cdef uint64_t offset = slot_location(slot.low) * 8, here = 0
    cdef item_t head
    cdef item_t *item = item_at(cache, offset)
    if not item_snapshot(cache, offset, &head, &here):
        return False
    if head.flags & ITEM_TAG and not tag_fresh(cache.arena, item_tag(item)[0]):
        return True
    return head.flags & ITEM_EXPIRY != 0 and (
        item_expiry(item)[0] != 0 and item_expiry(item)[0] <= now)

cdef void cache_copy(read_t *cursor, char *destination) noexcept nogil:
    # cache_find checked place and size against the frame and then the sequence; whatever happened
    # to the item since, these bytes lie inside the arena.
    if cursor.value != NULL:
        memcpy(destination, cursor.value, cursor.value_size)
    elif not item_read_checked(
            <cache_t *>cursor.cache, <item_t *>cursor.item, item_key_size(<item_t *>cursor.item),
            destination, cursor.value_size):
        cursor.sequence = 1         # never equal: cache_found says no

cdef bint cache_found(cache_t *cache, read_t *cursor) noexcept nogil:
    cdef shard_t *shard = <shard_t *>cursor.shard
    if not cursor.locked:
        fence_acquire()
        if load64(&shard.lock.sequence) != cursor.sequence:
            cursor.tries += 1
            count(cache, COUNT_READ_RETRIES, 1)
            return False
    if not cursor.no_bump:
        _bump(cache, cursor)
    if cursor.locked:
        shard_leave(shard)
        cursor.locked = False
    count(cache, COUNT_GET_HITS, 1)
    return True

cdef inline void _bump(cache_t *cache, read_t *cursor) noexcept nogil:
    # One compare-and-swap, and none once the item is as hot as can be told. It fails when the
    # slot says anything else by now, so it never writes into memory that was used again.
    cdef uint64_t low = cursor.slot_word, hot = slot_hotness(low)
    if hot < 3 or not low & SLOT_FETCHED:
        if hot < 3:
            hot += 1
        cas64(cursor.slot, low, (low & ~SLOT_HOT_MASK) | (hot << SLOT_HOT_SHIFT) | SLOT_FETCHED)
    if cursor.meta.idle_s >= BUMP_AFTER_S and not cursor.meta.on_flash:
        _touch_access(cache, cursor)

cdef void _touch_access(cache_t *cache, read_t *cursor) noexcept nogil:
    # Rare: the time of last access lies in the item, so it is written under the lock.
    cdef shard_t *shard = <shard_t *>cursor.shard
    cdef item_t *item
    cdef bint entered = cursor.locked or shard_try_enter(cache, shard)
    if not entered:
        return
    if cursor.locked or shard.lock.sequence == cursor.sequence + 1:
        item = <item_t *>cursor.item
        item.last_access = <uint32_t>((now_ms(cache) - cache.arena.header.created_ms) // 1000)
    if not cursor.locked:
        shard_leave(shard)

cdef int cache_fetch(cache_t *cache, const char *key, uint32_t key_size, uint64_t hash,
                     read_t *cursor, record_t *record, uint32_t flags) noexcept nogil:
    cdef int status, tries
    for tries in range(FETCH_TRIES):
        status = flash_read(cache, cursor.position, record, flags)
        if status == CACHE_WOULD_BLOCK or status == CACHE_NO_MEMORY:
            return status
        if status == CACHE_FOUND:
            return _fetched(cache, key, key_size, hash, cursor, record)
        # Its segment is gone or the bytes are damaged. If the slot still says so, it goes; if it
        # says another place by now (compaction, a new value), that is where to look.
        status = _remove_exact(cache, <shard_t *>cursor.shard, hash, cursor, 0)
        if status != CACHE_OK:
            return status
        status = _find_again(cache, key, key_size, hash, cursor, record)
        if status != CACHE_FLASH:
            return status
    return CACHE_BUSY

cdef int cache_read(cache_t *cache, const char *key, uint32_t key_size, uint64_t hash,
                    read_t *cursor, record_t *record) noexcept nogil:
    cdef int status
    cursor.no_wait = False
    status = _find_again(cache, key, key_size, hash, cursor, record)
    if status == CACHE_FLASH:
        status = cache_fetch(cache, key, key_size, hash, cursor, record, 0)
    return status

cdef int _find_again(cache_t *cache, const char *key, uint32_t key_size, uint64_t hash,
                     read_t *cursor, record_t *record) noexcept nogil:
    # As a reader does; a value in RAM is copied to where a large one would be joined.
    cdef int status
    cursor.tries = 0
    while True:
        status = cache_find(cache, key, key_size, hash, cursor)
        if status != CACHE_FOUND:
            return status
        if not flash_record_room(record, cursor.value_size):
            cursor.no_bump = True
            cache_found(cache, cursor)      # lets go of the shard, if it had to be locked
            return CACHE_NO_MEMORY
        cache_copy(cursor, record.value)
        if cache_found(cache, cursor):
            cursor.value = record.value
            return CACHE_FOUND

cdef int _fetched(cache_t *cache, const char *key, uint32_t key_size, uint64_t hash,
                  read_t *cursor, record_t *record) noexcept nogil:
    cdef flash_item_t *head = record_item(record)
    cdef int status
    if flash_key_size(head) != key_size or memcmp(record_key(record), key, key_size) != 0:
        count(cache, COUNT_GET_MISSES, 1)
        return CACHE_MISS               # another key with the same 48 bits: absence is proved
    if head.flags & ITEM_TAG and not tag_fresh(cache.arena, record_tag(record)):
        status = _remove_exact(cache, <shard_t *>cursor.shard, hash, cursor, 0)
        if status != CACHE_OK:
            return status
        count(cache, COUNT_GET_FLUSHED, 1)
        count(cache, COUNT_GET_MISSES, 1)
        return CACHE_MISS
    _record_meta(cache, &cursor.meta, head, cursor)
    cursor.value = record_value(record)
    cursor.value_size = record.value_size
    count(cache, COUNT_GET_HITS, 1)
    count(cache, COUNT_GET_FLASH, 1)
    if not cursor.no_bump:
        _bump(cache, cursor)
        _maybe_recache(cache, key, key_size, hash, cursor, record)
    return CACHE_FOUND

cdef void _record_meta(cache_t *cache, meta_t *meta, flash_item_t *head,
                       read_t *cursor) noexcept nogil:
    cdef uint64_t expiry = slot_expiry(cursor.slot_word_high)
    meta.cas = head.cas
    meta.value_size = head.value_size
    meta.client_flags = head.client_flags
    meta.idle_s = flash_idle_s(head, now_ms(cache))
    meta.expire_ms = 0 if expiry == 0 else (
        <int64_t>head.expires_s * 1000 if expiry == EXPIRY_LOOK
        else cache.arena.header.created_ms + <int64_t>expiry * 1000)
    meta.str_key = (head.flags & ITEM_STR_KEY) != 0
    _slot_meta(meta, cursor.slot_word)
    meta.on_flash = True

cdef void _maybe_recache(cache_t *cache, const char *key, uint32_t key_size, uint64_t hash,
                         read_t *cursor, record_t *record) noexcept nogil:
    # Hot on flash, and one of `recache_rate` such hits: back into RAM. Never makes room for it.
    cdef request_t request
    cdef reply_t reply
    if cache.recache_rate == 0 or slot_hotness(cursor.slot_word) < 2 or (
            frames_free(cache.arena) <= cache.reserve_frames
            or record.value_size + key_size > cache.item_bytes_ram_max):
        return
    if add64(&cache.recache_counter, 1) % cache.recache_rate:
        return
    memset(&request, 0, sizeof(request))
    request.op = OP_RECACHE
    request.key = key
    request.key_size = key_size
    request.hash = hash
    if not shard_try_enter(cache, <shard_t *>cursor.shard):
        return
    change_apply(cache, <shard_t *>cursor.shard, &request, record, &reply, False)
    shard_leave(<shard_t *>cursor.shard)

# Changing -----------------------------------------------------------------------------------

cdef int cache_execute(cache_t *cache, request_t *request, record_t *record,
                       reply_t *reply) noexcept nogil:
    cdef shard_t *shard = shard_of(cache, request.hash)
    cdef int status, tries = 0
    cdef uint32_t timeouts = lock_timeouts()
    cdef uint64_t needed
    cdef bint force = False
    request.position = 0
    if _too_large_for_ram(cache, request):
        status = large_write(cache, request)
        if status != CACHE_OK:
            return status if status == CACHE_BUSY else _refuse(cache, shard, request)
    while tries < CHANGE_TRIES:
        tries += 1
        if not shard_enter(cache, shard):
            return CACHE_BUSY
        status = change_apply(cache, shard, request, record, reply, force)
        shard_leave(shard)
        if status == NEED_REPLY:
            if not _reply_grown(reply):
                return CACHE_NO_MEMORY
        elif status == NEED_INDEX:
            if not make_room(cache, 1 + cache.index_reserve) and not _squeeze(cache) and (
                    lock_timeouts() == timeouts):
                # what is left to give up is the group's oldest flash slots
                if force:
                    break
                force = True
        elif status == NEED_FRAMES:
            needed = request.value_size + request.key_size + reply.meta.value_size
            if not make_room(cache, 2 + <uint32_t>(needed // cache.frame_bytes)) and (
                    not _squeeze(cache) and lock_timeouts() == timeouts):
                break
        else:
            return status
        if lock_timeouts() != timeouts:
            count(cache, COUNT_BUSY, 1)     # somebody is stopped: nothing was changed
            return CACHE_BUSY
    return _refuse(cache, shard, request)

cdef bint _too_large_for_ram(cache_t *cache, request_t *request) noexcept nogil:
    return cache.log != NULL and request.op <= OP_REPLACE and request.expire_ms >= 0 and (
        request.value_size <= cache.item_size_max
        and request.value_size + request.key_size > cache.item_bytes_ram_max)

cdef bint _squeeze(cache_t *cache) noexcept nogil:
    # Nothing is left to evict, so the index has the memory, and it never shrinks: forget the shard
    # whose index is emptiest, if that is more than half of it.
    cdef uint32_t number
    cdef shard_t *shard
    cdef shard_t *best = NULL
    cdef int64_t waste, most = 0
    for number in range(cache.shard_count):
        shard = &cache.shards[number]
        waste = <int64_t>shard.index_pages * (PAGE_SLOTS // 2) - (
            <int64_t>(shard.items_ram + shard.items_flash))
        if waste > most and not (cache.evict_forbidden and shard.items_ram + shard.items_flash):
            most = waste
            best = shard
    if best == NULL or best.index_pages < SQUEEZE_PAGES or not shard_enter(cache, best):
        return False
    shard_clear(cache, best)
    shard_leave(best)
    return True

cdef bint _reply_grown(reply_t *reply) noexcept nogil:
    cdef uint64_t needed = reply.meta.value_size + reply.meta.value_size // 4 + 64
    cdef char *larger = <char *>realloc(reply.value, needed)
    if larger == NULL:
        return False
    reply.value = larger
    reply.value_capacity = needed
    return True

cdef int _refuse(cache_t *cache, shard_t *shard, request_t *request) noexcept nogil:
    # A set that fails takes the old value away, as memcached's does: the client may no longer
    # believe in it.
    cdef slot_t *slot
    count(cache, COUNT_STORE_NO_MEMORY, 1)
    if request.op == OP_SET and shard_enter(cache, shard):
        slot = index_probe(cache, shard, request.hash)
        if slot != NULL:
            unlink(cache, shard, request.hash, slot)
        shard_leave(shard)
    return CACHE_NO_MEMORY

# The engine as an object -----------------------------------------------------------------------


def geometry(limit_bytes: int) -> tuple[int, int]:
    """(shards, bytes of a frame) for a memory limit.

    A shard a MiB keeps what a killed process can cost small and spreads the locks; its open
    frames and first index pages are then about 3 % of it. A frame is a 4,096th of the limit: that
    fine, eviction is gentle, and what a queue's open frame leaves unused is small.
    """
    shards = 1 << max(2, min(12, (limit_bytes >> 20).bit_length() - 1))
    frame_bytes = 1 << max(13, min(16, (limit_bytes >> 12).bit_length() - 1))
    return shards, frame_bytes


def cache_section_bytes(shards: int) -> int:
    """Bytes of the arena section that holds `shards` shards."""
    return shards * sizeof(shard_t) + 2 * <int>INDEX_PAGE_BYTES     # one aligned, empty page


cdef class CacheEngine:
    """The engine over an arena; `log` gives it flash. `fresh`: the arena was made just now."""

    def __cinit__(self, Arena arena not None, uint32_t shards, Log log=None, bint fresh=True):
        cdef cache_t *cache = <cache_t *>calloc(1, sizeof(cache_t))
        cdef uint32_t number
        if cache == NULL:
            raise MemoryError()
        self.cache = cache
        self.arena = arena
        self.log = log
        cache.arena = &arena.arena
        cache.log = NULL if log is None else log.c_log
        cache.shards = <shard_t *>section(cache.arena, SECTION_CACHE)
        cache.shard_count = shards
        cache.shard_shift = 64 - (shards.bit_length() - 1)
        # identity is 48 bits from 32 shards on; with fewer it is a bit less for half the items
        cache.root_bits = min(3, max(0, 8 - (shards.bit_length() - 1)))
        cache.hash_shift = cache.shard_shift - cache.root_bits - 40
        cache.arena_bytes = arena.arena.header.frames_offset + (
            <uint64_t>arena.arena.header.frame_count_max << arena.arena.header.frame_shift)
        cache.index_page_first = arena.arena.header.frames_offset // INDEX_PAGE_BYTES
        cache.index_page_last = cache.arena_bytes // INDEX_PAGE_BYTES - 1
        # frames_offset is a multiple of a page, so is the distance of `nowhere` from it
        cache.nowhere = <char *>cache.shards + (
            shards * sizeof(shard_t) + INDEX_PAGE_BYTES - 1) // INDEX_PAGE_BYTES * INDEX_PAGE_BYTES
        cache.frames_offset = arena.arena.header.frames_offset
        cache.frame_shift = arena.arena.header.frame_shift
        cache.frame_bytes = frame_size(cache.arena)
        cache.split_bytes = cache.frame_bytes // 8
        cache.reserve_frames = 8
        cache.index_reserve = 8 + shards
        cache.item_size_max = 1 << 20
        cache.item_bytes_ram_max = arena.arena.header.limit_bytes // 8
        cache.item_age_s = -1
        cache.low_ttl_min_ms = 2000
        cache.recache_rate = 2000
        if fresh:
            for number in range(shards):
                memset(&cache.shards[number], 0, sizeof(shard_t))
                lock_init(&cache.shards[number].lock, cache.arena.shared)
                cache.shards[number].number = number
            tags_init(cache.arena)
        if not compaction_open(cache):
            raise MemoryError()

    def enter(self) -> None:
        """Before a call that lets go of the GIL; `leave` afterwards. Closed when it is too late."""
        if self.closed:
            raise errors.Closed("this cache is closed")
        self.inside += 1

    def leave(self) -> None:
        self.inside -= 1

    def close(self) -> None:
        """No thread goes in any more; the caller waits until `inside` is 0."""
        self.closed = True

    def lose_flash(self) -> None:
        """In a forked child with a private arena: what is on flash is the parent's alone."""
        self.cache.log = NULL
        self.cache.flush_note = NULL        # both in the parent's live map
        self.cache.cas_ceiling = NULL
        self.log = None

    def __dealloc__(self):
        if self.cache != NULL:
            compaction_close(self.cache)
        free(self.cache)
        self.cache = NULL

    def configure(self, *, item_size_max: int | None = None, item_age_s: int | None = None,
                  low_ttl_s: int | None = None, recache_rate: int | None = None,
                  evict: bool | None = None, cas: bool | None = None,
                  drop_unread: bool | None = None,
                  item_size_min: int | None = None,
                  low_ttl_min_ms: int | None = None) -> None:
        """Change what may change while running; None leaves a setting as it is."""
        if item_size_max is not None:
            self.cache.item_size_max = item_size_max
        if item_age_s is not None:
            self.cache.item_age_s = item_age_s
        if low_ttl_s is not None:
            self.cache.low_ttl_s = low_ttl_s
        if low_ttl_min_ms is not None:
            self.cache.low_ttl_min_ms = low_ttl_min_ms
        if recache_rate is not None:
            self.cache.recache_rate = recache_rate
        if evict is not None:
            self.cache.evict_forbidden = not evict
        if cas is not None:
            self.cache.cas_disabled = not cas
        if drop_unread is not None:
            self.cache.drop_unread = drop_unread
        if item_size_min is not None:
            self.cache.item_size_min = item_size_min

    def set_limit(self, limit_bytes: int) -> None:
        """Another memory limit, at most the highest that the arena was made for.

        Returns when it holds. A limit below what the index alone takes costs whole shards.
        Raises ConfigError when no cache works with so little; OutOfMemory when eviction is
        forbidden and the items are more than that (the limit is in force all the same).
        """
        cdef cache_t *cache = self.cache
        cdef uint64_t least = cache.arena.header.frames_offset + (
            <uint64_t>(cache.reserve_frames + 8) << cache.arena.header.frame_shift)
        cdef uint32_t number = 0, wanted = 1 + cache.index_reserve
        cdef bint fits
        if limit_bytes < least:
            raise errors.ConfigError(f"memory limit too small: give at least {least} bytes")
        self.arena.set_limit(limit_bytes)
        cache.item_bytes_ram_max = cache.arena.header.limit_bytes // 8
        with nogil:
            fits = make_room(cache, wanted)
            while not fits and not cache.evict_forbidden and number < cache.shard_count:
                if shard_enter(cache, &cache.shards[number]):
                    shard_clear(cache, &cache.shards[number])
                    shard_leave(&cache.shards[number])
                number += 1
                fits = frames_free(cache.arena) >= wanted + cache.reserve_frames
            frames_trim(cache.arena)
        if self.arena.frames_used > self.arena.frames_limit:
            raise errors.OutOfMemory("the items do not fit the new limit, and may not be evicted")

    def set_clock(self, now_ms: int | None) -> None:
        """For tests: the time stands still at `now_ms` (Unix). None: the system's clock again."""
        self.manual_ms = now_ms or 0
        self.cache.clock_ms = NULL if now_ms is None else &self.manual_ms

    def flush_at(self, due_ms: int) -> None:
        """Everything stored before `due_ms` (Unix) is gone once that time comes.

        A later call replaces one that has not come yet; a time that is past flushes at once.
        """
        cdef uint64_t *place = &self.cache.arena.header.flush_word
        cdef uint64_t due = max(1, min(due_ms, (1 << 48) - 1)), word = 0
        count(self.cache, COUNT_CMD_FLUSH, 1)
        flush_epoch(self.cache)         # one that is due already happens, it is not replaced
        word = load64(place)
        while not cas64(place, word, ((word >> 48) << 48) | due):
            flush_epoch(self.cache)
            word = load64(place)
        flush_noted(self.cache)

    def tag_of(self, bytes tag not None) -> int:
        """What an item stored under `tag` now carries; see tags.pxd."""
        return tag_word(self.cache.arena, siphash13(self.cache.arena.header.secret, tag, len(tag)))

    def tag_stored(self, uint64_t word) -> None:
        """One more item was stored under that tag."""
        tag_count(self.cache.arena, word)

    def evict_tag(self, bytes tag not None) -> int:
        """Every item stored under `tag` until now is gone; how many were stored."""
        return tag_evict(self.cache.arena,
                         siphash13(self.cache.arena.header.secret, tag, len(tag)))

    @property
    def recache_rate(self) -> int:
        return self.cache.recache_rate

    def counters(self) -> list[int]:
        """The counters of engine.pxd's counter_t, summed over all processes."""
        cdef process_t *slots = <process_t *>section(self.cache.arena, SECTION_PROCESSES)
        cdef int number, slot
        cdef uint64_t total
        sums = []
        for number in range(PROCESS_COUNTERS):
            total = 0
            for slot in range(PROCESS_SLOTS):
                total += slots[slot].counters[number]
            sums.append(total)
        return sums

    def totals(self) -> dict[str, int]:
        """Items, bytes and pages, summed over the shards (read without their locks)."""
        cdef uint32_t number
        cdef shard_t *shard
        sums = dict.fromkeys(
            ("items_ram", "items_flash", "ghosts", "bytes_ram", "bytes_used", "index_pages",
             "groups", "small_frames", "main_frames"), 0)
        for number in range(self.cache.shard_count):
            shard = &self.cache.shards[number]
            sums["items_ram"] += shard.items_ram
            sums["items_flash"] += shard.items_flash
            sums["ghosts"] += shard.ghosts
            sums["bytes_ram"] += shard.bytes_ram
            sums["bytes_used"] += shard.bytes_used
            sums["index_pages"] += shard.index_pages
            sums["groups"] += shard.groups
            sums["small_frames"] += shard.queue[QUEUE_SMALL].frames
            sums["main_frames"] += shard.queue[QUEUE_MAIN].frames
        if self.cache.log == NULL:
            sums["items_flash"] = 0     # after lose_flash: slots that are still to be met
        return sums
