"""Going through all items: keys, expired ones, moving everything to flash, verifying.

Each visits group after group in the order of the hash, a group at a time under its shard's lock,
so that splits on the way neither hide nor repeat an item.
"""
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memset

from siltstone.cache.compaction cimport reclaim
from siltstone.cache.engine cimport (
    CACHE_FOUND, CacheEngine, cache_read_record, record_free, record_t,
)
from siltstone.cache.eviction cimport (
    ROOM_GROW, ROOM_MADE, ROOM_NONE, ROOM_SEGMENT, ROOM_WRITE, evict_step, purge_group,
)
from siltstone.cache.flash cimport (
    demotion_free, demotion_grow, demotion_t, flash_idle_s, flash_item_t, flash_key_size,
    record_item, record_key,
)
from siltstone.cache.index cimport group_at, group_slot, index_group, index_probe
from siltstone.cache.items cimport *
from siltstone.cache.shard cimport *
from siltstone.log.log cimport LOG_ALIGNMENT, LOG_OK, log_make_room

from siltstone import errors
from siltstone.cache.report import Report

cdef enum:
    MOVES_MAX = 8           # of one item while it is looked at
    DRAIN_WAITS = 1000      # of 1 ms for a buffer

cdef uint64_t _next_prefix(cache_t *cache, shard_t *shard, uint64_t hash) noexcept nogil:
    # The first hash after the group of `hash`; 0 = past the shard's last.
    cdef uint32_t depth = index_group(cache, shard, hash).depth if shard.built else 0
    cdef uint64_t span = <uint64_t>1 << (cache.hash_shift + 40 - depth)
    cdef uint64_t next = hash // span * span + span
    if not shard.built:
        next = ((hash >> cache.shard_shift) + 1) << cache.shard_shift
    return next


def scan(CacheEngine engine not None):
    """(key, is str, expiry Unix ms, idle seconds, CAS, fetched, value size, flags, on flash)."""
    cdef uint64_t hash = 0, next
    cdef bint last = False
    while not last:
        entries, next = _scan_group(engine, hash)
        last = next <= hash
        hash = next
        yield from entries


cdef tuple _scan_group(CacheEngine engine, uint64_t hash):
    cdef cache_t *cache = engine.cache
    cdef shard_t *shard = shard_of(cache, hash)
    cdef group_t *group
    cdef slot_t *slot
    cdef uint32_t place
    cdef uint64_t next
    cdef int64_t now = now_ms(cache)
    cdef record_t record
    entries, flash = [], []
    if not shard_enter(cache, shard):
        raise errors.Busy("a shard of the cache was not free within one second; try again")
    try:
        if shard.built:
            group = index_group(cache, shard, hash)
            for place in range(<uint32_t>group.pages * PAGE_SLOTS):
                slot = group_slot(cache, group, place)
                if slot_kind(slot.low) == SLOT_EMPTY or slot_expired(cache, slot.high, now):
                    continue
                if slot_kind(slot.low) == SLOT_RAM:
                    entry = _describe(cache, shard, slot, now)
                    if entry is not None:
                        entries.append(entry)
                elif slot_kind(slot.low) == SLOT_FLASH:
                    flash.append((slot.low, slot.high))
        next = _next_prefix(cache, shard, hash)
    finally:
        shard_leave(shard)
    memset(&record, 0, sizeof(record))
    try:
        for low, high in sorted(flash, key=_position_of):
            entry = _describe_flash(cache, low, high, &record, now)
            if entry is None:
                entry = _describe_moved(cache, hash, low, high, &record, now)
            if entry is not None:
                entries.append(entry)
    finally:
        record_free(&record)
    return entries, next


cdef object _describe_moved(cache_t *cache, uint64_t hash, uint64_t low, uint64_t high,
                            record_t *record, int64_t now):
    # Its record was not there any more: what does the index say by now? `hash` is of its group.
    cdef uint32_t shift = cache.hash_shift + 40
    cdef uint64_t identity = (hash >> shift << shift) | (
        slot_hash40(low, high) << cache.hash_shift)
    cdef shard_t *shard = shard_of(cache, identity)
    cdef slot_t *slot
    cdef uint64_t position = slot_location(low)
    entry = None
    for _ in range(MOVES_MAX):
        if not shard_enter(cache, shard):
            raise errors.Busy("a shard of the cache was not free within one second; try again")
        try:
            slot = index_probe(cache, shard, identity)
            if slot == NULL or slot_expired(cache, slot.high, now):
                return None
            low, high = slot.low, slot.high
            if slot_kind(low) == SLOT_RAM:
                return _describe(cache, shard, slot, now)
        finally:
            shard_leave(shard)
        if slot_kind(low) != SLOT_FLASH or slot_location(low) == position:
            return None
        position = slot_location(low)
        entry = _describe_flash(cache, low, high, record, now)
        if entry is not None:
            break
    return entry


def _position_of(words):
    return words[0] & 0xfffffffffffff


cdef object _describe(cache_t *cache, shard_t *shard, slot_t *slot, int64_t now):
    cdef item_t *item = item_at(cache, slot_location(slot.low) * 8)
    if not item_sound(cache, shard, item_offset(cache, item)):
        return None
    cdef int64_t expire_ms = item_expiry(item)[0] if item.flags & ITEM_EXPIRY else 0
    cdef bytearray key = bytearray(item_key_size(item))
    cdef char *place = key
    if expire_ms and expire_ms <= now:
        return None
    item_read(cache, item, 0, place, item_key_size(item))
    idle = (now - cache.arena.header.created_ms) // 1000 - item.last_access
    return (bytes(key), (item.flags & ITEM_STR_KEY) != 0, expire_ms, idle, item.cas,
            (slot.low & SLOT_FETCHED) != 0, item.value_size, item.client_flags, False)


cdef object _describe_flash(cache_t *cache, uint64_t low, uint64_t high, record_t *record,
                            int64_t now):
    cdef uint64_t position = slot_location(low) * LOG_ALIGNMENT
    cdef flash_item_t *head
    cdef int status
    cdef uint64_t expiry = slot_expiry(high)
    with nogil:
        status = cache_read_record(cache, position, record, 0)
    if status != CACHE_FOUND:
        return None
    head = record_item(record)
    expire_ms = 0 if expiry == 0 else (
        <int64_t>head.expires_s * 1000 if expiry == EXPIRY_LOOK
        else cache.arena.header.created_ms + <int64_t>expiry * 1000)
    return (record_key(record)[:flash_key_size(head)], (head.flags & ITEM_STR_KEY) != 0, expire_ms,
            flash_idle_s(head, now), head.cas, (low & SLOT_FETCHED) != 0, head.value_size,
            head.client_flags, True)


def sweep(CacheEngine engine not None) -> int:
    """Remove what has expired or whose segment is gone; how many items went."""
    cdef cache_t *cache = engine.cache
    cdef uint32_t number, group, gone = 0
    cdef shard_t *shard
    for number in range(cache.shard_count):
        shard = &cache.shards[number]
        group = 0
        while group < shard.groups:
            with nogil:
                if shard_enter(cache, shard):
                    if shard.built and group < shard.groups:
                        gone += purge_group(
                            cache, shard, group_at(cache, shard, group), False, now_ms(cache))
                    shard_leave(shard)
            group += 1
    return gone


def drain(CacheEngine engine not None) -> None:
    """Move every item in RAM to flash, as far as there is room: for a clean stop."""
    cdef cache_t *cache = engine.cache
    cdef uint32_t number
    cdef bint full
    for number in range(cache.shard_count):
        with nogil:
            full = not _drain_shard(cache, &cache.shards[number])
        if full:
            return


cdef bint _drain_shard(cache_t *cache, shard_t *shard) noexcept nogil:
    cdef demotion_t demotion
    cdef int result = ROOM_MADE, idle = 0, waits = 0
    memset(&demotion, 0, sizeof(demotion))
    while shard.items_ram and idle < 100000 and waits < DRAIN_WAITS:
        if not shard_enter(cache, shard):
            break
        _cool(cache, shard)
        result = evict_step(cache, shard, now_ms(cache), &demotion)
        shard_leave(shard)
        idle += 1
        if result == ROOM_WRITE or (result == ROOM_SEGMENT and not reclaim(cache)):
            # what is in RAM is worth more than the oldest on flash, so room is made for it
            waits = 0 if log_make_room(cache.log) == LOG_OK else waits + 1
        elif result == ROOM_GROW:
            if not demotion_grow(&demotion):
                break
        elif result == ROOM_NONE:
            break
    demotion_free(&demotion)
    return waits < DRAIN_WAITS


cdef void _cool(cache_t *cache, shard_t *shard) noexcept nogil:
    # Nothing is hot any more: eviction then moves all of it down.
    cdef uint32_t number, place
    cdef group_t *group
    cdef slot_t *slot
    if shard.index_pages == 0:
        return
    for number in range(shard.groups):
        group = group_at(cache, shard, number)
        for place in range(<uint32_t>group.pages * PAGE_SLOTS):
            slot = group_slot(cache, group, place)
            slot.low &= ~SLOT_HOT_MASK


def verify_items(CacheEngine engine not None, progress=None):
    """Read every flash item back; a Report."""
    report = Report()
    total = engine.totals()["items_ram"] + engine.totals()["items_flash"]
    before = engine.counters()
    for entry in scan(engine):
        report.records += 1
        report.bytes += len(entry[0]) + entry[6]
        if progress is not None and report.records % 1024 == 0:
            progress(report.records, max(total, report.records))
    after = engine.counters()
    for name, number in (("records with a wrong checksum", 31), ("read errors", 32)):
        if after[number] > before[number]:
            report.problems.append(f"{after[number] - before[number]} {name}")
    return report
