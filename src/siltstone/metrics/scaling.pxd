"""Numbers with few decimals as whole numbers. See scaling.pyx."""
from libc.stdint cimport int64_t, uint32_t

cdef enum:
    SCALE_MAX = 6               # decimals that are looked for
    SCALE_NONE = -1
    SCALE_KNOWN = 256           # so many values at most: scale_of() has looked at them together

# The fewest decimals that all values have, at most SCALE_MAX, else SCALE_NONE.
cdef int scale_of(const double *values, uint32_t count) noexcept nogil
# The values times 10^scale; False when one of them is no such whole number after all. `known`: it
# is what scale_of() said of at most SCALE_KNOWN values.
cdef bint scale_up(const double *values, uint32_t count, int scale, int64_t *whole,
                   bint known) noexcept nogil
# Back again: `whole` over 10^scale; may be the same memory. Any numbers do no harm.
cdef void scale_down(const int64_t *whole, uint32_t count, int scale,
                     double *values) noexcept nogil
