"""Numbers with few decimals as whole numbers. See scaling.pyx."""
from libc.stdint cimport int64_t, uint32_t

cdef enum:
    SCALE_MAX = 6               # decimals that are looked for
    SCALE_NONE = -1

# The fewest decimals that all values have, at most SCALE_MAX, else SCALE_NONE.
cdef int scale_of(const double *values, uint32_t count) noexcept nogil
# The values times 10^scale, which is what scale_of() said of them.
cdef void scale_up(const double *values, uint32_t count, int scale, int64_t *whole) noexcept nogil
# Back again: `whole` over 10^scale; may be the same memory. Any numbers do no harm.
cdef void scale_down(const int64_t *whole, uint32_t count, int scale,
                     double *values) noexcept nogil
