"""Several changes that count as a whole: what batches and transactions gather, and their commit.

Changes are kept as a dict a tree; the last change of a key counts. A commit hands them to plan.pyx
as sorted edits, which makes one commit of them: one group of the log, if nothing that a transaction
has read was changed meanwhile. Whatever has to be loaded or waited for on the way is done without
the lock; if a leaf that was dealt with has changed meanwhile, all starts again.
"""
from bisect import bisect_left

from cpython.bytes cimport (PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize,
                            PyBytes_GET_SIZE)
from cpython.dict cimport PyDict_Next
from cpython.ref cimport PyObject
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, malloc
from libc.string cimport memset
from posix.unistd cimport usleep

from siltstone.errors import Closed, Conflict, KeyMissing, TooLarge
from siltstone.log.latency cimport now_ns
from siltstone.store.blob cimport BLOB_REFERENCE_MAX, blob_write
from siltstone.store.edits cimport edit_t, edits_sort
from siltstone.store.page cimport KEY_SIZE_MAX, RECORD_BLOB
from siltstone.store.pagecache cimport (PAGES_MISS, PAGES_MORE, PAGES_OK, change_abandon,
                                        change_begin, pages_lock, pages_root, pages_root_find,
                                        pages_unlock, pages_usable)
from siltstone.store.plan cimport (PLAN_DROPPED, PLAN_STALE, plan_free, plan_load, plan_step,
                                   plan_t, plan_tidy, root_edits_t, run_t)
from siltstone.store.trees cimport PAGES_CHANGED, generation_t, key_bytes, value_bytes

cdef enum:
    STALE_MAX = 3               # then a commit is made in one hold of the lock
    ROOT_NEW = 1 << 30          # "root ids" of trees that a commit is to make begin here
    # A mutex does not hand itself over: so often between two holds a pause lets others have it.
    # Sleeping takes about 60 us, whatever is asked for: 3 %.
    PAUSE_EVERY_NS = 2000000
    PAUSE_US = 1


cdef class Changes:
    """Sets and deletions over the trees of one store, none of which is done yet."""

    def __cinit__(self, TreePages pages not None):
        self.pages = pages
        self.parts, self.bounds, self.orders, self.names = {}, {}, {}, {}

    def new_tree(self, str name):
        """An id for the changes of a tree that is made with them, if there is none then."""
        cdef uint32_t root = ROOT_NEW + <uint32_t>len(self.names)
        self.names[root] = name.encode()
        self.parts[root] = {}
        return root

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
        self.closings += 1
        self.parts, self.bounds, self.orders, self.names = {}, {}, {}, {}

    def commit(self, durable=None, Reads reads=None):
        """All or nothing; how many keys changed. Conflict: something in `reads` did, before."""
        cdef bint wait = self.pages.durable if durable is None else durable
        watchers = self.pages.watchers
        self.pages.writable()
        if watchers is not None:
            watchers.acquire()
        return self._commit(reads, wait)

    cdef int64_t _commit(self, Reads reads, bint durable) except -1:
        cdef plan_t plan
        cdef list keep
        cdef uint32_t stale = 0
        cdef int64_t effects
        cdef uint64_t end
        cdef dict names
        watchers = self.pages.watchers
        memset(&plan, 0, sizeof(plan_t))
        try:
            # before the commit: soon after it a tree may be dropped
            names = self._tree_names() if watchers is not None else None
            while True:
                keep = []
                try:
                    self._fill(&plan, keep)
                    plan.whole, plan.change.waits = stale >= STALE_MAX, durable
                    if self._carry_out(&plan, reads) != PLAN_STALE:
                        if watchers is not None and plan.effects:
                            watchers.publish(self._events(&plan, names))
                        effects, end = <int64_t>plan.effects, plan.end
                        break
                    stale += 1
                    self.pages.restart_count += 1
                finally:
                    self._release(&plan)
        finally:
            if watchers is not None:
                watchers.release()
        if end:                 # also of a commit that changed nothing: what it saw is durable
            self.pages.changed(end, durable)
        self.close()
        return effects

    cdef int _fill(self, plan_t *plan, list keep) except -1:
        """The dicts as C arrays, sorted; `keep` holds what they point into."""
        cdef uint64_t count = <uint64_t>len(self), bytes_in_all = 0, at
        cdef dict part
        change_begin(&plan.change, &self.pages.pages)
        plan.edits = <edit_t *>malloc((count + 1) * sizeof(edit_t))
        plan.runs = <run_t *>malloc((count + 1) * sizeof(run_t))
        plan.roots = <root_edits_t *>calloc(len(self.parts) + 1, sizeof(root_edits_t))
        if plan.edits == NULL or plan.runs == NULL or plan.roots == NULL:
            raise MemoryError("no memory for a batch")
        for root in self.parts:
            part = dict(self.parts[root])
            if part or root in self.names:
                keep.append(part)
                self._fill_tree(plan, root, part)
        self._large(plan, keep)
        for at in range(plan.count):
            bytes_in_all += plan.edits[at].key_size + plan.edits[at].payload_size
        plan.large = 2 * bytes_in_all > (
            <uint64_t>self.pages.pages.stream.buffer_bytes * self.pages.pages.stream.buffer_count)
        return 0

    cdef int _fill_tree(self, plan_t *plan, uint32_t root, dict part) except -1:
        cdef root_edits_t *edits = &plan.roots[plan.root_count]
        cdef uint32_t key_max = self.pages.key_max()
        cdef PyObject *key = NULL
        cdef PyObject *value = NULL
        cdef Py_ssize_t place = 0
        cdef edit_t *edit
        edits.root, edits.first = root, plan.count
        if root in self.names:
            self._name_tree(edits, self.names[root])
        else:
            edits.bound, edits.pid = self.bounds[root]
        while PyDict_Next(part, &place, &key, &value):
            edit = &plan.edits[plan.count]
            memset(edit, 0, sizeof(edit_t))
            edit.key = PyBytes_AS_STRING(<object>key)
            edit.key_size = <uint32_t>PyBytes_GET_SIZE(<object>key)
            edit.root = root
            if edit.key_size > key_max:
                raise TooLarge(f"with this buffer_size a key has at most {key_max} bytes, this "
                               f"one {edit.key_size}")
            if <object>value is not None:
                if <uint64_t>PyBytes_GET_SIZE(<object>value) > self.pages.value_size_max:
                    raise TooLarge(f"a value has at most {self.pages.value_size_max} bytes, this "
                                   f"one {len(<object>value)}")
                edit.payload = PyBytes_AS_STRING(<object>value)
                edit.payload_size = <uint32_t>PyBytes_GET_SIZE(<object>value)
            plan.count += 1
        edits.end = plan.count
        plan.root_count += 1
        if edits_sort(plan.edits + edits.first, edits.end - edits.first) != 0:
            raise MemoryError("no memory for a batch")
        return 0

    cdef int _name_tree(self, root_edits_t *edits, bytes name) except -1:
        """A tree that did not exist: meanwhile it may."""
        cdef uint32_t size = <uint32_t>PyBytes_GET_SIZE(name)
        cdef int64_t root
        self.pages.lock()
        root = pages_root_find(&self.pages.pages, PyBytes_AS_STRING(name), size)
        if root >= 0:
            edits.root, edits.pid = <uint32_t>root, self.pages.pages.roots[root].pid
            edits.bound = self.pages.generation(<uint32_t>root).bound
        else:
            edits.name, edits.name_size = PyBytes_AS_STRING(name), size
        pages_unlock(&self.pages.pages)
        return 0

    cdef int _large(self, plan_t *plan, list keep) except -1:
        """Write the pages of large values, and put references in their place."""
        cdef uint64_t at
        cdef uint32_t inline_max = self.pages.inline_max(), part_size = self.pages.part_size
        cdef uint32_t reference_size = 0
        cdef edit_t *edit
        cdef bytes reference
        cdef char *out
        cdef int result
        for at in range(plan.count):
            edit = &plan.edits[at]
            if edit.payload_size <= inline_max:
                continue
            reference = bytes(BLOB_REFERENCE_MAX)
            keep.append(reference)
            out = PyBytes_AS_STRING(reference)
            result = pages_usable(&self.pages.pages)
            if result == PAGES_OK:
                with nogil:
                    result = blob_write(&plan.change, edit.payload, edit.payload_size, part_size,
                                        out, &reference_size)
            self.pages.raise_result(result, 0)
            edit.payload, edit.payload_size, edit.blob = out, reference_size, RECORD_BLOB()
        return 0

    cdef int _carry_out(self, plan_t *plan, Reads reads) except -1:
        """PAGES_OK: it is committed; PLAN_STALE: from the beginning, please."""
        cdef TreePages pages = self.pages
        cdef uint64_t pause_ns
        cdef int result
        while True:
            result = pages_usable(&pages.pages)
            if result == PAGES_OK:
                with nogil:
                    pause_ns = now_ns() + PAUSE_EVERY_NS
                    result = plan_step(pages, reads, plan)
                    while result == PAGES_MORE:
                        if now_ns() > pause_ns:
                            usleep(PAUSE_US)
                            pause_ns = now_ns() + PAUSE_EVERY_NS
                        result = plan_step(pages, reads, plan)
                    if result == PAGES_OK:
                        plan_tidy(pages, plan)
            if result == PAGES_OK or result == PLAN_STALE:
                return result
            if result == PAGES_CHANGED:
                pages.conflict_count += 1
                raise Conflict("what this transaction has read was changed by another one; try "
                               "it again, for example with transact()")
            if result == PLAN_DROPPED:
                raise KeyMissing("a tree of these changes was dropped")
            if result == PAGES_MISS:
                with nogil:
                    plan_load(pages, plan)
            pages.again(result, plan.missing, NULL, plan.bytes, plan.records)

    cdef int _release(self, plan_t *plan) except -1:
        if plan.change.items != NULL or plan.change.notes != NULL:
            with nogil:
                pages_lock(&self.pages.pages)
                change_abandon(&plan.change)
                pages_unlock(&self.pages.pages)
        plan_free(plan)
        return 0

    cdef dict _tree_names(self):
        """Of the trees that are changed, by root id."""
        cdef dict names = {}
        for root in self.parts:
            if root in self.names:
                names[root] = self.names[root].decode()
                continue
            self.pages.lock()
            size = self.pages.pages.roots[root].name_size
            name = PyBytes_FromStringAndSize(self.pages.pages.roots[root].name, size)
            pages_unlock(&self.pages.pages)
            names[root] = name.decode()
        return names

    cdef list _events(self, const plan_t *plan, dict names):
        """(tree name, key, value | None) of what changed, for who watches."""
        cdef list events = []
        cdef uint64_t at
        cdef bytes key
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
        self.data, self.closings = changes.part(root), changes.closings

    cdef int _open(self) except -1:
        # a batch that was committed or left has forgotten its parts
        if self.data is None or self.changes.closings != self.closings:
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
