"""Pages that are lists of fragments: what the public PageCache keeps. See fragments.pyx."""
from siltstone.store.pagecache cimport Pages, change_t

cdef class FragmentPages(Pages):
    pass

cdef class PidSet:
    cdef FragmentPages pages
    cdef change_t change
