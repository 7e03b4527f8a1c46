"""The arena: one fixed block of memory that holds all shared state; offsets instead of pointers.

Layout: header | sections (sizes fixed at creation) | frame descriptors | frames.
A *frame* is the unit that a shard owns. Truth about ownership is the descriptor's `owner` field
(set before use, cleared after); the free list is a cache of it.
"""
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from siltstone.log.pthread cimport pthread_mutex_t

cdef enum:
    ARENA_LAYOUT_VERSION = 2
    ARENA_SECTIONS = 8
    PROCESS_SLOTS = 128
    PROCESS_COUNTERS = 120

# What a section holds. Sizes are given at creation, addresses by `section()`.
cdef enum section_t:
    SECTION_PROCESSES = 0   # process_t[PROCESS_SLOTS]
    SECTION_CACHE = 1       # the cache's shards
    SECTION_LOG = 2         # the log's segment table, streams, buffer descriptors
    SECTION_BUFFERS = 3     # write buffers (4 KiB aligned)
    SECTION_TAGS = 4        # the cache's tag table

cdef enum lock_result_t:
    LOCK_TAKEN = 0
    LOCK_OWNER_DIED = 1     # taken, but a dead owner left it: repair, then lock_repaired()
    LOCK_BUSY = 2           # not taken within the time limit

cdef struct lock_t:
    # Process-shared and robust; 64 bytes, so that two locks share no cache line.
    pthread_mutex_t mutex
    uint32_t holder_pid     # of the last holder, for messages only
    uint64_t sequence       # the owner's, for readers without the lock: who locks has this line
    char pad[8]

cdef struct process_t:
    # One a process; byte `slot` of the lock file, locked, says that it lives.
    uint64_t pid
    uint64_t started_ms
    uint64_t state          # 0 free, 1 in use
    uint64_t memfd          # descriptor + 1 through which a later process may open a memfd arena
    uint64_t spare[4]
    uint64_t counters[PROCESS_COUNTERS]

cdef struct frame_t:
    # A frame's descriptor. `owner` 0 = free, else shard number + 1.
    uint32_t owner
    uint32_t next           # frame numbers + 1 (0 = none): free list or the owner's queue
    uint32_t prev
    uint32_t filled_bytes   # of the frame, from its start
    uint32_t live_bytes
    uint32_t kind           # the owner's
    uint64_t sequence       # order of taking, over all shards: the age

cdef struct arena_header_t:
    # What every operation reads fills the first cache line; what every set changes has its own.
    # (In one line, each set of one process cost all others a miss on their next operation.)
    uint64_t magic
    uint32_t layout_version
    uint32_t frame_shift    # frame size = 1 << frame_shift
    uint64_t mapped_bytes   # address space, = bytes at frame_count_max
    uint64_t limit_bytes    # the memory limit in force
    int64_t created_ms      # Unix
    uint64_t secret[2]      # key of the hash of keys
    uint64_t flush_word     # flush epoch (16 bits) | due time, Unix ms (48 bits)
    uint64_t section_offset[ARENA_SECTIONS]
    uint64_t section_bytes[ARENA_SECTIONS]
    uint64_t descriptors_offset
    uint64_t frames_offset
    uint32_t frame_count_max    # descriptors there are
    uint32_t frame_count_limit  # frames that the limit allows
    char pad_constants[40]
    uint64_t user[16]           # words that the engine may use
    uint64_t cas_next           # next CAS number of the cache
    char pad_cas[56]
    uint64_t frame_sequence     # from here on: changed under the pool's lock
    uint32_t frames_used
    uint32_t free_head          # frame number + 1
    uint32_t frame_next_fresh   # frames at and above this number were never taken
    uint32_t frames_ready       # frames below this number have memory behind them (fallocated)
    char pad_frames[40]
    lock_t pool_lock
    lock_t leader_lock          # held by the thread that does the background work

cdef struct arena_t:
    # The process's own handle on an arena.
    char *base
    arena_header_t *header
    frame_t *frames
    process_t *process          # this process's slot
    uint32_t slot
    bint shared                 # mapped by other processes too

cdef int lock_init(lock_t *lock, bint shared) noexcept nogil
# Waits at most 1 s; lock_result_t. A thread that waited in vain waits little (2 ms) for its next
# second: an operation that needs several locks then stays bounded, whatever is held by whom.
cdef int lock_take(lock_t *lock) noexcept nogil
cdef int lock_try(lock_t *lock) noexcept nogil              # does not wait; lock_result_t
cdef void lock_repaired(lock_t *lock) noexcept nogil        # after LOCK_OWNER_DIED and the repair
cdef void lock_drop(lock_t *lock) noexcept nogil
# How often this thread waited in vain: an operation that failed and sees another number than at
# its start failed because somebody else is stopped. `lock_timed_out` adds other such waits.
cdef uint32_t lock_timeouts() noexcept nogil
cdef void lock_timed_out() noexcept nogil

cdef inline char *section(arena_t *arena, int which) noexcept nogil:
    return arena.base + arena.header.section_offset[which]

cdef inline char *frame_address(arena_t *arena, uint32_t frame) noexcept nogil:
    return arena.base + arena.header.frames_offset + (
        <uint64_t>frame << arena.header.frame_shift)

cdef inline uint32_t frame_size(arena_t *arena) noexcept nogil:
    return <uint32_t>1 << arena.header.frame_shift

# Take a frame for `owner` (shard number + 1), leaving `reserve` frames to those who need one to
# free others; returns frame number + 1, 0 = limit reached, -1 = pool lock busy.
# Lock order: shard before pool.
cdef int64_t frame_take(arena_t *arena, uint32_t owner, uint32_t reserve) noexcept nogil
cdef int frame_give(arena_t *arena, uint32_t frame) noexcept nogil
cdef uint32_t frames_free(arena_t *arena) noexcept nogil
# Give back every frame whose owner field says `owner`: part of a shard's reset.
cdef int frames_reclaim(arena_t *arena, uint32_t owner) noexcept nogil
cdef int frame_set_limit(arena_t *arena, uint64_t limit_bytes) noexcept nogil
# Give the memory behind free frames back to the system (private arenas: frames of a shared one
# keep theirs, so that taking one can never find the file system full). Outside every lock.
cdef void frames_trim(arena_t *arena) noexcept nogil

cdef class Arena:
    cdef arena_t arena
    cdef object _mapping
    cdef readonly bint closed
