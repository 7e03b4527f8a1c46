"""Eviction (promises: eviction.pxd).

A shard's frames form two queues, oldest first: *small* takes new items, *main* those that were
asked for again (S3-FIFO: Yang et al., SOSP 2023). The oldest frame is emptied: what is hot moves to
the young end of main, the rest goes to flash, or away. A frame that overwrites and deletes have
left mostly dead is emptied first, all its items moved: that costs a copy and evicts nothing.
"""
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memset

from siltstone.cache.compaction cimport reclaim
from siltstone.cache.engine cimport (
    COUNT_BAD_OFFSETS, COUNT_CRAWLED, COUNT_CRAWLER_RECLAIMED, COUNT_EVICTED_ACTIVE,
    COUNT_EVICTED_UNFETCHED, COUNT_EVICTIONS, COUNT_EXPIRED_UNFETCHED, COUNT_FLASH_WRITES,
    COUNT_FLASH_WRITE_BYTES, COUNT_RECLAIMED, COUNT_REINSERTED,
)
from siltstone.cache.eviction cimport *
from siltstone.cache.flash cimport demotion_free, demotion_grow, demotion_t, flash_write
from siltstone.cache.hashing cimport siphash13
from siltstone.cache.index cimport group_slot, group_sound, index_group, index_probe, index_remove
from siltstone.cache.items cimport *
from siltstone.cache.shard cimport *
from siltstone.cache.tags cimport tag_fresh
from siltstone.log.arena cimport frame_address, frame_t, frames_free, lock_timed_out
from siltstone.log.atomics cimport add32, load32_relaxed
from siltstone.log.log cimport (
    LOG_ALIGNMENT, LOG_BUSY, LOG_NO_BUFFER, LOG_NO_SEGMENT, LOG_OK, LOG_SHORT, log_dead, log_live,
    log_make_room,
)

cdef extern from "<unistd.h>" nogil:
    int usleep(unsigned int)

cdef enum:
    # A frame below 5/8 live is emptied before the oldest one: freeing a frame then costs at most
    # 1.7 frames of copying, and the dead share of RAM stays below about a quarter.
    LIVE_SHARE_NUMERATOR = 5
    LIVE_SHARE_DENOMINATOR = 8
    DENSE_NUMERATOR = 7         # a shard whose frames are 7/8 live is not looked through for an
    DENSE_DENOMINATOR = 8       # emptier one
    SMALL_SHARE = 10            # the small queue holds one in so many frames
    HOT_TO_MAIN = 2             # hits in the small queue that earn a place in main
    MODE_EVICT = 0
    MODE_COMPACT = 1
    GHOST_SHARE = 4             # ghosts remembered: items in RAM / this
    HELD_ROUND = 8              # shards in a row that others are in, then a pause
    HELD_PAUSE_US = 100
    HELD_MAX = 80_000           # 1 s
    WAITS_MAX = 1000            # of 1 ms for a write in flight elsewhere; then refused

# Taking items away --------------------------------------------------------------------------

cdef uint64_t item_hash(cache_t *cache, item_t *item) noexcept nogil:
    cdef uint64_t here
    cdef char *key = item_span(cache, item, 0, &here)
    if here >= item_key_size(item):
        return siphash13(cache.arena.header.secret, key, item_key_size(item))
    return _hash_cut_key(cache, item)

cdef uint64_t _hash_cut_key(cache_t *cache, item_t *item) noexcept nogil:
    cdef char key[65536]
    item_read(cache, item, 0, key, item_key_size(item))
    return siphash13(cache.arena.header.secret, key, item_key_size(item))

cdef void release(cache_t *cache, shard_t *shard, slot_t *slot) noexcept nogil:
    cdef uint64_t kind = slot_kind(slot.low)
    cdef item_t *item
    if kind == SLOT_RAM:
        item = item_at(cache, slot_location(slot.low) * 8)
        shard.items_ram -= 1
        if not item_sound(cache, shard, item_offset(cache, item)):
            count(cache, COUNT_BAD_OFFSETS, 1)
            shard.damaged = 1       # cleared by who enters next: the caller holds pointers into it
            return
        shard.bytes_ram -= item_content(item)
        item_free(cache, shard, item)
    elif kind == SLOT_FLASH:
        if cache.log != NULL:
            log_dead(cache.log, slot_location(slot.low) * LOG_ALIGNMENT)
        shard.items_flash -= 1
    elif kind == SLOT_GHOST:
        shard.ghosts -= 1

cdef void unlink(cache_t *cache, shard_t *shard, uint64_t hash, slot_t *slot) noexcept nogil:
    cdef group_t *group = index_group(cache, shard, hash)
    release(cache, shard, slot)
    if group_sound(cache, shard, group):
        index_remove(cache, shard, group, slot)
    else:
        count(cache, COUNT_BAD_OFFSETS, 1)
        shard.damaged = 1

cdef bint _ghost_stale(shard_t *shard, uint64_t low) noexcept nogil:
    return shard.evictions - slot_location(low) > shard.items_ram // GHOST_SHARE

cdef bint _gone(cache_t *cache, slot_t *slot, int64_t now) noexcept nogil:
    # Of an item in RAM: expired to the millisecond, or its tag was evicted. For those on flash
    # the record would have to be read.
    cdef item_t *item = item_at(cache, slot_location(slot.low) * 8)
    if item.flags & ITEM_EXPIRY and item_expiry(item)[0] and item_expiry(item)[0] <= now:
        return True
    return item.flags & ITEM_TAG and not tag_fresh(cache.arena, item_tag(item)[0])

cdef uint32_t purge_group(cache_t *cache, shard_t *shard, group_t *group, bint ghosts,
                          int64_t now) noexcept nogil:
    cdef uint32_t place = 0, gone = 0
    cdef slot_t *slot
    cdef uint64_t kind
    cdef bint dead
    if not group_sound(cache, shard, group):
        count(cache, COUNT_BAD_OFFSETS, 1)
        shard.damaged = 1
        return 0
    while place < <uint32_t>group.pages * PAGE_SLOTS:
        slot = group_slot(cache, group, place)
        kind = slot_kind(slot.low)
        dead = False
        if kind == SLOT_GHOST:
            dead = ghosts or _ghost_stale(shard, slot.low)
        elif kind != SLOT_EMPTY and slot_expired(cache, slot.high, now):
            dead = True
            count(cache, COUNT_CRAWLER_RECLAIMED, 1)
            if not slot.low & SLOT_FETCHED:
                count(cache, COUNT_EXPIRED_UNFETCHED, 1)
        elif kind == SLOT_FLASH:
            dead = not flash_current(cache, slot.low)
        elif kind == SLOT_RAM and (slot.low & SLOT_TAGGED or slot_expiry(slot.high)):
            dead = _gone(cache, slot, now)
        if dead:
            release(cache, shard, slot)
            index_remove(cache, shard, group, slot)     # fills `place` anew: look again
            gone += 1
        else:
            place += 1
    count(cache, COUNT_CRAWLED, place)
    return gone

# Emptying a frame ---------------------------------------------------------------------------

cdef inline int _queue_in_excess(shard_t *shard) noexcept nogil:
    cdef uint32_t small = shard.queue[QUEUE_SMALL].frames, main = shard.queue[QUEUE_MAIN].frames
    return QUEUE_SMALL if small and (
        main == 0 or small * SMALL_SHARE > small + main) else QUEUE_MAIN

cdef uint32_t _victim(cache_t *cache, shard_t *shard, int *mode) noexcept nogil:
    # Frame number + 1: the emptiest if it is mostly dead, else the oldest of the queue in excess.
    cdef frame_t *frames = cache.arena.frames
    cdef uint32_t number, best = 0, least = cache.frame_bytes
    cdef uint64_t held = <uint64_t>cache.frame_bytes * (
        shard.queue[QUEUE_SMALL].frames + shard.queue[QUEUE_MAIN].frames)
    cdef int queue
    # The walk pays only where much is dead; without overwrites it was a sixth of a set's time
    # (bench/spill.py).
    for queue in range(QUEUES if shard.bytes_used * DENSE_DENOMINATOR < held * DENSE_NUMERATOR
                       else 0):
        number = shard.queue[queue].head
        while number:
            if frames[number - 1].live_bytes < least and number != shard.queue[queue].tail:
                least = frames[number - 1].live_bytes
                best = number
            number = frames[number - 1].next
    if best and least * LIVE_SHARE_DENOMINATOR < cache.frame_bytes * LIVE_SHARE_NUMERATOR:
        mode[0] = MODE_COMPACT
        return best
    mode[0] = MODE_EVICT
    return shard.queue[_queue_in_excess(shard)].head

cdef int evict_step(cache_t *cache, shard_t *shard, int64_t now,
                    demotion_t *demotion) noexcept nogil:
    cdef int mode = MODE_EVICT, queue, result
    cdef uint32_t number = _victim(cache, shard, &mode), place = 0, end, size
    cdef frame_t *frame
    cdef char *entry
    cdef uint64_t sequence
    if number == 0:
        return ROOM_NONE
    frame = &cache.arena.frames[number - 1]
    sequence = frame.sequence
    queue = <int>(frame.kind & ~FRAME_CLOSED) - FRAME_ITEMS
    if shard.queue[queue].tail == number:
        queue_close(cache, shard, queue)
    end = frame.filled_bytes
    if frame.live_bytes == 0:
        return ROOM_MADE if frame_release(cache, shard, number - 1) else ROOM_NONE
    while place < end:
        entry = frame_address(cache.arena, number - 1) + place
        size = entry_bytes(entry)
        if not _entry_sound(cache, shard, entry, place + size <= end):
            count(cache, COUNT_BAD_OFFSETS, 1)
            shard_clear(cache, shard)
            return ROOM_MADE
        result = ROOM_KEPT
        if (<item_t *>entry).kind == KIND_HEAD:
            result = _retire(cache, shard, <item_t *>entry, queue, mode, now, demotion)
        elif (<item_t *>entry).kind == KIND_PART:
            if mode != MODE_COMPACT or not part_move(cache, shard, queue, 0, <item_part_t *>entry):
                # its item goes, and may take more of this frame along: look at it afresh
                return _retire_owner(cache, shard, <item_part_t *>entry, now, demotion)
            result = ROOM_MADE
        if frame.owner != shard.number + 1 or frame.sequence != sequence:
            return ROOM_MADE        # its last item went: it is another's, do not look at it
        if result != ROOM_MADE and result != ROOM_KEPT:
            return result
        place += size
    return ROOM_KEPT

cdef inline bint _entry_sound(cache_t *cache, shard_t *shard, char *entry,
                              bint fits) noexcept nogil:
    cdef uint8_t kind = (<item_t *>entry).kind
    cdef uint64_t offset = <uint64_t>(entry - cache.arena.base)
    if not fits or kind == 0 or kind > KIND_DEAD_PART:
        return False
    if kind == KIND_HEAD:
        return item_sound(cache, shard, offset)
    return kind != KIND_PART or part_sound(cache, shard, offset)

cdef int _retire_owner(cache_t *cache, shard_t *shard, item_part_t *part, int64_t now,
                       demotion_t *demotion) noexcept nogil:
    cdef item_t *head = item_at(cache, part.prev)
    cdef uint32_t number, steps = cache.arena.header.frame_count_max
    while head.kind == KIND_PART and steps and (
            part_sound(cache, shard, item_offset(cache, head))):
        head = item_at(cache, (<item_part_t *>head).prev)
        steps -= 1
    if not item_sound(cache, shard, item_offset(cache, head)):
        count(cache, COUNT_BAD_OFFSETS, 1)
        shard_clear(cache, shard)
        return ROOM_MADE
    number = <uint32_t>((item_offset(cache, head) - cache.frames_offset)
                        >> cache.frame_shift)
    return _retire(cache, shard, head, <int>(cache.arena.frames[number].kind & ~FRAME_CLOSED)
                   - FRAME_ITEMS, MODE_EVICT, now, demotion)

cdef int _retire(cache_t *cache, shard_t *shard, item_t *item, int queue, int mode, int64_t now,
                 demotion_t *demotion) noexcept nogil:
    # One live item of a frame that is being emptied. ROOM_MADE: it is gone from there.
    cdef uint64_t hash = item_hash(cache, item)
    cdef slot_t *slot = index_probe(cache, shard, hash)
    cdef item_t *copy
    cdef uint64_t hot
    if slot == NULL or slot_kind(slot.low) != SLOT_RAM or (
            slot_location(slot.low) * 8 != item_offset(cache, item)):
        count(cache, COUNT_BAD_OFFSETS, 1)
        item_free(cache, shard, item)
        return ROOM_MADE
    # Compacting: if there is no room for a copy, it is evicted like others.
    if mode == MODE_COMPACT and item.flags & ITEM_PARTS:
        copy = head_move(cache, shard, queue, 0, item)  # its parts lie in other frames: they stay
        if copy != NULL:
            slot.low = (slot.low & ~<uint64_t>0xfffffffffffff) | (item_offset(cache, copy) // 8)
            return ROOM_MADE
    elif mode == MODE_COMPACT and _move(cache, shard, slot, item, queue):
        return ROOM_MADE
    if _gone(cache, slot, now):
        count(cache, COUNT_RECLAIMED, 1)
        if not slot.low & SLOT_FETCHED:
            count(cache, COUNT_EXPIRED_UNFETCHED, 1)
        unlink(cache, shard, hash, slot)
        return ROOM_MADE
    hot = slot_hotness(slot.low)
    if hot >= (HOT_TO_MAIN if queue == QUEUE_SMALL else 1):
        slot.low = (slot.low & ~SLOT_HOT_MASK) | (
            0 if queue == QUEUE_SMALL else (hot - 1) << SLOT_HOT_SHIFT)
        if _move(cache, shard, slot, item, QUEUE_MAIN):
            count(cache, COUNT_REINSERTED, 1)
            return ROOM_MADE
    return _demote(cache, shard, hash, slot, item, queue, now, demotion)

cdef bint _move(cache_t *cache, shard_t *shard, slot_t *slot, item_t *item,
                int queue) noexcept nogil:
    # Copy the item to the young end of `queue`, from the frames kept in reserve if need be.
    cdef item_t *copy = item_new(cache, shard, queue, 0, item.flags, item_key_size(item),
                                 item.value_size)
    cdef uint64_t start = 0, here, total = item_content(item)
    cdef char *place
    if copy == NULL:
        return False
    copy.cas = item.cas
    copy.last_access = item.last_access
    copy.client_flags = item.client_flags
    if item.flags & ITEM_EXPIRY:
        item_expiry(copy)[0] = item_expiry(item)[0]
    if item.flags & ITEM_TAG:
        item_tag(copy)[0] = item_tag(item)[0]
    while start < total:
        place = item_span(cache, item, start, &here)
        item_write(cache, copy, start, place, here)
        start += here
    slot.low = (slot.low & ~<uint64_t>0xfffffffffffff) | (item_offset(cache, copy) // 8)
    item_free(cache, shard, item)
    return True

cdef bint _wanted_on_flash(cache_t *cache, item_t *item, uint64_t low, int64_t now) noexcept nogil:
    if cache.log == NULL:
        return False
    if item.flags & ITEM_EXPIRY and item_expiry(item)[0] and (
            item_expiry(item)[0] - now < cache.low_ttl_min_ms):
        return False
    return True

cdef int _demote(cache_t *cache, shard_t *shard, uint64_t hash, slot_t *slot, item_t *item,
                 int queue, int64_t now, demotion_t *demotion) noexcept nogil:
    cdef int result = ROOM_KEPT
    if _wanted_on_flash(cache, item, slot.low, now):
        result = _to_flash(cache, shard, hash, slot, item, now, demotion)
    return _drop(cache, shard, hash, slot, queue) if result == ROOM_KEPT else result

cdef int _to_flash(cache_t *cache, shard_t *shard, uint64_t hash, slot_t *slot, item_t *item,
                   int64_t now, demotion_t *demotion) noexcept nogil:
    # ROOM_KEPT: the log does not take it.
    cdef uint64_t position = 0, low = slot.low
    cdef int result = flash_write(cache, shard, hash, item, low, now, demotion, &position)
    if result == LOG_NO_BUFFER:
        return ROOM_WRITE
    if result == LOG_NO_SEGMENT:
        return ROOM_SEGMENT
    if result == LOG_SHORT:
        return ROOM_GROW
    if result == LOG_BUSY:
        return ROOM_BUSY
    if result != LOG_OK or position // LOG_ALIGNMENT > <uint64_t>0xfffffffffffff:
        return ROOM_KEPT
    count(cache, COUNT_FLASH_WRITES, 1)
    count(cache, COUNT_FLASH_WRITE_BYTES, item_content(item))
    release(cache, shard, slot)
    slot.low = (low & (SLOT_HASH_MASK | SLOT_FETCHED | SLOT_STALE | SLOT_WON | SLOT_TAGGED)) | (
        <uint64_t>SLOT_FLASH << SLOT_KIND_SHIFT) | (position // LOG_ALIGNMENT)
    shard.items_flash += 1
    if log_live(cache.log, position) != LOG_OK:
        unlink(cache, shard, hash, slot)    # its segment was forgotten meanwhile
    return ROOM_MADE

cdef int demote_idle(cache_t *cache, shard_t *shard, group_t *group, int64_t now,
                     demotion_t *demotion) noexcept nogil:
    # `last_access` moves at most once a minute, and never by the hits that only set hotness.
    cdef uint32_t place = 0
    cdef int64_t limit = (now - cache.arena.header.created_ms) // 1000 - cache.item_age_s
    cdef slot_t *slot
    cdef item_t *item
    cdef uint64_t used = group.used
    cdef int result
    while place < <uint32_t>group.pages * PAGE_SLOTS and group.used == used:
        slot = group_slot(cache, group, place)
        place += 1
        if slot_kind(slot.low) != SLOT_RAM:
            continue
        item = item_at(cache, slot_location(slot.low) * 8)
        if item.kind != KIND_HEAD or item.last_access > limit or (
                item.value_size < cache.item_size_min) or (
                not _wanted_on_flash(cache, item, slot.low, now)):
            continue
        result = _to_flash(cache, shard, item_hash(cache, item), slot, item, now, demotion)
        if result != ROOM_MADE and result != ROOM_KEPT:
            return result
    return ROOM_MADE

cdef int _drop(cache_t *cache, shard_t *shard, uint64_t hash, slot_t *slot,
               int queue) noexcept nogil:
    cdef uint64_t low = slot.low
    if cache.evict_forbidden:
        return ROOM_NONE
    count(cache, COUNT_EVICTIONS, 1)
    if not low & SLOT_FETCHED:
        count(cache, COUNT_EVICTED_UNFETCHED, 1)
    if slot_hotness(low):
        count(cache, COUNT_EVICTED_ACTIVE, 1)
    if queue == QUEUE_MAIN or cache.log != NULL:
        unlink(cache, shard, hash, slot)
        return ROOM_MADE
    # remembered as a ghost: should it come back soon, it goes to main at once
    release(cache, shard, slot)
    shard.evictions += 1
    shard.ghosts += 1
    slot.low = (low & SLOT_HASH_MASK) | (<uint64_t>SLOT_GHOST << SLOT_KIND_SHIFT) | shard.evictions
    slot.high &= SLOT_HIGH_HASH_MASK
    return ROOM_MADE

# Making room --------------------------------------------------------------------------------

cdef uint64_t _age(cache_t *cache, shard_t *shard) noexcept nogil:
    # Sequence of the frame that would be emptied next, read without the lock: a good guess.
    cdef uint32_t head = load32_relaxed(&shard.queue[_queue_in_excess(shard)].head)
    if 0 < head <= cache.arena.header.frame_count_max:
        return cache.arena.frames[head - 1].sequence
    return <uint64_t>-1

cdef shard_t *_victim_shard(cache_t *cache) noexcept nogil:
    # Of four shards in turn the one with the oldest frame: close to first in, first out.
    cdef uint32_t number, start = add32(&cache.evict_cursor, 1) * 4
    cdef shard_t *best = NULL
    cdef shard_t *shard
    cdef uint64_t age, oldest = <uint64_t>-1
    for number in range(4):
        shard = &cache.shards[(start + number) & (cache.shard_count - 1)]
        age = _age(cache, shard)
        if age < oldest:
            oldest = age
            best = shard
    return best

cdef bint make_room(cache_t *cache, uint32_t frames) noexcept nogil:
    cdef demotion_t demotion
    cdef shard_t *shard
    cdef int result = ROOM_KEPT
    cdef uint32_t idle = 0, waits = 0, held = 0, fruitless = 0
    cdef int reclaimed
    cdef uint32_t used = load32_relaxed(&cache.arena.header.frames_used)
    # A hot item is passed over at most three times: so many steps without a frame fewer in use
    # mean that there is none to be had. `idle` counts steps in a row that found nothing at all.
    cdef uint32_t fruitless_max = 4 * cache.arena.header.frame_count_limit + 64
    memset(&demotion, 0, sizeof(demotion))
    cdef bint made = frames_free(cache.arena) >= frames + cache.reserve_frames
    while not made and waits < WAITS_MAX and (
            idle < 4 * cache.shard_count + 64 and fruitless < fruitless_max):
        if result != ROOM_WRITE and result != ROOM_SEGMENT and result != ROOM_GROW:
            shard = _victim_shard(cache)
        if shard == NULL or not shard_try_enter(cache, shard):
            # somebody is inside, and may have lost the processor there
            idle += shard == NULL
            held += shard != NULL
            if held % HELD_ROUND == HELD_ROUND - 1:
                usleep(HELD_PAUSE_US)
            if held >= HELD_MAX:
                break
            result = ROOM_KEPT
            continue
        held = 0
        result = evict_step(cache, shard, now_ms(cache), &demotion)
        shard_leave(shard)
        # once is enough: others may take what was made before the caller does
        made = frames_free(cache.arena) >= frames + cache.reserve_frames
        idle = idle + 1 if result == ROOM_NONE or result == ROOM_KEPT else 0
        fruitless = 0 if load32_relaxed(&cache.arena.header.frames_used) < used else fruitless + 1
        used = load32_relaxed(&cache.arena.header.frames_used)
        reclaimed = reclaim(cache) if result == ROOM_SEGMENT else 1
        if reclaimed < 0:
            held = HELD_MAX         # by one who does not go on: the caller is told so
            break
        if result == ROOM_WRITE or not reclaimed:
            # waits at most 1 ms when all are being written by others
            waits = 0 if log_make_room(cache.log) == LOG_OK else waits + 1
        elif result == ROOM_BUSY:
            break
        elif result == ROOM_GROW:
            if not demotion_grow(&demotion):
                break
    if waits >= WAITS_MAX or held >= HELD_MAX:
        lock_timed_out()
    demotion_free(&demotion)
    return made
