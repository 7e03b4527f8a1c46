"""The ordered log as a Python object; engines in Cython take `log.stream`. See ordered_log.pyx."""
from libc.stdint cimport uint64_t

from siltstone.log.capture cimport capture_t
from siltstone.log.ordered cimport group_t, ordered_t, reservation_t

cdef class OrderedLog:
    cdef ordered_t stream
    cdef readonly object device
    cdef readonly object read_only
    cdef readonly object clock
    cdef object _pool
    cdef object _pid
    cdef object _uuid
    cdef object _recovered          # the Recovery; None before recover()
    cdef object _checkpoints        # ((start, replay_from), (start, replay_from)): newest, before
    cdef object _past               # earlier ones that a reader looks at
    cdef object _readers            # who tells; None: there are none
    cdef object _checkpoint_lock
    cdef object _giving_back        # held while blocks of free slots go
    cdef bint _closed
    cdef int _check(self, bint writes) except -1
    cdef int _raise(self, int result, uint64_t position) except -1
    cdef object _begun(self, int result, capture_t *capture)
    cdef bint _zeroing_begin(self) noexcept
    cdef void _zeroing_end(self) noexcept

cdef class Group:
    cdef group_t group
    cdef OrderedLog log
    cdef bint done

cdef class Reservation:
    cdef reservation_t reservation
    cdef OrderedLog log
    cdef bint done
