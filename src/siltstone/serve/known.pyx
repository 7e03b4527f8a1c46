"""The series that a sender has told of: the bytes of its labels, and the id.

Entries lie in the order in which they came first, and so do the bytes of their labels; a sender
that repeats its series in that order is answered by one comparison with the next entry, which is
in the processor's cache because its neighbour was. Any other order costs a look into a dictionary.
For one thread at a time, under the GIL.
"""

from libc.stdint cimport uint8_t, uint32_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcmp, memcpy
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE

cdef enum:
    # the first byte of a Label field of a TimeSeries: field 1, a block
    LABEL = 1 << 3 | 2


cdef class Known:
    """Empty at first. `count`: entries."""

    def __cinit__(self):
        self.places = {}

    def __dealloc__(self):
        free(self.entries)
        free(self.text)

    cdef bint expected(self, const uint8_t **at, const uint8_t *end, uint32_t *id) noexcept nogil:
        """Whether the next entry's labels stand here, all of them; then they are passed over."""
        cdef entry_t *entry
        if self.next >= self.count:
            self.next = 0
            if self.count == 0:
                return False
        entry = &self.entries[self.next]
        if end - at[0] < <Py_ssize_t>entry.size or memcmp(
            at[0], self.text + entry.at, entry.size
        ) != 0:
            return False
        if at[0] + entry.size < end and at[0][entry.size] == LABEL:
            return False  # it has further ones
        at[0] += entry.size
        id[0] = entry.id
        self.next += 1
        return True

    cdef bint find(self, bytes key, uint32_t *id) except -1:
        """Any entry; the one behind it is expected then."""
        place = self.places.get(key)
        if place is None:
            return False
        self.next = <Py_ssize_t>place
        id[0] = self.entries[self.next].id
        self.next += 1
        return True

    cdef int add(self, bytes key, uint32_t id) except -1:
        """A further entry. MemoryError: nothing changed."""
        cdef size_t size = PyBytes_GET_SIZE(key)
        cdef size_t text_room
        cdef void *grown
        if self.count == self.room:
            grown = realloc(self.entries, (2 * self.room + 64) * sizeof(entry_t))
            if grown == NULL:
                raise MemoryError("no memory for another series")
            self.entries = <entry_t *>grown
            self.room = 2 * self.room + 64
        if self.text_size + size > self.text_room:
            text_room = 2 * self.text_room + size + 4096
            grown = realloc(self.text, text_room)
            if grown == NULL:
                raise MemoryError("no memory for another series")
            self.text = <uint8_t *>grown
            self.text_room = text_room
        memcpy(self.text + self.text_size, PyBytes_AS_STRING(key), size)
        self.entries[self.count].at = self.text_size
        self.entries[self.count].size = <uint32_t>size
        self.entries[self.count].id = id
        self.places[key] = self.count
        self.text_size += size
        self.count += 1
        return 0
