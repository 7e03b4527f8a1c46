"""Trees as Python sees them: every call on one key, ranges, and the one place that changes a key.

A read takes the lock, walks from the root to the leaf and copies the value out; a page that is not
in memory ends the attempt, is loaded without lock and GIL, and the call starts again. A change does
the same, with what it depends on (a value that must be absent, or equal) checked in the hold of the
lock in which it is made. Where a decision needs Python or a large value, it is made outside and
holds only if the leaf is still as it was. Waiting for the medium comes last, without the lock.

Goals: a get or a set is one call of a C method. Non-goals: comparators, duplicate keys, values that
are views of memory.
"""
from operator import index

from cpython.bytes cimport (PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize,
                            PyBytes_GET_SIZE)
from libc.stdint cimport INT64_MAX, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

from siltstone.errors import (Closed, Conflict, InvalidValue, KeyMissing, SnapshotTooOld,
                              TooLarge)
from siltstone.store.blob cimport BLOB_REFERENCE_MAX, blob_write
from siltstone.store.changes cimport Changes
from siltstone.store.descent cimport (SEEK_AT, leaf_find, path_find, path_leaf, path_pid, path_t)
from siltstone.store.hints cimport hint_of, hint_set
from siltstone.store.page cimport (KEY_SIZE_MAX, RECORD_BLOB, WORD_SIZE, node_record, node_search,
                                   node_t, record_word, word_key_size, word_payload_size)
from siltstone.store.pagecache cimport (PAGES_MISS, PAGES_OK, change_abandon, change_begin,
                                        change_t, pages_load_many, pages_lock, pages_root,
                                        pages_snapshot_open, pages_t, pages_trylock, pages_unlock,
                                        pages_usable, snapshot_t)
from siltstone.store.iteration cimport SCAN_ITEMS, SCAN_KEYS, SCAN_VALUES, scan_start
from siltstone.store.trees cimport key_bytes, snapshot_give_back, value_bytes
from siltstone.store.write cimport tree_write

cdef enum:
    PUT_ALWAYS = 0
    PUT_IF_ABSENT = 1
    PUT_IF_EQUAL = 2            # to `old`; None: absent
    PUT_IF_PRESENT = 3
    WANT_OLD = 8                # bit: the former value is the result
    MANY_ROUNDS = 16            # more levels than trees have
    DECISIONS_MAX = 1000        # of one change, each refused because another came first

cdef object _MISSING = object()
cdef object _LARGE = object()   # a decision that has to be made outside of the lock


cdef bytes _after(bytes prefix):
    """The smallest key above all that begin with `prefix`; None: there is none."""
    stripped = prefix.rstrip(b"\xff")
    if not stripped:
        return None
    last = len(stripped) - 1
    return stripped[:last] + bytes((stripped[last] + 1,))


def key_of(key):
    """The bytes of a key; InvalidKey says what is wrong with it."""
    return key_bytes(key)


def limit_of(limit):
    """How many records at most, as an int; InvalidValue for what is no whole number from 0 on."""
    try:
        most = index(limit)
    except TypeError:
        raise InvalidValue(f"limit is a whole number, not {limit!r}") from None
    if most < 0:
        raise InvalidValue(f"limit is 0 or more, not {most}")
    return min(most, INT64_MAX)


cdef class Reader:
    """The reading half of a tree."""

    cdef int dropped(self) except -1:
        pages_unlock(&self.pages.pages)
        raise KeyMissing(f"tree {self.name!r} was dropped")

    cdef int enter(self) except -1:
        cdef TreePages pages = self.pages
        if pages is None:
            raise Closed("this tree belongs to no store")
        if self.snapshot is not None:
            self.snapshot.check()
        if pages_usable(&pages.pages) != PAGES_OK or not pages_trylock(&pages.pages):
            pages.lock()
        if self.snapshot is None and pages.generations[self.root].bound != self.bound:
            self.dropped()
        return 0

    cdef object large(self, const char *reference, uint32_t size):
        """Read a large value; with the lock held, which is given back. None: try again."""
        cdef char copied[BLOB_REFERENCE_MAX]
        cdef snapshot_t own
        memcpy(copied, reference, size)
        if self.snapshot is not None:
            pages_unlock(&self.pages.pages)
            return self.pages.blob(&self.snapshot.snap, copied, size)
        pages_snapshot_open(&self.pages.pages, &own)
        pages_unlock(&self.pages.pages)
        try:
            return self.pages.blob(&own, copied, size)
        except SnapshotTooOld:
            return None
        finally:
            snapshot_give_back(self.pages, &own)

    cdef object find(self, object key, object default):
        """The value; `default` _MISSING: only whether it is there."""
        cdef pages_t *pages
        cdef const snapshot_t *snapshot = NULL
        cdef path_t path
        cdef node_t *leaf
        cdef const char *data
        cdef const char *record
        cdef uint32_t size, index, word
        cdef uint8_t *hint = NULL
        cdef bint found = False
        cdef object value
        cdef int result
        if not PyBytes_CheckExact(key) or PyBytes_GET_SIZE(key) > KEY_SIZE_MAX:
            key = key_bytes(key)
        data, size = PyBytes_AS_STRING(key), <uint32_t>PyBytes_GET_SIZE(key)
        if self.snapshot is not None:
            snapshot = &self.snapshot.snap
        while True:
            self.enter()
            pages = &self.pages.pages
            leaf = NULL
            if snapshot == NULL:
                hint = hint_of(&self.pages.hints, data, size)
                leaf = leaf_find(pages, self.pid, data, size, hint, &path.missing)
            if leaf == NULL:
                result = path_find(pages, self.pid, SEEK_AT, data, size, snapshot, False, &path)
                if result == PAGES_OK:
                    leaf = path_leaf(&path)
                    if self.reads is not None:
                        result = self.reads.add(path_pid(&path), path.stamp)
                if result != PAGES_OK:
                    pages_unlock(pages)
                    self.pages.again(result, path.missing, snapshot, 0, 0)
                    continue
            index = node_search(leaf, data, size, &found)
            if not found or default is _MISSING:
                pages_unlock(pages)
                return found if default is _MISSING else default
            record = node_record(leaf, index)
            word = record_word(record)
            hint_set(hint, leaf, record)
            record += WORD_SIZE + word_key_size(word)
            if word & RECORD_BLOB():
                value = self.large(record, word_payload_size(word))
                if value is None:
                    continue
                return value
            value = PyBytes_FromStringAndSize(record, word_payload_size(word))
            pages_unlock(pages)
            return value

    # One key

    def get(self, key, default=None):
        """The value of `key`, or `default`."""
        return self.find(key, default)

    def __getitem__(self, key):
        value = self.find(key, _LARGE)
        if value is _LARGE:
            raise KeyMissing(key)
        return value

    def __contains__(self, key):
        return self.find(key, _MISSING)

    def get_many(self, keys):
        """A dict of those that are there; pages that are not in memory are read together."""
        cdef pages_t *pages
        cdef const snapshot_t *snapshot = NULL
        cdef path_t path
        cdef uint64_t missing[64]
        cdef uint32_t count, size
        cdef int rounds, result
        cdef bytes key
        cdef list asked, wanted, left
        try:
            given = iter(keys)
        except TypeError:
            raise InvalidValue(f"get_many takes keys, not {type(keys).__name__}") from None
        wanted = asked = [key_bytes(one) for one in given]
        if self.snapshot is not None:
            snapshot = &self.snapshot.snap
        for rounds in range(MANY_ROUNDS):
            left, count = [], 0
            for key in wanted:
                size = <uint32_t>PyBytes_GET_SIZE(key)
                self.enter()
                pages = &self.pages.pages
                result = path_find(pages, self.pid, SEEK_AT, PyBytes_AS_STRING(key), size,
                                   snapshot, True, &path)
                pages_unlock(pages)
                if result == PAGES_MISS:
                    left.append(key)
                    if count < 64 and (count == 0 or missing[count - 1] != path.missing):
                        missing[count] = path.missing
                        count += 1
            if not left:
                break
            with nogil:
                pages_load_many(&self.pages.pages, missing, count, snapshot)
            wanted = left
        found = {}
        for key in asked:
            value = self.find(key, _LARGE)
            if value is not _LARGE:
                found[key] = value
        return found

    def __len__(self):
        cdef int64_t count
        if self.snapshot is not None:
            self.snapshot.check()
            return self.entries
        self.enter()
        count = pages_root(&self.pages.pages, self.root).count
        pages_unlock(&self.pages.pages)
        return count

    # Ranges

    cdef Scan scan(self, int what, object start, object stop, object prefix, bint reverse,
                   bint include_start, bint include_stop, object limit):
        cdef bytes low = b"", high = None, edge
        cdef int64_t most = -1
        if start is not None:
            low = key_bytes(start)
            if not include_start:
                low += b"\x00"
        if stop is not None:
            high = key_bytes(stop)
            if include_stop:
                high += b"\x00"
        if prefix is not None:
            edge = key_bytes(prefix)
            low = max(low, edge)
            edge = _after(edge)
            if edge is not None:
                high = edge if high is None else min(high, edge)
        if limit is not None:
            most = limit_of(limit)
        self.enter()
        pages_unlock(&self.pages.pages)
        return scan_start(self.pages, self.pid, self.snapshot, self.reads, what, low, high,
                          reverse, most)

    def items(self, start=None, stop=None, *, prefix=None, bint reverse=False,
              bint include_start=True, bint include_stop=False, limit=None):
        """(key, value) pairs in order, as of now: an iterator.

        `start` is the lower and `stop` the upper end, also with `reverse`; `prefix` with them is
        what both allow. What is changed later is not seen.
        """
        return self.scan(SCAN_ITEMS, start, stop, prefix, reverse, include_start, include_stop,
                         limit)

    def keys(self, start=None, stop=None, *, prefix=None, bint reverse=False,
             bint include_start=True, bint include_stop=False, limit=None):
        """Keys in order; as items()."""
        return self.scan(SCAN_KEYS, start, stop, prefix, reverse, include_start, include_stop,
                         limit)

    def values(self, start=None, stop=None, *, prefix=None, bint reverse=False,
               bint include_start=True, bint include_stop=False, limit=None):
        """Values in the order of their keys; as items()."""
        return self.scan(SCAN_VALUES, start, stop, prefix, reverse, include_start, include_stop,
                         limit)

    def __iter__(self):
        return self.scan(SCAN_KEYS, None, None, None, False, True, False, None)

    def __reversed__(self):
        return self.scan(SCAN_KEYS, None, None, None, True, True, False, None)

    cdef object edge(self, object start, object stop, bint include_start, bint reverse):
        return self.scan(SCAN_ITEMS, start, stop, None, reverse, include_start, False,
                         1).next_or_none()

    def first(self):
        """(key, value) of the smallest key, or None."""
        return self.edge(None, None, True, False)

    def last(self):
        """(key, value) of the largest key, or None."""
        return self.edge(None, None, True, True)

    def next_after(self, key):
        """(key, value) of the smallest key above `key`, or None."""
        return self.edge(key_bytes(key), None, False, False)

    def last_before(self, key):
        """(key, value) of the largest key below `key`, or None."""
        return self.edge(None, key_bytes(key), True, True)

    # For decisions that are made outside of the lock

    cdef object seen(self, bytes key, note_t *note):
        """The value or _MISSING, and the leaf and commit that this is true for."""
        cdef pages_t *pages = &self.pages.pages
        cdef path_t path
        cdef const char *record
        cdef uint32_t index, word
        cdef bint found
        cdef int result
        while True:
            self.enter()
            result = path_find(pages, self.pid, SEEK_AT, PyBytes_AS_STRING(key),
                               <uint32_t>PyBytes_GET_SIZE(key), NULL, False, &path)
            if result != PAGES_OK:
                pages_unlock(pages)
                self.pages.again(result, path.missing, NULL, 0, 0)
                continue
            note.pid, note.stamp = path_pid(&path), path.stamp
            index = node_search(path_leaf(&path), PyBytes_AS_STRING(key),
                                <uint32_t>PyBytes_GET_SIZE(key), &found)
            if not found:
                pages_unlock(pages)
                return _MISSING
            record = node_record(path_leaf(&path), index)
            word = record_word(record)
            record += WORD_SIZE + word_key_size(word)
            if not word & RECORD_BLOB():
                value = PyBytes_FromStringAndSize(record, word_payload_size(word))
                pages_unlock(pages)
                return value
            value = self.large(record, word_payload_size(word))
            if value is not None:
                return value


cdef class View(Reader):
    """A tree as of a snapshot; with `reads`, what is read is noted for a transaction."""

    def __init__(self, TreePages pages not None, str name, uint32_t root,
                 Snapshot snapshot not None, Reads reads=None):
        snapshot.check()
        if root not in snapshot.roots:
            raise KeyMissing(f"there is no tree {name!r} in this snapshot")
        self.pages, self.name, self.root = pages, name, root
        self.snapshot, self.reads = snapshot, reads
        self.pid, self.entries, emptied = snapshot.roots[root]
        if reads is not None:
            reads.tree(root, emptied)


cdef class Tree(Reader):
    """A tree at present. Methods that change take `durable`: None is what the store was opened
    with, True waits until the change is on the medium, False does not.
    """

    def _bind(self, TreePages pages not None, str name, uint32_t root):
        """What __init__ would do: subclasses have their own."""
        pages.lock()
        if root >= pages.pages.root_count or not pages.pages.roots[root].used:
            pages_unlock(&pages.pages)
            raise KeyMissing(f"tree {name!r} was dropped")
        pages.cover(root)
        self.bound = pages.generations[root].bound
        self.pid = pages.pages.roots[root].pid
        pages_unlock(&pages.pages)
        self.pages, self.name, self.root = pages, name, root

    def _bind_dropped(self, TreePages pages not None):
        """Of a name that is gone: whoever uses it is told so."""
        pages.lock()
        pages.cover(0)
        self.bound = pages.generations[0].bound + 1
        pages_unlock(&pages.pages)
        self.pages, self.root = pages, 0

    # One key

    def set(self, key, value, durable=None):
        """Set the value of a key."""
        self.put(key_bytes(key), value_bytes(value), PUT_ALWAYS, None, NULL, durable, NULL)

    def __setitem__(self, key, value):
        self.put(key_bytes(key), value_bytes(value), PUT_ALWAYS, None, NULL, None, NULL)

    def delete(self, key, durable=None):
        """Whether it was there."""
        return self.put(key_bytes(key), None, PUT_IF_PRESENT, None, NULL, durable,
                        NULL) is not _MISSING

    def __delitem__(self, key):
        if self.put(key_bytes(key), None, PUT_IF_PRESENT, None, NULL, None, NULL) is _MISSING:
            raise KeyMissing(key)

    def pop(self, key, default=_MISSING, *, durable=None):
        """Delete a key; its value, or `default`, or KeyMissing."""
        cdef bint refused
        cdef bytes wanted = key_bytes(key)
        old = self.put(wanted, None, PUT_IF_PRESENT | WANT_OLD, None, NULL, durable, &refused)
        if old is _LARGE:
            old = self._decide(wanted, lambda old: None, durable)[0]
        if old is not _MISSING:
            return old
        if default is _MISSING:
            raise KeyMissing(key)
        return default

    def set_default(self, key, value, *, durable=None):
        """The value of a key, which is set first if it was absent."""
        cdef bint refused
        cdef bytes wanted = key_bytes(key), new = value_bytes(value)
        old = self.put(wanted, new, PUT_IF_ABSENT | WANT_OLD, None, NULL, durable, &refused)
        if old is _LARGE:
            old = self._decide(wanted, lambda old: new if old is None else old, durable)[0]
        return new if old is _MISSING else old

    def compare_and_set(self, key, old, new, *, durable=None):
        """Set to `new` if the value is `old`; None means absent, on either side."""
        cdef bint refused = False
        cdef bytes wanted = key_bytes(key)
        cdef bytes expected = None if old is None else value_bytes(old)
        cdef bytes value = None if new is None else value_bytes(new)
        found = self.put(wanted, value, PUT_IF_EQUAL, expected, NULL, durable, &refused)
        if found is _LARGE:
            found = self._decide(wanted, lambda old: value if old == expected else _MISSING,
                                 durable)[1]
            return found is not _MISSING
        return not refused

    def pop_first(self, *, durable=None):
        """Delete the smallest key; (key, value) or None."""
        return self._pop(self.first, durable)

    def pop_last(self, *, durable=None):
        """Delete the largest key; (key, value) or None."""
        return self._pop(self.last, durable)

    def _pop(self, which, durable):
        while True:
            pair = which()
            if pair is None or self.compare_and_set(pair[0], pair[1], None, durable=durable):
                return pair

    def set_merge(self, function):
        """function(key, old | None, operand) -> bytes, or None to delete: what merge() does.

        It may be called again for one merge(), when the value changed meanwhile.
        """
        if function is not None and not callable(function):
            raise InvalidValue("a merge function is callable: function(key, old, operand)")
        self.pages.mergers[self.root, self.bound] = function

    def merge(self, key, operand, *, durable=None):
        """Change a value by the merge function, atomically; the new value.

        Conflict: the value changed each time while the function ran, 1,000 times.
        """
        cdef bytes wanted = key_bytes(key)
        function = self.pages.mergers.get((self.root, self.bound))
        if function is None:
            raise InvalidValue("no merge function: call set_merge(function) first")

        def merged(old):
            new = function(wanted, old, operand)
            return None if new is None else value_bytes(new)
        return self._decide(wanted, merged, durable)[1]

    def delete_range(self, start=None, stop=None, *, prefix=None, include_start=True,
                     include_stop=False, durable=None):
        """Delete a range as items() gives it, at once; how many. Their keys are in memory
        meanwhile; for everything, see clear().
        """
        cdef Changes changes = Changes(self.pages)
        for key in self.keys(start, stop, prefix=prefix, include_start=include_start,
                             include_stop=include_stop):
            changes.delete(self.root, key)
        self.enter()            # the changes are of this tree, and not of one in its place
        pages_unlock(&self.pages.pages)
        return changes.commit(durable)

    def clear(self, *, durable=None):
        """Delete everything, at once; how many entries there were. Watches say EventsLost."""
        self.enter()
        pages_unlock(&self.pages.pages)
        count = self.pages.tree_clear(self.root, self.bound, durable=durable)
        if self.pages.watchers is not None:
            self.pages.watchers.lose(self.name, count)
        return count

    # The one place that changes a key

    cdef object _decide(self, bytes key, object function, object durable):
        """(old, new): new = function(old | None); _MISSING for new: leave it."""
        cdef note_t note
        cdef bint refused = True, by_value = True
        cdef int tries = 0
        cdef object old = None, new = None
        while refused:
            refused = False
            if tries == DECISIONS_MAX:
                raise Conflict(f"the value of {key[:40]!r}, or one near it, changed {tries} times "
                               "while a new one was worked out")
            tries += 1
            old = self.seen(key, &note)
            new = function(None if old is _MISSING else old)
            if new is _MISSING or (new is None and old is _MISSING) or new is old:
                self._saw(self.pages.durable if durable is None else durable)
                break
            # The value decides, not the leaf: a function may change others in the same leaf.
            if by_value and (old is _MISSING or len(old) <= self.pages.inline_max()):
                found = self.put(key, new, PUT_IF_EQUAL, None if old is _MISSING else old, NULL,
                                 durable, &refused)
                by_value = found is not _LARGE
            else:
                self.put(key, new, PUT_ALWAYS, None, &note, durable, &refused)
        return old, new

    cdef int _saw(self, bint durable) except -1:
        """What a durable change has seen, and left as it was, is durable."""
        cdef uint64_t end
        self.pages.lock()
        end = self.pages.pages.commit_end
        pages_unlock(&self.pages.pages)
        return self.pages.changed(end, durable)

    cdef int _check_write(self, bytes key, bytes value) except -1:
        if self.pages is None:
            raise Closed("this tree belongs to no store")
        self.pages.writable()
        if PyBytes_GET_SIZE(key) > self.pages.key_max():
            raise TooLarge(f"with this buffer_size a key has at most {self.pages.key_max()} bytes, "
                           f"this one {PyBytes_GET_SIZE(key)}")
        if value is not None and <uint64_t>PyBytes_GET_SIZE(value) > self.pages.value_size_max:
            raise TooLarge(f"a value has at most {self.pages.value_size_max} bytes, this one "
                           f"{PyBytes_GET_SIZE(value)}")
        return 0

    cdef int _large(self, write_t *write, bytes value, char *reference) except -1:
        """Write the pages of a large value; write.change has been begun."""
        cdef const char *data = PyBytes_AS_STRING(value)
        cdef uint64_t size = <uint64_t>PyBytes_GET_SIZE(value)
        cdef uint32_t part_size = self.pages.part_size
        cdef int result
        result = pages_usable(&self.pages.pages)
        if result == PAGES_OK:
            with nogil:
                result = blob_write(write.change, data, size, part_size, reference,
                                    &write.payload_size)
        if result != PAGES_OK:
            return self.pages.raise_result(result, 0)
        write.payload, write.blob = reference, RECORD_BLOB()
        return 0

    cdef object put(self, bytes key, bytes value, int mode, bytes old, const note_t *seen,
                    object durable, bint *refused):
        """Set (or delete, if value is None); see PUT_... Returns the former value if wanted and
        inline, else True; _MISSING: there was none; _LARGE: nothing was done, decide outside.
        """
        cdef write_t write
        cdef change_t change
        cdef char reference[BLOB_REFERENCE_MAX]
        cdef TreePages pages = self.pages
        cdef uint64_t end = 0
        cdef bint not_done = False
        cdef object former = None
        cdef object watchers
        self._check_write(key, value)
        write.root, write.page_size, write.change, write.blob = self.root, pages.page_size, NULL, 0
        write.key, write.key_size = PyBytes_AS_STRING(key), <uint32_t>PyBytes_GET_SIZE(key)
        write.delete_, write.payload, write.payload_size = value is None, NULL, 0
        write.done = False
        if value is not None:
            write.payload = PyBytes_AS_STRING(value)
            write.payload_size = <uint32_t>PyBytes_GET_SIZE(value)
        watchers = pages.watchers
        if watchers is not None:
            watchers.acquire()
        try:
            if value is not None and PyBytes_GET_SIZE(value) > pages.inline_max():
                change_begin(&change, &pages.pages)
                write.change = &change
                self._large(&write, value, reference)
            former = self._put(&write, mode, old, seen, &end, &not_done)
            if watchers is not None and write.done:
                watchers.publish([(self.name, key, value)])
        finally:
            if write.change != NULL and (change.items != NULL or change.notes != NULL):
                with nogil:
                    pages_lock(&pages.pages)
                    change_abandon(&change)
                    pages_unlock(&pages.pages)
            if watchers is not None:
                watchers.release()
        if refused != NULL:
            refused[0] = not_done
        # Durable is also what a change saw that then was none: a key that was gone, say.
        pages.changed(end, pages.durable if durable is None else durable)
        return former

    cdef object _put(self, write_t *write, int mode, bytes old, const note_t *seen, uint64_t *end,
                     bint *refused):
        cdef pages_t *pages = &self.pages.pages
        cdef node_t *leaf
        cdef const char *record = NULL
        cdef uint32_t word = 0, size = 0
        cdef object former
        cdef int result
        while True:
            self.enter()
            result = path_find(pages, self.pid, SEEK_AT, write.key, write.key_size, NULL, False,
                               &write.path)
            if result == PAGES_OK:
                leaf = path_leaf(&write.path)
                write.index = node_search(leaf, write.key, write.key_size, &write.found)
                former = True if write.found else _MISSING
                if write.found:
                    record = node_record(leaf, write.index)
                    word = record_word(record)
                    record += WORD_SIZE + word_key_size(word)
                    size = word_payload_size(word)
                    if mode & WANT_OLD and not word & RECORD_BLOB():
                        former = PyBytes_FromStringAndSize(record, size)
                if write.found and word & RECORD_BLOB() and (mode & WANT_OLD
                                                             or mode == PUT_IF_EQUAL):
                    refused[0] = True
                    former = _LARGE
                elif seen != NULL and (seen.pid != path_pid(&write.path)
                                       or seen.stamp != write.path.stamp):
                    refused[0] = True
                elif mode & 7 == PUT_IF_ABSENT:
                    refused[0] = write.found
                elif mode & 7 == PUT_IF_EQUAL:
                    refused[0] = write.found if old is None else (
                        not write.found or size != <uint32_t>PyBytes_GET_SIZE(old)
                        or memcmp(record, PyBytes_AS_STRING(old), size) != 0)
                end[0] = pages.commit_end
                if refused[0] or (write.delete_ and not write.found):
                    pages_unlock(pages)     # nothing to do
                    return former
                result = tree_write(pages, write)
                if result == PAGES_OK:
                    end[0] = pages.commit_end
            pages_unlock(pages)
            if result == PAGES_OK:
                return former
            if write.change != NULL and write.change.items == NULL:
                # given up with the pages of the value in it
                self.pages.raise_result(result, write.path.missing)
            self.pages.again(result, write.path.missing, NULL, write.bytes, write.records)
