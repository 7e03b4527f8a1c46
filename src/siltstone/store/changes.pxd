"""Several changes that count as a whole. See changes.pyx."""
from libc.stdint cimport int64_t, uint32_t, uint64_t

from siltstone.store.plan cimport plan_t, root_edits_t
from siltstone.store.trees cimport Reads, TreePages

cdef class Changes:
    cdef readonly TreePages pages
    cdef dict parts             # root id: {key: value | None}
    cdef dict bounds            # root id: (generation, pid of the root page)
    cdef dict names             # of trees that the commit makes, by an id that is no root's
    cdef dict orders            # root id: sorted keys; as long as the part, or stale
    cdef uint64_t closings      # parts of an earlier life say that they are closed
    cdef dict part(self, uint32_t root)
    cdef list order(self, uint32_t root)
    cdef int64_t _commit(self, Reads reads, bint durable) except -1
    cdef int _fill(self, plan_t *plan, list keep) except -1
    cdef int _fill_tree(self, plan_t *plan, uint32_t root, dict part) except -1
    cdef int _name_tree(self, root_edits_t *edits, bytes name) except -1
    cdef int _large(self, plan_t *plan, list keep) except -1
    cdef int _carry_out(self, plan_t *plan, Reads reads) except -1
    cdef int _release(self, plan_t *plan) except -1
    cdef dict _tree_names(self)
    cdef list _events(self, const plan_t *plan, dict names)

cdef class Part:
    cdef readonly Changes changes
    cdef readonly uint32_t root
    cdef dict data
    cdef uint64_t closings      # of the changes, when this was made
    cdef int _open(self) except -1
