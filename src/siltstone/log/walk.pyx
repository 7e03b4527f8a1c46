"""Walking the records of a segment's image: run by run, record by record, each one verified.

Pure functions on memory; used by compaction and by the recovery of caches. Every valid record
stands alone: where a run header or a record is damaged, the walk goes on at the next run, or at
the next record whose live bit is set. (An ordered stream stops there instead: its own rule.)
"""
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from siltstone.log.format cimport (
    RECORD_ALIGNMENT, RECORD_HEADER_SIZE, RECORD_PAD, RECORD_SIZE_MIN, RUN_ALIGNMENT,
    RUN_HEADER_SIZE, record_bytes, record_check, run_first_record, run_header_offset,
    run_header_t, run_header_valid)
from siltstone.log.livemap cimport live_test

cdef enum:
    # The cursor is offset | end of the run << 32. Two values of the run's end are words:
    RUN_EXPECTED = 0            # a run header should stand here
    RUN_UNKNOWN = 0xFFFFFFFF    # a record was found by its live bit; its run's header is lost

cdef bint walk_next(walk_t *walk, uint64_t *position, uint8_t *kind, const char **payload,
                    uint32_t *size) noexcept nogil:
    cdef uint64_t offset, run_end, limit
    cdef int64_t found
    while True:
        offset, run_end = walk.cursor & <uint64_t>0xFFFFFFFF, walk.cursor >> 32
        if offset >= walk.size:
            return False
        if run_end == RUN_EXPECTED:
            _enter_run(walk, offset)
            continue
        limit = walk.size if run_end == RUN_UNKNOWN else run_end
        if offset + RECORD_SIZE_MIN > limit:
            walk.cursor = limit
            continue
        found = record_check(walk.image + offset, limit - offset, walk.salt,
                             walk.version * walk.segment_bytes + offset)
        if found < 0:
            _after_no_record(walk, offset, run_end)
            continue
        walk.cursor = (offset + record_bytes(found)) | (run_end << 32)
        kind[0] = <uint8_t>walk.image[offset + 4]
        if kind[0] == RECORD_PAD:
            continue
        position[0] = walk.version * walk.segment_bytes + offset
        payload[0] = walk.image + offset + RECORD_HEADER_SIZE
        size[0] = <uint32_t>found
        return True

cdef bint _run_at(walk_t *walk, uint64_t offset, uint64_t *end) noexcept nogil:
    cdef run_header_t header
    cdef uint64_t place = run_header_offset(offset)
    if place + RUN_HEADER_SIZE > walk.size:
        return False
    memcpy(&header, walk.image + place, RUN_HEADER_SIZE)
    if not run_header_valid(&header, walk.salt, walk.version, walk.slot, offset,
                            walk.segment_bytes):
        return False
    end[0] = offset + header.length
    if end[0] > walk.size:
        end[0] = walk.size
    return True

cdef void _enter_run(walk_t *walk, uint64_t offset) noexcept nogil:
    cdef uint64_t end
    if _run_at(walk, offset, &end):
        walk.cursor = run_first_record(offset) | (end << 32)
    else:
        _search(walk, offset)

cdef void _after_no_record(walk_t *walk, uint64_t offset, uint64_t run_end) noexcept nogil:
    # Zeros end a run; anything else is damage.
    cdef uint64_t head
    memcpy(&head, walk.image + offset, RECORD_HEADER_SIZE)
    if head == 0 and run_end != RUN_UNKNOWN:
        walk.cursor = run_end
        return
    if head != 0:
        walk.damaged += 1
    _search(walk, offset)

cdef void _search(walk_t *walk, uint64_t start) noexcept nogil:
    # From `start` on: the next run header at a block's front, or record at a live bit.
    cdef uint64_t cell = start // RECORD_SIZE_MIN, base, offset, end
    while cell * RECORD_SIZE_MIN < walk.size:
        base = cell * RECORD_SIZE_MIN
        if base % RUN_ALIGNMENT == 0 and base >= start and _run_at(walk, base, &end):
            walk.cursor = base
            return
        if walk.live == NULL or walk.live[cell >> 6] == 0:
            cell = (cell | 63) + 1          # a word of bits is a block
            continue
        if live_test(walk.live, cell):
            offset = base
            while offset < base + RECORD_SIZE_MIN:
                if offset >= start and offset < walk.size and record_check(
                        walk.image + offset, walk.size - offset, walk.salt,
                        walk.version * walk.segment_bytes + offset) >= 0:
                    walk.cursor = offset | (<uint64_t>RUN_UNKNOWN << 32)
                    return
                offset += RECORD_ALIGNMENT
        cell += 1
    walk.cursor = walk.size
