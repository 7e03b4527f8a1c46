"""Several changes that count as a whole. See changes.pyx."""
from libc.stdint cimport int64_t, uint32_t, uint64_t

from siltstone.store.descent cimport path_t
from siltstone.store.image cimport fragment_t
from siltstone.store.page cimport node_t
from siltstone.store.pagecache cimport change_t
from siltstone.store.trees cimport Reads, TreePages

cdef struct edit_t:             # one key's change
    uint32_t root
    uint32_t key_size
    const char *key
    const char *payload         # NULL: delete
    uint32_t payload_size
    uint32_t blob
    uint32_t found              # it was there before
    uint32_t effect             # something changes

cdef struct run_t:              # of edits in one leaf
    uint64_t pid
    uint64_t stamp
    uint64_t first              # edit
    uint64_t end

cdef struct root_edits_t:
    uint32_t root
    uint32_t bound
    uint64_t pid
    int64_t delta

cdef struct plan_t:             # how far a commit has come; guarded by the lock
    change_t change
    edit_t *edits               # sorted by root and key
    uint64_t count
    run_t *runs
    uint64_t run_count
    root_edits_t *roots
    uint32_t root_count
    fragment_t fragment
    uint64_t missing
    uint64_t bytes
    uint32_t records
    uint32_t waited             # for room, before this try
    uint64_t end                # to sync up to
    uint64_t effects

cdef class Changes:
    cdef readonly TreePages pages
    cdef dict parts             # root id: {key: value | None}
    cdef dict bounds            # root id: (generation, pid of the root page)
    cdef dict orders            # root id: sorted keys; as long as the part, or stale
    cdef dict part(self, uint32_t root)
    cdef list order(self, uint32_t root)
    cdef int64_t _commit(self, Reads reads, bint durable) except -1
    cdef int _fill(self, plan_t *plan, list keep) except -1
    cdef int _large(self, plan_t *plan, list keep) except -1
    cdef int _carry_out(self, plan_t *plan, Reads reads) except -1
    cdef int _release(self, plan_t *plan) except -1
    cdef list _events(self, const plan_t *plan)

cdef class Part:
    cdef readonly Changes changes
    cdef readonly uint32_t root
    cdef dict data
    cdef int _open(self) except -1
