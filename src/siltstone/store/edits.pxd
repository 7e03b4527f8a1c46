"""Edits of a tree: what is to become of each of many keys. See edits.pyx."""
from libc.stdint cimport uint32_t, uint64_t

from siltstone.store.page cimport node_t
from siltstone.store.pagecache cimport change_t

cdef struct edit_t:             # one key's change
    const char *key
    const char *payload         # NULL: delete
    uint32_t key_size
    uint32_t payload_size
    uint32_t root
    uint32_t blob
    uint32_t before             # bytes of the record that it replaces; 0: there is none
    uint32_t effect             # something changes

# By key. 0 or -ENOMEM.
cdef int edits_sort(edit_t *edits, uint64_t count) noexcept nogil
# Bytes of a node's image when these sorted edits are made, about; never too few.
cdef uint64_t edits_grown(const node_t *node, const edit_t *edits, uint64_t count) noexcept nogil
# Bytes of a fragment that says what they do.
cdef uint64_t edits_bytes(const edit_t *edits, uint64_t count) noexcept nogil
# Add that to a change, under the lock, as one fragment, or several if it is too large for one.
cdef int edits_link(change_t *change, uint64_t pid, const edit_t *edits,
                    uint64_t count) noexcept nogil
