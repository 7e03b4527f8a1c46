"""Commits: the only way in which what pages say changes.

A commit is appended first, all of it, and then installed, all of it, in one hold of the lock:
nobody sees half, and nothing in memory has changed when an append fails. What could fail between
the two (memory for a version, for the node to grow, for a place in the chain) is done before the
append; should a fragment not fit its node even so, the node is dropped and read again when needed,
since the log has everything. One fragment alone is one record and needs no mark.
"""
from libc.errno cimport ENOMEM
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy, memset

from siltstone.log.atomics cimport prefetch
from siltstone.log.log cimport LOG_OK, LOG_TOO_LARGE, part_t
from siltstone.log.ordered cimport (ORDERED_URGENT, ordered_group_abandon,
                                    ordered_group_commit, ordered_payload_max, ordered_start)
from siltstone.store.append cimport (append_image, append_node, append_record, page_rewrite,
                                     pages_fragment_max, places_bytes)
from siltstone.store.resident cimport entry_set_node, page_resized
from siltstone.store.roots cimport root_count_add, root_set, roots_reach
from siltstone.store.state cimport (KIND_BASE, KIND_FREE, KIND_LINK, KIND_ROOT,
                                    MARK_COMMIT, NOTE_SIZE, PAGES_ABSENT, PAGES_LOG, PAGES_MISS,
                                    PAGES_MORE, PAGES_OK, PAGE_FREE, PAGE_LIVE, PAGE_RESERVED,
                                    ROOT_NAME_MAX, WORD_NOTE, change_item_t, change_memory_t,
                                    change_t, entry_t, pages_t, place_t)
from siltstone.store.table cimport (block_of, block_touch, entry_adopt_places, entry_forget_places,
                                    entry_push, entry_redundant, entry_room, node_changed,
                                    page_entry, page_heat, page_node, places_dead, scratch_room,
                                    table_allocate, table_freed, table_unreserve)
from siltstone.store.versions cimport version_keep, version_wanted, versions_limit

cdef enum item_kind_t:
    ITEM_NEW = 1            # a pid of its own
    ITEM_BASE = 2
    ITEM_LINK = 3
    ITEM_IMAGE = 4          # written already
    ITEM_FREE = 5
    ITEM_ROOT = 6
    ITEM_HOLD = 7           # only: stay in memory

cdef enum:
    PLACES_HARD_MAX = 60000
    # Of a base's bytes (of 256) that a chain may repeat before the page is written whole: from
    # SHARE_MIN on, below SHARE_MIN + SHARE_SPAN. Bytes written of a user's byte, 200,000 records
    # overwritten three times (2026-11-25): 64+128 4.6, 96+96 4.2, 128+128 3.7, 128+192 3.6,
    # 160+128 3.5. Rare rewriting leaves more of it to cleaning, which moves the page anyway.
    SHARE_MIN = 160
    SHARE_SPAN = 128
    # Bytes of links to those of the base, whatever they repeat: all of them are read with it.
    LINKS_TO_BASE = 2
    FRAGMENT_PARTS_MAX = 7
    MEMORY_MIN = 1 << 10
    MEMORY_MAX = 32 << 10
    FETCH_AHEAD = 8             # items whose pages are on their way from memory
    FETCH_LINES = 2             # of a node: more of them come no sooner


# Before a page changes ---------------------------------------------------------------------------


cdef int live_entry(pages_t *pages, uint64_t pid, entry_t **entry) noexcept nogil:
    entry[0] = page_entry(pages, pid)
    if entry[0] == NULL:
        return PAGES_ABSENT if pid >= pages.pid_next else PAGES_MISS
    return PAGES_OK if entry[0].state == PAGE_LIVE else PAGES_ABSENT


cdef int keep_version(pages_t *pages, uint64_t pid, entry_t *entry, bint copy) noexcept nogil:
    if not version_wanted(pages, entry):
        return PAGES_OK
    if entry.versions != NULL and entry.versions.until == pages.commit_stamp + 1:
        return PAGES_OK         # by another change of the same commit
    return version_keep(pages, pid, entry, copy)


cdef inline bint chain_long(const pages_t *pages, uint64_t pid,
                            const entry_t *entry) noexcept nogil:
    """Whether a page is written whole before it changes again. What its chain repeats is room in
    the file: a share of the base's bytes is allowed, by pid, for pages that are changed equally
    often must not all be written whole at the same time. Links by which a page has grown repeat
    nothing: it is written when it is cut. But all of them are read with it."""
    cdef uint64_t share = SHARE_MIN + ((pid * <uint64_t>2654435761) >> 16) % SHARE_SPAN
    return (entry.count >= pages.links_max
            or entry.redundant > max(<uint64_t>512, entry.first.bytes * share >> 8)
            or entry.link_bytes > max(<uint64_t>512, entry.first.bytes) * LINKS_TO_BASE)


cdef int prepare_link(pages_t *pages, uint64_t pid, entry_t *entry, uint64_t size) noexcept nogil:
    """Whatever applying a fragment of `size` bytes may need. The node must be in memory."""
    cdef int result
    if entry.node == NULL:
        return PAGES_MISS
    # A chain that grew too long is written whole before it grows further.
    if chain_long(pages, pid, entry):
        result = page_rewrite(pages, pid, entry)
        if result == PAGES_OK:
            pages.counters.consolidated_bytes += entry.first.bytes
        elif entry.count >= PLACES_HARD_MAX:
            return result
    result = keep_version(pages, pid, entry, True)
    if result == PAGES_OK:
        # Each fragment of a set that is for this page made it busy once.
        result = entry_room(pages, entry, 1 + entry.busy)
    return result


cdef int page_writable(pages_t *pages, uint64_t pid, char **node) noexcept nogil:
    cdef entry_t *entry = NULL
    cdef int result = live_entry(pages, pid, &entry)
    if result == PAGES_OK:
        result = prepare_link(pages, pid, entry, 0)
    if result == PAGES_OK:
        node[0] = entry.node
        pages.content_before = pages.ops.image_size(pages.context, entry.node)
    return result


# One fragment ------------------------------------------------------------------------------------


cdef inline void chain_add(pages_t *pages, entry_t *entry, const place_t *place) noexcept nogil:
    """What of it the page grows by is taken off again when it is applied."""
    entry_push(entry, place)
    entry.link_bytes += place.bytes
    entry_redundant(pages, entry, <int64_t>entry.redundant + place.bytes)


cdef int append_link(pages_t *pages, uint64_t pid, entry_t *entry, const part_t *parts,
                     uint32_t count, uint32_t root, int64_t delta) noexcept nogil:
    """Append, note the place, stamp. What prepare_link() does was done."""
    cdef part_t out[FRAGMENT_PARTS_MAX + 1]
    cdef char header[8 + NOTE_SIZE]
    cdef uint64_t word = pid << 8
    cdef uint32_t number
    cdef place_t place
    cdef int result
    if count > FRAGMENT_PARTS_MAX:
        return PAGES_LOG + LOG_TOO_LARGE
    out[0].data = header
    out[0].size = 8
    if delta:
        word |= WORD_NOTE
        memcpy(header + 8, &root, 4)
        memcpy(header + 8 + 4, &delta, 8)
        out[0].size = 8 + NOTE_SIZE
    memcpy(header, &word, 8)
    for number in range(count):
        out[number + 1] = parts[number]
    result = append_record(pages, NULL, KIND_LINK, out, count + 1, 0, &place)
    if result != PAGES_OK:
        return result
    chain_add(pages, entry, &place)
    pages.commit_stamp += 1
    pages.commit_end = place.position + place.bytes
    entry.stamp = pages.commit_stamp
    if delta:
        root_count_add(pages, root, delta)
    pages.counters.commits += 1
    pages.counters.link_bytes += place.bytes
    return PAGES_OK


cdef int pages_link_only(pages_t *pages, uint64_t pid, const part_t *parts, uint32_t count,
                         uint32_t root, int64_t delta) noexcept nogil:
    cdef entry_t *entry = page_entry(pages, pid)
    cdef int result
    block_touch(pages, pid)
    result = append_link(pages, pid, entry, parts, count, root, delta)
    if pages.version_bytes > pages.snapshot_bytes_max:
        versions_limit(pages)
    return result


cdef void apply(pages_t *pages, uint64_t pid, entry_t *entry, const char *fragment,
                uint32_t size) noexcept nogil:
    if entry.node == NULL:
        return
    pages.content_before = pages.ops.image_size(pages.context, entry.node)
    if pages.ops.apply(pages.context, &entry.node, fragment, size) != 0:
        entry_set_node(pages, pid, entry, NULL)
        return
    page_resized(pages, pid, entry.node)


cdef int pages_link(pages_t *pages, uint64_t pid, const part_t *parts, uint32_t count,
                    uint32_t root, int64_t delta) noexcept nogil:
    cdef entry_t *entry = NULL
    cdef part_t whole
    cdef uint64_t size = 0
    cdef uint32_t number
    cdef int result = live_entry(pages, pid, &entry)
    for number in range(count):
        size += parts[number].size
    if result == PAGES_OK and size > pages_fragment_max(pages):
        result = PAGES_LOG + LOG_TOO_LARGE
    if result == PAGES_OK:
        result = prepare_link(pages, pid, entry, size)
    if result == PAGES_OK:
        result = pages.ops.reserve(pages.context, &entry.node, <uint32_t>size)
        node_changed(pages, pid, entry)
    if result == PAGES_OK:
        block_touch(pages, pid)     # uses the scratch memory: before the fragment is put there
        if count != 1:
            result = join(pages, parts, count, size, &whole)
        else:
            whole = parts[0]
    if result == PAGES_OK:
        result = append_link(pages, pid, entry, &whole, 1, root, delta)
    if result == PAGES_OK:
        apply(pages, pid, entry, <const char *>whole.data, <uint32_t>size)
    if pages.version_bytes > pages.snapshot_bytes_max:
        versions_limit(pages)
    return result


cdef int join(pages_t *pages, const part_t *parts, uint32_t count, uint64_t size,
              part_t *whole) noexcept nogil:
    cdef uint64_t done = 0
    cdef uint32_t number
    if scratch_room(pages, size) != 0:
        return -ENOMEM
    for number in range(count):
        memcpy(pages.scratch + done, parts[number].data, parts[number].size)
        done += parts[number].size
    whole.data = pages.scratch
    whole.size = size
    return PAGES_OK


# Filling a set -----------------------------------------------------------------------------------


cdef void change_begin(change_t *change, pages_t *pages) noexcept nogil:
    memset(change, 0, sizeof(change_t))
    change.pages = pages


cdef change_item_t *item_add(change_t *change, uint32_t kind, uint64_t pid) noexcept nogil:
    cdef uint32_t capacity = change.capacity
    cdef change_item_t *larger
    if change.count == capacity:
        capacity = max(<uint32_t>8, 2 * capacity)
        larger = <change_item_t *>realloc(change.items, capacity * sizeof(change_item_t))
        if larger == NULL:
            return NULL
        change.items = larger
        change.capacity = capacity
    memset(&change.items[change.count], 0, sizeof(change_item_t))
    change.items[change.count].kind = kind
    change.items[change.count].pid = pid
    change.count += 1
    return &change.items[change.count - 1]


cdef char *memory_take(change_t *change, uint64_t size) noexcept nogil:
    """Room for a fragment, until the set ends."""
    cdef change_memory_t *memory = change.memory
    cdef uint64_t room
    if memory == NULL or memory.used + size > memory.size:
        # twice what the last one had; above MEMORY_MAX freeing would make malloc() tidy its heap
        room = MEMORY_MIN if memory == NULL else min(2 * memory.size, <uint64_t>MEMORY_MAX)
        room = max(room, size)
        memory = <change_memory_t *>malloc(sizeof(change_memory_t) + room)
        if memory == NULL:
            return NULL
        memory.older, memory.used, memory.size = change.memory, 0, room
        change.memory = memory
    memory.used += size
    return <char *>memory + sizeof(change_memory_t) + memory.used - size


cdef int change_allocate(change_t *change, uint64_t *pid) noexcept nogil:
    cdef change_item_t *item = item_add(change, ITEM_NEW, 0)
    if item == NULL or table_allocate(change.pages, pid) != PAGES_OK:
        change.count -= item != NULL
        return -ENOMEM
    item.pid = pid[0]
    return PAGES_OK


cdef int change_base(change_t *change, uint64_t pid, char *node) noexcept nogil:
    cdef change_item_t *item = item_add(change, ITEM_BASE, pid)
    if item == NULL:
        return -ENOMEM
    item.node = node
    change.bytes += change.pages.ops.image_size(change.pages.context, node)
    return PAGES_OK


cdef int change_room(change_t *change, uint64_t pid, uint64_t size, char **data) noexcept nogil:
    cdef entry_t *entry = NULL
    cdef change_item_t *item
    cdef int result = live_entry(change.pages, pid, &entry)
    if result == PAGES_OK and entry.node == NULL:
        result = PAGES_MISS
    if result == PAGES_OK and size > pages_fragment_max(change.pages):
        result = PAGES_LOG + LOG_TOO_LARGE
    if result != PAGES_OK:
        return result
    item = item_add(change, ITEM_LINK, pid)
    if item == NULL:
        return -ENOMEM
    item.data, item.size = memory_take(change, size), size
    if item.data == NULL:
        change.count -= 1
        return -ENOMEM
    data[0] = item.data
    change.bytes += size
    entry.busy += 1
    block_of(change.pages, pid).resident += 1
    return PAGES_OK


cdef int change_link(change_t *change, uint64_t pid, const part_t *parts,
                     uint32_t count) noexcept nogil:
    cdef uint64_t size = 0
    cdef uint32_t number
    cdef char *data = NULL
    cdef int result
    for number in range(count):
        size += parts[number].size
    result = change_room(change, pid, size, &data)
    for number in range(count if result == PAGES_OK else 0):
        memcpy(data, parts[number].data, parts[number].size)
        data += parts[number].size
    return result


cdef int change_hold(change_t *change, uint64_t pid) noexcept nogil:
    cdef entry_t *entry = NULL
    cdef int result = live_entry(change.pages, pid, &entry)
    if result == PAGES_OK and item_add(change, ITEM_HOLD, pid) == NULL:
        result = -ENOMEM
    if result == PAGES_OK:
        entry.busy += 1
        block_of(change.pages, pid).resident += 1
    return result


cdef int change_image(change_t *change, uint64_t pid, const part_t *parts,
                      uint32_t count) noexcept nogil:
    cdef change_item_t *item = item_add(change, ITEM_IMAGE, pid)
    cdef int result
    if item == NULL:
        return -ENOMEM
    result = append_image(change.pages, &change.group, KIND_BASE, pid, parts, count, 0,
                          &item.places, &item.place_count)
    if result != PAGES_OK:
        change.count -= 1
    return result


cdef int change_free(change_t *change, uint64_t pid) noexcept nogil:
    change.flags = ORDERED_URGENT       # a full device can be emptied
    return PAGES_OK if item_add(change, ITEM_FREE, pid) != NULL else -ENOMEM


cdef int change_root(change_t *change, uint32_t root, const char *name, uint32_t name_size,
                     uint64_t pid) noexcept nogil:
    cdef change_item_t *item = item_add(change, ITEM_ROOT, pid)
    if name_size > ROOT_NAME_MAX:
        change.count -= item != NULL
        return PAGES_LOG + LOG_TOO_LARGE
    if item == NULL:
        return -ENOMEM
    item.root = root
    item.size = name_size
    item.data = <char *>malloc(name_size + 1)
    if item.data == NULL:
        change.count -= 1
        return -ENOMEM
    memcpy(item.data, name, name_size)
    change.bytes += 16 + name_size
    return PAGES_OK


cdef int change_count(change_t *change, uint32_t root, int64_t delta) noexcept nogil:
    cdef uint32_t number, capacity = change.note_capacity
    cdef uint32_t known
    cdef int64_t sum
    cdef char *larger
    for number in range(change.note_count):
        memcpy(&known, change.notes + number * NOTE_SIZE, 4)
        if known == root:
            memcpy(&sum, change.notes + number * NOTE_SIZE + 4, 8)
            sum += delta
            memcpy(change.notes + number * NOTE_SIZE + 4, &sum, 8)
            return PAGES_OK
    if change.note_count == capacity:
        capacity = max(<uint32_t>4, 2 * capacity)
        larger = <char *>realloc(change.notes, capacity * NOTE_SIZE)
        if larger == NULL:
            return -ENOMEM
        change.notes = larger
        change.note_capacity = capacity
    memcpy(change.notes + change.note_count * NOTE_SIZE, &root, 4)
    memcpy(change.notes + change.note_count * NOTE_SIZE + 4, &delta, 8)
    change.note_count += 1
    return PAGES_OK


cdef void change_needs(change_t *change, uint64_t *bytes, uint32_t *records) noexcept nogil:
    cdef uint32_t left = change.count - change.appended
    bytes[0] = change.bytes + 32 * <uint64_t>left + change.note_count * NOTE_SIZE
    records[0] = left + 1


# Committing --------------------------------------------------------------------------------------


cdef int prepare_item(pages_t *pages, change_item_t *item) noexcept nogil:
    cdef entry_t *entry = NULL
    cdef int result
    if item.kind == ITEM_ROOT:
        return roots_reach(pages, item.root)
    if item.kind == ITEM_NEW or item.kind == ITEM_HOLD:
        return PAGES_OK
    entry = page_entry(pages, item.pid)
    if entry == NULL:
        return PAGES_ABSENT if item.pid >= pages.pid_next else PAGES_MISS
    if item.kind == ITEM_LINK:
        result = PAGES_OK if entry.state == PAGE_LIVE else PAGES_ABSENT
        if result == PAGES_OK:
            result = prepare_link(pages, item.pid, entry, item.size)
        if result == PAGES_OK:
            result = pages.ops.reserve(pages.context, &entry.node, <uint32_t>item.size)
            node_changed(pages, item.pid, entry)
        return result
    if entry.state == PAGE_RESERVED and item.kind != ITEM_FREE:
        return PAGES_OK
    if entry.state != PAGE_LIVE:
        return PAGES_ABSENT
    return keep_version(pages, item.pid, entry, False)


cdef int append_item(pages_t *pages, change_t *change, change_item_t *item) noexcept nogil:
    cdef uint64_t word = item.pid << 8
    cdef char header[16]
    cdef uint32_t size
    cdef part_t parts[2]
    if item.kind == ITEM_NEW or item.kind == ITEM_HOLD or item.place_count:
        return PAGES_OK         # nothing to say, or said
    if item.kind == ITEM_BASE:
        return append_node(pages, &change.group, KIND_BASE, item.pid, item.node, change.flags,
                           &item.places, &item.place_count)
    parts[0].data = header
    parts[0].size = 8
    parts[1].data = item.data
    parts[1].size = item.size
    memcpy(header, &word, 8)
    if item.kind == ITEM_ROOT:
        memcpy(header, &item.root, 4)
        size = <uint32_t>item.size
        memcpy(header + 4, &size, 4)
        memcpy(header + 8, &item.pid, 8)
        parts[0].size = 16
    size = append_record(pages, &change.group, KIND_LINK if item.kind == ITEM_LINK else
                         KIND_FREE if item.kind == ITEM_FREE else KIND_ROOT, parts,
                         1 if item.kind == ITEM_FREE else 2, change.flags, &item.place)
    item.place_count = <int>size == PAGES_OK
    return <int>size


cdef void item_dead(pages_t *pages, change_item_t *item) noexcept nogil:
    places_dead(pages, &item.place if item.places == NULL else item.places, item.place_count)


cdef int change_append(change_t *change, uint64_t bytes) noexcept nogil:
    cdef pages_t *pages = change.pages
    cdef change_item_t *item
    cdef uint64_t size
    cdef bint some = False
    cdef int result
    while change.appended < change.count:
        item = &change.items[change.appended]
        size = 0
        if item.kind == ITEM_LINK:
            size = item.size
        elif item.kind == ITEM_BASE:
            size = pages.ops.image_size(pages.context, item.node)
        if size > bytes and some:
            return PAGES_MORE
        if size:
            result = append_item(pages, change, item)
            if result != PAGES_OK:
                return result
            bytes -= size if size < bytes else bytes
            change.bytes -= size
            some = True
        change.appended += 1
    return PAGES_OK


cdef int append_mark(pages_t *pages, change_t *change) noexcept nogil:
    cdef uint64_t size = 1 + change.note_count * <uint64_t>NOTE_SIZE, position = 0
    cdef part_t extra
    cdef int result
    if size + 16 > ordered_payload_max(pages.stream):
        return PAGES_LOG + LOG_TOO_LARGE
    if scratch_room(pages, size) != 0:
        return -ENOMEM
    pages.scratch[0] = MARK_COMMIT
    memcpy(pages.scratch + 1, change.notes, size - 1)
    extra.data = pages.scratch
    extra.size = size
    result = ordered_group_commit(pages.stream, &change.group, &extra, change.flags, &position,
                                  &pages.commit_end)
    pages.counters.mark_bytes += size + 24
    return PAGES_OK if result == LOG_OK else PAGES_LOG + result


cdef void install_page(pages_t *pages, change_item_t *item) noexcept nogil:
    """BASE, IMAGE, LINK and FREE: the entry becomes what the records say."""
    cdef entry_t *entry = page_entry(pages, item.pid)
    block_touch(pages, item.pid)
    entry.stamp = pages.commit_stamp
    if item.kind == ITEM_LINK:
        chain_add(pages, entry, &item.place)
        pages.counters.link_bytes += item.place.bytes
        apply(pages, item.pid, entry, item.data, <uint32_t>item.size)
        return
    entry_forget_places(pages, entry)
    if item.kind == ITEM_FREE:
        item_dead(pages, item)
        entry_set_node(pages, item.pid, entry, NULL)
        entry.state = PAGE_FREE
        table_freed(pages, item.pid)
        return
    pages.counters.base_bytes += places_bytes(item.places, item.place_count)
    if entry.state == PAGE_RESERVED:
        block_of(pages, item.pid).resident -= 1
    entry.state = PAGE_LIVE
    entry_adopt_places(pages, entry, item.places, item.place_count)
    item.places = NULL
    entry_set_node(pages, item.pid, entry, item.node)
    page_heat(pages, item.pid)[0] = 1 if item.node != NULL else 0
    item.node = NULL


cdef inline void item_fetch(pages_t *pages, const change_item_t *item) noexcept nogil:
    """Of a batch's pages many have left the processor's nearest caches since they were dealt with:
    entry and node begin their way back before their turn comes."""
    cdef const char *node
    cdef uint32_t line
    if item.kind != ITEM_LINK:
        return
    prefetch(page_entry(pages, item.pid))
    prefetch(<const char *>page_entry(pages, item.pid) + 64)
    node = page_node(pages, item.pid, True)
    for line in range(FETCH_LINES):
        prefetch(node + 64 * line)


cdef void install(pages_t *pages, change_t *change) noexcept nogil:
    cdef uint32_t number, root
    cdef int64_t delta
    cdef change_item_t *item
    pages.commit_stamp += 1
    pages.counters.commits += 1
    for number in range(change.count):
        if number + FETCH_AHEAD < change.count:
            item_fetch(pages, &change.items[number + FETCH_AHEAD])
        item = &change.items[number]
        if item.kind == ITEM_ROOT:
            item_dead(pages, item)
            root_set(pages, item.root, item.data, <uint32_t>item.size, item.pid)
            item.data = NULL
        elif item.kind != ITEM_NEW and item.kind != ITEM_HOLD:
            install_page(pages, item)
    for number in range(change.note_count):
        memcpy(&root, change.notes + number * NOTE_SIZE, 4)
        memcpy(&delta, change.notes + number * NOTE_SIZE + 4, 8)
        root_count_add(pages, root, delta)


cdef void settle_items(change_t *change, uint32_t first) noexcept nogil:
    """Give back what the items from `first` on hold."""
    cdef pages_t *pages = change.pages
    cdef change_item_t *item
    cdef entry_t *entry
    cdef uint32_t number
    for number in range(first, change.count):
        item = &change.items[number]
        if item.kind == ITEM_NEW:
            table_unreserve(pages, item.pid)
        elif item.kind == ITEM_LINK or item.kind == ITEM_HOLD:
            entry = page_entry(pages, item.pid)     # it was busy: it is still there
            entry.busy -= 1
            block_of(pages, item.pid).resident -= 1
        if item.node != NULL:
            pages.ops.release(pages.context, item.node)
        if item.kind == ITEM_ROOT:
            free(item.data)
        free(item.places)
    change.count = first


cdef void change_cut(change_t *change, uint32_t count) noexcept nogil:
    cdef change_item_t *item
    cdef uint32_t number
    for number in range(count, change.count):
        item = &change.items[number]
        if item.kind == ITEM_LINK:
            change.bytes -= item.size
        elif item.kind == ITEM_ROOT:
            change.bytes -= 16 + item.size
        elif item.kind == ITEM_BASE:
            change.bytes -= change.pages.ops.image_size(change.pages.context, item.node)
    settle_items(change, count)


cdef void settle(change_t *change) noexcept nogil:
    """Give back what the set holds; places of what was not installed are dead by now."""
    cdef pages_t *pages = change.pages
    cdef change_memory_t *memory
    settle_items(change, 0)
    while change.memory != NULL:
        memory = change.memory
        change.memory = memory.older
        free(memory)
    free(change.items)
    free(change.notes)
    memset(change, 0, sizeof(change_t))
    change.pages = pages


cdef void change_abandon(change_t *change) noexcept nogil:
    cdef uint32_t number
    ordered_group_abandon(change.pages.stream, &change.group)
    for number in range(change.count):
        item_dead(change.pages, &change.items[number])
    settle(change)


cdef bint single(const change_t *change) noexcept nogil:
    """One fragment and at most one count: a record of its own says it all."""
    return (change.count == 1 and change.items[0].kind == ITEM_LINK and change.note_count <= 1
            and change.group.records == 0)


cdef int commit_single(change_t *change) noexcept nogil:
    cdef part_t part
    cdef uint32_t root = 0
    cdef int64_t delta = 0
    cdef int result
    if change.note_count:
        memcpy(&root, change.notes, 4)
        memcpy(&delta, change.notes + 4, 8)
    part.data = change.items[0].data
    part.size = change.items[0].size
    result = pages_link(change.pages, change.items[0].pid, &part, 1, root, delta)
    settle(change)
    return result


cdef int change_commit(change_t *change) noexcept nogil:
    cdef pages_t *pages = change.pages
    cdef uint32_t number
    cdef int result = PAGES_OK
    if single(change):
        return commit_single(change)
    for number in range(change.count):
        if result == PAGES_OK:
            result = prepare_item(pages, &change.items[number])
    for number in range(change.count):
        if result == PAGES_OK:
            result = append_item(pages, change, &change.items[number])
    if result == PAGES_OK:
        result = append_mark(pages, change)
    if result != PAGES_OK:
        change_abandon(change)
        return result
    if change.waits:
        ordered_start(pages.stream)
    install(pages, change)
    settle(change)
    if pages.version_bytes > pages.snapshot_bytes_max:
        versions_limit(pages)
    return PAGES_OK
