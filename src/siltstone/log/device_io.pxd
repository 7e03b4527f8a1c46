"""Device I/O as C sees it. See device_io.pyx."""
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

from siltstone.log.latency cimport latency_t
from siltstone.log.pthread cimport pthread_mutex_t

cdef enum device_kind_t:
    DEVICE_FILES = 0
    DEVICE_MEMORY = 1
    DEVICE_PYTHON = 2       # an object with read(), write(), sync(); called with the GIL

cdef enum:
    DEVICE_FILES_MAX = 16
    DEVICE_NOWAIT = 1       # flag of device_read: -EAGAIN instead of waiting for the medium
    DEVICE_ALIGNMENT = 4096

cdef enum:
    # As `slot`: the header area of file 0 (superblocks); of file n: DEVICE_HEADER - n.
    DEVICE_HEADER = 0xFFFFFFFF

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
# Whether writing is a copy to the operating system, no more; and to have it begin with the medium.
cdef bint device_buffered(const device_t *device) noexcept nogil
cdef void device_write_back(device_t *device, uint32_t slot, uint64_t offset,
                            uint64_t size) noexcept nogil
# fdatasync of every file written since the last one; covers every device_write that had returned
# before the call. 0 or -errno. After a failure every later call fails with the same errno.
cdef int device_sync(device_t *device) noexcept nogil
# Where a slot lies: file number, offset in that file. 0 or -EINVAL.
cdef int device_place(const device_t *device, uint32_t slot, uint32_t *file,
                      uint64_t *offset) noexcept nogil

cdef class DeviceHandle:
    cdef device_t device
    cdef readonly object owner      # keeps memory, object or descriptors alive
    cdef readonly tuple names       # of the files, for messages
    cdef object __weakref__
