"""What is in memory: nodes and table blocks; asking, loading, evicting.

Everything that grows with the data is counted in `resident_bytes`: nodes, table blocks, chains of
places. When that is over the limit, unlocking moves a hand over the table (CLOCK with two bits): a
page that was asked for since the hand came by stays, one that was only loaded, as by a scan, goes.
Nothing is written for it: what is in memory is always in the log too. Dirty table blocks are saved
first. A few pages stay whatever the limit says, since an operation needs them at the same time.
Versions for snapshots are counted apart (versions.pyx).
"""
from libc.errno cimport ENOMEM
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy

from siltstone.log.pthread cimport pthread_mutex_lock, pthread_mutex_unlock
from siltstone.store.append cimport append_ready, append_wait
from siltstone.store.chainread cimport chain_node, table_image
from siltstone.store.pending cimport pending_apply, pending_leave_out, pending_room
from siltstone.store.state cimport (BLOCK_BITS, BLOCK_ENTRIES, HEAT_MAX, PAGES_ABSENT,
                                    PAGES_CORRUPT, PAGES_MISS, PAGES_OK, PAGES_TOO_OLD, PAGE_LIVE,
                                    block_t, entry_t, pages_t, place_t, snapshot_t, version_t)
from siltstone.store.table cimport (block_decode, block_drop, block_heats, block_install, block_of,
                                    block_save, entries_free, entries_new, entry_redundant,
                                    entry_take_places, node_changed, page_entry, page_heat,
                                    page_warm)
from siltstone.store.together cimport do_together
from siltstone.store.versions cimport version_find

cdef enum:
    EVICT_STEPS = 1 << 14       # entries that one unlock looks at: about 0.1 ms
    AGAIN = -100000             # inner result: changed meanwhile, look again


# Asking ------------------------------------------------------------------------------------------


cdef int page_get(pages_t *pages, uint64_t pid, const snapshot_t *snapshot, bint scan, char **node,
                  uint64_t *stamp) noexcept nogil:
    cdef entry_t *entry = page_entry(pages, pid)
    cdef version_t *version
    if entry == NULL:
        return PAGES_ABSENT if pid >= pages.pid_next else PAGES_MISS
    if snapshot != NULL:
        if snapshot.too_old:
            return PAGES_TOO_OLD
        if entry.stamp > snapshot.stamp:
            version = version_find(entry, snapshot.stamp)
            if version == NULL or version.until <= snapshot.stamp:
                return PAGES_ABSENT
            if version.node == NULL:
                return PAGES_MISS
            node[0] = version.node
            if stamp != NULL:
                stamp[0] = version.stamp
            return PAGES_OK
    if entry.state != PAGE_LIVE:
        return PAGES_ABSENT
    if entry.node == NULL:
        return PAGES_MISS
    if not scan:
        page_warm(pages, pid)
    node[0] = entry.node
    if stamp != NULL:
        stamp[0] = entry.stamp
    return PAGES_OK


cdef void entry_set_node(pages_t *pages, uint64_t pid, entry_t *entry, char *node) noexcept nogil:
    cdef block_t *block = block_of(pages, pid)
    if entry.node != NULL:
        pages.resident_bytes -= entry.node_bytes
        pages.resident_pages -= 1
        block.resident -= 1
        if entry.node != node:
            pages.ops.release(pages.context, entry.node)
    entry.node = node
    entry.node_bytes = 0
    if node != NULL:
        entry.node_bytes = <uint32_t>pages.ops.memory(pages.context, node)
        pages.resident_bytes += entry.node_bytes
        pages.resident_pages += 1
        block.resident += 1
    node_changed(pages, pid, entry)


cdef void page_resized(pages_t *pages, uint64_t pid, char *node) noexcept nogil:
    cdef entry_t *entry = page_entry(pages, pid)
    cdef int64_t grown = <int64_t>pages.ops.image_size(pages.context, node)
    grown -= <int64_t>pages.content_before
    entry_redundant(pages, entry, <int64_t>entry.redundant - grown)
    pages.resident_bytes -= entry.node_bytes
    entry.node = node
    node_changed(pages, pid, entry)
    entry.node_bytes = <uint32_t>pages.ops.memory(pages.context, node)
    pages.resident_bytes += entry.node_bytes


# Loading -----------------------------------------------------------------------------------------


cdef int block_read(pages_t *pages, uint64_t number, const place_t *places, uint32_t count,
                    entry_t **entries) noexcept nogil:
    cdef char *image = NULL
    cdef uint64_t size = 0, bad = 0
    cdef int result
    if count == 0:          # never saved: nothing was in it when the checkpoint began
        entries[0] = entries_new()
        return PAGES_OK if entries[0] != NULL else -ENOMEM
    result = table_image(pages, number, places, count, &image, &size, &bad)
    if result == PAGES_OK:
        result = block_decode(pages, image, size, entries)
    if result == PAGES_CORRUPT:
        pages.bad_position = bad
    free(image)
    return result


cdef int block_load(pages_t *pages, uint64_t number) noexcept nogil:
    cdef place_t *places
    cdef uint32_t count
    cdef entry_t *entries = NULL
    cdef block_t *block
    cdef int result = AGAIN
    while result == AGAIN:
        pthread_mutex_lock(&pages.lock)
        if number >= pages.block_count or pages.blocks[number].entries != NULL:
            pthread_mutex_unlock(&pages.lock)
            return PAGES_OK if number < pages.block_count else PAGES_ABSENT
        count = pages.blocks[number].place_count
        places = <place_t *>malloc((count + 1) * sizeof(place_t))
        if places != NULL:
            memcpy(places, pages.blocks[number].places, count * sizeof(place_t))
        pthread_mutex_unlock(&pages.lock)
        if places == NULL:
            return -ENOMEM
        entries = NULL
        result = block_read(pages, number, places, count, &entries)
        pthread_mutex_lock(&pages.lock)
        block = &pages.blocks[number]
        if block.entries != NULL:
            entries_free(entries)
            result = PAGES_OK
        elif (block.place_count != count
              or memcmp(block.places, places, count * sizeof(place_t)) != 0):
            entries_free(entries)
            pages.counters.load_retries += 1
            result = AGAIN
        elif result == PAGES_OK:
            result = pending_room(pages, number, entries)
            if result != 0:
                entries_free(entries)
            else:
                pages.counters.block_loads += 1
                block_install(pages, number, entries)
                pending_apply(pages, number)
        pthread_mutex_unlock(&pages.lock)
        free(places)
    return result


cdef void recent_add(pages_t *pages, uint64_t pid) noexcept nogil:
    """What was loaded last is not evicted: whoever loaded it has yet to see it. Without this an
    operation that needs two pages could load one, lose the other, and so on for ever."""
    cdef uint64_t *place = &pages.recent[pages.recent_next]
    pages.recent_next = (pages.recent_next + 1) % pages.pages_min
    if place[0]:
        page_entry(pages, place[0]).busy -= 1
        block_of(pages, place[0]).resident -= 1
    place[0] = pid
    page_entry(pages, pid).busy += 1
    block_of(pages, pid).resident += 1


cdef void count_redundant(pages_t *pages, entry_t *entry) noexcept nogil:
    """What recovery could not know: with the page itself at hand, its records say the rest twice.
    Those of a compressed base are smaller than what they say, and tell nothing."""
    cdef uint64_t bytes = entry.first.bytes
    cdef uint32_t number
    if pages.compression:
        return
    for number in range(entry.count - 1):
        bytes += entry.more[number].bytes
    entry_redundant(pages, entry, <int64_t>bytes
                    - <int64_t>pages.ops.image_size(pages.context, entry.node))


cdef int entry_load(pages_t *pages, uint64_t pid, entry_t *entry) noexcept nogil:
    """Lock held; dropped while reading. The entry cannot go meanwhile: it is busy."""
    cdef place_t *places = NULL
    cdef place_t first = entry.first
    cdef uint32_t count = entry.count
    cdef uint64_t stamp = entry.stamp, bad = 0
    cdef char *node = NULL
    cdef int result
    if entry_take_places(entry, &places) != 0:
        return -ENOMEM
    entry.busy += 1
    block_of(pages, pid).resident += 1
    pthread_mutex_unlock(&pages.lock)
    result = chain_node(pages, pid, places, count, &node, &bad)
    pthread_mutex_lock(&pages.lock)
    entry.busy -= 1
    block_of(pages, pid).resident -= 1
    if (entry.state != PAGE_LIVE or entry.node != NULL or entry.stamp != stamp
            or entry.count != count or entry.first.position != first.position):
        pages.counters.load_retries += 1
        if node != NULL:
            pages.ops.release(pages.context, node)
        result = AGAIN
    elif result == PAGES_OK:
        entry_set_node(pages, pid, entry, node)
        count_redundant(pages, entry)
        page_heat(pages, pid)[0] = 0
        recent_add(pages, pid)
        pages.counters.loads += 1
    elif result == PAGES_CORRUPT:
        pages.bad_position = bad
    free(places)
    return result


cdef int version_load(pages_t *pages, uint64_t pid, version_t *version,
                      uint64_t snapshot) noexcept nogil:
    """The same for what a snapshot sees; the version may be gone when it was read."""
    cdef place_t *places = <place_t *>malloc((version.count + 1) * sizeof(place_t))
    cdef uint64_t stamp = version.stamp, bad = 0
    cdef uint32_t count = version.count
    cdef char *node = NULL
    cdef entry_t *entry
    cdef int result
    if places == NULL:
        return -ENOMEM
    memcpy(places, version.places, count * sizeof(place_t))
    pthread_mutex_unlock(&pages.lock)
    result = chain_node(pages, pid, places, count, &node, &bad)
    pthread_mutex_lock(&pages.lock)
    entry = page_entry(pages, pid)
    version = version_find(entry, snapshot) if entry != NULL else NULL
    if version == NULL or version.stamp != stamp or version.node != NULL:
        if node != NULL:
            pages.ops.release(pages.context, node)
        result = AGAIN
    elif result == PAGES_OK:
        version.node = node
        pages.version_bytes += pages.ops.memory(pages.context, node)
        version.bytes += <uint32_t>pages.ops.memory(pages.context, node)
    elif result == PAGES_CORRUPT:
        pages.bad_position = bad
    free(places)
    return result


cdef int load_once(pages_t *pages, uint64_t pid, const snapshot_t *snapshot) noexcept nogil:
    """Lock held."""
    cdef entry_t *entry = page_entry(pages, pid)
    cdef version_t *version
    if entry == NULL:
        return PAGES_ABSENT if pid >= pages.pid_next else PAGES_MISS
    if snapshot != NULL and snapshot.too_old:
        return PAGES_TOO_OLD
    if snapshot != NULL and entry.stamp > snapshot.stamp:
        version = version_find(entry, snapshot.stamp)
        if version == NULL or version.until <= snapshot.stamp:
            return PAGES_ABSENT
        return PAGES_OK if version.node != NULL else version_load(pages, pid, version,
                                                                  snapshot.stamp)
    if entry.state != PAGE_LIVE:
        return PAGES_ABSENT
    return PAGES_OK if entry.node != NULL else entry_load(pages, pid, entry)


cdef int pages_load(pages_t *pages, uint64_t pid, const snapshot_t *snapshot) noexcept nogil:
    cdef int result = AGAIN
    while result == AGAIN or result == PAGES_MISS:
        if result == PAGES_MISS:
            result = block_load(pages, pid >> BLOCK_BITS)
            if result != PAGES_OK:
                return result
        pthread_mutex_lock(&pages.lock)
        result = load_once(pages, pid, snapshot)
        if pages.resident_bytes > pages.evict_above:
            pages_evict(pages)
        pthread_mutex_unlock(&pages.lock)
    return result


# Many at once ------------------------------------------------------------------------------------


cdef struct loads_t:
    pages_t *pages
    const uint64_t *pids
    const snapshot_t *snapshot


cdef void load_part(void *context, uint32_t number) noexcept nogil:
    cdef loads_t *loads = <loads_t *>context
    pages_load(loads.pages, loads.pids[number], loads.snapshot)


cdef void pages_load_many(pages_t *pages, const uint64_t *pids, uint32_t count,
                          const snapshot_t *snapshot) noexcept nogil:
    cdef loads_t loads
    loads.pages, loads.pids, loads.snapshot = pages, pids, snapshot
    do_together(pages.pool, load_part, &loads, count)


# Evicting ----------------------------------------------------------------------------------------


cdef void evict_block(pages_t *pages, uint64_t number) noexcept nogil:
    """A block in which nothing is in use. The newest one stays: pids are allocated there."""
    cdef block_t *block = &pages.blocks[number]
    if block.resident or number == pages.pid_next >> BLOCK_BITS:
        return
    if block.heat:
        block.heat -= 1
        return
    if block.dirty:
        # While a checkpoint is made its state of a block must not be replaced by a later one.
        if pages.read_only or (pages.checkpoint and block.checkpoint == pages.checkpoint):
            return
        if append_ready(pages, BLOCK_ENTRIES * 64, 1) != PAGES_OK:
            return
        if block_save(pages, number) != PAGES_OK:
            return
    block_drop(pages, number)
    pages.counters.evictions += 1


cdef uint64_t look_at(pages_t *pages, uint64_t number, uint64_t budget) noexcept nogil:
    """Move the hand over a block; how many entries it saw."""
    cdef uint8_t *heats = block_heats(pages.blocks[number].entries)
    cdef entry_t *entry
    cdef uint64_t seen = 0
    while pages.hand_entry < BLOCK_ENTRIES and seen < budget:
        if (pages.resident_bytes <= pages.cache_bytes
                or pages.resident_pages <= pages.pages_min):
            break
        entry = &pages.blocks[number].entries[pages.hand_entry]
        if entry.node != NULL and not entry.busy:
            if heats[pages.hand_entry]:
                heats[pages.hand_entry] -= 1
            else:
                entry_set_node(pages, (number << BLOCK_BITS) + pages.hand_entry, entry, NULL)
                pages.counters.evictions += 1
                pages.blocks[number].heat = 1
        pages.hand_entry += 1
        seen += 1
    return seen + 1


cdef int blocks_settle(pages_t *pages) noexcept nogil:
    cdef uint32_t number = 0
    cdef int result = PAGES_OK
    while result == PAGES_OK:
        pthread_mutex_lock(&pages.lock)
        while number < pages.block_count and pages.blocks[number].pending == NULL:
            number += 1
        result = PAGES_OK if number < pages.block_count else PAGES_ABSENT
        pthread_mutex_unlock(&pages.lock)
        if result == PAGES_ABSENT:
            return PAGES_OK
        result = block_load(pages, number)
        if result == PAGES_OK:
            append_wait(pages, BLOCK_ENTRIES * 64, 1)   # what is wrong the checkpoint will say
        pthread_mutex_lock(&pages.lock)
        if result == PAGES_OK:
            pages.blocks[number].heat = 0
            evict_block(pages, number)
        elif result == PAGES_CORRUPT:
            pending_leave_out(pages, number)
            result = PAGES_OK
        pthread_mutex_unlock(&pages.lock)
    return result


cdef void pages_evict(pages_t *pages) noexcept nogil:
    cdef uint64_t seen = 0, blocks = 0, limit = (HEAT_MAX + 2) * <uint64_t>pages.block_count
    cdef block_t *block
    while (seen < EVICT_STEPS and blocks < limit
           and pages.resident_bytes > pages.cache_bytes):
        if pages.hand_block >= pages.block_count:
            pages.hand_block = pages.hand_entry = 0
        block = &pages.blocks[pages.hand_block]
        if block.entries != NULL and pages.hand_entry < BLOCK_ENTRIES and block.resident:
            seen += look_at(pages, pages.hand_block, EVICT_STEPS - seen)
            if pages.hand_entry < BLOCK_ENTRIES and pages.resident_pages > pages.pages_min:
                continue        # enough, for now
        if block.entries != NULL:
            evict_block(pages, pages.hand_block)
            seen += 1
        pages.hand_block += 1
        pages.hand_entry = 0
        blocks += 1
        seen += 1
    # Nothing to be had now (all in use, dirty while a checkpoint is made, too few): not each time.
    pages.evict_above = pages.cache_bytes
    if pages.resident_bytes > pages.cache_bytes and blocks >= limit:
        pages.evict_above = pages.resident_bytes + pages.cache_bytes // 16 + 4096
