"""Shards: entering, leaving, the owner-died rule (forget the whole shard), flushes.

A process that dies inside a shard leaves it half changed. No repair is tried: the next to enter
clears the live bits that the shard's slots name, gives its frames back and starts it empty.
"""
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memset

from siltstone.cache.engine cimport COUNT_BUSY, COUNT_SHARDS_RESET
from siltstone.cache.index cimport group_at, group_slot, scratch_slot
from siltstone.cache.shard cimport *
from siltstone.log.arena cimport frames_reclaim
from siltstone.log.atomics cimport cas64
from siltstone.log.log cimport LOG_ALIGNMENT, log_dead

cdef extern from *:
    const uint64_t DUE_MASK "((1ULL << 48) - 1)"

cdef uint64_t flush_epoch(cache_t *cache) noexcept nogil:
    # Who first sees that a delayed flush is due makes it happen, in one atomic step; the live map
    # first, so that no step back of the clock brings back what a restart finds.
    cdef uint64_t word = load64(&cache.arena.header.flush_word)
    cdef uint64_t due = word & DUE_MASK, fired
    if due and <int64_t>due <= now_ms(cache):
        fired = ((word >> 48) + 1) << 48
        if cache.flush_note != NULL:
            cas64(cache.flush_note, word, fired)
        cas64(&cache.arena.header.flush_word, word, fired)
        word = load64(&cache.arena.header.flush_word)
    return word >> 48

cdef void flush_noted(cache_t *cache) noexcept nogil:
    # What was noted is loaded before what is true, so that an older word never replaces a newer.
    cdef uint64_t noted
    if cache.flush_note == NULL:
        return
    while True:
        noted = load64(cache.flush_note)
        if cas64(cache.flush_note, noted, load64(&cache.arena.header.flush_word)):
            return

cdef bint _entered(cache_t *cache, shard_t *shard, int result) noexcept nogil:
    cdef uint64_t epoch
    if result == LOCK_BUSY:
        return False
    store64_relaxed(&shard.lock.sequence, shard.lock.sequence | 1)
    fence_release()
    if result == LOCK_OWNER_DIED:
        shard.damaged = 1
        count(cache, COUNT_SHARDS_RESET, 1)
        lock_repaired(&shard.lock)
    epoch = flush_epoch(cache)
    if shard.damaged or shard.epoch != epoch:
        if not shard_clear(cache, shard):
            shard_leave(shard)
            return False
        shard.epoch = epoch
    return True

cdef bint shard_enter(cache_t *cache, shard_t *shard) noexcept nogil:
    if _entered(cache, shard, lock_take(&shard.lock)):
        return True
    count(cache, COUNT_BUSY, 1)
    return False

cdef bint shard_try_enter(cache_t *cache, shard_t *shard) noexcept nogil:
    return _entered(cache, shard, lock_try(&shard.lock))

cdef void shard_leave(shard_t *shard) noexcept nogil:
    store64(&shard.lock.sequence, shard.lock.sequence + 1)
    lock_drop(&shard.lock)

cdef bint shard_clear(cache_t *cache, shard_t *shard) noexcept nogil:
    # another odd number: who remembers the former one, inside the lock or not, sees that all
    # pointers into the shard are void
    store64_relaxed(&shard.lock.sequence, shard.lock.sequence + 2)
    fence_release()
    _clear_live_bits(cache, shard)
    # all that the index and the queues know; lock, sequence, epoch and number stay
    shard.built = 0
    memset(&shard.depth, 0, <char *>(shard + 1) - <char *>&shard.depth)
    shard.damaged = frames_reclaim(cache.arena, shard.number + 1) != LOCK_TAKEN
    return not shard.damaged

cdef void _clear_live_bits(cache_t *cache, shard_t *shard) noexcept nogil:
    # The shard may be half changed: group_at and group_slot check every number they read.
    cdef uint32_t number, place, pages
    cdef group_t *group
    cdef slot_t *slot
    if cache.log == NULL or not shard.built:
        return
    for number in range(shard.groups):
        group = group_at(cache, shard, number)
        pages = group.pages if group.pages <= GROUP_PAGES_MAX else 0
        for place in range(pages * PAGE_SLOTS):
            slot = group_slot(cache, group, place)
            if slot_kind(slot.low) == SLOT_FLASH:
                log_dead(cache.log, slot_location(slot.low) * LOG_ALIGNMENT)
    pages = shard.scratch_pages if shard.scratch_pages <= GROUP_PAGES_MAX else 0
    for place in range(pages * PAGE_SLOTS):
        slot = scratch_slot(cache, shard, place)
        if slot != NULL and slot_kind(slot.low) == SLOT_FLASH:
            log_dead(cache.log, slot_location(slot.low) * LOG_ALIGNMENT)
