"""The moment that a checkpoint describes: its first part, empty, and the segment table of then.

Both in one hold of the stream's lock, so that what is live in the table is exactly what was
appended before the moment. An engine calls it under its own lock, which is why it needs no GIL.
"""
from libc.errno cimport ENOMEM
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from siltstone.log.checksum cimport crc32c
from siltstone.log.log cimport LOG_OK, part_t
from siltstone.log.ordered cimport (GROUP_ENTERED, ORDERED_CHECKPOINT_PART, ORDERED_GROUPS_MAX,
                                    ORDERED_URGENT, SEGMENT_SEALED, append_locked, hand_over,
                                    ordered_segment_t, ordered_t)
from siltstone.log.pthread cimport pthread_mutex_lock, pthread_mutex_unlock

cdef enum:
    PART_SIZE = 8 + 4           # id 0 and number 0: checkpoint.py draws it


cdef void take_groups(ordered_t *stream, capture_t *capture) noexcept nogil:
    cdef uint32_t entry
    for entry in range(ORDERED_GROUPS_MAX):
        if stream.groups[entry] > GROUP_ENTERED:
            capture.groups[capture.group_count] = stream.groups[entry]
            capture.group_count += 1
            capture.replay_from = min(capture.replay_from, stream.groups[entry])


cdef int take_segments(ordered_t *stream, capture_t *capture) noexcept nogil:
    cdef uint32_t slot
    cdef ordered_segment_t *segment
    capture.segments = <captured_segment_t *>malloc((stream.slot_capacity + 1)
                                                    * sizeof(captured_segment_t))
    if capture.segments == NULL:
        return -ENOMEM
    for slot in range(stream.slot_capacity):
        segment = &stream.segments[slot]
        if segment.version:
            if segment.live_bytes:
                segment.empty_since = 0
            elif segment.empty_since == 0 and segment.state == SEGMENT_SEALED:
                segment.empty_since = capture.start
            capture.segments[capture.segment_count].slot = slot
            capture.segments[capture.segment_count].segment = segment[0]
            capture.segment_count += 1
    return LOG_OK


cdef int capture_take(ordered_t *stream, capture_t *capture) noexcept nogil:
    cdef char payload[PART_SIZE]
    cdef part_t part
    cdef uint64_t sequence
    cdef uint32_t checksum = 0
    cdef int result
    memset(capture, 0, sizeof(capture_t))
    memset(payload, 0, PART_SIZE)
    part.data = payload
    part.size = PART_SIZE
    capture.groups = <uint64_t *>malloc(ORDERED_GROUPS_MAX * sizeof(uint64_t))
    if capture.groups == NULL:
        return -ENOMEM
    pthread_mutex_lock(&stream.lock)
    sequence = stream.next
    result = append_locked(stream, ORDERED_CHECKPOINT_PART, &part, 1, PART_SIZE,
                           crc32c(0, payload, PART_SIZE), ORDERED_URGENT, &capture.start,
                           &checksum)
    if result == LOG_OK:
        capture.replay_from = capture.start
        take_groups(stream, capture)
        result = take_segments(stream, capture)
    sequence = stream.next - sequence
    pthread_mutex_unlock(&stream.lock)
    if sequence:
        hand_over(stream)
    return result


cdef void capture_free(capture_t *capture) noexcept nogil:
    free(capture.segments)
    free(capture.groups)
    memset(capture, 0, sizeof(capture_t))
