"""The engine under trial: single operations with every option, and threads that never stop.

Used by tests and by hand, never by the product's own paths. `execute` and `find` give Python the
whole request and reply; `Board.pound` is a native loop for several threads at once, without the
GIL, that knows for every value it reads whether it may be there.
"""
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from siltstone.cache.engine cimport *
from siltstone.cache.shard cimport shard_enter, shard_leave
from siltstone.log.arena cimport LOCK_TAKEN, frame_address, lock_drop, lock_take
from siltstone.log.atomics cimport load64, store64

from siltstone import errors

cdef enum:
    KEY_MAX = 264
    STATE_UNKNOWN = 0           # of a key, as its one writer knows it
    STATE_THERE = 1
    STATE_GONE = 2


class Options:
    """The engine's OPT_ bits and operations."""

    SET, ADD, REPLACE, APPEND, PREPEND = OP_SET, OP_ADD, OP_REPLACE, OP_APPEND, OP_PREPEND
    DELETE, INCR, DECR, TOUCH, META_GET = OP_DELETE, OP_INCR, OP_DECR, OP_TOUCH, OP_META_GET
    CAS, CAS_NEW, TOUCH_TTL, VIVIFY, WIN = OPT_CAS, OPT_CAS_NEW, OPT_TOUCH, OPT_VIVIFY, OPT_WIN
    INVALIDATE, DROP_VALUE, NO_BUMP = OPT_INVALIDATE, OPT_DROP_VALUE, OPT_NO_BUMP
    KEEP_TTL, WANT_VALUE, TAG = OPT_KEEP_TTL, OPT_WANT_VALUE, OPT_TAG
    OK, MISS, NOT_STORED, EXISTS = CACHE_OK, CACHE_MISS, CACHE_NOT_STORED, CACHE_EXISTS
    TOO_LARGE, NO_MEMORY, NOT_NUMBER = CACHE_TOO_LARGE, CACHE_NO_MEMORY, CACHE_NOT_NUMBER


cdef dict _meta_dict(meta_t *meta):
    return {
        "cas": meta.cas, "size": meta.value_size, "expire_ms": meta.expire_ms,
        "client_flags": meta.client_flags, "idle_s": meta.idle_s, "fetched": bool(meta.fetched),
        "stale": bool(meta.stale), "won": bool(meta.won), "lost": bool(meta.lost),
        "on_flash": bool(meta.on_flash),
    }


def execute(CacheEngine engine not None, int op, bytes key not None, bytes value=b"", *,
            uint32_t options=0, uint32_t client_flags=0, int64_t expire_ms=0, uint64_t cas=0,
            uint64_t cas_new=0, uint64_t delta=0, uint64_t initial=0, int64_t vivify_expire_ms=0,
            int64_t win_below_ms=0, uint64_t tag=0) -> tuple:
    """(status, reply as a dict); `value` is there with WANT_VALUE."""
    cdef request_t request
    cdef reply_t reply
    cdef record_t record
    cdef int status
    memset(&request, 0, sizeof(request))
    memset(&reply, 0, sizeof(reply))
    memset(&record, 0, sizeof(record))
    request.op = <uint8_t>op
    request.options = options
    request.key = PyBytes_AS_STRING(key)
    request.key_size = <uint32_t>PyBytes_GET_SIZE(key)
    request.hash = cache_hash(engine.cache, request.key, request.key_size)
    request.value = PyBytes_AS_STRING(value)
    request.value_size = <uint64_t>PyBytes_GET_SIZE(value)
    request.client_flags, request.expire_ms, request.cas = client_flags, expire_ms, cas
    request.cas_new, request.delta, request.initial = cas_new, delta, initial
    request.vivify_expire_ms, request.win_below_ms = vivify_expire_ms, win_below_ms
    request.tag = tag
    with nogil:
        status = cache_execute(engine.cache, &request, NULL, &reply)
        while status == CACHE_FLASH:
            cache_read_record(engine.cache, reply.position, &record, 0)
            status = cache_execute(engine.cache, &request, &record, &reply)
    told = _meta_dict(&reply.meta)
    told.update(number=reply.number, created=bool(reply.created), value=None,
                expire_before_ms=reply.expire_before_ms)
    if reply.value != NULL and status == CACHE_OK:
        told["value"] = PyBytes_FromStringAndSize(reply.value, <Py_ssize_t>reply.meta.value_size)
    free(reply.value)
    record_free(&record)
    return status, told


def find(CacheEngine engine not None, bytes key not None, bint no_bump=False) -> tuple | None:
    """(value, meta as a dict) by the readers' way, without the lock; None: a miss."""
    cdef read_t cursor
    cdef record_t record
    cdef const char *data = PyBytes_AS_STRING(key)
    cdef uint32_t size = <uint32_t>PyBytes_GET_SIZE(key)
    cdef uint64_t hash = cache_hash(engine.cache, data, size)
    cdef char *copy = NULL
    cdef int status
    memset(&record, 0, sizeof(record))
    memset(&cursor, 0, sizeof(cursor))
    cursor.no_bump = no_bump
    with nogil:
        status = _read(engine.cache, data, size, hash, &cursor, &record, &copy)
    try:
        if status == CACHE_MISS:
            return None
        if status != CACHE_FOUND:
            raise errors.Busy(f"status {status}")
        return (PyBytes_FromStringAndSize(copy, <Py_ssize_t>cursor.value_size),
                _meta_dict(&cursor.meta))
    finally:
        free(copy)
        record_free(&record)


cdef int _read(cache_t *cache, const char *key, uint32_t key_size, uint64_t hash, read_t *cursor,
               record_t *record, char **copy) noexcept nogil:
    # A copy of the value in memory of its own.
    cdef int status
    cursor.tries = 0
    cursor.no_wait = False
    while True:
        status = cache_find(cache, key, key_size, hash, cursor)
        if status != CACHE_FOUND:
            break
        free(copy[0])
        copy[0] = <char *>malloc(cursor.value_size + 1)
        cache_copy(cursor, copy[0])
        if cache_found(cache, cursor):
            return CACHE_FOUND
    if status == CACHE_FLASH:
        status = cache_fetch(cache, key, key_size, hash, cursor, record, 0)
        if status == CACHE_FOUND:
            free(copy[0])
            copy[0] = <char *>malloc(cursor.value_size + 1)
            memcpy(copy[0], cursor.value, cursor.value_size)
    return status


def spoil(CacheEngine engine not None, uint32_t place, uint64_t word) -> None:
    """A wild write: overwrite an aligned word of a frame in use. `place` is taken modulo them."""
    cdef uint64_t words = engine.cache.frame_bytes // 8
    cdef uint64_t frames = engine.cache.arena.header.frame_next_fresh
    cdef uint64_t number
    if frames == 0:
        return
    number = place % (words * frames)
    (<uint64_t *>frame_address(engine.cache.arena, <uint32_t>(number // words)))[
        number % words] = word


def enter_shards(CacheEngine engine not None) -> None:
    """Go into every shard, as a thread in the middle of a change; `leave_shards` or die there."""
    cdef uint32_t number
    for number in range(engine.cache.shard_count):
        if not shard_enter(engine.cache, &engine.cache.shards[number]):
            raise errors.Busy(f"shard {number} is held")


def leave_shards(CacheEngine engine not None) -> None:
    """After `enter_shards`, by the same thread."""
    cdef uint32_t number
    for number in range(engine.cache.shard_count):
        shard_leave(&engine.cache.shards[number])


def enter_stream(CacheEngine engine not None, uint32_t stream) -> None:
    """Take the lock of a stream of the log, as a thread in the middle of an append."""
    if lock_take(&engine.cache.log.streams[stream].lock) != LOCK_TAKEN:
        raise errors.Busy(f"stream {stream} is held")


def leave_stream(CacheEngine engine not None, uint32_t stream) -> None:
    """After `enter_stream`, by the same thread."""
    lock_drop(&engine.cache.log.streams[stream].lock)


# Threads that never stop --------------------------------------------------------------------

cdef struct tally_t:
    uint64_t operations, hits, misses, refused
    uint64_t torn               # a value that nobody ever wrote
    uint64_t stale              # a value older than one whose write had returned before
    uint64_t lost               # gone although its writer neither deleted nor let expire
    uint64_t revived            # there although its writer had deleted it

cdef inline uint64_t _mix(uint64_t x) noexcept nogil:
    x = (x ^ (x >> 30)) * <uint64_t>0xbf58476d1ce4e5b9
    x = (x ^ (x >> 27)) * <uint64_t>0x94d049bb133111eb
    return x ^ (x >> 31)

cdef inline uint64_t _next(uint64_t *state) noexcept nogil:
    state[0] += <uint64_t>0x9e3779b97f4a7c15
    return _mix(state[0])

cdef uint32_t _key(uint64_t number, char *key) noexcept nogil:
    # 8 to 264 bytes, a function of the number.
    cdef uint32_t size = 8 + <uint32_t>(_mix(number) % (KEY_MAX - 8)), place
    for place in range(size):
        key[place] = <char>(97 + (number + place) % 26)
    memcpy(key, &number, 8)
    return size

cdef void _fill(char *value, uint64_t number, uint64_t sequence, uint64_t size) noexcept nogil:
    # Every word says whose it is, where, and of which write.
    cdef uint64_t place = 16, word, seed = _mix(number) ^ sequence
    memcpy(value, &number, 8)
    memcpy(value + 8, &sequence, 8)
    while place + 8 <= size:
        word = seed + place
        memcpy(value + place, &word, 8)
        place += 8

cdef bint _sound(const char *value, uint64_t number, uint64_t size,
                 uint64_t *sequence) noexcept nogil:
    cdef uint64_t place = 16, word, seed
    if size < 16 or size & 7:
        return False
    memcpy(&word, value, 8)
    memcpy(sequence, value + 8, 8)
    if word != number or _size_of(number, sequence[0], size) != size:
        return False
    seed = _mix(number) ^ sequence[0]
    while place < size:
        memcpy(&word, value + place, 8)
        if word != seed + place:
            return False
        place += 8
    return True

cdef inline uint64_t _size_of(uint64_t number, uint64_t sequence, uint64_t any) noexcept nogil:
    # The writer draws the size; the low bits of the sequence repeat it (in words, 16 bits).
    return (sequence & 0xffff) * 8


cdef class Board:
    """Keys 0..n-1; key k is written by thread k % threads only, and read by all."""

    cdef CacheEngine engine
    cdef uint64_t keys
    cdef uint32_t threads
    cdef uint64_t *written      # newest sequence whose write has returned
    cdef uint8_t *state

    def __cinit__(self, CacheEngine engine not None, uint64_t keys, uint32_t threads):
        self.engine = engine
        self.keys = keys
        self.threads = threads
        self.written = <uint64_t *>calloc(keys, 8)
        self.state = <uint8_t *>calloc(keys, 1)
        if self.written == NULL or self.state == NULL:
            raise MemoryError()

    def __dealloc__(self):
        free(self.written)
        free(self.state)

    def pound(self, uint32_t thread, uint64_t seed, uint64_t operations, uint64_t size_max, *,
              int reads=60) -> dict:
        """Run `operations` random operations as thread number `thread`; what it saw.

        `reads` of a hundred are reads. Sizes are mostly small, at most `size_max` (< 512 KiB).
        """
        cdef tally_t tally
        cdef char *buffer = <char *>malloc(size_max + 64)
        if buffer == NULL:
            raise MemoryError()
        memset(&tally, 0, sizeof(tally))
        with nogil:
            self._loop(thread, seed * 1000 + thread, operations, size_max, reads, buffer, &tally)
        free(buffer)
        return tally

    cdef void _loop(self, uint32_t thread, uint64_t seed, uint64_t operations, uint64_t size_max,
                    int reads, char *buffer, tally_t *tally) noexcept nogil:
        cdef uint64_t random = _mix(seed + 1), number, die
        cdef char *copy = NULL
        cdef record_t record
        memset(&record, 0, sizeof(record))
        while tally.operations < operations:
            number = _next(&random) % self.keys
            die = _next(&random) % 100
            if die < <uint64_t>reads:
                self._look(thread, number, &record, &copy, tally)
            else:
                number = number // self.threads * self.threads + thread
                if number < self.keys:
                    self._change(number, &random, size_max, buffer, &record, tally)
            tally.operations += 1
        free(copy)
        record_free(&record)

    cdef void _look(self, uint32_t thread, uint64_t number, record_t *record, char **copy,
                    tally_t *tally) noexcept nogil:
        cdef char key[KEY_MAX]
        cdef uint32_t size = _key(number, key)
        cdef uint64_t before = load64(&self.written[number]), sequence = 0
        cdef read_t cursor
        cdef int status
        memset(&cursor, 0, sizeof(cursor))
        status = _read(self.engine.cache, key, size, cache_hash(self.engine.cache, key, size),
                       &cursor, record, copy)
        if status == CACHE_FOUND:
            tally.hits += 1
            if not _sound(copy[0], number, cursor.value_size, &sequence):
                tally.torn += 1
            elif sequence >> 16 < before >> 16:
                tally.stale += 1
            if number % self.threads == thread and self.state[number] == STATE_GONE:
                tally.revived += 1
        elif status == CACHE_MISS:
            tally.misses += 1
            if number % self.threads == thread and self.state[number] == STATE_THERE:
                tally.lost += 1
                self.state[number] = STATE_GONE     # a miss must stay a miss
        else:
            tally.refused += 1

    cdef void _change(self, uint64_t number, uint64_t *random, uint64_t size_max, char *buffer,
                      record_t *record, tally_t *tally) noexcept nogil:
        cdef char key[KEY_MAX]
        cdef request_t request
        cdef reply_t reply
        cdef int status
        cdef uint64_t die = _next(random) % 100
        cdef uint64_t largest = 512 if _next(random) % 8 else size_max
        cdef uint64_t sequence = ((self.written[number] >> 16) + 1) << 16
        memset(&request, 0, sizeof(request))
        memset(&reply, 0, sizeof(reply))
        request.key = key
        request.key_size = _key(number, key)
        request.hash = cache_hash(self.engine.cache, key, request.key_size)
        request.op = OP_DELETE if die < 12 else OP_ADD if die < 20 else OP_TOUCH if (
            die < 28) else OP_SET
        request.value_size = (16 + _next(random) % (largest - 15)) & ~<uint64_t>7
        sequence |= request.value_size // 8
        if request.op == OP_TOUCH and die & 1 or request.op == OP_SET and die > 90:
            # some are touched, some expire within milliseconds
            request.expire_ms = cache_now_ms(self.engine.cache) + (2 if die > 90 else 100000)
        _fill(buffer, number, sequence, request.value_size)
        request.value = buffer
        status = cache_execute(self.engine.cache, &request, NULL, &reply)
        while status == CACHE_FLASH:
            cache_read_record(self.engine.cache, reply.position, record, 0)
            status = cache_execute(self.engine.cache, &request, record, &reply)
        self._note(number, sequence, &request, status, tally)

    cdef void _note(self, uint64_t number, uint64_t sequence, request_t *request, int status,
                    tally_t *tally) noexcept nogil:
        # What a read that starts from now on may find.
        if status == CACHE_NO_MEMORY or status == CACHE_TOO_LARGE or status == CACHE_BUSY:
            tally.refused += 1
            self.state[number] = STATE_UNKNOWN
        elif request.op == OP_DELETE:
            store64(&self.written[number], sequence)
            self.state[number] = STATE_GONE
        elif request.op == OP_SET or (request.op == OP_ADD and status == CACHE_OK):
            store64(&self.written[number], sequence)
            self.state[number] = STATE_UNKNOWN if request.expire_ms else STATE_THERE
        elif request.op == OP_TOUCH and status == CACHE_MISS:
            self.state[number] = STATE_GONE
