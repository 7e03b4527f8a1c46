"""The page cache as engines see it: pages that are found by pid, changed through a log, evicted.

How an operation goes. Everything between pages_trylock() and pages_unlock() happens at one
instant for everybody else; node pointers are valid until the unlock (which may evict). Inside,
nothing waits and nothing reads the device: a page that is not in memory is PAGES_MISS, then

    unlock, drop the GIL, pages_load(pages, pid, snapshot), take the GIL, start the operation again

and pages_ready() != PAGES_OK before a change means the same with pages_wait_ready(). With the GIL
held only pages_trylock(): when busy, drop the GIL, pages_lock(), pages_unlock(), take the GIL, try
again. Nobody runs Python, or allocates a Python object, while holding the lock: the garbage
collector could call back into the store. Memory of nodes is malloc()'s.

Lock order: pages.lock -> the log's. Codes below 0 are -errno; raise_result() makes exceptions.
"""
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from siltstone.log.log cimport part_t
from siltstone.log.ordered cimport group_t, ordered_t
from siltstone.log.ordered_log cimport OrderedLog
from siltstone.log.workers cimport pool_t, pthread_mutex_t

cdef extern from "<pthread.h>" nogil:
    int pthread_mutex_lock(pthread_mutex_t *)
    int pthread_mutex_trylock(pthread_mutex_t *)
    int pthread_mutex_unlock(pthread_mutex_t *)

cdef enum pages_result_t:
    PAGES_OK = 0
    PAGES_MISS = 1          # page, or the table block of its entry, is not in memory: pages_load()
    PAGES_ABSENT = 2        # no such page (never allocated, or freed; at that snapshot, if one)
    PAGES_WAIT = 3          # appending now could wait: pages_wait_ready(), then again
    PAGES_LARGE = 4         # more than the write buffers hold: do it with the GIL dropped
    PAGES_TOO_OLD = 5       # the snapshot was given up: over `snapshot_bytes_max`
    PAGES_CLOSED = 6
    PAGES_FORKED = 7
    PAGES_CORRUPT = 8       # a record or image fails its check; pages.bad_position says which
    PAGES_LOG = 100         # + a result of the log (log.pxd): 100 + LOG_FAILED is "read-only now"

cdef enum:
    BLOCK_BITS = 9
    BLOCK_ENTRIES = 1 << BLOCK_BITS     # of a table block
    PID_FIRST = 2                       # 0 is "none", 1 is kept
    HEAT_MAX = 3
    ROOT_NAME_MAX = 1024
    LINKS_MAX = 128                     # of a page; then its next change writes it whole

cdef enum entry_state_t:
    PAGE_UNUSED = 0         # never allocated
    PAGE_FREE = 1
    PAGE_RESERVED = 2       # allocated in a change that is not committed
    PAGE_LIVE = 3

# What a page is in memory is its engine's: one malloc()ed node, whole and merged. All nogil, never
# called for one node by two threads; all but decode() and release() are called under the lock.
cdef struct page_ops_t:
    # Make sure that apply() of a fragment of `size` bytes cannot fail. May move the node. 0/-ENOMEM
    int (*reserve)(void *context, char **node, uint32_t size) noexcept nogil
    # Apply a logged fragment in place. 0; or not 0 when it is no fragment for this node.
    int (*apply)(void *context, char **node, const char *fragment, uint32_t size) noexcept nogil
    uint64_t (*image_size)(void *context, const char *node) noexcept nogil      # exact
    void (*encode)(void *context, const char *node, char *image) noexcept nogil
    # Full check of an image from the device. 0, -ENOMEM, or anything else: it is damaged.
    int (*decode)(void *context, uint64_t pid, const char *image, uint64_t size,
                  char **node) noexcept nogil
    uint64_t (*memory)(void *context, const char *node) noexcept nogil          # bytes of heap
    char *(*copy)(void *context, const char *node) noexcept nogil               # NULL: no memory
    void (*release)(void *context, char *node) noexcept nogil

cdef struct place_t:
    # A record on the device.
    uint64_t position
    uint32_t bytes          # that it takes of its segment
    uint32_t kind           # KIND_BASE, KIND_MORE or KIND_LINK

cdef struct version_t
cdef struct snapshot_t

cdef struct entry_t:        # 64 bytes
    char *node              # NULL: not in memory
    uint64_t stamp          # of the commit that changed it last; moving and paging keep it
    place_t first           # the base; position 0: none
    place_t *more           # what follows it, oldest first
    version_t *versions     # kept for snapshots, newest first
    uint32_t node_bytes     # as counted
    uint32_t link_bytes     # of records
    uint16_t count          # places, `first` included
    uint16_t capacity       # of `more`
    uint8_t state
    uint8_t heat            # hits since the hand came by, HEAT_MAX at most
    uint16_t busy           # being loaded, moved, or part of a change: not evicted

cdef struct version_t:
    # What a page was from `stamp` on, until `until`.
    uint64_t stamp
    uint64_t until
    uint64_t pid
    char *node              # or NULL, then its places (their segments are pinned)
    place_t *places
    uint32_t count
    uint32_t bytes          # counted against snapshot_bytes_max
    version_t *older        # of the same page
    version_t *next         # of the same snapshot
    version_t *previous

cdef struct snapshot_t:
    # Zero it, then pages_snapshot_open(). The caller owns the memory, until the close.
    uint64_t stamp
    uint32_t open
    uint32_t too_old
    snapshot_t *newer
    snapshot_t *older
    version_t *versions     # for which it is the newest snapshot that needs them

cdef struct block_t:        # BLOCK_ENTRIES of the page table
    entry_t *entries        # NULL: not in memory
    place_t *places         # of its newest image
    uint16_t place_count
    uint16_t free           # entries PAGE_FREE
    uint16_t resident       # entries with a node, versions, or in use: then it is not evicted
    uint8_t dirty           # differs from its image
    uint8_t heat
    uint32_t checkpoint     # number of the checkpoint that has it already
    uint32_t loading

cdef struct root_t:
    uint32_t used
    uint32_t name_size
    char *name
    uint64_t pid
    int64_t count           # what the engine counts: records, say

cdef struct pages_counters_t:
    uint64_t commits
    uint64_t hits           # counted by engines that care
    uint64_t loads          # of pages from the device
    uint64_t load_bytes
    uint64_t evictions
    uint64_t block_loads
    uint64_t link_bytes     # appended, by parts: changes,
    uint64_t base_bytes     # whole pages written by changes,
    uint64_t mark_bytes
    uint64_t consolidated_bytes     # chains that grew too long,
    uint64_t cleaned_bytes  # pages moved out of sparse segments,
    uint64_t table_bytes    # checkpoints
    uint64_t cleaned_segments
    uint64_t checkpoints
    uint64_t versions_made
    uint64_t snapshots_lost
    uint64_t load_retries

cdef struct pages_t:
    pthread_mutex_t lock            # guards all below
    ordered_t *stream
    pool_t *pool                    # NULL: loads read one after the other
    const page_ops_t *ops
    void *context                   # the engine's, given to every op
    const int *fork_count           # of this process; differs from `opened_in`: ForkedProcess
    int opened_in
    uint32_t closed
    uint32_t read_only
    # Table
    block_t *blocks
    uint32_t block_count
    uint32_t block_capacity
    uint64_t pid_next               # no pid at or above was ever allocated
    uint64_t *free_pids             # a stack; entries that are free no more are skipped
    uint32_t free_count
    uint32_t free_capacity
    # Commits and snapshots
    uint64_t commit_stamp
    uint64_t commit_end             # position behind the newest commit: what to sync up to
    snapshot_t *newest
    snapshot_t *oldest
    uint64_t snapshot_newest        # its stamp + 1; 0 = none is open
    uint64_t versions
    uint64_t version_bytes
    uint64_t snapshot_bytes_max
    # Roots, by id
    root_t *roots
    uint32_t root_count
    uint32_t root_capacity
    # Ids
    uint64_t id_next
    uint64_t id_limit               # ids below may be given out: a marker above them is durable
    uint64_t id_marker              # appended
    uint64_t id_marker_end
    uint64_t id_interval
    # Memory
    uint64_t resident_bytes         # nodes, table blocks, chains
    uint64_t cache_bytes            # the limit
    uint64_t resident_pages
    uint32_t pages_min              # so many stay whatever the limit: an operation needs a few
    uint32_t hand_block
    uint32_t hand_entry
    # Checkpoint being made
    uint32_t checkpoint             # its number, while blocks may still have to be saved
    uint32_t checkpoint_failed
    uint64_t checkpoint_end         # stream end at the newest one
    place_t *checkpoint_dead        # places of blocks that it replaced
    uint32_t dead_count
    uint32_t dead_capacity
    # Policy
    uint32_t compression            # 0 none, 1 zstd, 2 lz4
    uint32_t links_max
    uint32_t due                    # there is work for maintain()
    uint64_t log_limit              # of log since the last checkpoint
    uint64_t bad_position
    char *scratch                   # for encoding under the lock
    uint64_t scratch_bytes
    pages_counters_t counters

cdef struct change_item_t:
    uint32_t kind
    uint32_t root
    uint64_t pid
    char *node                      # becomes the page's node, or NULL
    char *data                      # fragment or name, owned
    uint64_t size
    place_t *places                 # already written
    uint32_t place_count

# A set of changes that counts as a whole. Zero it; one thread's; change_commit() or
# change_abandon() ends it. Nothing in memory or for others changes before the commit.
cdef struct change_t:
    pages_t *pages
    change_item_t *items
    uint32_t count
    uint32_t capacity
    uint64_t bytes                  # that appending will take, about
    group_t group
    char *notes                     # (root id, difference) pairs
    uint32_t note_count
    uint32_t note_capacity


# The lock ----------------------------------------------------------------------------------------

cdef inline bint pages_trylock(pages_t *pages) noexcept nogil:
    return pthread_mutex_trylock(&pages.lock) == 0

cdef inline void pages_lock(pages_t *pages) noexcept nogil:
    # With the GIL dropped only.
    pthread_mutex_lock(&pages.lock)

cdef void pages_evict(pages_t *pages) noexcept nogil

cdef inline void pages_unlock(pages_t *pages) noexcept nogil:
    if pages.resident_bytes > pages.cache_bytes:
        pages_evict(pages)
    pthread_mutex_unlock(&pages.lock)

# PAGES_OK, PAGES_CLOSED or PAGES_FORKED: the first thing that an operation asks, before the lock
# is taken (a forked child would wait for ever for it).
cdef inline int pages_usable(pages_t *pages) noexcept nogil:
    if pages.fork_count[0] != pages.opened_in:
        return PAGES_FORKED
    return PAGES_CLOSED if pages.closed else PAGES_OK


# Reading; all under the lock, but pages_load -----------------------------------------------------

# NULL: its block is not in memory (PAGES_MISS) or the pid is beyond all (PAGES_ABSENT); page_get()
# tells. The entry stays where it is until the unlock.
cdef inline entry_t *page_entry(pages_t *pages, uint64_t pid) noexcept nogil:
    cdef uint64_t number = pid >> BLOCK_BITS
    if number >= pages.block_count or pages.blocks[number].entries == NULL:
        return NULL
    return &pages.blocks[number].entries[pid & (BLOCK_ENTRIES - 1)]

# The present node, or NULL: then page_get() says why.
cdef inline char *page_node(pages_t *pages, uint64_t pid) noexcept nogil:
    cdef entry_t *entry = page_entry(pages, pid)
    if entry == NULL or entry.node == NULL:
        return NULL
    if entry.heat < HEAT_MAX:
        entry.heat += 1
    return entry.node

# OK, MISS, ABSENT; with a snapshot (not NULL): the node as of then, and TOO_OLD. *stamp (may be
# NULL) = of that content. Does not heat the page when `scan`: a scan must not push out what is hot.
cdef int page_get(pages_t *pages, uint64_t pid, const snapshot_t *snapshot, bint scan, char **node,
                  uint64_t *stamp) noexcept nogil
# Read it (or its table block) into memory, without the lock and without the GIL. OK also when it
# is there meanwhile. ABSENT, TOO_OLD, CORRUPT, PAGES_LOG + ..., -ENOMEM.
cdef int pages_load(pages_t *pages, uint64_t pid, const snapshot_t *snapshot) noexcept nogil
# As many at once, by the worker threads; errors are met again when the page is asked for.
cdef void pages_load_many(pages_t *pages, const uint64_t *pids, uint32_t count,
                          const snapshot_t *snapshot) noexcept nogil


# Changing; all under the lock, but pages_wait_ready ----------------------------------------------

# Whether `bytes` in `records` can be appended without waiting. OK, WAIT, LARGE, PAGES_LOG + FAILED.
cdef int pages_ready(pages_t *pages, uint64_t bytes, uint32_t records) noexcept nogil
cdef int pages_wait_ready(pages_t *pages, uint64_t bytes, uint32_t records) noexcept nogil
# The largest fragment of a link. Images of whole pages may have any size below 2 GiB.
cdef uint32_t pages_fragment_max(pages_t *pages) noexcept nogil

# One change to one page, a commit of its own: append the fragment, keep the old node if a snapshot
# needs it, apply it by ops.apply, stamp the page; count `delta` for the root (0: no count).
# OK, MISS, ABSENT, -ENOMEM, PAGES_LOG + ...; nothing has changed unless OK.
cdef int pages_link(pages_t *pages, uint64_t pid, const part_t *parts, uint32_t count,
                    uint32_t root, int64_t delta) noexcept nogil
# The same in two steps, for who applies it itself: after OK of page_writable() *node is a node that
# no snapshot needs; then pages_link_only() (appends and stamps, no apply), and if that is OK change
# *node in place in the same lock hold, and tell page_resized() when it moved or changed its size.
cdef int page_writable(pages_t *pages, uint64_t pid, char **node) noexcept nogil
cdef int pages_link_only(pages_t *pages, uint64_t pid, const part_t *parts, uint32_t count,
                         uint32_t root, int64_t delta) noexcept nogil
cdef void page_resized(pages_t *pages, uint64_t pid, char *node) noexcept nogil

# A change set. Filling it is private; -ENOMEM is its only error but for what is said.
cdef void change_begin(change_t *change, pages_t *pages) noexcept nogil
cdef int change_allocate(change_t *change, uint64_t *pid) noexcept nogil            # under the lock
# The page's whole new content. Takes the node, in any case but -ENOMEM.
cdef int change_base(change_t *change, uint64_t pid, char *node) noexcept nogil
# A fragment (copied) for a page that is in memory (and stays so: it is marked busy). Fragments of
# one page are applied in order. Applied in place at the commit.
cdef int change_link(change_t *change, uint64_t pid, const part_t *parts,
                     uint32_t count) noexcept nogil                                 # under the lock
# Write an image for a new pid now, without the lock and the GIL; the page is not kept in memory.
# For large values: their pages need never be in memory together. PAGES_LOG + ... when it fails.
cdef int change_image(change_t *change, uint64_t pid, const part_t *parts,
                      uint32_t count) noexcept nogil
cdef int change_free(change_t *change, uint64_t pid) noexcept nogil
cdef int change_root(change_t *change, uint32_t root, const char *name, uint32_t name_size,
                     uint64_t pid) noexcept nogil       # pid 0: the root is given up
cdef int change_count(change_t *change, uint32_t root, int64_t delta) noexcept nogil
# What to ask pages_ready() for.
cdef void change_needs(change_t *change, uint64_t *bytes, uint32_t *records) noexcept nogil
# Append all, then install all. OK; or nothing happened and the change is abandoned: MISS (a page
# of a link or free left memory), ABSENT, -ENOMEM, PAGES_LOG + ...
cdef int change_commit(change_t *change) noexcept nogil                             # under the lock
cdef void change_abandon(change_t *change) noexcept nogil                           # under the lock

# Durability: without lock and GIL. `end` = pages.commit_end as seen under the lock; 0 = all so far.
cdef int pages_sync(pages_t *pages, uint64_t end) noexcept nogil


# Snapshots; under the lock -----------------------------------------------------------------------

cdef void pages_snapshot_open(pages_t *pages, snapshot_t *snapshot) noexcept nogil
cdef void pages_snapshot_close(pages_t *pages, snapshot_t *snapshot) noexcept nogil


# Roots: a name, a pid that should stay the same for the root's life, and a count. Under the lock --

# The id or -1.
cdef int64_t pages_root_find(pages_t *pages, const char *name, uint32_t size) noexcept nogil
cdef uint32_t pages_root_unused(pages_t *pages) noexcept nogil      # an id for a new one

cdef inline root_t *pages_root(pages_t *pages, uint32_t root) noexcept nogil:
    return &pages.roots[root]

# The next id, never given out before; without the lock and the GIL (it may sync).
cdef int pages_generate_id(pages_t *pages, uint64_t *identity) noexcept nogil


cdef class Pages:
    """The handle: opens, recovers, checkpoints, cleans, closes. Engines subclass it to set ops:

        cdef class TreePages(Pages):
            def __cinit__(self, *_, **__):
                self.pages.ops = &node_ops
                self.pages.context = NULL       # anything

    then `TreePages().open(path, ...)`; open() recovers. See pagecache.pyi for its parameters.
    """
    cdef pages_t pages
    cdef readonly OrderedLog log
    cdef readonly object device
    cdef readonly object recovery       # how opening went; .ok, .problems, .outcome
    cdef readonly str durability        # "sync" | "interval" | "none"
    cdef readonly object settings
    cdef object _lock_file
    cdef object _pool
    cdef object _worker                 # the background thread
    cdef object _maintenance            # one at a time
    cdef object __weakref__
    # Raises the exception that fits, unless result is PAGES_OK. With the GIL, without the lock.
    cdef int raise_result(self, int result, uint64_t pid) except -1
    # Take the lock as said above, after pages_usable(); raises Closed or ForkedProcess.
    cdef int lock(self) except -1
    # After a change, without the lock: wakes the background thread when there is work, or does it.
    cdef int changed(self) except -1
