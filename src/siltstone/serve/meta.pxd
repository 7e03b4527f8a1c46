"""The meta commands: mg, ms, md, ma, mn, me. See meta.pyx."""
from siltstone.serve.request cimport parked_t, session_t
from siltstone.serve.wire cimport output_t

cdef int run_meta(session_t *s, const char *at, const char *end) noexcept nogil
# A parked read of mg is back: its reply, EN on a miss.
cdef void put_parked_meta(session_t *s, parked_t *parked, output_t *out) noexcept nogil
