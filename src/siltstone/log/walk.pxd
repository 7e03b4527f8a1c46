"""Walking the records of a segment's image. See walk.pyx."""
from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef struct walk_t:
    const char *image           # of the segment, from its start
    uint64_t size               # bytes of it
    const uint64_t *live        # the segment's live bits, NULL = none: used after damage only
    uint64_t segment_bytes
    uint64_t version
    uint32_t slot
    uint32_t salt
    uint64_t cursor             # 0 at the start
    uint64_t damaged            # places at which something else stood than a record

# One verified record a call; false at the end. `payload` points into the image.
cdef bint walk_next(walk_t *walk, uint64_t *position, uint8_t *kind, const char **payload,
                    uint32_t *size) noexcept nogil
