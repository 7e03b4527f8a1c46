"""The head: the newest samples of every live series, in memory. See head.pyx.

Order of locks: engine's -> head.lock -> the log's.
"""
from cpython.ref cimport PyObject
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from siltstone.log.log cimport part_t
from siltstone.log.ordered_log cimport OrderedLog
from siltstone.log.pthread cimport pthread_mutex_t

cdef enum:
    HEAD_SAMPLES = 256          # a series' head: 16 bytes each, 4 KiB
    ID_LATE = 0x80000000        # bit of an id in the journal: not in order
    CHUNK_LATE = 1              # flag of a chunk: its samples came out of order
    # Kinds of the journal's records. Layouts: docs/format.md.
    JOURNAL_SERIES = 1
    JOURNAL_POINTS = 2
    JOURNAL_RUN = 3
    # Results of put() beside the log's codes, which are 0 and above.
    PUT_REJECTED = -1           # older than the window: counted
    PUT_NO_MEMORY = -2

cdef struct series_t:
    int64_t newest              # ms; INT64_MIN: none
    int64_t derived             # tiers know all samples up to here; the engine's
    int64_t *times              # head, rising; `values` lies behind it
    double *values
    int64_t *late_times         # out of order, in the order of arrival
    double *late_values
    double last                 # value of the sample at `newest`, where has_last
    PyObject *key               # a reference of ours, and its bytes
    const char *key_data
    uint32_t key_size
    uint32_t id
    uint32_t epoch              # of the journal, in which its labels were written
    uint32_t handles
    uint16_t count
    uint16_t capacity
    uint16_t late_count
    uint16_t late_capacity
    uint8_t has_last

cdef packed struct chunk_t:
    # What a segment's descriptors say, too: docs/format.md. Offsets in memory: of the piece.
    uint32_t series
    uint32_t offset
    uint32_t size
    uint32_t count
    int64_t start_ms
    int64_t end_ms
    uint64_t sequence
    uint32_t crc
    uint32_t consumed           # samples that came, duplicates included
    uint16_t codec
    uint16_t flags
    uint32_t spare

cdef struct counters_t:
    uint64_t samples            # accepted
    uint64_t late
    uint64_t duplicates
    uint64_t rejected
    uint64_t sealed_chunks
    uint64_t sealed_samples
    uint64_t sealed_bytes
    uint64_t journal_bytes
    uint64_t journal_records

cdef class Head:
    cdef pthread_mutex_t lock
    cdef OrderedLog log
    cdef series_t **table       # by id
    cdef uint32_t table_size
    cdef readonly uint32_t live
    cdef uint32_t epoch
    cdef int64_t window_ms
    cdef public uint64_t sequence       # of the chunk sealed last
    cdef char *batch            # JOURNAL_POINTS to be
    cdef uint32_t batch_size
    cdef uint32_t batch_filled
    cdef char *labels           # JOURNAL_SERIES to be; goes before the batch
    cdef uint32_t labels_filled
    cdef chunk_t *chunks        # sealed, not collected
    cdef uint32_t chunk_count
    cdef uint32_t chunk_capacity
    cdef char *data
    cdef uint64_t data_size
    cdef uint64_t data_capacity
    cdef public uint64_t uncollected_max
    cdef public uint64_t journal_max    # bytes ever journaled at which a checkpoint is overdue
    cdef counters_t counters
    cdef int forks              # of the process when it was made; -1: closed
    cdef object _relieve
    cdef object _pressed
    cdef void take(self) noexcept
    cdef void drop(self) noexcept nogil
    cdef series_t *find(self, uint32_t id) except NULL
    cdef int put(self, series_t *series, int64_t time, double value, bint backfill) noexcept nogil
    cdef int flush_locked(self) noexcept nogil
    cdef bint seal_all(self) noexcept nogil
    cdef bint has_room(self) noexcept nogil
    cdef int refuse(self) except -1
    cdef int settle(self, int result) except -1
    cdef int64_t extend_at(self, series_t *series, const int64_t *times, const double *values,
                           int64_t count, bint backfill) except -1
    cdef int append_at(self, series_t *series, int64_t time, double value,
                       bint backfill) except -1
