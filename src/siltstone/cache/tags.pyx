"""The table of tags (layout and promises: tags.pxd).

Every change is one atomic word, so that a process killed anywhere leaves a table that is right:
the clock moves first, an entry is noted next; what was not noted was not acknowledged.
"""
from libc.stdint cimport uint64_t
from libc.string cimport memset

from siltstone.cache.tags cimport *
from siltstone.log.arena cimport SECTION_TAGS, section
from siltstone.log.atomics cimport add64, and64, cas64, load64, store64

cdef enum:
    BUCKET_TAGS = 7
    HEADER_BYTES = 128

cdef extern from *:
    const uint64_t STAMP_MASK "0xffffffffULL"

cdef struct bucket_t:
    uint64_t word[BUCKET_TAGS]      # 0 = none
    uint64_t floor                  # items with an older stamp are gone
    uint64_t count[BUCKET_TAGS]
    uint64_t unused

cdef inline uint64_t *_clock(arena_t *arena) noexcept nogil:
    return <uint64_t *>section(arena, SECTION_TAGS)

cdef inline bucket_t *_bucket(arena_t *arena, uint64_t tag) noexcept nogil:
    cdef uint64_t buckets = (
        arena.header.section_bytes[<int>SECTION_TAGS] - HEADER_BYTES) // sizeof(bucket_t)
    return <bucket_t *>(section(arena, SECTION_TAGS) + HEADER_BYTES) + (tag * buckets >> 32)

cdef void tags_init(arena_t *arena) noexcept nogil:
    if arena.header.section_bytes[<int>SECTION_TAGS]:
        memset(section(arena, SECTION_TAGS), 0, arena.header.section_bytes[<int>SECTION_TAGS])
        _clock(arena)[0] = 1

cdef inline uint64_t _tag(uint64_t hash) noexcept nogil:
    # 32 bits, never zero
    return (hash >> 32) | 1

cdef int _find(bucket_t *bucket, uint64_t tag) noexcept nogil:
    cdef int place
    for place in range(BUCKET_TAGS):
        if load64(&bucket.word[place]) >> 32 == tag:
            return place
    return -1

cdef int _find_or_make(bucket_t *bucket, uint64_t tag) noexcept nogil:
    # Two who make the same tag at once may both succeed: then the first is found from then on,
    # and should it be replaced, the floor stands in for what it knew.
    cdef int place, best
    cdef uint64_t word, least
    while True:
        place = _find(bucket, tag)
        if place >= 0:
            return place
        best, least = 0, <uint64_t>-1
        for place in range(BUCKET_TAGS):
            word = load64(&bucket.word[place])
            if word == 0 or (word & STAMP_MASK) < least:
                best, least = place, word & STAMP_MASK
            if word == 0:
                break
        word = load64(&bucket.word[best])
        _raise(&bucket.floor, word & STAMP_MASK)
        store64(&bucket.count[best], 0)
        if cas64(&bucket.word[best], word, tag << 32):
            return best

cdef void _raise(uint64_t *floor, uint64_t stamp) noexcept nogil:
    cdef uint64_t former = load64(floor)
    while former < stamp and not cas64(floor, former, stamp):
        former = load64(floor)

cdef uint64_t tag_word(arena_t *arena, uint64_t hash) noexcept nogil:
    return (_tag(hash) << 32) | (load64(_clock(arena)) & STAMP_MASK)

cdef void tag_count(arena_t *arena, uint64_t word) noexcept nogil:
    cdef bucket_t *bucket = _bucket(arena, word >> 32)
    add64(&bucket.count[_find_or_make(bucket, word >> 32)], 1)

cdef bint tag_fresh(arena_t *arena, uint64_t word) noexcept nogil:
    # The floor is read last: it rises before an entry is replaced.
    cdef bucket_t *bucket = _bucket(arena, word >> 32)
    cdef int place = _find(bucket, word >> 32)
    cdef uint64_t entry
    if place >= 0:
        entry = load64(&bucket.word[place])
        if entry >> 32 == word >> 32 and (word & STAMP_MASK) < (entry & STAMP_MASK):
            return False
    return (word & STAMP_MASK) >= load64(&bucket.floor)

cdef uint64_t tag_evict(arena_t *arena, uint64_t hash) noexcept nogil:
    cdef uint64_t tag = _tag(hash), stamp = add64(_clock(arena), 1) + 1, word
    cdef bucket_t *bucket = _bucket(arena, tag)
    cdef int place
    while True:
        place = _find_or_make(bucket, tag)
        word = load64(&bucket.word[place])
        if word >> 32 != tag:
            continue
        if (word & STAMP_MASK) >= stamp or cas64(&bucket.word[place], word, (tag << 32) | stamp):
            # what was counted, and nothing of what comes in meanwhile
            return and64(&bucket.count[place], 0)
