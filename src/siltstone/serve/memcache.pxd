"""The memcached session. See memcache.pyx."""
from libc.stdint cimport uint32_t, uint64_t

from siltstone.cache.engine cimport CacheEngine
from siltstone.serve.request cimport session_t, shared_t
from siltstone.serve.wire cimport output_t

# Parse and execute what s.input holds; a step_t other than STEP_DONE. For transports without a
# GIL: STEP_ADMIN alone needs Python.
cdef int session_loop(session_t *s) noexcept nogil
# All parked reads are back: put their answers where they belong.
cdef void session_assemble(session_t *s) noexcept nogil

cdef class Shared:
    cdef shared_t shared
    cdef output_t spare         # an output buffer that no session is using

cdef class Session:
    cdef session_t s
    cdef CacheEngine engine
    cdef Shared shared
    cdef readonly object control
    cdef public object owner    # whatever the transport wants to find again
    cdef readonly bint paused
    cdef readonly bint closing
    cdef readonly bint settled  # nothing is pending, paused or closing
    cdef object stream
    cdef bint closed
    cdef char *gathered
    cdef uint64_t gathered_start
    cdef uint64_t gathered_size
    cdef uint64_t gathered_capacity
    cdef uint64_t accounted
    cdef uint32_t in_flight

    cpdef bytes feed(self, data)
    cdef bint gather(self, const char *data, uint64_t size, uint64_t announced)
    cdef void keep(self, bint direct)
    cdef bytes run(self, bint direct)
    cdef bint refused(self)
    cdef int admin(self) except -1
    cdef bint pull(self)
    cdef bytes take_output(self)
    cdef void account(self)

cdef class Receiver:
    cdef public Session session
    cdef public object write    # the transport's
    cdef public double last     # when something was received: seconds of the monotonic clock
