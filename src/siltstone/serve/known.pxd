"""The series that a sender has told of, in the order in which they came first."""

from libc.stdint cimport uint8_t, uint32_t


cdef struct entry_t:
    size_t at                       # of its bytes in the text
    uint32_t size
    uint32_t id


cdef class Known:
    cdef readonly Py_ssize_t count
    cdef dict places                # bytes -> place in entries
    cdef entry_t *entries
    cdef Py_ssize_t room
    cdef uint8_t *text              # the bytes of all entries, one behind another
    cdef size_t text_size, text_room
    cdef Py_ssize_t next            # the entry that is expected now

    cdef bint expected(self, const uint8_t **at, const uint8_t *end, uint32_t *id) noexcept nogil
    cdef bint find(self, bytes key, uint32_t *id) except -1
    cdef int add(self, bytes key, uint32_t id) except -1
