"""Appending a page cache's records: images, fragments, marks, and whether that could wait."""
from libc.stdint cimport uint32_t, uint64_t

from siltstone.log.log cimport part_t
from siltstone.log.ordered cimport group_t
from siltstone.store.state cimport entry_t, pages_t, place_t

# Whether `bytes` in `records` can be appended without waiting. OK, WAIT, LARGE, PAGES_LOG + FAILED.
cdef int append_ready(pages_t *pages, uint64_t bytes, uint32_t records) noexcept nogil
# Without the lock: wait until they can.
cdef int append_wait(pages_t *pages, uint64_t bytes, uint32_t records) noexcept nogil
# One record, in a group or (NULL) alone. Its place; OK, PAGES_LOG + ...
cdef int append_record(pages_t *pages, group_t *group, uint32_t kind, const part_t *parts,
                       uint32_t count, uint32_t flags, place_t *place) noexcept nogil
# A whole image, in as many records as it takes; *places is malloc()ed.
cdef int append_image(pages_t *pages, group_t *group, uint32_t kind, uint64_t pid,
                      const part_t *image, uint32_t image_parts, uint32_t flags, place_t **places,
                      uint32_t *count) noexcept nogil
# A node's image, encoded and compressed. Under the lock (uses the scratch memory).
cdef int append_node(pages_t *pages, group_t *group, uint32_t kind, uint64_t pid,
                     const char *node, uint32_t flags, place_t **places,
                     uint32_t *count) noexcept nogil
# Write the page whole, as it is in memory, in place of its chain; no change, its stamp stays.
cdef int page_rewrite(pages_t *pages, uint64_t pid, entry_t *entry) noexcept nogil
cdef uint32_t pages_fragment_max(pages_t *pages) noexcept nogil
cdef uint64_t places_bytes(const place_t *places, uint32_t count) noexcept nogil
