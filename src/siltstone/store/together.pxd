"""Parts of a piece of work, done by the caller and by worker threads that have nothing to do."""
from libc.stdint cimport uint32_t

from siltstone.log.workers cimport pool_t

# run(context, number) for each number below `count`, several at once, in any order; returns when
# all have returned. Without locks and the GIL. `pool` NULL: the caller does all of it.
cdef void do_together(pool_t *pool, void (*run)(void *, uint32_t) noexcept nogil, void *context,
                      uint32_t count) noexcept nogil
