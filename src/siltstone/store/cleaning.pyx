"""Cleaning: whole pages are written anew out of segments that hold little that lives.

A victim is a sealed segment; cost and benefit choose it (free share x age^2 / (1 + live share)),
by bytes. Age counts for more than the rest: what lives in an old segment are whole pages, each
moved once, whereas links of a young one belong to so many pages that writing these takes several
times what it frees; and when all are written whole at once, their chains grow at once, too. It is
read once and its records are walked; each page one of whose records lies there is written whole,
which also ends its chain and makes its records elsewhere dead. That is no change: stamps stay,
nobody's pointer gets old. A page in memory is not read; one that is a single record is copied from
the segment's image as it is. The lock is held for one page at a time, or to look at some
records, most of which are dead.

Cleaning goes on without the GIL as long as it is due: between two segments its thread would wait
for the GIL longer than a segment takes, and fall behind whoever writes.
"""
from libc.errno cimport ENOMEM
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from siltstone.log.atomics cimport load64_relaxed, prefetch
from siltstone.log.device_io cimport device_read
from siltstone.log.format cimport (RECORD_HEADER_SIZE, RECORD_SIZE_MIN, RUN_ALIGNMENT,
                                   RUN_HEADER_SIZE, record_bytes, record_check, record_header_t,
                                   run_first_record, run_header_offset, run_header_t,
                                   run_header_valid, word_kind)
from siltstone.log.log cimport LOG_IO, part_t
from siltstone.log.ordered cimport (GROUP_ID_SIZE, ORDERED_GROUPED, ORDERED_GROUPS_MAX,
                                    ORDERED_URGENT, SEGMENT_SEALED, ordered_segment_t)
from siltstone.log.pthread cimport pthread_mutex_lock, pthread_mutex_unlock
from siltstone.store.append cimport append_ready, append_record, append_wait, page_rewrite
from siltstone.store.pagecache cimport pages_lock_behind, pages_unlock
from siltstone.store.resident cimport block_load, pages_load
from siltstone.store.state cimport (BLOCK_BITS, BLOCK_ENTRIES, KIND_BASE, KIND_LINK, KIND_MORE,
                                    KIND_MOVED, KIND_TABLE, PAGES_ABSENT, PAGES_CORRUPT,
                                    PAGES_LARGE, PAGES_LOG, PAGES_MISS, PAGES_OK, PAGES_WAIT,
                                    PAGE_LIVE, block_t, entry_t, pages_counters_t, pages_t, place_t)
from siltstone.store.table cimport (block_save, block_touch, entry_place, entry_replace_places,
                                    page_entry)


# Which segment -----------------------------------------------------------------------------------


cdef void space_take(pages_t *pages, space_t *space) noexcept nogil:
    cdef uint32_t slot
    cdef ordered_segment_t *segment
    space.segment_bytes = pages.stream.segment_bytes
    space.segments = space.live_bytes = space.empty = 0
    pthread_mutex_lock(&pages.stream.lock)
    for slot in range(pages.stream.slot_capacity):
        segment = &pages.stream.segments[slot]
        if segment.version:
            space.segments += 1
            space.live_bytes += segment.live_bytes
            space.empty += segment.live_bytes == 0 and segment.state == SEGMENT_SEALED
    pthread_mutex_unlock(&pages.stream.lock)


cdef int64_t space_victim(pages_t *pages, uint32_t below, uint64_t before,
                          uint64_t *version) noexcept nogil:
    cdef uint32_t slot
    cdef ordered_segment_t *segment
    cdef double live, age, score, best = -1
    cdef int64_t found = -1
    pthread_mutex_lock(&pages.stream.lock)
    for slot in range(pages.stream.slot_capacity):
        segment = &pages.stream.segments[slot]
        if segment.version == 0 or segment.state != SEGMENT_SEALED or segment.pins:
            continue
        if segment.live_bytes == 0 or segment.version >= before:
            continue
        live = <double>segment.live_bytes / <double>pages.stream.segment_bytes
        if live * 1000 >= below:
            continue
        age = <double>(pages.stream.version - segment.version)
        score = (1 - live) * age * age / (1 + live)
        if score > best:
            best = score
            found = slot
            version[0] = segment.version
    pthread_mutex_unlock(&pages.stream.lock)
    return found


cdef uint64_t _content(const pages_t *pages, const space_t *space) noexcept nogil:
    # Of what lives: without what chains repeat.
    return space.live_bytes - min(space.live_bytes // 2, <uint64_t>pages.redundant_bytes)


cdef int64_t _excess(const space_t *space, uint64_t content, bint empty) noexcept nogil:
    cdef uint64_t spare
    spare = min(<uint64_t>SPARE_MAX, SPARE_MIN + content // (SPARE_SHARE * space.segment_bytes))
    return (<int64_t>(space.segments - (0 if empty else space.empty)) - <int64_t>spare
            - <int64_t>(content * SPACE_PERMILLE // (1000 * space.segment_bytes)))


cdef uint64_t _written(const pages_t *pages) noexcept nogil:
    # By changes.
    return (pages.counters.link_bytes + pages.counters.base_bytes + pages.counters.mark_bytes
            + pages.counters.consolidated_bytes)


cdef int64_t space_behind(pages_t *pages, held_t *held) noexcept nogil:
    cdef uint64_t written = _written(pages)
    cdef space_t space
    space_take(pages, &space)
    held.content -= min(held.content, (written - held.written) // HELD_SHARE)
    held.content = max(held.content, _content(pages, &space))
    held.written = written
    return _excess(&space, held.content, True)


cdef bint cleaning_due(pages_t *pages) noexcept nogil:
    """More segments than live bytes want. Empty ones that wait for a checkpoint count not:
    cleaning does not make them come back sooner. At most CLEAN_RATE segments for one that
    changes opened: pages that fill segments badly would else be moved for ever. (The one that
    is being filled counts, or a store that is often killed young would only grow.)"""
    cdef pages_counters_t *counters = &pages.counters
    cdef uint64_t filling = 1 + _written(pages) // pages.stream.segment_bytes
    cdef space_t space
    if counters.cleaned_segments >= CLEAN_RATE * filling:
        return False
    space_take(pages, &space)
    return _excess(&space, _content(pages, &space), False) > 0


# One page ----------------------------------------------------------------------------------------


cdef enum:
    LOOKS_MAX = 8192            # records that are read and checked before the lock is asked for
    LOOKS_HELD = 32             # that one hold of the lock looks at

cdef struct look_t:             # at a record of the segment
    uint64_t pid
    uint64_t position
    const char *payload
    uint32_t size
    uint32_t kind

cdef struct clean_t:
    pages_t *pages
    uint32_t count
    look_t *looks               # not taken yet


cdef bint lies_at(entry_t *entry, uint64_t position) noexcept nogil:
    cdef uint32_t number
    for number in range(entry.count):
        if entry_place(entry, number).position == position:
            return True
    return False


cdef int copy_record(pages_t *pages, uint64_t pid, entry_t *entry, const char *payload,
                     uint32_t size) noexcept nogil:
    """The page is this one record: its payload again, as a move."""
    cdef part_t part
    cdef place_t place
    cdef int result
    part.data = payload
    part.size = size
    result = append_record(pages, NULL, KIND_MOVED, &part, 1, ORDERED_URGENT, &place)
    if result == PAGES_OK:
        block_touch(pages, pid)
        entry_replace_places(pages, entry, &place, 1)
    return result


cdef bint needed(pages_t *pages, const look_t *look) noexcept nogil:
    """Whether its page needs the record, or may need it: its block is not in memory."""
    cdef entry_t *entry = page_entry(pages, look.pid)
    if entry == NULL:
        return look.pid < pages.pid_next
    return entry.state == PAGE_LIVE and lies_at(entry, look.position)


cdef int page_move(pages_t *pages, entry_t *entry, const look_t *look) noexcept nogil:
    """PAGES_MISS: it has to be read first."""
    cdef int result = PAGES_MISS
    if entry.node != NULL:
        result = page_rewrite(pages, look.pid, entry)
    elif entry.count == 1 and (look.kind == KIND_BASE or look.kind == KIND_MOVED):
        result = copy_record(pages, look.pid, entry, look.payload, look.size)
    if result == PAGES_OK:
        pages.counters.cleaned_bytes += entry.first.bytes
    return result


cdef int page_clean(pages_t *pages, const look_t *look) noexcept nogil:
    cdef uint64_t room = max(look.size, <uint32_t>8192)
    cdef entry_t *entry
    cdef bint waited = False
    cdef int result
    while True:
        pages_lock_behind(pages)
        entry = page_entry(pages, look.pid)
        if not needed(pages, look):
            pages_unlock(pages)
            return PAGES_OK
        if not waited and entry != NULL and append_ready(pages, room, 2) != PAGES_OK:
            pages_unlock(pages)
            append_wait(pages, room, 2)
            waited = True       # what is wrong, if something is, the append says
            continue
        result = PAGES_MISS if entry == NULL else page_move(pages, entry, look)
        pages_unlock(pages)
        if entry == NULL:
            result = block_load(pages, look.pid >> BLOCK_BITS)
        elif result == PAGES_MISS:
            result = pages_load(pages, look.pid, NULL)
            if result == PAGES_ABSENT:
                result = PAGES_OK
        else:
            return result
        if result != PAGES_OK:
            return result
        # Here, without the lock: giving it back once more may evict what was just loaded.
        append_wait(pages, room, 2)
        waited = True


cdef uint32_t sift_looks(pages_t *pages, look_t *looks, uint32_t count) noexcept nogil:
    """Those that are needed come first: how many. Most records are dead. What tells so lies
    anywhere in memory: all of it is fetched before the first is looked at, for writers wait
    meanwhile."""
    cdef uint32_t number, left = 0
    cdef entry_t *entry
    pages_lock_behind(pages)
    for number in range(count):
        entry = page_entry(pages, looks[number].pid)
        prefetch(entry)
        prefetch(<char *>entry + 64)
    for number in range(count):
        entry = page_entry(pages, looks[number].pid)
        if entry != NULL:
            prefetch(entry.more)
            prefetch(<char *>entry.more + 64)
    for number in range(count):
        if needed(pages, &looks[number]):
            looks[left] = looks[number]
            left += 1
    pages_unlock(pages)
    return left


cdef int take_looks(clean_t *clean) noexcept nogil:
    cdef uint32_t first = 0, number, left
    cdef int result = PAGES_OK
    while first < clean.count and result == PAGES_OK:
        left = sift_looks(clean.pages, clean.looks + first,
                          min(<uint32_t>LOOKS_HELD, clean.count - first))
        for number in range(first, first + left):
            if result == PAGES_OK:
                result = page_clean(clean.pages, &clean.looks[number])
        first += LOOKS_HELD
    clean.count = 0
    return result


cdef int block_clean(pages_t *pages, uint64_t position, const char *payload) noexcept nogil:
    """A table block's image: the block is saved anew."""
    cdef uint64_t number
    cdef uint32_t part
    cdef block_t *block
    cdef bint here
    cdef int result = PAGES_OK
    memcpy(&number, payload, 8)
    while result == PAGES_OK:
        result = append_wait(pages, BLOCK_ENTRIES * 64, 1)
        if result != PAGES_OK and result != PAGES_LARGE:
            return result
        pages_lock_behind(pages)
        here = False
        if number < pages.block_count:
            block = &pages.blocks[number]
            for part in range(block.place_count):
                here = here or block.places[part].position == position
        if not here or block.entries != NULL:
            result = block_save(pages, number) if here else PAGES_OK
            pages_unlock(pages)
            return result
        pages_unlock(pages)
        result = block_load(pages, number)
    return result


# One segment -------------------------------------------------------------------------------------


cdef int record_clean(clean_t *clean, const char *record, uint64_t position,
                      uint32_t size) noexcept nogil:
    cdef record_header_t header
    cdef uint32_t kind, skip
    cdef uint64_t word
    cdef look_t *look
    memcpy(&header, record, RECORD_HEADER_SIZE)
    kind = word_kind(header.word) & ~<uint32_t>ORDERED_GROUPED
    skip = GROUP_ID_SIZE if word_kind(header.word) & ORDERED_GROUPED else 0
    if size < skip + 8 or word_kind(header.word) == 255:
        return PAGES_OK
    record += RECORD_HEADER_SIZE + skip
    if kind in (KIND_BASE, KIND_MOVED, KIND_MORE, KIND_LINK):
        memcpy(&word, record, 8)
        look = &clean.looks[clean.count]
        look.pid, look.kind, look.position = word >> 8, kind, position
        look.payload, look.size = record, size - skip
        clean.count += 1
        return take_looks(clean) if clean.count == LOOKS_MAX else PAGES_OK
    if kind == KIND_TABLE and not skip:
        return block_clean(clean.pages, position, record)
    return PAGES_OK


cdef int run_clean(clean_t *clean, const char *image, uint64_t version, uint32_t salt,
                   uint64_t offset, uint64_t end) noexcept nogil:
    """The records of one run; a place that is none ends it (its tail, or damage)."""
    cdef uint64_t base = version * clean.pages.stream.segment_bytes
    cdef int64_t size
    cdef int result = PAGES_OK
    while offset + RECORD_SIZE_MIN <= end and result == PAGES_OK:
        size = record_check(image + offset, end - offset, salt, base + offset)
        if size < 0:
            break
        result = record_clean(clean, image + offset, base + offset, <uint32_t>size)
        offset += record_bytes(<uint64_t>size)
    return result


cdef int image_clean(pages_t *pages, const char *image, uint32_t slot, uint64_t version,
                     uint32_t salt) noexcept nogil:
    cdef uint64_t offset = 0, bytes = pages.stream.segment_bytes
    cdef run_header_t run
    cdef clean_t clean
    cdef int result = PAGES_OK
    clean.pages, clean.count = pages, 0
    clean.looks = <look_t *>malloc(LOOKS_MAX * sizeof(look_t))
    if clean.looks == NULL:
        return -ENOMEM
    while offset < bytes and result == PAGES_OK:
        memcpy(&run, image + run_header_offset(offset), RUN_HEADER_SIZE)
        if run_header_valid(&run, salt, version, slot, offset, bytes):
            result = run_clean(&clean, image, version, salt, run_first_record(offset),
                               offset + run.length)
            offset += run.length
        else:
            offset += RUN_ALIGNMENT
    if result == PAGES_OK:
        result = take_looks(&clean)
    free(clean.looks)
    return result


cdef bint groups_open(pages_t *pages) noexcept nogil:
    cdef uint32_t entry
    for entry in range(ORDERED_GROUPS_MAX):
        if pages.stream.groups[entry]:
            return True
    return False


cdef int segment_clean(pages_t *pages, uint32_t slot, uint64_t version) noexcept nogil:
    cdef char *image = <char *>malloc(pages.stream.segment_bytes)
    cdef ordered_segment_t *segment
    cdef uint32_t salt
    cdef bint open_before
    cdef int result = PAGES_OK
    if image == NULL:
        return -ENOMEM
    pthread_mutex_lock(&pages.stream.lock)
    salt = pages.stream.segments[slot].salt
    open_before = groups_open(pages)
    pthread_mutex_unlock(&pages.stream.lock)
    if device_read(pages.stream.device, slot, 0, image, pages.stream.segment_bytes, 0) < 0:
        result = PAGES_LOG + LOG_IO
    if result == PAGES_OK:
        result = image_clean(pages, image, slot, version, salt)
    free(image)
    pthread_mutex_lock(&pages.stream.lock)
    segment = &pages.stream.segments[slot]
    if segment.version == version and segment.live_bytes:
        # What is not committed yet, or was not when its records were looked at, keeps it for a
        # while; damage for good: what cannot be read cannot be moved, and is not given up either.
        if open_before or groups_open(pages):
            result = PAGES_WAIT
        elif result == PAGES_OK or result == PAGES_CORRUPT:
            segment.pins += 1
            result = PAGES_CORRUPT
    pthread_mutex_unlock(&pages.stream.lock)
    if result == PAGES_OK:
        pages.counters.cleaned_segments += 1
    return result


cdef int clean_while_due(pages_t *pages, uint64_t opened_max, uint64_t *cleaned,
                         uint64_t *damaged) noexcept nogil:
    cdef uint64_t version = 0
    cdef int64_t slot
    cdef int result = PAGES_OK
    while (result == PAGES_OK and not pages.stopping and cleaning_due(pages)
           and load64_relaxed(&pages.stream.counters.segments_opened) <= opened_max):
        slot = space_victim(pages, CLEAN_BELOW, pages.stream.version, &version)
        if slot < 0:
            break
        result = segment_clean(pages, <uint32_t>slot, version)
        if result == PAGES_CORRUPT:
            damaged[0] += 1
            result = PAGES_OK
        cleaned[0] += result == PAGES_OK
    return PAGES_OK if result == PAGES_WAIT else result
