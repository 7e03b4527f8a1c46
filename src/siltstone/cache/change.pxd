"""Changing an item: the rules of set, add, append, incr, touch, delete and the meta commands."""
from siltstone.cache.engine cimport record_t, reply_t, request_t
from siltstone.cache.shard cimport cache_t, shard_t

cdef enum need_t:               # beside cache_status_t: leave the lock, get it, come again
    NEED_FRAMES = 100
    NEED_INDEX = 102            # a frame for the index
    NEED_REPLY = 101            # room for reply.meta.value_size bytes in reply.value

# Inside the shard's lock. `force`: rather than ask for frames for the index, forget its oldest
# flash items.
cdef int change_apply(cache_t *cache, shard_t *shard, request_t *request, record_t *record,
                      reply_t *reply, bint force) noexcept nogil
