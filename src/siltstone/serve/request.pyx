"""One request against the cache engine: execution, parked flash reads, and their bookkeeping.

Owns `session_t` except for its buffers (memcache.pyx). Promises: a request whose record is on
flash changes nothing until the record is in memory, so that it may be executed again from its
first byte; a reply keeps its place in the output while its record is read. Called by the command
modules and by Session, from the one thread that runs the session; `read_parked` runs on a worker
and touches nothing but its own `parked_t` (or, for a changing command, the session's record,
which nobody else touches while a read is out).
"""
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from siltstone.cache.engine cimport (
    CACHE_BUSY, CACHE_EXISTS, CACHE_FLASH, CACHE_IO, CACHE_MISS, CACHE_NO_MEMORY,
    CACHE_NOT_NUMBER, CACHE_NOT_STORED, CACHE_TOO_LARGE, CACHE_WOULD_BLOCK, COUNT_CMD_GET,
    COUNT_CMD_META, COUNT_CMD_SET, COUNT_CMD_TOUCH, COUNT_STORE_NO_MEMORY,
    COUNT_STORE_TOO_LARGE, OP_SET, cache_count, cache_execute, cache_fetch,
    cache_hash, cache_now_ms, cache_read_record, record_free,
)
from siltstone.log.log cimport LOG_NOWAIT
from siltstone.log.workers cimport job_t
from siltstone.serve.wire cimport put

cdef enum:
    # A record can move (compaction) or change between the read and the lock; a command that
    # loses this race so often gives up as busy.
    RECORD_TRIES_MAX = 16
    ITEM_OVERHEAD = 48 + 8 + 1 + 2      # memcached's: struct, CAS, NUL of the key, CRLF
    CHUNK_SIZE_MIN = 96                 # memcached's smallest slab class ...
    CHUNK_SIZE_MAX = 524288             # ... and largest; classes grow by 1.25, 8-byte aligned


cdef void session_begin(session_t *s) noexcept nogil:
    s.now_ms = cache_now_ms(s.cache)


cdef void session_count(session_t *s) noexcept nogil:
    if s.count_get:
        cache_count(s.cache, COUNT_CMD_GET, s.count_get)
        s.count_get = 0
    if s.count_set:
        cache_count(s.cache, COUNT_CMD_SET, s.count_set)
        s.count_set = 0
    if s.count_touch:
        cache_count(s.cache, COUNT_CMD_TOUCH, s.count_touch)
        s.count_touch = 0
    if s.count_meta:
        cache_count(s.cache, COUNT_CMD_META, s.count_meta)
        s.count_meta = 0


cdef void session_clear(session_t *s) noexcept nogil:
    """Free everything; no read may be out."""
    cdef uint32_t i
    for i in range(s.parked_count):
        parked_free(s.parked[i])
    s.parked_count = 0
    record_free(&s.record)
    free(s.reply.value)
    s.reply.value = NULL
    s.reply.value_capacity = 0
    free(s.out.data)
    s.out.data = NULL
    s.out.size = s.out.capacity = 0


cdef void count_prefix(session_t *s, const char *key, uint32_t size, int what) noexcept nogil:
    """`stats detail`: rare, so it may take the GIL. What: 0 miss, 1 hit, 2 set, 3 delete."""
    with gil:
        (<object>s.face).count_prefix(key[:size], what)


# Times and sizes as memcached has them ------------------------------------------------------


cdef int64_t expire_at(session_t *s, int64_t exptime) noexcept nogil:
    """Absolute Unix ms of a client's exptime: 0 never, -1 expired at once."""
    if exptime == 0:
        return 0
    if exptime < 0:
        return -1
    if exptime <= RELATIVE_TIME_MAX:
        return s.now_ms + exptime * 1000
    if exptime > 9223372036854775807LL // 1000:
        return 0
    return exptime * 1000 if exptime * 1000 > s.now_ms else -1


cdef uint64_t item_size(uint32_t key_size, uint32_t client_flags,
                        uint64_t value_size) noexcept nogil:
    """What memcached would call the item's size; `-I` limits it."""
    return ITEM_OVERHEAD + key_size + (4 if client_flags else 0) + value_size


cdef uint32_t item_class(uint64_t size) noexcept nogil:
    """The slab class that memcached (factor 1.25) would choose: tools expect a number there."""
    cdef uint32_t number = 1
    cdef uint64_t chunk = CHUNK_SIZE_MIN
    while size > chunk and chunk < CHUNK_SIZE_MAX:
        chunk = (<uint64_t>(chunk * 1.25) + 7) & ~<uint64_t>7
        if chunk > CHUNK_SIZE_MAX * 4 // 5:
            chunk = CHUNK_SIZE_MAX
        number += 1
    return number


# Execution ----------------------------------------------------------------------------------


cdef void request_begin(session_t *s, uint8_t op, const char *key,
                        uint32_t key_size) noexcept nogil:
    memset(&s.request, 0, sizeof(s.request))
    s.request.op = op
    s.request.key = key
    s.request.key_size = key_size
    s.request.hash = cache_hash(s.cache, key, key_size)


cdef int execute(session_t *s) noexcept nogil:
    cdef int status = CACHE_FLASH
    cdef uint32_t tries = 0
    cdef parked_t *parked
    if s.parked_count and (s.parked_count == PARKED_MAX or key_parked(s, s.request.hash)):
        return CACHE_WOULD_BLOCK
    while tries < RECORD_TRIES_MAX:
        status = cache_execute(s.cache, &s.request,
                               &s.record if s.record_ready else NULL, &s.reply)
        if status != CACHE_FLASH:
            break
        tries += 1
        s.record_ready = True
        if cache_read_record(s.cache, s.reply.position, &s.record,
                             LOG_NOWAIT) == CACHE_WOULD_BLOCK:
            s.record_ready = False
            parked = park(s, PARKED_RECORD, s.request.key, s.request.key_size, s.request.hash)
            if parked == NULL:
                return CACHE_NO_MEMORY
            parked.cursor.position = s.reply.position
            return CACHE_WOULD_BLOCK
    s.record_ready = False
    return CACHE_BUSY if status == CACHE_FLASH else status


cdef int drop_value(session_t *s) noexcept nogil:
    cdef int status = CACHE_NO_MEMORY if s.no_memory else CACHE_TOO_LARGE
    if s.request.op == OP_SET:
        s.request.options = 0
        # above any item_size_max: the engine refuses, counts, and removes the former value
        s.request.value_size = <uint64_t>1 << 40
        if execute(s) == CACHE_WOULD_BLOCK:
            return CACHE_WOULD_BLOCK
    elif not s.no_memory:
        cache_count(s.cache, COUNT_STORE_TOO_LARGE, 1)
    if s.no_memory:
        cache_count(s.cache, COUNT_STORE_NO_MEMORY, 1)
    s.no_memory = False
    s.request.value = NULL
    return status


cdef void answer(session_t *s, const char *line, uint64_t size) noexcept nogil:
    if not s.quiet:
        put(&s.out, line, size)


cdef void answer_status(session_t *s, int status) noexcept nogil:
    """The line for a status that is an error whatever the command was."""
    if status == CACHE_BUSY:
        answer(s, b"SERVER_ERROR busy\r\n", 19)
    elif status == CACHE_NO_MEMORY:
        answer(s, b"SERVER_ERROR out of memory storing object\r\n", 43)
    elif status == CACHE_TOO_LARGE:
        answer(s, b"SERVER_ERROR object too large for cache\r\n", 41)
    elif status == CACHE_NOT_NUMBER:
        answer(s, b"CLIENT_ERROR cannot increment or decrement non-numeric value\r\n", 62)
    elif status == CACHE_NOT_STORED:
        answer(s, b"NOT_STORED\r\n", 12)
    elif status == CACHE_EXISTS:
        answer(s, b"EXISTS\r\n", 8)
    elif status == CACHE_MISS or status == CACHE_IO:
        answer(s, b"NOT_FOUND\r\n", 11)
    else:
        answer(s, b"SERVER_ERROR internal error\r\n", 29)


# Replies and parked reads -------------------------------------------------------------------


cdef void reply_begin(session_t *s) noexcept nogil:
    s.command += 1
    s.reply_start = s.out.size
    s.parked_before = s.parked_count


cdef void reply_drop(session_t *s) noexcept nogil:
    s.out.size = s.reply_start
    while s.parked_count > s.parked_before:
        s.parked_count -= 1
        parked_free(s.parked[s.parked_count])


cdef void reply_end(session_t *s) noexcept nogil:
    cdef uint32_t i
    for i in range(s.parked_before, s.parked_count):
        s.parked[i].end = s.out.size


cdef bint key_parked(session_t *s, uint64_t hash) noexcept nogil:
    cdef uint32_t i
    for i in range(s.parked_count):
        if s.parked[i].hash == hash:
            return True
    return False


cdef parked_t *park(session_t *s, uint8_t kind, const char *key, uint32_t key_size,
                    uint64_t hash) noexcept nogil:
    cdef parked_t *parked
    if s.parked_count == PARKED_MAX:
        return NULL
    parked = <parked_t *>calloc(1, sizeof(parked_t))
    if parked == NULL:
        return NULL
    parked.job.run = read_parked
    parked.session = s
    parked.kind = kind
    parked.hash = hash
    parked.key_size = key_size
    memcpy(parked.key, key, key_size)
    parked.command = s.command
    parked.start = s.out.size if kind == PARKED_RECORD else s.reply_start
    parked.offset = s.out.size
    parked.end = s.out.size
    s.parked[s.parked_count] = parked
    s.parked_count += 1
    return parked


cdef void parked_free(parked_t *parked) noexcept nogil:
    record_free(&parked.record)
    free(parked.line)
    free(parked)


cdef void read_parked(job_t *job) noexcept nogil:
    """On a worker: the blocking read."""
    cdef parked_t *parked = <parked_t *>job
    cdef session_t *s = parked.session
    if parked.kind == PARKED_RECORD:
        parked.status = cache_read_record(s.cache, parked.cursor.position, &s.record, 0)
    else:
        parked.status = cache_fetch(s.cache, parked.key, parked.key_size, parked.hash,
                                    &parked.cursor, &parked.record, 0)
