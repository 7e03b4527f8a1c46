"""A page under trial: one node as Python sees it, checked after every step.

Used by tests and by hand, never by the product's own paths. `lookups` measures search and copy
over many nodes, without the tree above them.
"""
from time import perf_counter

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from siltstone.log.workers cimport WorkerPool
from siltstone.store.cells cimport cell_give, cell_size, cell_take, cells_ahead, cells_count
from siltstone.store.image cimport (fragment_add, fragment_apply, fragment_free, fragment_t,
                                    image_decode, image_encode)
from siltstone.store.page cimport *


cdef int _checked(int result) except -1:
    if result == PAGE_NO_MEMORY:
        raise MemoryError("no memory for a page")
    if result == PAGE_INVALID:
        raise ValueError("no page, or no fragment for this page")
    return 0


cdef class Node:
    """A leaf (level 0) or inner node."""
    cdef node_t *node

    def __cinit__(self, int level=0, uint64_t child=1):
        self.node = node_root(child, level) if level else node_new(PAGE_LEAF, 0, 0)
        if self.node == NULL:
            raise MemoryError("no memory for a page")

    def __dealloc__(self):
        node_free(self.node)

    cdef Node _made(self, node_t *node):
        cdef Node made = Node.__new__(Node)
        if node == NULL:
            raise MemoryError("no memory for a page")
        node_free(made.node)
        made.node = node
        return made

    def check(self):
        """0, or the number of the broken invariant."""
        return node_check(self.node)

    def __len__(self):
        return self.node.count

    def key(self, uint32_t index):
        out = PyBytes_FromStringAndSize(NULL, node_key_size(self.node, index))
        node_key(self.node, index, PyBytes_AS_STRING(out))
        return out

    def payload(self, uint32_t index):
        cdef const char *record = node_record(self.node, index)
        cdef uint32_t word = record_word(record)
        return PyBytes_FromStringAndSize(record + WORD_SIZE + word_key_size(word),
                                         word_payload_size(word))

    def items(self):
        return [(self.key(index), self.payload(index)) for index in range(self.node.count)]

    def find(self, bytes key):
        """(index of the first entry not below, whether it is equal)"""
        cdef bint found
        index = node_search(self.node, PyBytes_AS_STRING(key), <uint32_t>PyBytes_GET_SIZE(key),
                            &found)
        return index, bool(found)

    def descend(self, bytes key):
        return node_descend(self.node, PyBytes_AS_STRING(key), <uint32_t>PyBytes_GET_SIZE(key))

    def set(self, bytes key, bytes payload):
        _checked(node_set(&self.node, PyBytes_AS_STRING(key), <uint32_t>PyBytes_GET_SIZE(key),
                          PyBytes_AS_STRING(payload), <uint32_t>PyBytes_GET_SIZE(payload), 0))

    def delete(self, bytes key):
        cdef bint found
        index = node_search(self.node, PyBytes_AS_STRING(key), <uint32_t>PyBytes_GET_SIZE(key),
                            &found)
        if found:
            node_delete(self.node, index)
        return bool(found)

    def slice(self, uint32_t begin, uint32_t end):
        return self._made(node_slice(self.node, begin, end, 0))

    def join(self, Node right, bytes separator=b""):
        return self._made(node_join(self.node, right.node, PyBytes_AS_STRING(separator),
                                    <uint32_t>PyBytes_GET_SIZE(separator)))

    def separator(self, uint32_t index):
        out = PyBytes_FromStringAndSize(NULL, node_key_size(self.node, index))
        size = node_separator(self.node, index, PyBytes_AS_STRING(out))
        return out[:size]

    def copy(self):
        return self._made(node_copy(self.node))

    def apply(self, bytes fragment):
        _checked(fragment_apply(&self.node, PyBytes_AS_STRING(fragment),
                                <uint64_t>PyBytes_GET_SIZE(fragment)))

    def encode(self):
        out = PyBytes_FromStringAndSize(NULL, node_image_size(self.node))
        image_encode(self.node, PyBytes_AS_STRING(out))
        return out

    @property
    def prefix(self):
        return PyBytes_FromStringAndSize(node_prefix(self.node), self.node.prefix_size)

    @property
    def memory(self):
        return self.node.capacity


def decode(bytes image):
    """A Node, or ValueError."""
    cdef node_t *node = NULL
    cdef Node made
    _checked(image_decode(PyBytes_AS_STRING(image), <uint64_t>PyBytes_GET_SIZE(image), &node))
    made = Node.__new__(Node)
    node_free(made.node)
    made.node = node
    return made


def fragment(changes):
    """Bytes of changes: (op, key, payload, blob flag) each."""
    cdef fragment_t made
    cdef bytes key, payload
    made.data = NULL
    made.size = made.capacity = 0
    try:
        for op, key, payload, blob in changes:
            _checked(fragment_add(&made, op, PyBytes_AS_STRING(key),
                                  <uint32_t>PyBytes_GET_SIZE(key), PyBytes_AS_STRING(payload),
                                  <uint32_t>PyBytes_GET_SIZE(payload),
                                  RECORD_BLOB() if blob else 0))
        return PyBytes_FromStringAndSize(made.data, <Py_ssize_t>made.size)
    finally:
        fragment_free(&made)


def lookups(list nodes, list keys, list places):
    """Look up keys[i] in nodes[places[i]] and copy its value out, without making objects.

    (bytes copied, seconds for all of them)
    """
    cdef uint32_t count = <uint32_t>len(keys), at, index, word
    cdef node_t **where = <node_t **>malloc(count * sizeof(node_t *))
    cdef const char **data = <const char **>malloc(count * sizeof(char *))
    cdef uint32_t *sizes = <uint32_t *>malloc(count * sizeof(uint32_t))
    cdef char out[PAYLOAD_SIZE_MAX]
    cdef const char *record
    cdef uint64_t total = 0
    cdef bint found
    for at in range(count):
        where[at] = (<Node>nodes[places[at]]).node
        data[at], sizes[at] = PyBytes_AS_STRING(keys[at]), <uint32_t>len(keys[at])
    started = perf_counter()
    with nogil:
        for at in range(count):
            index = node_search(where[at], data[at], sizes[at], &found)
            if found:
                record = node_record(where[at], index)
                word = record_word(record)
                memcpy(out, record + WORD_SIZE + word_key_size(word), word_payload_size(word))
                total += word_payload_size(word)
    seconds = perf_counter() - started
    free(where)
    free(data)
    free(sizes)
    return total, seconds


def cells():
    """Bytes that nodes' memory takes of the system, and of them in use; of the whole process."""
    cdef uint64_t mapped, used
    cells_count(&mapped, &used)
    return mapped, used


def prepare_cells(WorkerPool pool not None):
    """What a store that is being filled does now and then."""
    with nogil:
        cells_ahead(&pool.pool)


cdef class Cell:
    """Memory of a node without a node, filled with a pattern of its own."""
    cdef char *memory
    cdef readonly uint64_t size

    def __cinit__(self, uint64_t size, int pattern=0):
        self.size = cell_size(size)
        self.memory = cell_take(self.size)
        if self.memory == NULL:
            raise MemoryError("no memory for a cell")
        memset(self.memory, pattern, self.size)

    def __dealloc__(self):
        cell_give(self.memory, self.size)

    @property
    def address(self):
        return <uint64_t>self.memory

    def content(self):
        return PyBytes_FromStringAndSize(self.memory, <Py_ssize_t>self.size)
