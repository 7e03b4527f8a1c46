"""Commits: one fragment, or a set of changes that counts as a whole. See pagecache.pxd."""
from libc.stdint cimport int64_t, uint32_t, uint64_t

from siltstone.log.log cimport part_t
from siltstone.store.state cimport change_t, pages_t

cdef int page_writable(pages_t *pages, uint64_t pid, char **node) noexcept nogil
cdef int pages_link_only(pages_t *pages, uint64_t pid, const part_t *parts, uint32_t count,
                         uint32_t root, int64_t delta) noexcept nogil
cdef int pages_link(pages_t *pages, uint64_t pid, const part_t *parts, uint32_t count,
                    uint32_t root, int64_t delta) noexcept nogil
cdef void change_begin(change_t *change, pages_t *pages) noexcept nogil
cdef int change_allocate(change_t *change, uint64_t *pid) noexcept nogil
cdef int change_base(change_t *change, uint64_t pid, char *node) noexcept nogil
cdef int change_room(change_t *change, uint64_t pid, uint64_t size, char **data) noexcept nogil
cdef int change_link(change_t *change, uint64_t pid, const part_t *parts,
                     uint32_t count) noexcept nogil
cdef int change_image(change_t *change, uint64_t pid, const part_t *parts,
                      uint32_t count) noexcept nogil
cdef int change_free(change_t *change, uint64_t pid) noexcept nogil
cdef int change_root(change_t *change, uint32_t root, const char *name, uint32_t name_size,
                     uint64_t pid) noexcept nogil
cdef int change_count(change_t *change, uint32_t root, int64_t delta) noexcept nogil
cdef int change_hold(change_t *change, uint64_t pid) noexcept nogil
cdef int change_append(change_t *change, uint64_t bytes) noexcept nogil
cdef void change_cut(change_t *change, uint32_t count) noexcept nogil
cdef void change_needs(change_t *change, uint64_t *bytes, uint32_t *records) noexcept nogil
cdef int change_commit(change_t *change) noexcept nogil
cdef void change_abandon(change_t *change) noexcept nogil
