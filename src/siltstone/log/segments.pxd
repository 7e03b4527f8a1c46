"""Segments and their versions: lookup without a lock, changes under one. See segments.pyx."""
from libc.stdint cimport int64_t, uint32_t, uint64_t

from siltstone.log.atomics cimport load64
from siltstone.log.log cimport segment_info_t
from siltstone.log.state cimport STAT_BAD_OFFSETS, count, log_t

cdef inline uint64_t version_entry(uint64_t version, uint32_t slot) noexcept nogil:
    return (version << 24) | slot

cdef inline uint64_t live_owner(uint64_t version, uint32_t salt) noexcept nogil:
    # Whose live bits they are: the version and what tells this life of it from any other.
    return (version << 24) | (salt & 0xFFFFFF)

cdef inline int64_t segments_lookup(log_t *log, uint64_t version) noexcept nogil:
    # The slot in which this version lies, -1 = gone. One load.
    cdef uint64_t entry = load64(&log.versions[version & log.version_mask])
    if entry >> 24 != version or version == 0:
        return -1
    if (entry & 0xFFFFFF) >= log.segment_count:
        count(log, STAT_BAD_OFFSETS, 1)
        return -1
    return entry & 0xFFFFFF

cdef inline uint64_t log_version_newest(log_t *log) noexcept nogil:
    return load64(&log.header.last_version)

cdef bint segments_lock(log_t *log) noexcept nogil          # false: busy
cdef void segments_unlock(log_t *log) noexcept nogil
# With the stream's lock held; log_result_t:
cdef int segments_open(log_t *log, uint32_t stream) noexcept nogil
cdef int segments_seal(log_t *log, uint32_t stream) noexcept nogil
cdef int segments_detach(log_t *log, uint32_t stream) noexcept nogil
# With segments_lock held:
cdef void segments_retire(log_t *log, uint32_t slot, int counter) noexcept nogil
cdef uint32_t segments_sweep(log_t *log) noexcept nogil
cdef bint segments_settled(log_t *log, uint32_t slot) noexcept nogil
cdef void segments_adopt(log_t *log, uint32_t slot) noexcept nogil
cdef void segments_info(log_t *log, uint32_t slot, segment_info_t *info) noexcept nogil
# Live bits of a slot: clears them, returns how many there were.
cdef uint32_t segments_clear_live(log_t *log, uint32_t slot) noexcept nogil
cdef uint32_t segments_count_live(log_t *log, uint32_t slot) noexcept nogil
