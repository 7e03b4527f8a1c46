"""Values above an eighth of RAM go to flash in parts at once; RAM only ever holds their slot.

The records are written before the shard's lock is taken; the change then links the head record or,
refused by its rule (add, replace, cas), leaves it dead. Called by cache_execute, any thread.
"""
from libc.stdint cimport uint32_t
from libc.string cimport memset

from siltstone.cache.engine cimport (
    CACHE_BUSY, CACHE_IO, CACHE_NO_MEMORY, CACHE_OK, OPT_CAS_NEW, OPT_STR_KEY, OPT_TAG, request_t,
)
from siltstone.cache.compaction cimport reclaim
from siltstone.cache.flash cimport (
    demotion_free, demotion_grow, demotion_t, flash_item_t, flash_write_raw,
)
from siltstone.cache.items cimport ITEM_STR_KEY, ITEM_TAG
from siltstone.cache.shard cimport cache_t, cas_take, flush_epoch, now_ms
from siltstone.log.log cimport (
    LOG_BUSY, LOG_NO_BUFFER, LOG_NO_SEGMENT, LOG_OK, LOG_SHORT, log_make_room,
)

cdef enum:
    WAITS_MAX = 1000        # of 1 ms in a row for a buffer or a segment

cdef void _head(cache_t *cache, request_t *request, flash_item_t *head) noexcept nogil:
    memset(head, 0, sizeof(flash_item_t))
    if not request.options & OPT_CAS_NEW:
        request.options |= OPT_CAS_NEW
        request.cas_new = cas_take(cache)
    head.cas = request.cas_new
    head.value_size = <uint32_t>request.value_size
    head.key_less = <unsigned short>(request.key_size - 1)
    head.flags = (ITEM_STR_KEY if request.options & OPT_STR_KEY else 0) | (
        ITEM_TAG if request.options & OPT_TAG else 0)
    head.client_flags = request.client_flags
    head.stored_s = <uint32_t>(now_ms(cache) // 1000)
    head.expires_s = <uint32_t>((request.expire_ms + 999) // 1000)
    head.epoch = <unsigned short>flush_epoch(cache)

cdef int large_write(cache_t *cache, request_t *request) noexcept nogil:
    cdef flash_item_t head
    cdef demotion_t progress
    cdef int result = LOG_SHORT, reclaimed
    cdef uint32_t waits = 0
    _head(cache, request, &head)
    memset(&progress, 0, sizeof(progress))
    while waits < WAITS_MAX:
        result = flash_write_raw(cache, &head, request.tag, request.key, request.value, &progress,
                                 &request.position)
        if result == LOG_SHORT:
            if not demotion_grow(&progress):
                break
            continue
        if result != LOG_NO_BUFFER and result != LOG_NO_SEGMENT:
            break
        reclaimed = reclaim(cache) if result == LOG_NO_SEGMENT else 0
        if reclaimed < 0:
            result = LOG_BUSY
            break
        if not reclaimed:
            waits = 0 if log_make_room(cache.log) == LOG_OK else waits + 1
    demotion_free(&progress)
    if result == LOG_OK:
        return CACHE_OK
    return CACHE_BUSY if result == LOG_BUSY else (
        CACHE_NO_MEMORY if result in (LOG_SHORT, LOG_NO_BUFFER, LOG_NO_SEGMENT) else CACHE_IO)
