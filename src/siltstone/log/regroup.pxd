"""Replay: a walk's records to an engine, a group's at its mark. See regroup.pyx."""
from libc.stdint cimport uint32_t, uint64_t

# What an engine does with a record, without the GIL. `kind` is its own, or ORDERED_COMMIT with the
# engine's bytes of the mark. Not 0: replay stops and says so.
ctypedef int (*visit_t)(void *context, uint32_t kind, uint64_t position, const char *payload,
                        uint64_t size, uint64_t mark) noexcept nogil

cdef class Visitor:
    """Give it to OrderedLog.recover() in place of a Python function."""
    cdef visit_t visit
    cdef void *context
