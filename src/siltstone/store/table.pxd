"""The page table: entries by pid, in blocks that are loaded, saved and dropped as a whole."""
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from libc.stdlib cimport calloc

from siltstone.store.state cimport (BLOCK_BITS, BLOCK_ENTRIES, HEAT_MAX, PAGE_LIVE, entry_t,
                                    block_t, pages_t, place_t)

cdef inline entry_t *page_entry(pages_t *pages, uint64_t pid) noexcept nogil:
    cdef uint64_t number = pid >> BLOCK_BITS
    if number >= pages.block_count or pages.blocks[number].entries == NULL:
        return NULL
    return &pages.blocks[number].entries[pid & (BLOCK_ENTRIES - 1)]

cdef inline block_t *block_of(pages_t *pages, uint64_t pid) noexcept nogil:
    return &pages.blocks[pid >> BLOCK_BITS]

# What a descent needs of an entry stands apart, behind the entries of its block, so that it stays
# in the processor's cache: each node once more, and hits since the hand came by (HEAT_MAX at most).
cdef enum:
    BLOCK_MEMORY = BLOCK_ENTRIES * (sizeof(entry_t) + sizeof(void *) + 1)

cdef inline char **block_nodes(entry_t *entries) noexcept nogil:
    return <char **>(entries + BLOCK_ENTRIES)

cdef inline uint8_t *block_heats(entry_t *entries) noexcept nogil:
    return <uint8_t *>(block_nodes(entries) + BLOCK_ENTRIES)

# Whenever an entry's node has become another one.
cdef inline void node_changed(pages_t *pages, uint64_t pid, entry_t *entry) noexcept nogil:
    block_nodes(block_of(pages, pid).entries)[pid & (BLOCK_ENTRIES - 1)] = entry.node

cdef inline uint8_t *page_heat(pages_t *pages, uint64_t pid) noexcept nogil:
    return block_heats(block_of(pages, pid).entries) + (pid & (BLOCK_ENTRIES - 1))

cdef inline void page_warm(pages_t *pages, uint64_t pid) noexcept nogil:
    cdef uint8_t *heat = page_heat(pages, pid)
    if heat[0] < HEAT_MAX:
        heat[0] += 1

cdef inline char *page_node(pages_t *pages, uint64_t pid, bint scan) noexcept nogil:
    cdef uint64_t number = pid >> BLOCK_BITS
    cdef entry_t *entries = pages.blocks[number].entries if number < pages.block_count else NULL
    cdef char *node
    if entries == NULL:
        return NULL
    node = block_nodes(entries)[pid & (BLOCK_ENTRIES - 1)]
    if node != NULL and not scan:
        page_warm(pages, pid)
    return node

cdef inline entry_t *entries_new() noexcept nogil:
    return <entry_t *>calloc(1, BLOCK_MEMORY)       # NULL: no memory

cdef inline place_t *entry_place(entry_t *entry, uint32_t number) noexcept nogil:
    return &entry.first if number == 0 else &entry.more[number - 1]

# Numbers in images: 7 bits a byte, low ones first. NULL: the image ends inside it.
cdef char *put_number(char *to, uint64_t number) noexcept nogil
cdef const char *get_number(const char *at, const char *end, uint64_t *number) noexcept nogil
# A place, its position as the difference to `before`.
cdef char *put_place(char *to, const place_t *place, uint64_t before) noexcept nogil
cdef const char *get_place(const char *at, const char *end, uint64_t before,
                           place_t *place) noexcept nogil

# Room for blocks up to that of `pid`; missing ones are empty. 0 or -ENOMEM.
cdef int table_reach(pages_t *pages, uint64_t pid) noexcept nogil
# An unused pid, PAGE_RESERVED from now on.
cdef int table_allocate(pages_t *pages, uint64_t *pid) noexcept nogil
cdef void table_unreserve(pages_t *pages, uint64_t pid) noexcept nogil
cdef void table_freed(pages_t *pages, uint64_t pid) noexcept nogil      # may be allocated again

# Places. entry_room() before the append, so that entry_push() cannot fail after it.
cdef int entry_room(pages_t *pages, entry_t *entry, uint32_t more) noexcept nogil
cdef void entry_push(entry_t *entry, const place_t *place) noexcept nogil
# Its bytes that say again what the page says; what is below 0 counts as 0.
cdef void entry_redundant(pages_t *pages, entry_t *entry, int64_t bytes) noexcept nogil
cdef void entry_clear_places(pages_t *pages, entry_t *entry) noexcept nogil     # they are dead
cdef void entry_forget_places(pages_t *pages, entry_t *entry) noexcept nogil    # their room, too
# They take the place of what was there, which is dead.
cdef void entry_replace_places(pages_t *pages, entry_t *entry, const place_t *places,
                               uint32_t count) noexcept nogil
cdef void entry_adopt_places(pages_t *pages, entry_t *entry, place_t *places,
                             uint32_t count) noexcept nogil
cdef int entry_take_places(entry_t *entry, place_t **places) noexcept nogil
cdef void places_dead(pages_t *pages, const place_t *places, uint32_t count) noexcept nogil
cdef void places_pin(pages_t *pages, const place_t *places, uint32_t count, int step) noexcept nogil

# Before the first change to an entry since a checkpoint began: the block is saved as it was then.
cdef void block_touch(pages_t *pages, uint64_t pid) noexcept nogil
cdef int block_save(pages_t *pages, uint64_t number) noexcept nogil
cdef void block_drop(pages_t *pages, uint64_t number) noexcept nogil
# An image from the device into new entries. 0, -ENOMEM, PAGES_CORRUPT.
cdef int block_decode(pages_t *pages, const char *image, uint64_t size,
                      entry_t **entries) noexcept nogil
cdef int block_install(pages_t *pages, uint64_t number, entry_t *entries) noexcept nogil
cdef void entries_free(entry_t *entries) noexcept nogil
cdef int scratch_room(pages_t *pages, uint64_t bytes) noexcept nogil
