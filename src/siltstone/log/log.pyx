"""stand-in"""
cdef int log_append(log_t *log, uint32_t stream, uint8_t kind, const part_t *parts,
                    uint32_t count, uint64_t *position) noexcept nogil:
    return LOG_FAILED
cdef uint64_t log_record_bytes_max(log_t *log) noexcept nogil:
    return 0
cdef int log_read(log_t *log, uint64_t position, char *out, uint64_t capacity, uint64_t *size,
                  uint32_t flags) noexcept nogil:
    return LOG_GONE
cdef uint64_t log_read_hint(log_t *log, uint64_t position) noexcept nogil:
    return 0
cdef bint log_current(log_t *log, uint64_t position) noexcept nogil:
    return 0
cdef int log_live(log_t *log, uint64_t position) noexcept nogil:
    return 0
cdef void log_dead(log_t *log, uint64_t position) noexcept nogil:
    pass
cdef bint log_is_live(log_t *log, uint64_t position) noexcept nogil:
    return 0
cdef int log_write_one(log_t *log) noexcept nogil:
    return LOG_NOTHING
cdef int log_seal_idle(log_t *log, int64_t now_ms, int64_t age_ms) noexcept nogil:
    return 0
cdef int log_oldest(log_t *log, uint32_t stream_mask, segment_info_t *info) noexcept nogil:
    return LOG_NOTHING
cdef int log_emptiest(log_t *log, uint32_t stream_mask, segment_info_t *info) noexcept nogil:
    return LOG_NOTHING
cdef int log_forget(log_t *log, uint32_t slot, uint64_t version) noexcept nogil:
    return LOG_GONE
cdef uint32_t log_segments_free(log_t *log) noexcept nogil:
    return 0
cdef uint32_t log_segments_total(log_t *log) noexcept nogil:
    return 0
cdef uint64_t log_segment_bytes(log_t *log) noexcept nogil:
    return 0
cdef int log_read_segment(log_t *log, uint32_t slot, uint64_t version, char *image) noexcept nogil:
    return LOG_GONE
cdef int log_next(log_t *log, uint64_t version, uint32_t slot, const char *image, uint64_t *cursor,
                  uint64_t *position, uint8_t *kind, const char **payload,
                  uint32_t *size) noexcept nogil:
    return LOG_NOTHING

cdef class Log:
    pass
