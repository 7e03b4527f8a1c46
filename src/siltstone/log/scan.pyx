"""Recovery of a cache's segments after its arena was lost: headers first, then live records.

`adopt_segments` reads every segment header and takes into the tables what belongs to this device,
whose live map says that the bits are this life's, and of which anything lives. `scan_segment`
walks one such segment and gives every valid record whose live bit is set to a C callback; bits
without such a record are cleared, so that counts are exact again. log/recovery.py decides which
segment when; nobody else uses the log meanwhile. Segments may be scanned by several threads.
"""
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memset

from siltstone.log.atomics cimport load64, store32, store64
from siltstone.log.device_io cimport device_read
from siltstone.log.format cimport (
    RUN_ALIGNMENT, SEGMENT_HEADER_SIZE, record_bytes, segment_header_t, segment_header_valid)
from siltstone.log.livemap cimport live_set, live_test
from siltstone.log.log_face cimport Log
from siltstone.log.segments cimport (
    live_owner, segments_adopt, segments_clear_live, segments_count_live, segments_lock,
    segments_retire, segments_unlock)
from siltstone.log.state cimport (
    LIVE_CELL, SEGMENT_SEALED, STAT_CHECKSUM_FAILURES, STAT_DEVICE_BYTES_READ,
    STAT_DEVICE_READS, STAT_READ_ERRORS, STAT_SEGMENTS_FREED, count, log_t, segment_t,
    tail_offset, tail_word)
from siltstone.log.walk cimport walk_next, walk_t

from siltstone import errors

cdef extern from *:
    """
    static inline uint32_t silt_bits_of(uint64_t word) {
        return (uint32_t)__builtin_popcountll(word);
    }
    """
    uint32_t bits_of "silt_bits_of"(uint64_t) noexcept nogil

cdef uint64_t READ_BYTES = 1 << 20
cdef uint64_t USUAL_MAX = 16 << 10      # as in log.pyx: the hint for later reads

cdef struct tally_t:
    uint64_t bytes_read
    uint64_t records        # valid, live or not
    uint64_t kept
    uint64_t dropped        # the callback did not want them
    uint64_t lost           # live bits without a valid record
    uint64_t damaged

cdef struct headers_t:
    uint64_t valid
    uint64_t adopted
    uint64_t unreadable
    uint64_t stale          # of another life than the live bits: nothing of it counts
    uint64_t conflicts      # versions that exclude each other in the version table

# Headers ------------------------------------------------------------------------------------

cdef void _adopt(log_t *log, uint32_t slot, bint warm, headers_t *tally) noexcept nogil:
    cdef segment_header_t header
    cdef uint32_t live
    cdef uint64_t former = log.live_versions[slot] >> 24
    cdef int64_t got = device_read(log.device, slot, 0, &header, SEGMENT_HEADER_SIZE, 0)
    # neither this version nor the header's is ever given out again
    if former > log.header.last_version:
        log.header.last_version = former
    if got < 0:
        tally.unreadable += 1
        count(log, STAT_READ_ERRORS, 1)
    elif segment_header_valid(&header, log.header.uuid, log.segment_bytes, slot):
        tally.valid += 1
        if header.version > log.header.last_version:
            log.header.last_version = header.version
        live = segments_count_live(log, slot)
        if warm and live and header.stream < log.header.stream_count:
            if log.live_versions[slot] != live_owner(header.version, header.salt):
                tally.stale += 1
            elif load64(&log.versions[header.version & log.version_mask]):
                tally.conflicts += 1
            else:
                _fill(log, slot, &header, live)
                tally.adopted += 1
                return
    segments_clear_live(log, slot)

cdef void _fill(log_t *log, uint32_t slot, const segment_header_t *header,
                uint32_t live) noexcept nogil:
    cdef segment_t *segment = &log.segments[slot]
    segment.version = header.version
    segment.stream = header.stream
    segment.salt = header.salt
    segment.largest = 0
    segment.previous_version = header.previous_version
    segment.next_slots[0] = 0
    segment.next_slots[1] = 0
    segment.opened_ms = header.opened_ms
    segment.tail = tail_word(_live_end(log, slot), live)
    segment.live_records = live
    segments_adopt(log, slot)
    if header.version > log.streams[header.stream].last_version:
        log.streams[header.stream].last_version = header.version

cdef uint64_t _live_end(log_t *log, uint32_t slot) noexcept nogil:
    # No record that counts starts at or above this offset. A word of bits is a block.
    cdef uint64_t word = log.live_words
    while word and log.live[slot * log.live_words + word - 1] == 0:
        word -= 1
    return word * RUN_ALIGNMENT


def adopt_segments(Log log not None, bint warm) -> dict[str, int]:
    """Fill segment and version table from the device. Not `warm`: only learn which versions were
    used; nothing that is on the device counts."""
    cdef headers_t tally
    cdef uint32_t slot
    memset(&tally, 0, sizeof(headers_t))
    if not segments_lock(log.c_log):
        raise errors.Busy("the segment table is locked")
    with nogil:
        for slot in range(log.c_log.segment_count):
            _adopt(log.c_log, slot, warm, &tally)
        segments_unlock(log.c_log)
    return tally

# Records ------------------------------------------------------------------------------------

cdef void _read(log_t *log, uint32_t slot, char *image, uint64_t size,
                tally_t *tally) noexcept nogil:
    # What cannot be read is zeros: its records are lost, the others are not.
    cdef uint64_t offset = 0, part
    while offset < size:
        part = size - offset if size - offset < READ_BYTES else READ_BYTES
        if device_read(log.device, slot, offset, image + offset, part, 0) < 0:
            memset(image + offset, 0, part)
            count(log, STAT_READ_ERRORS, 1)
            tally.damaged += 1
        else:
            count(log, STAT_DEVICE_READS, 1)
            count(log, STAT_DEVICE_BYTES_READ, part)
            tally.bytes_read += part
        offset += part

cdef void _scan(log_t *log, uint32_t slot, char *image, uint64_t size, uint64_t *confirmed,
                found_t found, void *context, tally_t *tally) noexcept nogil:
    cdef segment_t *segment = &log.segments[slot]
    cdef uint64_t *live = log.live + slot * log.live_words
    cdef walk_t walk
    cdef uint64_t position, cell, end = 0, records = 0
    cdef uint8_t kind
    cdef const char *payload
    cdef uint32_t length
    walk.image, walk.size, walk.live = image, size, live
    walk.segment_bytes, walk.version = log.segment_bytes, segment.version
    walk.slot, walk.salt = slot, segment.salt
    walk.cursor, walk.damaged = 0, 0
    while walk_next(&walk, &position, &kind, &payload, &length):
        records += 1
        end = position % log.segment_bytes + record_bytes(length)
        if record_bytes(length) > segment.largest and record_bytes(length) <= USUAL_MAX:
            segment.largest = <uint32_t>record_bytes(length)
        cell = position % log.segment_bytes // LIVE_CELL
        if not live_test(live, cell):
            continue
        if found != NULL and not found(context, position, kind, payload, length):
            tally.dropped += 1
            continue
        live_set(confirmed, cell)
        tally.kept += 1
    tally.records += records
    tally.damaged += walk.damaged
    segment.tail = tail_word((end + RUN_ALIGNMENT - 1) // RUN_ALIGNMENT * RUN_ALIGNMENT,
                             <uint32_t>records)

cdef void _settle_bits(log_t *log, uint32_t slot, uint64_t *confirmed) noexcept nogil:
    cdef uint64_t *live = log.live + slot * log.live_words
    cdef uint64_t word
    cdef uint32_t number = 0
    for word in range(log.live_words):
        number += bits_of(confirmed[word])
        store64(&live[word], confirmed[word])
    store32(&log.segments[slot].live_records, number)


def scan_segment(Log log not None, uint32_t slot, Found found=None) -> dict[str, int]:
    """Every live record of an adopted segment goes to `found` (None: all count)."""
    cdef tally_t tally
    cdef log_t *state = log.c_log
    cdef uint64_t size
    cdef char *image
    cdef uint64_t *confirmed
    cdef uint32_t before
    cdef found_t callback = found.found if found is not None else NULL
    cdef void *context = found.context if found is not None else NULL
    memset(&tally, 0, sizeof(tally_t))
    if slot >= state.segment_count or state.segments[slot].state != SEGMENT_SEALED:
        raise errors.CallerError("no such segment was adopted")
    # the last record may reach beyond the last live bit's block
    size = tail_offset(state.segments[slot].tail) + state.header.buffer_bytes
    if size > state.segment_bytes:
        size = state.segment_bytes
    image, confirmed = <char *>malloc(size), <uint64_t *>calloc(state.live_words, 8)
    try:
        if image == NULL or confirmed == NULL:
            raise errors.OutOfMemory("no memory for the image of a segment")
        with nogil:
            before = segments_count_live(state, slot)
            _read(state, slot, image, size, &tally)
            _scan(state, slot, image, size, confirmed, callback, context, &tally)
            _settle_bits(state, slot, confirmed)
    finally:
        free(image)
        free(confirmed)
    tally.lost = before - tally.kept - tally.dropped
    count(state, STAT_CHECKSUM_FAILURES, tally.damaged)
    return tally


cdef void segment_remember(log_t *log, uint32_t slot, segment_memory_t *memory) noexcept nogil:
    cdef segment_t *segment = &log.segments[slot]
    memory.version = segment.version if load64(
        &log.versions[segment.version & log.version_mask]) else 0
    memory.tail = segment.tail
    memory.largest = segment.largest
    memory.zero = 0

cdef bint segment_recall(log_t *log, uint32_t slot, segment_memory_t *memory) noexcept nogil:
    cdef segment_t *segment = &log.segments[slot]
    if (segment.state != SEGMENT_SEALED or segment.version != memory.version
            or tail_offset(memory.tail) > log.segment_bytes):
        return False
    segment.tail = memory.tail
    segment.largest = memory.largest
    return True


def drop_empty(Log log not None) -> int:
    """Free the adopted segments in which nothing lives; how many."""
    cdef log_t *state = log.c_log
    cdef uint32_t slot, freed = 0
    if not segments_lock(state):
        raise errors.Busy("the segment table is locked")
    for slot in range(state.segment_count):
        if state.segments[slot].state == SEGMENT_SEALED and (
                state.segments[slot].live_records == 0):
            segments_retire(state, slot, STAT_SEGMENTS_FREED)
            freed += 1
    segments_unlock(state)
    return freed

# Callbacks ----------------------------------------------------------------------------------

cdef class Found:
    """See scan.pxd."""

    def finished(self) -> None:
        """Called after each segment that went to this object."""


cdef int _call(void *context, uint64_t position, uint8_t kind, const char *payload,
               uint32_t size) noexcept with gil:
    cdef PythonFound self = <PythonFound>context
    try:
        return bool(self.function(position, kind, payload[:size]))
    except Exception as error:      # kept for the caller: C code cannot pass it on
        self.error = error
        return 1


cdef class PythonFound(Found):
    """A Python function as the callback, for tools and tests: f(position, kind, payload)."""
    cdef object function
    cdef readonly object error

    def __cinit__(self, function):
        self.function = function
        self.found, self.context = <found_t>_call, <void *>self
