"""Large values in pieces: a writer whose pages count from its commit on, a reader of any part.

A writer's pages are in the log before the commit that names them, and in nobody's table: what a
crash or an abandoned writer leaves of them is dead space, which cleaning takes back. A reader holds
a snapshot from the moment when it was opened. Both are one thread's at a time; the device is
waited for without the lock and without the GIL.
"""
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy, memset

from siltstone.errors import Closed, KeyMissing
from siltstone.store.blob cimport (BLOB_REFERENCE_MAX, blob_begin, blob_end, blob_finish,
                                   blob_part, blob_read, blob_size, blob_writer_t)
from siltstone.store.descent cimport SEEK_AT, path_find, path_leaf, path_t
from siltstone.store.page cimport (RECORD_BLOB, WORD_SIZE, node_record, node_search, record_word,
                                   word_key_size, word_payload_size)
from siltstone.store.pagecache cimport (PAGES_OK, change_abandon, change_begin, change_t,
                                        pages_lock, pages_snapshot_open, pages_t, pages_unlock,
                                        pages_usable, snapshot_t)
from siltstone.store.tree cimport Reader, Tree
from siltstone.store.trees cimport key_bytes, snapshot_give_back
from siltstone.store.write cimport tree_write, write_t


cdef class BlobWriter:
    """write() pieces of any size, then commit() or abandon()."""

    cdef Tree tree
    cdef bytes key
    cdef bytes rest             # less than a part, not written yet
    cdef change_t change
    cdef blob_writer_t writer
    cdef bint open

    def __init__(self, Tree tree not None, key):
        self.key, self.rest, self.tree = key_bytes(key), b"", tree
        tree._check_write(self.key, None)
        change_begin(&self.change, &tree.pages.pages)
        blob_begin(&self.writer, &self.change, tree.pages.part_size)
        self.open = True

    def __dealloc__(self):
        if self.tree is not None:
            self._end()

    cdef int _end(self) except -1:
        cdef pages_t *pages = &self.tree.pages.pages
        if not self.open:
            return 0
        self.open = False
        blob_end(&self.writer)
        # in a forked child nothing is touched
        if pages.opened_in == pages.fork_count[0]:
            with nogil:
                pages_lock(pages)
                change_abandon(&self.change)
                pages_unlock(pages)
        return 0

    cdef int _parts(self, const char *data, uint64_t size) except -1:
        cdef uint64_t at = 0, taken
        cdef uint32_t part_size = self.writer.part_size
        cdef int result = pages_usable(&self.tree.pages.pages)
        if result == PAGES_OK:
            with nogil:
                while at < size and result == PAGES_OK:
                    taken = size - at if size - at < part_size else part_size
                    result = blob_part(&self.writer, data + at, <uint32_t>taken)
                    at += taken
        return self.tree.pages.raise_result(result, 0)

    def write(self, data):
        """Into the log, for nobody yet."""
        cdef bytes piece = self.rest + bytes(data)
        cdef uint64_t size = <uint64_t>PyBytes_GET_SIZE(piece)
        cdef uint64_t whole = size - size % self.writer.part_size
        if not self.open:
            raise Closed("this value was committed or abandoned")
        self._parts(PyBytes_AS_STRING(piece), whole)
        self.rest = piece[whole:]

    def commit(self, durable=None):
        """From now on it is the key's value."""
        cdef char reference[BLOB_REFERENCE_MAX]
        cdef write_t write
        cdef int result
        cdef uint64_t end = 0
        cdef object pages = self.tree.pages, watchers = pages.watchers
        if not self.open:
            raise Closed("this value was committed or abandoned")
        self._parts(PyBytes_AS_STRING(self.rest), <uint64_t>PyBytes_GET_SIZE(self.rest))
        memset(&write, 0, sizeof(write_t))
        with nogil:
            result = blob_finish(&self.writer, reference, &write.payload_size)
        self.tree.pages.raise_result(result, 0)
        write.root, write.page_size = self.tree.root, self.tree.pages.page_size
        write.key, write.key_size = PyBytes_AS_STRING(self.key), <uint32_t>len(self.key)
        write.payload, write.blob, write.change = reference, RECORD_BLOB(), &self.change
        if watchers is not None:
            watchers.acquire()
        try:
            end = self._commit(&write)
            if watchers is not None:
                watchers.publish([(self.tree.name, self.key, self.tree.get(self.key))])
        finally:
            if watchers is not None:
                watchers.release()
            self._end()
        self.tree.pages.changed(end, self.tree.pages.durable if durable is None else durable)

    cdef uint64_t _commit(self, write_t *write) except? 0:
        cdef pages_t *pages = &self.tree.pages.pages
        cdef uint64_t end = 0
        cdef int result
        while True:
            self.tree.enter()
            result = path_find(pages, self.tree.pid, SEEK_AT, write.key, write.key_size, NULL,
                               False, &write.path)
            if result == PAGES_OK:
                write.index = node_search(path_leaf(&write.path), write.key, write.key_size,
                                          &write.found)
                result = tree_write(pages, write)
                end = pages.commit_end
            pages_unlock(pages)
            if result == PAGES_OK:
                return end
            if write.change.items == NULL:
                # given up, with the pages of the value
                self.tree.pages.raise_result(result, write.path.missing)
            self.tree.pages.again(result, write.path.missing, NULL, write.bytes, write.records)

    def abandon(self):
        """Give the pages back. Idempotent."""
        self._end()


cdef class BlobReader:
    """Any part of a value, large or not, as of the moment when this was made."""

    cdef Reader reader
    cdef snapshot_t own
    cdef bytes value            # a small one, whole
    cdef char reference[BLOB_REFERENCE_MAX]
    cdef uint32_t reference_size
    cdef readonly uint64_t size
    cdef bint open

    def __init__(self, Reader reader not None, key):
        self.reader = reader
        self._find(key_bytes(key))
        self.open = True

    cdef int _find(self, bytes key) except -1:
        cdef Reader reader = self.reader
        cdef pages_t *pages
        cdef const snapshot_t *snapshot = NULL
        cdef path_t path
        cdef const char *record
        cdef uint32_t index, word
        cdef bint found = False
        cdef int result
        if reader.snapshot is not None:
            snapshot = &reader.snapshot.snap
        while True:
            reader.enter()
            pages = &reader.pages.pages
            result = path_find(pages, reader.pid, SEEK_AT, PyBytes_AS_STRING(key),
                               <uint32_t>PyBytes_GET_SIZE(key), snapshot, False, &path)
            if result != PAGES_OK:
                pages_unlock(pages)
                reader.pages.again(result, path.missing, snapshot, 0, 0)
                continue
            index = node_search(path_leaf(&path), PyBytes_AS_STRING(key),
                                <uint32_t>PyBytes_GET_SIZE(key), &found)
            if not found:
                pages_unlock(pages)
                raise KeyMissing(key)
            record = node_record(path_leaf(&path), index)
            word = record_word(record)
            record += WORD_SIZE + word_key_size(word)
            if word & RECORD_BLOB():
                self.reference_size = word_payload_size(word)
                memcpy(self.reference, record, self.reference_size)
                self.size = blob_size(self.reference)
                if snapshot == NULL:
                    pages_snapshot_open(pages, &self.own)
            else:
                self.value = PyBytes_FromStringAndSize(record, word_payload_size(word))
                self.size = word_payload_size(word)
            pages_unlock(pages)
            return 0

    def __dealloc__(self):
        if self.reader is not None:
            self._give_back()

    cdef int _give_back(self) except -1:
        if self.own.open:
            snapshot_give_back(self.reader.pages, &self.own)
        return 0

    def read_at(self, uint64_t offset, uint64_t size):
        """Bytes from `offset` on: `size`, or as many as there are."""
        cdef const snapshot_t *snapshot = &self.own
        cdef uint64_t missing = 0
        cdef bytes data
        cdef char *out
        cdef int result
        if not self.open:
            raise Closed("this value was closed")
        if offset >= self.size:
            return b""
        size = min(size, self.size - offset)
        if self.value is not None:
            return self.value[offset : offset + size]
        if self.reader.snapshot is not None:
            self.reader.snapshot.check()
            snapshot = &self.reader.snapshot.snap
        data = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>size)
        out = PyBytes_AS_STRING(data)
        result = pages_usable(&self.reader.pages.pages)
        if result == PAGES_OK:
            with nogil:
                result = blob_read(&self.reader.pages.pages, snapshot, self.reference,
                                   self.reference_size, offset, out, size, &missing)
        if result != PAGES_OK:
            self.reader.pages.again(result, missing, snapshot, 0, 0)
        return data

    def close(self):
        """Let go of the snapshot. Idempotent."""
        self.open = False
        self._give_back()
