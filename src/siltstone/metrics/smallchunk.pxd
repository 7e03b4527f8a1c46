"""Small chunks: how samples are kept from the head's sealing to the merge. See smallchunk.pyx."""
from libc.stdint cimport int64_t, uint32_t, uint64_t

cdef enum:
    SMALL_CODEC = 1             # in a chunk's descriptor
    SMALL_HEADER = 1 + 8        # flags, first time
    SMALL_SAMPLE_MAX = 10 + 10  # bytes of one more sample at most

# Whether they lie all as far apart.
cdef bint small_even(const int64_t *times, uint32_t count) noexcept nogil
# Bytes that small_encode() may write for `count` samples.
cdef uint64_t small_bound(uint32_t count) noexcept nogil
cdef uint64_t small_encode(const int64_t *times, const double *values, uint32_t count,
                           char *out) noexcept nogil
# 0, or -1 when these are not `count` samples.
cdef int small_decode(const char *data, uint64_t size, uint32_t count, int64_t *times,
                      double *values) noexcept nogil
