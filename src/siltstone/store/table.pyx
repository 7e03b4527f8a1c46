"""The page table: which pages there are and where their records lie, in blocks of 512 entries.

A block that is in memory is an array of entries; on the device it is an image (KIND_TABLE, cut to
the size of a record). Blocks are loaded when an entry of theirs is asked for and dropped when they
are clean and nothing in them is in use. A checkpoint describes the table as it stood when it
began: block_touch() saves a dirty block just before its first change since then, so that a
checkpoint costs no pause and replay needs no rule about what is in a block already.

    image := entry * 512      entry := 00 unused | 01 stamp free | 03 stamp count place * count
    place := position / 16 (the first) or the signed difference to the one before (zigzag),
             then bytes / 16 x 4 + kind          all numbers: 7 bits a byte, low ones first
"""
from libc.errno cimport ENOMEM
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy, memmove, memset

from siltstone.log.atomics cimport prefetch
from siltstone.log.chain cimport chain_find
from siltstone.log.format cimport record_bytes
from siltstone.log.log cimport LOG_OK, part_t
from siltstone.log.ordered cimport (ORDERED_URGENT, ordered_append, ordered_dead,
                                    ordered_payload_max)
from siltstone.log.pthread cimport pthread_mutex_lock, pthread_mutex_unlock
from siltstone.store.state cimport (BLOCK_BITS, BLOCK_ENTRIES, KIND_LINK, KIND_TABLE,
                                    PAGES_CORRUPT, PAGES_LOG, PAGES_OK, PAGE_FREE, PAGE_LIVE,
                                    PAGE_RESERVED, PAGE_UNUSED, PID_FIRST, TABLE_HEADER_SIZE,
                                    block_t, entry_t, pages_t, place_t)

cdef enum:
    VARINT_MAX = 10
    FREE_KNOWN_MAX = 1 << 16    # a loaded block's free pids are noted up to so many in all
    PLACES_MAX = 65535
    ENCODE_AHEAD = 8


# Numbers -----------------------------------------------------------------------------------------


cdef char *put_number(char *to, uint64_t number) noexcept nogil:
    while number >= 0x80:
        to[0] = <char>(number | 0x80)
        number >>= 7
        to += 1
    to[0] = <char>number
    return to + 1


cdef const char *get_number(const char *at, const char *end, uint64_t *number) noexcept nogil:
    cdef uint64_t value = 0
    cdef uint32_t shift = 0
    cdef uint8_t byte = 0x80
    while byte & 0x80:
        if at == NULL or at >= end or shift > 63:
            return NULL
        byte = <uint8_t>at[0]
        at += 1
        value |= <uint64_t>(byte & 0x7F) << shift
        shift += 7
    number[0] = value
    return at


# Memory ------------------------------------------------------------------------------------------


cdef int scratch_room(pages_t *pages, uint64_t bytes) noexcept nogil:
    cdef char *larger
    if bytes > pages.scratch_bytes:
        larger = <char *>realloc(pages.scratch, bytes + bytes // 4)
        if larger == NULL:
            return -ENOMEM
        pages.scratch = larger
        pages.scratch_bytes = bytes + bytes // 4
    return 0


cdef int table_reach(pages_t *pages, uint64_t pid) noexcept nogil:
    cdef uint64_t number = pid >> BLOCK_BITS
    cdef uint32_t capacity = pages.block_capacity
    cdef block_t *blocks
    cdef entry_t *entries
    if number >= (<uint64_t>1 << 31):
        return -ENOMEM
    if number >= capacity:
        while number >= capacity:
            capacity = max(<uint32_t>16, 2 * capacity)
        blocks = <block_t *>realloc(pages.blocks, capacity * sizeof(block_t))
        if blocks == NULL:
            return -ENOMEM
        memset(blocks + pages.block_capacity, 0,
               (capacity - pages.block_capacity) * sizeof(block_t))
        pages.blocks = blocks
        pages.block_capacity = capacity
    while pages.block_count <= number:
        entries = entries_new()
        if entries == NULL:
            return -ENOMEM
        pages.blocks[pages.block_count].entries = entries
        pages.blocks[pages.block_count].heat = 1
        pages.resident_bytes += BLOCK_MEMORY
        pages.block_count += 1
    return 0


cdef void entries_free(entry_t *entries) noexcept nogil:
    cdef uint32_t number
    if entries != NULL:
        for number in range(BLOCK_ENTRIES):
            free(entries[number].more)
        free(entries)


# Pids --------------------------------------------------------------------------------------------


cdef void table_freed(pages_t *pages, uint64_t pid) noexcept nogil:
    """Without memory for the note the pid is found again when its block is loaded next."""
    cdef uint32_t capacity = pages.free_capacity
    cdef uint64_t *larger
    if pages.free_count == capacity:
        capacity = max(<uint32_t>64, 2 * capacity)
        larger = <uint64_t *>realloc(pages.free_pids, capacity * sizeof(uint64_t))
        if larger == NULL:
            return
        pages.free_pids = larger
        pages.free_capacity = capacity
    pages.free_pids[pages.free_count] = pid
    pages.free_count += 1


cdef int table_allocate(pages_t *pages, uint64_t *pid) noexcept nogil:
    cdef entry_t *entry
    cdef uint64_t found
    while pages.free_count:
        pages.free_count -= 1
        found = pages.free_pids[pages.free_count]
        if found < pages.pid_next and pages.blocks[found >> BLOCK_BITS].entries != NULL:
            entry = &pages.blocks[found >> BLOCK_BITS].entries[found & (BLOCK_ENTRIES - 1)]
            if entry.state == PAGE_FREE or entry.state == PAGE_UNUSED:
                break
    else:
        found = max(<uint64_t>PID_FIRST, pages.pid_next)
        if table_reach(pages, found) != 0:
            return -ENOMEM
        entry = &pages.blocks[found >> BLOCK_BITS].entries[found & (BLOCK_ENTRIES - 1)]
        pages.pid_next = found + 1
    entry.state = PAGE_RESERVED
    pages.blocks[found >> BLOCK_BITS].resident += 1
    pid[0] = found
    return PAGES_OK


cdef void table_unreserve(pages_t *pages, uint64_t pid) noexcept nogil:
    cdef entry_t *entry = &pages.blocks[pid >> BLOCK_BITS].entries[pid & (BLOCK_ENTRIES - 1)]
    if entry.state == PAGE_RESERVED:
        entry.state = PAGE_FREE
        pages.blocks[pid >> BLOCK_BITS].resident -= 1
        pages.blocks[pid >> BLOCK_BITS].dirty = 1
        table_freed(pages, pid)


# Places ------------------------------------------------------------------------------------------


cdef int entry_room(pages_t *pages, entry_t *entry, uint32_t more) noexcept nogil:
    cdef uint32_t wanted = entry.count + more, capacity = entry.capacity
    cdef place_t *larger
    if wanted > PLACES_MAX:
        return -ENOMEM
    if wanted <= capacity + 1:
        return 0
    while capacity + 1 < wanted:
        capacity = min(<uint32_t>PLACES_MAX, max(<uint32_t>4, capacity + capacity // 2))
    # not realloc(): looking whether the list can grow where it is takes longer than copying it
    larger = <place_t *>malloc(capacity * sizeof(place_t))
    if larger == NULL:
        return -ENOMEM
    if entry.count > 1:
        memcpy(larger, entry.more, (entry.count - 1) * sizeof(place_t))
    free(entry.more)
    pages.resident_bytes += (capacity - entry.capacity) * sizeof(place_t)
    entry.more = larger
    entry.capacity = <uint16_t>capacity
    return 0


cdef int entry_room_exact(pages_t *pages, entry_t *entry, uint32_t count) noexcept nogil:
    """For the places of an entry that has none: of most pages that are read, no more will come."""
    if count > 1:
        entry.more = <place_t *>malloc((count - 1) * sizeof(place_t))
        if entry.more == NULL:
            return -ENOMEM
        entry.capacity = <uint16_t>(count - 1)
        pages.resident_bytes += entry.capacity * sizeof(place_t)
    return 0


cdef void entry_push(entry_t *entry, const place_t *place) noexcept nogil:
    if entry.count == 0:
        entry.first = place[0]
    else:
        entry.more[entry.count - 1] = place[0]
    entry.count += 1


cdef void places_dead(pages_t *pages, const place_t *places, uint32_t count) noexcept nogil:
    cdef uint32_t number
    for number in range(count):
        ordered_dead(pages.stream, places[number].position, places[number].bytes)


cdef void places_pin(pages_t *pages, const place_t *places, uint32_t count,
                     int step) noexcept nogil:
    """Keep their segments from being used again, or no longer."""
    cdef uint32_t number
    cdef int64_t slot
    pthread_mutex_lock(&pages.stream.lock)
    for number in range(count):
        slot = chain_find(pages.stream, places[number].position // pages.stream.segment_bytes)
        if slot >= 0:
            pages.stream.segments[slot].pins += step
    pthread_mutex_unlock(&pages.stream.lock)


cdef void entry_redundant(pages_t *pages, entry_t *entry, int64_t bytes) noexcept nogil:
    if bytes < 0:
        bytes = 0
    pages.redundant_bytes += <uint32_t>bytes
    pages.redundant_bytes -= entry.redundant
    entry.redundant = <uint32_t>bytes


cdef void entry_clear_places(pages_t *pages, entry_t *entry) noexcept nogil:
    if entry.count:
        places_dead(pages, &entry.first, 1)
        places_dead(pages, entry.more, entry.count - 1)
    entry.count = 0
    entry.link_bytes = 0
    entry_redundant(pages, entry, 0)
    memset(&entry.first, 0, sizeof(place_t))


cdef void entry_forget_places(pages_t *pages, entry_t *entry) noexcept nogil:
    entry_clear_places(pages, entry)
    pages.resident_bytes -= entry.capacity * sizeof(place_t)
    free(entry.more)
    entry.more = NULL
    entry.capacity = 0


cdef void entry_replace_places(pages_t *pages, entry_t *entry, const place_t *places,
                               uint32_t count) noexcept nogil:
    """Room for them was made by entry_room(), or one place is all."""
    cdef uint32_t number
    cdef place_t *smaller
    entry_clear_places(pages, entry)
    for number in range(count):
        entry_push(entry, &places[number])
    # Pages that changed often and then rest should not keep the memory of a long chain.
    if entry.capacity > 8 and entry.count < 4:
        smaller = <place_t *>realloc(entry.more, 4 * sizeof(place_t))
        if smaller != NULL:
            pages.resident_bytes -= (entry.capacity - 4) * sizeof(place_t)
            entry.more = smaller
            entry.capacity = 4


cdef void entry_adopt_places(pages_t *pages, entry_t *entry, place_t *places,
                             uint32_t count) noexcept nogil:
    """The entry has none; from now on the malloc()ed array is the entry's, or freed."""
    entry.count = <uint16_t>count
    entry.first = places[0]
    if count == 1:
        free(places)
        return
    memmove(places, places + 1, (count - 1) * sizeof(place_t))
    entry.more = places
    entry.capacity = <uint16_t>(count - 1)
    pages.resident_bytes += entry.capacity * sizeof(place_t)


cdef int entry_take_places(entry_t *entry, place_t **places) noexcept nogil:
    """A copy of all of them in one array, the caller's. 0 or -ENOMEM."""
    places[0] = <place_t *>malloc(max(<uint32_t>1, <uint32_t>entry.count) * sizeof(place_t))
    if places[0] == NULL:
        return -ENOMEM
    if entry.count:
        places[0][0] = entry.first
        if entry.count > 1:
            memcpy(places[0] + 1, entry.more, (entry.count - 1) * sizeof(place_t))
    return 0


# Images ------------------------------------------------------------------------------------------


cdef uint64_t image_bound(const entry_t *entries) noexcept nogil:
    cdef uint64_t bound = 0
    cdef uint32_t number
    for number in range(BLOCK_ENTRIES):
        bound += 1 + 2 * VARINT_MAX + entries[number].count * <uint64_t>(2 * VARINT_MAX)
    return bound


cdef char *put_place(char *to, const place_t *place, uint64_t before) noexcept nogil:
    cdef int64_t step = <int64_t>(place.position >> 4) - <int64_t>(before >> 4)
    to = put_number(to, (<uint64_t>step << 1) ^ <uint64_t>(step >> 63))
    return put_number(to, <uint64_t>(place.bytes >> 4) << 2 | place.kind)


cdef uint64_t block_encode(const entry_t *entries, char *image) noexcept nogil:
    cdef char *to = image
    cdef const entry_t *entry
    cdef uint32_t number, place
    cdef uint64_t before
    for number in range(BLOCK_ENTRIES):
        entry = &entries[number]
        if number + ENCODE_AHEAD < BLOCK_ENTRIES:       # lists lie anywhere: half of the time
            prefetch(entry[ENCODE_AHEAD].more)
            prefetch(<const char *>entry[ENCODE_AHEAD].more + 64)
        # What is being allocated is free until that is committed.
        to[0] = PAGE_FREE if entry.state == PAGE_RESERVED else entry.state
        to += 1
        if entry.state == PAGE_UNUSED:
            continue
        to = put_number(to, entry.stamp)
        if entry.state == PAGE_LIVE:
            to = put_number(to, entry.count)
            before = 0
            for place in range(entry.count):
                if place == 0:
                    to = put_place(to, &entry.first, before)
                    before = entry.first.position
                else:
                    to = put_place(to, &entry.more[place - 1], before)
                    before = entry.more[place - 1].position
    return <uint64_t>(to - image)


cdef const char *get_place(const char *at, const char *end, uint64_t before,
                           place_t *place) noexcept nogil:
    cdef uint64_t step = 0, size = 0
    at = get_number(at, end, &step)
    at = get_number(at, end, &size)
    step = (step >> 1) ^ (~(step & 1) + 1)
    place.position = ((before >> 4) + step) << 4
    place.bytes = <uint32_t>(size >> 2) << 4
    place.kind = size & 3
    return at


cdef const char *get_entry(pages_t *pages, const char *at, const char *end,
                           entry_t *entry) noexcept nogil:
    """NULL: damaged, or no memory (then `state` is PAGE_RESERVED)."""
    cdef uint64_t count = 0, before = 0
    cdef uint32_t number
    cdef place_t place
    if at >= end:
        return NULL
    entry.state = <uint8_t>at[0]
    at += 1
    if entry.state == PAGE_UNUSED:
        return at
    at = get_number(at, end, &entry.stamp)
    if entry.state == PAGE_LIVE:
        at = get_number(at, end, &count)
        if at == NULL or count > PLACES_MAX or count > <uint64_t>(end - at):
            return NULL
        if entry_room_exact(pages, entry, <uint32_t>count) != 0:
            entry.state = PAGE_RESERVED
            return NULL
        for number in range(<uint32_t>count):
            at = get_place(at, end, before, &place)
            if at == NULL:
                return NULL
            before = place.position
            entry_push(entry, &place)
            if number and place.kind == KIND_LINK:
                entry.link_bytes += place.bytes
        entry.redundant = entry.link_bytes      # what its page has grown by is not known
        return at
    return at if entry.state == PAGE_FREE else NULL


cdef int block_decode(pages_t *pages, const char *image, uint64_t size,
                      entry_t **entries) noexcept nogil:
    """Private until block_install(): `resident_bytes` is not the table's yet."""
    cdef const char *at = image
    cdef const char *end = image + size
    cdef uint32_t number
    cdef pages_t counted        # only its resident_bytes is used
    counted.resident_bytes = 0
    entries[0] = entries_new()
    if entries[0] == NULL:
        return -ENOMEM
    for number in range(BLOCK_ENTRIES):
        at = get_entry(&counted, at, end, &entries[0][number])
        if at == NULL:
            size = entries[0][number].state
            entries_free(entries[0])
            entries[0] = NULL
            return -ENOMEM if size == PAGE_RESERVED else PAGES_CORRUPT
    if at != end:
        entries_free(entries[0])
        entries[0] = NULL
        return PAGES_CORRUPT
    return PAGES_OK


cdef int block_install(pages_t *pages, uint64_t number, entry_t *entries) noexcept nogil:
    """Under the lock: the block is in memory from now on, and its free pids are known."""
    cdef block_t *block = &pages.blocks[number]
    cdef uint32_t place
    block.entries = entries
    block.dirty = 0
    block.resident = 0
    block.heat = 1
    pages.resident_bytes += BLOCK_MEMORY
    pages.redundant_bytes -= block.redundant
    for place in range(BLOCK_ENTRIES):
        pages.resident_bytes += entries[place].capacity * sizeof(place_t)
        pages.redundant_bytes += entries[place].redundant
        if entries[place].state != PAGE_LIVE and pages.free_count < FREE_KNOWN_MAX:
            if PID_FIRST <= (number << BLOCK_BITS) + place < pages.pid_next:
                table_freed(pages, (number << BLOCK_BITS) + place)
    return PAGES_OK


cdef void block_drop(pages_t *pages, uint64_t number) noexcept nogil:
    cdef block_t *block = &pages.blocks[number]
    cdef uint32_t place
    block.redundant = 0
    for place in range(BLOCK_ENTRIES):
        pages.resident_bytes -= block.entries[place].capacity * sizeof(place_t)
        block.redundant += block.entries[place].redundant
    pages.resident_bytes -= BLOCK_MEMORY
    entries_free(block.entries)
    block.entries = NULL


# Saving ------------------------------------------------------------------------------------------


cdef int note_replaced(pages_t *pages, const block_t *block) noexcept nogil:
    """For the checkpoint: recovery from it must count these dead, as we do now."""
    cdef uint32_t capacity = pages.dead_capacity
    cdef place_t *larger
    if not pages.checkpoint:
        return 0
    while capacity < pages.dead_count + block.place_count:
        capacity = max(<uint32_t>64, 2 * capacity)
    if capacity > pages.dead_capacity:
        larger = <place_t *>realloc(pages.checkpoint_dead, capacity * sizeof(place_t))
        if larger == NULL:
            return -ENOMEM
        pages.checkpoint_dead = larger
        pages.dead_capacity = capacity
    memcpy(pages.checkpoint_dead + pages.dead_count, block.places,
           block.place_count * sizeof(place_t))
    pages.dead_count += block.place_count
    return 0


cdef int append_image(pages_t *pages, uint64_t number, uint64_t size, place_t *places,
                      uint32_t count) noexcept nogil:
    cdef uint64_t room = ordered_payload_max(pages.stream) - TABLE_HEADER_SIZE, offset = 0, piece
    cdef uint32_t part = 0, word
    cdef part_t parts[2]
    cdef char header[TABLE_HEADER_SIZE]
    cdef int result = LOG_OK
    memcpy(header, &number, 8)
    word = <uint32_t>size
    memcpy(header + 8 + 4, &word, 4)
    parts[0].data = header
    parts[0].size = TABLE_HEADER_SIZE
    while part < count and result == LOG_OK:
        piece = min(room, size - offset)
        word = <uint32_t>offset
        memcpy(header + 8, &word, 4)
        parts[1].data = pages.scratch + offset
        parts[1].size = piece
        result = ordered_append(pages.stream, KIND_TABLE, parts, 2, ORDERED_URGENT,
                                &places[part].position)
        if result == LOG_OK:
            places[part].bytes = <uint32_t>record_bytes(TABLE_HEADER_SIZE + piece)
            places[part].kind = 0
            pages.counters.table_bytes += places[part].bytes
            offset += piece
            part += 1
    if result != LOG_OK:
        places_dead(pages, places, part)
        return PAGES_LOG + result
    return PAGES_OK


cdef int block_save(pages_t *pages, uint64_t number) noexcept nogil:
    """Append the block's image; it is clean afterwards, and what was its image is dead."""
    cdef block_t *block = &pages.blocks[number]
    cdef uint64_t room = ordered_payload_max(pages.stream) - TABLE_HEADER_SIZE, size
    cdef uint32_t count
    cdef place_t *places
    cdef int result
    if scratch_room(pages, image_bound(block.entries)) != 0:
        return -ENOMEM
    size = block_encode(block.entries, pages.scratch)
    count = <uint32_t>((size + room - 1) // room)
    places = <place_t *>malloc(count * sizeof(place_t))
    if places == NULL or note_replaced(pages, block) != 0:
        free(places)
        return -ENOMEM
    result = append_image(pages, number, size, places, count)
    if result != PAGES_OK:
        if pages.checkpoint:
            pages.dead_count -= block.place_count
        free(places)
        return result
    places_dead(pages, block.places, block.place_count)
    free(block.places)
    block.places = places
    block.place_count = <uint16_t>count
    block.dirty = 0
    block.checkpoint = pages.checkpoint if pages.checkpoint else block.checkpoint
    return PAGES_OK


cdef void block_touch(pages_t *pages, uint64_t pid) noexcept nogil:
    cdef uint64_t number = pid >> BLOCK_BITS
    cdef block_t *block = &pages.blocks[number]
    if pages.checkpoint and block.checkpoint != pages.checkpoint:
        if block.dirty and block_save(pages, number) != PAGES_OK:
            pages.checkpoint_failed = 1     # that checkpoint is given up; the change goes on
        block.checkpoint = pages.checkpoint
    block.dirty = 1
