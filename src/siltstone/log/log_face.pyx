"""The log as Python sees it: made in an arena over a device, or attached to one that is there.

Owns the layout's first filling and the process's own handle (log_t). Methods for appending and
reading serve tests and tools; engines call the C functions of log.pyx with `c_log`. Status codes
become exceptions here, in `_raise`. Any thread may call.
"""
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from siltstone.log.arena cimport (
    PROCESS_SLOTS, SECTION_BUFFERS, SECTION_LOG, Arena, lock_init, section)
from siltstone.log.buffers cimport buffers_after_fork, buffers_repair
from siltstone.log.device_io cimport device_place
from siltstone.log.format cimport RECORD_HEADER_SIZE
from siltstone.log.layout cimport check_geometry, lay_out, version_entries
from siltstone.log.livemap cimport LiveMap
from siltstone.log.log cimport *
from siltstone.log.report cimport check_buffers, check_segments, segment_dict, statistics_dict
from siltstone.log.state cimport (
    LOG_LAYOUT_VERSION, STATISTICS_STRIPES, buffer_t, log_header_t, log_t, segment_t, stream_t)

import secrets

from siltstone import errors
from siltstone.log.layout import log_section_bytes

cdef uint64_t LOG_MAGIC = 0x676f6c2d746c73          # "slt-log"


cdef bint _default_alive(void *context, uint32_t slot) noexcept nogil:
    # Without a register of processes: in a private arena only this process lives; in a shared
    # one all do, except those that were said to be dead.
    cdef log_t *log = <log_t *>context
    if slot >= PROCESS_SLOTS or not log.arena.shared:
        return False
    return not (log.dead_slots[slot >> 6] >> (slot & 63)) & 1


cdef class Log:
    """The log over an arena and a device (log/device.py), made by `create` or `attach`."""

    @staticmethod
    def create(Arena arena not None, device, *, uint64_t buffer_bytes, uint64_t buffers,
               uint64_t streams=4, LiveMap live_map=None, ordered=(), segments=None,
               process_slot=None):
        """A log without a record, in an arena whose sections are empty.

        `segments`: how many slots of the device it uses (None: all; a growable device has many).
        """
        cdef uint64_t slots = device.segment_count if segments is None else segments
        check_geometry(device, buffer_bytes, buffers, streams, slots)
        cdef Log self = Log.__new__(Log)
        cdef log_header_t *header = <log_header_t *>section(&arena.arena, SECTION_LOG)
        cdef uint64_t number
        if (arena.arena.header.section_bytes[<int>SECTION_LOG]
                < log_section_bytes(slots, streams, buffers)
                or arena.arena.header.section_bytes[<int>SECTION_BUFFERS] < buffers * buffer_bytes):
            raise errors.ConfigError("the arena's sections are too small for this log")
        memset(header, 0, arena.arena.header.section_bytes[<int>SECTION_LOG])
        lay_out(header, slots, streams, buffers)
        header.layout_version = LOG_LAYOUT_VERSION
        header.stream_count, header.buffer_count = <uint32_t>streams, <uint32_t>buffers
        header.segment_count = <uint32_t>slots
        header.segment_bytes, header.buffer_bytes = device.segment_bytes, buffer_bytes
        header.version_mask = version_entries(header.segment_count) - 1
        header.segments_free = header.segment_count
        header.clock_ms = arena.created_ms
        memcpy(header.uuid, <const char *><bytes>device.superblock.uuid, 16)
        header.salt_secret[0] = secrets.randbits(64)
        header.salt_secret[1] = secrets.randbits(64)
        lock_init(&header.segments_lock, arena.arena.shared)
        header.magic = LOG_MAGIC
        self._open(arena, device, live_map, process_slot)
        for number in range(streams):
            lock_init(&self._log.streams[number].lock, arena.arena.shared)
            self._log.streams[number].files = <uint64_t>-1
            self._log.streams[number].flags = number in ordered
        self._note_files()
        return self

    @staticmethod
    def attach(Arena arena not None, device, *, LiveMap live_map=None, process_slot=None):
        """The log that another process made in this arena."""
        cdef Log self = Log.__new__(Log)
        cdef log_header_t *header = <log_header_t *>section(&arena.arena, SECTION_LOG)
        if header.magic != LOG_MAGIC or header.layout_version != LOG_LAYOUT_VERSION:
            raise errors.WrongFormat("the arena holds no log of this layout",
                                     expected=LOG_LAYOUT_VERSION, found=header.layout_version)
        if (bytes(header.uuid[:16]) != device.superblock.uuid
                or header.segment_bytes != device.segment_bytes
                or header.segment_count > device.segment_count):
            raise errors.WrongFormat("the arena's log belongs to another device")
        self._open(arena, device, live_map, process_slot)
        return self

    cdef int _open(self, Arena arena, object device, LiveMap live_map,
                   object process_slot) except -1:
        cdef log_t *log = &self._log
        cdef char *base = section(&arena.arena, SECTION_LOG)
        log.arena = &arena.arena
        log.header = <log_header_t *>base
        self.arena, self.device, self._handle = arena, device, device.handle
        self.live_map = live_map
        if live_map is None:
            self.live_map = LiveMap(log.header.segment_count, device.segment_bytes,
                                    device.superblock.uuid)
        if (self.live_map.segment_count < log.header.segment_count
                or self.live_map.segment_bytes != device.segment_bytes):
            raise errors.ConfigError("the live map is of another geometry")
        log.streams = <stream_t *>(base + log.header.streams_offset)
        log.segments = <segment_t *>(base + log.header.segments_offset)
        log.versions = <uint64_t *>(base + log.header.versions_offset)
        log.buffers = <buffer_t *>(base + log.header.buffers_offset)
        log.data = section(&arena.arena, SECTION_BUFFERS)
        log.live, log.live_versions = self.live_map.bits, self.live_map.versions
        log.live_words = self.live_map.words
        log.device = &self._handle.device
        log.segment_bytes = log.header.segment_bytes
        log.version_mask = log.header.version_mask
        log.segment_count = log.header.segment_count
        log.buffer_count = log.header.buffer_count
        log.process_slot = arena.arena.slot if process_slot is None else process_slot
        log.statistics = &log.header.statistics[log.process_slot % STATISTICS_STRIPES]
        log.alive, log.alive_context = _default_alive, log
        self.c_log = log
        return 0

    cdef int _note_files(self) except -1:
        cdef uint32_t slot, file
        cdef uint64_t offset
        for slot in range(self._log.segment_count):
            if device_place(self._log.device, slot, &file, &offset) == 0:
                self._log.segments[slot].file = file
        return 0

    def bind_stream(self, uint32_t stream, files) -> None:
        """The stream's segments lie on these files of the device only (numbers from 0)."""
        cdef uint64_t mask = 0
        for file in files:
            mask |= <uint64_t>1 << <uint64_t>file
        slots = range(self._log.segment_count)
        if stream >= self._log.header.stream_count or not any(
                (mask >> self._log.segments[slot].file) & 1 for slot in slots):
            raise errors.ConfigError("no such stream, or no segment on these files")
        self._log.streams[stream].files = mask

    def assume_dead(self, uint32_t slot) -> None:
        """This slot's holder is dead (for logs without a register of processes)."""
        assert slot < PROCESS_SLOTS
        self._log.dead_slots[slot >> 6] |= <uint64_t>1 << (slot & 63)

    def occupy(self) -> None:
        """The process has the arena's slot that the arena says now (a forked child)."""
        cdef uint32_t slot = self.arena.arena.slot
        self._log.process_slot = slot
        self._log.statistics = &self._log.header.statistics[slot % STATISTICS_STRIPES]

    def after_fork(self) -> None:
        """In the child of a fork, for a private arena: fresh locks, no writers."""
        cdef uint32_t number
        lock_init(&self._log.header.segments_lock, False)
        for number in range(self._log.header.stream_count):
            lock_init(&self._log.streams[number].lock, False)
            buffers_repair(&self._log, number)
        buffers_after_fork(&self._log)

    # For tests and tools
    def try_append(self, uint32_t stream, uint8_t kind, data) -> tuple[int, int]:
        """One attempt: (status, position)."""
        cdef const unsigned char[::1] view = data
        cdef part_t part
        cdef uint64_t position = 0
        cdef int status
        part.data = &view[0] if view.shape[0] else NULL
        part.size = view.shape[0]
        with nogil:
            status = log_append(&self._log, stream, kind, &part, 1, &position)
        return status, position

    def append(self, uint32_t stream, uint8_t kind, data) -> int:
        """Append one record; writes a buffer itself when none is free. Its position."""
        while True:
            status, position = self.try_append(stream, kind, data)
            if status != LOG_NO_BUFFER:
                break
            self._raise(self.make_room())
        self._raise(status)
        return position

    def read(self, uint64_t position, *, capacity=None, nowait=False) -> tuple[int, bytes] | None:
        """(kind, payload), None when its segment was forgotten."""
        cdef uint64_t room = capacity or log_read_hint(&self._log, position), size = 0
        cdef uint32_t flags = LOG_NOWAIT if nowait else 0
        cdef int status
        cdef bytearray out
        cdef unsigned char[::1] view
        while True:
            out = bytearray(max(room, 1))
            view = out
            with nogil:
                status = log_read(&self._log, position, <char *>&view[0], room, &size, flags)
            if status != LOG_SHORT or capacity:
                break
            room = size
        if status == LOG_GONE:
            return None
        self._raise(status, position)
        return out[4], bytes(out[RECORD_HEADER_SIZE:size])

    def _raise(self, int status, position=None):
        # The one place where a status becomes an exception.
        where = "" if position is None else f" at position {position}"
        if status == LOG_OK:
            return
        if status == LOG_NO_BUFFER or status == LOG_BUSY:
            raise errors.Busy("a lock or a write buffer was not had in time" + where)
        if status == LOG_NO_SEGMENT:
            raise errors.EnvironmentFailure("no segment is free")
        if status == LOG_TOO_LARGE:
            raise errors.TooLarge(f"records have at most {self.record_bytes_max} bytes")
        if status == LOG_CORRUPT:
            raise errors.Corruption("a record fails its check" + where)
        if status == LOG_IO:
            raise errors.DeviceFailed(log_last_errno(), "the device failed" + where)
        if status == LOG_FAILED:
            raise errors.ReadOnly("the log takes no more writes")
        if status == LOG_WOULD_BLOCK:
            raise errors.Busy("the bytes are not in memory" + where)
        raise errors.CallerError(f"the log answered {status}{where}")

    def live(self, uint64_t position) -> bool:
        """Set the record's live bit; False when its segment is gone."""
        return log_live(&self._log, position) == LOG_OK

    def dead(self, uint64_t position) -> None:
        """Clear the record's live bit."""
        log_dead(&self._log, position)

    def is_live(self, uint64_t position) -> bool:
        return log_is_live(&self._log, position)

    def is_current(self, uint64_t position) -> bool:
        return log_current(&self._log, position)

    def write_one(self) -> int:
        """Write one sealed buffer; the status."""
        cdef int status
        with nogil:
            status = log_write_one(&self._log)
        return status

    def make_room(self) -> int:
        cdef int status
        with nogil:
            status = log_make_room(&self._log)
        return status

    def seal_idle(self, int64_t now_ms, int64_t age_ms) -> int:
        return log_seal_idle(&self._log, now_ms, age_ms)

    def flush(self) -> None:
        """Hand everything to the operating system."""
        cdef int status
        with nogil:
            status = log_flush(&self._log)
        self._raise(status)

    def forget(self, uint32_t slot, uint64_t version) -> int:
        return log_forget(&self._log, slot, version)

    def oldest(self, uint32_t stream_mask=0xFFFF) -> dict | None:
        """The oldest segment that may be reclaimed."""
        cdef segment_info_t info
        return info if log_oldest(&self._log, stream_mask, &info) == LOG_OK else None

    def emptiest(self, uint32_t stream_mask=0xFFFF) -> dict | None:
        """The segment that may be reclaimed with the least live bytes."""
        cdef segment_info_t info
        return info if log_emptiest(&self._log, stream_mask, &info) == LOG_OK else None

    def records(self, uint32_t slot, uint64_t version) -> list | None:
        """Every valid record of a sealed segment: (position, kind, payload). None: gone."""
        cdef bytearray image = bytearray(self._log.segment_bytes)
        cdef char *data = image
        cdef uint64_t cursor = 0, position
        cdef uint8_t kind
        cdef const char *payload
        cdef uint32_t size
        cdef int status = log_read_segment(&self._log, slot, version, data)
        if status == LOG_GONE:
            return None
        self._raise(status)
        found = []
        while log_next(&self._log, version, slot, data, &cursor, &position, &kind, &payload,
                       &size) == LOG_OK:
            found.append((position, kind, payload[:size]))
        return found

    # What there is to see

    @property
    def segment_bytes(self) -> int:
        return self._log.segment_bytes

    @property
    def segments_free(self) -> int:
        return log_segments_free(&self._log)

    @property
    def record_bytes_max(self) -> int:
        return log_record_bytes_max(&self._log)

    def segments(self) -> list[dict]:
        """The segment map: one dict a slot."""
        return [segment_dict(&self._log, slot) for slot in range(self._log.segment_count)]

    def stats(self) -> dict:
        """Counters and latency histograms, summed over all processes."""
        return statistics_dict(&self._log)

    def check_invariants(self, *, exact: bool = True) -> None:
        """Tables, states, counts and buffers agree; for a log that nobody uses meanwhile.

        `exact` False: a process was killed in log_live, counts may be above the bits.
        """
        check_segments(&self._log, exact)
        check_buffers(&self._log)
