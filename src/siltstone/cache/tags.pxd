"""Tags: what `evict(tag)` makes vanish. A table in the arena; C functions, any thread, no lock.

An item stored under a tag carries a *tag word*: 32 bits of the tag's hash above 32 bits of stamp,
the reading of the arena's tag clock when it was stored. `evict` moves the clock on by one and
notes the new reading with the tag: items of that tag with an older stamp are gone from then on,
wherever they lie, and memory and flash come back as they are met.

    header (64 B: clock) | buckets of 128 B

    bucket: 7 words (hash 32 | evicted at 32) | floor | 7 counts | unused

A tag whose bucket is full replaces one that was never evicted (only its count is lost), else the
one evicted longest ago: then the bucket's floor rises to that reading, and every item of the
bucket's tags with an older stamp is gone too. So a full table forgets items, it never brings
evicted ones back; the same holds for two tags with the same 32 bits. Where the table is lost with
the arena, tagged items are not taken from flash (restart.py); a clean stop keeps it.
"""
from libc.stdint cimport uint64_t

from siltstone.log.arena cimport arena_t

cdef void tags_init(arena_t *arena) noexcept nogil
# What an item stored now under the tag with this hash (64 bits) carries.
cdef uint64_t tag_word(arena_t *arena, uint64_t hash) noexcept nogil
# Such an item was stored.
cdef void tag_count(arena_t *arena, uint64_t word) noexcept nogil
# Is an item with this word not evicted?
cdef bint tag_fresh(arena_t *arena, uint64_t word) noexcept nogil
# Evict; how many items were stored under the tag since the last time.
cdef uint64_t tag_evict(arena_t *arena, uint64_t hash) noexcept nogil
