"""Memory of nodes: cells of few sizes in chunks that the system may back by one large page each."""
from libc.stdint cimport uint64_t

from siltstone.log.workers cimport pool_t

cdef enum:
    CELL_MAX = (1 << 14) + 64          # larger ones are malloc()'s

# What an allocation of `size` bytes takes: never less, and all of it may be used.
cdef uint64_t cell_size(uint64_t size) noexcept nogil
# `size` as cell_size() gave it, here and in cell_give(). NULL: no memory.
cdef char *cell_take(uint64_t size) noexcept nogil
cdef void cell_give(char *cell, uint64_t size) noexcept nogil
# For who fills a store, now and then: the room for more is made ready by a worker.
cdef void cells_ahead(pool_t *pool) noexcept nogil
# Bytes taken of the system, and of them in use, without what malloc() gave.
cdef void cells_count(uint64_t *mapped, uint64_t *used) noexcept nogil
