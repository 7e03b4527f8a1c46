"""An ordered, durable stream: append, reserve, group, flush and sync, in one process.

Owns the buffers and positions of one stream over one device; its segments are chain.pyx's, what
recovery reads is replay.pyx's. A buffer is one run of fixed size inside a segment; records tile it
and a pad record fills what is left, so that a hole is always a tear and never a matter of taste.

Promises: a record is readable from the moment its append returns; `stable` moves over contiguous
records only and covers only what an fdatasync that started after their writes has returned for;
after a failed write or sync nothing is appended or called durable again, reads go on.

    buffer   open --(does not fit)--> sealed --(written to its end)--> given back, oldest first

A flush writes what is complete, up to the first open reservation, as whole blocks; the last block
is written from a copy and again when more is behind it. One thread writes a buffer at a time.
Any thread may call, without the GIL. Not usable in a forked child.
"""
from libc.errno cimport EDQUOT, ENOMEM, ENOSPC, ETIMEDOUT
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memcpy, memset

from siltstone.log.atomics cimport add64
from siltstone.log.chain cimport (CHAIN_FULL, CHAIN_NOT_READY, chain_find, chain_open,
                                  chain_prepare, chain_run_header, chain_wants_preparing)
from siltstone.log.checksum cimport crc32c
from siltstone.log.device_io cimport (device_buffered, device_sync, device_t, device_write,
                                      device_write_back)
from siltstone.log.format cimport (RECORD_HEADER_SIZE, RECORD_PAD, RECORD_SIZE_MIN, RUN_HEADER_SIZE,
                                   SEGMENT_HEADER_SIZE, SLOT_NONE, record_bytes, record_checksum,
                                   record_header_t, record_word)
from siltstone.log.latency cimport latency_add, now_ns
from siltstone.log.log cimport (LOG_BUSY, LOG_FAILED, LOG_GONE, LOG_NO_SEGMENT, LOG_OK,
                                LOG_TOO_LARGE, part_t)
from siltstone.log.pthread cimport (mutex_init_spinning, pthread_cond_broadcast,
                                    pthread_cond_destroy, pthread_cond_signal, pthread_cond_t,
                                    pthread_cond_wait, pthread_mutex_destroy, pthread_mutex_lock,
                                    pthread_mutex_t, pthread_mutex_unlock)
from siltstone.log.workers cimport job_t, pool_submit, pool_t

cdef extern from *:
    """
    #include <errno.h>
    #include <pthread.h>
    #include <stdint.h>
    #include <stdlib.h>
    #include <time.h>
    static void silt_cond_monotonic(pthread_cond_t *condition) {
        pthread_condattr_t attributes;
        pthread_condattr_init(&attributes);
        pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
        pthread_cond_init(condition, &attributes);
        pthread_condattr_destroy(&attributes);
    }
    static int silt_cond_wait_until(pthread_cond_t *condition, pthread_mutex_t *lock,
                                    uint64_t deadline_ns) {
        struct timespec end = {(time_t)(deadline_ns / 1000000000u),
                               (long)(deadline_ns % 1000000000u)};
        return pthread_cond_timedwait(condition, lock, &end);
    }
    static char *silt_blocks(uint64_t size) {
        void *memory = NULL;
        return posix_memalign(&memory, 4096, size) == 0 ? (char *)memory : NULL;
    }
    """
    void cond_monotonic "silt_cond_monotonic"(pthread_cond_t *) noexcept nogil
    int cond_wait_until "silt_cond_wait_until"(pthread_cond_t *, pthread_mutex_t *,
                                               uint64_t) noexcept nogil
    char *blocks "silt_blocks"(uint64_t size) noexcept nogil

cdef enum:
    BLOCK = 4096
    WAIT = -1                   # inner result: something changed, look again
    # Rounds that a leader does for others, before one of them is woken to lead. Not tuned: with
    # this and wake-ups by round, 8 threads on 2 cores (one record each, real disk) took 0.66 to
    # 0.69 of a core instead of 0.84 at about the same rate (docs/decisions/0065).
    LEAD_MORE = 4
    START_MIN = 2 * BLOCK       # less is not worth a call of its own
    SIDES = 4                   # rounds whose waiters are told apart


# Life --------------------------------------------------------------------------------------------


cdef int ordered_init(ordered_t *stream, device_t *device, pool_t *pool, uint32_t buffer_bytes,
                      uint32_t buffer_count) noexcept nogil:
    """An empty stream without segments. 0 or -ENOMEM; ordered_free() in both cases."""
    cdef uint32_t number
    memset(stream, 0, sizeof(ordered_t))
    mutex_init_spinning(&stream.lock)
    cond_monotonic(&stream.changed)
    for number in range(SIDES):
        cond_monotonic(&stream.synced[number])
    stream.device = device
    stream.pool = pool
    stream.segment_bytes = device.segment_bytes
    stream.slot_limit = stream.slots_max = device.segment_count
    stream.buffer_bytes = buffer_bytes
    stream.buffer_count = buffer_count
    stream.oldest = stream.next = 1         # 0 means "no buffer" in the table of reservations
    stream.ahead[0] = stream.ahead[1] = SLOT_NONE
    stream.prepare_job.run = prepare_job
    stream.prepare_job.owner = <void *>stream
    for number in range(buffer_count):
        stream.buffers[number].data = blocks(buffer_bytes)
        stream.buffers[number].tail = blocks(BLOCK)
        stream.buffers[number].job.run = write_job
        stream.buffers[number].job.owner = <void *>stream
        if stream.buffers[number].data == NULL or stream.buffers[number].tail == NULL:
            return -ENOMEM
    return 0


cdef void ordered_stop(ordered_t *stream) noexcept nogil:
    """No more appends; returns when no job of this stream is in the pool any more."""
    cdef uint32_t number
    cdef bint busy = True
    pthread_mutex_lock(&stream.lock)
    stream.closing = 1
    while busy:
        busy = stream.prepare_queued or stream.syncing
        for number in range(stream.buffer_count):
            busy = busy or stream.buffers[number].queued or stream.buffers[number].writing
        if busy:
            pthread_cond_wait(&stream.changed, &stream.lock)
    pthread_mutex_unlock(&stream.lock)


cdef void ordered_free(ordered_t *stream) noexcept nogil:
    cdef uint32_t number
    for number in range(stream.buffer_count):
        free(stream.buffers[number].data)
        free(stream.buffers[number].tail)
    free(stream.segments)
    free(stream.table)
    pthread_cond_destroy(&stream.changed)
    for number in range(SIDES):
        pthread_cond_destroy(&stream.synced[number])
    pthread_mutex_destroy(&stream.lock)


# Positions ---------------------------------------------------------------------------------------


cdef uint32_t complete_to(ordered_t *stream, ordered_buffer_t *buffer) noexcept nogil:
    """Up to the first open reservation; a sealed buffer's unused end belongs to it."""
    cdef uint32_t end = stream.buffer_bytes if buffer.sealed else buffer.filled
    cdef uint32_t entry
    if buffer.reservations:
        for entry in range(ORDERED_RESERVATIONS_MAX):
            if stream.open[entry].sequence == buffer.sequence:
                end = min(end, stream.open[entry].offset)
    return end


cdef uint64_t contiguous(ordered_t *stream, bint on_device) noexcept nogil:
    """End of the records that are complete (or written) without a gap."""
    cdef uint64_t sequence, position = stream.end
    cdef ordered_buffer_t *buffer
    cdef uint32_t reached
    for sequence in range(stream.oldest, stream.next):
        buffer = buffer_of(stream, sequence)
        reached = buffer.written if on_device else complete_to(stream, buffer)
        position = buffer.base + reached
        if not buffer.sealed or reached < stream.buffer_bytes:
            break
    return position


cdef void fail(ordered_t *stream, int number) noexcept nogil:
    cdef uint32_t side
    if stream.failed == 0:
        stream.failed = number
    pthread_cond_broadcast(&stream.changed)
    for side in range(SIDES):
        pthread_cond_broadcast(&stream.synced[side])


# Writing buffers ---------------------------------------------------------------------------------


cdef void give_back(ordered_t *stream) noexcept nogil:
    cdef ordered_buffer_t *buffer
    while stream.oldest < stream.next:
        buffer = buffer_of(stream, stream.oldest)
        if not buffer.sealed or buffer.writing or buffer.written < stream.buffer_bytes:
            break
        stream.oldest += 1


cdef int64_t write_range(ordered_t *stream, ordered_buffer_t *buffer, uint32_t start,
                         uint32_t whole, uint32_t end) noexcept nogil:
    cdef int64_t put = 0
    if whole > start:
        put = device_write(stream.device, buffer.slot, buffer.offset + start, buffer.data + start,
                           whole - start)
    if put >= 0 and end > whole:
        put = device_write(stream.device, buffer.slot, buffer.offset + whole, buffer.tail, BLOCK)
    return put


cdef int write_to(ordered_t *stream, ordered_buffer_t *buffer, uint32_t end) noexcept nogil:
    """Nobody else writes it, and there is something to write. Lock held; dropped meanwhile."""
    cdef uint32_t start = buffer.written - buffer.written % BLOCK, whole = end - end % BLOCK
    cdef int64_t put
    if end > whole:
        memcpy(buffer.tail, buffer.data + whole, end - whole)
        memset(buffer.tail + (end - whole), 0, BLOCK - (end - whole))
    add64(&stream.counters.rewritten_bytes, buffer.written - start)
    buffer.writing = 1
    pthread_mutex_unlock(&stream.lock)
    put = write_range(stream, buffer, start, whole, end)
    pthread_mutex_lock(&stream.lock)
    buffer.writing = 0
    if put < 0:
        fail(stream, <int>-put)
        return LOG_FAILED
    buffer.written = end
    give_back(stream)
    pthread_cond_broadcast(&stream.changed)
    return LOG_OK


cdef int write_buffer(ordered_t *stream, uint64_t sequence) noexcept nogil:
    """Bring the device up to what is complete. Lock held; dropped while writing."""
    cdef ordered_buffer_t *buffer = buffer_of(stream, sequence)
    cdef uint32_t end
    while buffer.writing and buffer.sequence == sequence and not stream.failed:
        pthread_cond_wait(&stream.changed, &stream.lock)
    if stream.failed:
        return LOG_FAILED
    if buffer.sequence != sequence or sequence < stream.oldest:
        return LOG_OK
    end = complete_to(stream, buffer)
    return write_to(stream, buffer, end) if end > buffer.written else LOG_OK


cdef int write_all(ordered_t *stream) noexcept nogil:
    cdef uint64_t sequence = stream.oldest, end = stream.next
    cdef int result
    if stream.align_commits and end > sequence:
        align_end(stream, buffer_of(stream, end - 1))
    while sequence < end:
        result = write_buffer(stream, sequence)
        if result != LOG_OK:
            return result
        sequence = max(sequence + 1, stream.oldest)
    return LOG_OK


cdef void write_job(job_t *job) noexcept nogil:
    """A sealed buffer's write on a worker; nothing is left to do when a sync was quicker."""
    cdef ordered_t *stream = <ordered_t *>job.owner
    cdef ordered_buffer_t *buffer
    cdef uint32_t number
    pthread_mutex_lock(&stream.lock)
    for number in range(stream.buffer_count):
        buffer = &stream.buffers[number]
        if &buffer.job == job:
            if buffer.sealed and not buffer.writing:
                write_buffer(stream, buffer.sequence)
            buffer.queued = 0
    pthread_cond_broadcast(&stream.changed)
    pthread_mutex_unlock(&stream.lock)


cdef void prepare_job(job_t *job) noexcept nogil:
    cdef ordered_t *stream = <ordered_t *>job.owner
    while chain_prepare(stream) == 0:
        pthread_mutex_lock(&stream.lock)
        if not chain_wants_preparing(stream):
            pthread_mutex_unlock(&stream.lock)
            break
        pthread_mutex_unlock(&stream.lock)
    pthread_mutex_lock(&stream.lock)
    stream.prepare_queued = 0
    pthread_cond_broadcast(&stream.changed)
    pthread_mutex_unlock(&stream.lock)


cdef void hand_over(ordered_t *stream) noexcept nogil:
    """Give sealed buffers and the zeroing of the next segments to the workers. Lock not held."""
    cdef uint64_t sequence
    cdef ordered_buffer_t *buffer
    cdef job_t *jobs[ORDERED_BUFFERS_MAX + 1]
    cdef uint32_t count = 0, number
    if stream.pool == NULL:
        return
    pthread_mutex_lock(&stream.lock)
    for sequence in range(stream.oldest, stream.next):
        buffer = buffer_of(stream, sequence)
        if buffer.sealed and not buffer.queued and not buffer.reservations and not stream.closing:
            buffer.queued = 1
            jobs[count] = &buffer.job
            count += 1
    if not stream.prepare_queued and not stream.closing and chain_wants_preparing(stream):
        stream.prepare_queued = 1
        jobs[count] = &stream.prepare_job
        count += 1
    pthread_mutex_unlock(&stream.lock)
    for number in range(count):
        if pool_submit(stream.pool, jobs[number]) != 0:
            withdraw(stream, jobs[number])


cdef void withdraw(ordered_t *stream, job_t *job) noexcept nogil:
    """The pool is full or closed: whoever needs the work done does it."""
    cdef uint32_t number
    pthread_mutex_lock(&stream.lock)
    if job == &stream.prepare_job:
        stream.prepare_queued = 0
    for number in range(stream.buffer_count):
        if &stream.buffers[number].job == job:
            stream.buffers[number].queued = 0
    pthread_mutex_unlock(&stream.lock)


# Claiming room -----------------------------------------------------------------------------------


cdef void put_record(ordered_buffer_t *buffer, uint32_t offset, uint8_t kind, uint32_t size,
                     uint32_t body_crc, uint32_t *checksum) noexcept nogil:
    """The header before a payload that is in place, and the padding behind it."""
    cdef record_header_t header
    cdef uint32_t end = offset + <uint32_t>record_bytes(size)
    header.word = record_word(kind, size)
    header.checksum = record_checksum(buffer.salt, buffer.base + offset, header.word, body_crc)
    memcpy(buffer.data + offset, &header, RECORD_HEADER_SIZE)
    memset(buffer.data + offset + RECORD_HEADER_SIZE + size, 0,
           end - offset - RECORD_HEADER_SIZE - size)
    checksum[0] = header.checksum


cdef void put_pad(ordered_t *stream, ordered_buffer_t *buffer, uint32_t size) noexcept nogil:
    """A pad record of `size` bytes, header included."""
    cdef uint32_t checksum
    cdef char *payload = buffer.data + buffer.filled + RECORD_HEADER_SIZE
    memset(payload, 0, size - RECORD_HEADER_SIZE)
    put_record(buffer, buffer.filled, RECORD_PAD, size - RECORD_HEADER_SIZE,
               crc32c(0, payload, size - RECORD_HEADER_SIZE), &checksum)
    add64(&stream.counters.pad_bytes, size)
    buffer.filled += size


cdef void seal(ordered_t *stream, ordered_buffer_t *buffer) noexcept nogil:
    cdef uint32_t gap = stream.buffer_bytes - buffer.filled
    if gap >= RECORD_SIZE_MIN:
        put_pad(stream, buffer, gap)
    else:
        memset(buffer.data + buffer.filled, 0, gap)
        add64(&stream.counters.pad_bytes, gap)
    buffer.sealed = 1
    stream.end = buffer.base + stream.buffer_bytes
    note_filled(stream, buffer, stream.buffer_bytes)
    give_back(stream)       # a sync may have written it to its very end already


cdef void note_filled(ordered_t *stream, ordered_buffer_t *buffer, uint32_t end) noexcept nogil:
    stream.segments[buffer.slot].filled = buffer.offset + end


cdef void align_end(ordered_t *stream, ordered_buffer_t *buffer) noexcept nogil:
    """`align_commits`: what follows starts in a new block, so that none is written twice."""
    cdef uint32_t gap
    if buffer.sealed or buffer.filled <= buffer.written or buffer.filled % BLOCK == 0:
        return
    gap = BLOCK - buffer.filled % BLOCK
    if gap < RECORD_SIZE_MIN:
        gap += BLOCK
    if buffer.filled + gap + RECORD_SIZE_MIN > stream.buffer_bytes:
        seal(stream, buffer)
        return
    put_pad(stream, buffer, gap)
    stream.end = buffer.base + buffer.filled
    note_filled(stream, buffer, buffer.filled)


cdef int make_room(ordered_t *stream, uint64_t deadline_ns) noexcept nogil:
    """All buffers are in use: write the oldest oneself, or wait for who does. Lock held."""
    cdef ordered_buffer_t *buffer = buffer_of(stream, stream.oldest)
    add64(&stream.counters.buffer_waits, 1)
    if not buffer.writing and complete_to(stream, buffer) > buffer.written:
        return write_buffer(stream, stream.oldest)
    if cond_wait_until(&stream.changed, &stream.lock, deadline_ns) == ETIMEDOUT:
        add64(&stream.counters.busy, 1)
        return LOG_BUSY
    return LOG_OK


cdef int prepare_now(ordered_t *stream, uint64_t deadline_ns) noexcept nogil:
    """The next segment has no blocks yet. Lock held; dropped meanwhile."""
    cdef int result
    pthread_mutex_unlock(&stream.lock)
    result = chain_prepare(stream)
    pthread_mutex_lock(&stream.lock)
    if result == -ENOSPC or result == -EDQUOT:
        return LOG_NO_SEGMENT       # nothing is lost: space may come back
    if result < 0:
        fail(stream, -result)
        return LOG_FAILED
    if result == 1 and stream.zeroing:
        if cond_wait_until(&stream.changed, &stream.lock, deadline_ns) == ETIMEDOUT:
            return LOG_BUSY
    return LOG_OK


cdef int open_buffer(ordered_t *stream, uint32_t flags, uint64_t deadline_ns) noexcept nogil:
    """A new current buffer: in the same segment, or in the next. WAIT: the lock was dropped."""
    cdef ordered_buffer_t *buffer
    cdef ordered_buffer_t *last = NULL
    cdef uint64_t offset = stream.segment_bytes
    cdef int result
    if stream.next - stream.oldest >= stream.buffer_count:
        result = make_room(stream, deadline_ns)
        return WAIT if result == LOG_OK else result
    buffer = buffer_of(stream, stream.next)
    if buffer.queued:       # its last life's job has not run yet
        if cond_wait_until(&stream.changed, &stream.lock, deadline_ns) == ETIMEDOUT:
            return LOG_BUSY
        return WAIT
    if stream.next > 1:
        last = buffer_of(stream, stream.next - 1)
        offset = last.offset + stream.buffer_bytes
    if last != NULL and offset < stream.segment_bytes:
        buffer.slot = last.slot
        buffer.salt = last.salt
        buffer.base = last.base + stream.buffer_bytes
        buffer.offset = <uint32_t>offset
        chain_run_header(stream, buffer)
    else:
        result = chain_open(stream, buffer, flags)
        if result == CHAIN_NOT_READY:
            result = prepare_now(stream, deadline_ns)
            return WAIT if result == LOG_OK else result
        if result == CHAIN_FULL:
            return LOG_NO_SEGMENT
    buffer.sequence = stream.next
    buffer.written = buffer.sealed = buffer.writing = buffer.reservations = 0
    stream.next += 1
    stream.end = buffer.base + buffer.filled
    return LOG_OK


cdef int claim(ordered_t *stream, uint32_t bytes, uint32_t flags,
               ordered_buffer_t **found) noexcept nogil:
    """A buffer with room for `bytes` at its end. Lock held; may be dropped and taken again."""
    cdef uint64_t deadline_ns = 0      # asking the clock costs as much as a small append
    cdef ordered_buffer_t *buffer
    cdef int result
    while True:
        if stream.failed or stream.closing:
            return LOG_FAILED
        if stream.next > stream.oldest:
            buffer = buffer_of(stream, stream.next - 1)
            if not buffer.sealed and buffer.filled + bytes <= stream.buffer_bytes:
                found[0] = buffer
                return LOG_OK
            if not buffer.sealed:
                seal(stream, buffer)
        if deadline_ns == 0:
            deadline_ns = now_ns() + <uint64_t>stream.wait_ms * 1000000
        result = open_buffer(stream, flags, deadline_ns)
        if result != LOG_OK and result != WAIT:
            return result


cdef inline void claimed(ordered_t *stream, ordered_buffer_t *buffer, uint8_t kind,
                         uint32_t bytes) noexcept nogil:
    cdef ordered_segment_t *segment = &stream.segments[buffer.slot]
    buffer.filled += bytes
    stream.end = buffer.base + buffer.filled
    segment.filled = buffer.offset + buffer.filled
    segment.records += 1
    if (kind & ~ORDERED_GROUPED) <= ORDERED_KIND_MAX:
        segment.live_bytes += bytes


cdef int ordered_roll(ordered_t *stream) noexcept nogil:
    """Its end is filled with pads: a hole would be the end of the stream for who reads it."""
    cdef uint64_t deadline_ns = now_ns() + <uint64_t>stream.wait_ms * 1000000, version
    cdef ordered_buffer_t *last
    cdef int result = LOG_FAILED if stream.failed else LOG_OK
    pthread_mutex_lock(&stream.lock)
    version = stream.version
    while stream.next > 1 and stream.version == version and (result == LOG_OK or result == WAIT):
        last = buffer_of(stream, stream.next - 1)
        if stream.next > stream.oldest and not last.sealed:
            seal(stream, last)
        if last.offset + stream.buffer_bytes >= stream.segment_bytes:
            break
        result = open_buffer(stream, 0, deadline_ns)
    pthread_mutex_unlock(&stream.lock)
    hand_over(stream)
    return LOG_OK if result == WAIT else result


# Appending ---------------------------------------------------------------------------------------


cdef uint32_t ordered_payload_max(ordered_t *stream) noexcept nogil:
    # Fits also behind both headers of a segment's first run.
    return stream.buffer_bytes - SEGMENT_HEADER_SIZE - RUN_HEADER_SIZE - RECORD_HEADER_SIZE


cdef int append_locked(ordered_t *stream, uint8_t kind, const part_t *parts, uint32_t count,
                       uint32_t size, uint32_t body_crc, uint32_t flags, uint64_t *position,
                       uint32_t *checksum) noexcept nogil:
    cdef uint32_t bytes = <uint32_t>record_bytes(size), offset, number
    cdef ordered_buffer_t *buffer = NULL
    cdef char *to
    cdef int result = claim(stream, bytes, flags, &buffer)
    if result != LOG_OK:
        return result
    offset = buffer.filled
    to = buffer.data + offset + RECORD_HEADER_SIZE
    for number in range(count):
        memcpy(to, parts[number].data, parts[number].size)
        to += parts[number].size
    put_record(buffer, offset, kind, size, body_crc, checksum)
    position[0] = buffer.base + offset
    claimed(stream, buffer, kind, bytes)
    add64(&stream.counters.records, 1)
    add64(&stream.counters.payload_bytes, size)
    return LOG_OK


cdef int append(ordered_t *stream, group_t *group, uint8_t kind, const part_t *parts,
                uint32_t count, uint32_t flags, uint64_t *position, uint64_t *end) noexcept nogil:
    cdef uint64_t size = 0, sequence
    cdef uint32_t body_crc = 0, number, checksum = 0
    cdef int result
    for number in range(count):
        size += parts[number].size
        body_crc = crc32c(body_crc, parts[number].data, parts[number].size)
    if size > ordered_payload_max(stream):
        return LOG_TOO_LARGE
    pthread_mutex_lock(&stream.lock)
    sequence = stream.next
    result = append_locked(stream, kind, parts, count, <uint32_t>size, body_crc, flags, position,
                           &checksum)
    if result == LOG_OK:
        end[0] = position[0] + record_bytes(size)
        if group != NULL:
            if group.id == 0:
                group.id = position[0]
                stream.groups[group.entry - 1] = group.id
            group.records += 1
            group.crc = crc32c(group.crc, &checksum, 4)
    sequence = stream.next - sequence
    pthread_mutex_unlock(&stream.lock)
    if sequence:            # a buffer was sealed
        hand_over(stream)
    return result


cdef int ordered_append(ordered_t *stream, uint8_t kind, const part_t *parts, uint32_t count,
                        uint32_t flags, uint64_t *position) noexcept nogil:
    cdef uint64_t end
    return append(stream, NULL, kind, parts, count, flags, position, &end)


# Groups ------------------------------------------------------------------------------------------


cdef int group_enter(ordered_t *stream, group_t *group) noexcept nogil:
    """A place in the list of open groups, which says how far back a replay must start."""
    cdef uint32_t entry
    cdef int result = LOG_BUSY
    pthread_mutex_lock(&stream.lock)
    for entry in range(ORDERED_GROUPS_MAX):
        if stream.groups[entry] == 0:
            stream.groups[entry] = GROUP_ENTERED
            group.entry = entry + 1
            result = LOG_OK
            break
    if result != LOG_OK:
        add64(&stream.counters.busy, 1)
    pthread_mutex_unlock(&stream.lock)
    return result


cdef void ordered_group_abandon(ordered_t *stream, group_t *group) noexcept nogil:
    if group.entry:
        pthread_mutex_lock(&stream.lock)
        stream.groups[group.entry - 1] = 0
        pthread_mutex_unlock(&stream.lock)
    memset(group, 0, sizeof(group_t))


cdef int ordered_group_append(ordered_t *stream, group_t *group, uint8_t kind,
                              const part_t *parts, uint32_t count, uint32_t flags,
                              uint64_t *position) noexcept nogil:
    cdef part_t with_id[9]
    cdef uint64_t end
    cdef uint32_t number
    cdef int result
    if count > 8:
        return LOG_TOO_LARGE
    if group.entry == 0:
        result = group_enter(stream, group)
        if result != LOG_OK:
            return result
    with_id[0].data = &group.id
    with_id[0].size = GROUP_ID_SIZE
    for number in range(count):
        with_id[number + 1] = parts[number]
    return append(stream, group, kind | ORDERED_GROUPED, with_id, count + 1, flags, position, &end)


cdef int ordered_group_commit(ordered_t *stream, group_t *group, const part_t *extra,
                              uint32_t flags, uint64_t *position, uint64_t *end) noexcept nogil:
    cdef part_t parts[2]
    cdef char mark[COMMIT_SIZE]
    cdef int result
    memcpy(mark, &group.id, 8)
    memcpy(mark + 8, &group.records, 4)
    memcpy(mark + 8 + 4, &group.crc, 4)
    parts[0].data = mark
    parts[0].size = COMMIT_SIZE
    if extra != NULL:
        parts[1] = extra[0]
    result = append(stream, NULL, ORDERED_COMMIT, parts, 1 if extra == NULL else 2, flags,
                    position, end)
    if result == LOG_OK:
        ordered_group_abandon(stream, group)
    return result


# Reservations ------------------------------------------------------------------------------------


cdef int ordered_reserve(ordered_t *stream, uint8_t kind, uint32_t size, uint32_t flags,
                         reservation_t *reservation) noexcept nogil:
    cdef ordered_buffer_t *buffer = NULL
    cdef uint32_t entry
    cdef uint64_t sequence
    cdef int result = LOG_BUSY
    if size > ordered_payload_max(stream):
        return LOG_TOO_LARGE
    pthread_mutex_lock(&stream.lock)
    sequence = stream.next
    result = claim(stream, <uint32_t>record_bytes(size), flags, &buffer)
    if result == LOG_OK:
        result = LOG_BUSY
        for entry in range(ORDERED_RESERVATIONS_MAX):
            if stream.open[entry].sequence == 0:
                stream.open[entry].sequence = buffer.sequence
                stream.open[entry].offset = buffer.filled
                reservation.position = buffer.base + buffer.filled
                reservation.payload = buffer.data + buffer.filled + RECORD_HEADER_SIZE
                reservation.size = size
                reservation.index = entry
                reservation.kind = kind
                buffer.reservations += 1
                claimed(stream, buffer, kind, <uint32_t>record_bytes(size))
                result = LOG_OK
                break
        if result != LOG_OK:
            add64(&stream.counters.busy, 1)
    sequence = stream.next - sequence
    pthread_mutex_unlock(&stream.lock)
    if sequence:
        hand_over(stream)
    return result


cdef void settle(ordered_t *stream, reservation_t *reservation, uint8_t kind) noexcept nogil:
    """The buffer cannot go away: it is not written to its end while a reservation is open."""
    cdef open_reservation_t *entry = &stream.open[reservation.index]
    cdef ordered_buffer_t *buffer = buffer_of(stream, entry.sequence)
    cdef uint32_t body_crc = crc32c(0, reservation.payload, reservation.size), checksum
    cdef bint sealed
    put_record(buffer, entry.offset, kind, reservation.size, body_crc, &checksum)
    pthread_mutex_lock(&stream.lock)
    if kind == RECORD_PAD:
        stream.segments[buffer.slot].live_bytes -= record_bytes(reservation.size)
    entry.sequence = 0
    buffer.reservations -= 1
    sealed = buffer.sealed and buffer.reservations == 0
    pthread_cond_broadcast(&stream.changed)
    pthread_mutex_unlock(&stream.lock)
    if sealed:
        hand_over(stream)


cdef void ordered_complete(ordered_t *stream, reservation_t *reservation) noexcept nogil:
    add64(&stream.counters.records, 1)
    add64(&stream.counters.payload_bytes, reservation.size)
    settle(stream, reservation, reservation.kind)


cdef void ordered_abort(ordered_t *stream, reservation_t *reservation) noexcept nogil:
    """The room stays taken, by a pad record: told apart from garbage, never shown."""
    memset(reservation.payload, 0, reservation.size)
    add64(&stream.counters.aborts, 1)
    add64(&stream.counters.pad_bytes, record_bytes(reservation.size))
    settle(stream, reservation, RECORD_PAD)


# Flush and sync ----------------------------------------------------------------------------------


cdef int ordered_flush(ordered_t *stream) noexcept nogil:
    cdef int result
    pthread_mutex_lock(&stream.lock)
    result = LOG_FAILED if stream.failed else write_all(stream)
    pthread_mutex_unlock(&stream.lock)
    return result


cdef void start_buffer(ordered_t *stream, ordered_buffer_t *buffer) noexcept nogil:
    """Lock held; dropped while writing."""
    cdef uint32_t start = buffer.written - buffer.written % BLOCK, slot = buffer.slot
    cdef uint32_t end = complete_to(stream, buffer), offset = buffer.offset
    if buffer.writing or end < start + START_MIN or write_to(stream, buffer, end) != LOG_OK:
        return
    pthread_mutex_unlock(&stream.lock)
    device_write_back(stream.device, slot, <uint64_t>offset + start, end - start)
    pthread_mutex_lock(&stream.lock)


cdef void ordered_start(ordered_t *stream) noexcept nogil:
    cdef uint64_t sequence
    if not device_buffered(stream.device):
        return
    pthread_mutex_lock(&stream.lock)
    sequence = stream.oldest
    while sequence < stream.next and not stream.failed and not stream.syncing:
        start_buffer(stream, buffer_of(stream, sequence))
        sequence = max(sequence + 1, stream.oldest)
    pthread_mutex_unlock(&stream.lock)


cdef int sync_round(ordered_t *stream) noexcept nogil:
    """One leader's step: write, then one fdatasync, which covers what was written before it."""
    cdef uint64_t reached
    cdef int result
    stream.syncing = 1
    stream.reaching = <uint64_t>-1      # not known yet: it may cover whoever comes now
    result = write_all(stream)
    if result == LOG_OK:
        reached = stream.reaching = contiguous(stream, True)
        pthread_mutex_unlock(&stream.lock)
        result = device_sync(stream.device)
        pthread_mutex_lock(&stream.lock)
        add64(&stream.counters.syncs, 1)
        if result < 0:
            fail(stream, -result)
            result = LOG_FAILED
        elif reached > stream.stable:
            stream.stable = reached
    stream.syncing = 0
    stream.rounds += 1
    # Whom it covered: one, who wakes the next, so that they do not run into each other; and
    # whoever of the round before is on the way still.
    pthread_cond_signal(&stream.synced[(stream.rounds - 1) % SIDES])
    pthread_cond_broadcast(&stream.synced[(stream.rounds - 2) % SIDES])
    pthread_cond_broadcast(&stream.changed)
    return result


cdef void lead_on(ordered_t *stream) noexcept nogil:
    """Who came too late for a round gets one at once, by who is awake: see LEAD_MORE."""
    cdef uint32_t more
    for more in range(LEAD_MORE):
        if (stream.failed or stream.waiting[stream.rounds % SIDES] == 0
                or contiguous(stream, False) <= stream.stable):
            break
        sync_round(stream)      # should it fail, those who wait for it are told
    pthread_cond_signal(&stream.synced[stream.rounds % SIDES])      # one of them leads the next


cdef int ordered_sync(ordered_t *stream, uint64_t target) noexcept nogil:
    cdef uint64_t started_ns = now_ns()
    cdef uint64_t deadline_ns = started_ns + <uint64_t>stream.wait_ms * 1000000
    cdef bint led = False
    cdef uint32_t side
    cdef int result = LOG_OK
    pthread_mutex_lock(&stream.lock)
    if target == 0 or target > stream.end:
        target = stream.end
    while result == LOG_OK:
        if stream.failed:
            result = LOG_FAILED
        elif stream.stable >= target:
            break
        elif stream.syncing:
            # Who came too late for this round waits for the next one: nobody is woken in vain.
            side = (stream.rounds + (target > stream.reaching)) % SIDES
            stream.waiting[side] += 1
            pthread_cond_wait(&stream.synced[side], &stream.lock)
            stream.waiting[side] -= 1
            if stream.stable >= target:
                pthread_cond_signal(&stream.synced[side])
        elif contiguous(stream, False) > stream.stable:
            led = True
            result = sync_round(stream)
        else:                       # an older reservation is still open
            # Each waits for itself: who would join the next round, and who was in the last one.
            pthread_cond_broadcast(&stream.synced[stream.rounds % SIDES])
            pthread_cond_broadcast(&stream.synced[(stream.rounds - 1) % SIDES])
            if cond_wait_until(&stream.changed, &stream.lock, deadline_ns) == ETIMEDOUT:
                result = LOG_BUSY
                add64(&stream.counters.busy, 1)
    if led:
        lead_on(stream)
    add64(&stream.counters.sync_calls, 1)
    if result == LOG_OK and not led:
        add64(&stream.counters.sync_shared, 1)
    pthread_mutex_unlock(&stream.lock)
    latency_add(&stream.counters.sync_latency, started_ns)
    return result


cdef uint64_t ordered_written(ordered_t *stream) noexcept nogil:
    cdef uint64_t position
    pthread_mutex_lock(&stream.lock)
    position = contiguous(stream, True)
    pthread_mutex_unlock(&stream.lock)
    return position


cdef uint64_t ordered_stable(ordered_t *stream) noexcept nogil:
    cdef uint64_t position
    pthread_mutex_lock(&stream.lock)
    position = stream.stable
    pthread_mutex_unlock(&stream.lock)
    return position


cdef uint64_t ordered_end(ordered_t *stream) noexcept nogil:
    cdef uint64_t position
    pthread_mutex_lock(&stream.lock)
    position = stream.end
    pthread_mutex_unlock(&stream.lock)
    return position


# Live accounting ---------------------------------------------------------------------------------


cdef int ordered_dead(ordered_t *stream, uint64_t position, uint64_t bytes) noexcept nogil:
    """`bytes` (payload sizes rounded by record_bytes) of that segment are needed no more."""
    cdef int64_t slot
    pthread_mutex_lock(&stream.lock)
    slot = chain_find(stream, position // stream.segment_bytes)
    if slot >= 0:
        stream.segments[slot].live_bytes -= min(bytes, stream.segments[slot].live_bytes)
    pthread_mutex_unlock(&stream.lock)
    return LOG_OK if slot >= 0 else LOG_GONE


cdef int ordered_live(ordered_t *stream, uint64_t position, uint64_t bytes) noexcept nogil:
    """For recovery: what was replayed is live until it is declared dead."""
    cdef int64_t slot
    pthread_mutex_lock(&stream.lock)
    slot = chain_find(stream, position // stream.segment_bytes)
    if slot >= 0:
        stream.segments[slot].live_bytes += bytes
        stream.segments[slot].empty_since = 0
    pthread_mutex_unlock(&stream.lock)
    return LOG_OK if slot >= 0 else LOG_GONE
