"""All threads and all device I/O: the second half of the seam to the operating system.

Owns: reading, writing and syncing a device (files, memory, or a Python object in tests), the
bounded worker pool, and the lists through which finished jobs come back. Promises: no call holds
the GIL (except for Python devices), short reads and writes are continued, every error reaches the
caller, is counted, and a failed sync stays failed: the kernel may have dropped the dirty pages, so
a later success would mean nothing. Called from any thread; opening is log/device.py's.

One queue serves all workers of a pool: who is idle takes the oldest job, which is what dealing to
the shortest queue aims at, without a job ever waiting behind a slow one while a thread is idle.
"""
import os
import threading
import weakref

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.errno cimport EAGAIN, EINTR, EINVAL, EIO, ENODATA, ENOMEM, EOPNOTSUPP, ESHUTDOWN, errno
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport free
from libc.string cimport memcpy, memset

from siltstone.errors import Closed, DeviceFailed
from siltstone.log.atomics cimport add64, load32, load64_relaxed, store32

cdef extern from "<pthread.h>" nogil:
    int pthread_mutex_init(pthread_mutex_t *, const void *)
    int pthread_mutex_destroy(pthread_mutex_t *)
    int pthread_mutex_lock(pthread_mutex_t *)
    int pthread_mutex_unlock(pthread_mutex_t *)
    int pthread_cond_init(pthread_cond_t *, const void *)
    int pthread_cond_destroy(pthread_cond_t *)
    int pthread_cond_wait(pthread_cond_t *, pthread_mutex_t *)
    int pthread_cond_signal(pthread_cond_t *)
    int pthread_cond_broadcast(pthread_cond_t *)

cdef extern from *:
    """
    #include <errno.h>
    #include <fcntl.h>
    #include <poll.h>
    #include <pthread.h>
    #include <stdint.h>
    #include <stdlib.h>
    #include <sys/eventfd.h>
    #include <sys/uio.h>
    #include <time.h>
    #include <unistd.h>

    static int64_t silt_pread(int fd, void *data, uint64_t size, uint64_t offset) {
        ssize_t got = pread(fd, data, size, (off_t)offset);
        return got >= 0 ? got : -errno;
    }
    static int64_t silt_pread_nowait(int fd, void *data, uint64_t size, uint64_t offset) {
    #ifdef RWF_NOWAIT
        struct iovec part = {data, size};
        ssize_t got = preadv2(fd, &part, 1, (off_t)offset, RWF_NOWAIT);
        return got >= 0 ? got : -errno;
    #else
        return -EOPNOTSUPP;
    #endif
    }
    static int64_t silt_pwrite(int fd, const void *data, uint64_t size, uint64_t offset) {
        ssize_t put = pwrite(fd, data, size, (off_t)offset);
        return put >= 0 ? put : -errno;
    }
    static int silt_fdatasync(int fd) { return fdatasync(fd) == 0 ? 0 : -errno; }
    static void *silt_aligned(uint64_t size) {
        void *memory = NULL;
        return posix_memalign(&memory, 4096, size) == 0 ? memory : NULL;
    }
    static uint64_t silt_now_ns(void) {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
    }
    static int silt_log2(uint64_t value) { return 63 - __builtin_clzll(value | 1); }
    static uint32_t silt_exchange32(uint32_t *word, uint32_t value) {
        return __atomic_exchange_n(word, value, __ATOMIC_ACQ_REL);
    }
    static void silt_largest(uint64_t *word, uint64_t value) {
        uint64_t seen = __atomic_load_n(word, __ATOMIC_RELAXED);
        while (seen < value && !__atomic_compare_exchange_n(word, &seen, value, 1,
                                                            __ATOMIC_RELAXED, __ATOMIC_RELAXED))
            ;
    }
    static int silt_punch(int fd, uint64_t offset, uint64_t size) {
        return fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                         (off_t)offset, (off_t)size) == 0 ? 0 : -errno;
    }
    static int silt_eventfd(void) { return eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC); }
    static void silt_eventfd_set(int fd) {
        uint64_t one = 1;
        ssize_t put;
        do put = write(fd, &one, 8); while (put < 0 && errno == EINTR);
    }
    static void silt_eventfd_clear(int fd) {
        uint64_t count;
        ssize_t got;
        do got = read(fd, &count, 8); while (got < 0 && errno == EINTR);
    }
    static int silt_poll(int fd, int timeout_ms) {
        struct pollfd one = {fd, POLLIN, 0};
        return poll(&one, 1, timeout_ms);
    }
    """
    int64_t c_pread "silt_pread"(int, void *, uint64_t, uint64_t) noexcept nogil
    int64_t c_pread_nowait "silt_pread_nowait"(int, void *, uint64_t, uint64_t) noexcept nogil
    int64_t c_pwrite "silt_pwrite"(int, const void *, uint64_t, uint64_t) noexcept nogil
    int c_fdatasync "silt_fdatasync"(int) noexcept nogil
    void *c_aligned "silt_aligned"(uint64_t) noexcept nogil
    uint64_t c_now_ns "silt_now_ns"() noexcept nogil
    int c_log2 "silt_log2"(uint64_t) noexcept nogil
    uint32_t exchange32 "silt_exchange32"(uint32_t *, uint32_t) noexcept nogil
    void c_largest "silt_largest"(uint64_t *, uint64_t) noexcept nogil
    int c_punch "silt_punch"(int, uint64_t, uint64_t) noexcept nogil
    int c_eventfd "silt_eventfd"() noexcept nogil
    void c_eventfd_set "silt_eventfd_set"(int) noexcept nogil
    void c_eventfd_clear "silt_eventfd_clear"(int) noexcept nogil
    int c_poll "silt_poll"(int, int) noexcept nogil
    int c_close "close"(int) noexcept nogil

cdef enum:
    BOUNCE_BYTES = 1 << 20


cdef uint64_t now_ns() noexcept nogil:
    return c_now_ns()


cdef void latency_add(latency_t *latency, uint64_t started_ns) noexcept nogil:
    cdef uint64_t duration_ns = c_now_ns() - started_ns
    cdef int bucket = c_log2(duration_ns)
    if bucket >= LATENCY_BUCKETS:
        bucket = LATENCY_BUCKETS - 1
    add64(&latency.count, 1)
    add64(&latency.total_ns, duration_ns)
    add64(&latency.buckets[bucket], 1)
    c_largest(&latency.longest_ns, duration_ns)


cdef dict latency_dict(latency_t *latency):
    return {
        "count": load64_relaxed(&latency.count),
        "total_ns": load64_relaxed(&latency.total_ns),
        "longest_ns": load64_relaxed(&latency.longest_ns),
        "buckets": [load64_relaxed(&latency.buckets[i]) for i in range(LATENCY_BUCKETS)],
    }


# Where a slot lies -------------------------------------------------------------------------------


cdef int device_place(const device_t *device, uint32_t slot, uint32_t *file,
                      uint64_t *offset) noexcept nogil:
    cdef uint32_t level, rank, of_level
    if slot > <uint32_t>DEVICE_HEADER - device.file_count:
        file[0] = <uint32_t>DEVICE_HEADER - slot
        offset[0] = 0
        return 0
    if slot >= device.segment_count:
        return -EINVAL
    level = device.level_count - 1
    while device.levels[level].first_slot > slot:
        level -= 1
    rank = slot - device.levels[level].first_slot
    of_level = device.levels[level].file_count
    file[0] = device.levels[level].files[rank % of_level]
    offset[0] = device.first_data_offset + (
        <uint64_t>(device.levels[level].first_index + rank // of_level) * device.segment_bytes)
    return 0


cdef int place_levels(device_t *device, list counts) except -1:
    """Deal the slots round-robin: files of equal count share all rounds, longer ones go on."""
    cdef uint32_t level = 0, dealt = 0, index = 0
    for end in sorted(set(counts)):
        taking_part = [number for number, count in enumerate(counts) if count >= end]
        device.levels[level].first_slot = dealt
        device.levels[level].first_index = index
        device.levels[level].file_count = <uint32_t>len(taking_part)
        for rank, number in enumerate(taking_part):
            device.levels[level].files[rank] = <uint8_t>number
        dealt += <uint32_t>((end - index) * len(taking_part))
        index = end
        level += 1
    device.level_count = level
    device.segment_count = dealt
    return 0


cdef inline bint inside(const device_t *device, uint32_t slot, uint64_t offset,
                        uint64_t size) noexcept nogil:
    cdef uint64_t limit = device.segment_bytes
    if slot > <uint32_t>DEVICE_HEADER - DEVICE_FILES_MAX:
        limit = device.first_data_offset
    return size <= limit and offset <= limit - size


# Reading -----------------------------------------------------------------------------------------


cdef int64_t read_plain(int fd, uint64_t offset, char *data, uint64_t size) noexcept nogil:
    cdef uint64_t done = 0
    cdef int64_t got
    while done < size:
        got = c_pread(fd, data + done, size - done, offset + done)
        if got == -EINTR:
            continue
        if got < 0:
            return got
        if got == 0:
            return -ENODATA
        done += <uint64_t>got
    return <int64_t>size


cdef int64_t read_nowait(device_t *device, device_file_t *file, uint64_t offset, char *data,
                         uint64_t size) noexcept nogil:
    cdef int64_t got
    if device.direct or load32(&file.nowait_refused):
        return -EAGAIN
    got = c_pread_nowait(file.fd, data, size, offset)
    if got == <int64_t>size or size == 0:
        return <int64_t>size
    if got == -EOPNOTSUPP:
        store32(&file.nowait_refused, 1)
    if got >= 0 or got == -EOPNOTSUPP or got == -EINTR:
        return -EAGAIN      # partly in memory, or not to be had without waiting
    return got


cdef int64_t read_bounced(device_t *device, int fd, uint64_t offset, char *data,
                          uint64_t size) noexcept nogil:
    """O_DIRECT wants aligned memory, offset and size: read the blocks around, copy the middle."""
    cdef uint64_t first = offset - offset % DEVICE_ALIGNMENT
    cdef uint64_t end = (offset + size + DEVICE_ALIGNMENT - 1) // DEVICE_ALIGNMENT
    cdef uint64_t piece, skip, use, done = 0
    cdef int64_t got
    end *= DEVICE_ALIGNMENT
    cdef char *bounce = <char *>c_aligned(min(<uint64_t>BOUNCE_BYTES, end - first))
    if bounce == NULL:
        return -ENOMEM
    while done < size:
        piece = min(<uint64_t>BOUNCE_BYTES, end - first)
        got = read_plain(fd, first, bounce, piece)
        if got < 0:
            free(bounce)
            return got
        skip = offset + done - first
        use = min(piece - skip, size - done)
        memcpy(data + done, bounce + skip, use)
        done += use
        first += piece
    free(bounce)
    add64(&device.bounced_bytes, size)
    return <int64_t>size


cdef int64_t read_files(device_t *device, uint32_t slot, uint64_t offset, char *data,
                        uint64_t size, uint32_t flags) noexcept nogil:
    cdef uint32_t number = 0
    cdef uint64_t start = 0
    if device_place(device, slot, &number, &start) != 0:
        return -EINVAL
    start += offset
    if flags & DEVICE_NOWAIT:
        return read_nowait(device, &device.files[number], start, data, size)
    if device.direct and (start | size | <uint64_t><uintptr_t>data) % DEVICE_ALIGNMENT:
        return read_bounced(device, device.files[number].fd, start, data, size)
    return read_plain(device.files[number].fd, start, data, size)


cdef char *memory_address(device_t *device, uint32_t slot, uint64_t offset) noexcept nogil:
    if slot == <uint32_t>DEVICE_HEADER:
        return device.memory + offset
    if slot >= device.segment_count:
        return NULL
    return device.memory + device.first_data_offset + slot * device.segment_bytes + offset


cdef int64_t read_python(device_t *device, uint32_t slot, uint64_t offset, char *data,
                         uint64_t size, uint32_t flags) noexcept with gil:
    try:
        found = bytes((<object>device.python).read(slot, offset, size, flags))
        if <uint64_t>len(found) != size:
            return -ENODATA
        memcpy(data, PyBytes_AS_STRING(found), size)
        return <int64_t>size
    except OSError as error:
        return -<int64_t>(error.errno or EIO)
    except Exception:
        return -EIO


cdef int64_t device_read(device_t *device, uint32_t slot, uint64_t offset, void *data,
                         uint64_t size, uint32_t flags) noexcept nogil:
    cdef uint64_t started_ns = c_now_ns()
    cdef char *memory
    cdef int64_t result = -EINVAL
    if not inside(device, slot, offset, size):
        return -EINVAL
    if device.kind == DEVICE_FILES:
        result = read_files(device, slot, offset, <char *>data, size, flags)
    elif device.kind == DEVICE_MEMORY:
        memory = memory_address(device, slot, offset)
        if memory != NULL:
            memcpy(data, memory, size)
            result = <int64_t>size
    else:
        result = read_python(device, slot, offset, <char *>data, size, flags)
    if result >= 0:
        add64(&device.bytes_read, size)
        latency_add(&device.read_latency, started_ns)
    elif result == -EAGAIN:
        add64(&device.reads_refused, 1)
    else:
        add64(&device.read_errors, 1)
    return result


# Writing and syncing -----------------------------------------------------------------------------


cdef int64_t write_plain(int fd, uint64_t offset, const char *data, uint64_t size) noexcept nogil:
    cdef uint64_t done = 0
    cdef int64_t put
    while done < size:
        put = c_pwrite(fd, data + done, size - done, offset + done)
        if put == -EINTR:
            continue
        if put < 0:
            return put
        if put == 0:
            return -EIO     # a regular file never does this; do not loop for ever if one does
        done += <uint64_t>put
    return <int64_t>size


cdef int64_t write_bounced(device_t *device, int fd, uint64_t offset, const char *data,
                           uint64_t size) noexcept nogil:
    cdef uint64_t done = 0, piece
    cdef int64_t put
    cdef char *bounce = <char *>c_aligned(min(<uint64_t>BOUNCE_BYTES, size))
    if bounce == NULL:
        return -ENOMEM
    while done < size:
        piece = min(<uint64_t>BOUNCE_BYTES, size - done)
        memcpy(bounce, data + done, piece)
        put = write_plain(fd, offset + done, bounce, piece)
        if put < 0:
            free(bounce)
            return put
        done += piece
    free(bounce)
    add64(&device.bounced_bytes, size)
    return <int64_t>size


cdef int64_t write_files(device_t *device, uint32_t slot, uint64_t offset, const char *data,
                         uint64_t size) noexcept nogil:
    cdef uint32_t number = 0
    cdef uint64_t start = 0
    cdef int64_t result
    if device_place(device, slot, &number, &start) != 0:
        return -EINVAL
    start += offset
    if device.direct and (start | size) % DEVICE_ALIGNMENT:
        return -EINVAL
    if device.direct and <uint64_t><uintptr_t>data % DEVICE_ALIGNMENT:
        result = write_bounced(device, device.files[number].fd, start, data, size)
    else:
        result = write_plain(device.files[number].fd, start, data, size)
    # Set after the write, not before: a sync that runs in between must not count it as covered.
    store32(&device.files[number].written, 1)
    return result


cdef int64_t write_python(device_t *device, uint32_t slot, uint64_t offset, const char *data,
                          uint64_t size) noexcept with gil:
    try:
        (<object>device.python).write(slot, offset, data[:size])
        return <int64_t>size
    except OSError as error:
        return -<int64_t>(error.errno or EIO)
    except Exception:
        return -EIO


cdef int64_t device_write(device_t *device, uint32_t slot, uint64_t offset, const void *data,
                          uint64_t size) noexcept nogil:
    cdef uint64_t started_ns = c_now_ns()
    cdef char *memory
    cdef int64_t result = -EINVAL
    if not inside(device, slot, offset, size):
        return -EINVAL
    if device.kind == DEVICE_FILES:
        result = write_files(device, slot, offset, <const char *>data, size)
    elif device.kind == DEVICE_MEMORY:
        memory = memory_address(device, slot, offset)
        if memory != NULL:
            memcpy(memory, data, size)
            result = <int64_t>size
    else:
        result = write_python(device, slot, offset, <const char *>data, size)
    if result >= 0:
        add64(&device.bytes_written, size)
        latency_add(&device.write_latency, started_ns)
    else:
        add64(&device.write_errors, 1)
    return result


cdef int sync_python(device_t *device) noexcept with gil:
    try:
        (<object>device.python).sync()
        return 0
    except OSError as error:
        return -<int>(error.errno or EIO)
    except Exception:
        return -EIO


cdef int sync_files(device_t *device) noexcept nogil:
    cdef uint32_t number
    cdef int result
    for number in range(device.file_count):
        if exchange32(&device.files[number].written, 0) or device.shared:
            result = c_fdatasync(device.files[number].fd)
            while result == -EINTR:
                result = c_fdatasync(device.files[number].fd)
            if result != 0:
                return result
    return 0


cdef int device_sync(device_t *device) noexcept nogil:
    cdef uint64_t started_ns = c_now_ns()
    cdef int result
    pthread_mutex_lock(&device.sync_lock)
    result = -device.sync_error
    if result == 0:
        if device.kind == DEVICE_FILES:
            result = sync_files(device)
        elif device.kind == DEVICE_PYTHON:
            result = sync_python(device)
        if result == 0:
            latency_add(&device.sync_latency, started_ns)
        else:
            device.sync_error = -result
            add64(&device.sync_errors, 1)
    pthread_mutex_unlock(&device.sync_lock)
    return result


# The device as Python sees it --------------------------------------------------------------------


cdef class DeviceHandle:
    """A device's C structure and plain reading and writing for the control plane.

    Made by log/device.py; `owner` keeps alive what the structure points to.
    """

    def __cinit__(self):
        pthread_mutex_init(&self.device.sync_lock, NULL)
        _every_child_renews.add(self)

    def __dealloc__(self):
        pthread_mutex_destroy(&self.device.sync_lock)

    def _after_fork(self):
        """The thread that was at a sync did not come along."""
        pthread_mutex_init(&self.device.sync_lock, NULL)

    @staticmethod
    def of_files(descriptors, counts, segment_bytes, first_data_offset, *, direct=False,
                 shared=False, names=(), owner=None):
        """Over open descriptors; `counts` = segments of each file."""
        cdef DeviceHandle handle = DeviceHandle()
        if not 1 <= len(descriptors) <= DEVICE_FILES_MAX or len(descriptors) != len(counts):
            raise ValueError(f"a device has 1 to {DEVICE_FILES_MAX} files")
        handle.device.kind = DEVICE_FILES
        handle.device.direct = direct
        handle.device.shared = shared
        handle.device.file_count = <uint32_t>len(descriptors)
        handle.device.segment_bytes = segment_bytes
        handle.device.first_data_offset = first_data_offset
        for number, descriptor in enumerate(descriptors):
            handle.device.files[number].fd = descriptor
        place_levels(&handle.device, list(counts))
        handle.owner, handle.names = owner, tuple(names)
        return handle

    @staticmethod
    def of_memory(unsigned char[::1] memory not None, segment_bytes, segment_count,
                  first_data_offset):
        """Over a block of memory: header area, then the segments."""
        cdef DeviceHandle handle = DeviceHandle()
        if memory.shape[0] != first_data_offset + segment_bytes * segment_count:
            raise ValueError("the memory is not header area plus segments")
        handle.device.kind = DEVICE_MEMORY
        handle.device.file_count = 1
        place_levels(&handle.device, [segment_count])
        handle.device.segment_bytes = segment_bytes
        handle.device.first_data_offset = first_data_offset
        handle.device.memory = <char *>&memory[0]
        handle.owner, handle.names = memory, ("memory",)
        return handle

    @staticmethod
    def of_object(target, segment_bytes, segment_count, first_data_offset, name=None):
        """Over an object with read(slot, offset, size, flags), write(slot, offset, data), sync."""
        cdef DeviceHandle handle = DeviceHandle()
        handle.device.kind = DEVICE_PYTHON
        handle.device.file_count = 1
        place_levels(&handle.device, [segment_count])
        handle.device.segment_bytes = segment_bytes
        handle.device.first_data_offset = first_data_offset
        handle.device.python = <void *>target
        handle.owner, handle.names = target, (name or type(target).__name__,)
        return handle

    @property
    def segment_bytes(self):
        return self.device.segment_bytes

    @property
    def segment_count(self):
        return self.device.segment_count

    @property
    def first_data_offset(self):
        return self.device.first_data_offset

    def place(self, uint32_t slot):
        """(file number, offset in that file) of a slot."""
        cdef uint32_t number = 0
        cdef uint64_t offset = 0
        if device_place(&self.device, slot, &number, &offset) != 0:
            raise ValueError(f"no slot {slot}: the device has {self.device.segment_count}")
        return number, offset

    def describe(self, uint32_t slot, uint64_t offset):
        """'name, offset N' for messages."""
        cdef uint32_t number = 0
        cdef uint64_t start = 0
        if device_place(&self.device, slot, &number, &start) != 0 or number >= len(self.names):
            return f"slot {slot}, offset {offset}"
        return f"{self.names[number]}, offset {start + offset}"

    def read(self, uint32_t slot, uint64_t offset, uint64_t size, uint32_t flags=0):
        """`size` bytes; DeviceFailed otherwise (errno ENODATA: the file ends before)."""
        cdef int64_t result
        if not inside(&self.device, slot, offset, size):
            raise self._failed("read", slot, offset, EINVAL)
        cdef bytes data = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>size)
        cdef char *target = PyBytes_AS_STRING(data)
        with nogil:
            result = device_read(&self.device, slot, offset, target, size, flags)
        if result < 0:
            raise self._failed("read", slot, offset, <int>-result)
        return data

    def write(self, uint32_t slot, uint64_t offset, const unsigned char[::1] data not None):
        cdef int64_t result = 0
        cdef uint64_t size = <uint64_t>data.shape[0]
        if size:
            with nogil:
                result = device_write(&self.device, slot, offset, &data[0], size)
        if result < 0:
            raise self._failed("write", slot, offset, <int>-result)

    def sync(self):
        cdef int result
        with nogil:
            result = device_sync(&self.device)
        if result < 0:
            raise DeviceFailed(-result, f"sync of {', '.join(self.names)} failed: "
                               f"{os.strerror(-result)}")

    def mark_written(self):
        """Let the next sync cover every file: another process may have left unsynced bytes."""
        for number in range(self.device.file_count):
            store32(&self.device.files[number].written, 1)

    def _failed(self, what, slot, offset, number):
        text = "the file ends before" if number == ENODATA else os.strerror(number)
        return DeviceFailed(number, f"{what} failed at {self.describe(slot, offset)}: {text}")

    def stats(self):
        """Counters and latency histograms since opening, of this process."""
        cdef device_t *device = &self.device
        return {
            "bytes_read": load64_relaxed(&device.bytes_read),
            "bytes_written": load64_relaxed(&device.bytes_written),
            "read_errors": load64_relaxed(&device.read_errors),
            "write_errors": load64_relaxed(&device.write_errors),
            "sync_errors": load64_relaxed(&device.sync_errors),
            "reads_refused": load64_relaxed(&device.reads_refused),
            "bounced_bytes": load64_relaxed(&device.bounced_bytes),
            "read_latency": latency_dict(&device.read_latency),
            "write_latency": latency_dict(&device.write_latency),
            "sync_latency": latency_dict(&device.sync_latency),
        }


def punch_hole(int fd, uint64_t offset, uint64_t size):
    """Give the blocks of that range back to the file system; they read as zeros."""
    cdef int result
    with nogil:
        result = c_punch(fd, offset, size)
    if result < 0:
        raise OSError(-result, os.strerror(-result))


def read_at(fd, offset, size):
    """What a lock file says: at most `size` bytes from `offset`."""
    return os.pread(fd, size, offset)


def write_at(fd, offset, data, sync=False):
    os.pwrite(fd, data, offset)
    if sync:
        os.fdatasync(fd)


# Finished jobs -----------------------------------------------------------------------------------


cdef void completions_push(completions_t *completions, job_t *job) noexcept nogil:
    cdef bint first
    job.next = NULL
    pthread_mutex_lock(&completions.lock)
    first = completions.head == NULL
    if first:
        completions.head = job
    else:
        completions.tail.next = job
    completions.tail = job
    completions.count += 1
    # Inside the lock, so that close() cannot take the descriptor away in between.
    if first and completions.fd >= 0:
        c_eventfd_set(completions.fd)
    pthread_mutex_unlock(&completions.lock)


cdef job_t *completions_take(completions_t *completions) noexcept nogil:
    cdef job_t *jobs
    # Cleared before the list is taken: what is pushed in between is taken too, or sets it again.
    if completions.fd >= 0:
        c_eventfd_clear(completions.fd)
    pthread_mutex_lock(&completions.lock)
    jobs = completions.head
    completions.head = NULL
    completions.tail = NULL
    pthread_mutex_unlock(&completions.lock)
    return jobs


cdef class Completions:
    """Finished jobs on their way back to one event loop; `fileno()` is readable when some wait."""

    def __cinit__(self):
        memset(&self.list, 0, sizeof(completions_t))
        pthread_mutex_init(&self.list.lock, NULL)
        self.list.fd = c_eventfd()
        if self.list.fd < 0:
            raise OSError(errno, "no eventfd could be had")
        _every_child_renews.add(self)

    def __dealloc__(self):
        if self.list.fd >= 0:
            c_close(self.list.fd)
        pthread_mutex_destroy(&self.list.lock)

    def fileno(self):
        return self.list.fd

    def wait(self, int timeout_ms=-1):
        """Whether something is there, after at most `timeout_ms` (-1: no limit)."""
        cdef int ready
        with nogil:
            ready = c_poll(self.list.fd, timeout_ms)
        return ready > 0

    def close(self):
        """No more wake-ups; jobs that finish later are still listed."""
        pthread_mutex_lock(&self.list.lock)
        cdef int fd = self.list.fd
        self.list.fd = -1
        pthread_mutex_unlock(&self.list.lock)
        if fd >= 0:
            c_close(fd)

    def _after_fork(self):
        """The child has its own list: what is under way belongs to the parent."""
        pthread_mutex_init(&self.list.lock, NULL)
        self.list.head = self.list.tail = NULL
        if self.list.fd >= 0:
            c_close(self.list.fd)
            self.list.fd = c_eventfd()


# The pool ----------------------------------------------------------------------------------------


cdef inline void job_run(pool_t *pool, job_t *job) noexcept nogil:
    # Read before `run`: with no completions list the job may be gone afterwards.
    cdef completions_t *completions = job.completions
    cdef uint64_t started_ns = c_now_ns()
    latency_add(&pool.waiting, job.submitted_ns)
    job.run(job)
    latency_add(&pool.running, started_ns)
    if completions != NULL:
        completions_push(completions, job)


cdef void pool_work(pool_t *pool) noexcept nogil:
    """A worker's whole life: until the pool closes and its queue is empty."""
    cdef job_t *job
    pthread_mutex_lock(&pool.lock)
    while True:
        while pool.head == NULL and not pool.closing:
            pool.threads_idle += 1
            pthread_cond_wait(&pool.work, &pool.lock)
            pool.threads_idle -= 1
        job = pool.head
        if job == NULL:
            break
        pool.head = job.next
        if pool.head == NULL:
            pool.tail = NULL
        pool.queued -= 1
        pthread_mutex_unlock(&pool.lock)
        job_run(pool, job)
        pthread_mutex_lock(&pool.lock)
    pthread_mutex_unlock(&pool.lock)


cdef void pool_start(pool_t *pool) noexcept with gil:
    (<WorkerPool>pool.owner)._start()


cdef int pool_submit(pool_t *pool, job_t *job) noexcept nogil:
    cdef int result = 0
    job.next = NULL
    job.submitted_ns = c_now_ns()
    if pool.closing:
        return -ESHUTDOWN
    add64(&pool.jobs, 1)
    if pool.threads_wanted == 0:
        job_run(pool, job)
        return 0
    if not load32(&pool.started):
        pool_start(pool)
    pthread_mutex_lock(&pool.lock)
    if pool.closing:
        result = -ESHUTDOWN
    elif pool.queued >= pool.queued_max:
        result = -EAGAIN
        pool.refused += 1
    else:
        if pool.head == NULL:
            pool.head = job
        else:
            pool.tail.next = job
        pool.tail = job
        pool.queued += 1
        if pool.threads_idle:
            pthread_cond_signal(&pool.work)
    pthread_mutex_unlock(&pool.lock)
    return result


cdef class PythonJob:
    """A Python call as a job: for the control plane and tests, not for the data plane."""
    cdef job_t job
    cdef object function


cdef void python_job_run(job_t *job) noexcept with gil:
    cdef PythonJob self = <PythonJob>job.owner
    try:
        self.function()
    except BaseException as error:
        threading.excepthook(threading.ExceptHookArgs(
            (type(error), error, error.__traceback__, threading.current_thread())))
    Py_DECREF(self)


cdef class WorkerPool:
    """A bounded number of threads that run jobs without the GIL.

    Threads start at first use, in a forked child again at its first use (jobs that the parent had
    under way stay the parent's). close() lets the queue run dry and joins.
    """

    def __cinit__(self, int threads=4, *, int queued_max=4096, str name="siltstone-worker"):
        if threads < 0 or queued_max < 1:
            raise ValueError("a pool has 0 or more threads and room for 1 or more jobs")
        memset(&self.pool, 0, sizeof(pool_t))
        pthread_mutex_init(&self.pool.lock, NULL)
        pthread_cond_init(&self.pool.work, NULL)
        self.pool.threads_wanted = threads
        self.pool.queued_max = queued_max
        self.pool.owner = <void *>self
        self.name = name
        self._threads = []
        _every_child_renews.add(self)

    def __dealloc__(self):
        # Threads hold a reference, so none is alive here.
        pthread_cond_destroy(&self.pool.work)
        pthread_mutex_destroy(&self.pool.lock)

    def _start(self):
        with _start_lock:
            if self.pool.started or self.pool.closing:
                return
            for number in range(self.pool.threads_wanted):
                thread = threading.Thread(target=self._work, name=f"{self.name}-{number}",
                                          daemon=True)
                thread.start()
                self._threads.append(thread)
            store32(&self.pool.started, 1)

    def _work(self):
        with nogil:
            pool_work(&self.pool)

    def submit(self, function):
        """Run `function()` on a worker. BlockingIOError when the queue is full."""
        cdef PythonJob work = PythonJob()
        cdef int result
        work.function = function
        work.job.run = python_job_run
        work.job.owner = <void *>work
        Py_INCREF(work)
        with nogil:
            result = pool_submit(&self.pool, &work.job)
        if result != 0:
            Py_DECREF(work)
            if result == -ESHUTDOWN:
                raise Closed(f"{self.name}: the pool is closed")
            raise BlockingIOError(EAGAIN, f"{self.name}: {self.pool.queued_max} jobs wait already")

    def close(self):
        """Refuse new jobs, finish those that were accepted, end the threads. Idempotent."""
        with nogil:
            pthread_mutex_lock(&self.pool.lock)
            self.pool.closing = 1
            pthread_cond_broadcast(&self.pool.work)
            pthread_mutex_unlock(&self.pool.lock)
        with _start_lock:
            threads, self._threads = self._threads, []
        for thread in threads:
            thread.join()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _after_fork(self):
        """The threads are the parent's; so are its queued jobs. Locks may be held by nobody."""
        pthread_mutex_init(&self.pool.lock, NULL)
        pthread_cond_init(&self.pool.work, NULL)
        self.pool.head = self.pool.tail = NULL
        self.pool.queued = self.pool.threads_idle = self.pool.started = 0
        self._threads = []

    @property
    def threads(self):
        return self.pool.threads_wanted

    def stats(self):
        return {
            "threads": self.pool.threads_wanted,
            "queued": self.pool.queued,
            "jobs": load64_relaxed(&self.pool.jobs),
            "refused": load64_relaxed(&self.pool.refused),
            "waiting_latency": latency_dict(&self.pool.waiting),
            "running_latency": latency_dict(&self.pool.running),
        }


_start_lock = threading.Lock()
_every_child_renews = weakref.WeakSet()


def _after_fork_in_child():
    global _start_lock
    _start_lock = threading.Lock()
    for what in list(_every_child_renews):
        what._after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)
