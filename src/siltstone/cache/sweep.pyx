"""Going through all items: keys, expired ones, moving everything to flash, verifying.

Each visits group after group in the order of the hash, a group at a time under its shard's lock,
so that splits on the way neither hide nor repeat an item.
"""
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy, memset

from siltstone.cache.compaction cimport reclaim
from siltstone.cache.engine cimport (
    CACHE_FOUND, CacheEngine, cache_read_record, record_free, record_t,
)
from siltstone.cache.eviction cimport (
    ROOM_GROW, ROOM_MADE, ROOM_NONE, ROOM_SEGMENT, ROOM_WRITE, evict_step, purge_group,
)
from siltstone.cache.flash cimport (
    demotion_free, demotion_grow, demotion_t, flash_idle_s, flash_item_t, flash_key_size,
    record_item, record_key, record_tag,
)
from siltstone.cache.index cimport group_at, group_slot, index_group, index_probe
from siltstone.cache.items cimport *
from siltstone.cache.shard cimport *
from siltstone.cache.tags cimport tag_fresh
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
    # The slots and the items in RAM are copied under the lock, without the GIL: no Python object
    # is made there. What they say is put into words afterwards.
    cdef page_t page
    cdef uint64_t next
    cdef int64_t now = now_ms(engine.cache)
    cdef record_t record
    entries = []
    memset(&page, 0, sizeof(page))
    memset(&record, 0, sizeof(record))
    engine.enter()
    try:
        with nogil:
            next = _copy_group(engine.cache, hash, now, &page)
        if page.status == PAGE_BUSY:
            raise errors.Busy("a shard of the cache was not free within one second; try again")
        if page.status == PAGE_NO_MEMORY:
            raise MemoryError()
        _describe_all(engine.cache, &page, now, entries)
        flash = [(page.slots[place].low, page.slots[place].high)
                 for place in range(page.slot_count)]
        for low, high in sorted(flash, key=_position_of):
            entry = _describe_flash(engine.cache, low, high, &record, now)
            if entry is None:
                entry = _describe_moved(engine.cache, hash, low, high, &page, &record, now)
            if entry is not None:
                entries.append(entry)
    finally:
        engine.leave()
        free(page.slots)
        free(page.data)
        record_free(&record)
    return entries, next


cdef enum:
    PAGE_READY = 0
    PAGE_SHORT = 1          # `data` is too small: `size` says what is needed
    PAGE_BUSY = 2
    PAGE_NO_MEMORY = 3
    ONE_ITEM_BYTES = 1 << 17    # entry_t and a key of at most 64 KiB

cdef struct page_t:             # a copy of a group
    int status
    slot_t *slots               # those on flash
    uint32_t slot_count
    char *data                  # entry_t and key, one after the other, for those in RAM
    uint64_t size
    uint64_t capacity

cdef struct entry_t:
    uint64_t cas
    int64_t expire_ms
    uint64_t value_size
    uint32_t client_flags
    uint32_t last_access
    uint32_t key_size
    bint str_key
    bint fetched

cdef uint64_t _copy_group(cache_t *cache, uint64_t hash, int64_t now, page_t *page) noexcept nogil:
    # Room is made outside the lock, so it may take several rounds.
    cdef shard_t *shard = shard_of(cache, hash)
    cdef uint64_t next = 0
    cdef char *larger
    page.slots = <slot_t *>malloc(GROUP_PAGES_MAX * PAGE_SLOTS * sizeof(slot_t))
    page.status = PAGE_SHORT if page.slots != NULL else PAGE_NO_MEMORY
    page.size = 1 << 14
    while page.status == PAGE_SHORT:
        larger = <char *>realloc(page.data, page.size + page.size // 4)
        if larger == NULL:
            page.status = PAGE_NO_MEMORY
            break
        page.data = larger
        page.capacity = page.size + page.size // 4
        if not shard_enter(cache, shard):
            page.status = PAGE_BUSY
            break
        _copy_slots(cache, shard, hash, now, page)
        next = _next_prefix(cache, shard, hash)
        shard_leave(shard)
    return next

cdef void _copy_slots(cache_t *cache, shard_t *shard, uint64_t hash, int64_t now,
                      page_t *page) noexcept nogil:
    cdef group_t *group
    cdef slot_t *slot
    cdef uint32_t place
    page.size = page.slot_count = 0
    page.status = PAGE_READY
    if not shard.built:
        return
    group = index_group(cache, shard, hash)
    for place in range(<uint32_t>group.pages * PAGE_SLOTS):
        slot = group_slot(cache, group, place)
        if slot_expired(cache, slot.high, now):
            continue
        if slot_kind(slot.low) == SLOT_FLASH:
            page.slots[page.slot_count] = slot[0]
            page.slot_count += 1
        elif slot_kind(slot.low) == SLOT_RAM:
            _copy_item(cache, shard, slot, now, page)
    if page.size > page.capacity:
        page.status = PAGE_SHORT

cdef void _copy_item(cache_t *cache, shard_t *shard, slot_t *slot, int64_t now,
                     page_t *page) noexcept nogil:
    # Counted also when there is no room for it.
    cdef item_t *item = item_at(cache, slot_location(slot.low) * 8)
    cdef entry_t entry
    if not item_sound(cache, shard, item_offset(cache, item)):
        return
    entry.expire_ms = item_expiry(item)[0] if item.flags & ITEM_EXPIRY else 0
    if entry.expire_ms and entry.expire_ms <= now:
        return
    if item.flags & ITEM_TAG and not tag_fresh(cache.arena, item_tag(item)[0]):
        return
    entry.cas = item.cas
    entry.value_size = item.value_size
    entry.client_flags = item.client_flags
    entry.last_access = item.last_access
    entry.key_size = item_key_size(item)
    entry.str_key = (item.flags & ITEM_STR_KEY) != 0
    entry.fetched = (slot.low & SLOT_FETCHED) != 0
    if page.size + sizeof(entry) + entry.key_size <= page.capacity:
        memcpy(page.data + page.size, &entry, sizeof(entry))
        item_read(cache, item, 0, page.data + page.size + sizeof(entry), entry.key_size)
    page.size += sizeof(entry) + entry.key_size


cdef int _describe_all(cache_t *cache, page_t *page, int64_t now, list entries) except -1:
    cdef entry_t entry
    cdef uint64_t place = 0
    cdef char *key
    while place < page.size:
        memcpy(&entry, page.data + place, sizeof(entry))
        key = page.data + place + sizeof(entry)
        idle = (now - cache.arena.header.created_ms) // 1000 - entry.last_access
        entries.append((
            key[:entry.key_size], bool(entry.str_key), entry.expire_ms, idle, entry.cas,
            bool(entry.fetched), entry.value_size, entry.client_flags, False))
        place += sizeof(entry) + entry.key_size
    return 0


cdef object _describe_moved(cache_t *cache, uint64_t hash, uint64_t low, uint64_t high,
                            page_t *page, record_t *record, int64_t now):
    # Its record was not there any more: what does the index say by now? `hash` is of its group;
    # `page` has been described and its memory is used again.
    cdef uint32_t shift = cache.hash_shift + 40
    cdef uint64_t identity = (hash >> shift << shift) | (
        slot_hash40(low, high) << cache.hash_shift)
    cdef uint64_t position
    cdef slot_t slot
    moved = []
    for _ in range(MOVES_MAX):
        position = slot_location(low)
        with nogil:
            _copy_one(cache, identity, now, page, &slot)
        if page.status == PAGE_BUSY:
            raise errors.Busy("a shard of the cache was not free within one second; try again")
        if slot_kind(slot.low) == SLOT_RAM and page.status == PAGE_READY:
            _describe_all(cache, page, now, moved)
            return moved[0] if moved else None
        if slot_kind(slot.low) != SLOT_FLASH or slot_location(slot.low) == position:
            return None
        low, high = slot.low, slot.high
        entry = _describe_flash(cache, low, high, record, now)
        if entry is not None:
            return entry
    return None


cdef void _copy_one(cache_t *cache, uint64_t identity, int64_t now, page_t *page,
                    slot_t *found) noexcept nogil:
    # Room for one item with the longest key; `found` is its slot, empty when there is none.
    cdef shard_t *shard = shard_of(cache, identity)
    cdef slot_t *slot
    cdef char *larger = <char *>realloc(page.data, ONE_ITEM_BYTES)
    found.low = found.high = 0
    page.size = 0
    page.status = PAGE_NO_MEMORY
    if larger == NULL:
        return
    page.data = larger
    page.capacity = ONE_ITEM_BYTES
    page.status = PAGE_BUSY
    if not shard_enter(cache, shard):
        return
    page.status = PAGE_READY
    slot = index_probe(cache, shard, identity)
    if slot != NULL and not slot_expired(cache, slot.high, now):
        found[0] = slot[0]
        if slot_kind(slot.low) == SLOT_RAM:
            _copy_item(cache, shard, slot, now, page)
    shard_leave(shard)


def _position_of(words):
    return words[0] & 0xfffffffffffff


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
    if head.flags & ITEM_TAG and not tag_fresh(cache.arena, record_tag(record)):
        return None
    expire_ms = 0 if expiry == 0 else (
        <int64_t>head.expires_s * 1000 if expiry == EXPIRY_LOOK
        else cache.arena.header.created_ms + <int64_t>expiry * 1000)
    return (record_key(record)[:flash_key_size(head)], (head.flags & ITEM_STR_KEY) != 0, expire_ms,
            flash_idle_s(head, now), head.cas, (low & SLOT_FETCHED) != 0, head.value_size,
            head.client_flags, True)


def sweep(CacheEngine engine not None) -> int:
    """Remove what has expired or whose segment is gone; how many items went."""
    cdef cache_t *cache = engine.cache
    cdef uint32_t number, gone = 0
    for number in range(cache.shard_count):
        engine.enter()
        with nogil:
            gone += _sweep_shard(cache, &cache.shards[number])
        engine.leave()
    return gone


cdef uint32_t _sweep_shard(cache_t *cache, shard_t *shard) noexcept nogil:
    cdef uint32_t group = 0, gone = 0
    while group < shard.groups:
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
    cdef int result = ROOM_MADE, idle = 0, waits = 0, reclaimed
    memset(&demotion, 0, sizeof(demotion))
    while shard.items_ram and idle < 100000 and waits < DRAIN_WAITS:
        if not shard_enter(cache, shard):
            break
        _cool(cache, shard)
        result = evict_step(cache, shard, now_ms(cache), &demotion)
        shard_leave(shard)
        idle += 1
        reclaimed = reclaim(cache) if result == ROOM_SEGMENT else 1
        if reclaimed < 0:
            break
        if result == ROOM_WRITE or not reclaimed:
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
