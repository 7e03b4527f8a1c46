"""Trees as Python sees them: reading (now or as of a snapshot) and changing. See tree.pyx."""
from libc.stdint cimport int64_t, uint32_t, uint64_t

from siltstone.store.iteration cimport Scan
from siltstone.store.trees cimport Reads, Snapshot, TreePages, note_t
from siltstone.store.write cimport write_t

cdef class Reader:
    cdef readonly TreePages pages
    cdef readonly str name
    cdef readonly uint32_t root         # its id
    cdef uint32_t bound                 # generation of that id
    cdef uint64_t pid                   # of the root page: fixed for the tree's life
    cdef Snapshot snapshot              # None: the present
    cdef Reads reads
    cdef int64_t entries                # as of the snapshot
    cdef int enter(self) except -1      # take the lock, if all is well
    cdef int dropped(self) except -1
    cdef object find(self, object key, object default)
    cdef object large(self, const char *reference, uint32_t size)
    cdef Scan scan(self, int what, object start, object stop, object prefix, bint reverse,
                   bint include_start, bint include_stop, object limit)
    cdef object edge(self, object start, object stop, bint include_start, bint reverse)
    cdef object seen(self, bytes key, note_t *note)

cdef class View(Reader):
    pass

cdef class Tree(Reader):
    cdef object put(self, bytes key, bytes value, int mode, bytes old, const note_t *seen,
                    object durable, bint *refused)
    cdef object _put(self, write_t *write, int mode, bytes old, const note_t *seen, uint64_t *end,
                     bint *refused)
    cdef int _saw(self, bint durable) except -1
    cdef int _check_write(self, bytes key, bytes value) except -1
    cdef int _large(self, write_t *write, bytes value, char *reference) except -1
    cdef object _decide(self, bytes key, object function, object durable)
