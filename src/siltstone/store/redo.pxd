"""Recovery: the state of a checkpoint, and the records behind it, into the page table."""
from libc.stdint cimport uint32_t, uint64_t

from siltstone.store.state cimport pages_t

# A record that recovery shows, in order; a group's at its mark. `mark` = position of the mark, or
# the record's own. OK, -ENOMEM, PAGES_CORRUPT (the record makes no sense: it is left out, dead).
cdef int redo_record(pages_t *pages, uint32_t kind, uint64_t position, const char *payload,
                     uint64_t size, uint64_t mark) noexcept nogil
# The state as bytes: head and tail are taken at different moments, see Pages.checkpoint().
cdef int state_head(pages_t *pages, char **data, uint64_t *size) noexcept nogil
cdef int state_tail(pages_t *pages, char **data, uint64_t *size) noexcept nogil
cdef int state_restore(pages_t *pages, const char *data, uint64_t size) noexcept nogil
