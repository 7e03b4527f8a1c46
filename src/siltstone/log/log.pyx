"""The log: appending, reading, writing out, live accounting and reclaim, over arena and device.

Owns nothing but the order of steps: buffers.pyx has the write buffers, segments.pyx the segment
and version tables, format.pxd the bytes. All shared state is in the arena. Promises: a record is
readable from the moment log_append returns until its segment is forgotten; bytes that fail their
check are never given out; a failed write is never clean (its segment is forgotten); a process
killed at any instruction costs at most the record it was appending.
Called by engines from any thread of any process, without the GIL; log/log_face.pyx sets it up.
"""
from libc.errno cimport EAGAIN
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from siltstone.log.arena cimport (
    LOCK_OWNER_DIED, LOCK_TAKEN, lock_drop, lock_repaired, lock_take)
from siltstone.log.atomics cimport add32, add64, cas64, cpu_pause, load32, load64, store32, store64
from siltstone.log.buffers cimport (
    buffers_attach, buffers_claim, buffers_find, buffers_give, buffers_in_state, buffers_pending,
    buffers_release, buffers_repair, buffers_seal, buffers_take)
from siltstone.log.checksum cimport crc32c
from siltstone.log.device_io cimport DEVICE_NOWAIT, device_read, device_write
from siltstone.log.format cimport (
    RECORD_ALIGNMENT, RECORD_HEADER_SIZE, RECORD_PAD, RECORD_PAYLOAD_MAX, RUN_HEADER_SIZE,
    SEGMENT_HEADER_SIZE, record_bytes, record_check, record_checksum, record_header_t,
    record_word, run_first_record, segment_header_t, segment_header_valid, word_size)
from siltstone.log.latency cimport now_ns
from siltstone.log.livemap cimport live_set, live_test, live_unset
from siltstone.log.segments cimport (
    segments_detach, segments_info, segments_lock, segments_lookup, segments_open,
    segments_retire, segments_seal, segments_settled, segments_sweep, segments_unlock,
    version_entry)
from siltstone.log.state cimport (
    BUFFER_FREE, BUFFER_OPEN, BUFFER_SEALED, BUFFER_WRITING, FAILURES_MAX, LATENCY_COUNT, LIVE_CELL,
    SEGMENT_OPEN, SEGMENT_SEALED, STAT_BAD_OFFSETS,
    STAT_BUFFER_READS, STAT_BUFFER_WAITS, STAT_BUFFERS_LOST, STAT_CHECKSUM_FAILURES,
    STAT_DEVICE_BYTES_READ, STAT_DEVICE_BYTES_WRITTEN, STAT_DEVICE_READS, STAT_DEVICE_WRITES,
    STAT_LIVE_REFUSED, STAT_LOCK_BUSY, STAT_READ_ERRORS, STAT_READ_RETRIES, STAT_READS_GONE,
    STAT_READS_REFUSED, STAT_SEGMENTS_FAILED, STAT_SEGMENTS_FORGOTTEN, STAT_SEGMENTS_FREED,
    STAT_STREAM_REPAIRS, STAT_WRITE_ERRORS, buffer_data, buffer_t, count, fence_full,
    segment_t, stream_t, tail_offset, tail_records, tail_word)
from siltstone.log.walk cimport walk_next, walk_t

cdef extern from "<unistd.h>" nogil:
    int usleep(unsigned int)

cdef extern from *:
    """
    static __thread int silt_log_errno;
    static inline void silt_set_log_errno(int value) { silt_log_errno = value; }
    static inline int silt_get_log_errno(void) { return silt_log_errno; }
    static inline uint32_t silt_bucket(uint64_t microseconds) {
        return microseconds < 2 ? 0 : 63 - (uint32_t)__builtin_clzll(microseconds);
    }
    """
    void set_log_errno "silt_set_log_errno"(int) noexcept nogil
    int get_log_errno "silt_get_log_errno"() noexcept nogil
    uint32_t bucket_of "silt_bucket"(uint64_t) noexcept nogil

cdef uint64_t HINT_MAX = 16 << 10   # a usual record; longer ones take a second read
cdef uint64_t HINT_UNKNOWN = 4 << 10
cdef int READ_TRIES = 4             # each failed try means that a buffer or segment was reused
cdef int PLACE_TRIES = 4            # seal, leave a forgotten segment, open: each once at most
cdef unsigned int ROOM_WAIT_US = 50
cdef int ROOM_WAITS = 20            # 1 ms in all
cdef int FLUSH_WAITS = 1000         # of log_make_room's ms: another process may be stopped

# Appending ----------------------------------------------------------------------------------

cdef uint64_t log_record_bytes_max(log_t *log) noexcept nogil:
    # Fits the first run of a segment, so it fits any fresh run.
    cdef uint64_t room = log.header.buffer_bytes
    if room > log.segment_bytes:
        room = log.segment_bytes
    room -= SEGMENT_HEADER_SIZE + RUN_HEADER_SIZE + RECORD_HEADER_SIZE
    return room if room < RECORD_PAYLOAD_MAX else RECORD_PAYLOAD_MAX

cdef bint _stream_lock(log_t *log, uint32_t number) noexcept nogil:
    cdef int result = lock_take(&log.streams[number].lock)
    if result == LOCK_OWNER_DIED:
        buffers_repair(log, number)
        count(log, STAT_STREAM_REPAIRS, 1)
        lock_repaired(&log.streams[number].lock)
        return True
    if result != LOCK_TAKEN:
        count(log, STAT_LOCK_BUSY, 1)
        return False
    return True

cdef inline void _stream_unlock(log_t *log, uint32_t number) noexcept nogil:
    lock_drop(&log.streams[number].lock)

cdef int log_append(log_t *log, uint32_t stream, uint8_t kind, const part_t *parts,
                    uint32_t parts_count, uint64_t *position) noexcept nogil:
    cdef uint64_t total = 0, offset = 0
    cdef uint32_t body = 0, number
    cdef int result
    for number in range(parts_count):
        total += parts[number].size
    if total > log_record_bytes_max(log):
        return LOG_TOO_LARGE
    if kind == 0 or kind == RECORD_PAD or stream >= log.header.stream_count:
        return LOG_NOTHING
    if load32(&log.header.failed):
        return LOG_FAILED
    for number in range(parts_count):
        body = crc32c(body, parts[number].data, parts[number].size)
    if not _stream_lock(log, stream):
        return LOG_BUSY
    result = _place(log, stream, record_bytes(total), &offset)
    if result == LOG_OK:
        _put(log, stream, offset, record_word(kind, <uint32_t>total), body, parts, parts_count)
        position[0] = log.streams[stream].version * log.segment_bytes + offset
    _stream_unlock(log, stream)
    return result

cdef int _place(log_t *log, uint32_t number, uint64_t need, uint64_t *offset) noexcept nogil:
    # Where the next record of the stream goes: in its open buffer, a fresh one, a fresh segment.
    cdef stream_t *stream = &log.streams[number]
    cdef buffer_t *buffer
    cdef uint64_t tail
    cdef int result
    for _ in range(PLACE_TRIES):
        if stream.segment == 0:
            result = _open_buffer(log, number)
            if result != LOG_OK:
                return result
        if segments_lookup(log, stream.version) != stream.segment - 1:
            result = segments_detach(log, number)
            if result != LOG_OK:
                return result
            continue
        tail = tail_offset(log.segments[stream.segment - 1].tail)
        if stream.buffer:
            buffer = &log.buffers[stream.buffer - 1]
            if tail == buffer.run_offset:
                tail = run_first_record(tail)
            if tail + need <= <uint64_t>buffer.run_offset + buffer.capacity:
                offset[0] = tail
                return LOG_OK
            buffers_seal(log, number)
            tail = tail_offset(log.segments[stream.segment - 1].tail)
        if run_first_record(tail) + need > log.segment_bytes:
            result = segments_seal(log, number)
        else:
            result = _open_buffer(log, number)
        if result != LOG_OK:
            return result
    return LOG_BUSY

cdef int _open_buffer(log_t *log, uint32_t number) noexcept nogil:
    # The buffer first: a segment without one would wait for nothing.
    cdef stream_t *stream = &log.streams[number]
    cdef int64_t index = buffers_take(log, number)
    cdef int result
    if index < 0:
        count(log, STAT_BUFFER_WAITS, 1)
        return LOG_NO_BUFFER
    if stream.segment == 0:
        result = segments_open(log, number)
        if result != LOG_OK:
            buffers_give(log, <uint32_t>index)
            return result
    buffers_attach(log, number, <uint32_t>index, stream.segment - 1,
                   tail_offset(log.segments[stream.segment - 1].tail))
    return LOG_OK

cdef void _put(log_t *log, uint32_t number, uint64_t offset, uint32_t word, uint32_t body,
               const part_t *parts, uint32_t parts_count) noexcept nogil:
    cdef stream_t *stream = &log.streams[number]
    cdef segment_t *segment = &log.segments[stream.segment - 1]
    cdef uint32_t index = stream.buffer - 1
    cdef uint64_t size = record_bytes(word_size(word))
    cdef char *out = buffer_data(log, index) + (offset - log.buffers[index].run_offset)
    cdef char *end = out + size
    cdef record_header_t header
    header.word = word
    header.checksum = record_checksum(
        segment.salt, stream.version * log.segment_bytes + offset, word, body)
    memcpy(out, &header, RECORD_HEADER_SIZE)
    out += RECORD_HEADER_SIZE
    for index in range(parts_count):
        if parts[index].size:
            memcpy(out, parts[index].data, parts[index].size)
            out += parts[index].size
    memset(out, 0, end - out)
    if size > segment.largest and size <= HINT_MAX:
        segment.largest = <uint32_t>size
    # the one store that makes it a record
    store64(&segment.tail, tail_word(offset + size, tail_records(segment.tail) + 1))
    stream.records += 1
    stream.user_bytes += word_size(word)

# Reading ------------------------------------------------------------------------------------

cdef int log_read(log_t *log, uint64_t position, char *out, uint64_t capacity, uint64_t *size,
                  uint32_t flags) noexcept nogil:
    cdef uint64_t version = position // log.segment_bytes
    cdef uint64_t offset = position % log.segment_bytes
    cdef int64_t slot, index
    cdef int result
    if offset % RECORD_ALIGNMENT or offset < run_first_record(0):
        count(log, STAT_BAD_OFFSETS, 1)
        return LOG_GONE
    if capacity < RECORD_HEADER_SIZE:
        size[0] = LOG_RECORD_MIN
        return LOG_SHORT
    for _ in range(READ_TRIES):
        slot = segments_lookup(log, version)
        if slot < 0:
            count(log, STAT_READS_GONE, 1)
            return LOG_GONE
        index = -1
        if not load32(&log.segments[slot].settled):
            index = buffers_find(log, version, offset)
        if index >= 0:
            result = _read_buffer(log, <uint32_t>index, <uint32_t>slot, position, out, capacity,
                                  size)
        else:
            result = _read_device(log, <uint32_t>slot, position, out, capacity, size, flags)
        if result == LOG_OK or result == LOG_SHORT or result == LOG_WOULD_BLOCK:
            return result
        # A buffer was recycled or a segment reused under us, or it is damage: look again.
        if result == LOG_IO and segments_lookup(log, version) == slot:
            return result
        count(log, STAT_READ_RETRIES, 1)
        cpu_pause()
    count(log, STAT_CHECKSUM_FAILURES, 1)
    return LOG_CORRUPT

cdef int _read_buffer(log_t *log, uint32_t index, uint32_t slot, uint64_t position, char *out,
                      uint64_t capacity, uint64_t *size) noexcept nogil:
    cdef uint64_t offset = position % log.segment_bytes
    cdef uint64_t run_offset = load32(&log.buffers[index].run_offset)
    cdef uint64_t buffer_bytes = log.header.buffer_bytes
    cdef uint64_t total, place = offset - run_offset
    cdef record_header_t header
    if run_offset > offset or place + RECORD_HEADER_SIZE > buffer_bytes:
        return LOG_CORRUPT
    memcpy(&header, buffer_data(log, index) + place, RECORD_HEADER_SIZE)
    total = RECORD_HEADER_SIZE + <uint64_t>word_size(header.word)
    if place + total > buffer_bytes:
        return LOG_CORRUPT
    size[0] = total
    if total > capacity:
        return LOG_SHORT
    memcpy(out, buffer_data(log, index) + place, total)
    if record_check(out, total, log.segments[slot].salt, position) < 0:
        return LOG_CORRUPT
    count(log, STAT_BUFFER_READS, 1)
    return LOG_OK

cdef int _read_device(log_t *log, uint32_t slot, uint64_t position, char *out, uint64_t capacity,
                      uint64_t *size, uint32_t flags) noexcept nogil:
    # One read as a rule; a record longer than the usual takes a second one for its rest.
    cdef uint64_t offset = position % log.segment_bytes
    cdef uint64_t first = log_read_hint(log, position), total
    cdef record_header_t header
    cdef int result
    if first > capacity:
        first = capacity
    if first > log.segment_bytes - offset:
        first = log.segment_bytes - offset
    if first < RECORD_HEADER_SIZE:
        return LOG_CORRUPT
    result = _fetch(log, slot, offset, out, first, flags)
    if result != LOG_OK:
        return result
    memcpy(&header, out, RECORD_HEADER_SIZE)
    total = RECORD_HEADER_SIZE + <uint64_t>word_size(header.word)
    if total > log.segment_bytes - offset or word_size(header.word) > log_record_bytes_max(log):
        return LOG_CORRUPT
    size[0] = total
    if total > capacity:
        return LOG_SHORT
    if total > first:
        result = _fetch(log, slot, offset + first, out + first, total - first, flags)
        if result != LOG_OK:
            return result
    if record_check(out, total, log.segments[slot].salt, position) < 0:
        return LOG_CORRUPT
    return LOG_OK

cdef int _fetch(log_t *log, uint32_t slot, uint64_t offset, char *out, uint64_t size,
                uint32_t flags) noexcept nogil:
    cdef uint64_t started = now_ns()
    cdef int64_t result = device_read(log.device, slot, offset, out, size,
                                      DEVICE_NOWAIT if flags & LOG_NOWAIT else 0)
    if result == -EAGAIN and flags & LOG_NOWAIT:
        count(log, STAT_READS_REFUSED, 1)
        return LOG_WOULD_BLOCK
    if result < 0:
        set_log_errno(<int>-result)
        count(log, STAT_READ_ERRORS, 1)
        return LOG_IO
    count(log, STAT_DEVICE_READS, 1)
    count(log, STAT_DEVICE_BYTES_READ, size)
    _latency(log.statistics.read_us, started)
    return LOG_OK

cdef inline void _latency(uint64_t *buckets, uint64_t started_ns) noexcept nogil:
    cdef uint32_t bucket = bucket_of((now_ns() - started_ns) // 1000)
    add64(&buckets[bucket if bucket < LATENCY_COUNT else LATENCY_COUNT - 1], 1)

cdef uint64_t log_read_hint(log_t *log, uint64_t position) noexcept nogil:
    cdef int64_t slot = segments_lookup(log, position // log.segment_bytes)
    cdef uint64_t largest = load32(&log.segments[slot].largest) if slot >= 0 else 0
    return largest if largest else HINT_UNKNOWN

cdef bint log_current(log_t *log, uint64_t position) noexcept nogil:
    return segments_lookup(log, position // log.segment_bytes) >= 0

cdef int log_last_errno() noexcept nogil:
    return get_log_errno()

# Live accounting ----------------------------------------------------------------------------

cdef inline uint64_t _cell(log_t *log, int64_t slot, uint64_t position) noexcept nogil:
    return slot * log.live_words * 64 + (position % log.segment_bytes) // LIVE_CELL

cdef int log_live(log_t *log, uint64_t position) noexcept nogil:
    # The count is never below the bits, whoever is killed where: a segment with a bit set must
    # not look empty.
    cdef uint64_t version = position // log.segment_bytes
    cdef int64_t slot = segments_lookup(log, version)
    cdef uint64_t cell
    if slot < 0:
        count(log, STAT_LIVE_REFUSED, 1)
        return LOG_GONE
    cell = _cell(log, slot, position)
    add32(&log.segments[slot].live_records, 1)
    if live_set(log.live, cell):
        add32(&log.segments[slot].live_records, <uint32_t>-1)
    fence_full()
    if segments_lookup(log, version) != slot:
        if live_unset(log.live, cell):
            add32(&log.segments[slot].live_records, <uint32_t>-1)
        count(log, STAT_LIVE_REFUSED, 1)
        return LOG_GONE
    return LOG_OK

cdef void log_dead(log_t *log, uint64_t position) noexcept nogil:
    cdef int64_t slot = segments_lookup(log, position // log.segment_bytes)
    if slot >= 0 and live_unset(log.live, _cell(log, slot, position)):
        add32(&log.segments[slot].live_records, <uint32_t>-1)

cdef bint log_is_live(log_t *log, uint64_t position) noexcept nogil:
    cdef int64_t slot = segments_lookup(log, position // log.segment_bytes)
    return slot >= 0 and live_test(log.live, _cell(log, slot, position))

# Writing out --------------------------------------------------------------------------------

cdef int log_write_one(log_t *log) noexcept nogil:
    cdef int64_t claimed = buffers_claim(log), written
    cdef uint32_t index
    cdef buffer_t *buffer
    cdef uint64_t version, started
    if claimed < 0 and buffers_in_state(log, BUFFER_OPEN) == log.buffer_count:
        # a small pool, and every buffer is open in some stream: one has to give
        _seal_oldest(log)
        claimed = buffers_claim(log)
    if claimed < 0:
        return LOG_NOTHING
    index = <uint32_t>claimed
    buffer = &log.buffers[index]
    version = buffer.version
    if segments_lookup(log, version) != buffer.slot:
        count(log, STAT_BUFFERS_LOST, 1)
        buffers_release(log, index)
        return LOG_OK
    started = now_ns()
    written = device_write(log.device, buffer.slot, buffer.run_offset, buffer_data(log, index),
                           buffer.length)
    if written < 0:
        _write_failed(log, index, version, <int>-written)
        return LOG_IO
    store32(&log.header.failures, 0)
    count(log, STAT_DEVICE_WRITES, 1)
    count(log, STAT_DEVICE_BYTES_WRITTEN, buffer.length)
    _latency(log.statistics.write_us, started)
    add64(&log.segments[buffer.slot].written_bytes, buffer.length)
    buffers_release(log, index)
    return LOG_OK

cdef void _seal_oldest(log_t *log) noexcept nogil:
    cdef uint32_t number, index, oldest = log.header.stream_count
    cdef uint64_t first = 0, version
    for number in range(log.header.stream_count):
        index = load32(&log.streams[number].buffer)
        if index == 0:
            continue
        version = load64(&log.buffers[index - 1].version)
        if oldest == log.header.stream_count or version < first:
            oldest, first = number, version
    if oldest < log.header.stream_count and _stream_lock(log, oldest):
        _seal_open(log, oldest)
        _stream_unlock(log, oldest)

cdef void _seal_open(log_t *log, uint32_t number) noexcept nogil:
    # The stream's lock is held. What was open for a forgotten segment is worth nothing.
    if log.streams[number].buffer == 0:
        return
    if segments_lookup(log, log.streams[number].version) < 0:
        segments_detach(log, number)
    else:
        buffers_seal(log, number)

cdef void _write_failed(log_t *log, uint32_t index, uint64_t version, int error) noexcept nogil:
    # Its records are lost, and say so: the version goes at once, the rest when the lock is had.
    cdef uint32_t slot = log.buffers[index].slot
    set_log_errno(error)
    count(log, STAT_WRITE_ERRORS, 1)
    count(log, STAT_BUFFERS_LOST, 1)
    if add32(&log.header.failures, 1) + 1 >= FAILURES_MAX:
        store32(&log.header.failed, error)
    if cas64(&log.versions[version & log.version_mask], version_entry(version, slot), 0):
        count(log, STAT_SEGMENTS_FAILED, 1)
    buffers_release(log, index)
    if segments_lock(log):
        segments_sweep(log)
        segments_unlock(log)

cdef int log_make_room(log_t *log) noexcept nogil:
    cdef int result
    for _ in range(ROOM_WAITS):
        result = log_write_one(log)
        if result != LOG_NOTHING:
            return result
        if buffers_in_state(log, BUFFER_FREE):
            return LOG_OK
        usleep(ROOM_WAIT_US)
    return LOG_BUSY

cdef void log_clock(log_t *log, int64_t now_ms) noexcept nogil:
    store64(<uint64_t *>&log.header.clock_ms, <uint64_t>now_ms)

cdef int log_seal_idle(log_t *log, int64_t now_ms, int64_t age_ms) noexcept nogil:
    # An empty buffer goes back to the pool: a stream has one only while it writes.
    cdef uint32_t number, index
    cdef int result = LOG_NOTHING
    log_clock(log, now_ms)
    for number in range(log.header.stream_count):
        index = load32(&log.streams[number].buffer)
        if index == 0 or now_ms - log.buffers[index - 1].opened_ms < age_ms:
            continue
        if not _stream_lock(log, number):
            return LOG_BUSY
        _seal_open(log, number)
        result = LOG_OK
        _stream_unlock(log, number)
    return result

cdef int log_flush(log_t *log) noexcept nogil:
    cdef int64_t now_ms = log.header.clock_ms
    cdef int result = log_seal_idle(log, now_ms, -(<int64_t>1 << 62)), waits = 0
    cdef int worst = LOG_BUSY if result == LOG_BUSY else LOG_OK
    while waits < FLUSH_WAITS:
        result = log_write_one(log)
        if result == LOG_IO:
            worst = LOG_IO
        elif result == LOG_NOTHING:
            if buffers_in_state(log, BUFFER_WRITING) + buffers_in_state(log, BUFFER_SEALED) == 0:
                return worst
            usleep(ROOM_WAIT_US * ROOM_WAITS)
            waits += 1
    return LOG_BUSY

# Reclaim ------------------------------------------------------------------------------------

cdef int _choose(log_t *log, uint32_t stream_mask, bint by_age,
                 segment_info_t *info) noexcept nogil:
    cdef segment_info_t other
    cdef uint32_t slot
    cdef bint found = False
    if not segments_lock(log):
        return LOG_BUSY
    for slot in range(log.segment_count):
        if (log.segments[slot].state != SEGMENT_SEALED
                or not (stream_mask >> log.segments[slot].stream) & 1
                or not segments_settled(log, slot)):
            continue
        segments_info(log, slot, &other)
        if not found or (other.version < info.version if by_age
                         else other.live_bytes < info.live_bytes):
            info[0] = other
            found = True
    segments_unlock(log)
    return LOG_OK if found else LOG_NOTHING

cdef int log_oldest(log_t *log, uint32_t stream_mask, segment_info_t *info) noexcept nogil:
    return _choose(log, stream_mask, True, info)

cdef int log_emptiest(log_t *log, uint32_t stream_mask, segment_info_t *info) noexcept nogil:
    return _choose(log, stream_mask, False, info)

cdef int log_segment_info(log_t *log, uint32_t slot, segment_info_t *info) noexcept nogil:
    if slot >= log.segment_count:
        return LOG_GONE
    segments_info(log, slot, info)
    return LOG_OK if info.version else LOG_GONE

cdef int log_forget(log_t *log, uint32_t slot, uint64_t version) noexcept nogil:
    # A segment that a stream appends to is left by the stream first, with its lock held.
    cdef uint32_t number
    cdef int result
    if slot >= log.segment_count or segments_lookup(log, version) != slot:
        return LOG_GONE
    number = log.segments[slot].stream
    if load32(&log.segments[slot].state) != SEGMENT_OPEN:
        return _forget(log, slot, version)
    if not _stream_lock(log, number):
        return LOG_BUSY
    result = _forget(log, slot, version)
    if result == LOG_OK and log.streams[number].segment == slot + 1:
        result = segments_detach(log, number)
    _stream_unlock(log, number)
    return result

cdef int _forget(log_t *log, uint32_t slot, uint64_t version) noexcept nogil:
    if not segments_lock(log):
        return LOG_BUSY
    if segments_lookup(log, version) != slot:
        segments_unlock(log)
        return LOG_GONE
    segments_retire(log, slot, STAT_SEGMENTS_FORGOTTEN if load32(
        &log.segments[slot].live_records) else STAT_SEGMENTS_FREED)
    segments_unlock(log)
    return LOG_OK

cdef void log_stream_leaves(log_t *log, uint32_t stream, uint32_t count) noexcept nogil:
    store32(&log.streams[stream].leaves, count)

cdef uint32_t log_segments_free(log_t *log) noexcept nogil:
    return load32(&log.header.segments_free)

cdef uint32_t log_segments_total(log_t *log) noexcept nogil:
    return log.segment_count

cdef uint64_t log_segment_bytes(log_t *log) noexcept nogil:
    return log.segment_bytes

cdef int log_read_segment(log_t *log, uint32_t slot, uint64_t version,
                          char *image) noexcept nogil:
    cdef uint64_t filled
    cdef segment_header_t header
    cdef int result
    if slot >= log.segment_count or segments_lookup(log, version) != slot:
        return LOG_GONE
    filled = tail_offset(load64(&log.segments[slot].tail))
    if (filled > log.segment_bytes or load32(&log.segments[slot].state) != SEGMENT_SEALED
            or buffers_pending(log, version)):
        return LOG_NOTHING
    result = _fetch(log, slot, 0, image, filled, 0)
    if segments_lookup(log, version) != slot:
        return LOG_GONE
    if result != LOG_OK:
        return result
    memset(image + filled, 0, log.segment_bytes - filled)
    memcpy(&header, image, SEGMENT_HEADER_SIZE)
    if not segment_header_valid(&header, log.header.uuid, log.segment_bytes, slot):
        # its records are still checked one by one, with the salt of the segment table
        count(log, STAT_CHECKSUM_FAILURES, 1)
    return LOG_OK

cdef int log_next(log_t *log, uint64_t version, uint32_t slot, const char *image,
                  uint64_t *cursor, uint64_t *position, uint8_t *kind, const char **payload,
                  uint32_t *size) noexcept nogil:
    cdef walk_t walk
    cdef bint found
    if slot >= log.segment_count or segments_lookup(log, version) != slot:
        return LOG_GONE
    walk.image = image
    walk.size = tail_offset(load64(&log.segments[slot].tail))
    walk.live = log.live + slot * log.live_words
    walk.segment_bytes = log.segment_bytes
    walk.version = version
    walk.slot = slot
    walk.salt = log.segments[slot].salt
    walk.cursor = cursor[0]
    walk.damaged = 0
    if walk.size > log.segment_bytes:
        return LOG_GONE
    found = walk_next(&walk, position, kind, payload, size)
    cursor[0] = walk.cursor
    if walk.damaged:
        count(log, STAT_CHECKSUM_FAILURES, walk.damaged)
    return LOG_OK if found else LOG_NOTHING
