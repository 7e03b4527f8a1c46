"""The arena: the block of memory that holds all shared state of log and cache.

Owns the mapping, the frame pool and the one lock type that is allowed in shared memory
(process-shared, robust, taken with a time limit). Promises: an exact memory limit; a process
that dies holding the pool's lock costs nothing, since the free list is rebuilt from the
descriptors. Callable from any thread of any process that maps the arena.
"""
from libc.errno cimport EBUSY
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from siltstone.log.atomics cimport cpu_pause, load32_relaxed, store32_relaxed
from siltstone.log.pthread cimport (PTHREAD_MUTEX_ROBUST, PTHREAD_PROCESS_SHARED,
                                    pthread_mutex_consistent, pthread_mutex_init, pthread_mutex_t,
                                    pthread_mutex_trylock, pthread_mutex_unlock,
                                    pthread_mutexattr_destroy, pthread_mutexattr_init,
                                    pthread_mutexattr_setpshared, pthread_mutexattr_setrobust,
                                    pthread_mutexattr_t)

import contextlib
import mmap
import os
import secrets

from siltstone import errors

cdef extern from "<errno.h>" nogil:
    int EOWNERDEAD

cdef extern from *:
    """
    #include <errno.h>
    #include <pthread.h>
    #include <sys/mman.h>
    #include <time.h>
    #include <unistd.h>
    /* Wait for a mutex until `timeout_ms` from now, by a clock that nobody sets. */
    static inline int silt_lock_within(pthread_mutex_t *mutex, long timeout_ms) {
        struct timespec until;
    #if defined(__GLIBC__) && (__GLIBC__ > 2 || __GLIBC_MINOR__ >= 30)
        clock_gettime(CLOCK_MONOTONIC, &until);
    #else
        clock_gettime(CLOCK_REALTIME, &until);
    #endif
        until.tv_sec += timeout_ms / 1000;
        until.tv_nsec += (timeout_ms % 1000) * 1000000L;
        if (until.tv_nsec >= 1000000000L) { until.tv_nsec -= 1000000000L; until.tv_sec++; }
    #if defined(__GLIBC__) && (__GLIBC__ > 2 || __GLIBC_MINOR__ >= 30)
        return pthread_mutex_clocklock(mutex, CLOCK_MONOTONIC, &until);
    #else
        return pthread_mutex_timedlock(mutex, &until);
    #endif
    }
    _Static_assert(sizeof(pthread_mutex_t) <= 48, "a lock fits its cache line");
    static uint32_t silt_pid;   /* getpid() once a process; after a fork set anew */
    static inline uint32_t silt_own_pid(void) {
        if (!silt_pid) silt_pid = (uint32_t)getpid();
        return silt_pid;
    }
    static inline void silt_forget_pid(void) { silt_pid = 0; }
    /* What is refused (an unaligned address, locked memory) stays as it is. */
    static inline void silt_forget_memory(void *place, unsigned long size) {
        (void)!madvise(place, size, MADV_DONTNEED);
    }
    static __thread uint32_t silt_timeouts;     /* waits in vain of this thread */
    static __thread int64_t silt_gave_up_ms;    /* when it last gave up a full wait */
    static int64_t silt_monotonic_ms(void) {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
    }
    /* A full wait, or a short one soon after a full wait was in vain. */
    static int silt_lock_patiently(pthread_mutex_t *mutex, long full_ms, long short_ms) {
        int tired = silt_gave_up_ms && silt_monotonic_ms() - silt_gave_up_ms < full_ms;
        int result = silt_lock_within(mutex, tired ? short_ms : full_ms);
        if (result == ETIMEDOUT) {
            silt_timeouts++;
            if (!tired) silt_gave_up_ms = silt_monotonic_ms();
        } else {
            silt_gave_up_ms = 0;
        }
        return result;
    }
    static inline uint32_t silt_timeouts_of_thread(void) { return silt_timeouts; }
    static inline void silt_note_timeout(void) { silt_timeouts++; }
    """
    void forget_memory "silt_forget_memory"(void *place, unsigned long size) noexcept nogil
    int lock_patiently "silt_lock_patiently"(pthread_mutex_t *, long full_ms,
                                             long short_ms) noexcept nogil
    uint32_t timeouts_of_thread "silt_timeouts_of_thread"() noexcept nogil
    void note_timeout "silt_note_timeout"() noexcept nogil
    uint32_t own_pid "silt_own_pid"() noexcept nogil
    void forget_pid "silt_forget_pid"() noexcept nogil

cdef uint64_t ARENA_MAGIC = 0x616e6572614c5453      # "STLarena", little-endian
cdef long LOCK_TIMEOUT_MS = 1000
cdef uint32_t TRIM_FRAMES = 64
cdef long LOCK_SHORT_MS = 2
cdef int LOCK_SPINS = 64        # a shard is held well under a microsecond: spin before sleeping

cdef int lock_init(lock_t *lock, bint shared) noexcept nogil:
    # Private arenas use the same kind: threads die inside a lock only with their process, but
    # one kind of lock is one kind of code.
    cdef pthread_mutexattr_t attributes
    memset(lock, 0, sizeof(lock_t))
    pthread_mutexattr_init(&attributes)
    pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED)
    pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST)
    cdef int result = pthread_mutex_init(&lock.mutex, &attributes)
    pthread_mutexattr_destroy(&attributes)
    return result

cdef inline int _taken(lock_t *lock, int result) noexcept nogil:
    if result == 0:
        lock.holder_pid = own_pid()
        return LOCK_TAKEN
    if result == EOWNERDEAD:
        lock.holder_pid = own_pid()
        return LOCK_OWNER_DIED
    return LOCK_BUSY

cdef int lock_try(lock_t *lock) noexcept nogil:
    return _taken(lock, pthread_mutex_trylock(&lock.mutex))

cdef int lock_take(lock_t *lock) noexcept nogil:
    cdef int result
    for _ in range(LOCK_SPINS):
        result = pthread_mutex_trylock(&lock.mutex)
        if result != EBUSY:
            return _taken(lock, result)
        cpu_pause()
    return _taken(lock, lock_patiently(&lock.mutex, LOCK_TIMEOUT_MS, LOCK_SHORT_MS))

cdef uint32_t lock_timeouts() noexcept nogil:
    return timeouts_of_thread()

cdef void lock_timed_out() noexcept nogil:
    note_timeout()

cdef void lock_repaired(lock_t *lock) noexcept nogil:
    pthread_mutex_consistent(&lock.mutex)

cdef void lock_drop(lock_t *lock) noexcept nogil:
    pthread_mutex_unlock(&lock.mutex)

# The frame pool -----------------------------------------------------------------------------

cdef int _pool_take(arena_t *arena) noexcept nogil:
    cdef arena_header_t *header = arena.header
    cdef int result = lock_take(&header.pool_lock)
    if result == LOCK_OWNER_DIED:
        _rebuild_free_list(arena)
        lock_repaired(&header.pool_lock)
        result = LOCK_TAKEN
    return result

cdef void _rebuild_free_list(arena_t *arena) noexcept nogil:
    cdef arena_header_t *header = arena.header
    cdef uint32_t number, used = 0
    header.free_head = 0
    for number in range(header.frame_next_fresh):
        if arena.frames[number].owner:
            used += 1
        else:
            arena.frames[number].next = header.free_head
            header.free_head = number + 1
    header.frames_used = used

cdef int64_t frame_take(arena_t *arena, uint32_t owner, uint32_t reserve) noexcept nogil:
    cdef arena_header_t *header = arena.header
    cdef uint32_t number = 0
    if _pool_take(arena) != LOCK_TAKEN:
        return -1
    if header.frames_used + reserve < header.frame_count_limit:
        if header.free_head:
            number = header.free_head
            arena.frames[number - 1].owner = owner
            header.free_head = arena.frames[number - 1].next
        elif header.frame_next_fresh < header.frames_ready:
            number = header.frame_next_fresh + 1
            arena.frames[number - 1].owner = owner
            header.frame_next_fresh = number
        if number:
            header.frames_used += 1
            header.frame_sequence += 1
            _fresh(&arena.frames[number - 1], header.frame_sequence)
    lock_drop(&header.pool_lock)
    return number

cdef inline void _fresh(frame_t *frame, uint64_t sequence) noexcept nogil:
    frame.next = 0
    frame.prev = 0
    frame.filled_bytes = 0
    frame.live_bytes = 0
    frame.kind = 0
    frame.sequence = sequence

cdef int frame_give(arena_t *arena, uint32_t frame) noexcept nogil:
    cdef arena_header_t *header = arena.header
    if _pool_take(arena) != LOCK_TAKEN:
        return LOCK_BUSY
    arena.frames[frame].next = header.free_head
    arena.frames[frame].owner = 0
    header.free_head = frame + 1
    header.frames_used -= 1
    lock_drop(&header.pool_lock)
    return LOCK_TAKEN

cdef uint32_t frames_free(arena_t *arena) noexcept nogil:
    cdef uint32_t used = load32_relaxed(&arena.header.frames_used)
    cdef uint32_t limit = load32_relaxed(&arena.header.frame_count_limit)
    return limit - used if limit > used else 0

cdef int frames_reclaim(arena_t *arena, uint32_t owner) noexcept nogil:
    cdef arena_header_t *header = arena.header
    cdef uint32_t number
    if _pool_take(arena) != LOCK_TAKEN:
        return LOCK_BUSY
    for number in range(header.frame_next_fresh):
        if arena.frames[number].owner == owner:
            arena.frames[number].next = header.free_head
            arena.frames[number].owner = 0
            header.free_head = number + 1
            header.frames_used -= 1
    lock_drop(&header.pool_lock)
    return LOCK_TAKEN

cdef int frame_set_limit(arena_t *arena, uint64_t limit_bytes) noexcept nogil:
    # The caller evicts until frames_used is below the new limit.
    cdef arena_header_t *header = arena.header
    cdef uint64_t count = 0
    if limit_bytes > header.frames_offset:
        count = (limit_bytes - header.frames_offset) >> header.frame_shift
    if count > header.frame_count_max:
        count = header.frame_count_max
    store32_relaxed(&header.frame_count_limit, <uint32_t>count)
    header.limit_bytes = limit_bytes
    return 0

cdef void frames_trim(arena_t *arena) noexcept nogil:
    # A few frames at a time: nobody waits long for the pool.
    cdef arena_header_t *header = arena.header
    cdef uint32_t first = 0, number
    if arena.shared:
        return
    while first < header.frame_next_fresh:
        if _pool_take(arena) != LOCK_TAKEN:
            return
        for number in range(first, min(first + TRIM_FRAMES, header.frame_next_fresh)):
            if arena.frames[number].owner == 0:
                forget_memory(frame_address(arena, number), frame_size(arena))
        lock_drop(&header.pool_lock)
        first += TRIM_FRAMES

# The mapping --------------------------------------------------------------------------------

cdef uint64_t _align(uint64_t size, uint64_t unit) noexcept nogil:
    return (size + unit - 1) // unit * unit


cdef class Arena:
    """One block of memory with a frame pool. Private (anonymous) when no `fd` is given.

    `limit_bytes` bounds everything in it; `limit_bytes_max` is the address space that is
    reserved, so that the limit may be raised while running. `sections` maps a section number
    to its size in bytes.
    """

    def __cinit__(self, uint64_t limit_bytes, uint64_t limit_bytes_max, uint32_t frame_bytes,
                  dict sections, int64_t created_ms, int fd=-1, bint attach=False):
        cdef uint64_t size
        if frame_bytes & (frame_bytes - 1) or frame_bytes < 4096:
            raise errors.ConfigError("frame size must be a power of two of at least 4 KiB")
        limit_bytes_max = max(limit_bytes, limit_bytes_max)
        self.arena.shared = fd >= 0
        size = os.fstat(fd).st_size if attach else _align(limit_bytes_max, 1 << 16)
        if fd >= 0:
            if not attach:
                os.ftruncate(fd, size)
            self._mapping = mmap.mmap(fd, size, flags=mmap.MAP_SHARED)
        else:
            # MAP_NORESERVE: address space up to the highest limit, memory only as it is used
            self._mapping = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
                                      | getattr(mmap, "MAP_NORESERVE", 0x4000))
        # large pages: an item that is asked for at random costs a walk of the page tables less
        with contextlib.suppress(OSError):
            self._mapping.madvise(mmap.MADV_HUGEPAGE)
        cdef char[::1] view = self._mapping
        self.arena.base = &view[0]
        self.arena.header = <arena_header_t *>self.arena.base
        if attach:
            self._check(size)
        else:
            self._format(size, limit_bytes, frame_bytes, sections, created_ms, fd)
        self.arena.frames = <frame_t *>(self.arena.base + self.arena.header.descriptors_offset)
        self.arena.process = <process_t *>section(&self.arena, SECTION_PROCESSES)
        self.arena.slot = 0

    def _check(self, uint64_t size):
        cdef arena_header_t *header = self.arena.header
        if size < sizeof(arena_header_t) or header.magic != ARENA_MAGIC:
            raise errors.WrongFormat("this is not an arena, or it was never finished")
        if header.layout_version != ARENA_LAYOUT_VERSION or header.mapped_bytes != size:
            raise errors.WrongFormat(
                "arena of another layout", expected=ARENA_LAYOUT_VERSION,
                found=header.layout_version)

    def _format(self, uint64_t size, uint64_t limit_bytes, uint32_t frame_bytes, dict sections,
                int64_t created_ms, int fd):
        cdef arena_header_t *header = self.arena.header
        cdef uint64_t offset = _align(sizeof(arena_header_t), 4096), count
        cdef int number
        memset(header, 0, sizeof(arena_header_t))
        sections = {**sections, SECTION_PROCESSES: PROCESS_SLOTS * sizeof(process_t)}
        for number in range(ARENA_SECTIONS):
            header.section_offset[number] = offset
            header.section_bytes[number] = sections.get(number, 0)
            offset = _align(offset + header.section_bytes[number], 4096)
        header.descriptors_offset = offset
        header.frame_shift = frame_bytes.bit_length() - 1
        count = (size - offset) // (frame_bytes + sizeof(frame_t)) if size > offset else 0
        offset = _align(offset + count * sizeof(frame_t), 4096)
        header.frames_offset = offset
        count = (size - offset) >> header.frame_shift if size > offset else 0
        header.frame_count_max = <uint32_t>count
        header.mapped_bytes = size
        header.layout_version = ARENA_LAYOUT_VERSION
        header.created_ms = created_ms
        header.secret[0] = secrets.randbits(64)
        header.secret[1] = secrets.randbits(64)
        header.cas_next = 1
        lock_init(&header.pool_lock, self.arena.shared)
        lock_init(&header.leader_lock, self.arena.shared)
        frame_set_limit(&self.arena, limit_bytes)
        if header.frame_count_limit < 16:
            raise errors.ConfigError(
                f"memory limit too small: {limit_bytes} bytes leave "
                f"{header.frame_count_limit} frames of {frame_bytes} bytes; give at least "
                f"{offset + 16 * frame_bytes} bytes")
        if fd >= 0:
            # memory behind every page before it is touched: a sparse file would be SIGBUS
            os.posix_fallocate(fd, 0, offset + (header.frame_count_limit << header.frame_shift))
            header.frames_ready = header.frame_count_limit
        else:
            header.frames_ready = header.frame_count_max
        header.magic = ARENA_MAGIC

    def occupy(self, uint32_t slot, uint32_t pid, int64_t started_ms, int memfd=-1) -> None:
        """This process counts and writes under `slot` from here on.

        The slot's counters stay: they are summed over the arena's life. No two holders of a slot
        have the same start, not within a millisecond either: leases tell them apart by it.
        """
        if slot >= PROCESS_SLOTS:
            raise errors.ConfigError(f"a cache has {PROCESS_SLOTS} process slots")
        cdef process_t *process = <process_t *>section(&self.arena, SECTION_PROCESSES) + slot
        process.pid = pid
        process.started_ms = max(started_ms, <int64_t>process.started_ms + 1)
        process.memfd = memfd + 1
        process.state = 1
        self.arena.process = process
        self.arena.slot = slot

    def vacate(self) -> None:
        """The slot is free for another process."""
        self.arena.process.state = 0

    def process(self, uint32_t slot) -> tuple[int, int, int]:
        """(pid, started in Unix ms, memfd or -1) of who took the slot last."""
        cdef process_t *process = <process_t *>section(&self.arena, SECTION_PROCESSES) + slot
        return process.pid, process.started_ms, <int>process.memfd - 1

    def after_fork(self) -> None:
        """In the child, for a private arena: nobody holds the arena's locks."""
        lock_init(&self.arena.header.pool_lock, self.arena.shared)
        lock_init(&self.arena.header.leader_lock, self.arena.shared)
        _rebuild_free_list(&self.arena)

    @property
    def slot(self) -> int:
        return self.arena.slot

    @property
    def shared(self) -> bool:
        return self.arena.shared

    @property
    def cas_next(self) -> int:
        """The next CAS number of the cache."""
        return self.arena.header.cas_next

    @cas_next.setter
    def cas_next(self, uint64_t number):
        self.arena.header.cas_next = number

    @property
    def flush_word(self) -> int:
        """Flush epoch (16 bits) above its due time in Unix ms (48 bits, 0: none is due)."""
        return self.arena.header.flush_word

    @flush_word.setter
    def flush_word(self, uint64_t word):
        self.arena.header.flush_word = word

    @property
    def secret(self) -> bytes:
        """The key of the hash of keys, 16 bytes."""
        return (<char *>self.arena.header.secret)[:16]

    @secret.setter
    def secret(self, bytes secret):
        if len(secret) != 16:
            raise errors.ConfigError("the hash's secret has 16 bytes")
        memcpy(self.arena.header.secret, <const char *>secret, 16)

    @property
    def frame_bytes(self) -> int:
        return 1 << self.arena.header.frame_shift

    @property
    def frames_used(self) -> int:
        return self.arena.header.frames_used

    @property
    def frames_limit(self) -> int:
        return self.arena.header.frame_count_limit

    def set_limit(self, limit_bytes: int) -> None:
        """Another memory limit from now on. Below what is in use: the engine must evict."""
        if limit_bytes > self.arena.header.mapped_bytes:
            raise errors.ConfigError(
                f"the memory limit can be raised to {self.arena.header.mapped_bytes} bytes at "
                "most while running; set ram_max higher at the start")
        frame_set_limit(&self.arena, limit_bytes)

    @property
    def limit_bytes(self) -> int:
        return self.arena.header.limit_bytes

    @property
    def created_ms(self) -> int:
        return self.arena.header.created_ms

    def check_invariants(self) -> None:
        """Free list and owner fields agree; raises AssertionError otherwise. O(frames)."""
        cdef arena_header_t *header = self.arena.header
        cdef uint32_t number, free = 0, owned = 0
        assert header.magic == ARENA_MAGIC, "the arena's header was overwritten"
        number = header.free_head
        while number:
            assert number <= header.frame_next_fresh
            assert self.arena.frames[number - 1].owner == 0
            free += 1
            assert free <= header.frame_next_fresh
            number = self.arena.frames[number - 1].next
        for number in range(header.frame_next_fresh):
            owned += self.arena.frames[number].owner != 0
        assert owned == header.frames_used
        assert owned + free == header.frame_next_fresh


os.register_at_fork(after_in_child=lambda: forget_pid())
