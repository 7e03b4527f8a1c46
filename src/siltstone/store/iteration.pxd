"""Iteration over a range of a tree. See iteration.pyx."""
from libc.stdint cimport int64_t, uint32_t, uint64_t

from siltstone.store.descent cimport path_t
from siltstone.store.page cimport node_t
from siltstone.store.pagecache cimport snapshot_t
from siltstone.store.trees cimport Reads, Snapshot, TreePages

cdef enum scan_what_t:
    SCAN_ITEMS = 0
    SCAN_KEYS = 1
    SCAN_VALUES = 2

cdef class Scan:
    cdef TreePages pages
    cdef Snapshot owner             # or None: then `own`, when one is needed
    cdef Reads reads
    cdef snapshot_t own
    cdef const snapshot_t *snapshot
    cdef uint64_t root              # pid
    cdef bint reverse
    cdef bint last                  # no leaf behind the one at hand
    cdef bint busy
    cdef int what
    cdef bytes low                  # range: [low, high)
    cdef bytes high                 # None: no end
    cdef const char *low_data
    cdef const char *high_data      # NULL: no end
    cdef uint32_t low_size
    cdef uint32_t high_size
    cdef int64_t left               # entries that may still come; below 0: all
    cdef node_t *node               # copy of the leaf at hand
    cdef uint64_t node_room
    cdef uint32_t index             # of the next entry: [index, end), reverse: [end, index)
    cdef uint32_t end
    cdef char *position             # where the next leaf begins, or ends in reverse
    cdef uint32_t position_size
    cdef uint64_t position_room
    cdef bint unbounded             # reverse: from the very end
    cdef int _fill(self) except -1
    cdef int _take(self, path_t *path) noexcept nogil
    cdef int _move_on(self, path_t *path) noexcept nogil
    cdef void _clip(self) noexcept nogil
    cdef int _note_position(self, const char *data, uint32_t size) noexcept nogil
    cdef bint _has_blob(self) noexcept nogil
    cdef object _value(self, const char *record)
    cdef object next_or_none(self)

cdef Scan scan_start(TreePages pages, uint64_t root, Snapshot snapshot, Reads reads, int what,
                     bytes low, bytes high, bint reverse, int64_t limit)
