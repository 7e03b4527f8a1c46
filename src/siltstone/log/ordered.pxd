"""The ordered, durable stream as engines see it, without the GIL. See ordered.pyx.

Result codes are log.pxd's. Lock order: engine's locks -> stream.lock; nothing is taken inside it.
No call here may be made by a thread that holds a reservation and waits for itself: reserve()
waits at most `wait_ms` for a buffer, sync() as long for older reservations, then LOG_BUSY.
"""
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

from siltstone.log.device_io cimport device_t
from siltstone.log.latency cimport latency_t
from siltstone.log.log cimport part_t
from siltstone.log.pthread cimport pthread_cond_t, pthread_mutex_t
from siltstone.log.workers cimport job_t, pool_t

cdef enum:
    ORDERED_BUFFERS_MAX = 16
    ORDERED_RESERVATIONS_MAX = 256
    ORDERED_GROUPS_MAX = 256        # open at a time
    COMMIT_SIZE = 8 + 4 + 4         # group id, records, CRC of their checksums
    GROUP_ID_SIZE = 8
    GROUP_ENTERED = 1               # in the list of open groups: nothing is appended yet
    ORDERED_STREAM = 1              # its number in segment and run headers
    ORDERED_AHEAD = 2               # segments chosen, and made ready, before they are needed
    # Kinds of records. An engine's own are 1 .. ORDERED_KIND_MAX.
    ORDERED_KIND_MAX = 0x6F
    ORDERED_COMMIT = 0x70           # closes a group: commit_t, then the engine's bytes
    ORDERED_CHECKPOINT_PART = 0x71
    ORDERED_CHECKPOINT_END = 0x72
    ORDERED_GROUPED = 0x80          # bit: the payload starts with the group's id
    # Flag of a segment header: the stream was cut at its stable_position; between there and
    # this segment nothing counts.
    SEGMENT_AFTER_CUT = 1
    # Flags of appending.
    ORDERED_URGENT = 1              # may take the segments kept for reclaim and checkpoints

cdef enum segment_state_t:
    SEGMENT_FREE = 0
    SEGMENT_AHEAD = 1               # chosen as one of the next two
    SEGMENT_OPEN = 2
    SEGMENT_SEALED = 3
    SEGMENT_TAKEN = 4               # not the stream's: the engine keeps something else in the slot

cdef struct ordered_segment_t:
    uint64_t version
    uint32_t salt
    uint32_t state
    uint32_t filled                 # bytes, headers and padding included
    uint32_t records
    uint64_t live_bytes             # of engine records not yet declared dead
    uint64_t empty_since            # checkpoint that first saw no live bytes in it; 0 = none
    uint32_t pins                   # backup or snapshot: not to be reused
    uint32_t allocated              # its blocks were written at least once

cdef struct ordered_buffer_t:
    char *data
    char *tail                      # copy of the last block of a partial write
    uint64_t base                   # position of data[0]
    uint64_t sequence
    uint32_t slot
    uint32_t salt
    uint32_t offset                 # of data[0] in the segment
    uint32_t filled                 # bytes claimed
    uint32_t written                # bytes that the device has
    uint32_t sealed
    uint32_t writing                # by one thread at a time: blocks may be written twice
    uint32_t reservations
    uint32_t queued                 # its job is in the pool
    job_t job

cdef struct reservation_t:
    uint64_t position
    char *payload                   # write the payload here, then complete
    uint32_t size
    uint32_t index                  # into the stream's table
    uint8_t kind

cdef struct ordered_counters_t:
    uint64_t records
    uint64_t payload_bytes
    uint64_t pad_bytes              # sealed buffers and aborted reservations
    uint64_t rewritten_bytes        # of tail blocks written again
    uint64_t zeroed_bytes           # to grow
    uint64_t segments_opened
    uint64_t aborts
    uint64_t syncs
    uint64_t sync_calls
    uint64_t sync_shared            # calls that another thread's sync covered
    uint64_t buffer_waits
    uint64_t busy
    latency_t sync_latency          # of callers, waiting included

cdef struct open_reservation_t:
    uint64_t sequence               # buffer's; 0 = free entry
    uint32_t offset

cdef struct group_t:
    # A batch being appended; one thread's. Zero it before its first use.
    uint64_t id                     # position of its first record; 0 = none yet
    uint32_t records
    uint32_t crc                    # CRC32C of the records' checksums, in order
    uint32_t entry                  # in the stream's list of open groups, + 1

cdef struct ordered_t:
    device_t *device
    pool_t *pool                    # NULL: whoever needs it writes
    pthread_mutex_t lock            # guards all below
    pthread_cond_t changed          # written, stable, failed, reservations, buffers
    pthread_cond_t synced[4]        # the end of the sync whose number is this, modulo 4
    uint64_t segment_bytes
    uint32_t buffer_bytes
    uint32_t buffer_count
    uint32_t align_commits
    uint32_t slots_kept             # for reclaim and checkpoints
    uint32_t wait_ms
    int32_t failed                  # errno; sticky
    uint32_t closing
    uint8_t uuid[16]
    uint64_t salt_seed
    int64_t now_ms                  # for segment headers; set by the control plane
    # Segments
    ordered_segment_t *segments     # by slot
    uint32_t slot_capacity          # of `segments`
    uint32_t slot_limit             # the device's
    uint32_t slots_max              # that may be used, whichever they are
    uint32_t slots_used             # not SEGMENT_FREE
    uint32_t free_hint              # no free slot below
    uint64_t *table                 # by version & (table_size - 1): version << 24 | slot
    uint32_t table_size
    uint64_t version                # of the newest segment
    uint32_t slot
    uint64_t next_version_min
    uint32_t ahead[ORDERED_AHEAD]   # SLOT_NONE: not chosen
    uint32_t zeroing
    uint32_t prepare_queued
    job_t prepare_job
    uint32_t after_cut              # the next segment is the first since recovery
    # Buffers: a ring by sequence number
    ordered_buffer_t buffers[ORDERED_BUFFERS_MAX]
    uint64_t oldest                 # sequence of the oldest buffer in use
    uint64_t next                   # sequence of the next one to open; next - 1 = current
    open_reservation_t open[ORDERED_RESERVATIONS_MAX]
    uint64_t groups[ORDERED_GROUPS_MAX]     # ids of open groups; 0 = free entry
    # Positions: ends of contiguous ranges along the stream
    uint64_t end                    # claimed
    uint64_t stable                 # on the medium
    uint32_t syncing
    uint32_t waiting[4]             # at `synced`
    uint64_t rounds                 # syncs that ended: the number of the next, or the present
    uint64_t reaching               # what the present sync covers
    ordered_counters_t counters

cdef inline ordered_buffer_t *buffer_of(ordered_t *stream, uint64_t sequence) noexcept nogil:
    return &stream.buffers[sequence % stream.buffer_count]

# Memory for buffers; the segment table is recovery's to fill. 0 or -ENOMEM.
cdef int ordered_init(ordered_t *stream, device_t *device, pool_t *pool, uint32_t buffer_bytes,
                      uint32_t buffer_count) noexcept nogil
cdef void ordered_stop(ordered_t *stream) noexcept nogil
cdef void ordered_free(ordered_t *stream) noexcept nogil

# Appending. *position is the record's address for ever. LOG_OK, NO_SEGMENT, TOO_LARGE, BUSY,
# FAILED. `kind`: 1 .. ORDERED_KIND_MAX.
cdef int ordered_append(ordered_t *stream, uint8_t kind, const part_t *parts, uint32_t count,
                        uint32_t flags, uint64_t *position) noexcept nogil
# A record of a group; recovery shows all of them at the group's mark, or none.
cdef int ordered_group_append(ordered_t *stream, group_t *group, uint8_t kind,
                              const part_t *parts, uint32_t count, uint32_t flags,
                              uint64_t *position) noexcept nogil
# The commit mark, with the engine's own bytes (counts, say). *end is what to sync up to.
cdef int ordered_group_commit(ordered_t *stream, group_t *group, const part_t *extra,
                              uint32_t flags, uint64_t *position, uint64_t *end) noexcept nogil
# For capture.pyx, lock held: one record; afterwards hand_over() without it if `next` has risen.
cdef int append_locked(ordered_t *stream, uint8_t kind, const part_t *parts, uint32_t count,
                       uint32_t size, uint32_t body_crc, uint32_t flags, uint64_t *position,
                       uint32_t *checksum) noexcept nogil
cdef void hand_over(ordered_t *stream) noexcept nogil
cdef void ordered_group_abandon(ordered_t *stream, group_t *group) noexcept nogil
cdef int ordered_reserve(ordered_t *stream, uint8_t kind, uint32_t size, uint32_t flags,
                         reservation_t *reservation) noexcept nogil
cdef void ordered_complete(ordered_t *stream, reservation_t *reservation) noexcept nogil
cdef void ordered_abort(ordered_t *stream, reservation_t *reservation) noexcept nogil
cdef uint32_t ordered_payload_max(ordered_t *stream) noexcept nogil

# The next record begins a new segment, so that the present one can be reclaimed. LOG_OK, BUSY,
# FAILED.
cdef int ordered_roll(ordered_t *stream) noexcept nogil

# All completed records to the operating system.
cdef int ordered_flush(ordered_t *stream) noexcept nogil
# Completed records begin their way to the medium, unless somebody is at it: for who is going to
# sync and has something else to do until then. What goes wrong, the sync says.
cdef void ordered_start(ordered_t *stream) noexcept nogil
# Everything that was appended before the call (or below `target`, if not 0) to the medium. One
# fdatasync runs at a time and covers all who wait.
cdef int ordered_sync(ordered_t *stream, uint64_t target) noexcept nogil
cdef uint64_t ordered_written(ordered_t *stream) noexcept nogil
cdef uint64_t ordered_stable(ordered_t *stream) noexcept nogil
cdef uint64_t ordered_end(ordered_t *stream) noexcept nogil

# Bytes that are not needed any more, or (recovery) still are.
cdef int ordered_dead(ordered_t *stream, uint64_t position, uint64_t bytes) noexcept nogil
cdef int ordered_live(ordered_t *stream, uint64_t position, uint64_t bytes) noexcept nogil
