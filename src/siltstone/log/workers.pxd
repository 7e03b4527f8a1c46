"""Worker threads and their jobs, as C sees them. See workers.pyx."""
from libc.stdint cimport uint32_t, uint64_t

from siltstone.log.latency cimport latency_t
from siltstone.log.pthread cimport pthread_cond_t, pthread_mutex_t

cdef struct job_t

cdef struct completions_t:
    pthread_mutex_t lock
    job_t *head
    job_t *tail
    uint64_t count
    int fd                          # eventfd; -1 after close

cdef struct job_t:
    # Embedded in what the caller owns. `run` is called on a worker without the GIL; afterwards
    # the job is pushed to `completions`. With completions NULL nobody touches the job after
    # `run`, which may therefore free it.
    job_t *next
    void (*run)(job_t *job) noexcept nogil
    completions_t *completions
    void *owner
    uint64_t submitted_ns

cdef struct pool_t:
    pthread_mutex_t lock
    pthread_cond_t work
    job_t *head
    job_t *tail
    uint32_t queued
    uint32_t queued_max
    uint32_t threads_wanted
    uint32_t threads_idle
    uint32_t started                # threads were started in this process
    uint32_t closing
    void *owner                     # the WorkerPool
    uint64_t jobs
    uint64_t refused
    latency_t waiting
    latency_t running

# 0; -EAGAIN: the queue is full (do the work yourself or wait); -ESHUTDOWN: the pool is closed.
# A pool of 0 threads runs the job before it returns.
cdef int pool_submit(pool_t *pool, job_t *job) noexcept nogil
cdef void completions_push(completions_t *completions, job_t *job) noexcept nogil
# Clears the eventfd and takes all finished jobs, oldest first, linked by `next`; NULL = none.
cdef job_t *completions_take(completions_t *completions) noexcept nogil

cdef class Completions:
    cdef completions_t list
    cdef object __weakref__

cdef class WorkerPool:
    cdef pool_t pool
    cdef readonly object name
    cdef readonly bint patient
    cdef list _threads
    cdef object __weakref__
    cdef object _start_lock
