"""What recovery found for pages whose table block is not in memory. See pending.pyx."""
from libc.stdint cimport uint32_t, uint64_t

from siltstone.store.state cimport entry_t, pages_t, place_t

cdef struct redo_t:
    uint32_t kind               # of the record; KIND_MOVED is told from KIND_BASE here
    uint32_t at                 # entry of the block
    uint64_t stamp              # that the page has afterwards, if this is a change of it
    place_t place

# Room for one place more was made. PAGES_CORRUPT: it makes no sense, and its record is dead.
cdef int entry_redo(pages_t *pages, uint64_t pid, entry_t *entry, const redo_t *redo) noexcept nogil
# Note it for later. 0 or -ENOMEM.
cdef int pending_add(pages_t *pages, uint64_t number, const redo_t *redo) noexcept nogil
# Room in entries that nobody has yet, so that pending_apply() cannot fail. 0 or -ENOMEM.
cdef int pending_room(pages_t *pages, uint64_t number, entry_t *entries) noexcept nogil
# The block is in memory from now on: all that was noted for it.
cdef void pending_apply(pages_t *pages, uint64_t number) noexcept nogil
# The block cannot be read: its records are left out.
cdef void pending_leave_out(pages_t *pages, uint64_t number) noexcept nogil
# Forget them.
cdef void pending_free(pages_t *pages, uint64_t number) noexcept nogil
