"""Reading one record of an ordered stream by its position: from a buffer, or from the device.

A record is readable from the moment its append returns. What was written and left the buffers is
read without the stream's lock; its checksum, which is bound to position and salt, decides whether
the bytes are that record's. Any thread may call, without the GIL.
"""
from libc.errno cimport EAGAIN, ENODATA
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from siltstone.log.chain cimport chain_find
from siltstone.log.device_io cimport DEVICE_NOWAIT, device_read
from siltstone.log.format cimport (RECORD_HEADER_SIZE, RECORD_PAD, record_check, record_header_t,
                                   word_kind, word_size)
from siltstone.log.log cimport (LOG_BUSY, LOG_CORRUPT, LOG_GONE, LOG_IO, LOG_NOTHING, LOG_NOWAIT,
                                LOG_OK, LOG_SHORT, LOG_WOULD_BLOCK)
from siltstone.log.ordered cimport (ORDERED_RESERVATIONS_MAX, buffer_of, ordered_buffer_t,
                                    ordered_t)
from siltstone.log.pthread cimport pthread_mutex_lock, pthread_mutex_unlock


cdef int read_buffer(ordered_t *stream, ordered_buffer_t *buffer, uint64_t position, char *out,
                     uint64_t capacity, uint64_t *size) noexcept nogil:
    cdef record_header_t header
    cdef uint32_t entry, offset = <uint32_t>(position - buffer.base)
    if offset + RECORD_HEADER_SIZE > buffer.filled:
        return LOG_GONE
    for entry in range(ORDERED_RESERVATIONS_MAX if buffer.reservations else 0):
        if stream.open[entry].sequence == buffer.sequence and stream.open[entry].offset == offset:
            return LOG_BUSY
    memcpy(&header, buffer.data + offset, RECORD_HEADER_SIZE)
    size[0] = RECORD_HEADER_SIZE + word_size(header.word)
    if size[0] > buffer.filled - offset:
        return LOG_GONE         # not the start of a record
    if word_kind(header.word) == RECORD_PAD:
        return LOG_NOTHING
    if size[0] > capacity:
        return LOG_SHORT
    memcpy(out, buffer.data + offset, size[0])
    return LOG_OK


cdef int64_t read_truncated(ordered_t *stream, uint32_t slot, uint64_t offset, char *out,
                            uint64_t size) noexcept nogil:
    """A file that was cut: what is missing counts as zeros, as for recovery; checksums decide."""
    cdef uint64_t done = 0
    cdef int64_t got = 0
    memset(out, 0, size)
    while done < size and got >= 0:
        got = device_read(stream.device, slot, offset + done, out + done, min(<uint64_t>16,
                          size - done), 0)
        done += 16
    return 0 if got == -ENODATA else got


cdef int read_device(ordered_t *stream, uint64_t position, uint32_t slot, uint32_t salt,
                     uint64_t filled, char *out, uint64_t capacity, uint64_t *size,
                     uint32_t flags) noexcept nogil:
    cdef uint64_t offset = position % stream.segment_bytes
    cdef uint64_t wanted = min(capacity, filled - offset)
    cdef record_header_t header
    cdef int64_t got
    if wanted < RECORD_HEADER_SIZE:
        return LOG_SHORT if wanted == capacity else LOG_GONE
    got = device_read(stream.device, slot, offset, out, wanted,
                      DEVICE_NOWAIT if flags & LOG_NOWAIT else 0)
    if got == -ENODATA:
        got = read_truncated(stream, slot, offset, out, wanted)
    if got == -EAGAIN:
        return LOG_WOULD_BLOCK
    if got < 0:
        return LOG_IO
    memcpy(&header, out, RECORD_HEADER_SIZE)
    size[0] = RECORD_HEADER_SIZE + word_size(header.word)
    if size[0] > wanted and size[0] <= filled - offset:
        return LOG_SHORT
    if record_check(out, wanted, salt, position) < 0:
        return LOG_CORRUPT
    return LOG_NOTHING if word_kind(header.word) == RECORD_PAD else LOG_OK


cdef int ordered_read(ordered_t *stream, uint64_t position, char *out, uint64_t capacity,
                      uint64_t *size, uint32_t flags) noexcept nogil:
    cdef uint64_t version = position // stream.segment_bytes, sequence
    cdef ordered_buffer_t *buffer
    cdef int64_t slot
    cdef uint32_t salt
    cdef uint64_t filled
    cdef int result
    size[0] = RECORD_HEADER_SIZE
    pthread_mutex_lock(&stream.lock)
    slot = chain_find(stream, version)
    if slot < 0 or position % stream.segment_bytes >= stream.segments[slot].filled:
        pthread_mutex_unlock(&stream.lock)
        return LOG_GONE
    salt = stream.segments[slot].salt
    filled = stream.segments[slot].filled
    for sequence in range(stream.oldest, stream.next):
        buffer = buffer_of(stream, sequence)
        if buffer.base <= position < buffer.base + stream.buffer_bytes:
            result = read_buffer(stream, buffer, position, out, capacity, size)
            pthread_mutex_unlock(&stream.lock)
            return result
    pthread_mutex_unlock(&stream.lock)
    result = read_device(stream, position, <uint32_t>slot, salt, filled, out, capacity, size,
                         flags)
    if result == LOG_CORRUPT or result == LOG_SHORT:
        # The segment may have been given away while it was read.
        pthread_mutex_lock(&stream.lock)
        if chain_find(stream, version) != slot:
            result = LOG_GONE
        pthread_mutex_unlock(&stream.lock)
    return result
