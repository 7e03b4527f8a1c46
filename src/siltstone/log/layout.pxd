"""Layout of the log's sections. See layout.pyx."""
from libc.stdint cimport uint64_t

from siltstone.log.state cimport log_header_t

cdef uint64_t version_entries(uint64_t segment_count) noexcept nogil
# Fills the header's offsets; returns the section's size.
cdef uint64_t lay_out(log_header_t *header, uint64_t segment_count, uint64_t stream_count,
                      uint64_t buffer_count) noexcept nogil
cdef int check_geometry(object device, uint64_t buffer_bytes, uint64_t buffers, uint64_t streams,
                        uint64_t segments) except -1
