"""Checking trees as a whole: order, bounds, levels, counts, and that every page can be read.

Reads each page of a tree once, as of a snapshot, without stopping anybody. What it finds is said
in sentences; it goes on behind a page that is bad.
"""
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint32_t, uint64_t

from siltstone.errors import SiltstoneError
from siltstone.store.page cimport (PAGE_BLOB, PAGE_INNER, PAGE_LEAF, RECORD_BLOB, WORD_SIZE,
                                   node_check, node_child, node_copy, node_free, node_key,
                                   node_key_size, node_record, node_t, record_word, word_key_size,
                                   word_payload_size)
from siltstone.store.pagecache cimport PAGES_OK, page_get, pages_unlock
from siltstone.store.trees cimport Snapshot, TreePages


cdef node_t *_fetch(TreePages pages, Snapshot snapshot, uint64_t pid) except NULL:
    # A copy of the page.
    cdef node_t *node = NULL
    cdef node_t *copy = NULL
    cdef int result
    while copy == NULL:
        snapshot.check()
        pages.lock()
        result = page_get(&pages.pages, pid, &snapshot.snap, True, <char **>&node, NULL)
        if result == PAGES_OK:
            copy = node_copy(node)
        pages_unlock(&pages.pages)
        if result != PAGES_OK:
            pages.again(result, pid, &snapshot.snap, 0, 0)
        elif copy == NULL:
            raise MemoryError("no memory for a page")
    return copy


cdef bytes _key(const node_t *node, uint32_t index):
    cdef bytes key = PyBytes_FromStringAndSize(NULL, node_key_size(node, index))
    node_key(node, index, PyBytes_AS_STRING(key))
    return key


cdef str _wrong(const node_t *node, int level, bytes low, bytes high):
    # What is wrong with a page whose parent says level and bounds, or None.
    cdef int broken = node_check(node)
    cdef uint32_t first = 1 if node.kind == PAGE_INNER else 0
    if broken:
        return f"breaks invariant {broken} of pages"
    if node.kind == PAGE_BLOB or (level >= 0 and node.level != level):
        return f"has kind {node.kind} and level {node.level} where level {level} belongs"
    if node.count > first:
        if _key(node, first) < low:
            return "begins below the key that leads to it"
        if high is not None and _key(node, node.count - 1) >= high:
            return "ends above the key that bounds it"
    return None


cdef list _leaf_problems(TreePages pages, Snapshot snapshot, const node_t *node):
    # Large values that cannot be read.
    cdef list found = []
    cdef uint32_t index, word
    cdef const char *record
    for index in range(node.count):
        record = node_record(node, index)
        word = record_word(record)
        if word & RECORD_BLOB():
            try:
                pages.blob(&snapshot.snap, record + WORD_SIZE + word_key_size(word),
                           word_payload_size(word))
            except SiltstoneError as error:
                found.append(f"the value of key {_key(node, index)[:40]!r}: {error}")
    return found


def check_tree(TreePages pages not None, Snapshot snapshot not None, str name, uint32_t root):
    """Problems of one tree, as sentences; none is an empty list."""
    cdef node_t *node
    cdef uint64_t pid
    cdef uint32_t index
    cdef list problems = [], todo
    cdef str wrong
    entries = 0
    todo = [(snapshot.roots[root][0], -1, b"", None)]
    while todo:
        pid, level, low, high = todo.pop()
        try:
            node = _fetch(pages, snapshot, pid)
        except SiltstoneError as error:
            problems.append(f"tree {name!r}: page {pid}: {error}")
            continue
        try:
            wrong = _wrong(node, level, low, high)
            if wrong is not None:
                problems.append(f"tree {name!r}: page {pid} {wrong}")
            elif node.kind == PAGE_LEAF:
                entries += node.count
                problems += [f"tree {name!r}: {text}"
                             for text in _leaf_problems(pages, snapshot, node)]
            else:
                for index in range(node.count):
                    todo.append((node_child(node, index), node.level - 1,
                                 _key(node, index) if index else low,
                                 _key(node, index + 1) if index + 1 < node.count else high))
        finally:
            node_free(node)
    if not problems and entries != snapshot.roots[root][1]:
        problems.append(f"tree {name!r} has {entries} entries and says {snapshot.roots[root][1]}")
    return problems


def check_trees(TreePages pages not None):
    """Problems of all trees of a store, as sentences."""
    problems = []
    with pages.snapshot() as snapshot:
        for name, root in sorted((<Snapshot>snapshot).names.items()):
            problems += check_tree(pages, snapshot, name, root)
    return problems
