"""Device I/O: reading, writing and syncing, the half of the seam that comes after opening.

Owns: the C structure of a device (files, memory, or a Python object in tests) and every pread,
pwrite and fdatasync. Promises: no call holds the GIL (except for Python devices), short reads and
writes are continued, every error reaches the caller, is counted, and a failed sync stays failed:
the kernel may have dropped the dirty pages, so a later success would mean nothing. Called from any
thread; opening is log/device.py's.
"""
import os

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.errno cimport EAGAIN, EINTR, EINVAL, EIO, ENODATA, ENOMEM, EOPNOTSUPP
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport free
from libc.string cimport memcpy

from siltstone.errors import DeviceFailed
from siltstone.log.atomics cimport add64, load32, load64_relaxed, store32
from siltstone.log.forked import every_child_renews
from siltstone.log.latency cimport latency_add, latency_dict, now_ns
from siltstone.log.pthread cimport (pthread_mutex_destroy, pthread_mutex_init, pthread_mutex_lock,
                                    pthread_mutex_unlock)
from siltstone.log.turns cimport turn_ask, turn_taken

cdef extern from *:
    """
    #include <errno.h>
    #include <fcntl.h>
    #include <stdint.h>
    #include <stdlib.h>
    #include <sys/uio.h>
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
    /* Only asked for: what comes of it fdatasync() says. */
    static void silt_write_back(int fd, uint64_t offset, uint64_t size) {
    #ifdef SYNC_FILE_RANGE_WRITE
        sync_file_range(fd, (off_t)offset, (off_t)size, SYNC_FILE_RANGE_WRITE);
    #endif
    }
    static int silt_fdatasync(int fd) { return fdatasync(fd) == 0 ? 0 : -errno; }
    static void *silt_aligned(uint64_t size) {
        void *memory = NULL;
        return posix_memalign(&memory, 4096, size) == 0 ? memory : NULL;
    }
    static uint32_t silt_exchange32(uint32_t *word, uint32_t value) {
        return __atomic_exchange_n(word, value, __ATOMIC_ACQ_REL);
    }
    static int silt_punch(int fd, uint64_t offset, uint64_t size) {
        return fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                         (off_t)offset, (off_t)size) == 0 ? 0 : -errno;
    }
    """
    int64_t c_pread "silt_pread"(int, void *, uint64_t, uint64_t) noexcept nogil
    int64_t c_pread_nowait "silt_pread_nowait"(int, void *, uint64_t, uint64_t) noexcept nogil
    int64_t c_pwrite "silt_pwrite"(int, const void *, uint64_t, uint64_t) noexcept nogil
    void c_write_back "silt_write_back"(int, uint64_t, uint64_t) noexcept nogil
    int c_fdatasync "silt_fdatasync"(int) noexcept nogil
    void *c_aligned "silt_aligned"(uint64_t) noexcept nogil
    uint32_t exchange32 "silt_exchange32"(uint32_t *, uint32_t) noexcept nogil
    int c_punch "silt_punch"(int, uint64_t, uint64_t) noexcept nogil

cdef enum:
    BOUNCE_BYTES = 1 << 20


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
    cdef uint64_t started_ns = now_ns()
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
    cdef uint64_t started_ns = now_ns()
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


cdef bint device_buffered(const device_t *device) noexcept nogil:
    return device.kind == DEVICE_FILES and not device.direct


cdef void device_write_back(device_t *device, uint32_t slot, uint64_t offset,
                            uint64_t size) noexcept nogil:
    cdef uint32_t number = 0
    cdef uint64_t base = 0
    if device_buffered(device) and device_place(device, slot, &number, &base) == 0:
        c_write_back(device.files[number].fd, base + offset, size)


cdef int device_sync(device_t *device) noexcept nogil:
    cdef uint64_t started_ns = now_ns()
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
        every_child_renews.add(self)

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

    def write(self, uint32_t slot, uint64_t offset, const unsigned char[::1] data not None,
              bint sync=False):
        """With `sync` durable, without asking for the GIL in between: that may take 5 ms."""
        cdef int64_t result = 0
        cdef int synced = 0
        cdef uint64_t size = <uint64_t>data.shape[0]
        with nogil:
            if size:
                result = device_write(&self.device, slot, offset, &data[0], size)
            if sync and result >= 0:
                synced = device_sync(&self.device)
            turn_ask()
        turn_taken()
        if result < 0:
            raise self._failed("write", slot, offset, <int>-result)
        self._check_sync(synced)

    def sync(self):
        cdef int result
        with nogil:
            result = device_sync(&self.device)
        self._check_sync(result)

    def _check_sync(self, int result):
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
