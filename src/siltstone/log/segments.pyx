"""Segment table and version table: states, opening, forgetting. Shared by all kinds of streams.

    FREE -> OPEN -> SEALED -> DRAINING -> FREE        (OPEN -> DRAINING: a write failed, or clear)

A version is in the version table from opening to forgetting; nothing else says that data is there.
A slot is FREE again only when no stream appends to it and no buffer of its last life is left, so
that a late write cannot land in the next life. All changes are made under `segments_lock`; a dead
owner's half steps are finished or undone by `_repair`. Lock order: stream, then this one.
"""
from libc.stdint cimport int64_t, uint32_t, uint64_t


from siltstone.log.arena cimport LOCK_OWNER_DIED, LOCK_TAKEN, lock_drop, lock_repaired, lock_take
from siltstone.log.atomics cimport (
    add32, load32, load64, load64_relaxed, store32, store64)
from siltstone.log.buffers cimport buffers_discard, buffers_drop, buffers_pending
from siltstone.log.log cimport LOG_BUSY, LOG_FAILED, LOG_NO_SEGMENT, LOG_OK, segment_info_t
from siltstone.log.state cimport (
    SEGMENT_DRAINING, SEGMENT_FREE, SEGMENT_OPEN, SEGMENT_SEALED, STAT_LOCK_BUSY,
    STAT_SEGMENT_WAITS, STAT_SEGMENTS_FREED, STAT_SEGMENTS_OPENED, STAT_SEGMENTS_SEALED,
    STAT_TABLE_REPAIRS, STREAM_ORDERED, count, fence_full, log_header_t, log_t, segment_t,
    stream_t, tail_offset, tail_records)

cdef extern from *:
    """
    static inline uint32_t silt_popcount(uint64_t word) {
        return (uint32_t)__builtin_popcountll(word);
    }
    static inline uint64_t silt_take_word(uint64_t *word) {
        return __atomic_exchange_n(word, 0, __ATOMIC_ACQ_REL);
    }
    """
    uint32_t popcount "silt_popcount"(uint64_t) noexcept nogil
    uint64_t take_word "silt_take_word"(uint64_t *) noexcept nogil

cdef uint64_t VERSION_MAX = (<uint64_t>1 << 40) - 1
cdef uint64_t POSITION_MAX = <uint64_t>1 << 56      # 52 bits of 16 B fit an index slot

# The lock -----------------------------------------------------------------------------------

cdef bint segments_lock(log_t *log) noexcept nogil:
    cdef int result = lock_take(&log.header.segments_lock)
    if result == LOCK_OWNER_DIED:
        _repair(log)
        count(log, STAT_TABLE_REPAIRS, 1)
        lock_repaired(&log.header.segments_lock)
        return True
    if result != LOCK_TAKEN:
        count(log, STAT_LOCK_BUSY, 1)
        return False
    return True

cdef void segments_unlock(log_t *log) noexcept nogil:
    lock_drop(&log.header.segments_lock)

cdef void _repair(log_t *log) noexcept nogil:
    # The entry in the version table is made last and removed first: whatever lacks it is either
    # not opened yet or forgotten already, and drains.
    cdef uint32_t slot, free = 0
    cdef uint64_t index, entry
    cdef segment_t *segment
    for slot in range(log.segment_count):
        segment = &log.segments[slot]
        _repair_segment(log, slot)
        if segment.version > log.header.last_version:
            log.header.last_version = segment.version
        free += segment.state == SEGMENT_FREE and segment.reserved_for == 0
    for index in range(log.version_mask + 1):
        entry = load64(&log.versions[index])
        if entry and ((entry & 0xFFFFFF) >= log.segment_count
                      or log.segments[entry & 0xFFFFFF].version != entry >> 24):
            store64(&log.versions[index], 0)
    store32(&log.header.segments_free, free)

cdef void _repair_segment(log_t *log, uint32_t slot) noexcept nogil:
    cdef segment_t *segment = &log.segments[slot]
    cdef stream_t *stream = &log.streams[segment.stream]
    cdef uint64_t *entry = &log.versions[segment.version & log.version_mask]
    cdef bint listed = load64(entry) == version_entry(segment.version, slot)
    if segment.state == SEGMENT_FREE:
        if listed:
            store64(entry, 0)
        store64(&segment.version, 0)
        _repair_reservation(log, slot)
    elif segment.state == SEGMENT_OPEN and stream.segment != slot + 1:
        if listed:
            store64(entry, 0)
        store32(&segment.state, SEGMENT_DRAINING)
    elif segment.state != SEGMENT_DRAINING and not listed:
        store32(&segment.state, SEGMENT_DRAINING)
    if segment.state == SEGMENT_SEALED and stream.segment == slot + 1:
        stream.last_version = segment.version
        store32(&stream.segment, 0)

cdef void _repair_reservation(log_t *log, uint32_t slot) noexcept nogil:
    cdef segment_t *segment = &log.segments[slot]
    cdef stream_t *stream
    if segment.reserved_for:
        stream = &log.streams[segment.reserved_for - 1]
        if stream.next_slots[0] != slot + 1 and stream.next_slots[1] != slot + 1:
            segment.reserved_for = 0

# Opening and sealing: the stream's lock is held ---------------------------------------------

cdef int segments_open(log_t *log, uint32_t number) noexcept nogil:
    cdef stream_t *stream = &log.streams[number]
    cdef int64_t slot
    cdef uint64_t version
    if not segments_lock(log):
        return LOG_BUSY
    slot = _next_slot(log, number)
    if slot < 0:
        count(log, STAT_SEGMENT_WAITS, 1)
        segments_unlock(log)
        return LOG_NO_SEGMENT
    version = log.header.last_version + 1
    while load64_relaxed(&log.versions[version & log.version_mask]):
        version += 1        # at most half of the entries are taken
    if version > VERSION_MAX or version >= POSITION_MAX // log.segment_bytes:
        segments_unlock(log)
        return LOG_FAILED
    _begin(log, number, <uint32_t>slot, version)
    stream.version = version
    store32(&stream.segment, <uint32_t>slot + 1)
    store64(&log.versions[version & log.version_mask], version_entry(version, <uint32_t>slot))
    count(log, STAT_SEGMENTS_OPENED, 1)
    segments_unlock(log)
    return LOG_OK

cdef int64_t _next_slot(log_t *log, uint32_t number) noexcept nogil:
    # The slot that the stream's last header named; else any free one. An ordered stream then
    # chooses two ahead, which the new segment's header names.
    cdef stream_t *stream = &log.streams[number]
    cdef int64_t slot
    if stream.next_slots[0]:
        slot = stream.next_slots[0] - 1
        stream.next_slots[0] = stream.next_slots[1]
        stream.next_slots[1] = 0
    else:
        slot = _pick(log, number)
    if slot >= 0 and stream.flags & STREAM_ORDERED:
        log.segments[slot].reserved_for = number + 1
        _choose_ahead(log, number)
    return slot

cdef void _choose_ahead(log_t *log, uint32_t number) noexcept nogil:
    cdef stream_t *stream = &log.streams[number]
    cdef int64_t slot
    cdef int place
    for place in range(2):
        if stream.next_slots[place] == 0:
            slot = _pick(log, number)
            if slot < 0:
                return
            log.segments[slot].reserved_for = number + 1
            stream.next_slots[place] = <uint32_t>slot + 1

cdef int64_t _pick(log_t *log, uint32_t number) noexcept nogil:
    cdef log_header_t *header = log.header
    cdef segment_t *segment
    cdef uint32_t tries, slot, leaves = log.streams[number].leaves
    if header.segments_free <= leaves and segments_sweep(log) <= leaves:
        return -1
    # a second round: what is free may lie on files that this stream does not use
    for tries in range(2 * log.segment_count):
        if tries == log.segment_count:
            segments_sweep(log)
        slot = (header.cursor + tries) % log.segment_count
        segment = &log.segments[slot]
        if (segment.state == SEGMENT_FREE and segment.reserved_for == 0
                and (log.streams[number].files >> (segment.file & 63)) & 1):
            header.cursor = (slot + 1) % log.segment_count
            store32(&header.segments_free, header.segments_free - 1)
            return slot
    return -1

cdef void _begin(log_t *log, uint32_t number, uint32_t slot, uint64_t version) noexcept nogil:
    cdef segment_t *segment = &log.segments[slot]
    cdef stream_t *stream = &log.streams[number]
    log.header.last_version = version
    store64(&segment.version, version)
    segment.stream = number
    segment.salt = _salt(log, version)
    segment.largest = 0
    segment.settled = 0
    segment.reserved_for = 0
    segment.previous_version = stream.last_version
    segment.next_slots[0] = stream.next_slots[0]
    segment.next_slots[1] = stream.next_slots[1]
    segment.opened_ms = log.header.clock_ms
    segment.written_bytes = 0
    store64(&segment.tail, 0)
    # a bit set by a process that died before it could take it back
    segments_clear_live(log, slot)
    store64(&log.live_versions[slot], live_owner(version, segment.salt))
    store32(&segment.live_records, 0)
    store32(&segment.state, SEGMENT_OPEN)

cdef uint32_t _salt(log_t *log, uint64_t version) noexcept nogil:
    # Random: of a secret that is drawn for each arena, and a version that is never used again.
    cdef uint64_t word = version * <uint64_t>0x9E3779B97F4A7C15 + log.header.salt_secret[0]
    word = (word ^ (word >> 30)) * <uint64_t>0xBF58476D1CE4E5B9
    word = (word ^ (word >> 27) ^ log.header.salt_secret[1]) * <uint64_t>0x94D049BB133111EB
    return <uint32_t>(word >> 32)

cdef int segments_seal(log_t *log, uint32_t number) noexcept nogil:
    # The stream leaves its full segment; the last buffer was sealed before.
    cdef stream_t *stream = &log.streams[number]
    cdef uint32_t slot = stream.segment - 1
    if not segments_lock(log):
        return LOG_BUSY
    if log.segments[slot].state == SEGMENT_OPEN:
        store32(&log.segments[slot].state, SEGMENT_SEALED)
        count(log, STAT_SEGMENTS_SEALED, 1)
    stream.last_version = stream.version
    store32(&stream.segment, 0)
    segments_settled(log, slot)
    segments_unlock(log)
    return LOG_OK

cdef int segments_detach(log_t *log, uint32_t number) noexcept nogil:
    # The stream's segment was forgotten under it: its open buffer is worth nothing.
    cdef stream_t *stream = &log.streams[number]
    if not segments_lock(log):
        return LOG_BUSY
    buffers_discard(log, number)
    stream.last_version = stream.version
    store32(&stream.segment, 0)
    segments_sweep(log)
    segments_unlock(log)
    return LOG_OK

# Forgetting and freeing: segments_lock is held ----------------------------------------------

cdef void segments_retire(log_t *log, uint32_t slot, int counter) noexcept nogil:
    # The version leaves the table first; then the bits go; then, if nobody is in it, the slot.
    cdef segment_t *segment = &log.segments[slot]
    store64(&log.versions[segment.version & log.version_mask], 0)
    fence_full()
    store32(&segment.state, SEGMENT_DRAINING)
    count(log, counter, 1)
    _drain(log, slot)

cdef bint _drain(log_t *log, uint32_t slot) noexcept nogil:
    cdef segment_t *segment = &log.segments[slot]
    cdef uint32_t cleared = segments_clear_live(log, slot)
    add32(&segment.live_records, <uint32_t>0 - cleared)
    if not buffers_drop(log, segment.version) or _appended_to(log, slot):
        return False
    store32(&segment.state, SEGMENT_FREE)
    store64(&segment.version, 0)
    store32(&log.header.segments_free, log.header.segments_free + 1)
    return True

cdef bint _appended_to(log_t *log, uint32_t slot) noexcept nogil:
    cdef uint32_t stream
    for stream in range(log.header.stream_count):
        if log.streams[stream].segment == slot + 1:
            return True
    return False

cdef uint32_t segments_sweep(log_t *log) noexcept nogil:
    # Free what drains and what nothing lives in; how many are free now. A stream's last sealed
    # segment stays: whoever appended its last records may be about to set their bits.
    cdef uint32_t slot
    cdef segment_t *segment
    for slot in range(log.segment_count):
        segment = &log.segments[slot]
        if segment.state == SEGMENT_DRAINING:
            _drain(log, slot)
        elif segment.state != SEGMENT_FREE and segments_lookup(log, segment.version) != slot:
            # a write to it failed, and its version went at once
            store32(&segment.state, SEGMENT_DRAINING)
            _drain(log, slot)
        elif (segment.state == SEGMENT_SEALED and load32(&segment.live_records) == 0
                and segments_settled(log, slot)
                and not log.streams[segment.stream].flags & STREAM_ORDERED
                and log.streams[segment.stream].last_version != segment.version):
            segments_retire(log, slot, STAT_SEGMENTS_FREED)
    return log.header.segments_free

cdef bint segments_settled(log_t *log, uint32_t slot) noexcept nogil:
    # Sealed, and all of it on the device.
    cdef segment_t *segment = &log.segments[slot]
    if segment.state != SEGMENT_SEALED:
        return False
    if not segment.settled and not buffers_pending(log, segment.version):
        store32(&segment.settled, 1)
    return segment.settled != 0

cdef void segments_adopt(log_t *log, uint32_t slot) noexcept nogil:
    # A segment found on the device: its fields are set, here it becomes known.
    cdef segment_t *segment = &log.segments[slot]
    store32(&segment.state, SEGMENT_SEALED)
    segment.settled = 1
    store32(&log.header.segments_free, log.header.segments_free - 1)
    if segment.version > log.header.last_version:
        log.header.last_version = segment.version
    store64(&log.versions[segment.version & log.version_mask],
            version_entry(segment.version, slot))

# What reclaim sees --------------------------------------------------------------------------

cdef void segments_info(log_t *log, uint32_t slot, segment_info_t *info) noexcept nogil:
    cdef segment_t *segment = &log.segments[slot]
    cdef uint64_t tail = load64(&segment.tail)
    info.slot = slot
    info.stream = segment.stream
    info.version = segment.version
    info.filled_bytes = tail_offset(tail)
    info.records = tail_records(tail)
    info.live_records = load32(&segment.live_records)
    info.live_bytes = 0
    if info.records:
        info.live_bytes = info.filled_bytes * info.live_records // info.records
    if info.live_bytes > info.filled_bytes:
        info.live_bytes = info.filled_bytes
    info.opened_ms = segment.opened_ms
    # not the stream's last one: whoever appended its last records may be about to link them
    info.reclaimable = segment.state == SEGMENT_SEALED and (
        log.streams[segment.stream].last_version != segment.version)

# Live bits ----------------------------------------------------------------------------------

cdef uint32_t segments_clear_live(log_t *log, uint32_t slot) noexcept nogil:
    cdef uint64_t *word = log.live + slot * log.live_words
    cdef uint64_t *end = word + log.live_words
    cdef uint32_t cleared = 0
    store64(&log.live_versions[slot], 0)
    while word < end:
        if load64_relaxed(word):
            cleared += popcount(take_word(word))
        word += 1
    return cleared

cdef uint32_t segments_count_live(log_t *log, uint32_t slot) noexcept nogil:
    cdef uint64_t *word = log.live + slot * log.live_words
    cdef uint64_t *end = word + log.live_words
    cdef uint32_t number = 0
    while word < end:
        number += popcount(load64_relaxed(word))
        word += 1
    return number
