"""The embedded face's hot half: get and set as Python calls them, without a detour.

`Cache` (cache.py) inherits from this and adds what is rarely called. Owns the way from Python
objects to the engine and back. Any thread; reads from RAM keep the GIL (they end within a
microsecond), changes and reads that must wait for the device release it.
"""
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memset

from siltstone.cache.engine cimport *
from siltstone.cache.shard cimport cache_t
from siltstone.log.log cimport LOG_NOWAIT

from siltstone import codecs, errors

cdef extern from "Python.h":
    const char *PyUnicode_AsUTF8AndSize(object text, Py_ssize_t *size) except NULL

cdef enum:
    RECORDS_KEPT = 8        # record buffers kept for the next flash read
    KEY_BYTES_MAX = 65536

cdef object _encode_value = codecs.encode_value
cdef object _decode_value = codecs.decode_value
cdef object _encode_key = codecs.encode_key

cdef struct key_t:
    const char *data
    Py_ssize_t size
    bint is_str


class Change:
    """Numbers of the operations and options that `_change` takes (engine.pxd)."""

    SET, ADD, REPLACE, APPEND, PREPEND = OP_SET, OP_ADD, OP_REPLACE, OP_APPEND, OP_PREPEND
    DELETE, INCR, DECR, TOUCH, META_GET = OP_DELETE, OP_INCR, OP_DECR, OP_TOUCH, OP_META_GET
    CAS, KEEP_TTL, WANT_VALUE, VIVIFY = OPT_CAS, OPT_KEEP_TTL, OPT_WANT_VALUE, OPT_VIVIFY
    NO_WRAP = OPT_NO_WRAP
    OK, MISS, NOT_STORED, EXISTS = CACHE_OK, CACHE_MISS, CACHE_NOT_STORED, CACHE_EXISTS
    NOT_NUMBER = CACHE_NOT_NUMBER


def raise_for(int status, key=None):
    """The exception that stands for a status of the engine."""
    if status == CACHE_BUSY:
        raise errors.Busy(
            "a shard of the cache was not free within one second: another process holds it "
            "(stopped, perhaps); nothing was changed, try again")
    if status == CACHE_TOO_LARGE:
        raise errors.TooLarge("the item is above item_size_max; raise it, or store less")
    if status == CACHE_NO_MEMORY:
        raise errors.OutOfMemory("the memory limit is reached and nothing could be evicted")
    if status == CACHE_NOT_NUMBER:
        raise errors.NotANumber("the value is not an unsigned decimal number")
    if status == CACHE_MISS:
        raise errors.KeyMissing(key)
    raise errors.DeviceFailed("the flash device failed; see the log and stats()")


cdef class Face:
    """Keys and values to bytes, bytes to the engine. Subclassed by Cache; not used alone."""

    cdef cache_t *_cache
    cdef readonly CacheEngine engine
    cdef object _codec
    cdef bint _asleep       # in a forked child: background work starts with the first change
    cdef record_t *_records[RECORDS_KEPT]
    cdef int _record_count

    def __cinit__(self, *args, **options):
        self._cache = NULL
        self._record_count = 0

    def __dealloc__(self):
        while self._record_count:
            self._record_count -= 1
            record_free(self._records[self._record_count])
            free(self._records[self._record_count])

    def _bind(self, CacheEngine engine, codec):
        self.engine = engine
        self._codec = codec
        self._cache = engine.cache

    def _unbind(self):
        # the engine itself lives until the last thread inside it has left
        self._cache = NULL

    def _sleep(self):
        self._asleep = True

    def _wake(self):
        """Overridden: start background work again."""
        self._asleep = False

    @property
    def closed(self) -> bool:
        return self._cache == NULL

    cdef cache_t *_open(self) except NULL:
        if self._cache == NULL:
            raise errors.Closed("this cache is closed")
        return self._cache

    cdef record_t *_record_take(self) except NULL:
        cdef record_t *record
        if self._record_count:
            self._record_count -= 1
            return self._records[self._record_count]
        record = <record_t *>calloc(1, sizeof(record_t))
        if record == NULL:
            raise MemoryError()
        return record

    cdef void _record_give(self, record_t *record) noexcept:
        record.position = 0
        if self._record_count < RECORDS_KEPT and record.capacity + record.value_capacity < 1 << 22:
            self._records[self._record_count] = record
            self._record_count += 1
        else:
            record_free(record)
            free(record)

    # Reading --------------------------------------------------------------------------------

    cdef object _in_memory(self, cache_t *cache, key_t *key, uint64_t hash, read_t *cursor,
                           int *status):
        """The value's bytes if RAM has them; else None, and `status` says why."""
        cdef object value
        cursor.tries = 0
        cursor.no_bump = False
        cursor.no_wait = True
        while True:
            status[0] = cache_find(cache, key.data, <uint32_t>key.size, hash, cursor)
            if status[0] != CACHE_FOUND:
                return None
            if cursor.locked:
                return self._copy_locked(cache, cursor)
            value = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>cursor.value_size)
            cache_copy(cursor, PyBytes_AS_STRING(value))
            if cache_found(cache, cursor):
                return value

    cdef object _fetch(self, cache_t *cache, key_t *key, uint64_t hash, meta_t *meta):
        """The value's bytes, or None; `meta` tells flags and CAS."""
        cdef read_t cursor
        cdef int status
        cdef object value = self._in_memory(cache, key, hash, &cursor, &status)
        if status == CACHE_FOUND:
            meta[0] = cursor.meta
            return value
        if status == CACHE_FLASH or status == CACHE_WOULD_BLOCK:
            return self._fetch_slowly(cache, key, hash, &cursor, meta, status == CACHE_FLASH)
        if status != CACHE_MISS:
            raise_for(status)
        return None

    cdef object _copy_locked(self, cache_t *cache, read_t *cursor):
        # Nothing of Python's inside the shard's lock: an exception would leave it taken.
        cdef char *copy = <char *>malloc(cursor.value_size + 1)
        if copy != NULL:
            cache_copy(cursor, copy)
        cache_found(cache, cursor)
        if copy == NULL:
            raise MemoryError()
        try:
            return PyBytes_FromStringAndSize(copy, <Py_ssize_t>cursor.value_size)
        finally:
            free(copy)

    cdef object _fetch_slowly(self, cache_t *cache, key_t *key, uint64_t hash, read_t *cursor,
                              meta_t *meta, bint on_flash):
        # Who waits (for the device, for a shard that another thread or process is in) does so
        # without the GIL: the others go on, and a fork that holds all shards gets it.
        cdef record_t *record = self._record_take()
        cdef int status = CACHE_WOULD_BLOCK
        cdef object value = None
        self.engine.inside += 1
        try:
            if on_flash:
                status = cache_fetch(cache, key.data, <uint32_t>key.size, hash, cursor, record,
                                     LOG_NOWAIT)
            if status == CACHE_WOULD_BLOCK:
                with nogil:
                    status = cache_read(cache, key.data, <uint32_t>key.size, hash, cursor, record)
            if status == CACHE_FOUND:
                meta[0] = cursor.meta
                value = PyBytes_FromStringAndSize(cursor.value, <Py_ssize_t>cursor.value_size)
            elif status != CACHE_MISS:
                raise_for(status)
        finally:
            self.engine.inside -= 1
            self._record_give(record)
        return value

    cdef inline object _value(self, object data, uint32_t flags):
        if flags == 0:
            return data
        if flags == 16:
            try:
                return (<bytes>data).decode()
            except UnicodeDecodeError:
                return data
        return _decode_value(self._codec, data, flags)

    def get(self, key, default=None):
        """The value under `key`, or `default`."""
        cdef cache_t *cache = self._open()
        cdef key_t where
        cdef meta_t meta
        cdef object keep = _key(key, &where)
        cdef object data = self._fetch(cache, &where, cache_hash(
            cache, where.data, <uint32_t>where.size), &meta)
        if data is None:
            return default
        return self._value(data, meta.client_flags)

    def _get_now(self, key, default, later):
        """`get` of what is in RAM; `later` when it must be waited for (flash, a shard's lock)."""
        cdef cache_t *cache = self._open()
        cdef key_t where
        cdef read_t cursor
        cdef int status
        cdef object keep = _key(key, &where)
        cdef object data = self._in_memory(cache, &where, cache_hash(
            cache, where.data, <uint32_t>where.size), &cursor, &status)
        if status == CACHE_FOUND:
            return self._value(data, cursor.meta.client_flags)
        return default if status == CACHE_MISS else later

    def __getitem__(self, key):
        cdef cache_t *cache = self._open()
        cdef key_t where
        cdef meta_t meta
        cdef object keep = _key(key, &where)
        cdef object data = self._fetch(cache, &where, cache_hash(
            cache, where.data, <uint32_t>where.size), &meta)
        if data is None:
            raise errors.KeyMissing(key)
        return self._value(data, meta.client_flags)

    def _get_meta(self, key):
        """(bytes, client flags, CAS number, expiry in Unix ms, on flash) or None."""
        cdef cache_t *cache = self._open()
        cdef key_t where
        cdef meta_t meta
        cdef object keep = _key(key, &where)
        cdef object data = self._fetch(cache, &where, cache_hash(
            cache, where.data, <uint32_t>where.size), &meta)
        if data is None:
            return None
        return data, meta.client_flags, meta.cas, meta.expire_ms, meta.on_flash

    def __contains__(self, key):
        cdef cache_t *cache = self._open()
        cdef key_t where
        cdef read_t cursor
        cdef int status
        cdef object keep = _key(key, &where)
        cdef meta_t meta
        cdef uint64_t hash = cache_hash(cache, where.data, <uint32_t>where.size)
        cursor.tries = 0
        cursor.no_bump = True
        cursor.no_wait = True
        while True:
            status = cache_find(cache, where.data, <uint32_t>where.size, hash, &cursor)
            if status == CACHE_FLASH or status == CACHE_WOULD_BLOCK:
                # the slot alone proves nothing: the key is compared in the record
                return self._fetch_slowly(
                    cache, &where, hash, &cursor, &meta, status == CACHE_FLASH) is not None
            if status == CACHE_MISS:
                return False
            if status != CACHE_FOUND:
                raise_for(status)
            if cache_found(cache, &cursor):
                return True

    # Changing -------------------------------------------------------------------------------

    cdef int _execute(self, cache_t *cache, request_t *request, reply_t *reply) except -1:
        cdef int status
        memset(reply, 0, sizeof(reply_t))
        if self._asleep:
            self._wake()
        self.engine.inside += 1
        with nogil:
            request.hash = cache_hash(cache, request.key, request.key_size)
            status = cache_execute(cache, request, NULL, reply)
        self.engine.inside -= 1
        return status if status != CACHE_FLASH else self._execute_flash(cache, request, reply)

    cdef int _execute_flash(self, cache_t *cache, request_t *request, reply_t *reply) except -1:
        cdef record_t *record = self._record_take()
        cdef int status = CACHE_FLASH
        self.engine.inside += 1
        with nogil:
            while status == CACHE_FLASH:
                if cache_read_record(cache, reply.position, record, 0) == CACHE_NO_MEMORY:
                    status = CACHE_NO_MEMORY
                    break
                status = cache_execute(cache, request, record, reply)
        self.engine.inside -= 1
        self._record_give(record)
        return status

    cdef int _store(self, object key, object value, int64_t expire_ms) except -1:
        cdef cache_t *cache = self._open()
        cdef key_t where
        cdef request_t request
        cdef reply_t reply
        cdef object keep = _key(key, &where), data = value, flags = 0
        if type(value) is not bytes:
            data, flags = _encode_value(self._codec, value)
        memset(&request, 0, sizeof(request))
        request.op = OP_SET
        request.options = OPT_STR_KEY if where.is_str else 0
        request.key = where.data
        request.key_size = <uint32_t>where.size
        request.value = PyBytes_AS_STRING(data)
        request.value_size = <uint64_t>PyBytes_GET_SIZE(data)
        request.client_flags = flags
        request.expire_ms = expire_ms
        cdef int status = self._execute(cache, &request, &reply)
        if status != CACHE_OK:
            raise_for(status)
        return 0

    def __setitem__(self, key, value):
        self._store(key, value, 0)

    def __delitem__(self, key):
        if self._change(OP_DELETE, key)[0] != CACHE_OK:
            raise errors.KeyMissing(key)

    def _change(self, int op, key, bytes data=b"", uint32_t flags=0, int64_t expire_ms=0,
                uint32_t options=0, uint64_t cas=0, uint64_t delta=0, uint64_t initial=0,
                uint64_t tag=0):
        """One operation of the engine: (status, number, CAS, value bytes or None, flags).

        `options` are the engine's OPT_ bits. Raises for busy, memory, device and size.
        """
        cdef cache_t *cache = self._open()
        cdef key_t where
        cdef request_t request
        cdef reply_t reply
        cdef int status
        cdef object keep = _key(key, &where), value = None
        memset(&request, 0, sizeof(request))
        request.op = <uint8_t>op
        request.options = options | (OPT_STR_KEY if where.is_str else 0)
        request.key = where.data
        request.key_size = <uint32_t>where.size
        request.value = PyBytes_AS_STRING(data)
        request.value_size = <uint64_t>PyBytes_GET_SIZE(data)
        request.client_flags = flags
        request.expire_ms = expire_ms
        request.vivify_expire_ms = expire_ms
        request.cas = cas
        request.delta = delta
        request.initial = initial
        request.tag = tag
        if tag:
            request.options |= OPT_TAG
        status = self._execute(cache, &request, &reply)
        try:
            if status in (CACHE_BUSY, CACHE_TOO_LARGE, CACHE_NO_MEMORY, CACHE_IO):
                raise_for(status)
            if options & OPT_WANT_VALUE and status == CACHE_OK and reply.value != NULL:
                value = PyBytes_FromStringAndSize(reply.value, <Py_ssize_t>reply.meta.value_size)
        finally:
            free(reply.value)
        if tag and status == CACHE_OK:
            self.engine.tag_stored(tag)
        return status, reply.number, reply.meta.cas, value, reply.meta.client_flags


cdef inline object _key(object key, key_t *where):
    # Points into `key` itself where possible; the returned object keeps the bytes alive.
    if type(key) is str:
        where.is_str = True
        try:
            where.data = PyUnicode_AsUTF8AndSize(key, &where.size)
            if 0 < where.size <= KEY_BYTES_MAX and where.data[0] != 0:
                return key
        except UnicodeEncodeError:
            pass
    elif type(key) is bytes:
        where.is_str = False
        where.data = PyBytes_AS_STRING(key)
        where.size = PyBytes_GET_SIZE(key)
        if 0 < where.size <= KEY_BYTES_MAX and where.data[0] != 0:
            return key
    where.is_str = isinstance(key, str)
    cdef object data = _encode_key(key)
    where.data = PyBytes_AS_STRING(data)
    where.size = PyBytes_GET_SIZE(data)
    return data
