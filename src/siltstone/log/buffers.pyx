"""Write buffers: one pool in the arena, lent to the streams that write. Shared by all streams.

    FREE -> OPEN(stream) -> SEALING(stream) -> SEALED -> WRITING(process) -> FREE

OPEN and SEALING belong to the stream's lock; SEALED and WRITING change by compare-and-swap of the
descriptor's word, whose turn count tells one use of the buffer from the next. A dead writer's
buffer is claimed by another process, which repeats the same write: same bytes, same place.
A buffer's bytes on the device are a *run*: run header, records, zeros up to whole blocks.
Promise: a record that was published can be found here until its bytes are on the device.
"""
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from siltstone.log.arena cimport SECTION_PROCESSES, process_t, section
from siltstone.log.atomics cimport add64, cas64, load32, load64, store32, store64
from siltstone.log.format cimport (
    RUN_ALIGNMENT, RUN_HEADER_SIZE, SEGMENT_HEADER_SIZE, SLOT_NONE, run_first_record,
    run_header_finish, run_header_offset, run_header_t, segment_header_finish, segment_header_t)
from siltstone.log.state cimport (
    BUFFER_FREE, BUFFER_OPEN, BUFFER_SEALED, BUFFER_SEALING, BUFFER_WRITING,
    STAT_BUFFERS_LOST, STAT_BUFFERS_REPEATED, STAT_BUFFERS_SEALED, STREAM_ORDERED, buffer_data,
    buffer_t, count, log_t, segment_t, stream_t, tail_offset, tail_records, tail_word)

cdef inline uint64_t _word(uint64_t former, uint32_t state, uint32_t owner,
                           uint32_t stamp) noexcept nogil:
    return state | (<uint64_t>owner << 8) | (<uint64_t>stamp << 16) | (
        former & <uint64_t>0xFFFFFF0000000000)

cdef inline uint64_t _next_turn(uint64_t word) noexcept nogil:
    return word + (<uint64_t>1 << 40)

# Liveness -----------------------------------------------------------------------------------

cdef uint32_t _stamp(log_t *log, uint32_t slot) noexcept nogil:
    # 24 bits that tell this holder of a process slot from the former ones.
    cdef process_t *process = <process_t *>section(log.arena, SECTION_PROCESSES) + slot
    cdef uint64_t mixed = load64(&process.pid) * <uint64_t>0x9E3779B97F4A7C15
    mixed ^= load64(&process.started_ms) * <uint64_t>0xC2B2AE3D27D4EB4F
    return <uint32_t>(mixed >> 40)

cdef bint _writer_died(log_t *log, uint64_t word) noexcept nogil:
    cdef uint32_t slot = word_owner(word)
    if word_stamp(word) != _stamp(log, slot):
        return True
    if slot == log.process_slot:
        return False
    return not log.alive(log.alive_context, slot)

# The stream's side --------------------------------------------------------------------------

cdef int64_t buffers_take(log_t *log, uint32_t stream) noexcept nogil:
    cdef uint32_t index
    cdef uint64_t word
    for index in range(log.buffer_count):
        word = load64(&log.buffers[index].word)
        if word_state(word) == BUFFER_FREE and cas64(
                &log.buffers[index].word, word, _word(_next_turn(word), BUFFER_OPEN, stream, 0)):
            return index
    return -1

cdef void buffers_give(log_t *log, uint32_t index) noexcept nogil:
    # Back to the pool, by whoever owns the buffer now.
    cdef buffer_t *buffer = &log.buffers[index]
    store64(&buffer.version, 0)
    store64(&buffer.word, _word(buffer.word, BUFFER_FREE, 0, 0))

cdef void buffers_attach(log_t *log, uint32_t stream, uint32_t index, uint32_t slot,
                         uint64_t run_offset) noexcept nogil:
    cdef buffer_t *buffer = &log.buffers[index]
    cdef segment_t *segment = &log.segments[slot]
    cdef uint64_t capacity = log.segment_bytes - run_offset
    if capacity > log.header.buffer_bytes:
        capacity = log.header.buffer_bytes
    buffer.slot = slot
    buffer.run_offset = <uint32_t>run_offset
    buffer.capacity = <uint32_t>capacity
    buffer.length = 0
    buffer.order = 0
    buffer.opened_ms = log.header.clock_ms
    memset(buffer_data(log, index), 0, run_first_record(run_offset) - run_offset)
    if run_offset == 0:
        _put_segment_header(log, buffer_data(log, index), slot)
    if log.streams[stream].flags & STREAM_ORDERED:
        # parts of the run are written while it is open: its header must not change any more
        _put_run_header(log, stream, index, buffer.capacity)
    store64(&buffer.version, segment.version)
    store32(&log.streams[stream].buffer, index + 1)

cdef void _put_segment_header(log_t *log, char *data, uint32_t slot) noexcept nogil:
    cdef segment_t *segment = &log.segments[slot]
    cdef segment_header_t header
    memset(&header, 0, SEGMENT_HEADER_SIZE)
    header.salt = segment.salt
    header.version = segment.version
    header.previous_version = segment.previous_version
    memcpy(header.uuid, log.header.uuid, 16)
    header.stream = segment.stream
    header.next_slots[0] = segment.next_slots[0] - 1 if segment.next_slots[0] else SLOT_NONE
    header.next_slots[1] = segment.next_slots[1] - 1 if segment.next_slots[1] else SLOT_NONE
    header.opened_ms = segment.opened_ms
    header.segment_bytes = log.segment_bytes
    header.stable_position = load64(&log.streams[segment.stream].stable_position)
    header.slot = slot
    segment_header_finish(&header)
    memcpy(data, &header, SEGMENT_HEADER_SIZE)

cdef void _put_run_header(log_t *log, uint32_t stream, uint32_t index,
                          uint32_t length) noexcept nogil:
    cdef buffer_t *buffer = &log.buffers[index]
    cdef segment_t *segment = &log.segments[buffer.slot]
    cdef run_header_t header
    memset(&header, 0, RUN_HEADER_SIZE)
    header.salt = segment.salt
    header.version = segment.version
    header.offset = buffer.run_offset
    header.length = length
    header.stable_position = load64(&log.streams[stream].stable_position)
    header.stream = stream
    header.slot = buffer.slot
    run_header_finish(&header)
    memcpy(buffer_data(log, index) + run_header_offset(buffer.run_offset) - buffer.run_offset,
           &header, RUN_HEADER_SIZE)

cdef void buffers_seal(log_t *log, uint32_t stream) noexcept nogil:
    # The open buffer is cut to whole blocks and left to the writers. An empty one goes back.
    cdef stream_t *state = &log.streams[stream]
    cdef uint32_t index = state.buffer - 1
    cdef buffer_t *buffer = &log.buffers[index]
    cdef segment_t *segment = &log.segments[buffer.slot]
    cdef uint64_t filled = tail_offset(segment.tail) - buffer.run_offset
    cdef uint64_t length = (filled + RUN_ALIGNMENT - 1) & ~<uint64_t>(RUN_ALIGNMENT - 1)
    if filled == 0:
        buffers_discard(log, stream)
        return
    if state.flags & STREAM_ORDERED:
        length = buffer.capacity
    else:
        _put_run_header(log, stream, index, <uint32_t>length)
    memset(buffer_data(log, index) + filled, 0, length - filled)
    buffer.length = <uint32_t>length
    store32(&buffer.capacity, <uint32_t>length)
    store64(&buffer.word, _word(buffer.word, BUFFER_SEALING, stream, 0))
    _finish_seal(log, stream, index)

cdef void _finish_seal(log_t *log, uint32_t stream, uint32_t index) noexcept nogil:
    # From SEALING on; done again by the repair when its process died here.
    cdef buffer_t *buffer = &log.buffers[index]
    cdef segment_t *segment = &log.segments[buffer.slot]
    if segment.version == buffer.version:
        store64(&segment.tail, tail_word(<uint64_t>buffer.run_offset + buffer.length,
                                         tail_records(segment.tail)))
    if log.streams[stream].buffer == index + 1:
        store32(&log.streams[stream].buffer, 0)
    buffer.order = add64(&log.header.seal_order, 1)
    count(log, STAT_BUFFERS_SEALED, 1)
    store64(&buffer.word, _word(buffer.word, BUFFER_SEALED, 0, 0))

cdef void buffers_discard(log_t *log, uint32_t stream) noexcept nogil:
    # The open buffer is given back unwritten: it is empty, or its segment was forgotten.
    cdef uint32_t index = log.streams[stream].buffer
    store32(&log.streams[stream].buffer, 0)
    if index:
        buffers_give(log, index - 1)

cdef void buffers_repair(log_t *log, uint32_t stream) noexcept nogil:
    # The stream's lock had a dead owner. What is beyond the published tail was never there; a
    # seal is completed; a buffer that was taken but not attached goes back.
    cdef uint32_t index
    cdef uint64_t word
    for index in range(log.buffer_count):
        word = load64(&log.buffers[index].word)
        if word_owner(word) != stream:
            continue
        if word_state(word) == BUFFER_SEALING:
            _finish_seal(log, stream, index)
        elif word_state(word) == BUFFER_OPEN and log.streams[stream].buffer != index + 1:
            buffers_give(log, index)

# The writers' side --------------------------------------------------------------------------

cdef int64_t buffers_claim(log_t *log) noexcept nogil:
    # The one sealed first, so that a segment's header is on the device early.
    cdef uint32_t index
    cdef int64_t best
    cdef uint64_t word, best_word = 0, best_order = 0
    for _ in range(2 * log.buffer_count):
        best = -1
        for index in range(log.buffer_count):
            word = load64(&log.buffers[index].word)
            if word_state(word) != BUFFER_SEALED and not (
                    word_state(word) == BUFFER_WRITING and _writer_died(log, word)):
                continue
            if best < 0 or log.buffers[index].order < best_order:
                best, best_word, best_order = index, word, log.buffers[index].order
        if best < 0:
            return -1
        if cas64(&log.buffers[best].word, best_word,
                 _word(best_word, BUFFER_WRITING, log.process_slot,
                       _stamp(log, log.process_slot))):
            if word_state(best_word) == BUFFER_WRITING:
                count(log, STAT_BUFFERS_REPEATED, 1)
            return best
    return -1

cdef void buffers_release(log_t *log, uint32_t index) noexcept nogil:
    buffers_give(log, index)

cdef int64_t buffers_find(log_t *log, uint64_t version, uint64_t offset) noexcept nogil:
    # The buffer that covers the position. It may be reused at any moment: check what you copied.
    cdef uint32_t index
    cdef buffer_t *buffer
    for index in range(log.buffer_count):
        buffer = &log.buffers[index]
        if (load64(&buffer.version) == version and offset >= buffer.run_offset
                and offset - buffer.run_offset < load32(&buffer.capacity)):
            return index
    return -1

cdef bint buffers_pending(log_t *log, uint64_t version) noexcept nogil:
    cdef uint32_t index
    for index in range(log.buffer_count):
        if load64(&log.buffers[index].version) == version:
            return True
    return False

cdef bint buffers_drop(log_t *log, uint64_t version) noexcept nogil:
    # Give back what was sealed for a segment that is forgotten; true when none is left. A live
    # writer's buffer stays: the slot must not be reused while a write to it is on its way.
    cdef uint32_t index
    cdef uint64_t word
    cdef bint none_left = True
    for index in range(log.buffer_count):
        word = load64(&log.buffers[index].word)
        if load64(&log.buffers[index].version) != version:
            continue
        if word_state(word) == BUFFER_SEALED or (
                word_state(word) == BUFFER_WRITING and _writer_died(log, word)):
            if cas64(&log.buffers[index].word, word,
                     _word(word, BUFFER_WRITING, log.process_slot,
                           _stamp(log, log.process_slot))):
                count(log, STAT_BUFFERS_LOST, 1)
                buffers_give(log, index)
                continue
        none_left = False
    return none_left

cdef uint32_t buffers_in_state(log_t *log, uint32_t state) noexcept nogil:
    cdef uint32_t index, number = 0
    for index in range(log.buffer_count):
        number += word_state(load64(&log.buffers[index].word)) == state
    return number

cdef void buffers_after_fork(log_t *log) noexcept nogil:
    # In the child of a fork with a private arena: the parent's writers are not here.
    cdef uint32_t index
    cdef uint64_t word
    for index in range(log.buffer_count):
        word = log.buffers[index].word
        if word_state(word) == BUFFER_WRITING:
            log.buffers[index].word = _word(word, BUFFER_SEALED, 0, 0)
