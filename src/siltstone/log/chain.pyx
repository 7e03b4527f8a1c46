"""The segments of an ordered stream: which version lies in which slot, and which come next.

Owns the segment table of one stream. Versions rise and need not be dense: the next one is the
smallest above the last whose entry `table[version & mask]` is free, so that a lookup is one load.
The next two slots are chosen when a segment is opened and stand in its header, so that recovery
follows the chain instead of reading every header; they are also the pool of ready segments: a
slot that was never written is filled with zeros before its turn, since a durable commit into
unwritten blocks costs a metadata write of its own. A slot that is used again is not cleared: its
bytes fail their checksums, which are bound to the former salt and positions.
"""
from libc.errno cimport ENOMEM
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memcpy, memset

from siltstone.log.atomics cimport add64
from siltstone.log.device_io cimport device_write
from siltstone.log.format cimport (RUN_HEADER_SIZE, SEGMENT_HEADER_SIZE, SLOT_NONE,
                                   run_header_finish, run_header_offset, run_header_t,
                                   segment_header_finish, segment_header_t)
from siltstone.log.ordered cimport (ORDERED_AHEAD, ORDERED_STREAM, ORDERED_URGENT,
                                    SEGMENT_AFTER_CUT, SEGMENT_AHEAD, SEGMENT_FREE, SEGMENT_OPEN,
                                    SEGMENT_SEALED, SEGMENT_TAKEN, ordered_buffer_t,
                                    ordered_segment_t, ordered_t)
from siltstone.log.pthread cimport pthread_cond_broadcast, pthread_mutex_lock, pthread_mutex_unlock

cdef enum:
    ZERO_BYTES = 1 << 16
    SLOT_BITS = 24

cdef extern from *:
    """
    static const char silt_zeros[1 << 16] __attribute__((aligned(4096)));
    /* splitmix64: salts that differ for every version and, by the seed, for every opening. */
    static inline uint32_t silt_salt(uint64_t seed, uint64_t version) {
        uint64_t mixed = seed + version * 0x9E3779B97F4A7C15u;
        mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9u;
        mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EBu;
        return (uint32_t)(mixed ^ (mixed >> 31)) | 1;
    }
    """
    const char *zeros "silt_zeros"
    uint32_t salt_of "silt_salt"(uint64_t seed, uint64_t version) noexcept nogil


# The table ---------------------------------------------------------------------------------------


cdef int64_t chain_find(ordered_t *stream, uint64_t version) noexcept nogil:
    cdef uint64_t entry
    if stream.table_size == 0 or version == 0:
        return -1
    entry = stream.table[version & (stream.table_size - 1)]
    if entry >> SLOT_BITS != version:
        return -1
    return <int64_t>(entry & ((1 << SLOT_BITS) - 1))


cdef int chain_room(ordered_t *stream, uint32_t slots) noexcept nogil:
    """Make the arrays large enough for that many slots; the table has at least two entries each."""
    cdef uint32_t capacity = max(<uint32_t>16, stream.slot_capacity), slot
    cdef ordered_segment_t *segments
    cdef uint64_t *table
    if slots <= stream.slot_capacity:
        return 0
    while capacity < slots:
        capacity *= 2
    table = <uint64_t *>calloc(2 * capacity, sizeof(uint64_t))
    segments = <ordered_segment_t *>realloc(stream.segments, capacity * sizeof(ordered_segment_t))
    if segments != NULL:
        stream.segments = segments
    if table == NULL or segments == NULL:
        free(table)
        return -ENOMEM
    memset(segments + stream.slot_capacity, 0,
           (capacity - stream.slot_capacity) * sizeof(ordered_segment_t))
    # Versions that were apart in the smaller table stay apart in the larger one.
    for slot in range(stream.slot_capacity):
        if segments[slot].version:
            table[segments[slot].version & (2 * capacity - 1)] = (
                segments[slot].version << SLOT_BITS | slot)
    free(stream.table)
    stream.table = table
    stream.table_size = 2 * capacity
    stream.slot_capacity = capacity
    return 0


cdef int chain_enter(ordered_t *stream, uint64_t version, uint32_t slot) noexcept nogil:
    """A segment that is there: 0; -ENOMEM; 1 when slot or table entry is taken by another one."""
    cdef ordered_segment_t *segment
    cdef uint64_t *entry
    if chain_room(stream, slot + 1) != 0:
        return -ENOMEM
    segment = &stream.segments[slot]
    if segment.version == version:
        return 0
    entry = &stream.table[version & (stream.table_size - 1)]
    while entry[0] != 0 and segment.version == 0:
        # Recovery meets versions that were chosen with a larger table: make ours as large.
        if stream.table_size >= <uint32_t>1 << 26 or chain_room(stream, stream.slot_capacity + 1):
            return -ENOMEM
        segment = &stream.segments[slot]
        entry = &stream.table[version & (stream.table_size - 1)]
    if segment.version != 0:
        return 1
    if segment.state == SEGMENT_FREE:
        stream.slots_used += 1
    entry[0] = version << SLOT_BITS | slot
    segment.version = version
    segment.state = SEGMENT_SEALED
    segment.allocated = 1
    return 0


cdef void chain_leave(ordered_t *stream, uint32_t slot) noexcept nogil:
    """The segment is gone: its positions mean nothing any more, its slot is free."""
    cdef ordered_segment_t *segment = &stream.segments[slot]
    cdef uint32_t allocated = segment.allocated
    if segment.version:
        stream.table[segment.version & (stream.table_size - 1)] = 0
    if segment.state != SEGMENT_FREE:
        stream.slots_used -= 1
    memset(segment, 0, sizeof(ordered_segment_t))
    segment.allocated = allocated
    if slot < stream.free_hint:
        stream.free_hint = slot


cdef uint64_t chain_version_free(ordered_t *stream, uint64_t above) noexcept nogil:
    cdef uint64_t version = max(above + 1, stream.next_version_min)
    while stream.table[version & (stream.table_size - 1)] != 0:
        version += 1
    return version


# What comes next ---------------------------------------------------------------------------------


cdef uint32_t choose(ordered_t *stream, uint32_t flags) noexcept nogil:
    """The lowest free slot, so that the file's end can be given back."""
    cdef uint32_t slot = stream.free_hint
    cdef uint32_t spare = 0 if flags & ORDERED_URGENT else stream.slots_kept
    if stream.slots_used + spare >= stream.slots_max:
        return SLOT_NONE
    while slot < stream.slot_capacity and stream.segments[slot].state != SEGMENT_FREE:
        slot += 1
    stream.free_hint = slot
    if slot >= stream.slot_limit or chain_room(stream, slot + 1) != 0:
        return SLOT_NONE
    stream.segments[slot].state = SEGMENT_AHEAD
    stream.slots_used += 1
    return slot


cdef uint32_t chain_take(ordered_t *stream, uint32_t spare) noexcept nogil:
    cdef uint32_t slot = SLOT_NONE
    if stream.slots_used + spare < stream.slots_max:
        slot = choose(stream, ORDERED_URGENT)
    if slot != SLOT_NONE:
        stream.segments[slot].state = SEGMENT_TAKEN
    return slot


cdef int chain_claim(ordered_t *stream, uint32_t slot) noexcept nogil:
    cdef ordered_segment_t *segment
    if chain_room(stream, slot + 1) != 0:
        return -ENOMEM
    segment = &stream.segments[slot]
    if segment.version and segment.live_bytes == 0:
        chain_leave(stream, slot)       # given back when the checkpoint that names it was done
    if segment.version:
        return 1
    if segment.state == SEGMENT_FREE:
        stream.slots_used += 1
    segment.state = SEGMENT_TAKEN
    return 0


cdef bint chain_wants_preparing(ordered_t *stream) noexcept nogil:
    cdef int which
    for which in range(ORDERED_AHEAD):
        if stream.ahead[which] != SLOT_NONE:
            if not stream.segments[stream.ahead[which]].allocated:
                return True
    return False


cdef int chain_prepare(ordered_t *stream) noexcept nogil:
    cdef uint32_t slot = SLOT_NONE
    cdef uint64_t offset = 0, piece
    cdef int64_t put = 0
    cdef int which
    pthread_mutex_lock(&stream.lock)
    if stream.zeroing:
        pthread_mutex_unlock(&stream.lock)
        return 1
    for which in range(ORDERED_AHEAD - 1, -1, -1):
        if stream.ahead[which] != SLOT_NONE:
            if not stream.segments[stream.ahead[which]].allocated:
                slot = stream.ahead[which]
    if slot == SLOT_NONE:
        pthread_mutex_unlock(&stream.lock)
        return 0
    stream.zeroing = 1
    pthread_mutex_unlock(&stream.lock)
    while offset < stream.segment_bytes and put >= 0:
        piece = min(<uint64_t>ZERO_BYTES, stream.segment_bytes - offset)
        put = device_write(stream.device, slot, offset, zeros, piece)
        offset += piece
    pthread_mutex_lock(&stream.lock)
    stream.zeroing = 0
    if put >= 0:
        stream.segments[slot].allocated = 1
        add64(&stream.counters.zeroed_bytes, stream.segment_bytes)
    pthread_cond_broadcast(&stream.changed)
    pthread_mutex_unlock(&stream.lock)
    return 0 if put >= 0 else <int>put


# Opening -----------------------------------------------------------------------------------------


cdef void segment_header(ordered_t *stream, ordered_buffer_t *buffer, uint64_t version,
                         uint64_t previous) noexcept nogil:
    cdef segment_header_t header
    memset(&header, 0, sizeof(header))
    header.salt = buffer.salt
    header.version = version
    header.previous_version = previous
    memcpy(header.uuid, stream.uuid, 16)
    header.stream = ORDERED_STREAM
    header.next_slots[0] = stream.ahead[0]
    header.next_slots[1] = stream.ahead[1]
    header.opened_ms = stream.now_ms
    header.segment_bytes = stream.segment_bytes
    header.stable_position = stream.stable
    header.slot = buffer.slot
    if stream.after_cut:
        header.flags = SEGMENT_AFTER_CUT
        stream.after_cut = 0
    segment_header_finish(&header)
    memcpy(buffer.data, &header, SEGMENT_HEADER_SIZE)


cdef void chain_run_header(ordered_t *stream, ordered_buffer_t *buffer) noexcept nogil:
    """A buffer is one run. Made once: what is rewritten with the tail must not change."""
    cdef run_header_t header
    cdef uint64_t at = run_header_offset(buffer.offset) - buffer.offset
    memset(&header, 0, sizeof(header))
    header.salt = buffer.salt
    header.version = buffer.base // stream.segment_bytes
    header.offset = buffer.offset
    header.length = stream.buffer_bytes
    header.stable_position = stream.stable
    header.stream = ORDERED_STREAM
    header.slot = buffer.slot
    run_header_finish(&header)
    memcpy(buffer.data + at, &header, RUN_HEADER_SIZE)
    buffer.filled = <uint32_t>(at + RUN_HEADER_SIZE)


cdef int chain_open(ordered_t *stream, ordered_buffer_t *buffer, uint32_t flags) noexcept nogil:
    cdef uint64_t previous = stream.version, version
    cdef uint32_t slot
    cdef ordered_segment_t *segment
    cdef int which
    for which in range(ORDERED_AHEAD):
        if stream.ahead[which] == SLOT_NONE:
            stream.ahead[which] = choose(stream, flags)
    slot = stream.ahead[0]
    # A segment is opened only if its header can name its successor: the chain must not break.
    if slot == SLOT_NONE or stream.ahead[1] == SLOT_NONE:
        return CHAIN_FULL
    if not stream.segments[slot].allocated:
        return CHAIN_NOT_READY
    version = chain_version_free(stream, previous)
    stream.ahead[0] = stream.ahead[1]
    stream.ahead[1] = choose(stream, flags)
    segment = &stream.segments[slot]
    segment.version = version
    segment.state = SEGMENT_OPEN
    segment.salt = salt_of(stream.salt_seed, version)
    segment.filled = segment.records = 0
    segment.live_bytes = segment.empty_since = 0
    stream.table[version & (stream.table_size - 1)] = version << SLOT_BITS | slot
    if previous and chain_find(stream, previous) == <int64_t>stream.slot:
        stream.segments[stream.slot].state = SEGMENT_SEALED
    stream.version = version
    stream.slot = slot
    buffer.slot = slot
    buffer.salt = segment.salt
    buffer.offset = 0
    buffer.base = version * stream.segment_bytes
    segment_header(stream, buffer, version, previous)
    chain_run_header(stream, buffer)
    add64(&stream.counters.segments_opened, 1)
    return CHAIN_OK
