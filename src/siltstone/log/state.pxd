"""The log's shared state: what lies in the arena's sections SECTION_LOG and SECTION_BUFFERS.

Offsets and indexes only, never pointers; `log_t` is the process's own view of it. Who may change
a field, and under which lock, is said at the field. Used by segments, buffers, scan and log; the
ordered streams of the store use the same structures.
"""
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from siltstone.log.arena cimport arena_t, lock_t
from siltstone.log.atomics cimport add64
from siltstone.log.device_io cimport device_t

cdef extern from *:
    """
    #ifndef SILT_FENCE_FULL
    #define SILT_FENCE_FULL
    /* Orders a store before a later load: whoever sets a live bit and looks at the version
       afterwards, against whoever removes the version and clears the bits afterwards. */
    #define silt_fence_full() __atomic_thread_fence(__ATOMIC_SEQ_CST)
    #endif
    """
    void fence_full "silt_fence_full"() noexcept nogil

cdef enum:
    LOG_LAYOUT_VERSION = 1
    STREAMS_MAX = 16
    BUFFERS_MAX = 4096
    SLOTS_MAX = 1 << 24             # a slot number is 24 bits of a version table entry
    STATISTICS_STRIPES = 16         # by process slot: processes do not share counter lines
    STREAM_ORDERED = 1              # stream_t.flags: the engine replays it in order
    FAILURES_MAX = 16               # buffer writes failed in a row: the log takes no more
    LIVE_CELL = 64                  # bytes of flash for one live bit

cdef enum segment_state_t:
    SEGMENT_FREE = 0
    SEGMENT_OPEN = 1                # a stream appends to it
    SEGMENT_SEALED = 2              # full; `settled` once all its buffers are on the device
    SEGMENT_DRAINING = 3            # forgotten; waits for its stream and its buffers to let go

cdef enum buffer_state_t:
    BUFFER_FREE = 0
    BUFFER_OPEN = 1                 # owner = stream
    BUFFER_SEALING = 2              # owner = stream; complete as it is, the stream lets go of it
    BUFFER_SEALED = 3
    BUFFER_WRITING = 4              # owner = process slot

cdef enum log_counter_t:
    # Index into statistics_t.counters; names in log.pyx, same order.
    STAT_DEVICE_READS = 0
    STAT_DEVICE_BYTES_READ
    STAT_DEVICE_WRITES
    STAT_DEVICE_BYTES_WRITTEN
    STAT_READ_ERRORS
    STAT_WRITE_ERRORS
    STAT_CHECKSUM_FAILURES
    STAT_BUFFER_READS               # answered from a write buffer
    STAT_READS_GONE
    STAT_READS_REFUSED              # LOG_NOWAIT, and the bytes were not in memory
    STAT_READ_RETRIES
    STAT_BUFFER_WAITS               # appends that found no free buffer
    STAT_SEGMENT_WAITS              # appends that found no free segment
    STAT_LOCK_BUSY
    STAT_BUFFERS_SEALED
    STAT_BUFFERS_LOST               # not written: error, or their segment was forgotten before
    STAT_BUFFERS_REPEATED           # written again for a writer that died
    STAT_SEGMENTS_OPENED
    STAT_SEGMENTS_SEALED
    STAT_SEGMENTS_FORGOTTEN         # with live records in them
    STAT_SEGMENTS_FREED             # nothing in them was live any more
    STAT_SEGMENTS_FAILED            # forgotten because a write to them failed
    STAT_STREAM_REPAIRS             # a process died holding a stream's lock
    STAT_TABLE_REPAIRS              # ... the segment table's lock
    STAT_LIVE_REFUSED               # log_live on a segment that was forgotten meanwhile
    STAT_BAD_OFFSETS
    STAT_COUNT = 32
    LATENCY_COUNT = 32              # bucket n counts durations in [2^n, 2^(n+1)) us, 0: < 2 us

cdef struct statistics_t:
    uint64_t counters[STAT_COUNT]
    uint64_t read_us[LATENCY_COUNT]
    uint64_t write_us[LATENCY_COUNT]

cdef struct segment_t:
    # Two cache lines: identity (changed under the segment table's lock), then counters.
    uint64_t version                # 0 = free
    uint32_t state
    uint32_t stream
    uint32_t salt
    uint32_t largest                # largest usual record, <= 16 KiB (stream's lock)
    uint32_t settled                # sealed and all its buffers are on the device
    uint32_t reserved_for           # stream + 1 that will go on here
    uint64_t previous_version
    uint32_t next_slots[2]
    int64_t opened_ms
    uint32_t file                   # of the device, on which the slot lies
    uint32_t spare
    # Offset of the append point | records << 32: one store publishes a record (stream's lock).
    uint64_t tail
    uint32_t live_records           # atomic; never below the bits that are set
    uint32_t spare_word
    uint64_t written_bytes          # atomic
    uint64_t spare_counters[5]

cdef struct stream_t:
    lock_t lock
    uint64_t version                # of its open segment (segment table's lock)
    uint32_t segment                # slot + 1, 0 = none (both locks)
    uint32_t buffer                 # index + 1, 0 = none (its own lock)
    uint64_t last_version           # of its segment before (both locks)
    uint32_t next_slots[2]          # slot + 1 chosen ahead (both locks)
    uint32_t flags
    uint32_t leaves                 # free segments that it leaves to other streams
    uint64_t files                  # a bit a device file that its segments may lie on
    uint64_t records                # appended, and their payload bytes (its own lock)
    uint64_t user_bytes
    uint64_t stable_position        # ordered streams
    uint64_t spare_words[15]

cdef struct buffer_t:
    # One cache line. `word` decides; the rest is written by the stream that has it open.
    uint64_t word                   # state 8 | owner 8 | stamp of the owning process 24 | turns 24
    uint64_t version                # whose run it holds; 0 = nothing to read here
    uint32_t slot
    uint32_t run_offset
    uint32_t capacity               # bytes of the run; once sealed = length
    uint32_t length                 # bytes that go to the device; 0 = not sealed
    uint64_t order                  # of sealing
    int64_t opened_ms
    uint64_t spare[2]

cdef struct log_header_t:
    uint64_t magic
    uint32_t layout_version
    uint32_t stream_count
    uint32_t segment_count
    uint32_t buffer_count
    uint64_t segment_bytes
    uint64_t buffer_bytes
    uint64_t version_mask
    uint64_t streams_offset         # all four from the section's start
    uint64_t segments_offset
    uint64_t versions_offset
    uint64_t buffers_offset
    uint8_t uuid[16]                # of the device
    uint64_t salt_secret[2]
    uint64_t seal_order
    int64_t clock_ms                # set by whoever knows the time (log_clock); appends read it
    uint32_t failed                 # errno of the failure that stopped the log; 0 = it runs
    uint32_t failures               # buffer writes failed in a row
    # Under segments_lock:
    lock_t segments_lock
    uint64_t last_version
    uint32_t segments_free
    uint32_t cursor                 # slots are taken in turn, so that all files work
    statistics_t statistics[STATISTICS_STRIPES]

cdef struct log_t:
    # A process's own view. Valid as long as its Log object.
    arena_t *arena
    log_header_t *header
    stream_t *streams
    segment_t *segments
    uint64_t *versions
    buffer_t *buffers
    char *data                      # buffer n starts at n * buffer_bytes
    uint64_t *live                  # the live map's bits, and whose they are
    uint64_t *live_versions
    uint64_t live_words             # a segment
    device_t *device
    statistics_t *statistics        # this process's stripe
    uint64_t segment_bytes          # copies of constants, so that reads touch fewer lines
    uint64_t version_mask
    uint32_t segment_count
    uint32_t buffer_count
    uint32_t process_slot
    # Does the process in this slot live? Buffers that a dead one was writing are written again.
    bint (*alive)(void *context, uint32_t slot) noexcept nogil
    void *alive_context
    uint64_t dead_slots[2]          # of the default predicate: slots known to be dead

cdef inline void count(log_t *log, int counter, uint64_t amount) noexcept nogil:
    add64(&log.statistics.counters[counter], amount)

cdef inline uint64_t tail_offset(uint64_t tail) noexcept nogil:
    return tail & <uint64_t>0xFFFFFFFF

cdef inline uint32_t tail_records(uint64_t tail) noexcept nogil:
    return <uint32_t>(tail >> 32)

cdef inline uint64_t tail_word(uint64_t offset, uint32_t records) noexcept nogil:
    return offset | (<uint64_t>records << 32)

cdef inline char *buffer_data(log_t *log, uint32_t index) noexcept nogil:
    return log.data + index * log.header.buffer_bytes
