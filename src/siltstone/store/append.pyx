"""Appending a page cache's records. What they look like is drawn in docs/pages.md.

Appending is a copy into a write buffer, done under the page cache's lock, so that the order of
commits is the order of the log. It waits only when all buffers are full or the next segment is not
ready: append_ready() says so beforehand, append_wait() waits without the lock.
"""
from libc.errno cimport ENOMEM
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from siltstone.log.chain cimport chain_prepare
from siltstone.log.format cimport SLOT_NONE, record_bytes
from siltstone.log.latency cimport now_ns
from siltstone.log.log cimport LOG_BUSY, LOG_FAILED, LOG_OK, LOG_TOO_LARGE, part_t
from siltstone.log.ordered cimport (GROUP_ID_SIZE, ORDERED_URGENT, group_t, ordered_append,
                                    ordered_buffer_t, ordered_flush, ordered_group_abandon,
                                    ordered_group_append, ordered_group_commit,
                                    ordered_payload_max, ordered_t)
from siltstone.log.pthread cimport (pthread_cond_t, pthread_mutex_lock, pthread_mutex_t,
                                    pthread_mutex_unlock)
from siltstone.store.compression cimport compress, compress_bound
from siltstone.store.state cimport (KIND_BASE, KIND_MORE, KIND_MOVED, MORE_HEADER_SIZE,
                                    NOTE_SIZE, PAGES_LARGE, PAGES_LOG, PAGES_OK, PAGES_WAIT,
                                    PAGE_HEADER_SIZE, entry_t, pages_t, place_t)
from siltstone.store.table cimport (block_touch, entry_replace_places, entry_room, places_dead,
                                    scratch_room)

cdef extern from *:
    """
    #include <pthread.h>
    #include <stdint.h>
    #include <time.h>
    /* The stream's conditions count monotonic time. */
    static void silt_wait_until(pthread_cond_t *condition, pthread_mutex_t *lock, uint64_t ns) {
        struct timespec end = {(time_t)(ns / 1000000000u), (long)(ns % 1000000000u)};
        pthread_cond_timedwait(condition, lock, &end);
    }
    """
    void wait_until "silt_wait_until"(pthread_cond_t *, pthread_mutex_t *, uint64_t) noexcept nogil

cdef enum:
    WAIT_SLICE_NS = 2000000     # a wake-up that came between two looks costs no more than this
    IMAGE_PARTS_MAX = 6


# Room --------------------------------------------------------------------------------------------


cdef int stream_ready(ordered_t *stream, uint64_t bytes) noexcept nogil:
    """Lock of the stream held. Counts twice: a buffer's end stays unused when a record is large."""
    cdef ordered_buffer_t *last = NULL
    cdef uint64_t usable = ordered_payload_max(stream), offset = stream.segment_bytes, buffers, end
    cdef uint32_t which
    if stream.failed:
        return PAGES_LOG + LOG_FAILED
    if stream.next > stream.oldest:
        last = &stream.buffers[(stream.next - 1) % stream.buffer_count]
        offset = last.offset + stream.buffer_bytes
        if not last.sealed and last.filled + bytes <= stream.buffer_bytes:
            return PAGES_OK
    elif stream.next > 1:
        offset = stream.buffers[(stream.next - 1) % stream.buffer_count].offset
        offset += stream.buffer_bytes
    buffers = (2 * bytes + usable - 1) // usable
    if buffers >= stream.buffer_count:
        return PAGES_LARGE
    if stream.next - stream.oldest + buffers > stream.buffer_count:
        return PAGES_WAIT
    for which in range(<uint32_t>buffers):
        if stream.buffers[(stream.next + which) % stream.buffer_count].queued:
            return PAGES_WAIT
    end = offset + buffers * stream.buffer_bytes
    for which in range(2):
        # Slots that are not chosen are not waited for: the append says at once if none is free,
        # and the very first one makes its segment itself.
        if end > (which + 1) * stream.segment_bytes:
            if stream.ahead[which] == SLOT_NONE:
                continue
            if not stream.segments[stream.ahead[which]].allocated:
                return PAGES_WAIT
    return PAGES_OK


cdef int append_ready(pages_t *pages, uint64_t bytes, uint32_t records) noexcept nogil:
    cdef int result
    # Headers, and padding to 64 bytes; a block of the table, should a checkpoint be made.
    bytes += records * <uint64_t>(64 + 16)
    if pages.checkpoint:
        bytes += 1 << 15
    pthread_mutex_lock(&pages.stream.lock)
    result = stream_ready(pages.stream, bytes)
    pthread_mutex_unlock(&pages.stream.lock)
    return result


cdef int append_wait(pages_t *pages, uint64_t bytes, uint32_t records) noexcept nogil:
    cdef ordered_t *stream = pages.stream
    cdef uint64_t deadline_ns = now_ns() + <uint64_t>stream.wait_ms * 1000000
    cdef int result = append_ready(pages, bytes, records)
    while result == PAGES_WAIT:
        result = ordered_flush(stream)
        if result != LOG_OK:
            return PAGES_LOG + result
        result = chain_prepare(stream)
        if result < 0:
            return PAGES_OK         # the append itself says what is wrong with the device
        result = append_ready(pages, bytes, records)
        if result != PAGES_WAIT:
            break
        # Worker threads have it: one of them says when it is done.
        if now_ns() > deadline_ns:
            return PAGES_LOG + LOG_BUSY
        pthread_mutex_lock(&stream.lock)
        wait_until(&stream.changed, &stream.lock, now_ns() + WAIT_SLICE_NS)
        pthread_mutex_unlock(&stream.lock)
        result = append_ready(pages, bytes, records)
    return result


cdef uint32_t pages_fragment_max(pages_t *pages) noexcept nogil:
    return ordered_payload_max(pages.stream) - GROUP_ID_SIZE - 8 - NOTE_SIZE


cdef uint64_t places_bytes(const place_t *places, uint32_t count) noexcept nogil:
    cdef uint64_t bytes = 0
    cdef uint32_t number
    for number in range(count):
        bytes += places[number].bytes
    return bytes


# Records -----------------------------------------------------------------------------------------


cdef int append_record(pages_t *pages, group_t *group, uint32_t kind, const part_t *parts,
                       uint32_t count, uint32_t flags, place_t *place) noexcept nogil:
    cdef uint64_t size = 0
    cdef uint32_t number
    cdef int result
    for number in range(count):
        size += parts[number].size
    if group == NULL:
        result = ordered_append(pages.stream, kind, parts, count, flags, &place.position)
    else:
        size += GROUP_ID_SIZE
        result = ordered_group_append(pages.stream, group, kind, parts, count, flags,
                                      &place.position)
    place.bytes = <uint32_t>record_bytes(size)
    place.kind = KIND_BASE if kind == KIND_MOVED else kind
    return PAGES_OK if result == LOG_OK else PAGES_LOG + result


cdef uint32_t cut(const part_t *image, uint32_t parts, uint64_t offset, uint64_t size,
                  part_t *out) noexcept nogil:
    """The parts of image[offset : offset + size]."""
    cdef uint32_t number, count = 0
    cdef uint64_t here
    for number in range(parts):
        if offset >= image[number].size:
            offset -= image[number].size
            continue
        if size == 0:
            break
        here = min(size, image[number].size - offset)
        out[count].data = <const char *>image[number].data + offset
        out[count].size = here
        count += 1
        size -= here
        offset = 0
    return count


cdef int append_stored(pages_t *pages, group_t *group, uint32_t kind, uint64_t pid,
                       uint32_t codec, uint64_t plain, const part_t *image, uint32_t parts,
                       uint32_t flags, place_t **places, uint32_t *count) noexcept nogil:
    cdef uint64_t room = ordered_payload_max(pages.stream) - GROUP_ID_SIZE, stored = 0, done = 0
    cdef uint64_t piece, word = pid << 8 | codec
    cdef uint32_t number, header_size = PAGE_HEADER_SIZE, size
    cdef part_t out[IMAGE_PARTS_MAX + 1]
    cdef char header[PAGE_HEADER_SIZE]
    cdef int result = PAGES_OK
    for number in range(parts):
        stored += image[number].size
    count[0] = 0
    number = 1 + <uint32_t>(stored // (room - PAGE_HEADER_SIZE))
    places[0] = <place_t *>malloc((number + 1) * sizeof(place_t))
    if places[0] == NULL:
        return -ENOMEM
    memcpy(header, &word, 8)
    size = <uint32_t>plain
    memcpy(header + 8, &size, 4)
    size = <uint32_t>stored
    memcpy(header + 8 + 4, &size, 4)
    while result == PAGES_OK and (done < stored or count[0] == 0):
        if count[0]:
            word = pid << 8
            memcpy(header, &word, 8)
            size = <uint32_t>done
            memcpy(header + 8, &size, 4)
            header_size = MORE_HEADER_SIZE
            kind = KIND_MORE
        piece = min(stored - done, room - header_size)
        out[0].data = header
        out[0].size = header_size
        number = cut(image, parts, done, piece, out + 1)
        result = append_record(pages, group, kind, out, number + 1, flags,
                               &places[0][count[0]])
        done += piece
        count[0] += result == PAGES_OK
    if result != PAGES_OK:
        places_dead(pages, places[0], count[0])
        free(places[0])
        places[0] = NULL
        count[0] = 0
    return result


cdef int append_image(pages_t *pages, group_t *group, uint32_t kind, uint64_t pid,
                      const part_t *image, uint32_t image_parts, uint32_t flags, place_t **places,
                      uint32_t *count) noexcept nogil:
    """As it is: an engine's large values are compressed by whoever made them, or not at all."""
    cdef uint64_t size = 0
    cdef uint32_t number
    for number in range(image_parts):
        size += image[number].size
    if size >= <uint64_t>1 << 31 or image_parts > IMAGE_PARTS_MAX:
        return PAGES_LOG + LOG_TOO_LARGE
    return append_stored(pages, group, kind, pid, 0, size, image, image_parts, flags, places,
                         count)


cdef int append_node(pages_t *pages, group_t *group, uint32_t kind, uint64_t pid,
                     const char *node, uint32_t flags, place_t **places,
                     uint32_t *count) noexcept nogil:
    cdef uint64_t size = pages.ops.image_size(pages.context, node), bound = 0
    cdef uint32_t codec = pages.compression
    cdef int64_t smaller = -1
    cdef part_t image
    places[0] = NULL
    if size >= <uint64_t>1 << 31:
        return PAGES_LOG + LOG_TOO_LARGE
    if codec:
        bound = compress_bound(codec, size)
    if scratch_room(pages, size + bound) != 0:
        return -ENOMEM
    pages.ops.encode(pages.context, node, pages.scratch)
    image.data = pages.scratch
    image.size = size
    if codec:
        smaller = compress(codec, pages.scratch, size, pages.scratch + size, bound)
    if smaller >= 0:
        image.data = pages.scratch + size
        image.size = <uint64_t>smaller
    return append_stored(pages, group, kind, pid, codec if smaller >= 0 else 0, size, &image, 1,
                         flags, places, count)


# Rewriting ---------------------------------------------------------------------------------------


cdef int append_moved(pages_t *pages, uint64_t pid, const char *node, place_t **places,
                      uint32_t *count) noexcept nogil:
    """One record, or a group whose mark says that it is no commit."""
    cdef uint64_t room = ordered_payload_max(pages.stream) - GROUP_ID_SIZE - PAGE_HEADER_SIZE
    cdef uint64_t position = 0, end = 0
    cdef group_t group
    cdef part_t mark
    cdef char flags = 0
    cdef int result
    if pages.ops.image_size(pages.context, node) <= room:
        return append_node(pages, NULL, KIND_MOVED, pid, node, ORDERED_URGENT, places, count)
    memset(&group, 0, sizeof(group))
    result = append_node(pages, &group, KIND_MOVED, pid, node, ORDERED_URGENT, places, count)
    if result == PAGES_OK:
        mark.data = &flags
        mark.size = 1
        result = ordered_group_commit(pages.stream, &group, &mark, ORDERED_URGENT, &position, &end)
        if result != LOG_OK:
            places_dead(pages, places[0], count[0])
            free(places[0])
            result = PAGES_LOG + result
    if result != PAGES_OK:
        ordered_group_abandon(pages.stream, &group)
    return result


cdef int page_rewrite(pages_t *pages, uint64_t pid, entry_t *entry) noexcept nogil:
    cdef place_t *places = NULL
    cdef uint32_t count = 0
    cdef int result = append_moved(pages, pid, entry.node, &places, &count)
    if result != PAGES_OK:
        return result
    # The former places are dead only if the new ones can be noted.
    if count > <uint32_t>entry.capacity + 1 and entry_room(pages, entry, count) != 0:
        places_dead(pages, places, count)
        free(places)
        return -ENOMEM
    block_touch(pages, pid)
    entry_replace_places(pages, entry, places, count)
    free(places)
    return PAGES_OK
