"""Flash records: an item's head, tag, part positions, key and value as one log record.

A value above the log's record size is cut into part records, written first; the item record names
their positions, so nothing of a value counts before all of it is there.
"""
from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy, memset

from siltstone.cache.engine cimport (
    CACHE_FOUND, CACHE_IO, CACHE_MISS, CACHE_NO_MEMORY, CACHE_WOULD_BLOCK, COUNT_FLASH_BAD,
    COUNT_FLASH_ERRORS, COUNT_FLASH_MISSES, record_t,
)
from siltstone.cache.flash cimport *
from siltstone.cache.items cimport (
    ITEM_EXPIRY, ITEM_PARTS, ITEM_STR_KEY, ITEM_TAG, item_expiry, item_span, item_t, item_tag,
)
from siltstone.cache.shard cimport SLOT_STALE, SLOT_WON, cache_t, count, shard_t
from siltstone.log.log cimport (
    LOG_CORRUPT, LOG_GONE, LOG_OK, LOG_RECORD_HEADER, LOG_SHORT, LOG_TOO_LARGE, LOG_WOULD_BLOCK,
    log_append, log_live, log_read, log_read_hint, log_record_bytes_max, part_t,
)

cdef enum:
    SPANS_MAX = 320         # pieces of one log record: head, tag, positions, spans of frames

# Writing ------------------------------------------------------------------------------------

cdef struct source_t:       # where the bytes of a value come from: an item, or plain memory
    cache_t *cache
    item_t *item
    const char *key
    const char *value

cdef uint32_t _spans(source_t *source, uint32_t key_size, uint64_t start, uint64_t size,
                     part_t *spans, uint32_t count) noexcept nogil:
    # Pieces for `size` value bytes from `start`; above SPANS_MAX: they are too many.
    cdef uint64_t here
    if source.item == NULL:
        spans[count].data = source.value + start
        spans[count].size = size
        return count + 1
    start += key_size
    while size and count < SPANS_MAX:
        spans[count].data = item_span(source.cache, source.item, start, &here)
        if here > size:
            here = size
        spans[count].size = here
        start += here
        size -= here
        count += 1
    return count if size == 0 else SPANS_MAX + 1

cdef uint32_t _key_spans(source_t *source, uint32_t key_size, part_t *spans,
                         uint32_t count) noexcept nogil:
    cdef uint64_t here, start = 0
    if source.item == NULL:
        spans[count].data = source.key
        spans[count].size = key_size
        return count + 1
    while start < key_size and count < SPANS_MAX:
        spans[count].data = item_span(source.cache, source.item, start, &here)
        if here > key_size - start:
            here = key_size - start
        spans[count].size = here
        start += here
        count += 1
    return count if start == key_size else SPANS_MAX + 1

cdef int _write(source_t *source, flash_item_t *head, uint64_t tag, uint32_t stream,
                demotion_t *demotion, uint64_t *position) noexcept nogil:
    cdef part_t spans[SPANS_MAX]
    cdef cache_t *cache = source.cache
    cdef uint64_t largest = log_record_bytes_max(cache.log)
    cdef uint64_t fixed = sizeof(flash_item_t) + flash_key_size(head) + (
        8 if head.flags & ITEM_TAG else 0)
    cdef uint32_t count
    cdef int result
    if cache.frame_bytes * <uint64_t>(SPANS_MAX // 2) < largest:
        largest = cache.frame_bytes * <uint64_t>(SPANS_MAX // 2)
    if fixed + head.value_size > largest:
        result = _write_parts(source, head, largest - sizeof(flash_part_t), demotion)
        if result != LOG_OK:
            return result
        head.flags |= ITEM_PARTS
        head.parts = <uint16_t>demotion.parts
        stream = STREAM_LARGE
    spans[0].data = head
    spans[0].size = sizeof(flash_item_t)
    count = 1
    if head.flags & ITEM_TAG:
        spans[count].data = &tag
        spans[count].size = 8
        count += 1
    if head.flags & ITEM_PARTS:
        spans[count].data = demotion.positions
        spans[count].size = 8 * <uint64_t>head.parts
        count += 1
    count = _key_spans(source, flash_key_size(head), spans, count)
    if not head.flags & ITEM_PARTS and head.value_size:
        count = _spans(source, flash_key_size(head), 0, head.value_size, spans, count)
    if count > SPANS_MAX:
        return LOG_TOO_LARGE
    return log_append(cache.log, stream, RECORD_ITEM, spans, count, position)

cdef int _write_parts(source_t *source, flash_item_t *head, uint64_t largest,
                      demotion_t *demotion) noexcept nogil:
    # Goes on where a former call stopped for want of a buffer. positions[] was made room for
    # outside the lock: LOG_SHORT asks for that.
    cdef part_t spans[SPANS_MAX]
    cdef flash_part_t part
    cdef uint64_t needed = (head.value_size + largest - 1) // largest, here
    cdef uint32_t count
    cdef int result
    if needed > FLASH_PARTS_MAX:
        return LOG_TOO_LARGE
    if demotion.capacity < needed:
        demotion.capacity = <uint32_t>needed
        return LOG_SHORT
    while demotion.value_done < head.value_size:
        here = head.value_size - demotion.value_done
        if here > largest:
            here = largest
        part.cas = head.cas
        part.start = demotion.value_done
        spans[0].data = &part
        spans[0].size = sizeof(flash_part_t)
        count = _spans(source, flash_key_size(head), demotion.value_done, here, spans, 1)
        if count > SPANS_MAX:
            return LOG_TOO_LARGE
        result = log_append(source.cache.log, STREAM_LARGE, RECORD_PART, spans, count,
                            &demotion.positions[demotion.parts])
        # A part counts from now on: a segment without live records may be freed. Nobody knows
        # the parts when their item goes, so they count until their segment is forgotten.
        if result == LOG_OK:
            result = log_live(source.cache.log, demotion.positions[demotion.parts])
        if result != LOG_OK:
            return result
        demotion.parts += 1
        demotion.value_done += here
    return LOG_OK

cdef bint demotion_grow(demotion_t *demotion) noexcept nogil:
    cdef uint64_t *larger = <uint64_t *>realloc(demotion.positions, demotion.capacity * 8)
    if larger == NULL:
        return False
    demotion.positions = larger
    return True

cdef void demotion_free(demotion_t *demotion) noexcept nogil:
    free(demotion.positions)
    memset(demotion, 0, sizeof(demotion_t))

cdef int flash_write(cache_t *cache, shard_t *shard, uint64_t hash, item_t *item, uint64_t slot_low,
                     int64_t now_ms, demotion_t *demotion, uint64_t *position) noexcept nogil:
    cdef source_t source
    cdef flash_item_t head
    cdef int64_t expire_ms = item_expiry(item)[0] if item.flags & ITEM_EXPIRY else 0
    cdef uint32_t stream = STREAM_FRESH
    if demotion.hash != hash or demotion.cas != item.cas:
        demotion.hash = hash
        demotion.cas = item.cas
        demotion.value_done = 0
        demotion.parts = 0
    source.cache = cache
    source.item = item
    source.key = source.value = NULL
    memset(&head, 0, sizeof(head))
    head.cas = item.cas
    head.value_size = item.value_size
    head.key_less = item.key_less
    head.flags = item.flags & (ITEM_TAG | ITEM_STR_KEY)
    if slot_low & SLOT_STALE:
        head.flags |= FLAG_STALE
    if slot_low & SLOT_WON:
        head.flags |= FLAG_WON
    head.client_flags = item.client_flags
    # rounded up: an item that was just stored is not a second old already
    head.stored_s = <uint32_t>((cache.arena.header.created_ms + 999) // 1000) + item.last_access
    head.expires_s = <uint32_t>((expire_ms + 999) // 1000)
    head.epoch = <uint16_t>shard.epoch
    if expire_ms and cache.low_ttl_s and expire_ms - now_ms < cache.low_ttl_s * 1000:
        stream = STREAM_LOW_TTL
    return _write(&source, &head, item_tag(item)[0] if item.flags & ITEM_TAG else 0, stream,
                  demotion, position)

cdef int flash_write_raw(cache_t *cache, flash_item_t *head, uint64_t tag, const char *key,
                         const char *value, demotion_t *demotion,
                         uint64_t *position) noexcept nogil:
    cdef source_t source
    source.cache = cache
    source.item = NULL
    source.key = key
    source.value = value
    return _write(&source, head, tag, STREAM_LARGE, demotion, position)

# Reading ------------------------------------------------------------------------------------

cdef flash_item_t *record_item(record_t *record) noexcept nogil:
    cdef flash_item_t *head = <flash_item_t *>(record.data + LOG_RECORD_HEADER)
    cdef uint64_t size = LOG_RECORD_HEADER + sizeof(flash_item_t)
    if record.size < size:
        return NULL
    size += flash_key_size(head) + 8 * <uint64_t>head.parts + (8 if head.flags & ITEM_TAG else 0)
    if not head.flags & ITEM_PARTS:
        size += head.value_size
    return head if size <= record.size else NULL

cdef uint64_t record_tag(record_t *record) noexcept nogil:
    cdef uint64_t tag
    memcpy(&tag, record.data + LOG_RECORD_HEADER + sizeof(flash_item_t), 8)
    return tag

cdef inline char *_positions(record_t *record) noexcept nogil:
    cdef flash_item_t *head = <flash_item_t *>(record.data + LOG_RECORD_HEADER)
    return <char *>(head + 1) + (8 if head.flags & ITEM_TAG else 0)

cdef char *record_key(record_t *record) noexcept nogil:
    cdef flash_item_t *head = <flash_item_t *>(record.data + LOG_RECORD_HEADER)
    return _positions(record) + 8 * <uint64_t>head.parts

cdef bint _grow(char **data, uint64_t *capacity, uint64_t size) noexcept nogil:
    cdef char *larger
    if capacity[0] >= size:
        return True
    larger = <char *>realloc(data[0], size + size // 4 + 64)
    if larger == NULL:
        return False
    data[0] = larger
    capacity[0] = size + size // 4 + 64
    return True

cdef int _status(cache_t *cache, int result) noexcept nogil:
    if result == LOG_OK:
        return CACHE_FOUND
    if result == LOG_WOULD_BLOCK:
        return CACHE_WOULD_BLOCK
    if result == LOG_GONE:
        count(cache, COUNT_FLASH_MISSES, 1)
        return CACHE_MISS
    if result == LOG_CORRUPT:
        count(cache, COUNT_FLASH_BAD, 1)
        return CACHE_MISS
    count(cache, COUNT_FLASH_ERRORS, 1)
    return CACHE_IO

cdef int _read_whole(cache_t *cache, uint64_t position, char **data, uint64_t *capacity,
                     uint64_t start, uint64_t *size, uint32_t flags) noexcept nogil:
    # One record behind data[start]; grows once or twice.
    cdef uint64_t wanted = log_read_hint(cache.log, position)
    cdef int result, tries
    for tries in range(4):
        if not _grow(data, capacity, start + wanted):
            return CACHE_NO_MEMORY
        result = log_read(cache.log, position, data[0] + start, capacity[0] - start, size, flags)
        if result != LOG_SHORT:
            return _status(cache, result)
        wanted = size[0]
    return CACHE_IO

cdef int flash_read(cache_t *cache, uint64_t position, record_t *record,
                    uint32_t flags) noexcept nogil:
    cdef int status
    cdef flash_item_t *head
    if cache.log == NULL:
        return CACHE_MISS
    record.position = position
    status = _read_whole(cache, position, &record.data, &record.capacity, 0, &record.size, flags)
    if status == CACHE_FOUND:
        head = record_item(record)
        if head == NULL:
            count(cache, COUNT_FLASH_BAD, 1)
            status = CACHE_MISS
        elif head.flags & ITEM_PARTS:
            status = _join(cache, record, head, flags)
        else:
            record.value_size = head.value_size
    if status == CACHE_WOULD_BLOCK or status == CACHE_NO_MEMORY:
        record.position = 0     # says nothing about the item
    record.status = status
    return status

cdef int _join(cache_t *cache, record_t *record, flash_item_t *head, uint32_t flags) noexcept nogil:
    # The parts of a large value, each checked to be a part of this very item.
    cdef uint64_t position, done = 0, size
    cdef uint32_t number, skip = LOG_RECORD_HEADER + sizeof(flash_part_t)
    cdef flash_part_t part
    cdef char held[LOG_RECORD_HEADER + 16]
    cdef char *behind
    cdef int status
    if not _grow(&record.value, &record.value_capacity, skip + head.value_size + 64):
        return CACHE_NO_MEMORY
    for number in range(head.parts):
        memcpy(&position, _positions(record) + 8 * number, 8)
        # the record's header lands on the last bytes of the former part: kept and put back
        memcpy(held, record.value + done, skip)
        status = _read_whole(cache, position, &record.value, &record.value_capacity, done, &size,
                             flags)
        if status != CACHE_FOUND:
            return status
        behind = record.value + done
        if size < skip:
            return CACHE_MISS
        memcpy(&part, behind + LOG_RECORD_HEADER, sizeof(part))
        memcpy(behind, held, skip)
        if part.cas != head.cas or part.start != done or done + size - skip > head.value_size:
            count(cache, COUNT_FLASH_BAD, 1)
            return CACHE_MISS
        done += size - skip
    record.value_size = head.value_size
    return CACHE_FOUND if done == head.value_size else CACHE_MISS

cdef bint flash_record_room(record_t *record, uint64_t size) noexcept nogil:
    return _grow(&record.value, &record.value_capacity, size)

cdef void flash_record_free(record_t *record) noexcept nogil:
    free(record.data)
    free(record.value)
    memset(record, 0, sizeof(record_t))

cdef char *record_value(record_t *record) noexcept nogil:
    cdef flash_item_t *head = <flash_item_t *>(record.data + LOG_RECORD_HEADER)
    if head.flags & ITEM_PARTS:
        return record.value + LOG_RECORD_HEADER + sizeof(flash_part_t)
    return record_key(record) + flash_key_size(head)
