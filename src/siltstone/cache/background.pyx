"""Background work: write out what is sealed, make room early, compact, sweep.

One thread a process; it holds the arena's leader lock if it gets it, and then also does what one
process does for all. Nothing waits for it: whoever finds no memory, buffer or segment does a step
of the work itself, so a cache without any background thread is only slower.
"""
from libc.stdint cimport int64_t, uint32_t, uint64_t

from siltstone.cache.eviction cimport forget_oldest, make_room
from siltstone.cache.shard cimport cache_t, now_ms
from siltstone.log.arena cimport (
    LOCK_BUSY, LOCK_OWNER_DIED, PROCESS_SLOTS, frames_free, lock_drop, lock_repaired, lock_try,
)
from siltstone.log.log cimport (
    LOG_OK, log_clock, log_seal_idle, log_segments_free, log_write_one,
)

import threading

cdef extern from *:
    """
    #include <fcntl.h>
    #include <string.h>
    #include <time.h>
    #include <unistd.h>
    /* Is byte `slot` of the lock file held by another process? */
    static int silt_slot_lives(int descriptor, unsigned slot) {
        struct flock lock;
        memset(&lock, 0, sizeof lock);
        lock.l_type = F_WRLCK;
        lock.l_whence = SEEK_SET;
        lock.l_start = (off_t)slot;
        lock.l_len = 1;
        return fcntl(descriptor, F_GETLK, &lock) == 0 && lock.l_type != F_UNLCK;
    }
    static void silt_pause_us(long us) {
        struct timespec pause = {us / 1000000, us % 1000000 * 1000};
        nanosleep(&pause, NULL);
    }
    """
    bint slot_lives "silt_slot_lives"(int descriptor, unsigned int slot) noexcept nogil
    void pause_us "silt_pause_us"(long us) noexcept nogil

cdef enum:
    PAUSE_MIN_US = 1000
    PAUSE_MAX_US = 50000        # an idle cache wakes 20 times a second
    WRITES_AT_ONCE = 8

cdef bint _alive(void *context, uint32_t slot) noexcept nogil:
    # For the log: does the process that holds this slot live? Its own lock is never seen by
    # F_GETLK, and it lives.
    cdef cache_t *cache = <cache_t *>context
    return slot < PROCESS_SLOTS and (
        slot == cache.arena.slot or slot_lives(cache.lock_descriptor, slot))


cdef class Background:
    """The thread's work. `start` and `stop` by the attachment; `tick` by it and by tests."""

    def __init__(self, CacheEngine engine not None, *, live_map=None, int lock_descriptor=-1,
                 uint32_t compact_under=1, double max_fragmentation=0.8, bint drop_unread=False,
                 uint32_t drop_under=1, int64_t flush_idle_ms=1000):
        self.engine = engine
        self.live_map = live_map
        self.compact_under = compact_under
        self.max_fragmentation = max_fragmentation
        self.drop_unread = drop_unread
        self.drop_under = drop_under
        self.flush_idle_ms = flush_idle_ms
        # 1/64 of memory is kept free, so that a set rarely evicts by itself
        self.free_low = engine.cache.arena.header.frame_count_limit // 64
        if engine.cache.log != NULL and lock_descriptor >= 0:
            engine.cache.log.alive = _alive
            engine.cache.lock_descriptor = lock_descriptor
            engine.cache.log.alive_context = engine.cache

    def start(self) -> None:
        self.stopping = 0
        self._thread = threading.Thread(target=self._run, name="siltstone-cache", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self.stopping = 1
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def after_fork(self) -> None:
        """In the child: the thread did not come along."""
        self.leads = False
        self._thread = None

    def _run(self):
        with nogil:
            self._loop()

    cdef void _loop(self) noexcept nogil:
        cdef long pause = PAUSE_MIN_US
        while not self.stopping:
            pause = PAUSE_MIN_US if self._tick() else min(pause * 2, PAUSE_MAX_US)
            pause_us(pause)
        if self.leads:
            self.leads = False
            lock_drop(&self.engine.cache.arena.header.leader_lock)

    def tick(self) -> bool:
        """One round; whether there was something to do."""
        cdef bint busy
        with nogil:
            busy = self._tick()
        return busy

    cdef bint _tick(self) noexcept nogil:
        cdef cache_t *cache = self.engine.cache
        cdef int64_t now = now_ms(cache)
        cdef bint busy = False
        cdef int writes = 0
        if cache.log != NULL:
            log_clock(cache.log, now)
            log_seal_idle(cache.log, now, self.flush_idle_ms)
            while writes < WRITES_AT_ONCE and log_write_one(cache.log) == LOG_OK:
                writes += 1
                busy = True
        return self._lead(cache, now) or busy

    cdef bint _lead(self, cache_t *cache, int64_t now) noexcept nogil:
        # What one process does for all.
        cdef int result
        cdef bint busy = False
        if not self.leads:
            result = lock_try(&cache.arena.header.leader_lock)
            if result == LOCK_BUSY:
                return False
            if result == LOCK_OWNER_DIED:
                lock_repaired(&cache.arena.header.leader_lock)
            self.leads = True
        if frames_free(cache.arena) < self.free_low and cache.log != NULL:
            make_room(cache, self.free_low)
            busy = True
        if cache.log != NULL and log_segments_free(cache.log) < 2:
            busy = forget_oldest(cache) or busy
        return busy
