"""The moment that a checkpoint describes, taken without the GIL. See capture.pyx."""
from libc.stdint cimport uint32_t, uint64_t

from siltstone.log.ordered cimport ordered_segment_t, ordered_t

cdef struct captured_segment_t:
    uint32_t slot
    ordered_segment_t segment

cdef struct capture_t:
    uint64_t start
    uint64_t replay_from
    captured_segment_t *segments
    uint32_t segment_count
    uint64_t *groups            # ids of the open ones
    uint32_t group_count

# A result of the log (log.pxd) or -ENOMEM. Call it while the engine's state stands still.
cdef int capture_take(ordered_t *stream, capture_t *capture) noexcept nogil
cdef void capture_free(capture_t *capture) noexcept nogil
