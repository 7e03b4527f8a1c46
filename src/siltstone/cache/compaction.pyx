"""Compaction: what lives in a mostly dead segment is written anew, then the segment is forgotten.

A segment is chosen by cost and benefit (its dead share, its age), read whole into a buffer that is
allocated once, and walked; every record is verified. A record is rescued if its slot shows exactly
this position, under the shard's lock: the old live bit goes, the slot shows the new position, the
new bit comes. CAS, flags and marks stay, the slot's expiry is written down. No buffer free: the
lock is left, one is written out, the record is looked at again; so nothing is lost.

The leader does a slice at a time (background.pyx); whoever finds no segment free does it to the
end (`reclaim`). At the streams' tails `leaves` segments are kept for what compaction writes.
Large values are not compacted (docs/decisions/0021-reclaiming-flash.md).
"""
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy
from posix.unistd cimport getpid, usleep

from siltstone.cache.compaction cimport *
from siltstone.cache.engine cimport (
    COUNT_COMPACT_LOST, COUNT_COMPACT_RESCUED, COUNT_COMPACT_SKIPPED, COUNT_FLASH_ERRORS,
    COUNT_FLASH_EVICTED, COUNT_SEGMENTS_FORGOTTEN, record_t,
)
from siltstone.cache.flash cimport (
    FLAG_STALE, FLAG_WON, RECORD_ITEM, STREAM_COMPACTED, STREAM_FRESH, STREAM_LARGE,
    STREAM_LOW_TTL, flash_item_t, flash_key_size, record_item, record_key,
)
from siltstone.cache.hashing cimport siphash13
from siltstone.cache.index cimport index_group, index_probe, index_remove
from siltstone.cache.shard cimport *
from siltstone.log.arena cimport lock_timeouts
from siltstone.log.atomics cimport add64, cas64, load64, store64
from siltstone.log.log cimport (
    LOG_ALIGNMENT, LOG_BUSY, LOG_IO, LOG_NO_BUFFER, LOG_NOTHING, LOG_OK, LOG_RECORD_HEADER,
    log_append, log_dead, log_forget, log_is_live, log_live, log_make_room, log_next, log_oldest,
    log_read_segment, log_segment_bytes, log_segment_info, log_segments_free, log_segments_total,
    log_stream_leaves, log_write_one, part_t, segment_info_t,
)
from siltstone.log.segments cimport log_version_newest

cdef enum:
    SLICE_RECORDS = 256         # about a quarter of a millisecond with records of 1 KiB
    SPARED = 16                 # segments that could not be read, not tried again soon
    COMPACTED_STREAMS = (1 << STREAM_FRESH) | (1 << STREAM_COMPACTED)
    WRITE_TRIES = 16            # of log_make_room for one record
    ELSEWHERE_US = 100          # a slice of another thread's is over soon
    ELSEWHERE_WAITS = 1000
    WAITED_MAX = 64             # times WRITE_TRIES: a second

cdef enum rescue_t:
    RESCUE_DONE = 0             # rescued, or it did not count any more
    RESCUE_WAIT = 1             # no buffer: again
    RESCUE_BUSY = 3             # shard or stream was not free in time: not now
    RESCUE_STOP = 2             # no segment to write to

cdef struct compactor_t:
    uint64_t claimed            # pid, while a thread of it is at it
    char *image                 # of the segment, allocated when first needed
    uint64_t version            # of the segment at hand; 0: none
    uint32_t slot
    bint drop                   # what was never read is dropped
    uint64_t cursor
    uint64_t spared[SPARED]
    uint32_t spared_next

cdef bint compaction_open(cache_t *cache) noexcept nogil:
    cdef uint32_t total
    cache.compact_under = cache.drop_under = 1
    cache.max_fragmentation = 0.8
    if cache.log == NULL:
        return True
    cache.compactor = calloc(1, sizeof(compactor_t))
    if cache.compactor == NULL:
        return False
    total = log_segments_total(cache.log)
    cache.segments_left = 0 if total < 6 else 1 if total < 64 else 2
    log_stream_leaves(cache.log, STREAM_FRESH, cache.segments_left)
    log_stream_leaves(cache.log, STREAM_LARGE, cache.segments_left)
    log_stream_leaves(cache.log, STREAM_LOW_TTL, cache.segments_left)
    return True

cdef void compaction_close(cache_t *cache) noexcept nogil:
    cdef compactor_t *compactor = <compactor_t *>cache.compactor
    if compactor != NULL:
        free(compactor.image)
        free(compactor)
        cache.compactor = NULL

cdef uint32_t segments_ahead(cache_t *cache) noexcept nogil:
    cdef uint32_t ahead = log_segments_total(cache.log) // 64
    return cache.segments_left + (1 if ahead < 1 else 8 if ahead > 8 else ahead)

# Choosing -----------------------------------------------------------------------------------

cdef double _live_limit(cache_t *cache, uint32_t free) noexcept nogil:
    # The live share that is still worth compacting: the fewer segments are free, the higher. So
    # there is time for segments to empty by themselves, which costs no writing.
    cdef uint32_t ahead = segments_ahead(cache), under = cache.compact_under
    if free <= ahead:
        return cache.max_fragmentation
    if free >= under:
        return 0
    return cache.max_fragmentation * (under - free) / (under - ahead)

cdef bint _is_spared(compactor_t *compactor, uint64_t version) noexcept nogil:
    cdef int place
    for place in range(SPARED):
        if compactor.spared[place] == version:
            return True
    return False

cdef bint _choose(cache_t *cache, compactor_t *compactor, segment_info_t *best) noexcept nogil:
    # Most (dead share x age) for the copying, as the log-structured file system has it: old
    # segments change little any more, so their dead space is worth waiting less for.
    cdef segment_info_t info, oldest
    cdef uint32_t slot, free = log_segments_free(cache.log)
    cdef double share, worth, most = 0
    cdef double limit = _live_limit(cache, free)
    cdef double size = <double>log_segment_bytes(cache.log)
    cdef uint64_t newest = log_version_newest(cache.log)
    oldest.version = 0
    for slot in range(log_segments_total(cache.log)):
        if log_segment_info(cache.log, slot, &info) != LOG_OK or not info.reclaimable or (
                not (COMPACTED_STREAMS >> info.stream) & 1) or (
                _is_spared(compactor, info.version)):
            continue
        if oldest.version == 0 or info.version < oldest.version:
            oldest = info
        share = info.live_bytes / size
        if share < limit:
            worth = (1 - share) / (1 + share) * (newest - info.version + 1)
            if worth > most:
                most = worth
                best[0] = info
    compactor.drop = False
    if most == 0 and cache.drop_unread and free <= cache.drop_under and oldest.version:
        best[0] = oldest
        compactor.drop = True
        return True
    return most > 0

cdef int _begin(cache_t *cache, compactor_t *compactor) noexcept nogil:
    cdef segment_info_t info
    cdef int result
    if not _choose(cache, compactor, &info):
        return COMPACT_NOTHING
    if info.live_records == 0:
        return COMPACT_FREED if log_forget(
            cache.log, info.slot, info.version) == LOG_OK else COMPACT_WORKED
    if compactor.image == NULL:
        compactor.image = <char *>malloc(log_segment_bytes(cache.log))
        if compactor.image == NULL:
            return COMPACT_NOTHING
    result = log_read_segment(cache.log, info.slot, info.version, compactor.image)
    if result == LOG_OK:
        compactor.slot = info.slot
        compactor.version = info.version
        compactor.cursor = 0
        return COMPACT_WORKED
    if result == LOG_NOTHING:           # its last buffers are not written yet
        return COMPACT_WORKED if log_write_one(cache.log) == LOG_OK else COMPACT_NOTHING
    if result == LOG_IO:
        # what can be read of it is still read, record by record; it leaves as the oldest
        count(cache, COUNT_FLASH_ERRORS, 1)
        _spare(compactor, info.version)
    return COMPACT_WORKED

cdef void _spare(compactor_t *compactor, uint64_t version) noexcept nogil:
    compactor.spared[compactor.spared_next % SPARED] = version
    compactor.spared_next += 1

# Rescuing -----------------------------------------------------------------------------------

cdef uint32_t _expires_s(cache_t *cache, flash_item_t *head, uint64_t high) noexcept nogil:
    # The slot rules; where it says what the record says, no second is added by rounding.
    cdef uint64_t expiry = slot_expiry(high)
    if expiry == EXPIRY_LOOK or (
            head.expires_s and slot_expiry_of(cache, <int64_t>head.expires_s * 1000) == expiry):
        return head.expires_s
    if expiry == 0:
        return 0
    return <uint32_t>((cache.arena.header.created_ms + <int64_t>expiry * 1000 + 999) // 1000)

cdef int _rescue(cache_t *cache, compactor_t *compactor, uint64_t position, const char *payload,
                 uint32_t size) noexcept nogil:
    cdef record_t record
    cdef flash_item_t *head
    cdef shard_t *shard
    cdef slot_t *slot
    cdef uint64_t hash
    cdef int result = RESCUE_DONE
    record.data = <char *>payload - LOG_RECORD_HEADER
    record.size = LOG_RECORD_HEADER + <uint64_t>size
    head = record_item(&record)
    if head == NULL:
        return RESCUE_DONE              # stays to be counted as lost
    hash = siphash13(cache.arena.header.secret, record_key(&record), flash_key_size(head))
    shard = shard_of(cache, hash)
    if not shard_enter(cache, shard):
        return RESCUE_BUSY
    slot = index_probe(cache, shard, hash)
    if slot != NULL and slot_kind(slot.low) == SLOT_FLASH and (
            slot_location(slot.low) * LOG_ALIGNMENT == position):
        if slot_expired(cache, slot.high, now_ms(cache)):
            _unlink(cache, shard, hash, slot)
        elif compactor.drop and not slot.low & SLOT_FETCHED:
            _unlink(cache, shard, hash, slot)
            count(cache, COUNT_COMPACT_SKIPPED, 1)
        else:
            result = _move(cache, shard, hash, slot, head, size)
    shard_leave(shard)
    return result

cdef inline void _unlink(cache_t *cache, shard_t *shard, uint64_t hash,
                         slot_t *slot) noexcept nogil:
    log_dead(cache.log, slot_location(slot.low) * LOG_ALIGNMENT)
    shard.items_flash -= 1
    index_remove(cache, shard, index_group(cache, shard, hash), slot)

cdef int _move(cache_t *cache, shard_t *shard, uint64_t hash, slot_t *slot, flash_item_t *head,
               uint32_t size) noexcept nogil:
    cdef part_t parts[2]
    cdef flash_item_t changed
    cdef uint64_t position = 0
    cdef int result
    memcpy(&changed, head, sizeof(changed))
    changed.expires_s = _expires_s(cache, head, slot.high)
    changed.flags &= ~<uint8_t>(FLAG_STALE | FLAG_WON)
    changed.flags |= (FLAG_STALE if slot.low & SLOT_STALE else 0) | (
        FLAG_WON if slot.low & SLOT_WON else 0)
    parts[0].data = &changed
    parts[0].size = sizeof(changed)
    parts[1].data = head + 1
    parts[1].size = size - sizeof(changed)
    result = log_append(cache.log, STREAM_COMPACTED, RECORD_ITEM, parts, 2, &position)
    if result == LOG_NO_BUFFER:
        return RESCUE_WAIT
    if result == LOG_BUSY:
        return RESCUE_BUSY
    if result != LOG_OK:
        return RESCUE_STOP
    log_dead(cache.log, slot_location(slot.low) * LOG_ALIGNMENT)
    slot.low = (slot.low & ~<uint64_t>0xfffffffffffff) | (position // LOG_ALIGNMENT)
    if log_live(cache.log, position) != LOG_OK:
        _unlink(cache, shard, hash, slot)       # a write failed, its segment is forgotten already
        count(cache, COUNT_COMPACT_LOST, 1)
    else:
        count(cache, COUNT_COMPACT_RESCUED, 1)
    return RESCUE_DONE

cdef int _go_on(cache_t *cache, compactor_t *compactor) noexcept nogil:
    # Some records of the segment at hand.
    cdef uint64_t position, before
    cdef uint8_t kind
    cdef const char *payload
    cdef uint32_t size, number, tries
    cdef int result
    for number in range(SLICE_RECORDS):
        before = compactor.cursor
        result = log_next(cache.log, compactor.version, compactor.slot, compactor.image,
                          &compactor.cursor, &position, &kind, &payload, &size)
        if result != LOG_OK:
            return _end(cache, compactor, result)
        if kind != RECORD_ITEM or not log_is_live(cache.log, position):
            continue
        tries = 0
        result = _rescue(cache, compactor, position, payload, size)
        while result == RESCUE_WAIT and tries < WRITE_TRIES:
            log_make_room(cache.log)
            result = _rescue(cache, compactor, position, payload, size)
            tries += 1
        if result == RESCUE_WAIT or result == RESCUE_BUSY:
            compactor.cursor = before       # this record again, next time
            return COMPACT_WAITED if result == RESCUE_WAIT else COMPACT_BUSY
        if result == RESCUE_STOP:
            compactor.version = 0
            return COMPACT_NOTHING
    return COMPACT_WORKED

cdef int _end(cache_t *cache, compactor_t *compactor, int result) noexcept nogil:
    # What still counts in it now was damaged.
    cdef segment_info_t info
    cdef uint64_t version = compactor.version
    compactor.version = 0
    if result != LOG_NOTHING or log_segment_info(cache.log, compactor.slot, &info) != LOG_OK or (
            info.version != version):
        return COMPACT_WORKED               # somebody forgot it meanwhile
    if log_forget(cache.log, compactor.slot, version) != LOG_OK:
        return COMPACT_WORKED
    count(cache, COUNT_COMPACT_LOST, info.live_records)
    if info.live_records:
        add64(&cache.arena.header.user[<int>WORD_FORGOTTEN], 1)
    return COMPACT_FREED

cdef bint _claim(compactor_t *compactor) noexcept nogil:
    # A fork may have copied the claim of a thread that the child does not have.
    cdef uint64_t own = <uint64_t>getpid(), holder = load64(&compactor.claimed)
    if holder == own or not cas64(&compactor.claimed, holder, own):
        return False
    if holder:
        compactor.version = 0
    return True

cdef int compact_slice(cache_t *cache) noexcept nogil:
    cdef compactor_t *compactor = <compactor_t *>cache.compactor
    cdef int result
    if compactor == NULL:
        return COMPACT_NOTHING
    if not _claim(compactor):
        return COMPACT_ELSEWHERE
    result = _go_on(cache, compactor) if compactor.version else _begin(cache, compactor)
    store64(&compactor.claimed, 0)
    return result

# Without it ---------------------------------------------------------------------------------

cdef bint forget_oldest(cache_t *cache) noexcept nogil:
    cdef segment_info_t info
    if cache.log == NULL or log_oldest(cache.log, 0xffffffff, &info) != LOG_OK:
        return False
    if log_forget(cache.log, info.slot, info.version) != LOG_OK:
        return False
    count(cache, COUNT_SEGMENTS_FORGOTTEN, 1)
    count(cache, COUNT_FLASH_EVICTED, info.live_records)
    add64(&cache.arena.header.user[<int>WORD_FORGOTTEN], 1)
    return True

cdef int reclaim(cache_t *cache) noexcept nogil:
    cdef int result, waits = 0, waited = 0
    cdef uint32_t timeouts = lock_timeouts()
    while waits < ELSEWHERE_WAITS:
        if log_segments_free(cache.log) > cache.segments_left:
            return True
        result = compact_slice(cache)
        if result == COMPACT_FREED or (result == COMPACT_NOTHING and forget_oldest(cache)):
            return True
        waited += result == COMPACT_WAITED
        if result == COMPACT_BUSY or waited == WAITED_MAX or lock_timeouts() != timeouts:
            return -1
        if result == COMPACT_NOTHING:
            return False
        if result == COMPACT_ELSEWHERE:
            usleep(ELSEWHERE_US)
            waits += 1
    return False
