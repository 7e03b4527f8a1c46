"""Several changes that count as a whole: what batches and transactions gather, and their commit.

Changes are kept as a dict a tree; the last change of a key counts. A commit sorts them, cuts them
into runs that belong to one leaf, makes one fragment of each run, and commits all of it as one
group of the log, if nothing that a transaction has read was changed meanwhile. Whatever has to be
loaded or waited for on the way is done without the lock; the leaves that were dealt with before
are held in memory, and checked afterwards: if one has changed, all starts again.
"""
import errno as errors_of_os
from bisect import bisect_left

from cpython.bytes cimport (PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize,
                            PyBytes_GET_SIZE)
from libc.errno cimport ENOMEM
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memset

from siltstone.errors import Closed, Conflict, KeyMissing, ReadOnly, TooLarge
from siltstone.log.log cimport part_t
from siltstone.store.blob cimport BLOB_REFERENCE_MAX, blob_free, blob_write
from siltstone.store.descent cimport (SEEK_AT, path_find, path_leaf, path_pid, path_t,
                                      path_upper)
from siltstone.store.image cimport fragment_add, fragment_free
from siltstone.store.page cimport (CHANGE_DELETE, CHANGE_HEADER_SIZE, CHANGE_SET, KEY_SIZE_MAX,
                                   PAGE_OK, RECORD_BLOB, WORD_SIZE, compare_keys, node_image_size,
                                   node_key, node_record, node_search, node_t, record_word,
                                   word_key_size, word_payload_size)
from siltstone.store.pagecache cimport (PAGES_LARGE, PAGES_MISS, PAGES_OK, PAGES_WAIT,
                                        change_abandon, change_begin, change_commit, change_count,
                                        change_link, change_needs, entry_t, page_entry,
                                        pages_fragment_max, pages_lock, pages_ready, pages_root,
                                        pages_t, pages_unlock, pages_usable)
from siltstone.store.trees cimport PAGES_CHANGED, generation_t, key_bytes, value_bytes
from siltstone.store.write cimport leaf_settle

cdef enum:
    PLAN_STALE = 52             # beside pages_result_t: a leaf that was dealt with has changed
    PLAN_DROPPED = 53           # a tree is gone
    SETTLE_ROUNDS = 4096        # splits of one leaf


# Under the lock ---------------------------------------------------------------------------------

cdef uint64_t _run_end(const plan_t *plan, uint64_t first, const path_t *path,
                       char *fence) noexcept nogil:
    # The first edit that is not for this leaf any more.
    cdef int depth = path_upper(path)
    cdef uint32_t root = plan.edits[first].root, size = 0
    cdef uint64_t at = first + 1
    if depth >= 0:
        size = node_key(path.nodes[depth], path.indexes[depth] + 1, fence)
    while at < plan.count and plan.edits[at].root == root:
        if depth >= 0 and compare_keys(plan.edits[at].key, plan.edits[at].key_size, fence,
                                       size) >= 0:
            break
        at += 1
    return at


cdef int _look(plan_t *plan, run_t *run, const node_t *leaf, root_edits_t *root) noexcept nogil:
    # What each edit of a run meets, and what is freed with it. Nothing is added unless all is.
    cdef uint32_t before = plan.change.count, index, word
    cdef int64_t delta = 0
    cdef uint64_t at
    cdef edit_t *edit
    cdef const char *record
    cdef bint found
    cdef int result
    for at in range(run.first, run.end):
        edit = &plan.edits[at]
        index = node_search(leaf, edit.key, edit.key_size, &found)
        edit.found = found
        edit.effect = found or edit.payload != NULL
        if edit.payload == NULL:
            delta -= found
        else:
            delta += not found
        if not found:
            continue
        record = node_record(leaf, index)
        word = record_word(record)
        if word & RECORD_BLOB():
            result = blob_free(&plan.change, record + WORD_SIZE + word_key_size(word),
                               word_payload_size(word), &plan.missing)
            if result != PAGES_OK:
                plan.change.count = before      # what was added owns nothing
                return result
    root.delta += delta
    return PAGES_OK


cdef int _link_run(plan_t *plan, const run_t *run) noexcept nogil:
    # One fragment of all edits of a run; more, if it is too large for one.
    cdef uint32_t room = pages_fragment_max(plan.change.pages)
    cdef part_t part
    cdef uint64_t at
    cdef edit_t *edit
    cdef int result = PAGES_OK
    plan.fragment.size = 0
    for at in range(run.first, run.end + 1):
        edit = &plan.edits[at] if at < run.end else NULL
        if plan.fragment.size and (edit == NULL or (
                plan.fragment.size + CHANGE_HEADER_SIZE + edit.key_size + edit.payload_size
                > room)):
            part.data, part.size = plan.fragment.data, plan.fragment.size
            result = change_link(&plan.change, run.pid, &part, 1)
            if result != PAGES_OK:
                return result
            plan.fragment.size = 0
        if edit == NULL or not edit.effect:
            continue
        plan.effects += 1
        if fragment_add(&plan.fragment, CHANGE_DELETE if edit.payload == NULL else CHANGE_SET,
                        edit.key, edit.key_size, edit.payload, edit.payload_size,
                        edit.blob) != PAGE_OK:
            return -ENOMEM
    return PAGES_OK


cdef root_edits_t *_root(plan_t *plan, uint32_t root) noexcept nogil:
    cdef uint32_t number = 0
    while plan.roots[number].root != root:
        number += 1
    return &plan.roots[number]


cdef int _advance(TreePages trees, plan_t *plan) noexcept nogil:
    # Deal with the edits behind those of the last run.
    cdef path_t path
    cdef char fence[KEY_SIZE_MAX]
    cdef uint64_t first = plan.runs[plan.run_count - 1].end if plan.run_count else 0
    cdef root_edits_t *root = NULL
    cdef run_t *run
    cdef int result
    while first < plan.count:
        if root == NULL or root.root != plan.edits[first].root:
            root = _root(plan, plan.edits[first].root)
        result = path_find(&trees.pages, root.pid, SEEK_AT, plan.edits[first].key,
                           plan.edits[first].key_size, NULL, False, &path)
        plan.missing = path.missing
        if result != PAGES_OK:
            return result
        run = &plan.runs[plan.run_count]
        run.pid, run.stamp, run.first = path_pid(&path), path.stamp, first
        run.end = _run_end(plan, first, &path, fence)
        result = _look(plan, run, path_leaf(&path), root)
        if result != PAGES_OK:
            return result
        plan.run_count += 1
        first = run.end
        result = _link_run(plan, run)
        if result != PAGES_OK:
            return PLAN_STALE if result == PAGES_MISS else result
    return PAGES_OK


cdef int _still(TreePages trees, plan_t *plan) noexcept nogil:
    # Whether trees and leaves are what they were when the lock was given back.
    cdef uint64_t number
    cdef entry_t *entry
    for number in range(plan.root_count):
        if trees.generation(plan.roots[number].root).bound != plan.roots[number].bound:
            return PLAN_DROPPED
    for number in range(plan.run_count):
        entry = page_entry(&trees.pages, plan.runs[number].pid)
        if entry == NULL or entry.stamp != plan.runs[number].stamp:
            return PLAN_STALE
    return PAGES_OK


cdef void _settle(TreePages trees, plan_t *plan) noexcept nogil:
    # Leaves that grew or shrank too far.
    cdef path_t path
    cdef run_t *run
    cdef entry_t *entry
    cdef edit_t *edit
    cdef uint64_t number, rounds
    cdef uint32_t size
    for number in range(plan.run_count):
        run = &plan.runs[number]
        entry = page_entry(&trees.pages, run.pid)
        if entry == NULL or entry.node == NULL:
            continue
        size = node_image_size(<node_t *>entry.node)
        if trees.page_size // 4 <= size <= trees.page_size:
            continue
        for rounds in range(SETTLE_ROUNDS):
            # the last piece of a split may be too large again
            edit = &plan.edits[run.end - 1]
            if path_find(&trees.pages, _root(plan, edit.root).pid, SEEK_AT, edit.key,
                         edit.key_size, NULL, False, &path) != PAGES_OK:
                break
            size = node_image_size(path_leaf(&path))
            leaf_settle(&trees.pages, &path, trees.page_size, edit.payload != NULL,
                        edit.payload == NULL)
            if size <= trees.page_size:
                break


cdef int _try(TreePages trees, Reads reads, plan_t *plan) noexcept nogil:
    cdef uint32_t number
    cdef int result = _still(trees, plan)
    if result == PAGES_OK:
        result = _advance(trees, plan)
    if result == PAGES_OK and reads is not None:
        result = reads.unchanged(&plan.missing)
    if result == PAGES_OK:
        change_needs(&plan.change, &plan.bytes, &plan.records)
        result = pages_ready(&trees.pages, plan.bytes, plan.records)
        if result == PAGES_LARGE or (result == PAGES_WAIT and plan.waited):
            # Other writers may take the room again and again: the log's own waiting ends that,
            # and nobody has the GIL here.
            result = PAGES_OK
        plan.waited = result == PAGES_WAIT
    for number in range(plan.root_count):
        if result == PAGES_OK and plan.roots[number].delta:
            result = change_count(&plan.change, plan.roots[number].root, plan.roots[number].delta)
    if result == PAGES_OK and plan.change.count:
        result = change_commit(&plan.change)
        if result == PAGES_MISS:
            result = PLAN_STALE
        if result == PAGES_OK:
            plan.end = trees.pages.commit_end
            _settle(trees, plan)
    return result


# What Python sees -------------------------------------------------------------------------------

cdef class Changes:
    """Sets and deletions over the trees of one store, none of which is done yet."""

    def __cinit__(self, TreePages pages not None):
        self.pages = pages
        self.parts, self.bounds, self.orders = {}, {}, {}

    cdef dict part(self, uint32_t root):
        cdef dict found = self.parts.get(root)
        cdef generation_t generation
        cdef uint64_t pid
        if found is None:
            self.pages.lock()
            if root >= self.pages.pages.root_count or not self.pages.pages.roots[root].used:
                pages_unlock(&self.pages.pages)
                raise KeyMissing("this tree was dropped")
            generation = self.pages.generation(root)
            pid = pages_root(&self.pages.pages, root).pid
            pages_unlock(&self.pages.pages)
            self.bounds[root] = (generation.bound, pid)
            found = self.parts[root] = {}
        return found

    cdef list order(self, uint32_t root):
        cdef dict part = self.parts.get(root)
        cdef list order = self.orders.get(root)
        if part is None:
            return []
        if order is None or len(order) != len(part):    # keys come and never go
            order = self.orders[root] = sorted(part)
        return order

    def set(self, uint32_t root, key, value):
        self.part(root)[key_bytes(key)] = value_bytes(value)

    def delete(self, uint32_t root, key):
        """A key that is not there is fine."""
        self.part(root)[key_bytes(key)] = None

    def get(self, uint32_t root, key, default=None):
        """The new value; None: deleted here; `default`: not changed here."""
        cdef dict part = self.parts.get(root)
        return default if part is None else part.get(key_bytes(key), default)

    def items(self, uint32_t root, start=None, stop=None, *, prefix=None, bint reverse=False,
              bint include_start=True, bint include_stop=False):
        """(key, value | None) in order, as of now; arguments as of a tree's items()."""
        cdef list order = self.order(root)
        cdef dict part = self.parts.get(root)
        cdef Py_ssize_t low = 0, high = len(order)
        if start is not None:
            low = bisect_left(order, key_bytes(start) + (b"" if include_start else b"\x00"))
        if stop is not None:
            high = bisect_left(order, key_bytes(stop) + (b"\x00" if include_stop else b""))
        chosen = order[low:high] if low < high else []
        if prefix is not None:
            wanted = key_bytes(prefix)
            chosen = [key for key in chosen if key.startswith(wanted)]
        if reverse:
            chosen.reverse()
        return iter([(key, part[key]) for key in chosen])

    def __len__(self):
        return sum([len(part) for part in self.parts.values()])

    def close(self):
        """Forget all of it. Idempotent; commit() does it too."""
        self.parts, self.bounds, self.orders = {}, {}, {}

    def commit(self, durable=None, Reads reads=None):
        """All or nothing; how many keys changed. Conflict: something in `reads` did, before."""
        cdef bint wait = self.pages.durable if durable is None else durable
        watchers = self.pages.watchers
        if self.pages.pages.read_only:
            raise ReadOnly(errors_of_os.EROFS, "the store was opened read-only")
        if watchers is not None:
            watchers.acquire()
        return self._commit(reads, wait)

    cdef int64_t _commit(self, Reads reads, bint durable) except -1:
        cdef plan_t plan
        cdef list keep
        cdef bint again = True
        watchers = self.pages.watchers
        memset(&plan, 0, sizeof(plan_t))
        try:
            while again:
                keep = []
                try:
                    self._fill(&plan, keep)
                    again = self._carry_out(&plan, reads) == PLAN_STALE
                    if watchers is not None and not again and plan.effects:
                        watchers.publish(self._events(&plan))
                finally:
                    self._release(&plan)
        finally:
            if watchers is not None:
                watchers.release()
        if plan.end:
            self.pages.changed(plan.end, durable)
        self.close()
        return <int64_t>plan.effects

    cdef int _fill(self, plan_t *plan, list keep) except -1:
        """The dicts as C arrays, sorted; `keep` holds what they point into."""
        cdef uint64_t at = 0, count = <uint64_t>len(self)
        cdef uint32_t number = 0, key_max = self.pages.key_max()
        cdef uint64_t inline_max = self.pages.inline_max(), size
        cdef bytes key, value
        cdef dict part
        cdef edit_t *edit
        memset(plan, 0, sizeof(plan_t))
        change_begin(&plan.change, &self.pages.pages)
        plan.edits = <edit_t *>calloc(count + 1, sizeof(edit_t))
        plan.runs = <run_t *>malloc((count + 1) * sizeof(run_t))
        plan.roots = <root_edits_t *>calloc(len(self.parts) + 1, sizeof(root_edits_t))
        if plan.edits == NULL or plan.runs == NULL or plan.roots == NULL:
            raise MemoryError("no memory for a batch")
        plan.count = count
        large = False
        for root in sorted(self.parts):
            part = self.parts[root]
            plan.roots[number].root = root
            plan.roots[number].bound, plan.roots[number].pid = self.bounds[root]
            number += 1
            for key in self.order(root):
                value = part[key]
                keep.append(key)
                keep.append(value)
                edit = &plan.edits[at]
                at += 1
                edit.root = root
                edit.key, edit.key_size = PyBytes_AS_STRING(key), <uint32_t>PyBytes_GET_SIZE(key)
                if edit.key_size > key_max:
                    raise TooLarge(f"with this buffer_size a key has at most {key_max} bytes, this "
                                   f"one {edit.key_size}")
                if value is None:
                    continue
                size = <uint64_t>PyBytes_GET_SIZE(value)
                edit.payload = PyBytes_AS_STRING(value)
                edit.payload_size = <uint32_t>size
                if size > inline_max:
                    large = True
        plan.root_count = number
        if large:
            self._large(plan, keep)
        return 0

    cdef int _large(self, plan_t *plan, list keep) except -1:
        """Write the pages of large values, and put references in their place."""
        cdef uint64_t at, size, inline_max = self.pages.inline_max()
        cdef uint32_t part_size = self.pages.part_size, reference_size
        cdef edit_t *edit
        cdef bytes reference
        cdef char *out
        cdef int result
        for at in range(plan.count):
            edit = &plan.edits[at]
            if edit.payload == NULL:
                continue
            size = <uint64_t>PyBytes_GET_SIZE(keep[2 * at + 1])
            if size > self.pages.value_size_max:
                raise TooLarge(f"a value has at most {self.pages.value_size_max} bytes, this one "
                               f"{size}")
            if size <= inline_max:
                continue
            reference = bytes(BLOB_REFERENCE_MAX)
            keep.append(reference)
            out = PyBytes_AS_STRING(reference)
            result = pages_usable(&self.pages.pages)
            if result == PAGES_OK:
                with nogil:
                    result = blob_write(&plan.change, edit.payload, size, part_size, out,
                                        &reference_size)
            self.pages.raise_result(result, 0)
            edit.payload, edit.payload_size, edit.blob = out, reference_size, RECORD_BLOB()
        return 0

    cdef int _carry_out(self, plan_t *plan, Reads reads) except -1:
        """PAGES_OK: it is committed; PLAN_STALE: from the beginning, please."""
        cdef TreePages pages = self.pages
        cdef int result
        while True:
            result = pages_usable(&pages.pages)
            if result == PAGES_OK:
                with nogil:
                    pages_lock(&pages.pages)
                    result = _try(pages, reads, plan)
                    pages_unlock(&pages.pages)
            if result == PAGES_OK or result == PLAN_STALE:
                return result
            if result == PAGES_CHANGED:
                pages.conflict_count += 1
                raise Conflict("what this transaction has read was changed by another one; try "
                               "it again, for example with transact()")
            if result == PLAN_DROPPED:
                raise KeyMissing("a tree of these changes was dropped")
            pages.again(result, plan.missing, NULL, plan.bytes, plan.records)

    cdef int _release(self, plan_t *plan) except -1:
        if plan.change.items != NULL or plan.change.notes != NULL:
            with nogil:
                pages_lock(&self.pages.pages)
                change_abandon(&plan.change)
                pages_unlock(&self.pages.pages)
        fragment_free(&plan.fragment)
        free(plan.edits)
        free(plan.runs)
        free(plan.roots)
        plan.edits, plan.runs, plan.roots = NULL, NULL, NULL
        return 0

    cdef list _events(self, const plan_t *plan):
        """(tree name, key, value | None) of what changed, for who watches."""
        cdef list events = []
        cdef uint64_t at
        cdef bytes key
        cdef dict names = {}
        for root in self.parts:
            self.pages.lock()
            size = self.pages.pages.roots[root].name_size
            name = PyBytes_FromStringAndSize(self.pages.pages.roots[root].name, size)
            pages_unlock(&self.pages.pages)
            names[root] = name.decode()
        for at in range(plan.count):
            if plan.edits[at].effect:
                root = plan.edits[at].root
                key = plan.edits[at].key[:plan.edits[at].key_size]
                events.append((names[root], key, self.parts[root][key]))
        return events


cdef class Part:
    """The changes of one tree, with the methods that a batch shows."""

    def _bind(self, Changes changes not None, uint32_t root):
        """What __init__ would do: subclasses have their own."""
        self.changes, self.root = changes, root
        self.data = changes.part(root)

    cdef int _open(self) except -1:
        # a batch that was committed or left has forgotten its parts
        if self.data is None or self.changes.parts.get(self.root) is not self.data:
            raise Closed("this batch is closed")
        return 0

    def __setitem__(self, key, value):
        self._open()
        if not PyBytes_CheckExact(key) or PyBytes_GET_SIZE(key) > KEY_SIZE_MAX:
            key = key_bytes(key)
        if not PyBytes_CheckExact(value):
            value = value_bytes(value)
        self.data[key] = value

    def __delitem__(self, key):
        self._open()
        self.data[key_bytes(key)] = None

    def set(self, key, value):
        """Set the value of a key."""
        self._open()
        self.data[key_bytes(key)] = value_bytes(value)

    def delete(self, key):
        """A key that is not there is fine."""
        self._open()
        self.data[key_bytes(key)] = None
