"""memcached's binary protocol. See binary.pyx."""
from siltstone.serve.request cimport parked_t, session_t
from siltstone.serve.wire cimport output_t

cdef enum:
    REQUEST_MAGIC = 0x80        # first byte of every request

# Run the packet at s.at.
cdef int next_packet(session_t *s) noexcept nogil
# A parked read of a get is back: its reply, "Not found" on a miss, nothing if that was asked for.
cdef void put_parked_packet(parked_t *parked, output_t *out) noexcept nogil
# The reply to a get whose item is locked.
cdef void put_busy_packet(parked_t *parked, output_t *out) noexcept nogil
