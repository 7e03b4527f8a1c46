"""Reading what is left of a damaged store: segments as they lie there, blocks of the table made
anew from them, pages without the changes that cannot be read. For repair.py, which decides.

Nothing here writes. `scan_segment` trusts checksums only: each run header and each record says by
itself where it belongs. Of a slot the newest life counts; older bytes in it were dead when it was
opened again. A page that has lost its base or a change is shown as far as the rest says, together
with the positions of what is missing. One thread.
"""
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memcpy, memset

from siltstone.log.format cimport (RECORD_HEADER_SIZE, RECORD_PAD, RECORD_SIZE_MIN, RUN_ALIGNMENT,
                                   RUN_HEADER_SIZE, SEGMENT_HEADER_SIZE, record_bytes,
                                   record_check, record_header_t, run_first_record,
                                   run_header_offset, run_header_t, run_header_valid,
                                   segment_header_t, segment_header_valid, word_kind)
from siltstone.log.ordered cimport GROUP_ID_SIZE, ORDERED_GROUPED, SEGMENT_AFTER_CUT
from siltstone.log.ordered_log cimport OrderedLog
from siltstone.log.ordered_recovery import Recovery
from siltstone.store.chainread cimport chain_salvage
from siltstone.store.page cimport (PAGE_INNER, PAGE_LEAF, RECORD_BLOB, WORD_SIZE, node_child,
                                   node_free, node_key, node_key_size, node_new, node_record,
                                   node_t, record_word, word_key_size, word_payload_size)
from siltstone.store.pagecache cimport (PAGES_CORRUPT, PAGES_OK, PAGE_LIVE, entry_t, page_entry,
                                        pages_lock, pages_unlock, place_t)
from siltstone.store.pending cimport pending_free
from siltstone.store.resident cimport block_load
from siltstone.store.state cimport (BLOCK_BITS, BLOCK_ENTRIES, KIND_BASE, KIND_FREE, KIND_LINK,
                                    KIND_MORE, KIND_MOVED)
from siltstone.store.table cimport (block_install, entries_free, entries_new, entry_push,
                                    entry_room, entry_take_places, table_reach)
from siltstone.store.trees cimport TreePages

cdef enum:
    RECORD_STEP = 16
    LINKS_LOST_MAX = 256        # positions told of one page; more are counted only

# What a walk over one slot knows.
cdef struct life_t:
    const char *image
    uint64_t bytes
    uint64_t version
    uint32_t salt
    uint32_t slot
    uint64_t stable             # the highest that a valid header says


# Segments as they lie there ----------------------------------------------------------------------


cdef bint _run_of_any_life(const life_t *life, uint64_t offset, run_header_t *run) noexcept nogil:
    memcpy(run, life.image + run_header_offset(offset), RUN_HEADER_SIZE)
    return run_header_valid(run, run.salt, run.version, life.slot, offset, life.bytes)


cdef void _newest_life(life_t *life) noexcept nogil:
    """Version and salt from whatever header is left."""
    cdef segment_header_t header
    cdef run_header_t run
    cdef uint64_t offset = 0
    memcpy(&header, life.image, SEGMENT_HEADER_SIZE)
    if segment_header_valid(&header, header.uuid, life.bytes, life.slot):
        life.version, life.salt, life.stable = header.version, header.salt, header.stable_position
    while offset + RUN_ALIGNMENT <= life.bytes:
        if _run_of_any_life(life, offset, &run):
            if run.version > life.version:
                life.version, life.salt = run.version, run.salt
            if run.version == life.version and run.stable_position > life.stable:
                life.stable = run.stable_position
        offset += RUN_ALIGNMENT


cdef uint64_t _next_run(const life_t *life, uint64_t offset) noexcept nogil:
    cdef run_header_t run
    while offset < life.bytes:
        if _run_of_any_life(life, offset, &run) and run.version == life.version:
            return offset
        offset += RUN_ALIGNMENT
    return life.bytes


cdef tuple _as_tuple(const life_t *life, uint64_t offset, uint32_t size, frozenset whole):
    cdef record_header_t header
    cdef uint64_t position = life.version * life.bytes + offset, group = 0, word = 0
    cdef uint32_t skip = 0, kind
    cdef const char *payload = life.image + offset + RECORD_HEADER_SIZE
    memcpy(&header, life.image + offset, RECORD_HEADER_SIZE)
    kind = word_kind(header.word)
    if kind & ORDERED_GROUPED and kind != RECORD_PAD and size >= GROUP_ID_SIZE:
        memcpy(&group, payload, GROUP_ID_SIZE)
        group = group if group else position
        skip = GROUP_ID_SIZE
        kind &= ~<uint32_t>ORDERED_GROUPED
    if size - skip >= 8:
        memcpy(&word, payload + skip, 8)
    return (position, kind, record_bytes(size), group, word,
            PyBytes_FromStringAndSize(payload + skip, size - skip) if kind in whole else None)


cdef bint _wanted(tuple record, object blocks):
    cdef uint32_t kind = record[1]
    return (blocks is None or kind not in (KIND_BASE, KIND_MORE, KIND_LINK, KIND_FREE, KIND_MOVED)
            or record[4] >> (8 + BLOCK_BITS) in blocks)


def scan_segment(bytes image not None, uint32_t slot, frozenset whole not None, blocks=None):
    """None, or (version, salt, uuid or b"", cut position or -1, stable position, records).

    Records: (position, kind, bytes on the device, group id or 0, first eight bytes as a number,
    payload of the kinds in `whole`), in order; of pages only those in these blocks of the table.
    """
    cdef life_t life
    cdef segment_header_t header
    cdef uint64_t offset = 0, end, at
    cdef int64_t size
    cdef list found = []
    memset(&life, 0, sizeof(life))
    life.image, life.bytes, life.slot = PyBytes_AS_STRING(image), <uint64_t>len(image), slot
    if life.bytes < RUN_ALIGNMENT:
        return None
    with nogil:
        _newest_life(&life)
    if life.version == 0:
        return None
    while offset < life.bytes:
        end = _next_run(&life, offset + RUN_ALIGNMENT)
        at = run_first_record(offset)
        while at + RECORD_SIZE_MIN <= end:
            size = record_check(life.image + at, end - at, life.salt,
                                life.version * life.bytes + at)
            if size < 0:
                at += RECORD_STEP
                continue
            record = _as_tuple(&life, at, <uint32_t>size, whole)
            if _wanted(record, blocks):
                found.append(record)
            at += record_bytes(<uint64_t>size)
        offset = end
    uuid, cut = b"", -1
    memcpy(&header, life.image, SEGMENT_HEADER_SIZE)
    if (segment_header_valid(&header, header.uuid, life.bytes, slot)
            and header.version == life.version):
        uuid = PyBytes_FromStringAndSize(<char *>header.uuid, 16)
        if header.flags & SEGMENT_AFTER_CUT:
            cut = header.stable_position
    return life.version, life.salt, uuid, cut, life.stable, found


def header_in(bytes block not None):
    """(uuid, bytes of a segment, slot) of the segment header at the front of these bytes, or None:
    for finding out what a file is whose superblock is lost."""
    cdef segment_header_t header
    if len(block) < SEGMENT_HEADER_SIZE:
        return None
    memcpy(&header, PyBytes_AS_STRING(block), SEGMENT_HEADER_SIZE)
    if not segment_header_valid(&header, header.uuid, header.segment_bytes, header.slot):
        return None
    return PyBytes_FromStringAndSize(<char *>header.uuid, 16), header.segment_bytes, header.slot


# Pages -------------------------------------------------------------------------------------------


cdef bytes _key(const node_t *node, uint32_t index):
    cdef bytes key = PyBytes_FromStringAndSize(NULL, node_key_size(node, index))
    node_key(node, index, PyBytes_AS_STRING(key))
    return key


cdef class SalvagePages(TreePages):
    """The pages of a damaged store, read-only."""

    cdef list _found_roots

    def open_scanned(self, settings, device, list segments not None, dict roots not None,
                     uint64_t ids):
        """Without a checkpoint: an empty table, segments (version, slot, salt) to read from, roots
        {name: pid}."""
        self.settings, self.device = settings, device
        self._set_policy(settings, 64)
        self.log = OrderedLog(device, buffer_bytes=settings.buffer_size, read_only=True)
        self.log._recovered = self.recovery = Recovery()
        self.pages.stream = &self.log.stream
        for version, slot, salt in segments:
            self.log._enter(version, slot, salt, device.segment_bytes)
        self._found_roots = [(name, pid, None) for name, pid in roots.items()]
        self.pages.id_marker = ids
        self.pages.closed = 0

    @property
    def pid_next(self):
        """No pid at or above was ever in use."""
        return self.pages.pid_next

    def roots(self):
        """(name, pid of its root page, entries that it says it has or None) of each tree."""
        cdef uint32_t root
        if self._found_roots is not None:
            return self._found_roots
        return [(self.pages.roots[root].name[:self.pages.roots[root].name_size],
                 self.pages.roots[root].pid, self.pages.roots[root].count)
                for root in range(self.pages.root_count) if self.pages.roots[root].used]

    def damaged_blocks(self):
        """Numbers of the table's blocks that cannot be read."""
        cdef uint64_t number = 0
        cdef int result
        found = []
        while number < self.pages.block_count:
            with nogil:
                result = block_load(&self.pages, number)
            if result == PAGES_CORRUPT:
                found.append(number)
            else:
                self.raise_result(result, number << BLOCK_BITS)
            number += 1
        return found

    def rebuild(self, uint64_t number, dict chains not None):
        """A block whose pages are {pid: [(position, bytes, kind), oldest first]}. It stays."""
        cdef entry_t *entries
        cdef entry_t *entry
        cdef place_t place
        cdef int result = table_reach(&self.pages, number << BLOCK_BITS)
        if result == PAGES_OK and self.pages.blocks[number].entries != NULL:
            entries_free(self.pages.blocks[number].entries)
            self.pages.blocks[number].entries = NULL
        if result == PAGES_OK:
            pending_free(&self.pages, number)       # the chains say it, too
        entries = entries_new()
        if result != PAGES_OK or entries == NULL:
            raise MemoryError("no memory for the table")
        for pid, places in chains.items():
            entry = &entries[pid & (BLOCK_ENTRIES - 1)]
            entry.state = PAGE_LIVE
            if entry_room(&self.pages, entry, <uint32_t>len(places)) != 0:
                raise MemoryError("no memory for the table")
            for position, size, kind in places:
                place.position, place.bytes, place.kind = position, size, kind
                entry_push(entry, &place)
            self.pages.pid_next = max(self.pages.pid_next, <uint64_t>pid + 1)
        block_install(&self.pages, number, entries)
        self.pages.blocks[number].resident += 1     # never dropped: it cannot be read again

    def page(self, uint64_t pid, int level):
        """None if there is no such page, else (kind, level, entries, positions that are lost).

        `level` is what a page must have whose base is lost (0: a leaf, of which the changes are
        shown; -1: not known). Kind 0: nothing can be read. Entries: (key, payload or pid, whether
        the payload refers to a large value).
        """
        cdef node_t *node = NULL
        cdef node_t *spare = NULL
        cdef place_t *places = NULL
        cdef uint32_t count = 0, lost = 0
        cdef uint64_t bad[LINKS_LOST_MAX]
        cdef int result = PAGES_OK
        self._loaded(pid)
        pages_lock(&self.pages)
        entry = page_entry(&self.pages, pid)
        if entry == NULL or entry.state != PAGE_LIVE:
            pages_unlock(&self.pages)
            return None
        count = entry.count
        result = entry_take_places(entry, &places)
        pages_unlock(&self.pages)
        if level == 0:
            spare = node_new(PAGE_LEAF, 0, 0)
        if result == PAGES_OK:
            with nogil:
                result = chain_salvage(&self.pages, pid, places, count, <char *>spare,
                                       <char **>&node, bad, LINKS_LOST_MAX, &lost)
        free(places)
        try:
            self.raise_result(result, pid)
            positions = [bad[at] for at in range(min(lost, <uint32_t>LINKS_LOST_MAX))]
            if node == NULL:
                return 0, -1, [], positions
            return node.kind, node.level, self._entries(node), positions
        finally:
            node_free(node)

    cdef list _entries(self, const node_t *node):
        cdef uint32_t index, word
        cdef const char *record
        cdef list found = []
        for index in range(node.count if node.kind in (PAGE_LEAF, PAGE_INNER) else 0):
            record = node_record(node, index)
            word = record_word(record)
            if node.kind == PAGE_INNER:
                found.append((_key(node, index) if index else b"", node_child(node, index), False))
            else:
                found.append((_key(node, index), PyBytes_FromStringAndSize(
                    record + WORD_SIZE + word_key_size(word), word_payload_size(word)),
                    bool(word & RECORD_BLOB())))
        return found

    def _loaded(self, uint64_t pid):
        cdef int result = PAGES_OK
        if pid < self.pages.pid_next:
            with nogil:
                result = block_load(&self.pages, pid >> BLOCK_BITS)
        self.raise_result(result, pid)

    def large_value(self, bytes reference not None):
        """The value that a leaf's payload refers to; Corruption."""
        return self.blob(NULL, PyBytes_AS_STRING(reference), <uint32_t>len(reference))
