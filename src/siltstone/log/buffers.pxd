"""The pool of write buffers: descriptors and their states. See buffers.pyx."""
from libc.stdint cimport int64_t, uint32_t, uint64_t

from siltstone.log.state cimport log_t

cdef inline uint32_t word_state(uint64_t word) noexcept nogil:
    return <uint32_t>(word & 0xFF)

cdef inline uint32_t word_owner(uint64_t word) noexcept nogil:
    return <uint32_t>((word >> 8) & 0xFF)

cdef inline uint32_t word_stamp(uint64_t word) noexcept nogil:
    return <uint32_t>((word >> 16) & 0xFFFFFF)

# With the stream's lock held:
cdef int64_t buffers_take(log_t *log, uint32_t stream) noexcept nogil       # index or -1
cdef void buffers_give(log_t *log, uint32_t index) noexcept nogil
cdef void buffers_attach(log_t *log, uint32_t stream, uint32_t index, uint32_t slot,
                         uint64_t run_offset) noexcept nogil
cdef void buffers_seal(log_t *log, uint32_t stream) noexcept nogil
cdef void buffers_discard(log_t *log, uint32_t stream) noexcept nogil
cdef void buffers_repair(log_t *log, uint32_t stream) noexcept nogil
# Without a lock:
cdef int64_t buffers_claim(log_t *log) noexcept nogil                       # index or -1
cdef void buffers_release(log_t *log, uint32_t index) noexcept nogil
cdef int64_t buffers_find(log_t *log, uint64_t version, uint64_t offset) noexcept nogil
cdef bint buffers_pending(log_t *log, uint64_t version) noexcept nogil
cdef bint buffers_drop(log_t *log, uint64_t version) noexcept nogil
cdef uint32_t buffers_in_state(log_t *log, uint32_t state) noexcept nogil
cdef void buffers_after_fork(log_t *log) noexcept nogil
