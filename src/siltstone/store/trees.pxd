"""The pages of a store's trees: the handle that all of them share, snapshots, notes of reads."""
from libc.stdint cimport int64_t, uint32_t, uint64_t

from siltstone.store.hints cimport hints_t
from siltstone.store.page cimport node_t
from siltstone.store.pagecache cimport Pages, change_t, pages_t, snapshot_t

cdef enum:
    PAGES_CHANGED = 51          # beside pages_result_t: a noted page is not what it was

cdef struct generation_t:       # of a root id, in this process
    uint32_t bound              # rises when the tree is dropped: nobody is bound to it any more
    uint32_t emptied            # rises when the tree is dropped or cleared as a whole

cdef struct note_t:
    uint64_t pid
    uint64_t stamp

cdef struct seen_t:             # of a root, when a snapshot was taken
    uint64_t pid
    int64_t count
    uint32_t emptied
    uint32_t name_size
    uint64_t name_at

cdef class TreePages(Pages):
    cdef public uint32_t page_size          # a page with a larger image is split
    cdef public uint32_t part_size          # of large values
    cdef public uint64_t value_size_max
    cdef hints_t hints                      # guarded by pages.lock
    cdef generation_t *generations          # guarded by pages.lock; covers every root id in use
    cdef uint32_t generation_count
    cdef readonly uint64_t conflict_count     # transactions that had to be refused
    cdef readonly uint64_t restart_count      # commits that began anew: others changed their pages
    cdef readonly dict mergers              # (root id, generation): function
    cdef uint32_t inline_max(self) noexcept nogil
    cdef uint32_t key_max(self) noexcept nogil
    cdef generation_t generation(self, uint32_t root) noexcept nogil
    cdef int cover(self, uint32_t root) except -1
    # With the GIL, without the lock: do what `result` of an operation asks for, so that it can be
    # tried again, or raise what fits.
    cdef int again(self, int result, uint64_t pid, const snapshot_t *snapshot, uint64_t bytes,
                   uint32_t records) except -1
    cdef bytes blob(self, const snapshot_t *snapshot, const char *reference, uint32_t size)
    # ReadOnly: it was opened so.
    cdef int writable(self) except -1
    cdef bint _create(self, bytes name, uint64_t *end) except -1
    cdef bint _finish(self, change_t *change, int result, uint64_t *end) except -1
    cdef bint _detach(self, uint32_t root, bint drop, uint64_t *end) except -1
    cdef int _move_root(self, change_t *change, uint32_t root, const node_t *node,
                        uint64_t *pid) noexcept nogil
    cdef int _sweep(self, uint32_t root) except -1

cdef class Snapshot:
    cdef readonly TreePages pages
    cdef snapshot_t snap
    cdef dict names             # name: root id
    cdef dict roots             # root id: (pid, count, emptied)
    cdef int check(self) except -1
    cdef _note(self, const seen_t *seen, const char *names, uint32_t count)

cdef class Reads:
    cdef readonly TreePages pages
    cdef note_t *notes
    cdef uint64_t count
    cdef uint64_t capacity
    cdef dict emptied           # root id: generation
    cdef int add(self, uint64_t pid, uint64_t stamp) noexcept nogil     # 0 or -ENOMEM
    cdef int tree(self, uint32_t root, uint32_t emptied) except -1
    # Under the lock: PAGES_OK, PAGES_CHANGED, PAGES_MISS (then *missing is to be loaded)
    cdef int unchanged(self, uint64_t *missing) noexcept nogil

# Close a snapshot also when the store is closed; not in a forked child.
cdef void snapshot_give_back(TreePages pages, snapshot_t *snapshot) noexcept
# bytes of a key, a value, or InvalidKey, InvalidValue, TooLarge
cdef bytes key_bytes(object key)
cdef bytes value_bytes(object value)
