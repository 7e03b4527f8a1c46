"""Iteration: lazy, in both directions, over what the tree held when it began.

A scan copies one leaf at a time out of the pages, under one short hold of the lock, and makes
objects from its copy. It goes on with the key that bounds the leaf, so splits, merges and evictions
between two leaves do not matter; and a scan that needs more than one leaf has a snapshot (its own,
unless it is given one), so later changes are not seen. It is closed at its end, or with the object.
One thread at a time may use it.
"""
cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.errno cimport ENOMEM
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy, memset

from siltstone.errors import InvalidValue
from siltstone.store.descent cimport (SEEK_AT, SEEK_BELOW, SEEK_LAST, path_ahead, path_find,
                                      path_leaf, path_lower, path_pid, path_t, path_upper)
from siltstone.store.page cimport (RECORD_BLOB, WORD_SIZE, compare_keys, node_key,
                                   node_key_size, node_prefix, node_record, node_search, node_t,
                                   record_word, word_key_size, word_payload_size)
from siltstone.store.pagecache cimport (PAGES_MISS, PAGES_OK, pages_load_many,
                                        pages_snapshot_open, pages_t, pages_unlock)
from siltstone.store.trees cimport snapshot_give_back

cdef enum:
    AHEAD = 8                   # leaves that are read together when one is not in memory


@cython.no_gc_clear
@cython.final
cdef class Scan:
    """Made by items(), keys() and values()."""

    def __cinit__(self):
        memset(&self.own, 0, sizeof(snapshot_t))

    def __dealloc__(self):
        if self.own.open:
            snapshot_give_back(self.pages, &self.own)
        free(self.node)
        free(self.position)

    def __iter__(self):
        return self

    def __next__(self):
        cdef const char *record
        cdef uint32_t word, size, index
        cdef bytes key
        if self.owner is not None and not self.owner.snap.open:
            self.owner.check()          # says so
        if self.index == self.end and not self._fill():
            raise StopIteration
        if self.pages.pages.closed:
            self.pages.lock()           # says so
        if self.reverse:
            self.index -= 1
            index = self.index
        else:
            index = self.index
            self.index += 1
        self.left -= 1
        record = node_record(self.node, index)
        if self.what == SCAN_VALUES:
            return self._value(record)
        word = record_word(record)
        size = word_key_size(word)
        key = PyBytes_FromStringAndSize(NULL, self.node.prefix_size + size)
        memcpy(PyBytes_AS_STRING(key), node_prefix(self.node), self.node.prefix_size)
        memcpy(PyBytes_AS_STRING(key) + self.node.prefix_size, record + WORD_SIZE, size)
        if self.what == SCAN_KEYS:
            return key
        if word & RECORD_BLOB():
            return key, self._value(record)
        return key, PyBytes_FromStringAndSize(record + WORD_SIZE + size, word_payload_size(word))

    cdef object next_or_none(self):
        """The next one, or None at the end."""
        if self.index == self.end and not self._fill():
            return None
        return self.__next__()

    cdef object _value(self, const char *record):
        cdef uint32_t word = record_word(record)
        record += WORD_SIZE + word_key_size(word)
        if word & RECORD_BLOB():
            return self.pages.blob(self.snapshot, record, word_payload_size(word))
        return PyBytes_FromStringAndSize(record, word_payload_size(word))

    # Leaf by leaf

    cdef int _fill(self) except -1:
        # Copy leaves until one has something; 0 at the end.
        cdef pages_t *pages = &self.pages.pages
        cdef path_t path
        cdef uint64_t ahead[AHEAD]
        cdef uint32_t count
        cdef int result
        if self.busy:
            raise InvalidValue("another thread is using this iterator: one at a time, please")
        self.busy = True
        try:
            while self.index == self.end and not self.last and self.left != 0:
                if self.owner is not None:
                    self.owner.check()
                self.pages.lock()
                result = self._take(&path)
                pages_unlock(pages)
                if result == PAGES_OK:
                    continue
                if result == PAGES_MISS:
                    count = path_ahead(&path, self.reverse, ahead, AHEAD)
                    if count:
                        with nogil:
                            pages_load_many(pages, ahead, count, self.snapshot)
                self.pages.again(result, path.missing, self.snapshot, 0, 0)
        finally:
            self.busy = False
        if self.index != self.end and self.left != 0:
            return 1
        self.index = self.end
        self.last = True
        if self.own.open:
            snapshot_give_back(self.pages, &self.own)
        return 0

    cdef int _take(self, path_t *path) noexcept nogil:
        # Under the lock: the leaf at `position`, copied, and where the next one is.
        cdef pages_t *pages = &self.pages.pages
        cdef node_t *leaf
        cdef uint64_t size
        cdef int result
        if self.reverse:
            result = path_find(pages, self.root, SEEK_LAST if self.unbounded else SEEK_BELOW,
                               self.position, self.position_size, self.snapshot, True, path)
        else:
            result = path_find(pages, self.root, SEEK_AT, self.position, self.position_size,
                               self.snapshot, True, path)
        if result != PAGES_OK:
            return result
        leaf = path_leaf(path)
        if leaf.capacity > self.node_room:
            free(self.node)
            size = leaf.capacity + (leaf.capacity >> 2)
            self.node = <node_t *>malloc(size)
            self.node_room = size if self.node != NULL else 0
            if self.node == NULL:
                return -ENOMEM
        if self.reads is not None and self.reads.add(path_pid(path), path.stamp) != 0:
            return -ENOMEM
        memcpy(self.node, leaf, leaf.capacity)
        result = self._move_on(path)
        if result != PAGES_OK:
            self.index = self.end = 0
            return result
        self._clip()
        if self.snapshot == NULL and (not self.last or self._has_blob()):
            pages_snapshot_open(pages, &self.own)
            self.snapshot = &self.own
        return PAGES_OK

    cdef int _note_position(self, const char *data, uint32_t size) noexcept nogil:
        cdef char *larger
        if size + 1 > self.position_room:
            larger = <char *>realloc(self.position, size + 64)
            if larger == NULL:
                return -ENOMEM
            self.position, self.position_room = larger, size + 64
        if data != NULL:
            memcpy(self.position, data, size)
        self.position_size = size
        return PAGES_OK

    cdef int _move_on(self, path_t *path) noexcept nogil:
        # The range of entries in the leaf, and the key where the next leaf begins.
        cdef node_t *node = self.node
        cdef bint found
        cdef int depth
        cdef uint32_t from_there = 0, entry
        if self.reverse:
            from_there = node.count if self.unbounded else node_search(
                node, self.position, self.position_size, &found)
            self.index, self.end = from_there, 0
            depth = path_lower(path)
        else:
            self.index = node_search(node, self.position, self.position_size, &found)
            self.end = node.count
            depth = path_upper(path)
        self.last = depth < 0
        if self.last:
            return PAGES_OK
        entry = path.indexes[depth] + (0 if self.reverse else 1)
        if self._note_position(NULL, node_key_size(path.nodes[depth], entry)) != PAGES_OK:
            return -ENOMEM
        node_key(path.nodes[depth], entry, self.position)
        self.unbounded = False
        return PAGES_OK

    cdef void _clip(self) noexcept nogil:
        # Entries outside of the range, and leaves behind it, are not wanted.
        cdef bint found
        cdef uint32_t at
        cdef const char *data
        cdef uint32_t size
        cdef int64_t here
        if self.reverse:
            data, size = self.low_data, self.low_size
            at = node_search(self.node, data, size, &found)
            self.end = at if at < self.index else self.index
            if not self.last and compare_keys(self.position, self.position_size, data, size) <= 0:
                self.last = True
            here = self.index - self.end
        else:
            if self.high_data != NULL:
                data, size = self.high_data, self.high_size
                at = node_search(self.node, data, size, &found)
                self.end = at if at > self.index else self.index
                if not self.last and compare_keys(self.position, self.position_size, data,
                                                  size) >= 0:
                    self.last = True
            here = self.end - self.index
        if self.left >= 0 and here >= self.left:
            self.last = True
            here -= self.left
            if self.reverse:
                self.end += <uint32_t>here
            else:
                self.end -= <uint32_t>here

    cdef bint _has_blob(self) noexcept nogil:
        cdef uint32_t at = self.index if self.index < self.end else self.end
        cdef uint32_t end = self.end if self.index < self.end else self.index
        if self.what == SCAN_KEYS:
            return False
        while at < end:
            if record_word(node_record(self.node, at)) & RECORD_BLOB():
                return True
            at += 1
        return False


cdef Scan scan_start(TreePages pages, uint64_t root, Snapshot snapshot, Reads reads, int what,
                     bytes low, bytes high, bint reverse, int64_t limit):
    """The first leaf is read at once, so that the scan shows this moment."""
    cdef Scan scan = Scan.__new__(Scan)
    cdef bytes start = high if reverse else low
    scan.pages, scan.owner, scan.reads = pages, snapshot, reads
    scan.snapshot = &snapshot.snap if snapshot is not None else NULL
    scan.root, scan.what, scan.reverse, scan.left = root, what, reverse, limit
    scan.low, scan.high = low, high
    scan.low_data, scan.low_size = PyBytes_AS_STRING(low), <uint32_t>PyBytes_GET_SIZE(low)
    if high is not None:
        scan.high_data, scan.high_size = PyBytes_AS_STRING(high), <uint32_t>PyBytes_GET_SIZE(high)
    if high is not None and low >= high:
        scan.last = True
        return scan
    if start is None:
        scan.unbounded = True
    elif scan._note_position(PyBytes_AS_STRING(start), <uint32_t>len(start)) != PAGES_OK:
        raise MemoryError("no memory for an iterator")
    scan._fill()
    return scan
