"""Recovery of a cache's segments: what engines pass in. See scan.pyx."""
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from siltstone.log.state cimport log_t

cdef struct segment_memory_t:   # 8 + 8 + 4 + 4 = 24 bytes
    # What the scan of a segment finds out, kept by engines that need no scan after a clean stop.
    uint64_t version            # 0 = the slot is free
    uint64_t tail
    uint32_t largest
    uint32_t zero

cdef void segment_remember(log_t *log, uint32_t slot, segment_memory_t *memory) noexcept nogil
# After adopt_segments; False: the slot holds something else now.
cdef bint segment_recall(log_t *log, uint32_t slot, segment_memory_t *memory) noexcept nogil

# Called for every valid record whose live bit is set, without the GIL; with several threads, by
# several at a time. 1: the record counts; 0: it does not, its live bit is cleared.
ctypedef int (*found_t)(void *context, uint64_t position, uint8_t kind, const char *payload,
                        uint32_t size) noexcept nogil

cdef class Found:
    """A callback with its context. An engine subclasses it and sets both in __cinit__."""
    cdef found_t found
    cdef void *context
