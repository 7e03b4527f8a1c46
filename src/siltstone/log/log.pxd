"""The log as engines see it: append, read, live accounting, reclaim. C signatures only.

Everything here is callable from any thread of any process that maps the arena, without the GIL.
Lock order: shard (engine) -> stream -> segment table -> frame pool. Appending and accounting make
no system call, so they may be called inside a shard lock; reading, writing and forgetting may not.
"""
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from siltstone.log.state cimport log_t      # the process's own handle; fields are the log's own

cdef enum log_result_t:
    LOG_OK = 0
    LOG_NO_BUFFER = 1       # every buffer is in flight: drop your locks, log_write_one(), retry
    LOG_NO_SEGMENT = 2      # no segment is free: drop your locks, reclaim one, retry
    LOG_TOO_LARGE = 3       # above log_record_bytes_max(): cut it into parts
    LOG_GONE = 4            # that position's version is not there any more
    LOG_WOULD_BLOCK = 5     # LOG_NOWAIT was asked for and the bytes are not in memory
    LOG_SHORT = 6           # `capacity` is too small; *size says what is needed
    LOG_CORRUPT = 7         # the checksum does not fit (bound to salt and position)
    LOG_IO = 8              # the device returned an error; errno in log_last_errno()
    LOG_BUSY = 9            # a lock was not had within its time limit
    LOG_FAILED = 10         # sticky: this log takes no more writes
    LOG_NOTHING = 11        # nothing to do (log_append: kind 0 or 255, which mean no record)

cdef enum:
    LOG_RECORD_HEADER = 8   # checksum u32, then kind u8 | size u24 (payload bytes) in one u32
    LOG_ALIGNMENT = 16      # records start at multiples of this; positions too
    LOG_RECORD_MIN = 64     # header and padding included: one live bit is one record
    LOG_NOWAIT = 1          # flag of log_read: never block on the device

cdef struct part_t:
    const void *data
    uint64_t size

cdef struct segment_info_t:
    # One segment as reclaim sees it.
    uint32_t slot
    uint32_t stream
    uint64_t version
    uint64_t filled_bytes
    uint32_t records        # appended
    uint32_t live_records
    uint64_t live_bytes     # estimate: filled_bytes x live_records / records
    int64_t opened_ms
    bint reclaimable        # sealed, and nobody is about to link what was appended to it last

# Append one record to `stream`: the parts are joined, their CRC is computed before the stream's
# lock is taken. *position is the record's address for ever (log sequence number, place and
# validity in one number). Readable at once. LOG_OK or NO_BUFFER, NO_SEGMENT, TOO_LARGE, BUSY,
# FAILED.
cdef int log_append(log_t *log, uint32_t stream, uint8_t kind, const part_t *parts,
                    uint32_t count, uint64_t *position) noexcept nogil
cdef uint64_t log_record_bytes_max(log_t *log) noexcept nogil     # payload bytes of one record

# Read the record at `position` into `out`: header (LOG_RECORD_HEADER bytes) and payload, verified.
# *size = bytes there (header included, padding not). Reads buffers first, then the device.
cdef int log_read(log_t *log, uint64_t position, char *out, uint64_t capacity, uint64_t *size,
                  uint32_t flags) noexcept nogil
# How many bytes to offer to log_read at first: from the largest usual record of that segment.
cdef uint64_t log_read_hint(log_t *log, uint64_t position) noexcept nogil
cdef bint log_current(log_t *log, uint64_t position) noexcept nogil       # version still there?

# Live accounting (rules: link = slot first, then log_live; unlink = log_dead first, then slot;
# both under the shard lock). log_live returns LOG_GONE when the segment was forgotten meanwhile
# (the bit is taken back: unlink the slot again).
cdef int log_live(log_t *log, uint64_t position) noexcept nogil
cdef void log_dead(log_t *log, uint64_t position) noexcept nogil
cdef bint log_is_live(log_t *log, uint64_t position) noexcept nogil

# Progress without a leader: write one sealed buffer of any stream; LOG_OK, LOG_NOTHING, LOG_IO.
cdef int log_write_one(log_t *log) noexcept nogil
# After LOG_NO_BUFFER: write one, or wait (at most 1 ms) until another writer has; then retry.
# LOG_OK, LOG_IO; LOG_BUSY: waited in vain.
cdef int log_make_room(log_t *log) noexcept nogil
# Seal every stream's part-filled buffer that holds something and is older than `age_ms`.
cdef int log_seal_idle(log_t *log, int64_t now_ms, int64_t age_ms) noexcept nogil
# Seal everything and hand it to the operating system; LOG_OK, LOG_IO, LOG_BUSY.
cdef int log_flush(log_t *log) noexcept nogil
# The time, for those who may not make a system call: age of buffers and of segments.
cdef void log_clock(log_t *log, int64_t now_ms) noexcept nogil
cdef int log_last_errno() noexcept nogil            # of this thread's last LOG_IO

# Reclaim. The engine chooses; these find candidates and free. `stream_mask` has a bit a stream.
# Both find sealed segments that are wholly on the device; LOG_NOTHING: there is none, then write
# what is sealed (log_make_room) and look again.
cdef int log_oldest(log_t *log, uint32_t stream_mask, segment_info_t *info) noexcept nogil
cdef int log_emptiest(log_t *log, uint32_t stream_mask, segment_info_t *info) noexcept nogil
cdef int log_segment_info(log_t *log, uint32_t slot, segment_info_t *info) noexcept nogil
cdef int log_forget(log_t *log, uint32_t slot, uint64_t version) noexcept nogil
# `stream` leaves so many free segments to other streams: compaction needs one to make one.
cdef void log_stream_leaves(log_t *log, uint32_t stream, uint32_t count) noexcept nogil
cdef uint32_t log_segments_free(log_t *log) noexcept nogil
cdef uint32_t log_segments_total(log_t *log) noexcept nogil
cdef uint64_t log_segment_bytes(log_t *log) noexcept nogil
# Compaction: read a whole sealed segment into `image` (log_segment_bytes), then walk it.
# log_next: *cursor starts at 0; verified records only; LOG_NOTHING at the end.
cdef int log_read_segment(log_t *log, uint32_t slot, uint64_t version, char *image) noexcept nogil
cdef int log_next(log_t *log, uint64_t version, uint32_t slot, const char *image, uint64_t *cursor,
                  uint64_t *position, uint8_t *kind, const char **payload,
                  uint32_t *size) noexcept nogil
