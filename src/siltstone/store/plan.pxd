"""How a set of edits becomes one commit. See plan.pyx."""
from libc.stdint cimport int64_t, uint32_t, uint64_t

from siltstone.store.edits cimport edit_t
from siltstone.store.growth cimport sprouts_t
from siltstone.store.pagecache cimport change_t
from siltstone.store.trees cimport Reads, TreePages

cdef enum:
    PLAN_STALE = 52             # beside pages_result_t: a leaf that was dealt with has changed
    PLAN_DROPPED = 53           # a tree is gone

cdef struct run_t:              # of edits in one leaf
    uint64_t pid
    uint64_t stamp
    uint64_t first              # edit
    uint64_t end
    uint32_t root               # its number in plan_t.roots
    uint32_t deleted            # something goes: the leaf may have become small
    uint64_t effects

cdef struct root_edits_t:       # of one tree
    uint32_t root
    uint32_t bound
    uint64_t pid
    uint64_t first              # edit
    uint64_t end
    int64_t delta
    sprouts_t sprouts           # leaves that are new
    const char *name            # of a tree that is made with the commit; else NULL
    uint32_t name_size

cdef struct plan_t:             # zero it; one thread's
    change_t change
    edit_t *edits               # by tree, and sorted by key
    uint64_t count
    run_t *runs                 # room for `count`
    uint64_t run_count
    root_edits_t *roots
    uint32_t root_count
    uint32_t whole              # all of it in one hold of the lock
    uint32_t large              # more than the write buffers hold: appended as room comes
    uint32_t leaf_items         # of the change, when all leaves are dealt with; then come parents
    uint64_t missing            # after PAGES_MISS
    uint64_t bytes              # after PAGES_WAIT
    uint32_t records
    uint32_t waited             # for room, before this step
    uint64_t end                # to sync up to
    uint64_t effects            # keys that change
    uint32_t trees_made

# The next step, without the lock and the GIL. PAGES_MORE: again, please; PAGES_OK: committed;
# PLAN_STALE: from the beginning, please. PAGES_MISS, WAIT: load `missing`, wait for room, again.
cdef int plan_step(TreePages trees, Reads reads, plan_t *plan) noexcept nogil
# After PAGES_MISS, likewise: read several leaves at once that the next edits want. What is wrong
# with one is met again when it is asked for; `missing` itself may have to be loaded after it.
cdef void plan_load(TreePages trees, const plan_t *plan) noexcept nogil
# After the commit, likewise: leaves that lost records are joined with others, or go.
cdef void plan_tidy(TreePages trees, const plan_t *plan) noexcept nogil
# Memory that is the plan's own, except the change.
cdef void plan_free(plan_t *plan) noexcept nogil
