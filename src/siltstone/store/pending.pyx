"""What recovery found for pages whose table block is not in memory, packed, until it is.

Random changes touch every block of a large table. To read all of these would cost recovery most of
its time and memory, so a record is noted for its block instead: 8 bytes, where an entry takes 81
and 16 a record. Whoever loads the block has them applied in order, once. Until then records that
they replace count as live: files do not shrink for it, and nothing is used again too early. A
checkpoint applies what is left first (blocks_settle()).

    pending := redo *
    redo    := entry x 4 + (0 as the place says | 1 moved | 2 freed), difference of the stamp to the
               one before, place as in a block's image, its position from the one before
"""
from libc.errno cimport ENOMEM
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from siltstone.store.state cimport (BLOCK_BITS, BLOCK_ENTRIES, KIND_BASE, KIND_FREE, KIND_LINK,
                                    KIND_MORE, KIND_MOVED, PAGES_CORRUPT, PAGES_OK, PAGE_FREE,
                                    PAGE_LIVE, entry_t, pages_t, pending_part_t, pending_t)
from siltstone.store.table cimport (block_touch, entry_clear_places, entry_push, entry_redundant,
                                    entry_room, get_number, get_place, places_dead, put_number,
                                    put_place)

cdef enum:
    PART_SIZE = 512             # a block has some kilobytes in all
    REDO_MAX = 4 * 10           # four numbers
    AS_IS = 0
    MOVED = 1
    FREED = 2


cdef int entry_redo(pages_t *pages, uint64_t pid, entry_t *entry,
                    const redo_t *redo) noexcept nogil:
    cdef uint32_t kind = redo.kind
    if (kind == KIND_LINK or kind == KIND_MORE or kind == KIND_MOVED) and entry.state != PAGE_LIVE:
        places_dead(pages, &redo.place, 1)
        return PAGES_CORRUPT
    block_touch(pages, pid)
    if kind == KIND_BASE or kind == KIND_MOVED or kind == KIND_FREE:
        entry_clear_places(pages, entry)
    if kind != KIND_MOVED and kind != KIND_MORE:
        entry.stamp = redo.stamp
    if kind == KIND_FREE:
        entry.state = PAGE_FREE
        return PAGES_OK
    entry.state = PAGE_LIVE
    entry_push(entry, &redo.place)
    if kind == KIND_LINK:
        entry.link_bytes += redo.place.bytes
        entry_redundant(pages, entry, entry.link_bytes)
    return PAGES_OK


# Noting ------------------------------------------------------------------------------------------


cdef pending_part_t *part_with_room(pages_t *pages, uint64_t number) noexcept nogil:
    cdef pending_t *pending = pages.blocks[number].pending
    cdef pending_part_t *part
    if pending == NULL:
        pending = <pending_t *>malloc(sizeof(pending_t))
        if pending == NULL:
            return NULL
        memset(pending, 0, sizeof(pending_t))
        pages.blocks[number].pending = pending
    part = pending.last
    if part == NULL or part.used + REDO_MAX > PART_SIZE - sizeof(pending_part_t):
        part = <pending_part_t *>malloc(PART_SIZE)
        if part == NULL:
            return NULL
        part.next, part.used = NULL, 0
        if pending.last == NULL:
            pending.first = part
        else:
            pending.last.next = part
        pending.last = part
        pending.bytes += PART_SIZE
        pages.pending_bytes += PART_SIZE
        pages.resident_bytes += PART_SIZE
    return part


cdef int pending_add(pages_t *pages, uint64_t number, const redo_t *redo) noexcept nogil:
    cdef pending_part_t *part = part_with_room(pages, number)
    cdef pending_t *pending = pages.blocks[number].pending
    cdef uint32_t how = AS_IS
    cdef char *start
    cdef char *to
    if part == NULL:
        return -ENOMEM
    if redo.kind == KIND_MOVED or redo.kind == KIND_FREE:
        how = MOVED if redo.kind == KIND_MOVED else FREED
    start = <char *>(part + 1) + part.used
    to = put_number(start, redo.at << 2 | how)
    to = put_number(to, redo.stamp - pending.stamp)
    to = put_place(to, &redo.place, pending.position)
    part.used += <uint32_t>(to - start)
    pending.stamp, pending.position = redo.stamp, redo.place.position
    return 0


# Going through -----------------------------------------------------------------------------------


cdef struct reader_t:
    const pending_part_t *part
    uint32_t at
    uint64_t stamp
    uint64_t position


cdef reader_t reader_of(pages_t *pages, uint64_t number) noexcept nogil:
    cdef reader_t reader
    reader.part = pages.blocks[number].pending.first
    reader.at, reader.stamp, reader.position = 0, 0, 0
    return reader


cdef bint next_redo(reader_t *reader, redo_t *redo) noexcept nogil:
    cdef const char *at
    cdef const char *end
    cdef uint64_t word = 0, step = 0
    if reader.part != NULL and reader.at == reader.part.used:
        reader.part, reader.at = reader.part.next, 0
    if reader.part == NULL:
        return False
    at = <const char *>(reader.part + 1) + reader.at
    end = <const char *>(reader.part + 1) + reader.part.used
    at = get_number(at, end, &word)
    at = get_number(at, end, &step)
    at = get_place(at, end, reader.position, &redo.place)
    reader.at = <uint32_t>(at - <const char *>(reader.part + 1))
    reader.position = redo.place.position
    reader.stamp += step
    redo.stamp = reader.stamp
    redo.at = <uint32_t>(word >> 2)
    redo.kind = redo.place.kind
    if word & 3 != AS_IS:
        redo.kind = KIND_MOVED if word & 3 == MOVED else KIND_FREE
    return True


cdef int pending_room(pages_t *pages, uint64_t number, entry_t *entries) noexcept nogil:
    cdef uint32_t counts[BLOCK_ENTRIES]
    cdef uint32_t at
    cdef reader_t reader
    cdef redo_t redo
    cdef pages_t counted        # only its resident_bytes is used: the entries are not the table's
    if pages.blocks[number].pending == NULL:
        return 0
    counted.resident_bytes = 0
    for at in range(BLOCK_ENTRIES):
        counts[at] = entries[at].count
    reader = reader_of(pages, number)
    while next_redo(&reader, &redo):
        at = redo.at
        if redo.kind == KIND_BASE or redo.kind == KIND_MOVED or redo.kind == KIND_FREE:
            counts[at] = 0
        counts[at] += redo.kind != KIND_FREE
        if counts[at] > entries[at].count:
            if entry_room(&counted, &entries[at], counts[at] - entries[at].count) != 0:
                return -ENOMEM
    return 0


cdef void pending_apply(pages_t *pages, uint64_t number) noexcept nogil:
    cdef reader_t reader
    cdef redo_t redo
    if pages.blocks[number].pending == NULL:
        return
    reader = reader_of(pages, number)
    while next_redo(&reader, &redo):
        if entry_redo(pages, (number << BLOCK_BITS) + redo.at,
                      &pages.blocks[number].entries[redo.at], &redo) != PAGES_OK:
            pages.left_out += 1
    pending_free(pages, number)


cdef void pending_leave_out(pages_t *pages, uint64_t number) noexcept nogil:
    cdef reader_t reader
    cdef redo_t redo
    if pages.blocks[number].pending == NULL:
        return
    reader = reader_of(pages, number)
    while next_redo(&reader, &redo):
        pages.left_out += 1
        if redo.kind != KIND_FREE:
            places_dead(pages, &redo.place, 1)
    pending_free(pages, number)


cdef void pending_free(pages_t *pages, uint64_t number) noexcept nogil:
    cdef pending_t *pending = pages.blocks[number].pending
    cdef pending_part_t *part
    if pending == NULL:
        return
    pages.pending_bytes -= pending.bytes
    pages.resident_bytes -= pending.bytes
    while pending.first != NULL:
        part = pending.first
        pending.first = part.next
        free(part)
    free(pending)
    pages.blocks[number].pending = NULL
