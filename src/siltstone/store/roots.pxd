"""Roots by name, and ids that are never given out twice."""
from libc.stdint cimport int64_t, uint32_t, uint64_t

from siltstone.store.state cimport pages_t

cdef int64_t pages_root_find(pages_t *pages, const char *name, uint32_t size) noexcept nogil
cdef uint32_t pages_root_unused(pages_t *pages) noexcept nogil
# Room for that id. 0 or -ENOMEM.
cdef int roots_reach(pages_t *pages, uint32_t root) noexcept nogil
# `name` is malloc()ed and taken. pid 0: gone.
cdef void root_set(pages_t *pages, uint32_t root, char *name, uint32_t size,
                   uint64_t pid) noexcept nogil
cdef void root_count_add(pages_t *pages, uint32_t root, int64_t delta) noexcept nogil
cdef int pages_generate_id(pages_t *pages, uint64_t *identity) noexcept nogil
