"""The handle that all trees of a store share: which trees there are, snapshots, notes of reads.

Owns the table of operations on nodes that the page cache calls, and the names of trees: roots of
the page cache, with the number of entries as their count. A tree that is dropped or cleared is
first renamed, by one commit, to a name that begins with a zero byte, and then taken apart leaf by
leaf; what a crash leaves of it goes on at the next opening. The root page of a tree keeps its pid.

Threads: whoever has the GIL takes the lock only by trying (Pages.lock), and makes no Python object
under it but bytes, whose allocation runs no garbage collector.
"""
import errno as errors_of_os

cimport cython
from cpython.bytes cimport (PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize,
                            PyBytes_GET_SIZE)
from libc.errno cimport ENOMEM
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcpy, memset

from siltstone.errors import Closed, Corruption, InvalidKey, InvalidValue, KeyMissing, ReadOnly
from siltstone.store.blob cimport blob_read, blob_size
from siltstone.store.descent cimport TREE_BROKEN, path_t
from siltstone.store.image cimport fragment_apply, image_decode, image_encode
from siltstone.store.page cimport (KEY_SIZE_MAX, PAGE_LEAF, PAGE_NO_MEMORY, PAGE_OK,
                                   PAYLOAD_SIZE_MAX, node_copy, node_free, node_image_size,
                                   node_new, node_t)
from siltstone.store.pagecache cimport (PAGES_ABSENT, PAGES_CORRUPT, PAGES_LARGE, PAGES_MISS,
                                        PAGES_OK, PAGES_TOO_OLD, PAGES_WAIT, PAGE_LIVE,
                                        change_abandon, change_allocate, change_base, change_begin,
                                        change_commit, change_count, change_free, change_needs,
                                        change_root, entry_t, page_entry, page_get, page_ops_t,
                                        pages_fragment_max, pages_generate_id, pages_load,
                                        pages_lock, pages_ready, pages_root, pages_root_find,
                                        pages_root_unused, pages_snapshot_close,
                                        pages_snapshot_open, pages_unlock, pages_usable,
                                        pages_wait_ready, root_t)
from siltstone.store.reshape cimport tree_sweep

cdef enum:
    SWEEP_LEAVES = 32           # in one hold of the lock
    HINT_SHARE = 128            # bytes of memory that a hint is for: a record of usual size


# What the page cache does with nodes --------------------------------------------------------------

cdef int _op_reserve(void *context, char **node, uint32_t size) noexcept nogil:
    # Nothing: the page cache drops a node whose fragment cannot be applied, and the log has both.
    return 0


cdef int _op_apply(void *context, char **node, const char *fragment, uint32_t size) noexcept nogil:
    return fragment_apply(<node_t **>node, fragment, size)


cdef uint64_t _op_image_size(void *context, const char *node) noexcept nogil:
    return node_image_size(<const node_t *>node)


cdef void _op_encode(void *context, const char *node, char *image) noexcept nogil:
    image_encode(<const node_t *>node, image)


cdef int _op_decode(void *context, uint64_t pid, const char *image, uint64_t size,
                    char **node) noexcept nogil:
    cdef int result = image_decode(image, size, <node_t **>node)
    return -ENOMEM if result == PAGE_NO_MEMORY else 0 if result == PAGE_OK else PAGES_CORRUPT


cdef uint64_t _op_memory(void *context, const char *node) noexcept nogil:
    return (<const node_t *>node).capacity


cdef char *_op_copy(void *context, const char *node) noexcept nogil:
    return <char *>node_copy(<const node_t *>node)


cdef void _op_release(void *context, char *node) noexcept nogil:
    node_free(<node_t *>node)


cdef page_ops_t _node_ops = page_ops_t(_op_reserve, _op_apply, _op_image_size, _op_encode,
                                       _op_decode, _op_memory, _op_copy, _op_release)


# Arguments --------------------------------------------------------------------------------------

cdef bytes key_bytes(object key):
    if not PyBytes_CheckExact(key):
        if not isinstance(key, (bytes, bytearray, memoryview)):
            raise InvalidKey(f"a key is bytes, not {type(key).__name__}; encode it, for example "
                             "with key.encode()")
        key = bytes(key)
    if PyBytes_GET_SIZE(key) > KEY_SIZE_MAX:
        raise InvalidKey(f"a key has at most {KEY_SIZE_MAX} bytes, this one "
                         f"{PyBytes_GET_SIZE(key)}")
    return <bytes>key


cdef bytes value_bytes(object value):
    if not PyBytes_CheckExact(value):
        if not isinstance(value, (bytes, bytearray, memoryview)):
            raise InvalidValue(f"a value is bytes, not {type(value).__name__}; encode it first")
        value = bytes(value)
    return <bytes>value


@cython.no_gc_clear
cdef class TreePages(Pages):
    """See the module's docstring, and Pages for opening and closing."""

    def __cinit__(self, *_, **__):
        self.pages.ops = &_node_ops
        self.mergers = {}
        self.page_size = 4096
        self.part_size = 1 << 16
        self.value_size_max = 1 << 30

    def __dealloc__(self):
        free(self.hints.lines)
        free(self.generations)

    def hint(self, cache):
        """Before opening: keep hints for a store of so many bytes of memory (hints.pxd)."""
        cdef uint32_t bits = max(1, (cache // HINT_SHARE).bit_length() - 1)
        free(self.hints.lines)
        self.hints.lines = <uint8_t *>calloc(1, <uint64_t>1 << bits)
        if self.hints.lines == NULL:
            raise MemoryError("no memory for hints")
        self.hints.shift = 64 - bits

    cdef uint32_t inline_max(self) noexcept nogil:
        """Bytes of the largest value that a leaf holds itself."""
        cdef uint32_t size = self.page_size // 4
        if size < 80:
            size = 80
        return size if size < PAYLOAD_SIZE_MAX else PAYLOAD_SIZE_MAX

    cdef uint32_t key_max(self) noexcept nogil:
        """A key and its value, or two keys' separator, must fit a fragment: small buffers limit."""
        cdef uint32_t room = pages_fragment_max(&self.pages), most = self.inline_max() + 256
        room = room - most if room > most else 0
        return room if room < KEY_SIZE_MAX else KEY_SIZE_MAX

    cdef generation_t generation(self, uint32_t root) noexcept nogil:
        cdef generation_t none
        if root < self.generation_count:
            return self.generations[root]
        none.bound = none.emptied = 0
        return none

    cdef int cover(self, uint32_t root) except -1:
        # Under the lock.
        cdef uint32_t count = self.generation_count
        cdef generation_t *larger
        if root < count:
            return 0
        larger = <generation_t *>realloc(self.generations,
                                         (2 * <uint64_t>root + 16) * sizeof(generation_t))
        if larger == NULL:
            pages_unlock(&self.pages)
            raise MemoryError("no memory for a tree")
        memset(larger + count, 0, (2 * <uint64_t>root + 16 - count) * sizeof(generation_t))
        self.generations = larger
        self.generation_count = 2 * root + 16
        return 0

    cdef int again(self, int result, uint64_t pid, const snapshot_t *snapshot, uint64_t bytes,
                   uint32_t records) except -1:
        cdef pages_t *pages = &self.pages
        if result == PAGES_MISS:
            with nogil:
                result = pages_load(pages, pid, snapshot)
            if result == PAGES_ABSENT:
                return 0        # freed meanwhile: the next try takes another way
        elif result == PAGES_WAIT or result == PAGES_LARGE:
            with nogil:
                result = pages_wait_ready(pages, bytes, records)
            if result == PAGES_LARGE:
                return 0
        if result == TREE_BROKEN:
            raise Corruption(f"page {pid} is not what the page above it says", offset=<int64_t>pid)
        return self.raise_result(result, pid)

    cdef bytes blob(self, const snapshot_t *snapshot, const char *reference, uint32_t size):
        """A large value as of a snapshot; without the lock."""
        cdef uint64_t bytes_in_all = blob_size(reference), missing = 0
        cdef bytes value = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>bytes_in_all)
        cdef char *out = PyBytes_AS_STRING(value)
        cdef int result
        with nogil:
            result = blob_read(&self.pages, snapshot, reference, size, 0, out, bytes_in_all,
                               &missing)
        if result != PAGES_OK:
            self.again(result, missing, snapshot, 0, 0)
        return value

    # Trees

    def tree_names(self, Snapshot snapshot=None):
        """Names of the trees, sorted, without the default one."""
        if snapshot is None:
            with self.snapshot() as present:
                return self.tree_names(present)
        snapshot.check()
        return sorted(name for name in snapshot.names if name)

    def tree_open(self, str name, bint create, Snapshot snapshot=None, *, durable=None):
        """The root id of a tree; KeyMissing if there is none and `create` is false."""
        cdef bytes encoded = name.encode()
        cdef int64_t root
        cdef uint64_t end = 0
        if snapshot is not None:
            snapshot.check()
            if name not in snapshot.names:
                raise KeyMissing(f"there is no tree {name!r}")
            return snapshot.names[name]
        while True:
            self.lock()
            root = pages_root_find(&self.pages, PyBytes_AS_STRING(encoded), <uint32_t>len(encoded))
            if root >= 0:
                self.cover(<uint32_t>root)
                pages_unlock(&self.pages)
                return root
            if not create:
                pages_unlock(&self.pages)
                raise KeyMissing(f"there is no tree {name!r}")
            if self._create(encoded, &end):
                self.changed(end, self.durable if durable is None else durable)

    cdef bint _create(self, bytes name, uint64_t *end) except -1:
        # With the lock held, which is given back.
        cdef change_t change
        cdef uint64_t pid = 0
        cdef uint32_t root = pages_root_unused(&self.pages)
        cdef int result
        cdef node_t *node
        self.cover(root)
        change_begin(&change, &self.pages)
        result = change_allocate(&change, &pid)
        if result == PAGES_OK:
            node = node_new(PAGE_LEAF, 0, 0)
            result = change_base(&change, pid, <char *>node) if node != NULL else -ENOMEM
        if result == PAGES_OK:
            result = change_root(&change, root, PyBytes_AS_STRING(name), <uint32_t>len(name), pid)
        return self._finish(&change, result, end)

    cdef int writable(self) except -1:
        if self.pages.read_only:
            raise ReadOnly(errors_of_os.EROFS, "the store was opened read-only")
        return 0

    cdef bint _finish(self, change_t *change, int result, uint64_t *end) except -1:
        # Commit a change to roots and give the lock back; False: try again.
        cdef uint64_t bytes = 0
        cdef uint32_t records = 0
        change_needs(change, &bytes, &records)
        if result == PAGES_OK:
            result = pages_ready(&self.pages, bytes, records)
        if result == PAGES_OK:
            result = change_commit(change)
            end[0] = self.pages.commit_end
        else:
            change_abandon(change)
        pages_unlock(&self.pages)
        if result == PAGES_OK:
            return True
        self.again(result, 0, NULL, bytes, records)
        return False

    def tree_drop(self, str name, *, durable=None):
        """Whether there was one. Its space returns before this does."""
        cdef bytes encoded = name.encode()
        cdef uint64_t end = 0
        cdef int64_t root
        self.writable()
        while True:
            self.lock()
            root = pages_root_find(&self.pages, PyBytes_AS_STRING(encoded), <uint32_t>len(encoded))
            if root < 0:
                pages_unlock(&self.pages)
                return False
            if self._detach(<uint32_t>root, True, &end):
                break
        self.changed(end, self.durable if durable is None else durable)
        self.sweep()
        return True

    def tree_clear(self, uint32_t root, uint32_t bound, *, durable=None):
        """Empty a tree by one commit; how many entries it had."""
        cdef uint64_t end = 0
        cdef int64_t count
        self.writable()
        while True:
            self.lock()
            if self.generation(root).bound != bound:
                pages_unlock(&self.pages)
                raise KeyMissing("this tree was dropped")
            count = pages_root(&self.pages, root).count
            if self._detach(root, False, &end):
                break
        self.changed(end, self.durable if durable is None else durable)
        self.sweep()
        return count

    cdef bint _detach(self, uint32_t root, bint drop, uint64_t *end) except -1:
        # With the lock held, which is given back. What was the tree gets a name of its own.
        cdef pages_t *pages = &self.pages
        cdef root_t *found = pages_root(pages, root)
        cdef change_t change
        cdef uint64_t pid = found.pid
        cdef uint32_t unused = pages_root_unused(pages)
        cdef char name[1 + 8]
        cdef node_t *node = NULL
        cdef int result = page_get(pages, pid, NULL, False, <char **>&node, NULL)
        self.cover(unused)
        change_begin(&change, pages)
        if result == PAGES_OK and not drop:
            # the root page stays, empty; its content goes to a new one
            result = self._move_root(&change, root, node, &pid)
        elif result == PAGES_MISS:
            change_abandon(&change)
            pages_unlock(pages)
            self.again(result, pid, NULL, 0, 0)
            return False
        if result == PAGES_OK and drop:
            result = change_root(&change, root, NULL, 0, 0)
        name[0] = 0
        memcpy(name + 1, &pid, 8)
        if result == PAGES_OK:
            result = change_root(&change, unused, name, 1 + 8, pid)
        if not self._finish(&change, result, end):
            return False
        # No other thread ran since the commit: the GIL was kept.
        self.generations[root].emptied += 1
        self.generations[root].bound += drop
        return True

    cdef int _move_root(self, change_t *change, uint32_t root, const node_t *node,
                        uint64_t *pid) noexcept nogil:
        cdef root_t *found = pages_root(&self.pages, root)
        cdef node_t *copy = node_copy(node)
        cdef node_t *empty = node_new(PAGE_LEAF, 0, 0)
        cdef int result = PAGES_OK if copy != NULL and empty != NULL else -ENOMEM
        if result == PAGES_OK:
            result = change_allocate(change, pid)
        if result == PAGES_OK:
            result = change_base(change, pid[0], <char *>copy)
            if result == PAGES_OK:
                copy = NULL
        if result == PAGES_OK:
            result = change_base(change, found.pid, <char *>empty)
            if result == PAGES_OK:
                empty = NULL
        if result == PAGES_OK:
            result = change_count(change, root, -found.count)
        node_free(copy)
        node_free(empty)
        return result

    def sweep(self):
        """Take apart what dropped and cleared trees left; also what an earlier life left."""
        cdef uint32_t root
        cdef int64_t found
        if self.pages.read_only:
            return
        while True:
            found = -1
            self.lock()
            for root in range(self.pages.root_count):
                if (self.pages.roots[root].used and self.pages.roots[root].name_size
                        and self.pages.roots[root].name[0] == 0):
                    found = root
                    break
            pages_unlock(&self.pages)
            if found < 0:
                return
            self._sweep(<uint32_t>found)

    cdef int _sweep(self, uint32_t root) except -1:
        cdef pages_t *pages = &self.pages
        cdef path_t path
        cdef change_t change
        cdef uint64_t pid = 0, end = 0
        cdef bint done = False
        cdef uint32_t step
        cdef int result = PAGES_OK
        while not done:
            result = pages_usable(pages)
            if result != PAGES_OK:
                return self.raise_result(result, 0)
            with nogil:
                pages_lock(pages)
                pid = pages_root(pages, root).pid
                # another thread may have finished it
                done = not pages_root(pages, root).used or pages_root(pages, root).name[0] != 0
                for step in range(SWEEP_LEAVES):
                    if result == PAGES_OK and not done:
                        result = tree_sweep(pages, pid, &path, &done)
                pages_unlock(pages)
            if result != PAGES_OK:
                self.again(result, path.missing, NULL, 1 << 12, 8)
                done = False
        self.lock()
        if pages_root(pages, root).used and pages_root(pages, root).name[0] == 0:
            change_begin(&change, pages)
            result = change_free(&change, pages_root(pages, root).pid)
            if result == PAGES_OK:
                result = change_root(&change, root, NULL, 0, 0)
            self._finish(&change, result, &end)
        else:
            pages_unlock(pages)
        return 0

    # Snapshots

    def snapshot(self):
        """What all trees hold now, for as long as it is open."""
        return Snapshot(self)

    def generate_id(self):
        """A number that was never given out before; they rise, also over crashes."""
        cdef uint64_t identity = 0
        cdef int result = pages_usable(&self.pages)
        if result == PAGES_OK:
            with nogil:
                result = pages_generate_id(&self.pages, &identity)
        self.raise_result(result, 0)
        return identity

    @property
    def id_marker(self):
        """Ids below may have been given out."""
        return self.pages.id_marker

    def skip_ids(self, uint64_t below):
        """Of a copy, before it gives out any: ids below were given out by the original. In effect
        with the next checkpoint."""
        self.lock()
        if below > self.pages.id_marker:
            self.pages.id_next = self.pages.id_limit = self.pages.id_marker = below
        pages_unlock(&self.pages)

cdef void snapshot_give_back(TreePages pages, snapshot_t *snapshot) noexcept:
    if pages.pages.opened_in != pages.pages.fork_count[0] or not snapshot.open:
        return
    with nogil:
        pages_lock(&pages.pages)
        pages_snapshot_close(&pages.pages, snapshot)
        pages_unlock(&pages.pages)


# Snapshots and notes ----------------------------------------------------------------------------

@cython.no_gc_clear
cdef class Snapshot:
    """A moment: what is read through it is what was committed then."""

    def __cinit__(self, TreePages pages not None):
        cdef seen_t *seen = NULL
        cdef char *names = NULL
        cdef uint64_t size = 0
        cdef uint32_t count, root
        self.pages = pages
        memset(&self.snap, 0, sizeof(snapshot_t))
        pages.lock()
        count = pages.pages.root_count
        for root in range(count):
            size += pages.pages.roots[root].name_size
        seen = <seen_t *>malloc((count + 1) * sizeof(seen_t))
        names = <char *>malloc(size + 1)
        if seen != NULL and names != NULL:
            _look(pages, seen, names)
            pages_snapshot_open(&pages.pages, &self.snap)
        pages_unlock(&pages.pages)
        try:
            if seen == NULL or names == NULL:
                raise MemoryError("no memory for a snapshot")
            self._note(seen, names, count)
        finally:
            free(seen)
            free(names)

    cdef _note(self, const seen_t *seen, const char *names, uint32_t count):
        cdef uint32_t root
        cdef bytes name
        self.names, self.roots = {}, {}
        for root in range(count):
            if seen[root].pid:
                name = PyBytes_FromStringAndSize(names + seen[root].name_at, seen[root].name_size)
                self.roots[root] = (seen[root].pid, seen[root].count, seen[root].emptied)
                if not name.startswith(b"\x00"):
                    self.names[name.decode()] = root

    def __dealloc__(self):
        if self.pages is not None:
            snapshot_give_back(self.pages, &self.snap)

    cdef int check(self) except -1:
        if not self.snap.open and not self.snap.too_old:
            raise Closed("the snapshot is closed")
        return self.pages.raise_result(
            PAGES_TOO_OLD if self.snap.too_old else pages_usable(&self.pages.pages), 0)

    @property
    def stamp(self):
        """The newest commit that it sees."""
        return self.snap.stamp

    @property
    def too_old(self):
        """Given up: it needed more than `snapshot_bytes_max`."""
        return bool(self.snap.too_old)

    @property
    def closed(self):
        return not self.snap.open and not self.snap.too_old

    def close(self):
        """Idempotent; what only this snapshot needed is given back."""
        snapshot_give_back(self.pages, &self.snap)
        self.snap.too_old = 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


cdef void _look(TreePages pages, seen_t *seen, char *names) noexcept:
    # Under the lock: no Python.
    cdef root_t *root
    cdef uint64_t at = 0
    cdef uint32_t number
    for number in range(pages.pages.root_count):
        root = &pages.pages.roots[number]
        seen[number].pid = root.pid if root.used else 0
        seen[number].count = root.count
        seen[number].emptied = pages.generation(number).emptied
        seen[number].name_at, seen[number].name_size = at, root.name_size
        memcpy(names + at, root.name, root.name_size)
        at += root.name_size


cdef class Reads:
    """Which leaves a transaction has read, and as of which commit each."""

    def __cinit__(self, TreePages pages not None):
        self.pages = pages
        self.emptied = {}

    def __dealloc__(self):
        free(self.notes)

    def __len__(self):
        return self.count

    cdef int add(self, uint64_t pid, uint64_t stamp) noexcept nogil:
        cdef uint64_t capacity = self.capacity
        cdef note_t *larger
        if self.count and self.notes[self.count - 1].pid == pid:
            return 0
        if self.count == capacity:
            capacity = 2 * capacity + 64
            larger = <note_t *>realloc(self.notes, capacity * sizeof(note_t))
            if larger == NULL:
                return -ENOMEM
            self.notes, self.capacity = larger, capacity
        self.notes[self.count].pid, self.notes[self.count].stamp = pid, stamp
        self.count += 1
        return 0

    cdef int tree(self, uint32_t root, uint32_t emptied) except -1:
        """A tree that is cleared or dropped as a whole counts as changed."""
        self.emptied.setdefault(root, emptied)
        return 0

    cdef int unchanged(self, uint64_t *missing) noexcept nogil:
        cdef uint64_t number
        cdef entry_t *entry
        for number in range(self.count):
            entry = page_entry(&self.pages.pages, self.notes[number].pid)
            if entry == NULL:
                missing[0] = self.notes[number].pid
                return PAGES_MISS if missing[0] < self.pages.pages.pid_next else PAGES_CHANGED
            if entry.state != PAGE_LIVE or entry.stamp != self.notes[number].stamp:
                return PAGES_CHANGED
        return PAGES_OK
