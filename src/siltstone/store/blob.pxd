"""Large values: pages of their own, named by a reference in the leaf. See blob.pyx."""
from libc.stdint cimport uint32_t, uint64_t

from siltstone.store.page cimport BLOB_HEADER_SIZE, BLOB_PIDS_MAX, PID_SIZE
from siltstone.store.pagecache cimport change_t, pages_t, snapshot_t

cdef enum:
    BLOB_REFERENCE_MAX = BLOB_HEADER_SIZE + BLOB_PIDS_MAX * PID_SIZE

cdef struct blob_writer_t:      # zero it, then blob_begin()
    change_t *change
    uint32_t part_size
    uint64_t size               # of what was written
    uint64_t *pids
    uint64_t count
    uint64_t capacity

# Part by part, each of part_size bytes but the last, without the lock and the GIL.
cdef void blob_begin(blob_writer_t *writer, change_t *change, uint32_t part_size) noexcept nogil
cdef int blob_part(blob_writer_t *writer, const char *data, uint32_t size) noexcept nogil
# The reference (at most BLOB_REFERENCE_MAX bytes) that goes into the leaf; its size.
cdef int blob_finish(blob_writer_t *writer, char *reference, uint32_t *size) noexcept nogil
cdef void blob_end(blob_writer_t *writer) noexcept nogil
# All of it at once.
cdef int blob_write(change_t *change, const char *data, uint64_t size, uint32_t part_size,
                    char *reference, uint32_t *reference_size) noexcept nogil

cdef uint64_t blob_size(const char *reference) noexcept nogil
# Bytes [offset, offset + size) as of a snapshot, without the lock and the GIL. *missing: the page
# that could not be read.
cdef int blob_read(pages_t *pages, const snapshot_t *snapshot, const char *reference,
                   uint32_t reference_size, uint64_t offset, char *out, uint64_t size,
                   uint64_t *missing) noexcept nogil
# Add the freeing of its pages to a change, under the lock. PAGES_MISS: *missing has to be loaded.
cdef int blob_free(change_t *change, const char *reference, uint32_t size,
                   uint64_t *missing) noexcept nogil
