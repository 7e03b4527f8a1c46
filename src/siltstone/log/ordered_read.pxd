"""Reading one record of an ordered stream. See ordered_read.pyx."""
from libc.stdint cimport uint32_t, uint64_t

from siltstone.log.ordered cimport ordered_t

# Read the record at `position` (header first) into `out`; *size = bytes there. LOG_NOTHING: an
# aborted reservation. LOG_SHORT: *size says what is needed.
cdef int ordered_read(ordered_t *stream, uint64_t position, char *out, uint64_t capacity,
                      uint64_t *size, uint32_t flags) noexcept nogil
