"""The index: 16-byte slots in groups of 4 KiB pages that grow a page at a time.

A group of n pages (1..7) is one open-addressed table of n x 64 buckets of four slots; the eighth
page splits it into two groups of four, told apart by the next of the 40 stored hash bits. So load
stays between 0.73 and 0.92 and nothing is ever rehashed but one group (at most 28 KiB).
All functions: under the shard's lock, sequence odd, but for index_probe.
"""
from libc.stdint cimport uint32_t, uint64_t

from siltstone.cache.shard cimport (
    FRAME_INDEX, INDEX_PAGE_BYTES, cache_t, group_t, shard_t, slot_t,
)
from siltstone.log.arena cimport frame_t

cdef enum:
    PREFETCH_KEYS = 16          # misses that a core can have under way, roughly

# Bring what a lookup of these hashes will touch towards the cache; no more than PREFETCH_KEYS.
# Safe without the lock.
cdef void index_prefetch(cache_t *cache, const uint64_t *hashes, uint32_t count) noexcept nogil
# Slot with this identity (any kind but empty), or NULL. Also safe without the lock: every number
# that it reads is checked against its bounds, and the caller checks the sequence afterwards.
cdef slot_t *index_probe(cache_t *cache, shard_t *shard, uint64_t hash) noexcept nogil
# Ask the memory for what a probe will look at.
cdef void bucket_prefetch(cache_t *cache, shard_t *shard, uint64_t hash) noexcept nogil
# Room for one more slot in the group of `hash`? index_insert needs it.
cdef bint index_has_room(cache_t *cache, shard_t *shard, uint64_t hash) noexcept nogil
# Grow the group of `hash` by a page, or split it. 0: no frame.
cdef bint index_grow(cache_t *cache, shard_t *shard, uint64_t hash) noexcept nogil
cdef slot_t *index_insert(cache_t *cache, shard_t *shard, uint64_t hash, uint64_t low,
                          uint64_t high) noexcept nogil
# Removes by moving others back: every slot pointer into the group is void afterwards.
cdef void index_remove(cache_t *cache, shard_t *shard, group_t *group, slot_t *slot) noexcept nogil
# Fill the empty groups of one root with slots of it. Those placed get `low` 0 in `slots`; how many
# they are: fewer than `count` when frames run out. `slots` NULL: only make room for so many.
cdef uint32_t index_fill(cache_t *cache, shard_t *shard, uint32_t root, slot_t *slots,
                         uint32_t count) noexcept nogil
cdef group_t *index_group(cache_t *cache, shard_t *shard, uint64_t hash) noexcept nogil
# Under the lock, before a slot or group is changed: are its pages this shard's? Else the shard is
# damaged.
cdef inline bint page_sound(cache_t *cache, shard_t *shard, uint64_t number) noexcept nogil:
    cdef frame_t *frame
    if number < cache.index_page_first or number > cache.index_page_last:
        return False
    frame = &cache.arena.frames[
        (number * INDEX_PAGE_BYTES - cache.frames_offset) >> cache.frame_shift]
    return frame.owner == shard.number + 1 and frame.kind == FRAME_INDEX

cdef inline bint slot_sound(cache_t *cache, shard_t *shard, slot_t *slot) noexcept nogil:
    return page_sound(
        cache, shard, <uint64_t>(<char *>slot - cache.arena.base) // INDEX_PAGE_BYTES)

cdef bint group_sound(cache_t *cache, shard_t *shard, group_t *group) noexcept nogil
cdef group_t *group_at(cache_t *cache, shard_t *shard, uint32_t number) noexcept nogil
cdef slot_t *group_slot(cache_t *cache, group_t *group, uint32_t number) noexcept nogil
# A slot of the group that was being laid out anew when its process died (shard.scratch_pages).
cdef slot_t *scratch_slot(cache_t *cache, shard_t *shard, uint32_t number) noexcept nogil
