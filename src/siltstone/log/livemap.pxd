"""The live map: one bit for 64 B of flash. See livemap.pyx."""
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from siltstone.log.atomics cimport and64, load64, or64

cdef enum:
    LIVE_HEADER_SIZE = 4096
    LIVE_FORMAT_VERSION = 1

cdef struct live_header_t:
    uint64_t magic
    uint32_t format_version
    uint32_t segment_count
    uint64_t segment_bytes
    uint8_t uuid[16]            # of the device
    uint8_t boot_id[16]         # of the boot in which the map was last open
    uint64_t clean              # 1: closed in order, so another boot may trust it
    uint64_t flush_word         # flush epoch of the cache (16 bits) | due time, Unix ms (48)
    uint64_t cas_ceiling        # CAS numbers below it may have been given out
    uint64_t user[8]            # words that the engine may use

cdef inline bint live_set(uint64_t *bits, uint64_t cell) noexcept nogil:
    # Was it set before?
    cdef uint64_t bit = <uint64_t>1 << (cell & 63)
    return (or64(bits + (cell >> 6), bit) & bit) != 0

cdef inline bint live_unset(uint64_t *bits, uint64_t cell) noexcept nogil:
    # Was it set before?
    cdef uint64_t bit = <uint64_t>1 << (cell & 63)
    return (and64(bits + (cell >> 6), ~bit) & bit) != 0

cdef inline bint live_test(const uint64_t *bits, uint64_t cell) noexcept nogil:
    return (load64(bits + (cell >> 6)) >> (cell & 63)) & 1

cdef class LiveMap:
    cdef live_header_t *header
    cdef uint64_t *versions     # a slot: whose bits these are (live_owner), 0 = nobody's
    cdef uint64_t *bits
    cdef uint64_t words         # a segment
    cdef object _mapping
    cdef readonly uint32_t segment_count
    cdef readonly uint64_t segment_bytes
    cdef readonly bint found    # it was there already, and fits this device
