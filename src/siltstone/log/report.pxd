"""Views of the log for people and tests. See report.pyx."""
from libc.stdint cimport uint32_t

from siltstone.log.state cimport log_t

cdef dict segment_dict(log_t *log, uint32_t slot)
cdef dict statistics_dict(log_t *log)
cdef int check_segments(log_t *log, bint exact) except -1
cdef int check_buffers(log_t *log) except -1
