"""The page cache as engines see it: pages that are found by pid, changed through a log, evicted.

How an operation goes. Everything between pages_trylock() and pages_unlock() happens at one
instant for everybody else; node pointers are valid until the unlock (which may evict). Inside,
nothing waits and nothing reads the device: a page that is not in memory is PAGES_MISS, then

    unlock, drop the GIL, pages_load(pages, pid, snapshot), take the GIL, start the operation again

and pages_ready() != PAGES_OK before a change means the same with pages_wait_ready(). With the GIL
held only pages_trylock(): when busy, drop the GIL, pages_lock(), pages_unlock(), take the GIL, try
again. Nobody runs Python, or allocates a Python object, while holding the lock: the garbage
collector could call back into the store. Memory of nodes is malloc()'s.

Declarations in comments are those of the modules that are cimported here.
Lock order: pages.lock -> the log's. Codes below 0 are -errno; raise_result() makes exceptions.
"""
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from siltstone.log.atomics cimport add32, cpu_pause, load32_relaxed
from siltstone.log.capture cimport capture_t
from siltstone.log.log cimport part_t
from siltstone.log.ordered cimport group_t, ordered_t
from siltstone.log.ordered_log cimport OrderedLog
from siltstone.log.pthread cimport pthread_mutex_lock, pthread_mutex_trylock, pthread_mutex_unlock
from siltstone.log.workers cimport pool_t
# Engines cimport all of these from here.
from siltstone.store.append cimport append_ready, append_wait, pages_fragment_max
from siltstone.store.cleaning cimport held_t
from siltstone.store.commit cimport (change_abandon, change_allocate, change_append, change_base,
                                     change_begin, change_commit, change_count, change_cut,
                                     change_free, change_hold, change_image, change_link,
                                     change_needs, change_root, change_room, page_writable,
                                     pages_link, pages_link_only)
from siltstone.store.resident cimport (page_get, page_resized, pages_evict, pages_load,
                                       pages_load_many)
from siltstone.store.roots cimport pages_generate_id, pages_root_find, pages_root_unused
from siltstone.store.state cimport (HEAT_MAX, PAGES_ABSENT, PAGES_CLOSED,
                                    PAGES_CORRUPT, PAGES_FORKED, PAGES_LARGE, PAGES_LOG,
                                    PAGES_MISS, PAGES_MORE, PAGES_OK, PAGES_TOO_OLD, PAGES_WAIT,
                                    PAGE_FREE, PAGE_LIVE, PAGE_RESERVED, PAGE_UNUSED, PID_FIRST,
                                    ROOT_NAME_MAX, block_t, change_item_t, change_t, entry_t,
                                    page_ops_t, pages_counters_t, pages_t, place_t, root_t,
                                    snapshot_t, version_t)
from siltstone.store.table cimport page_entry, page_node
from siltstone.store.versions cimport pages_snapshot_close, pages_snapshot_open


# The lock ----------------------------------------------------------------------------------------

cdef enum:
    # With pauses between them: ten microseconds, a page's move or two, and fifty. Not tuned, but
    # that 1,500 of the first, with other changes, gained nothing.
    TRIES = 400
    TRIES_BEHIND = 2000

cdef inline bint pages_trylock(pages_t *pages) noexcept nogil:
    # Holds are short: to drop the GIL, sleep and be woken costs both sides more than a few tries.
    # Whoever cleans takes the lock again at once, before any sleeper is awake; so it is told.
    cdef int tries
    if pthread_mutex_trylock(&pages.lock) == 0:
        return True
    add32(&pages.wanted, 1)
    for tries in range(TRIES):
        if pthread_mutex_trylock(&pages.lock) == 0:
            pages.given += 1
            add32(&pages.wanted, <uint32_t>-1)
            return True
        cpu_pause()
    add32(&pages.wanted, <uint32_t>-1)
    return False

cdef inline void pages_lock(pages_t *pages) noexcept nogil:
    # With the GIL dropped only.
    if not pages_trylock(pages):
        add32(&pages.wanted, 1)
        pthread_mutex_lock(&pages.lock)
        pages.given += 1
        add32(&pages.wanted, <uint32_t>-1)

cdef inline void pages_lock_behind(pages_t *pages) noexcept nogil:
    # The same for background work, which holds it again and again: one who wants it goes first,
    # and need not wake anybody between two short holds.
    cdef uint32_t given = load32_relaxed(&pages.given)
    cdef int tries
    for tries in range(TRIES_BEHIND):
        if load32_relaxed(&pages.wanted) == 0 or load32_relaxed(&pages.given) != given:
            if pthread_mutex_trylock(&pages.lock) == 0:
                return
        cpu_pause()
    pthread_mutex_lock(&pages.lock)


cdef inline void pages_unlock(pages_t *pages) noexcept nogil:
    if pages.resident_bytes > pages.evict_above:
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
#     entry_t *page_entry(pages_t *pages, uint64_t pid)       inline

# The present node, or NULL: then page_get() says why. Its entry is not read.
#     char *page_node(pages_t *pages, uint64_t pid, bint scan)        inline

# OK, MISS, ABSENT; with a snapshot (not NULL): the node as of then, and TOO_OLD. *stamp (may be
# NULL) = of that content. Does not heat the page when `scan`: a scan must not push out what is hot.
#     int page_get(pages_t *pages, uint64_t pid, const snapshot_t *snapshot, bint scan, char **node,
#                       uint64_t *stamp)
# Read it (or its table block) into memory, without the lock and without the GIL. OK also when it
# is there meanwhile. ABSENT, TOO_OLD, CORRUPT, PAGES_LOG + ..., -ENOMEM.
#     int pages_load(pages_t *pages, uint64_t pid, const snapshot_t *snapshot)
# As many, by this thread and the workers; errors are met again when the page is asked for.
#     void pages_load_many(pages_t *pages, const uint64_t *pids, uint32_t count,
#                               const snapshot_t *snapshot)


# Changing; all under the lock, but pages_wait_ready ----------------------------------------------

# Whether `bytes` in `records` can be appended without waiting. OK, WAIT, LARGE, PAGES_LOG + FAILED.
cdef int pages_ready(pages_t *pages, uint64_t bytes, uint32_t records) noexcept nogil
cdef int pages_wait_ready(pages_t *pages, uint64_t bytes, uint32_t records) noexcept nogil
# The largest fragment of a link. Images of whole pages may have any size below 2 GiB.
#     uint32_t pages_fragment_max(pages_t *pages)

# One change to one page, a commit of its own: append the fragment, keep the old node if a snapshot
# needs it, apply it by ops.apply, stamp the page; count `delta` for the root (0: no count).
# OK, MISS, ABSENT, -ENOMEM, PAGES_LOG + ...; nothing has changed unless OK.
#     int pages_link(pages_t *pages, uint64_t pid, const part_t *parts, uint32_t count,
#                         uint32_t root, int64_t delta)
# The same in two steps, for who applies it itself: after OK of page_writable() *node is a node that
# no snapshot needs; then pages_link_only() (appends and stamps, no apply), and if that is OK change
# *node in place in the same lock hold, and tell page_resized() when it moved or changed its size.
#     int page_writable(pages_t *pages, uint64_t pid, char **node)
#     int pages_link_only(pages_t *pages, uint64_t pid, const part_t *parts, uint32_t count,
#                              uint32_t root, int64_t delta)
#     void page_resized(pages_t *pages, uint64_t pid, char *node)

# A change set. Filling it is private; -ENOMEM is its only error but for what is said.
#     void change_begin(change_t *change, pages_t *pages)
#     int change_allocate(change_t *change, uint64_t *pid)            # under the lock
# The page's whole new content. Takes the node, in any case but -ENOMEM.
#     int change_base(change_t *change, uint64_t pid, char *node)
# A fragment (copied) for a page that is in memory (and stays so: it is marked busy). Fragments of
# one page are applied in order. Applied in place at the commit.
#     int change_link(change_t *change, uint64_t pid, const part_t *parts,
#                          uint32_t count)                                 # under the lock
# The same, of `size` bytes that the caller then writes to *data.
#     int change_room(change_t *change, uint64_t pid, uint64_t size, char **data)
# Write an image for a new pid now, without the lock and the GIL; the page is not kept in memory.
# For large values: their pages need never be in memory together. PAGES_LOG + ... when it fails.
#     int change_image(change_t *change, uint64_t pid, const part_t *parts,
#                           uint32_t count)
#     int change_free(change_t *change, uint64_t pid)
#     int change_root(change_t *change, uint32_t root, const char *name, uint32_t name_size,
#                          uint64_t pid)       # pid 0: the root is given up
#     int change_count(change_t *change, uint32_t root, int64_t delta)
# Keep a page in memory, and its entry, until the set ends.
#     int change_hold(change_t *change, uint64_t pid)                 # under the lock
# Append `bytes` of the bases and links now, before the commit, so that a set that is larger than
# the buffers can wait for room outside of the lock. PAGES_MORE: there is more; PAGES_LOG + ...
#     int change_append(change_t *change, uint64_t bytes)             # under the lock
# Give back all items but the first `count`, none of which may have been appended.
#     void change_cut(change_t *change, uint32_t count)               # under the lock
# What to ask pages_ready() for.
#     void change_needs(change_t *change, uint64_t *bytes, uint32_t *records)
# Append all, then install all. OK; or nothing happened and the change is abandoned: MISS (a page
# of a link or free left memory), ABSENT, -ENOMEM, PAGES_LOG + ...
#     int change_commit(change_t *change)                             # under the lock
#     void change_abandon(change_t *change)                           # under the lock

# Durability: without lock and GIL. `end` = pages.commit_end as seen under the lock; 0 = all so far.
cdef int pages_sync(pages_t *pages, uint64_t end) noexcept nogil


# Snapshots; under the lock -----------------------------------------------------------------------

#     void pages_snapshot_open(pages_t *pages, snapshot_t *snapshot)
#     void pages_snapshot_close(pages_t *pages, snapshot_t *snapshot)


# Roots: a name, a pid that should stay the same for the root's life, and a count. Under the lock --

# The id or -1.
#     int64_t pages_root_find(pages_t *pages, const char *name, uint32_t size)
#     uint32_t pages_root_unused(pages_t *pages)      # an id for a new one

cdef inline root_t *pages_root(pages_t *pages, uint32_t root) noexcept nogil:
    return &pages.roots[root]

# The next id, never given out before; without the lock and the GIL (it may sync).
#     int pages_generate_id(pages_t *pages, uint64_t *identity)


cdef class Pages:
    """The handle: opens, recovers, checkpoints, cleans, closes. Engines subclass it to set ops:

        cdef class TreePages(Pages):
            def __cinit__(self, *_, **__):
                self.pages.ops = &node_ops
                self.pages.context = NULL       # anything

    then `TreePages().open_with(settings, ...)`, which recovers. Its parameters: pagecache.pyi.
    """
    cdef pages_t pages
    cdef readonly OrderedLog log
    cdef readonly object device
    cdef readonly object recovery       # how opening went; .ok, .problems, .outcome
    cdef readonly object settings       # PageSettings
    cdef readonly object clock
    cdef public object watchers         # the engine's; None: nobody watches
    cdef bint durable                   # commits wait for the medium
    cdef object _opener                 # Writer or Reader; None: the device was given
    cdef object _pool
    cdef object _upkeep                 # background threads, or None
    # Held by whoever checkpoints, to the end; by whoever cleans or describes a moment for a
    # checkpoint, which then waits for the medium without it. In this order.
    cdef object _checkpointing
    cdef object _maintenance
    cdef object _opened                 # ours to close: the device
    cdef uint64_t _segments_seen        # opened by the stream, when changed() looked last
    cdef held_t _held                   # what the file may hold without a pause for writers
    cdef int64_t _checkpoint_segments   # the same, at the newest checkpoint (before opening: < 0)
    cdef uint64_t _damaged_segments     # pinned by cleaning
    cdef object __weakref__
    # Raises the exception that fits, unless result is PAGES_OK. With the GIL, without the lock.
    cdef int raise_result(self, int result, uint64_t pid) except -1
    # Take the lock as said above, after pages_usable(); raises Closed or ForkedProcess.
    cdef int lock(self) except -1
    # After a commit, without the lock: waits for the medium if `durable`, up to `end`; work that
    # became due is given to the background threads, or done.
    cdef int changed(self, uint64_t end, bint durable) except -1
    cdef int _press(self) except -1
    cdef int _wait(self, uint64_t end) except -1
    cdef int _begin(self, capture_t *capture, char **head, uint64_t *size) noexcept nogil
    cdef int _save_blocks(self) noexcept nogil
