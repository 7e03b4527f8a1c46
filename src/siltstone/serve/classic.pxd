"""The classic text commands. See classic.pyx."""
from siltstone.serve.request cimport parked_t, session_t
from siltstone.serve.wire cimport output_t

cdef int run_keys(session_t *s, const char *at, const char *end) noexcept nogil
cdef int run_get(session_t *s, int kind, const char *at, const char *end) noexcept nogil
cdef int run_classic(session_t *s, const char *at, const char *end) noexcept nogil
# A parked read of get or gets is back: its VALUE lines, nothing on a miss.
cdef void put_parked_value(parked_t *parked, output_t *out) noexcept nogil
# Is the value of s.request there and may it be stored? See classic.pyx.
cdef int value_step(session_t *s) noexcept nogil
