"""How the log's sections of the arena are laid out, and which configurations can work.

Called when an arena is created (it must know the sizes first) and when a log is created in it.
"""
from libc.stdint cimport uint64_t

from siltstone.log.arena cimport SECTION_BUFFERS, SECTION_LOG
from siltstone.log.format cimport RUN_ALIGNMENT, SEGMENT_SIZE_MAX
from siltstone.log.state cimport (
    BUFFERS_MAX, SLOTS_MAX, STREAMS_MAX, buffer_t, log_header_t, segment_t, stream_t)

from siltstone import errors

cdef uint64_t _align(uint64_t size) noexcept nogil:
    return (size + 63) & ~<uint64_t>63

cdef uint64_t version_entries(uint64_t segment_count) noexcept nogil:
    cdef uint64_t entries = 4
    while entries < 2 * segment_count:
        entries *= 2
    return entries

cdef uint64_t lay_out(log_header_t *header, uint64_t segment_count, uint64_t stream_count,
                       uint64_t buffer_count) noexcept nogil:
    # The section's parts, one after the other; its size.
    cdef uint64_t offset = _align(sizeof(log_header_t))
    header.streams_offset = offset
    offset += _align(stream_count * sizeof(stream_t))
    header.segments_offset = offset
    offset += _align(segment_count * sizeof(segment_t))
    header.versions_offset = offset
    offset += _align(version_entries(segment_count) * 8)
    header.buffers_offset = offset
    return offset + _align(buffer_count * sizeof(buffer_t))


def log_section_bytes(segments: int, streams: int, buffers: int) -> int:
    """Bytes of the arena's section SECTION_LOG for this configuration."""
    cdef log_header_t header
    return lay_out(&header, segments, streams, buffers)


def log_sections(segments: int, streams: int, buffers: int, buffer_bytes: int) -> dict[int, int]:
    """Both sections that the log needs, as `Arena` takes them."""
    return {SECTION_LOG: log_section_bytes(segments, streams, buffers),
            SECTION_BUFFERS: buffers * buffer_bytes}


cdef int check_geometry(object device, uint64_t buffer_bytes, uint64_t buffers,
                         uint64_t streams, uint64_t segments) except -1:
    cdef uint64_t segment_bytes = device.segment_bytes
    if segment_bytes % RUN_ALIGNMENT or not RUN_ALIGNMENT <= segment_bytes <= SEGMENT_SIZE_MAX:
        raise errors.ConfigError("segment size must be a multiple of 4 KiB, 1 GiB at most")
    if buffer_bytes % RUN_ALIGNMENT or not RUN_ALIGNMENT <= buffer_bytes <= SEGMENT_SIZE_MAX:
        raise errors.ConfigError("buffer size must be a multiple of 4 KiB, 1 GiB at most")
    if not 1 <= segments <= min(SLOTS_MAX, device.segment_count):
        raise errors.ConfigError(f"a log has 1 to {SLOTS_MAX} segments, all of them on its "
                                 f"device ({device.segment_count}), not {segments}")
    if not 1 <= streams <= STREAMS_MAX:
        raise errors.ConfigError(f"a log has 1 to {STREAMS_MAX} streams, not {streams}")
    if not 2 <= buffers <= BUFFERS_MAX:
        raise errors.ConfigError(f"a log has 2 to {BUFFERS_MAX} write buffers, not {buffers}")
    return 0
