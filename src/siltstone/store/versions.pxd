"""Snapshots, and what pages were when they were taken."""
from libc.stdint cimport uint64_t

from siltstone.store.state cimport entry_t, pages_t, snapshot_t, version_t

cdef void pages_snapshot_open(pages_t *pages, snapshot_t *snapshot) noexcept nogil
cdef void pages_snapshot_close(pages_t *pages, snapshot_t *snapshot) noexcept nogil

cdef inline bint version_wanted(const pages_t *pages, const entry_t *entry) noexcept nogil:
    # A snapshot is open that sees the page as it is now.
    return entry.stamp < pages.snapshot_newest

# Keep the page's present state before it changes. `keep_node`: the entry keeps a copy of its node,
# to be changed in place; else node and places move to the version. 0 or -ENOMEM.
cdef int version_keep(pages_t *pages, uint64_t pid, entry_t *entry, bint keep_node) noexcept nogil
# As of the snapshot; NULL: nothing older than the entry itself.
cdef version_t *version_find(entry_t *entry, uint64_t stamp) noexcept nogil
# Drop old snapshots until the versions fit. May drop versions of any page.
cdef void versions_limit(pages_t *pages) noexcept nogil
