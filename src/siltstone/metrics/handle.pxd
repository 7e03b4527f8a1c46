"""A series for whoever appends to it often. See handle.pyx."""
from siltstone.metrics.head cimport Head, series_t

cdef class SeriesHandle:
    cdef Head head
    cdef series_t *series
    cdef readonly object labels
