"""Checks: that table, segments and memory agree, and that every page can be read from the device.

For verify and for tests after every step. Changes nothing but for the blocks that it loads.
"""
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free

from siltstone.log.chain cimport chain_find
from siltstone.log.pthread cimport pthread_mutex_lock, pthread_mutex_unlock
from siltstone.store.append cimport places_bytes
from siltstone.store.chainread cimport chain_node
from siltstone.store.pagecache cimport pages_lock, pages_unlock
from siltstone.store.resident cimport block_load
from siltstone.store.state cimport (BLOCK_BITS, BLOCK_ENTRIES, PAGES_ABSENT, PAGES_MISS, PAGES_OK,
                                    PAGE_LIVE, block_t, entry_t, pages_t, place_t, version_t)
from siltstone.store.table cimport (BLOCK_MEMORY, block_nodes, entry_place, entry_take_places,
                                    page_entry)


cdef bint add_place(pages_t *pages, const place_t *place, uint64_t *sums) noexcept nogil:
    cdef int64_t slot = chain_find(pages.stream, place.position // pages.stream.segment_bytes)
    if slot >= 0:
        sums[slot] += place.bytes
    return slot >= 0


cdef int sum_blocks(pages_t *pages, uint64_t *sums, uint64_t *number) noexcept nogil:
    cdef uint32_t block, at, place
    cdef entry_t *entry
    for block in range(pages.block_count):
        number[0] = block
        for place in range(pages.blocks[block].place_count):
            if not add_place(pages, &pages.blocks[block].places[place], sums):
                return CHECK_LOST
        for at in range(BLOCK_ENTRIES if pages.blocks[block].entries != NULL else 0):
            entry = &pages.blocks[block].entries[at]
            number[0] = (<uint64_t>block << BLOCK_BITS) + at
            for place in range(entry.count):
                if not add_place(pages, entry_place(entry, place), sums):
                    return CHECK_LOST
    return CHECK_OK


cdef int check_counts(pages_t *pages, uint64_t *expected, uint64_t *found) noexcept nogil:
    """Bytes and pages in memory, and what keeps each block."""
    cdef uint32_t number, at, used
    cdef uint64_t bytes = 0, nodes = 0, redundant = 0
    cdef block_t *block
    cdef entry_t *entry
    cdef version_t *version
    for number in range(pages.block_count):
        block = &pages.blocks[number]
        used = 0
        if block.entries == NULL:
            redundant += block.redundant
            continue
        bytes += BLOCK_MEMORY
        for at in range(BLOCK_ENTRIES):
            entry = &block.entries[at]
            bytes += entry.capacity * sizeof(place_t) + entry.node_bytes
            nodes += entry.node != NULL
            if block_nodes(block.entries)[at] != entry.node:
                return CHECK_COUNTS
            redundant += entry.redundant
            used += (entry.node != NULL) + entry.busy + (entry.state == 2)
            version = entry.versions
            while version != NULL:
                used += 1
                version = version.older
        expected[0], found[0] = used, block.resident
        if used != block.resident:
            return CHECK_COUNTS
    expected[0], found[0] = bytes, pages.resident_bytes
    if bytes != pages.resident_bytes:
        return CHECK_COUNTS
    expected[0], found[0] = redundant, pages.redundant_bytes
    if redundant != pages.redundant_bytes:
        return CHECK_COUNTS
    expected[0], found[0] = nodes, pages.resident_pages
    return CHECK_OK if nodes == pages.resident_pages else CHECK_COUNTS


cdef int table_check(pages_t *pages, uint64_t *number, uint64_t *expected,
                     uint64_t *found) noexcept nogil:
    cdef uint64_t *sums
    cdef uint32_t slot
    cdef int result
    pthread_mutex_lock(&pages.stream.lock)
    sums = <uint64_t *>calloc(pages.stream.slot_capacity + 1, sizeof(uint64_t))
    result = sum_blocks(pages, sums, number) if sums != NULL else CHECK_OK
    for slot in range(pages.stream.slot_capacity if sums != NULL else 0):
        if result == CHECK_OK and pages.stream.segments[slot].version:
            if sums[slot] != pages.stream.segments[slot].live_bytes:
                number[0], expected[0] = slot, sums[slot]
                found[0] = pages.stream.segments[slot].live_bytes
                result = CHECK_LIVE
    pthread_mutex_unlock(&pages.stream.lock)
    free(sums)
    return result if result != CHECK_OK else check_counts(pages, expected, found)


cdef int page_check(pages_t *pages, uint64_t pid, uint64_t *bad, uint32_t *records,
                    uint64_t *bytes) noexcept nogil:
    cdef entry_t *entry
    cdef place_t *places = NULL
    cdef uint64_t first = 0
    cdef uint32_t count = 0
    cdef char *node = NULL
    cdef int result = PAGES_MISS
    while result == PAGES_MISS:
        result = block_load(pages, pid >> BLOCK_BITS)
        if result != PAGES_OK:
            return result
        pages_lock(pages)
        entry = page_entry(pages, pid)
        if entry == NULL:
            result = PAGES_MISS
        elif entry.state != PAGE_LIVE:
            result = PAGES_ABSENT
        else:
            result = entry_take_places(entry, &places)
            count = entry.count
            first = entry.first.position
        pages_unlock(pages)
        if result != PAGES_OK:
            continue
        result = chain_node(pages, pid, places, count, &node, bad)
        records[0] = count
        bytes[0] = places_bytes(places, count)
        free(places)
        if node != NULL:
            pages.ops.release(pages.context, node)
            node = NULL
        if result != PAGES_OK and moved(pages, pid, first, count):
            result = PAGES_MISS
    return result


cdef bint moved(pages_t *pages, uint64_t pid, uint64_t first, uint32_t count) noexcept nogil:
    """It was changed or moved while it was read: look again."""
    cdef entry_t *entry
    cdef bint result
    pages_lock(pages)
    entry = page_entry(pages, pid)
    result = (entry == NULL or entry.first.position != first or entry.count != count
              or entry.state != PAGE_LIVE)
    pages_unlock(pages)
    return result
