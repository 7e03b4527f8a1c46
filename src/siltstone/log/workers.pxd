"""Device I/O and worker threads, as C sees them. See workers.pyx."""
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t "pthread_mutex_t":
        pass
    ctypedef struct pthread_cond_t "pthread_cond_t":
        pass

cdef extern from *:
    """
    #include <pthread.h>
    /* A mutex that is held for a microsecond at a time: who wants it tries again for a while before
       it sleeps, where the C library knows such mutexes. */
    static inline void silt_mutex_init_spinning(pthread_mutex_t *mutex) {
        pthread_mutexattr_t attributes;
        pthread_mutexattr_init(&attributes);
    #ifdef PTHREAD_ADAPTIVE_MUTEX_INITIALIZER_NP
        pthread_mutexattr_settype(&attributes, PTHREAD_MUTEX_ADAPTIVE_NP);
    #endif
        pthread_mutex_init(mutex, &attributes);
        pthread_mutexattr_destroy(&attributes);
    }
    """
    void mutex_init_spinning "silt_mutex_init_spinning"(pthread_mutex_t *) noexcept nogil

cdef enum device_kind_t:
    DEVICE_FILES = 0
    DEVICE_MEMORY = 1
    DEVICE_PYTHON = 2       # an object with read(), write(), sync(); called with the GIL

cdef enum:
    DEVICE_FILES_MAX = 16
    DEVICE_NOWAIT = 1       # flag of device_read: -EAGAIN instead of waiting for the medium
    DEVICE_ALIGNMENT = 4096
    LATENCY_BUCKETS = 40    # bucket n counts durations in [2^n, 2^(n+1)) ns

cdef enum:
    # As `slot`: the header area of file 0 (superblocks); of file n: DEVICE_HEADER - n.
    DEVICE_HEADER = 0xFFFFFFFF

cdef struct latency_t:
    uint64_t count
    uint64_t total_ns
    uint64_t longest_ns
    uint64_t buckets[LATENCY_BUCKETS]

cdef struct device_file_t:
    int32_t fd
    uint32_t nowait_refused     # the file system cannot do RWF_NOWAIT: not asked again
    uint32_t written            # since the last fdatasync

cdef struct device_level_t:
    # Rounds of dealing in which the same files take part. Slots from `first_slot` on.
    uint32_t first_slot
    uint32_t first_index        # segment number inside each file
    uint32_t file_count
    uint8_t files[DEVICE_FILES_MAX]

cdef struct device_t:
    uint32_t kind
    uint32_t direct             # files are open with O_DIRECT
    uint32_t shared             # other processes write too: a sync syncs every file
    uint32_t file_count
    uint32_t segment_count
    uint32_t level_count
    uint64_t segment_bytes
    uint64_t first_data_offset  # in each file; the header area lies before it
    char *memory                # DEVICE_MEMORY: header area, then the segments
    void *python                # DEVICE_PYTHON
    int32_t sync_error          # errno of the first failed sync: every later one fails with it
    pthread_mutex_t sync_lock   # one fdatasync at a time; guards sync_error
    device_file_t files[DEVICE_FILES_MAX]
    device_level_t levels[DEVICE_FILES_MAX]
    # Statistics, relaxed.
    uint64_t bytes_read
    uint64_t bytes_written
    uint64_t read_errors
    uint64_t write_errors
    uint64_t sync_errors
    uint64_t reads_refused      # DEVICE_NOWAIT that would have blocked
    uint64_t bounced_bytes      # copied through an aligned buffer (O_DIRECT)
    latency_t read_latency
    latency_t write_latency
    latency_t sync_latency

# All three: any thread, no GIL needed. `offset` + `size` must lie inside the segment (-EINVAL).
# Size on success, else -errno. Short reads and writes are continued; the end of the file is
# -ENODATA. With O_DIRECT: unaligned reads and unaligned memory are copied through an aligned
# buffer (pieces of at most 1 MiB); a *write* whose offset or size is no multiple of
# DEVICE_ALIGNMENT is -EINVAL, and DEVICE_NOWAIT is always -EAGAIN.
cdef int64_t device_read(device_t *device, uint32_t slot, uint64_t offset, void *data,
                         uint64_t size, uint32_t flags) noexcept nogil
cdef int64_t device_write(device_t *device, uint32_t slot, uint64_t offset, const void *data,
                          uint64_t size) noexcept nogil
# fdatasync of every file written since the last one; covers every device_write that had returned
# before the call. 0 or -errno. After a failure every later call fails with the same errno.
cdef int device_sync(device_t *device) noexcept nogil
# Where a slot lies: file number, offset in that file. 0 or -EINVAL.
cdef int device_place(const device_t *device, uint32_t slot, uint32_t *file,
                      uint64_t *offset) noexcept nogil

cdef uint64_t now_ns() noexcept nogil               # monotonic
cdef void latency_add(latency_t *latency, uint64_t started_ns) noexcept nogil

cdef class DeviceHandle:
    cdef device_t device
    cdef readonly object owner      # keeps memory, object or descriptors alive
    cdef readonly tuple names       # of the files, for messages
    cdef object __weakref__

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
    cdef list _threads
    cdef object __weakref__
