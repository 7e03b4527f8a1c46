"""The memcached session: bytes in, bytes out, no sockets (sans-IO).

Owns the input that is not yet a whole command, the output not yet given to the transport, and
flash reads on their way. Promises: replies strictly in order; never raises for what a client
sends; at most one announced value, one line and `output_size_max` (plus one value) in memory.
Called by one thread at a time; a whole received buffer costs one call. What a transport does:

    out = session.feed(data)            # write `out`
    if session.closing: close when written
    if session.pending: session.submit(pool, completions); when all are back: session.resume()
    if session.paused: when the client has read what was written: session.resume()

While pending or paused the transport stops reading; what it still feeds is kept for later.
"""
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.errno cimport EAGAIN
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memchr, memcmp, memcpy, memmove, memset

from siltstone.cache.engine cimport CACHE_FOUND, CACHE_IO, CACHE_MISS, CacheEngine, record_free
from siltstone.log.atomics cimport add64, load64_relaxed, store64_relaxed
from siltstone.log.latency cimport now_ns
from siltstone.log.workers cimport Completions, WorkerPool, completions_take, job_t, pool_submit
from siltstone.serve.binary cimport (
    REQUEST_MAGIC, next_packet, put_busy_packet, put_parked_packet,
)
from siltstone.serve.classic cimport put_parked_value, run_classic, run_get, run_keys
from siltstone.serve.meta cimport put_parked_meta, run_meta
from siltstone.serve.request cimport (
    KEYS_GET, KEYS_NONE, PARKED_META, PARKED_PACKET, PARKED_RECORD, PROTOCOL_AUTO,
    PROTOCOL_BINARY, PROTOCOL_TEXT, STEP_ADMIN, STEP_CLOSE, STEP_DONE,
    STEP_FULL, STEP_MORE, STEP_READS, parked_free, parked_t, session_begin, session_clear,
    session_count, session_t,
)
from siltstone.serve cimport request
from siltstone.serve import packets
from siltstone.serve.wire cimport output_free, output_t, put

cdef enum:
    LINE_SIZE_USUAL = 2048      # of every command but the gets with many keys
    SPACES_MAX = 100            # before a get's name
    KEPT_SIZE_MAX = 65536       # a larger idle buffer goes back to the allocator

# protocol_t of the setting.
PROTOCOLS = {"auto": PROTOCOL_AUTO, "ascii": PROTOCOL_TEXT, "binary": PROTOCOL_BINARY}

# What Control answers to a line that ends the connection.
CLOSE = object()


def item_size(key_size: int, client_flags: int, value_size: int) -> int:
    """What memcached would call an item's size."""
    return request.item_size(key_size, client_flags, value_size)


def item_class(size: int) -> int:
    """The slab class that memcached would choose for it."""
    return request.item_class(size)


# The loop -----------------------------------------------------------------------------------


cdef int session_loop(session_t *s) noexcept nogil:
    cdef uint64_t skipped
    cdef int step
    while True:
        if s.out.failed:
            return STEP_CLOSE
        if s.swallow:
            skipped = min(s.swallow, s.size - s.at)
            s.at += skipped
            s.swallow -= skipped
        if s.at == s.size:
            return STEP_MORE
        if s.out.size >= s.output_size_max:
            return STEP_FULL
        if s.keys_kind != KEYS_NONE:
            s.next = s.at + s.keys_next
            step = run_keys(s, s.input + s.at + s.keys_offset, s.input + s.at + s.keys_size)
        elif s.size - s.at < s.need:
            return STEP_MORE
        else:
            step = next_packet(s) if speaks_binary(s) else next_line(s)
        if step == STEP_CLOSE and s.parked_count:
            step = STEP_READS       # replies before it are still to come
        if step != STEP_DONE:
            return step
        s.at = s.next
        s.need = 0
        s.scanned = 0


cdef bint speaks_binary(session_t *s) noexcept nogil:
    """As memcached: a connection's first byte decides for its life."""
    if s.protocol == PROTOCOL_AUTO:
        s.protocol = (PROTOCOL_BINARY if s.input[s.at] == <char>REQUEST_MAGIC
                      else PROTOCOL_TEXT)
    return s.protocol == PROTOCOL_BINARY


cdef int next_line(session_t *s) noexcept nogil:
    """Find the line at s.at and run it."""
    cdef const char *at = s.input + s.at
    cdef uint64_t left = s.size - s.at
    cdef const char *end
    end = <const char *>memchr(at + s.scanned, b'\n', left - s.scanned)
    if end == NULL:
        s.scanned = left
        # one more than usual may be the CR
        if left > LINE_SIZE_USUAL + 1 and not may_be_long(s, at, left):
            return STEP_CLOSE
        return STEP_MORE
    s.scanned = end - at
    s.next = s.at + s.scanned + 1
    if end > at and (end - 1)[0] == b'\r':
        end -= 1
    if end - at > LINE_SIZE_USUAL and not may_be_long(s, at, end - at):
        return STEP_CLOSE
    return run_line(s, at, end)


cdef bint may_be_long(session_t *s, const char *at, uint64_t size) noexcept nogil:
    """Only a get may have a long line; a bound there is too."""
    cdef uint32_t spaces = 0
    if size > s.line_size_max:
        return False
    while at[0] == b' ' and spaces < SPACES_MAX:
        at += 1
        spaces += 1
    return (memcmp(at, b"get ", 4) == 0 or memcmp(at, b"gets ", 5) == 0
            or memcmp(at, b"gat ", 4) == 0 or memcmp(at, b"gats ", 5) == 0)


cdef int run_line(session_t *s, const char *at, const char *end) noexcept nogil:
    cdef uint64_t size = end - at
    cdef char letter
    cdef int step
    s.line = at
    s.line_end = end
    if size > 4 and memcmp(at, b"get ", 4) == 0:
        return run_get(s, KEYS_GET, at + 4, end)
    if size >= 2 and at[0] == b'm' and (size == 2 or at[2] == b' '):
        letter = at[1]
        if letter in (b'g', b's', b'd', b'a', b'n', b'e'):
            return run_meta(s, at, end)
    step = run_classic(s, at, end)
    if step == STEP_ADMIN and s.parked_count:
        return STEP_READS
    return step


cdef void session_assemble(session_t *s) noexcept nogil:
    cdef output_t done
    cdef uint64_t copied = 0
    cdef uint32_t i = 0
    cdef uint32_t last
    cdef bint busy
    cdef parked_t *parked
    memset(&done, 0, sizeof(done))
    while i < s.parked_count:
        parked = s.parked[i]
        if parked.kind == PARKED_RECORD:
            s.record_ready = True
            i += 1
            continue
        last = i
        busy = False
        while (last < s.parked_count and s.parked[last].command == parked.command
               and s.parked[last].kind != PARKED_RECORD):
            busy |= not read_ended(s.parked[last].status)
            last += 1
        if busy:
            copied = replace_reply(s, parked, &done, copied)
            i = last
            continue
        while i < last:
            parked = s.parked[i]
            put(&done, s.out.data + copied, parked.offset - copied)
            copied = parked.offset
            if parked.kind == PARKED_META:
                put_parked_meta(s, parked, &done)
            elif parked.kind == PARKED_PACKET:
                put_parked_packet(parked, &done)
            else:
                put_parked_value(parked, &done)
            i += 1
    put(&done, s.out.data + copied, s.out.size - copied)
    for i in range(s.parked_count):
        parked_free(s.parked[i])
    s.parked_count = s.parked_done = s.parked_before = 0
    output_free(&s.out)
    s.out = done
    s.reply_start = done.size


cdef bint read_ended(int status) noexcept nogil:
    return status == CACHE_FOUND or status == CACHE_MISS or status == CACHE_IO


cdef uint64_t replace_reply(session_t *s, parked_t *parked, output_t *done,
                            uint64_t copied) noexcept nogil:
    """One line instead of a whole command's reply. Returns how far the output is dealt with."""
    put(done, s.out.data + copied, parked.start - copied)
    if parked.kind == PARKED_PACKET:
        put_busy_packet(parked, done)
    else:
        put(done, b"SERVER_ERROR busy\r\n", 19)
    if s.keys_kind != KEYS_NONE and parked.command == s.command:
        s.keys_kind = KEYS_NONE
        s.at += s.keys_next
        s.need = s.scanned = 0
    return parked.end


# What sessions share ------------------------------------------------------------------------


cdef class Shared:
    """Counters and limits of all sessions of a server."""

    def __init__(self, buffered_max: int = 1 << 30) -> None:
        self.shared.buffered_max = buffered_max

    def __dealloc__(self):
        output_free(&self.spare)

    @property
    def bytes_read(self) -> int:
        return load64_relaxed(&self.shared.bytes_read)

    @property
    def bytes_written(self) -> int:
        return load64_relaxed(&self.shared.bytes_written)

    @property
    def buffered(self) -> int:
        """Bytes that the buffers of all sessions hold now."""
        return load64_relaxed(&self.shared.buffered)

    @property
    def detail(self) -> bool:
        """Are operations counted by key prefix (`stats detail on`)?"""
        return load64_relaxed(&self.shared.detail) != 0

    @detail.setter
    def detail(self, on: bool) -> None:
        store64_relaxed(&self.shared.detail, 1 if on else 0)


def completed(Completions completions not None) -> list:
    """The sessions whose last flash read has come back: resume each."""
    cdef list ready = []
    cdef job_t *job = completions_take(&completions.list)
    cdef job_t *following
    cdef Session session
    while job != NULL:
        following = job.next
        session = <Session>job.owner
        session.in_flight -= 1
        session.s.parked_done += 1
        if session.s.parked_done == session.s.parked_count:
            ready.append(session)
        Py_DECREF(session)
        job = following
    return ready


# The session --------------------------------------------------------------------------------


cdef class Session:
    """One client's connection, without the connection."""

    def __init__(self, CacheEngine engine not None, control, settings) -> None:
        self.engine = engine
        self.control = control
        self.shared = control.shared
        self.s.cache = engine.cache
        self.s.shared = &self.shared.shared
        self.s.face = <void *>self
        self.s.line_size_max = settings.line_size_max
        self.s.output_size_max = settings.output_size_max
        self.s.item_size_max = settings.item_size_max
        self.s.protocol = PROTOCOLS[settings.protocol]
        self.settled = True

    def __dealloc__(self):
        # no read is out: each holds a reference on the session
        session_clear(&self.s)
        free(self.gathered)
        if self.shared is not None:
            add64(&self.shared.shared.buffered, -self.accounted)

    @property
    def pending(self) -> int:
        """Flash reads that must be done before this session goes on."""
        return self.s.parked_count - self.s.parked_done

    @property
    def buffered(self) -> int:
        """Bytes that this session's buffers hold."""
        return self.gathered_capacity + self.s.out.capacity

    cpdef bytes feed(self, data):
        """Take what was received; returns what is to be sent."""
        cdef Py_buffer view
        if self.closed or self.closing:
            return b""
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            add64(&self.shared.shared.bytes_read, view.len)
            if (self.gathered_size == 0 and self.s.parked_count == 0 and not self.paused):
                self.s.input = <const char *>view.buf
                self.s.size = view.len
                self.s.at = 0
                return self.run(True)
            if not self.gather(<const char *>view.buf, view.len, 0):
                self.closing = True
                self.settled = False
                return b""
        finally:
            PyBuffer_Release(&view)
        if self.s.parked_count or self.paused or self.gathered_size < self.s.need:
            return b""
        return self.run(False)

    def resume(self) -> bytes:
        """Go on after the parked reads are back, or after the output was drained."""
        if self.closed or self.closing or self.s.parked_done < self.s.parked_count:
            return b""
        if self.s.parked_count:
            with nogil:
                session_assemble(&self.s)
        self.paused = False
        return self.run(False)

    def submit(self, WorkerPool pool, Completions completions) -> bool:
        """Hand the parked reads to the pool; False: its queue is full, call again later.

        Without a pool they are done before this returns.
        """
        cdef uint32_t i
        cdef int result
        cdef parked_t *parked
        for i in range(self.s.parked_count):
            parked = self.s.parked[i]
            if parked.submitted:
                continue
            if pool is None or completions is None:
                parked.submitted = True
                with nogil:
                    parked.job.run(&parked.job)
                self.s.parked_done += 1
                continue
            parked.job.completions = &completions.list
            parked.job.owner = <void *>self
            Py_INCREF(self)
            self.in_flight += 1
            result = pool_submit(&pool.pool, &parked.job)
            if result == 0:
                parked.submitted = True
                continue
            self.in_flight -= 1
            Py_DECREF(self)
            if result == -EAGAIN:
                return False
            return self.submit(None, None)
        return True

    def count_prefix(self, key: bytes, what: int) -> None:
        self.control.count_prefix(key, what)

    def close(self) -> None:
        """The connection is gone. Reads that are out finish and are forgotten."""
        self.closed = True
        self.stream = None

    # Input --------------------------------------------------------------------------------

    cdef bint gather(self, const char *data, uint64_t size, uint64_t announced):
        """Keep input for later; room for `announced` bytes is made at once."""
        cdef uint64_t needed = max(self.gathered_size + size, announced)
        cdef uint64_t capacity = self.gathered_capacity
        cdef char *grown
        if self.gathered_start and self.gathered_start + needed > capacity:
            memmove(self.gathered, self.gathered + self.gathered_start, self.gathered_size)
            self.gathered_start = 0
        if needed > capacity:
            capacity = max(needed, capacity * 2) if announced == 0 else needed
            grown = <char *>realloc(self.gathered, capacity)
            if grown == NULL:
                return False
            self.gathered = grown
            self.gathered_capacity = capacity
        memcpy(self.gathered + self.gathered_start + self.gathered_size, data, size)
        self.gathered_size += size
        return True

    cdef void keep(self, bint direct):
        """After a run: what was not consumed is gathered, the rest let go."""
        cdef uint64_t left = self.s.size - self.s.at
        if direct:
            if left and not self.gather(self.s.input + self.s.at, left, self.s.need):
                self.closing = True
        else:
            self.gathered_start += self.s.at
            self.gathered_size = left
            if left == 0:
                self.gathered_start = 0
                if self.gathered_capacity > KEPT_SIZE_MAX:
                    free(self.gathered)
                    self.gathered = NULL
                    self.gathered_capacity = 0
            elif (self.s.need > self.gathered_capacity - self.gathered_start
                    and not self.gather(NULL, 0, self.s.need)):
                self.closing = True
        self.s.input = NULL
        self.s.size = self.s.at = 0

    # Running ------------------------------------------------------------------------------

    cdef bytes run(self, bint direct):
        cdef session_t *s = &self.s
        cdef int step
        cdef bytes taken
        if not direct:
            s.input = self.gathered + self.gathered_start
            s.size = self.gathered_size
            s.at = 0
        if s.out.data == NULL:
            s.out = self.shared.spare
            self.shared.spare.data = NULL
            self.shared.spare.size = self.shared.spare.capacity = 0
        session_begin(s)
        step = STEP_FULL if self.stream is not None and not self.pull() else STEP_DONE
        while step == STEP_DONE:
            with nogil:
                step = session_loop(s)
            if step == STEP_ADMIN:
                step = self.admin()
            elif step == STEP_MORE and self.refused():
                if s.need == 0:
                    step = STEP_CLOSE       # a line that does not end
                    break
                s.no_memory = True
                s.need = 0
                step = STEP_DONE
        self.closing = self.closing or step == STEP_CLOSE
        self.paused = step == STEP_FULL
        session_count(s)
        self.keep(direct)
        taken = self.take_output()
        self.settled = not (self.closing or self.paused or s.parked_count)
        return taken

    cdef bint refused(self):
        """Would what must be gathered go past what all sessions may hold?"""
        cdef uint64_t needed = max(self.s.need, self.s.size - self.s.at)
        return (needed > KEPT_SIZE_MAX and needed > self.gathered_capacity
                and load64_relaxed(&self.shared.shared.buffered) + needed
                > self.shared.shared.buffered_max)

    cdef int admin(self) except -1:
        """A line or packet that the C loop does not know: Control answers. Returns a step."""
        cdef session_t *s = &self.s
        cdef bytes asked = s.line[:s.line_end - s.line]
        cdef bint binary = s.protocol == PROTOCOL_BINARY
        session_count(s)
        try:
            answer = self.control.command(packets.line_of(asked) if binary else asked,
                                          s.out.size == 0)
        except Exception as error:
            self.control.failed(error)
            answer = b"SERVER_ERROR internal error\r\n"
        if binary:
            answer = packets.replies_to(asked, answer)
        s.at = s.next
        s.need = s.scanned = 0
        if answer is CLOSE:
            return STEP_CLOSE
        if isinstance(answer, bytes):
            put(&s.out, answer, len(answer))
            return STEP_DONE
        self.stream = iter(answer)
        return STEP_DONE if self.pull() else STEP_FULL

    cdef bint pull(self):
        """Output of a long answer; True when it has ended."""
        cdef bytes piece
        while self.s.out.size < self.s.output_size_max:
            try:
                piece = next(self.stream, None)
            except Exception as error:
                # half an answer is out: only closing keeps the client from misreading it
                self.control.failed(error)
                self.closing = True
                piece = None
            if piece is None:
                self.stream = None
                return True
            put(&self.s.out, piece, len(piece))
        return False

    # Output -------------------------------------------------------------------------------

    cdef bytes take_output(self):
        """What may be sent: all, or what comes before the first command with a parked read."""
        cdef output_t *out = &self.s.out
        cdef uint64_t size = self.s.parked[0].start if self.s.parked_count else out.size
        cdef bytes taken
        cdef uint32_t i
        if out.failed:
            self.closing = True
            size = 0
        taken = PyBytes_FromStringAndSize(out.data, size) if size else b""
        add64(&self.shared.shared.bytes_written, size)
        if self.s.parked_count and size:
            memmove(out.data, out.data + size, out.size - size)
            for i in range(self.s.parked_count):
                self.s.parked[i].start -= size
                self.s.parked[i].offset -= size
                self.s.parked[i].end -= size
            self.s.reply_start -= min(size, self.s.reply_start)
            out.size -= size
        if not self.s.parked_count:
            out.size = 0
            self.s.reply_start = 0
            if self.shared.spare.data == NULL and out.capacity <= 16 * KEPT_SIZE_MAX:
                self.shared.spare = out[0]
                out.data = NULL
                out.capacity = 0
            else:
                output_free(out)
            if self.s.record.capacity + self.s.record.value_capacity > KEPT_SIZE_MAX:
                if not self.s.record_ready:
                    record_free(&self.s.record)
            if self.s.reply.value_capacity > KEPT_SIZE_MAX:
                free(self.s.reply.value)
                self.s.reply.value = NULL
                self.s.reply.value_capacity = 0
        self.account()
        return taken

    cdef void account(self):
        cdef uint64_t now = self.gathered_capacity + self.s.out.capacity
        if now != self.accounted:
            add64(&self.shared.shared.buffered, now - self.accounted)
            self.accounted = now


# Between a transport and a session ----------------------------------------------------------


cdef class Receiver:
    """What a connection does for each received buffer: the transport's one call into Python.

    The rest of a connection is its subclass's, in Python. Compiled because of what it costs: as a
    Python method it took a tenth of the server's CPU for single sets (linux-perf, 50 connections).
    """

    def data_received(self, data) -> None:
        """Feed the session, write what it answers; `settle` when there is something to wait for."""
        cdef bytes out
        if self.session is None:
            return      # a connection too many: it is being closed
        out = self.session.feed(data)
        if len(out):
            self.write(out)
        self.last = now_ns() / 1e9
        if not self.session.settled:
            self.settle()

    def settle(self) -> None:
        """Overridden."""
