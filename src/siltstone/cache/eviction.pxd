"""Eviction: making room in RAM by moving items to flash, keeping hot ones, dropping the rest."""
from libc.stdint cimport int64_t, uint32_t, uint64_t

from siltstone.cache.flash cimport demotion_t
from siltstone.cache.items cimport item_t
from siltstone.cache.shard cimport cache_t, group_t, shard_t, slot_t

cdef enum room_t:
    ROOM_MADE = 1
    ROOM_NONE = 0           # nothing could be evicted
    ROOM_WRITE = 2          # every write buffer is in flight: log_write_one(), then again
    ROOM_SEGMENT = 3        # no segment is free: reclaim one, then again
    ROOM_GROW = 4           # demotion.positions needs demotion.capacity entries
    ROOM_KEPT = 5           # a pass over a frame freed nothing, but made progress
    ROOM_BUSY = 6           # a lock of the log was not had in time

# Outside every lock: until `frames` frames are free above the reserve. False: no way.
cdef bint make_room(cache_t *cache, uint32_t frames) noexcept nogil
# Inside the shard's lock: empty one of its frames.
cdef int evict_step(cache_t *cache, shard_t *shard, int64_t now,
                    demotion_t *demotion) noexcept nogil
# Inside the lock: take the slot's item (RAM or flash) away and the slot too.
cdef void unlink(cache_t *cache, shard_t *shard, uint64_t hash, slot_t *slot) noexcept nogil
# Take away what the slot points to, keep the slot (to be overwritten by the caller at once).
cdef void release(cache_t *cache, shard_t *shard, slot_t *slot) noexcept nogil
cdef uint64_t item_hash(cache_t *cache, item_t *item) noexcept nogil
# Inside the lock: drop expired, forgotten and stale ghost slots of one group, with `ghosts` all
# its ghosts; how many went.
cdef uint32_t purge_group(cache_t *cache, shard_t *shard, group_t *group, bint ghosts,
                          int64_t now) noexcept nogil
# Inside the lock: move the group's items that nobody asked for in item_age_s to flash.
cdef int demote_idle(cache_t *cache, shard_t *shard, group_t *group, int64_t now,
                     demotion_t *demotion) noexcept nogil
