"""Pages that are lists of fragments, opaque bytes each: the engine under the public PageCache.

A node is its fragments, oldest first; a link appends one. Nothing here merges them: that is the
caller's Python, which must not run under the lock, so that get() copies the bytes out and merges
them outside, and a chain that grew long is replaced by its merged form when its page has not
changed meanwhile. All calls drop the GIL, take the lock, and start again after a miss.

    image := (size u32, bytes)*        a node is the same behind a header
"""
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.errno cimport ENOMEM
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcpy

from siltstone.log.log cimport part_t
from siltstone.store.append cimport page_rewrite
from siltstone.store.pagecache cimport (PAGES_ABSENT, PAGES_CORRUPT, PAGES_LARGE, PAGES_MISS,
                                        PAGES_OK, PAGES_WAIT, PAGE_LIVE, PAGE_RESERVED, Pages,
                                        append_ready, append_wait, change_abandon, change_allocate,
                                        change_base, change_begin, change_commit, change_free,
                                        change_link, change_needs, change_root, change_t, entry_t,
                                        page_entry, page_get, page_ops_t, pages_fragment_max,
                                        pages_generate_id, pages_load, pages_lock, pages_root_find,
                                        pages_t, pages_unlock, pages_usable)
from siltstone.store.resident cimport block_load, entry_set_node

cdef struct list_t:
    uint32_t count              # of fragments
    uint32_t capacity           # bytes behind this header
    uint64_t size               # of them, in use

cdef enum:
    ANY_STAMP = 0
    OP_LINK = 1
    OP_REPLACE = 2
    OP_FREE = 3
    OP_ROOT = 4
    RESULT_OUTDATED = 50
    RESULT_ROOT = 51            # the root is not what was expected


# The operations of a node ------------------------------------------------------------------------


cdef inline list_t *list_of(const char *node) noexcept nogil:
    return <list_t *>node


cdef inline char *list_data(const char *node) noexcept nogil:
    return <char *>node + sizeof(list_t)


cdef char *list_new(uint64_t capacity) noexcept nogil:
    cdef char *node
    if capacity >= <uint64_t>1 << 31:
        return NULL
    node = <char *>malloc(sizeof(list_t) + capacity)
    if node != NULL:
        list_of(node).count = 0
        list_of(node).size = 0
        list_of(node).capacity = <uint32_t>capacity
    return node


cdef int list_reserve(void *context, char **node, uint32_t size) noexcept nogil:
    cdef list_t *head = list_of(node[0])
    cdef uint64_t wanted = head.size + 4 + size
    cdef char *larger
    if wanted <= head.capacity:
        return 0
    wanted += wanted // 2
    if wanted >= <uint64_t>1 << 31:
        return -ENOMEM
    larger = <char *>realloc(node[0], sizeof(list_t) + wanted)
    if larger == NULL:
        return -ENOMEM
    list_of(larger).capacity = <uint32_t>wanted
    node[0] = larger
    return 0


cdef int list_apply(void *context, char **node, const char *fragment, uint32_t size) noexcept nogil:
    cdef list_t *head = list_of(node[0])
    if head.size + 4 + size > head.capacity:
        return -ENOMEM
    memcpy(list_data(node[0]) + head.size, &size, 4)
    memcpy(list_data(node[0]) + head.size + 4, fragment, size)
    head.size += 4 + size
    head.count += 1
    return 0


cdef uint64_t list_image_size(void *context, const char *node) noexcept nogil:
    return list_of(node).size


cdef void list_encode(void *context, const char *node, char *image) noexcept nogil:
    memcpy(image, list_data(node), list_of(node).size)


cdef int list_decode(void *context, uint64_t pid, const char *image, uint64_t size,
                     char **node) noexcept nogil:
    cdef uint64_t at = 0
    cdef uint32_t piece, count = 0
    while at < size:
        if size - at < 4:
            return PAGES_CORRUPT
        memcpy(&piece, image + at, 4)
        if piece > size - at - 4:
            return PAGES_CORRUPT
        at += 4 + <uint64_t>piece
        count += 1
    node[0] = list_new(size)
    if node[0] == NULL:
        return -ENOMEM
    memcpy(list_data(node[0]), image, size)
    list_of(node[0]).size = size
    list_of(node[0]).count = count
    return 0


cdef uint64_t list_memory(void *context, const char *node) noexcept nogil:
    return sizeof(list_t) + list_of(node).capacity


cdef char *list_copy(void *context, const char *node) noexcept nogil:
    cdef char *copied = list_new(list_of(node).size)
    if copied != NULL:
        memcpy(list_data(copied), list_data(node), list_of(node).size)
        list_of(copied).size = list_of(node).size
        list_of(copied).count = list_of(node).count
    return copied


cdef void list_release(void *context, char *node) noexcept nogil:
    free(node)


cdef page_ops_t list_ops
list_ops.reserve = list_reserve
list_ops.apply = list_apply
list_ops.image_size = list_image_size
list_ops.encode = list_encode
list_ops.decode = list_decode
list_ops.memory = list_memory
list_ops.copy = list_copy
list_ops.release = list_release


# Reading -----------------------------------------------------------------------------------------


cdef int read_list(pages_t *pages, uint64_t pid, char **copied, uint64_t *stamp) noexcept nogil:
    """A copy of the node, the caller's. Without the lock."""
    cdef char *node = NULL
    cdef int result = PAGES_MISS
    while result == PAGES_MISS:
        pages_lock(pages)
        result = page_get(pages, pid, NULL, False, &node, stamp)
        if result == PAGES_OK:
            pages.counters.hits += 1
            copied[0] = list_copy(NULL, node)
            if copied[0] == NULL:
                result = -ENOMEM
        pages_unlock(pages)
        if result == PAGES_MISS:
            result = pages_load(pages, pid, NULL)
            if result == PAGES_OK:
                result = PAGES_MISS
    return result


# Changing ----------------------------------------------------------------------------------------


cdef struct op_t:
    uint32_t kind
    uint64_t pid                # a root's new one
    uint64_t expected           # stamp; a root's old pid
    const char *data
    uint64_t size


cdef int check_page(pages_t *pages, const op_t *op, uint64_t *actual) noexcept nogil:
    cdef entry_t *entry = page_entry(pages, op.pid)
    if entry == NULL:
        return PAGES_ABSENT if op.pid >= pages.pid_next else PAGES_MISS
    if entry.state == PAGE_RESERVED and op.kind == OP_REPLACE and op.expected == ANY_STAMP:
        return PAGES_OK
    if entry.state != PAGE_LIVE:
        return PAGES_ABSENT
    actual[0] = entry.stamp
    if op.expected != ANY_STAMP and op.expected != entry.stamp:
        return RESULT_OUTDATED
    return PAGES_MISS if op.kind == OP_LINK and entry.node == NULL else PAGES_OK


cdef int check_root(pages_t *pages, const op_t *op, uint64_t *actual) noexcept nogil:
    cdef int64_t root = pages_root_find(pages, op.data, <uint32_t>op.size)
    actual[0] = pages.roots[root].pid if root >= 0 else 0
    return PAGES_OK if actual[0] == op.expected else RESULT_ROOT


cdef int fill(change_t *change, const op_t *op, uint32_t *roots_new) noexcept nogil:
    cdef pages_t *pages = change.pages
    cdef part_t part
    cdef char *node
    cdef int64_t root
    part.data = op.data
    part.size = op.size
    if op.kind == OP_LINK:
        return change_link(change, op.pid, &part, 1)
    if op.kind == OP_FREE:
        return change_free(change, op.pid)
    if op.kind == OP_ROOT:
        root = pages_root_find(pages, op.data, <uint32_t>op.size)
        if root < 0 and op.pid == 0:
            return PAGES_OK
        if root < 0:
            root = root_unused(pages, roots_new[0])
            roots_new[0] += 1
        return change_root(change, <uint32_t>root, op.data, <uint32_t>op.size, op.pid)
    # `data` is a whole image
    if list_decode(NULL, op.pid, op.data, op.size, &node) != 0:
        return -ENOMEM
    if change_base(change, op.pid, node) != 0:
        free(node)
        return -ENOMEM
    return PAGES_OK


cdef int64_t root_unused(pages_t *pages, uint32_t skip) noexcept nogil:
    """The (skip + 1)th id that no root has: several may be made in one set."""
    cdef uint32_t root = 0
    while root < pages.root_count:
        if not pages.roots[root].used:
            if skip == 0:
                return root
            skip -= 1
        root += 1
    return pages.root_count + skip


cdef int attempt(pages_t *pages, change_t *change, const op_t *ops, uint32_t count, uint32_t *bad,
                 uint64_t *actual) noexcept nogil:
    """Check, fill, commit: one hold of the lock."""
    cdef uint32_t number, records, roots_new = 0
    cdef uint64_t bytes
    cdef int result = PAGES_OK
    change_begin(change, pages)
    for number in range(count):
        bad[0] = number
        if ops[number].kind == OP_ROOT:
            result = check_root(pages, &ops[number], actual)
        else:
            result = check_page(pages, &ops[number], actual)
        if result == PAGES_OK:
            result = fill(change, &ops[number], &roots_new)
        if result != PAGES_OK:
            change_abandon(change)
            return result
    change_needs(change, &bytes, &records)
    result = append_ready(pages, bytes, records)
    if result == PAGES_WAIT:
        bad[0] = <uint32_t>min(bytes, <uint64_t>0xFFFFFFFF)
        change_abandon(change)
        return result
    return change_commit(change)


cdef int apply_ops(pages_t *pages, const op_t *ops, uint32_t count, uint64_t *end,
                   uint64_t *stamp, uint32_t *bad, uint64_t *actual) noexcept nogil:
    """All of them, or none. Without the lock."""
    cdef change_t change
    cdef int result = PAGES_MISS
    while True:
        pages_lock(pages)
        result = attempt(pages, &change, ops, count, bad, actual)
        end[0] = pages.commit_end
        stamp[0] = pages.commit_stamp
        pages_unlock(pages)
        if result == PAGES_MISS:
            if bad[0] < count and ops[bad[0]].kind == OP_LINK:
                result = pages_load(pages, ops[bad[0]].pid, NULL)
            else:
                result = block_load(pages, ops[bad[0]].pid >> 9)
        elif result == PAGES_WAIT:
            result = append_wait(pages, bad[0], count + 1)
            if result == PAGES_LARGE:
                result = PAGES_OK
        else:
            return result
        if result != PAGES_OK:
            return result


cdef int consolidate(pages_t *pages, uint64_t pid, uint64_t stamp, char *node) noexcept nogil:
    """Another form of the same page; not if it changed. Takes the node."""
    cdef entry_t *entry
    cdef int result = PAGES_ABSENT
    append_wait(pages, list_of(node).size, 2)
    pages_lock(pages)
    entry = page_entry(pages, pid)
    if entry != NULL and entry.state == PAGE_LIVE and entry.stamp == stamp:
        entry_set_node(pages, pid, entry, node)
        node = NULL
        result = page_rewrite(pages, pid, entry)
        if result == PAGES_OK:
            pages.counters.consolidated_bytes += entry.first.bytes
        else:
            entry_set_node(pages, pid, entry, NULL)     # what the log has stays the page
    pages_unlock(pages)
    free(node)
    return result


# As Python sees it -------------------------------------------------------------------------------


cdef bytes image_of(fragments):
    """The image of a list of bytes."""
    return b"".join([len(each).to_bytes(4, "little") + each for each in fragments])


cdef class FragmentPages(Pages):
    """Lists of bytes by pid; `pagecache.PageCache` makes fragments of them."""

    def __cinit__(self, *_, **__):
        self.pages.ops = &list_ops

    def _writable(self):
        self._usable()
        self.log._check(True)

    def fragments_of(self, uint64_t pid):
        """(list of bytes, oldest first; stamp). KeyMissing."""
        cdef char *node = NULL
        cdef uint64_t stamp = 0, at = 0
        cdef uint32_t size
        cdef int result
        with nogil:
            result = read_list(&self.pages, pid, &node, &stamp)
        self.raise_result(result, pid)
        try:
            found = []
            while at < list_of(node).size:
                memcpy(&size, list_data(node) + at, 4)
                found.append(PyBytes_FromStringAndSize(list_data(node) + at + 4, size))
                at += 4 + <uint64_t>size
            return found, stamp
        finally:
            free(node)

    def apply(self, list ops):
        """All or none of ("link" | "replace", pid, stamp, bytes), ("free", pid, stamp),
        ("root", new pid, old pid, name). Stamp 0: any. (code, index, actual, stamp): code 0 = done.
        """
        cdef uint32_t count = <uint32_t>len(ops), number = 0, bad = 0
        cdef op_t *all = <op_t *>calloc(count + 1, sizeof(op_t))
        cdef uint64_t end = 0, stamp = 0, actual = 0
        cdef int result
        cdef list kept = []
        self._writable()
        if all == NULL:
            raise MemoryError()
        try:
            for kind, pid, expected, data in ops:
                all[number].kind = KINDS[kind]
                all[number].pid = pid
                all[number].expected = expected
                if kind == "replace":
                    data = image_of(data)
                kept.append(data)
                all[number].data = PyBytes_AS_STRING(data)
                all[number].size = <uint64_t>PyBytes_GET_SIZE(data)
                number += 1
            with nogil:
                result = apply_ops(&self.pages, all, count, &end, &stamp, &bad, &actual)
        finally:
            free(all)
        if result == RESULT_OUTDATED or result == RESULT_ROOT:
            return result, bad, actual, 0
        self.raise_result(result, ops[bad][1] if bad < count else 0)
        self.changed(end, self.durable)
        return 0, 0, 0, stamp

    def consolidate(self, uint64_t pid, uint64_t stamp, fragments):
        """These fragments say the same as those that are there; False: the page changed."""
        cdef bytes image = image_of(fragments)
        cdef char *node = NULL
        cdef int result
        result = list_decode(NULL, pid, PyBytes_AS_STRING(image), len(image), &node)
        if result != 0:
            raise MemoryError()
        with nogil:
            result = consolidate(&self.pages, pid, stamp, node)
        return result == PAGES_OK

    def root_pid(self, bytes name):
        """The pid of a root; 0: there is none."""
        cdef int64_t root
        cdef uint64_t pid = 0
        cdef const char *text = PyBytes_AS_STRING(name)
        cdef uint32_t size = <uint32_t>len(name)
        with nogil:
            pages_lock(&self.pages)
            root = pages_root_find(&self.pages, text, size)
            if root >= 0:
                pid = self.pages.roots[root].pid
            pages_unlock(&self.pages)
        return pid

    def next_id(self):
        cdef uint64_t identity = 0
        cdef int result
        self._writable()
        with nogil:
            result = pages_generate_id(&self.pages, &identity)
        self.raise_result(result, 0)
        return identity

    @property
    def fragment_max(self):
        """Bytes of the largest link; a larger one is merged and written whole."""
        return pages_fragment_max(&self.pages)


cdef class PidSet:
    """Pids taken for pages that are not committed yet. drop() when that is decided."""

    def __cinit__(self, FragmentPages pages not None):
        self.pages = pages
        change_begin(&self.change, &pages.pages)

    def take(self):
        """A pid that nobody else gets."""
        cdef uint64_t pid = 0
        cdef int result
        self.pages._usable()
        with nogil:
            pages_lock(self.change.pages)
            result = change_allocate(&self.change, &pid)
            pages_unlock(self.change.pages)
        self.pages.raise_result(result, pid)
        return pid

    def drop(self):
        """Those that were not used may be allocated again. Idempotent."""
        if pages_usable(self.change.pages) != PAGES_OK:
            return
        with nogil:
            pages_lock(self.change.pages)
            change_abandon(&self.change)
            pages_unlock(self.change.pages)


KINDS = {"link": OP_LINK, "replace": OP_REPLACE, "free": OP_FREE, "root": OP_ROOT}
