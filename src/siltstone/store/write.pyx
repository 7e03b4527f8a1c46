"""One change of one key: the shortest way from a found place in a leaf to a committed change.

A value that fits the leaf costs one record in the log, a commit of its own, and one copy into the
node. Where large values come or go, the change is a set: their pages, the leaf's fragment, and
what is freed. The leaf is brought back into shape in the same hold of the lock.
"""
from libc.errno cimport ENOMEM
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcpy

from siltstone.log.log cimport part_t
from siltstone.store.blob cimport blob_free
from siltstone.store.descent cimport path_leaf, path_pid
from siltstone.store.page cimport (CHANGE_DELETE, CHANGE_HEADER_SIZE, CHANGE_SET, PAGE_OK,
                                   RECORD_BLOB, WORD_SIZE, make_word, node_delete, node_image_size,
                                   node_prefix_with, node_record, node_reserve, node_set, node_t,
                                   record_word, word_key_size, word_payload_size)
from siltstone.store.pagecache cimport (PAGES_LARGE, PAGES_OK, change_abandon, change_begin,
                                        change_commit, change_count, change_link, change_needs,
                                        entry_t, page_entry, page_resized, page_writable,
                                        pages_link_only, pages_ready)
from siltstone.store.reshape cimport tree_reshape

cdef enum:
    RECORD_MORE = 64            # of a record beside its content, about
    SPLIT_RECORDS = 4           # pieces, what the parent has to say, and the mark


cdef int leaf_settle(pages_t *pages, path_t *path, uint32_t page_size, bint appended,
                     bint deleted) noexcept nogil:
    cdef entry_t *entry = page_entry(pages, path_pid(path))
    cdef uint32_t size
    if entry == NULL or entry.node == NULL:
        return PAGES_OK
    size = node_image_size(<node_t *>entry.node)
    if size > page_size or (deleted and path.depth > 1 and size < page_size // 4):
        return tree_reshape(pages, path, page_size, appended)
    return PAGES_OK


cdef void _parts(const write_t *write, char *header, part_t *parts) noexcept nogil:
    cdef uint32_t word = make_word(write.key_size, write.payload_size, write.blob)
    header[0] = CHANGE_DELETE if write.delete_ else CHANGE_SET
    memcpy(header + 1, &word, WORD_SIZE)
    parts[0].data, parts[0].size = header, CHANGE_HEADER_SIZE
    parts[1].data, parts[1].size = write.key, write.key_size
    parts[2].data, parts[2].size = write.payload, write.payload_size


cdef int64_t _delta(const write_t *write) noexcept nogil:
    if write.delete_:
        return -1
    return 0 if write.found else 1


cdef int _room(node_t **node, const write_t *write) noexcept nogil:
    # So that node_set() cannot fail after the append.
    cdef uint32_t prefix = node[0].prefix_size
    if not write.found:
        prefix = node_prefix_with(node[0], write.key, write.key_size)
    elif word_payload_size(record_word(node_record(node[0], write.index))) >= write.payload_size:
        return PAGE_OK
    return node_reserve(node, WORD_SIZE + <uint64_t>write.key_size - prefix + write.payload_size,
                        0 if write.found else 1, prefix)


cdef int _link_ready(pages_t *pages, write_t *write) noexcept nogil:
    # A leaf that could not be split when it had to be, for want of room in the log: who changes it
    # next waits for that room too. Else it might grow until the buffers cannot hold its halves.
    cdef uint32_t size = node_image_size(path_leaf(&write.path))
    cdef uint64_t own = RECORD_MORE + write.key_size + write.payload_size
    cdef int result
    write.bytes, write.records = own, 1
    if size > write.page_size:
        write.bytes += size + SPLIT_RECORDS * RECORD_MORE
        write.records += SPLIT_RECORDS
    result = pages_ready(pages, write.bytes, write.records)
    if result == PAGES_LARGE and write.records > 1:
        write.bytes, write.records = own, 1
        result = pages_ready(pages, own, 1)
    return result


cdef int _write_link(pages_t *pages, write_t *write) noexcept nogil:
    cdef uint64_t pid = path_pid(&write.path)
    cdef char header[CHANGE_HEADER_SIZE]
    cdef part_t parts[3]
    cdef node_t *node = NULL
    cdef int result
    result = _link_ready(pages, write)
    if result == PAGES_OK:
        result = page_writable(pages, pid, <char **>&node)
    if result != PAGES_OK:
        return result
    if not write.delete_ and _room(&node, write) != PAGE_OK:
        return -ENOMEM          # node and page are as they were
    _parts(write, header, parts)
    result = pages_link_only(pages, pid, parts, 3, write.root, _delta(write))
    if result == PAGES_OK:
        if write.delete_:
            node_delete(node, write.index)
        else:
            node_set(&node, write.key, write.key_size, write.payload, write.payload_size, 0)
    page_resized(pages, pid, <char *>node)
    return result


cdef int _write_set(pages_t *pages, write_t *write, const char *record) noexcept nogil:
    # With pages of large values; `record`: what was there, or NULL.
    cdef change_t own
    cdef change_t *change = write.change
    cdef char header[CHANGE_HEADER_SIZE]
    cdef part_t parts[3]
    cdef uint32_t word, before
    cdef int result = PAGES_OK
    if change == NULL:
        change_begin(&own, pages)
        change = &own
    before = change.count
    if record != NULL and record_word(record) & RECORD_BLOB():
        word = record_word(record)
        result = blob_free(change, record + WORD_SIZE + word_key_size(word),
                           word_payload_size(word), &write.path.missing)
    if result == PAGES_OK:
        change_needs(change, &write.bytes, &write.records)
        write.bytes += RECORD_MORE + write.key_size + write.payload_size
        write.records += 1
        result = pages_ready(pages, write.bytes, write.records)
        if result == PAGES_LARGE:
            result = PAGES_OK           # nothing but the log's own waiting can help
    if result != PAGES_OK:
        change.count = before           # what was added so far owns nothing
        if change == &own:
            change_abandon(change)
        return result
    _parts(write, header, parts)
    result = change_link(change, path_pid(&write.path), parts, 3)
    if result == PAGES_OK and _delta(write):
        result = change_count(change, write.root, _delta(write))
    if result != PAGES_OK:
        change_abandon(change)
        return result
    return change_commit(change)


cdef int tree_write(pages_t *pages, write_t *write) noexcept nogil:
    cdef node_t *leaf = path_leaf(&write.path)
    cdef const char *record = node_record(leaf, write.index) if write.found else NULL
    cdef bint appended = not write.found and write.index == leaf.count
    cdef int result
    if write.change != NULL or (record != NULL and record_word(record) & RECORD_BLOB()):
        result = _write_set(pages, write, record)
    else:
        result = _write_link(pages, write)
    write.done = result == PAGES_OK
    if write.done:
        leaf_settle(pages, &write.path, write.page_size, appended, write.delete_)
    return result
