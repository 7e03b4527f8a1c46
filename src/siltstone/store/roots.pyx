"""Roots (a name, a pid, a count) and the source of ids. All of it is in every checkpoint.

An id is given out only when a marker above it is on the medium: recovery goes on at the highest
marker that it finds, so that no id comes twice, whatever was lost. The next marker is appended
when half of an interval is used, so that in the long run nobody waits for it. A failed write
raises nothing that is kept in memory.
"""
from libc.errno cimport ENOMEM
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcmp, memset

from siltstone.log.format cimport record_bytes
from siltstone.log.log cimport LOG_OK, part_t
from siltstone.log.ordered cimport (ORDERED_URGENT, ordered_append, ordered_dead, ordered_stable,
                                    ordered_sync)
from siltstone.log.pthread cimport pthread_mutex_lock, pthread_mutex_unlock
from siltstone.store.state cimport KIND_IDS, PAGES_LOG, PAGES_OK, pages_t, root_t


cdef int64_t pages_root_find(pages_t *pages, const char *name, uint32_t size) noexcept nogil:
    cdef uint32_t root
    for root in range(pages.root_count):
        if pages.roots[root].used and pages.roots[root].name_size == size:
            if memcmp(pages.roots[root].name, name, size) == 0:
                return root
    return -1


cdef uint32_t pages_root_unused(pages_t *pages) noexcept nogil:
    cdef uint32_t root
    for root in range(pages.root_count):
        if not pages.roots[root].used:
            return root
    return pages.root_count


cdef int roots_reach(pages_t *pages, uint32_t root) noexcept nogil:
    cdef uint32_t capacity = pages.root_capacity
    cdef root_t *larger
    if root >= capacity:
        while root >= capacity:
            capacity = max(<uint32_t>8, 2 * capacity)
        larger = <root_t *>realloc(pages.roots, capacity * sizeof(root_t))
        if larger == NULL:
            return -ENOMEM
        memset(larger + pages.root_capacity, 0,
               (capacity - pages.root_capacity) * sizeof(root_t))
        pages.roots = larger
        pages.root_capacity = capacity
    return 0


cdef void root_set(pages_t *pages, uint32_t root, char *name, uint32_t size,
                   uint64_t pid) noexcept nogil:
    cdef root_t *found = &pages.roots[root]
    cdef int64_t count = found.count if found.used else 0
    free(found.name)
    memset(found, 0, sizeof(root_t))
    if root >= pages.root_count:
        pages.root_count = root + 1
    if pid == 0:
        free(name)
        return
    found.used = 1
    found.name = name
    found.name_size = size
    found.pid = pid
    found.count = count


cdef void root_count_add(pages_t *pages, uint32_t root, int64_t delta) noexcept nogil:
    if root < pages.root_count:
        pages.roots[root].count += delta


# Ids ---------------------------------------------------------------------------------------------


cdef int append_marker(pages_t *pages, uint64_t marker) noexcept nogil:
    cdef part_t part
    cdef uint64_t position = 0
    cdef int result
    part.data = &marker
    part.size = 8
    result = ordered_append(pages.stream, KIND_IDS, &part, 1, ORDERED_URGENT, &position)
    if result == LOG_OK:
        # Its number is in every later checkpoint: the record keeps nothing alive.
        ordered_dead(pages.stream, position, record_bytes(8))
        pages.id_marker = marker
        pages.id_marker_end = position + record_bytes(8)
    return PAGES_OK if result == LOG_OK else PAGES_LOG + result


cdef int pages_generate_id(pages_t *pages, uint64_t *identity) noexcept nogil:
    cdef uint64_t end
    cdef int result = PAGES_OK
    pthread_mutex_lock(&pages.lock)
    while result == PAGES_OK:
        if pages.id_marker > pages.id_limit:
            if ordered_stable(pages.stream) >= pages.id_marker_end:
                pages.id_limit = pages.id_marker
        elif pages.id_next + pages.id_interval // 2 >= pages.id_limit:
            result = append_marker(pages, pages.id_limit + pages.id_interval)
            if result != PAGES_OK and pages.id_next < pages.id_limit:
                result = PAGES_OK       # not needed yet
        if result == PAGES_OK and pages.id_next < pages.id_limit:
            identity[0] = pages.id_next
            pages.id_next += 1
            break
        end = pages.id_marker_end
        pthread_mutex_unlock(&pages.lock)
        if result == PAGES_OK:
            result = ordered_sync(pages.stream, end)
            if result != LOG_OK:
                result = PAGES_LOG + result
        pthread_mutex_lock(&pages.lock)
    pthread_mutex_unlock(&pages.lock)
    return result
