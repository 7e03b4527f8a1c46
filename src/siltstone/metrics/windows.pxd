"""What other modules use of the window functions: the quantile of a run of values."""

cdef double quantile_of(double *values, Py_ssize_t n, double q) noexcept nogil
