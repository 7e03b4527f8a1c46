"""The segments of an ordered stream: table, choosing ahead, opening. See chain.pyx.

stream.lock is held in every call but chain_prepare().
"""
from libc.stdint cimport int64_t, uint32_t, uint64_t

from siltstone.log.ordered cimport ordered_buffer_t, ordered_t

cdef enum chain_result_t:
    CHAIN_OK = 0
    CHAIN_FULL = 1          # no slot is free
    CHAIN_NOT_READY = 2     # drop the lock, chain_prepare(), take it, look again

cdef int64_t chain_find(ordered_t *stream, uint64_t version) noexcept nogil     # slot or -1
cdef int chain_enter(ordered_t *stream, uint64_t version, uint32_t slot) noexcept nogil
cdef void chain_leave(ordered_t *stream, uint32_t slot) noexcept nogil
cdef int chain_room(ordered_t *stream, uint32_t slots) noexcept nogil           # 0 or -ENOMEM
cdef uint64_t chain_version_free(ordered_t *stream, uint64_t above) noexcept nogil
# A slot for something that is not of the stream: SLOT_NONE when fewer than `spare` would be left.
cdef uint32_t chain_take(ordered_t *stream, uint32_t spare) noexcept nogil
# That slot, known from an earlier life: 0; -ENOMEM; 1 when a live segment of the stream is there.
cdef int chain_claim(ordered_t *stream, uint32_t slot) noexcept nogil
# Take the next segment and write its header and first run header into `buffer`.
cdef int chain_open(ordered_t *stream, ordered_buffer_t *buffer, uint32_t flags) noexcept nogil
cdef void chain_run_header(ordered_t *stream, ordered_buffer_t *buffer) noexcept nogil
# Fill the next chosen slot that has no blocks yet with zeros. 0, 1 = another thread is at it, or
# -errno. Takes and drops the lock.
cdef int chain_prepare(ordered_t *stream) noexcept nogil
cdef bint chain_wants_preparing(ordered_t *stream) noexcept nogil
