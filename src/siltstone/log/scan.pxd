"""Recovery of a cache's segments: what engines pass in. See scan.pyx."""
from libc.stdint cimport uint8_t, uint32_t, uint64_t

# Called for every valid record whose live bit is set, without the GIL; with several threads, by
# several at a time. 1: the record counts; 0: it does not, its live bit is cleared.
ctypedef int (*found_t)(void *context, uint64_t position, uint8_t kind, const char *payload,
                        uint32_t size) noexcept nogil

cdef class Found:
    """A callback with its context. An engine subclasses it and sets both in __cinit__."""
    cdef found_t found
    cdef void *context
