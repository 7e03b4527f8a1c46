"""Recovery of the page table: a checkpoint's state, then every record that was committed after it.

The state describes the table exactly as it stood at the checkpoint's moment, so each record behind
that moment is applied, once, in order: at once where its block is in memory, else when that is
read (pending.pyx). Such blocks stay dirty until the next checkpoint. Records that make no sense (a
link to a page that is not there: its base was damaged) are left out and counted as damage.

    state := head tail       all numbers little-endian
    head  := version u32, commit stamp u64, next pid u64, id marker u64, roots u32, root *
    root  := id u32, name size u32, pid u64, count i64, name
    tail  := places u32, place * (dead since the moment), blocks u32, block *
    block := places u32, place *            place := position u64, bytes u32
"""
from libc.errno cimport ENOMEM
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy

from siltstone.log.format cimport record_bytes
from siltstone.log.ordered cimport GROUP_ID_SIZE, ORDERED_COMMIT, ordered_dead
from siltstone.store.pending cimport entry_redo, pending_add, pending_leave_out, redo_t
from siltstone.store.resident cimport block_load
from siltstone.store.roots cimport root_count_add, root_set, roots_reach
from siltstone.store.state cimport (BLOCK_BITS, BLOCK_ENTRIES, KIND_BASE, KIND_FREE, KIND_IDS,
                                    KIND_LINK, KIND_MORE, KIND_MOVED, KIND_ROOT, KIND_TABLE,
                                    MARK_COMMIT, NOTE_SIZE, PAGES_CORRUPT, PAGES_OK, ROOT_NAME_MAX,
                                    WORD_NOTE, block_t, entry_t, pages_t, place_t, root_t)
from siltstone.store.table cimport (BLOCK_MEMORY, entry_room, page_entry, places_dead,
                                    table_reach)

cdef enum:
    STATE_VERSION = 1
    HEAD_SIZE = 4 + 8 + 8 + 8 + 4
    ROOT_SIZE = 4 + 4 + 8 + 8
    PLACE_SIZE = 8 + 4


# Records -----------------------------------------------------------------------------------------


cdef void redo_notes(pages_t *pages, const char *notes, uint64_t size) noexcept nogil:
    cdef uint32_t root
    cdef int64_t delta
    while size >= NOTE_SIZE:
        memcpy(&root, notes, 4)
        memcpy(&delta, notes + 4, 8)
        root_count_add(pages, root, delta)
        notes += NOTE_SIZE
        size -= NOTE_SIZE


cdef int redo_now(pages_t *pages, uint64_t number) noexcept nogil:
    """What is noted for a block takes more memory than the block would."""
    cdef int result = block_load(pages, number)
    if result == PAGES_CORRUPT:
        pending_leave_out(pages, number)
        return PAGES_OK
    return result


cdef int redo_page(pages_t *pages, uint32_t kind, const place_t *place, const char *payload,
                   uint64_t size, bint alone) noexcept nogil:
    """BASE, MOVED, MORE, LINK, FREE: to its entry, or for later."""
    cdef entry_t *entry
    cdef uint64_t word, pid, number
    cdef redo_t redo
    memcpy(&word, payload, 8)
    pid = word >> 8
    number = pid >> BLOCK_BITS
    if pid >= <uint64_t>1 << 40:
        places_dead(pages, place, 1)
        return PAGES_CORRUPT
    if number >= pages.block_count and table_reach(pages, pid) != 0:
        return -ENOMEM
    pages.pid_next = max(pages.pid_next, pid + 1)
    if kind == KIND_LINK and alone:
        pages.commit_stamp += 1
        if word & WORD_NOTE:
            redo_notes(pages, payload + 8, min(size - 8, <uint64_t>NOTE_SIZE))
    if kind == KIND_FREE:
        places_dead(pages, place, 1)
    redo.kind, redo.at, redo.place = kind, pid & (BLOCK_ENTRIES - 1), place[0]
    redo.stamp = pages.commit_stamp + (0 if alone else 1)
    entry = page_entry(pages, pid)
    if entry == NULL:
        if pending_add(pages, number, &redo) != 0:
            return -ENOMEM
        return PAGES_OK if pages.blocks[number].pending.bytes <= BLOCK_MEMORY else redo_now(
            pages, number)
    if entry_room(pages, entry, 1) != 0:
        return -ENOMEM
    return entry_redo(pages, pid, entry, &redo)


cdef int redo_root(pages_t *pages, const char *payload, uint64_t size) noexcept nogil:
    cdef uint32_t root, name_size
    cdef uint64_t pid
    cdef char *name
    if size < 16:
        return PAGES_CORRUPT
    memcpy(&root, payload, 4)
    memcpy(&name_size, payload + 4, 4)
    memcpy(&pid, payload + 8, 8)
    if name_size > ROOT_NAME_MAX or 16 + <uint64_t>name_size > size or root >> 24:
        return PAGES_CORRUPT
    name = <char *>malloc(name_size + 1)
    if name == NULL or roots_reach(pages, root) != 0:
        free(name)
        return -ENOMEM
    memcpy(name, payload + 16, name_size)
    root_set(pages, root, name, name_size, pid)
    return PAGES_OK


cdef bint in_table(const pages_t *pages, const char *payload, uint64_t size,
                   uint64_t position) noexcept nogil:
    """Whether this KIND_TABLE record is one of those that the checkpoint names."""
    cdef uint64_t number
    cdef uint32_t part
    memcpy(&number, payload, 8)
    if number >= pages.block_count:
        return False
    for part in range(pages.blocks[number].place_count):
        if pages.blocks[number].places[part].position == position:
            return True
    return False


cdef int redo_record(pages_t *pages, uint32_t kind, uint64_t position, const char *payload,
                     uint64_t size, uint64_t mark) noexcept nogil:
    cdef place_t place
    cdef uint64_t marker
    cdef int result = PAGES_CORRUPT
    if kind == ORDERED_COMMIT:
        if size and payload[0] & MARK_COMMIT:
            pages.commit_stamp += 1
            redo_notes(pages, payload + 1, size - 1)
        return PAGES_OK
    place.position = position
    place.bytes = <uint32_t>record_bytes(size + (GROUP_ID_SIZE if mark != position else 0))
    place.kind = KIND_BASE if kind == KIND_MOVED else kind
    if size >= 8:
        if kind in (KIND_BASE, KIND_MOVED, KIND_MORE, KIND_LINK, KIND_FREE):
            return redo_page(pages, kind, &place, payload, size, mark == position)
        elif kind == KIND_TABLE:
            if in_table(pages, payload, size, position):
                return PAGES_OK
            result = PAGES_OK
        elif kind == KIND_ROOT:
            result = redo_root(pages, payload, size)
        elif kind == KIND_IDS:
            memcpy(&marker, payload, 8)
            pages.id_marker = max(pages.id_marker, marker)
            result = PAGES_OK
    # Nothing refers to the record itself.
    places_dead(pages, &place, 1)
    return result


# A checkpoint's state ----------------------------------------------------------------------------


cdef inline char *put32(char *to, uint32_t number) noexcept nogil:
    memcpy(to, &number, 4)
    return to + 4


cdef inline char *put64(char *to, uint64_t number) noexcept nogil:
    memcpy(to, &number, 8)
    return to + 8


cdef char *put_places(char *to, const place_t *places, uint32_t count) noexcept nogil:
    cdef uint32_t number
    to = put32(to, count)
    for number in range(count):
        to = put64(to, places[number].position)
        to = put32(to, places[number].bytes)
    return to


cdef int state_head(pages_t *pages, char **data, uint64_t *size) noexcept nogil:
    """At the checkpoint's moment."""
    cdef uint64_t bytes = HEAD_SIZE
    cdef uint32_t root, count = 0
    cdef char *to
    cdef root_t *found
    for root in range(pages.root_count):
        if pages.roots[root].used:
            bytes += ROOT_SIZE + pages.roots[root].name_size
            count += 1
    data[0] = <char *>malloc(bytes)
    if data[0] == NULL:
        return -ENOMEM
    size[0] = bytes
    to = put32(data[0], STATE_VERSION)
    to = put64(to, pages.commit_stamp)
    to = put64(to, pages.pid_next)
    to = put64(to, pages.id_marker)
    to = put32(to, count)
    for root in range(pages.root_count):
        found = &pages.roots[root]
        if found.used:
            to = put32(to, root)
            to = put32(to, found.name_size)
            to = put64(to, found.pid)
            to = put64(to, <uint64_t>found.count)
            memcpy(to, found.name, found.name_size)
            to += found.name_size
    return PAGES_OK


cdef int state_tail(pages_t *pages, char **data, uint64_t *size) noexcept nogil:
    """When every block that was dirty at the moment is saved."""
    cdef uint64_t bytes = 4 + 4 + pages.dead_count * <uint64_t>PLACE_SIZE
    cdef uint32_t number
    cdef char *to
    for number in range(pages.block_count):
        bytes += 4 + pages.blocks[number].place_count * <uint64_t>PLACE_SIZE
    data[0] = <char *>malloc(bytes)
    if data[0] == NULL:
        return -ENOMEM
    size[0] = bytes
    to = put_places(data[0], pages.checkpoint_dead, pages.dead_count)
    to = put32(to, pages.block_count)
    for number in range(pages.block_count):
        to = put_places(to, pages.blocks[number].places, pages.blocks[number].place_count)
    return PAGES_OK


cdef struct reader_t:
    const char *at
    const char *end
    bint short


cdef uint32_t get32(reader_t *reader) noexcept nogil:
    cdef uint32_t number = 0
    if reader.end - reader.at < 4:
        reader.short = True
        return 0
    memcpy(&number, reader.at, 4)
    reader.at += 4
    return number


cdef uint64_t get64(reader_t *reader) noexcept nogil:
    cdef uint64_t number = 0
    if reader.end - reader.at < 8:
        reader.short = True
        return 0
    memcpy(&number, reader.at, 8)
    reader.at += 8
    return number


cdef int restore_roots(pages_t *pages, reader_t *reader) noexcept nogil:
    cdef uint32_t count = get32(reader), number, root, size
    cdef uint64_t pid
    cdef int64_t counted
    cdef char *name
    for number in range(count):
        root = get32(reader)
        size = get32(reader)
        pid = get64(reader)
        counted = <int64_t>get64(reader)
        if reader.short or <uint64_t>(reader.end - reader.at) < size or root >> 24:
            return PAGES_CORRUPT
        name = <char *>malloc(size + 1)
        if name == NULL or roots_reach(pages, root) != 0:
            free(name)
            return -ENOMEM
        memcpy(name, reader.at, size)
        reader.at += size
        root_set(pages, root, name, size, pid)
        root_count_add(pages, root, counted)
    return PAGES_OK


cdef int restore_blocks(pages_t *pages, reader_t *reader) noexcept nogil:
    """Places only: the blocks themselves are read when they are asked for."""
    cdef uint32_t count = get32(reader), number, places, place
    cdef block_t *block
    if <uint64_t>(reader.end - reader.at) < 4 * <uint64_t>count:
        return PAGES_CORRUPT
    pages.blocks = <block_t *>calloc(count + 1, sizeof(block_t))
    if pages.blocks == NULL:
        return -ENOMEM
    pages.block_count = count
    pages.block_capacity = count + 1
    for number in range(count):
        block = &pages.blocks[number]
        places = get32(reader)
        if places > 65535 or <uint64_t>(reader.end - reader.at) < PLACE_SIZE * <uint64_t>places:
            return PAGES_CORRUPT
        block.places = <place_t *>calloc(places + 1, sizeof(place_t))
        if block.places == NULL:
            return -ENOMEM
        block.place_count = places
        for place in range(places):
            block.places[place].position = get64(reader)
            block.places[place].bytes = get32(reader)
    return PAGES_OK


cdef int state_restore(pages_t *pages, const char *data, uint64_t size) noexcept nogil:
    cdef reader_t reader
    cdef uint32_t version, dead, number, bytes
    cdef uint64_t position
    cdef int result
    reader.at = data
    reader.end = data + size
    reader.short = False
    version = get32(&reader)
    pages.commit_stamp = get64(&reader)
    pages.pid_next = get64(&reader)
    pages.id_marker = get64(&reader)
    result = restore_roots(pages, &reader)
    if result != PAGES_OK:
        return result
    dead = get32(&reader)
    for number in range(dead):
        position = get64(&reader)
        bytes = get32(&reader)
        if reader.short:
            return PAGES_CORRUPT
        ordered_dead(pages.stream, position, bytes)
    result = restore_blocks(pages, &reader)
    if result == PAGES_OK and (reader.short or reader.at != reader.end
                               or version != STATE_VERSION):
        return PAGES_CORRUPT
    return result
