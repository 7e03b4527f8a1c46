"""Where in its leaf a record was when it was read last: fetched together with the leaf.

A get waits for memory, one time for the first lines of a leaf, and once more for the record, since
only those lines say where it is. One byte for what a key hashes to tells in which line it was;
whoever descends fetches that one too. Nothing keeps a hint true, and nobody trusts one: the search
goes on as ever, and a wrong hint costs a line that nobody wanted. Guarded by the pages' lock.
"""
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from siltstone.log.atomics cimport prefetch

cdef enum:
    HINT_LINE = 64              # bytes that the processor fetches at once

cdef struct hints_t:
    uint8_t *lines              # NULL: there are none
    uint32_t shift              # 64 - bits of an index

# NULL without hints. Keys that begin and end alike share one.
cdef inline uint8_t *hint_of(const hints_t *hints, const char *key, uint32_t size) noexcept nogil:
    cdef uint64_t first = 0, last = 0
    cdef uint8_t *hint
    if hints.lines == NULL:
        return NULL
    if size >= 8:
        memcpy(&first, key, 8)
        memcpy(&last, key + size - 8, 8)
    else:
        memcpy(&first, key, size)
    first ^= (last << 23) | (last >> 41)
    hint = hints.lines + ((first * <uint64_t>0x9E3779B97F4A7C15) >> hints.shift)
    prefetch(hint)              # it is read late: on the way to the leaf
    return hint

cdef inline const char *hint_record(const uint8_t *hint, const void *node) noexcept nogil:
    return <const char *>node + HINT_LINE * <uint32_t>hint[0]

cdef inline void hint_set(uint8_t *hint, const void *node, const char *record) noexcept nogil:
    if hint != NULL:
        hint[0] = <uint8_t>((record - <const char *>node) // HINT_LINE)
