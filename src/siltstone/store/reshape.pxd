"""Splits, merges and removals of a tree's pages. See reshape.pyx."""
from libc.stdint cimport uint32_t, uint64_t

from siltstone.store.descent cimport path_t
from siltstone.store.pagecache cimport pages_t

# Bring the leaf at the end of `path`, which has just changed, back into shape, and what is above it
# as far as needed. `appended`: keys came in at its end, so the left part stays full. PAGES_OK, or
# why it could not be done now: then the next change of the leaf tries again.
cdef int tree_reshape(pages_t *pages, path_t *path, uint32_t page_size,
                      bint appended) noexcept nogil
# Take the first leaf off a subtree that nobody can reach, with the large values in it. *done: only
# `root` is left, an empty leaf. PAGES_MISS: path.missing.
cdef int tree_sweep(pages_t *pages, uint64_t root, path_t *path, bint *done) noexcept nogil
