"""Large values: cut into parts, each a page of its own, so that no leaf grows with them.

A leaf keeps a reference: size, size of a part, and up to 8 pids. When those are not enough they
name pages that hold pids, up to two levels of them; each such page is as large as a part. Pages
are named by pids, so moving them needs nothing here. Parts are written as they come, before and
without the commit that makes them count, and never need to be in memory together. Readers read as
of a snapshot: a value that is replaced meanwhile is still there for them.
"""
from libc.errno cimport ENOMEM
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy, memset

from siltstone.log.log cimport part_t
from siltstone.store.descent cimport TREE_BROKEN
from siltstone.store.page cimport (BLOB_DEPTH_MAX, IMAGE_HEADER_SIZE, PAGE_BLOB, blob_t,
                                   node_prefix, node_t)
from siltstone.store.pagecache cimport (PAGES_MISS, PAGES_OK, change_allocate, change_free,
                                        change_image, page_entry, page_get, pages_load, pages_lock,
                                        pages_unlock)


# Writing ----------------------------------------------------------------------------------------

cdef void blob_begin(blob_writer_t *writer, change_t *change, uint32_t part_size) noexcept nogil:
    memset(writer, 0, sizeof(blob_writer_t))
    writer.change, writer.part_size = change, part_size


cdef void blob_end(blob_writer_t *writer) noexcept nogil:
    free(writer.pids)
    writer.pids = NULL


cdef int _write_page(blob_writer_t *writer, const char *data, uint32_t size,
                     uint64_t *pid) noexcept nogil:
    cdef char header[IMAGE_HEADER_SIZE]
    cdef part_t parts[2]
    cdef int result
    pages_lock(writer.change.pages)
    result = change_allocate(writer.change, pid)
    pages_unlock(writer.change.pages)
    if result != PAGES_OK:
        return result
    memset(header, 0, IMAGE_HEADER_SIZE)
    header[0] = PAGE_BLOB
    memcpy(header + 8, &size, 4)
    parts[0].data, parts[0].size = header, IMAGE_HEADER_SIZE
    parts[1].data, parts[1].size = data, size
    return change_image(writer.change, pid[0], parts, 2)


cdef int blob_part(blob_writer_t *writer, const char *data, uint32_t size) noexcept nogil:
    cdef uint64_t capacity = writer.capacity
    cdef uint64_t *larger
    cdef int result
    if writer.count == capacity:
        capacity = 2 * capacity + BLOB_PIDS_MAX
        larger = <uint64_t *>realloc(writer.pids, capacity * PID_SIZE)
        if larger == NULL:
            return -ENOMEM
        writer.pids, writer.capacity = larger, capacity
    result = _write_page(writer, data, size, &writer.pids[writer.count])
    if result == PAGES_OK:
        writer.count += 1
        writer.size += size
    return result


cdef int blob_finish(blob_writer_t *writer, char *reference, uint32_t *size) noexcept nogil:
    cdef uint64_t room = writer.part_size // PID_SIZE, at, made, taken
    cdef uint64_t pid = 0
    cdef blob_t blob
    cdef int result
    blob.size, blob.part_size, blob.depth = writer.size, writer.part_size, 0
    while writer.count > BLOB_PIDS_MAX:
        if blob.depth == BLOB_DEPTH_MAX:
            return TREE_BROKEN
        at = made = 0
        while at < writer.count:
            taken = writer.count - at if writer.count - at < room else room
            result = _write_page(writer, <const char *>&writer.pids[at],
                                 <uint32_t>(taken * PID_SIZE), &pid)
            if result != PAGES_OK:
                return result
            at += taken
            writer.pids[made] = pid     # behind what is still to be read
            made += 1
        writer.count = made
        blob.depth += 1
    memcpy(reference, &blob, BLOB_HEADER_SIZE)
    memcpy(reference + BLOB_HEADER_SIZE, writer.pids, writer.count * PID_SIZE)
    size[0] = BLOB_HEADER_SIZE + <uint32_t>writer.count * PID_SIZE
    return PAGES_OK


cdef int blob_write(change_t *change, const char *data, uint64_t size, uint32_t part_size,
                    char *reference, uint32_t *reference_size) noexcept nogil:
    cdef blob_writer_t writer
    cdef uint64_t at = 0, taken
    cdef int result = PAGES_OK
    blob_begin(&writer, change, part_size)
    while at < size and result == PAGES_OK:
        taken = size - at if size - at < part_size else part_size
        result = blob_part(&writer, data + at, <uint32_t>taken)
        at += taken
    if result == PAGES_OK:
        result = blob_finish(&writer, reference, reference_size)
    blob_end(&writer)
    return result


# Reading ----------------------------------------------------------------------------------------

cdef uint64_t blob_size(const char *reference) noexcept nogil:
    cdef uint64_t size
    memcpy(&size, reference, 8)
    return size


cdef int _page_bytes(pages_t *pages, const snapshot_t *snapshot, uint64_t pid, uint64_t offset,
                     char *out, uint64_t size, uint64_t *missing) noexcept nogil:
    cdef node_t *node = NULL
    cdef int result = PAGES_MISS
    missing[0] = pid
    while result == PAGES_MISS:
        pages_lock(pages)
        result = page_get(pages, pid, snapshot, True, <char **>&node, NULL)
        if result == PAGES_OK:
            if node.kind != PAGE_BLOB or offset + size > node.prefix_size:
                result = TREE_BROKEN
            else:
                memcpy(out, node_prefix(node) + offset, size)
        pages_unlock(pages)
        if result == PAGES_MISS:
            result = pages_load(pages, pid, snapshot)
            if result == PAGES_OK:
                result = PAGES_MISS     # and now ask again
    return result


cdef int _part_pid(pages_t *pages, const snapshot_t *snapshot, const blob_t *blob,
                   const char *pids, uint32_t count, uint64_t number, uint64_t *pid,
                   uint64_t *missing) noexcept nogil:
    # Of part `number`, from the reference through pages of pids.
    cdef uint64_t room = blob.part_size // PID_SIZE, span = 1, index
    cdef uint32_t depth = blob.depth, level
    cdef int result = PAGES_OK
    for level in range(depth):
        span *= room
    if room == 0 or number // span >= count:
        return TREE_BROKEN
    memcpy(pid, pids + (number // span) * PID_SIZE, PID_SIZE)
    while depth > 0 and result == PAGES_OK:
        number %= span
        span //= room
        index = number // span
        result = _page_bytes(pages, snapshot, pid[0], index * PID_SIZE, <char *>pid, PID_SIZE,
                             missing)
        depth -= 1
    return result


cdef int blob_read(pages_t *pages, const snapshot_t *snapshot, const char *reference,
                   uint32_t reference_size, uint64_t offset, char *out, uint64_t size,
                   uint64_t *missing) noexcept nogil:
    cdef blob_t blob
    cdef uint64_t pid = 0, taken, inside
    cdef int result = PAGES_OK
    memcpy(&blob, reference, BLOB_HEADER_SIZE)
    while size > 0 and result == PAGES_OK:
        inside = offset % blob.part_size
        taken = blob.part_size - inside
        if taken > size:
            taken = size
        result = _part_pid(pages, snapshot, &blob, reference + BLOB_HEADER_SIZE,
                           (reference_size - BLOB_HEADER_SIZE) // PID_SIZE,
                           offset // blob.part_size, &pid, missing)
        if result == PAGES_OK:
            result = _page_bytes(pages, snapshot, pid, inside, out, taken, missing)
        out += taken
        offset += taken
        size -= taken
    return result


# Freeing ----------------------------------------------------------------------------------------

cdef int _free_pids(change_t *change, const char *pids, uint64_t count, uint32_t depth,
                    uint64_t *missing) noexcept nogil:
    cdef uint64_t number, pid
    cdef node_t *node = NULL
    cdef int result = PAGES_OK
    for number in range(count):
        memcpy(&pid, pids + number * PID_SIZE, PID_SIZE)
        missing[0] = pid
        if depth > 0:
            result = page_get(change.pages, pid, NULL, True, <char **>&node, NULL)
            if result == PAGES_OK:
                result = TREE_BROKEN if node.kind != PAGE_BLOB else _free_pids(
                    change, node_prefix(node), node.prefix_size // PID_SIZE, depth - 1, missing)
        elif page_entry(change.pages, pid) == NULL:
            result = PAGES_MISS
        if result == PAGES_OK:
            result = change_free(change, pid)
        if result != PAGES_OK:
            break
    return result


cdef int blob_free(change_t *change, const char *reference, uint32_t size,
                   uint64_t *missing) noexcept nogil:
    cdef blob_t blob
    memcpy(&blob, reference, BLOB_HEADER_SIZE)
    return _free_pids(change, reference + BLOB_HEADER_SIZE, (size - BLOB_HEADER_SIZE) // PID_SIZE,
                      blob.depth, missing)
