"""Background work: write out what is sealed, make room early, compact, sweep.

One thread a process; it holds the arena's leader lock if it gets it, and then also does what one
process does for all. Nothing waits for it: whoever finds no memory, buffer or segment does a step
of the work itself, so a cache without any background thread is only slower.
"""
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memset

from siltstone.cache.compaction cimport (
    COMPACT_FREED, COMPACT_NOTHING, COMPACT_WAITED, COMPACT_WORKED, compact_slice, forget_oldest,
    segments_ahead,
)
from siltstone.cache.eviction cimport (
    ROOM_GROW, demote_idle, make_room, purge_group,
)
from siltstone.cache.flash cimport demotion_free, demotion_grow
from siltstone.cache.index cimport group_at
from siltstone.cache.shard cimport (
    WORD_FORGOTTEN, cache_t, group_t, now_ms, shard_leave, shard_t, shard_try_enter,
)
from siltstone.log.arena cimport (
    LOCK_BUSY, LOCK_OWNER_DIED, PROCESS_SLOTS, frames_free, lock_drop, lock_repaired, lock_try,
)
from siltstone.log.atomics cimport load32_relaxed, load64
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
    SLICES_AT_ONCE = 16         # of compaction, when segments are short
    SWEEP_PERIOD_MS = 250
    SWEEPS_A_PASS = 120         # so half a minute passes between two looks at a slot ...
    SWEEP_GROUPS_MIN = 16
    SWEEP_GROUPS_MAX = 256      # ... but no look takes longer than about 4 ms
    SWEEP_HASTE = 4             # times as much when a segment was forgotten with items in it
    GROUPS_A_LOCK = 2           # about 30 us

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
        engine.cache.compact_under = compact_under
        engine.cache.max_fragmentation = max_fragmentation
        engine.cache.drop_unread = drop_unread
        engine.cache.drop_under = drop_under
        self.flush_idle_ms = flush_idle_ms
        # 1/64 of memory is kept free, so that a set rarely evicts by itself
        self.free_low = engine.cache.arena.header.frame_count_limit // 64
        if engine.cache.log != NULL and lock_descriptor >= 0:
            engine.cache.log.alive = _alive
            engine.cache.lock_descriptor = lock_descriptor
            engine.cache.log.alive_context = engine.cache

    def __dealloc__(self):
        demotion_free(&self.demotion)

    @property
    def compact_under(self) -> int:
        """Free segments at which compaction starts."""
        return self.engine.cache.compact_under

    @compact_under.setter
    def compact_under(self, uint32_t count):
        self.engine.cache.compact_under = count

    @property
    def drop_under(self) -> int:
        """Free segments at which compaction drops what was never read, if `drop_unread`."""
        return self.engine.cache.drop_under

    @drop_under.setter
    def drop_under(self, uint32_t count):
        self.engine.cache.drop_under = count

    @property
    def drop_unread(self) -> bool:
        return self.engine.cache.drop_unread

    @drop_unread.setter
    def drop_unread(self, bint drop):
        self.engine.cache.drop_unread = drop

    @property
    def max_fragmentation(self) -> float:
        """Live share at which a segment is not worth compacting."""
        return self.engine.cache.max_fragmentation

    @max_fragmentation.setter
    def max_fragmentation(self, double share):
        self.engine.cache.max_fragmentation = share

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
        """In the child: the thread did not come along, and may have been in the middle."""
        self.leads = False
        memset(&self.demotion, 0, sizeof(self.demotion))
        self._thread = None

    def _run(self):
        with nogil:
            self._loop()

    cdef void _loop(self) noexcept nogil:
        cdef long pause = PAUSE_MIN_US
        while not self.stopping:
            pause = PAUSE_MIN_US if self._tick() else min(pause * 2, PAUSE_MAX_US)
            pause_us(pause)
        self._resign()

    cdef void _resign(self) noexcept nogil:
        # By the thread that leads: the lock is that thread's, and must not go with the memory.
        if self.leads:
            self.leads = False
            lock_drop(&self.engine.cache.arena.header.leader_lock)

    def tick(self) -> bool:
        """One round by the calling thread; whether there was something to do."""
        cdef bint busy
        with nogil:
            busy = self._tick()
            self._resign()
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
        if cache.log != NULL:
            busy = self._reclaim(cache) or busy
        self._sweep(cache, now)
        return busy

    cdef bint _reclaim(self, cache_t *cache) noexcept nogil:
        # Free segments before anybody needs them; the fewer there are, the more work at once.
        cdef uint32_t ahead = segments_ahead(cache), slices = 0
        cdef int result = COMPACT_WORKED
        cdef bint busy = False
        while result == COMPACT_WORKED or result == COMPACT_FREED:
            if log_segments_free(cache.log) >= ahead and (
                    slices or log_segments_free(cache.log) >= cache.compact_under):
                return busy
            if slices == SLICES_AT_ONCE:
                return True
            slices += 1
            result = compact_slice(cache)
            busy = busy or result in (COMPACT_WORKED, COMPACT_FREED, COMPACT_WAITED)
        if result == COMPACT_NOTHING and log_segments_free(cache.log) < ahead:
            busy = forget_oldest(cache) or busy
        return busy

    cdef void _sweep(self, cache_t *cache, int64_t now) noexcept nogil:
        # What has expired, and whose segment is gone, is taken out, so that counts are right.
        cdef uint32_t number, groups = 0, budget
        cdef uint64_t forgotten = load64(&cache.arena.header.user[<int>WORD_FORGOTTEN])
        if self.swept_ms <= now < self.swept_ms + SWEEP_PERIOD_MS:
            return
        self.swept_ms = now
        for number in range(cache.shard_count):
            groups += load32_relaxed(&cache.shards[number].groups)
        budget = groups // SWEEPS_A_PASS
        budget = SWEEP_GROUPS_MIN if budget < SWEEP_GROUPS_MIN else (
            SWEEP_GROUPS_MAX if budget > SWEEP_GROUPS_MAX else budget)
        if forgotten != self.swept_forgotten:
            budget *= SWEEP_HASTE
        if self._sweep_groups(cache, now, budget):
            self.swept_forgotten = self.pass_forgotten
            self.pass_forgotten = forgotten

    cdef bint _sweep_groups(self, cache_t *cache, int64_t now, uint32_t budget) noexcept nogil:
        # True: the pass has come to its end.
        cdef shard_t *shard
        cdef uint32_t number
        cdef bint more
        while budget:
            shard = &cache.shards[self.sweep_shard]
            more = False
            if load32_relaxed(&shard.built) and shard_try_enter(cache, shard):
                number = 0
                while shard.built and self.sweep_group < shard.groups and number < GROUPS_A_LOCK:
                    purge_group(cache, shard, group_at(cache, shard, self.sweep_group), False, now)
                    if cache.item_age_s >= 0 and cache.log != NULL:
                        self._demote_idle(
                            cache, shard, group_at(cache, shard, self.sweep_group), now)
                    self.sweep_group += 1
                    number += 1
                more = shard.built and self.sweep_group < shard.groups
                shard_leave(shard)
                budget -= number if number < budget else budget
            if not more:
                self.sweep_group = 0
                self.sweep_shard += 1
            if self.sweep_shard == cache.shard_count:
                self.sweep_shard = 0
                return True
        return False

    cdef void _demote_idle(self, cache_t *cache, shard_t *shard, group_t *group,
                           int64_t now) noexcept nogil:
        # Not worth a wait: what finds no buffer goes in the next pass, and nothing is forgotten
        # for it.
        cdef int result
        if log_segments_free(cache.log) <= segments_ahead(cache):
            return
        result = demote_idle(cache, shard, group, now, &self.demotion)
        if result == ROOM_GROW:
            demotion_grow(&self.demotion)
