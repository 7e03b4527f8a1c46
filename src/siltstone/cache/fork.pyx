"""fork() of a process that has a cache with a private arena.

The child gets a copy of the arena as it is at that instant. `hold` takes every lock, so that no
structure is half changed then; in the parent `release` drops them, in the child, where they are
held by a thread that is not there, `renew` makes them new. A lock that was not had in time belongs
to a thread that is stopped inside: in the child its shard is emptied. Called by the attachment's
fork hooks, in that order, on the forking thread, one fork at a time. Lock order: architecture,
"Locks".

`hold` keeps the GIL: nobody needs it to leave a lock, and a thread that had it could otherwise
wait for a lock that is held here until the GIL is to be had.
"""
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free, realloc

from siltstone.cache.engine cimport CacheEngine
from siltstone.cache.shard cimport cache_t, shard_clear, shard_t
from siltstone.log.arena cimport (
    LOCK_BUSY, LOCK_OWNER_DIED, lock_drop, lock_init, lock_repaired, lock_t, lock_take,
)
from siltstone.log.state cimport log_t

cdef struct held_t:
    uint32_t count
    uint32_t capacity
    lock_t **locks

cdef held_t _held
cdef list _engines = []         # whose locks these are: their memory stays


cdef void _hold(lock_t *lock) noexcept nogil:
    cdef int result = lock_take(lock)
    if result == LOCK_OWNER_DIED:
        lock_repaired(lock)     # threads of a private arena do not die inside a lock
    if result != LOCK_BUSY:
        _held.locks[_held.count] = lock
        _held.count += 1


cdef int _make_room(uint32_t count) except -1:
    cdef lock_t **larger
    if _held.count + count > _held.capacity:
        larger = <lock_t **>realloc(_held.locks, (_held.count + count) * sizeof(lock_t *))
        if larger == NULL:
            raise MemoryError()
        _held.locks = larger
        _held.capacity = _held.count + count
    return 0


def hold(CacheEngine engine not None) -> None:
    """Before the fork: nobody is inside."""
    cdef cache_t *cache = engine.cache
    cdef log_t *log = cache.log
    cdef uint32_t number, streams = 0 if log == NULL else log.header.stream_count
    _make_room(cache.shard_count + streams + 2)
    _engines.append(engine)
    for number in range(cache.shard_count):
        _hold(&cache.shards[number].lock)
    if log != NULL:
        for number in range(streams):
            _hold(&log.streams[number].lock)
        _hold(&log.header.segments_lock)
    _hold(&cache.arena.header.pool_lock)


def release() -> None:
    """In the parent, after `hold` of all its caches."""
    while _held.count:
        _held.count -= 1
        lock_drop(_held.locks[_held.count])
    free(_held.locks)
    _held.locks = NULL
    _held.capacity = 0
    _engines.clear()


def renew(CacheEngine engine not None) -> None:
    """In the child: nobody holds anything, and nothing is on flash any more."""
    cdef cache_t *cache = engine.cache
    cdef shard_t *shard
    cdef uint32_t number
    cdef uint64_t sequence
    _held.count = 0
    _engines.clear()
    engine.lose_flash()
    engine.inside = 0
    engine.arena.after_fork()
    for number in range(cache.shard_count):
        shard = &cache.shards[number]
        sequence = shard.lock.sequence
        lock_init(&shard.lock, False)
        shard.lock.sequence = sequence
        if shard.lock.sequence & 1:
            shard_clear(cache, shard)
            shard.lock.sequence += 1
