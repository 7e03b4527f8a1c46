"""The ordered log: one durable stream over one device, opened, recovered, checkpointed, closed.

Owns the life of a stream (ordered.pyx) and its checkpoints; what recovery decides is in
ordered_recovery.py.
An engine appends records of its own kinds, is shown them again in order by `recover`, says which
are dead, and gives its state at checkpoints. Status codes become exceptions here, in `_raise`.
Any thread may call; not usable in a forked child.

A segment is used again when nothing in it was live at the *older* of the two checkpoints that are
kept, when neither needs it for replay, and when nothing pins it. File size is thus: live data, plus
what was written since the older checkpoint, plus two segments chosen ahead.
"""
import errno as errors_of_os
import math
import os
import threading

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy, memset

from siltstone.clock import SYSTEM_CLOCK, SYSTEM_RANDOM
from siltstone.errors import (Busy, Closed, ConfigError, Corruption, DeviceFailed,
                              EnvironmentFailure, ForkedProcess, InvalidValue, KeyMissing,
                              ReadOnly, TooLarge)
from siltstone.log import checkpoint as checkpoints
from siltstone.log import ordered_recovery
from siltstone.log.atomics cimport load64_relaxed
from siltstone.log.capture cimport capture_free, capture_t, capture_take
from siltstone.log.chain cimport (chain_claim, chain_enter, chain_find, chain_leave, chain_room,
                                  chain_take)
from siltstone.log.checksum cimport crc32c
from siltstone.log.device_io cimport DeviceHandle
from siltstone.log.format cimport (RECORD_HEADER_SIZE, SLOT_NONE, record_bytes, record_checksum,
                                   record_header_t, word_kind, word_size)
from siltstone.log.log cimport (LOG_BUSY, LOG_CORRUPT, LOG_FAILED, LOG_GONE, LOG_NOTHING,
                                LOG_NO_SEGMENT, LOG_OK, LOG_SHORT, LOG_TOO_LARGE, part_t)
from siltstone.log.ordered cimport (GROUP_ID_SIZE, ORDERED_BUFFERS_MAX,
                                    ORDERED_CHECKPOINT_END, ORDERED_CHECKPOINT_PART,
                                    ORDERED_GROUPED, ORDERED_KIND_MAX,
                                    ORDERED_URGENT, SEGMENT_AHEAD, SEGMENT_FREE, SEGMENT_OPEN,
                                    SEGMENT_SEALED, SEGMENT_TAKEN, ordered_abort, ordered_append,
                                    ordered_buffer_t, ordered_complete, ordered_dead, ordered_end,
                                    ordered_flush, ordered_free, ordered_group_abandon,
                                    ordered_group_append, ordered_group_commit, ordered_init,
                                    ordered_live, ordered_payload_max, ordered_reserve,
                                    ordered_roll, ordered_segment_t, ordered_stable, ordered_stop,
                                    ordered_sync, ordered_written)
from siltstone.log.ordered_read cimport ordered_read
from siltstone.log.pthread cimport pthread_cond_broadcast, pthread_mutex_lock, pthread_mutex_unlock
from siltstone.log.turns cimport turn_ask, turn_taken
from siltstone.log.workers cimport WorkerPool, pool_t

cdef enum:
    BUFFER_BYTES = 1 << 18
    BLOCK = 4096
    READ_FIRST = 4096           # most records fit: one read; larger ones are read again

KIND_MAX = ORDERED_KIND_MAX
STATES = {SEGMENT_FREE: "free", SEGMENT_AHEAD: "ahead", SEGMENT_OPEN: "open",
          SEGMENT_SEALED: "sealed", SEGMENT_TAKEN: "taken"}


def record_size(payload_bytes, grouped=False):
    """Bytes that a record takes on the device."""
    return record_bytes(payload_bytes + (GROUP_ID_SIZE if grouped else 0))


cdef tuple _checksums(OrderedLog log, slot, uint64_t position):
    """(what a record's bytes give, what its header says), for messages; None: not to be had."""
    cdef uint64_t offset = position % log.stream.segment_bytes
    cdef record_header_t header
    cdef uint32_t size
    if slot < 0 or offset + RECORD_HEADER_SIZE > log.stream.segment_bytes:
        return None, None
    try:
        data = log.device.handle.read(slot, offset, RECORD_HEADER_SIZE)
        memcpy(&header, PyBytes_AS_STRING(data), RECORD_HEADER_SIZE)
        size = word_size(header.word)
        if offset + RECORD_HEADER_SIZE + size > log.stream.segment_bytes:
            return None, header.checksum        # its size is damaged, too
        data = log.device.handle.read(slot, offset + RECORD_HEADER_SIZE, size)
    except DeviceFailed:
        return None, None
    return record_checksum(log.stream.segments[slot].salt, position, header.word,
                           crc32c(0, PyBytes_AS_STRING(data), size)), header.checksum


cdef class OrderedLog:
    """See the module's docstring. Call `recover()` once, before anything else."""

    def __cinit__(self, device, *, buffer_bytes=None, buffer_count=4, align_commits=False,
                  slots_kept=2, wait_ms=10_000, pool=None, read_only=False, clock=SYSTEM_CLOCK,
                  rng=SYSTEM_RANDOM):
        cdef DeviceHandle handle = device.handle
        cdef pool_t *workers = NULL
        if buffer_bytes is None:
            buffer_bytes = math.gcd(BUFFER_BYTES, device.segment_bytes)
        if buffer_bytes < 4096 or buffer_bytes % 4096 or device.segment_bytes % buffer_bytes:
            raise ConfigError(f"buffer_size {buffer_bytes} cannot work: a multiple of 4096 of "
                              f"which a segment of {device.segment_bytes} bytes is a multiple")
        if not 2 <= buffer_count <= ORDERED_BUFFERS_MAX:
            raise ConfigError(f"a stream has 2 to {ORDERED_BUFFERS_MAX} buffers")
        if pool is not None:
            workers = &(<WorkerPool?>pool).pool
        if ordered_init(&self.stream, &handle.device, workers, buffer_bytes, buffer_count) != 0:
            raise MemoryError("no memory for write buffers")
        self.stream.align_commits = align_commits
        self.stream.slots_kept = slots_kept
        self.stream.wait_ms = wait_ms
        self.stream.now_ms = clock.now_ms()
        self.stream.salt_seed = int.from_bytes(rng.bytes(8), "little")
        self._uuid = device.superblock.uuid
        memcpy(self.stream.uuid, PyBytes_AS_STRING(self._uuid), 16)
        self.device, self.read_only, self.clock, self._pool = device, read_only, clock, pool
        self._pid = os.getpid()
        self._checkpoints = ((0, 0), (0, 0))
        self._past = []
        self._checkpoint_lock = threading.Lock()
        self._giving_back = threading.Lock()

    def __dealloc__(self):
        if not self._closed and self._pid == os.getpid():
            with nogil:
                ordered_stop(&self.stream)
        ordered_free(&self.stream)

    # Checks

    cdef int _check(self, bint writes) except -1:
        if self._closed:
            raise Closed("the log is closed")
        if self._pid != os.getpid():
            raise ForkedProcess(f"this log belongs to pid {self._pid}; open it again here")
        if self._recovered is None:
            raise Closed("the log was not recovered")
        if writes and self.read_only:
            raise ReadOnly(errors_of_os.EROFS, "the log was opened read-only")
        return 0

    cdef int _raise(self, int result, uint64_t position) except -1:
        cdef uint64_t version = position // self.stream.segment_bytes
        if result == LOG_OK:
            return 0
        if result == LOG_FAILED:
            number = self.stream.failed
            raise ReadOnly(number, f"the log failed ({os.strerror(number)}) and takes no more "
                           "writes until it is opened again")
        if result == LOG_NO_SEGMENT:
            raise EnvironmentFailure(errors_of_os.ENOSPC, "no segment is free: delete something "
                                     "and checkpoint, or give the device more room")
        if result == LOG_TOO_LARGE:
            raise TooLarge(f"a record has at most {ordered_payload_max(&self.stream)} bytes")
        if result == LOG_BUSY:
            raise Busy(errors_of_os.ETIMEDOUT, f"an open reservation or a slow device: nothing "
                       f"moved for {self.stream.wait_ms} ms")
        if result == LOG_GONE:
            raise KeyMissing(f"nothing is at position {position} any more")
        if result == LOG_NOTHING:
            raise KeyMissing(f"the record at position {position} was aborted")
        slot = chain_find(&self.stream, version)
        offset = position % self.stream.segment_bytes
        where = self.device.handle.describe(max(slot, 0), offset)
        if result == LOG_CORRUPT:
            number, start = self.device.handle.place(max(slot, 0))
            expected, found = _checksums(self, slot, position)
            raise Corruption(f"the record at {where} fails its checksum",
                             path=self.device.handle.names[number], offset=start + offset,
                             expected=expected, found=found)
        raise DeviceFailed(errors_of_os.EIO, f"the record at {where} cannot be read")

    # Recovery (ordered_recovery.py decides; these change the table)

    def recover(self, visit=None, restore=None):
        """Show the engine what is there; returns a Recovery. See ordered_recovery.py."""
        if self._recovered is not None:
            raise Closed("the log was recovered before")
        self._recovered = ordered_recovery.Recovery()
        try:
            ordered_recovery.recover(self, self._recovered, visit, restore)
        except BaseException:
            self._recovered = None
            raise
        return self._recovered

    def _enter(self, version, slot, salt, filled=0, live_bytes=0, empty_since=0):
        """A segment that recovery found. An empty one that was in its slot gives way."""
        cdef ordered_segment_t *segment
        if slot < self.stream.slot_capacity and self.stream.segments[slot].version != version:
            if self.stream.segments[slot].version and self.stream.segments[slot].live_bytes == 0:
                chain_leave(&self.stream, slot)
        if chain_enter(&self.stream, version, slot) != 0:
            raise Corruption(f"two segments claim slot {slot}", offset=slot)
        segment = &self.stream.segments[slot]
        segment.salt = salt
        segment.filled = filled
        segment.live_bytes += live_bytes
        segment.empty_since = empty_since

    def _filled(self, version, filled):
        slot = chain_find(&self.stream, version)
        if slot >= 0:
            self.stream.segments[slot].filled = filled

    def _start(self, end, version, slot, next_slots, version_min, checkpoints):
        """The table is complete: the stream goes on behind `end`, in a fresh segment."""
        cdef ordered_t *stream = &self.stream
        present = self.device.slots_present() if self.device.growable else 0
        # What an end gave back: blocks first, before a commit is to be written there.
        holes = self.device.slots_with_holes() if present and not self.read_only else ()
        if chain_room(stream, max(1, min(present, stream.slot_limit))) != 0:
            raise MemoryError("no memory for the segment table")
        for number in range(min(present, stream.slot_capacity)):
            stream.segments[number].allocated = number not in holes
        stream.end = stream.stable = end
        stream.version, stream.slot = version, slot
        stream.next_version_min = version_min + present + 1
        stream.after_cut = 1
        for which, chosen in enumerate(next_slots):
            # Chosen ahead by the life before this one: the chain goes on there.
            if chosen < stream.slot_limit and chain_room(stream, chosen + 1) == 0:
                if stream.segments[chosen].version and not stream.segments[chosen].live_bytes:
                    chain_leave(stream, chosen)     # it was given back after that checkpoint
                if stream.segments[chosen].state == SEGMENT_FREE:
                    stream.segments[chosen].state = SEGMENT_AHEAD
                    stream.slots_used += 1
                    stream.ahead[which] = chosen
        self._checkpoints = checkpoints

    # Appending

    def append(self, int kind, payload, *, bint urgent=False):
        """Append a record; its position. Readable at once, durable after the next sync."""
        self._check(True)
        return self._append(self._kind(kind), payload, urgent)

    def _kind(self, int kind):
        if not 1 <= kind <= ORDERED_KIND_MAX:
            raise InvalidValue(f"a record's kind is 1 to {ORDERED_KIND_MAX}, not {kind}")
        return kind

    def _append(self, int kind, const unsigned char[::1] payload not None, bint urgent):
        cdef part_t part
        cdef uint64_t position = 0
        cdef int result
        part.size = <uint64_t>payload.shape[0]
        part.data = &payload[0] if part.size else NULL
        with nogil:
            result = ordered_append(&self.stream, kind, &part, 1 if part.size else 0,
                                    ORDERED_URGENT if urgent else 0, &position)
        self._raise(result, position)
        return position

    def group(self):
        """Records that count together, from their commit on, or not at all."""
        self._check(True)
        return Group(self)

    def reserve(self, int kind, uint32_t size, *, bint urgent=False):
        """A position now, its payload later: complete() or abort() it soon."""
        cdef Reservation found = Reservation(self)
        cdef int result
        self._check(True)
        self._kind(kind)
        with nogil:
            result = ordered_reserve(&self.stream, kind, size, ORDERED_URGENT if urgent else 0,
                                     &found.reservation)
        self._raise(result, 0)
        found.done = False
        return found

    @property
    def payload_max(self):
        """Bytes of the largest record."""
        return ordered_payload_max(&self.stream)

    # Durability

    def flush(self):
        """Hand everything that is complete to the operating system."""
        cdef int result
        self._check(True)
        with nogil:
            result = ordered_flush(&self.stream)
        self._raise(result, 0)

    def sync(self, uint64_t target=0):
        """Everything appended before the call (or below `target`) is on the medium afterwards."""
        cdef int result
        self._check(True)
        with nogil:
            result = ordered_sync(&self.stream, target)
        self._raise(result, 0)

    def tick(self):
        """What time brings: for whoever runs it every `flush_interval`. Idle: no I/O at all."""
        self.stream.now_ms = self.clock.now_ms()
        if ordered_stable(&self.stream) < ordered_end(&self.stream):
            self.sync()

    def roll(self):
        """The next record begins a new segment: what is open now can be reclaimed like others."""
        cdef int result
        self._check(True)
        with nogil:
            result = ordered_roll(&self.stream)
        self._raise(result, 0)

    @property
    def end(self):
        """Position behind the last record that was appended or reserved."""
        return ordered_end(&self.stream)

    @property
    def written_position(self):
        return ordered_written(&self.stream)

    @property
    def stable_position(self):
        """Everything below is on the medium."""
        return ordered_stable(&self.stream)

    # Reading

    def read(self, uint64_t position):
        """(kind, payload) of the record there."""
        cdef uint64_t capacity = READ_FIRST, size = 0
        cdef char *data
        cdef record_header_t header
        cdef uint32_t skip
        cdef int result
        self._check(False)
        data = <char *>malloc(capacity)
        try:
            while True:
                if data == NULL:
                    raise MemoryError()
                with nogil:
                    result = ordered_read(&self.stream, position, data, capacity, &size, 0)
                if result != LOG_SHORT:
                    break
                capacity = size
                data = <char *>realloc(data, capacity)
            self._raise(result, position)
            memcpy(&header, data, RECORD_HEADER_SIZE)
            skip = GROUP_ID_SIZE if word_kind(header.word) & ORDERED_GROUPED else 0
            payload = PyBytes_FromStringAndSize(data + RECORD_HEADER_SIZE + skip,
                                                word_size(header.word) - skip)
            return word_kind(header.word) & ~ORDERED_GROUPED, payload
        finally:
            free(data)

    # Live accounting

    def dead(self, uint64_t position, payload_bytes, *, bint grouped=False):
        """The record there is needed no more."""
        ordered_dead(&self.stream, position, record_size(payload_bytes, grouped))

    def live(self, uint64_t position, payload_bytes, *, bint grouped=False):
        """The record there is needed (recovery calls it for everything that it shows)."""
        ordered_live(&self.stream, position, record_size(payload_bytes, grouped))

    def pin(self, uint64_t position):
        """Keep that segment from being used again; `unpin` as often."""
        self._pin(position, 1)

    def unpin(self, uint64_t position):
        self._pin(position, -1)

    def _pin(self, uint64_t position, int step):
        pthread_mutex_lock(&self.stream.lock)
        cdef int64_t slot = chain_find(&self.stream, position // self.stream.segment_bytes)
        if slot >= 0:
            self.stream.segments[slot].pins += step
        pthread_mutex_unlock(&self.stream.lock)
        if slot < 0:
            raise KeyMissing(f"nothing is at position {position} any more")

    # Checkpoints

    def begin_checkpoint(self):
        """The moment that a checkpoint describes: call it while the engine's state stands still.

        Returns (start, replay_from, table, groups); give it to finish_checkpoint() with the state
        that the engine has at this moment. Appends may go on meanwhile.
        """
        cdef capture_t capture
        cdef int result
        self._check(True)
        with nogil:
            result = capture_take(&self.stream, &capture)
        return self._begun(result, &capture)

    cdef object _begun(self, int result, capture_t *capture):
        """What capture_take() took, as finish_checkpoint() wants it; frees it."""
        cdef uint32_t at
        try:
            if result < 0:
                raise MemoryError("no memory for a checkpoint")
            self._raise(result, 0)
            table = []
            for at in range(capture.segment_count):
                segment = &capture.segments[at].segment
                table.append((segment.version, capture.segments[at].slot, segment.salt,
                              segment.filled, segment.live_bytes, segment.empty_since))
            groups = [capture.groups[at] for at in range(capture.group_count)]
            return capture.start, capture.replay_from, table, groups
        finally:
            capture_free(capture)

    def finish_checkpoint(self, begun, bytes state not None, *, appended=None):
        """Write and sync it, make it the newest, and free what neither checkpoint needs. It calls
        `appended()` before it waits for the medium; with the GIL, which costs a busy process."""
        start, replay_from, table, groups = begun
        self._check(True)
        with self._checkpoint_lock:
            if start < self._checkpoints[0][0]:
                return              # a later one was finished meanwhile
            parts, end = checkpoints.pack(start, replay_from, table, groups, state,
                                           self.payload_max)
            self._append_checkpoint(parts, end, appended)
            before = self.device.superblock
            self.device.write_superblock(
                stable_position=self.stable_position,
                checkpoint_position=start,
                checkpoint_slot=self._slot(start),
                checkpoint_before=before.checkpoint_position,
                checkpoint_before_slot=before.checkpoint_slot,
            )
            # The superblock first, then the question: a reader asks in the opposite order.
            past = [*self._past, self._checkpoints[1]] if self._readers is not None else []
            self._past = [kept for kept in past if self._readers.looked_at(kept[0])]
            self._checkpoints = ((start, replay_from), self._checkpoints[0])
            self._free_segments()

    def _append_checkpoint(self, list parts, bytes end, appended):
        """All of it, and a sync, asking for the GIL as seldom as can be: of a busy process one that
        waits for it gets it after 5 ms, and what a checkpoint frees is waited for."""
        cdef part_t *payloads = <part_t *>malloc((len(parts) + 1) * sizeof(part_t))
        cdef uint32_t count = <uint32_t>len(parts), at
        cdef uint64_t position = 0
        cdef bytes part
        cdef bint at_once = appended is None
        cdef int result = LOG_OK
        if payloads == NULL:
            raise MemoryError("no memory for a checkpoint")
        for at, part in enumerate([*parts, end]):
            payloads[at].data, payloads[at].size = PyBytes_AS_STRING(part), len(part)
        with nogil:
            for at in range(count + 1):
                if result == LOG_OK:
                    result = ordered_append(
                        &self.stream, ORDERED_CHECKPOINT_PART if at < count
                        else ORDERED_CHECKPOINT_END, &payloads[at], 1, ORDERED_URGENT, &position)
            if result == LOG_OK and at_once:
                result = ordered_sync(&self.stream, 0)
            turn_ask()
        turn_taken()
        free(payloads)
        if result == LOG_OK and not at_once:
            appended()
            with nogil:
                result = ordered_sync(&self.stream, 0)
                turn_ask()
            turn_taken()
        self._raise(result, position)

    def keep_for_readers(self, readers):
        """Free nothing that a reader needs: `looked_at(position)` tells whether one looks at that
        checkpoint, `others(positions)` whether one looks at another than these."""
        if readers.others(*(start for start, _ in self._checkpoints)):
            self._past = [(0, 0)]       # of an earlier life: which one it is nobody knows
        self._readers = readers

    def checkpoint(self, state=b""):
        """begin and finish in one, for an engine that stands still meanwhile."""
        self.finish_checkpoint(self.begin_checkpoint(), state)

    def _slot(self, uint64_t position):
        pthread_mutex_lock(&self.stream.lock)
        cdef int64_t slot = chain_find(&self.stream, position // self.stream.segment_bytes)
        pthread_mutex_unlock(&self.stream.lock)
        return slot

    def _free_segments(self):
        """Both checkpoints are durable: give back what no older one that counts needs either."""
        cdef ordered_t *stream = &self.stream
        cdef uint64_t start = min(kept[0] for kept in [self._checkpoints[1], *self._past])
        cdef uint64_t replay_from = min(kept[1] for kept in [self._checkpoints[1], *self._past])
        cdef uint32_t slot, last = 0, reach = 0
        cdef ordered_segment_t *segment
        replay_from = min(replay_from, <uint64_t>self._checkpoints[0][1])
        pthread_mutex_lock(&stream.lock)
        for slot in range(stream.slot_capacity):
            segment = &stream.segments[slot]
            if (segment.state == SEGMENT_SEALED and segment.empty_since and not segment.pins
                    and segment.live_bytes == 0 and segment.empty_since <= start
                    and segment.version < replay_from // stream.segment_bytes):
                chain_leave(stream, slot)
            if segment.state != SEGMENT_FREE:
                last = slot
            if segment.allocated:
                reach = slot + 1
        pthread_mutex_unlock(&stream.lock)
        # Not at once: what is cut off today and wanted again tomorrow has to be filled with zeros.
        if reach > last + 1 + stream.slots_used // 2:
            self._give_back_end(last + 1)

    # Giving back needs Python and may drop the GIL: never under the stream's lock, for which others
    # wait with the GIL held. Slots are marked as without blocks first, and `zeroing` keeps them so
    # until their blocks are gone: a slot without blocks is not opened.

    cdef bint _zeroing_begin(self) noexcept:
        """With the lock held, if true."""
        pthread_mutex_lock(&self.stream.lock)
        if self.stream.zeroing:
            pthread_mutex_unlock(&self.stream.lock)
            return False
        self.stream.zeroing = 1
        return True

    cdef void _zeroing_end(self) noexcept:
        pthread_mutex_lock(&self.stream.lock)
        self.stream.zeroing = 0
        pthread_cond_broadcast(&self.stream.changed)
        pthread_mutex_unlock(&self.stream.lock)

    def _give_back_end(self, uint32_t slots):
        """Cut free slots off the file's end; one may have been taken since they were counted."""
        if not self.device.growable or self.device.slots_present() <= slots:
            return
        with self._giving_back:
            self._cut_end(slots)

    def _cut_end(self, uint32_t slots):
        cdef ordered_t *stream = &self.stream
        cdef uint32_t slot
        if not self._zeroing_begin():
            return                  # a new slot is being made: the next checkpoint looks again
        for slot in range(slots, stream.slot_capacity):
            if (stream.segments[slot].state != SEGMENT_FREE
                    and (stream.segments[slot].allocated
                         or stream.segments[slot].state == SEGMENT_TAKEN)):
                slots = slot + 1
        for slot in range(slots, stream.slot_capacity):
            stream.segments[slot].allocated = 0
        pthread_mutex_unlock(&stream.lock)
        try:
            self.device.truncate(slots)
        finally:
            self._zeroing_end()

    def punch_free(self):
        """Give back all blocks without records, those ahead and in used segments too: for an
        engine that closes, behind its last record."""
        self._check(True)
        if self.device.growable:
            with self._giving_back:
                self._punch_free()

    def _punch_free(self):
        cdef ordered_t *stream = &self.stream
        cdef ordered_segment_t *segment
        cdef uint32_t slot, last = 0
        cdef int64_t begin
        cdef bint used
        if not self._zeroing_begin():
            return
        found = []
        for slot in range(stream.slot_capacity):
            segment = &stream.segments[slot]
            used = segment.state != SEGMENT_FREE and segment.state != SEGMENT_AHEAD
            if used:
                last = slot
            if not segment.allocated or segment.state == SEGMENT_TAKEN:
                continue
            begin = (<int64_t>segment.filled + BLOCK - 1) // BLOCK * BLOCK if used else 0
            if begin < <int64_t>stream.segment_bytes:
                # A slot that is chosen, now or later, is filled with zeros before its turn.
                segment.allocated = 0
                found.append((slot, begin))
        pthread_mutex_unlock(&stream.lock)
        try:
            self.device.truncate(last + 1)
            for each, begin in found:
                if each <= last:
                    self.device.punch(each, begin)
        finally:
            self._zeroing_end()

    # Slots that hold something else than the stream. Who keeps it says so in its own records: in a
    # record that is stable before the slot's first use counts, and in one before it is given back.

    def take_slot(self, uint32_t spare=0):
        """A slot for the engine's own use; None when fewer than `spare` others would be free."""
        cdef uint32_t slot
        self._check(True)
        with self._giving_back:     # its blocks must not go after it was taken
            pthread_mutex_lock(&self.stream.lock)
            slot = chain_take(&self.stream, spare)
            pthread_mutex_unlock(&self.stream.lock)
        return None if slot == SLOT_NONE else slot

    def claim_slot(self, uint32_t slot):
        """While recovering: the engine's records say that this slot is its own."""
        if slot >= self.stream.slot_limit:
            raise Corruption(f"slot {slot} lies beyond the device", offset=slot)
        pthread_mutex_lock(&self.stream.lock)
        cdef int result = chain_claim(&self.stream, slot)
        pthread_mutex_unlock(&self.stream.lock)
        if result < 0:
            raise MemoryError("no memory for the segment table")
        if result:
            raise Corruption(f"slot {slot} holds a segment of the stream", offset=slot)

    def give_slot(self, uint32_t slot, *, bint punch=True):
        """Back to the stream, and its blocks to the file system. While recovering: punch=False,
        since it may hold something else by now."""
        cdef bint taken
        if punch and not self.read_only:
            self.device.punch(slot)
        pthread_mutex_lock(&self.stream.lock)
        taken = (slot < self.stream.slot_capacity
                 and self.stream.segments[slot].state == SEGMENT_TAKEN)
        if taken:
            chain_leave(&self.stream, slot)
            self.stream.segments[slot].allocated = 0    # zeros first, before the stream uses it
        pthread_mutex_unlock(&self.stream.lock)
        assert taken, slot

    @property
    def slots_free(self):
        """Slots that the stream and the engine may still take."""
        return max(0, <int64_t>self.stream.slots_max - <int64_t>self.stream.slots_used)

    @property
    def slots_max(self):
        """Slots that may be used at a time: those of the device, or less. What is used stays."""
        return self.stream.slots_max

    @slots_max.setter
    def slots_max(self, uint32_t slots):
        self.stream.slots_max = min(slots, self.stream.slot_limit)

    # Looking in

    def segments(self):
        """One dict a segment that is there, oldest first."""
        cdef ordered_t *stream = &self.stream
        cdef ordered_segment_t *segment
        found = []
        pthread_mutex_lock(&stream.lock)
        for slot in range(stream.slot_capacity):
            segment = &stream.segments[slot]
            if segment.version:
                found.append({
                    "version": segment.version, "slot": slot, "state": STATES[segment.state],
                    "filled_bytes": segment.filled, "live_bytes": segment.live_bytes,
                    "records": segment.records, "pins": segment.pins,
                    "empty_since": segment.empty_since,
                })
        pthread_mutex_unlock(&stream.lock)
        return sorted(found, key=lambda entry: entry["version"])

    def stats(self):
        counters = &self.stream.counters
        return {
            "segments_used": self.stream.slots_used,
            "segment_bytes": self.stream.segment_bytes,
            "records": load64_relaxed(&counters.records),
            "payload_bytes": load64_relaxed(&counters.payload_bytes),
            "pad_bytes": load64_relaxed(&counters.pad_bytes),
            "rewritten_bytes": load64_relaxed(&counters.rewritten_bytes),
            "zeroed_bytes": load64_relaxed(&counters.zeroed_bytes),
            "segments_opened": load64_relaxed(&counters.segments_opened),
            "aborts": load64_relaxed(&counters.aborts),
            "syncs": load64_relaxed(&counters.syncs),
            "sync_calls": load64_relaxed(&counters.sync_calls),
            "sync_shared": load64_relaxed(&counters.sync_shared),
            "buffer_waits": load64_relaxed(&counters.buffer_waits),
            "busy": load64_relaxed(&counters.busy),
            "sync_total_ns": load64_relaxed(&counters.sync_latency.total_ns),
            "failed": os.strerror(self.stream.failed) if self.stream.failed else "",
        }

    def check_invariants(self):
        """For tests and verify: what must always hold between two calls."""
        cdef ordered_t *stream = &self.stream
        cdef ordered_segment_t *segment
        cdef ordered_buffer_t *buffer
        cdef uint32_t used = 0, slot
        cdef uint64_t sequence
        pthread_mutex_lock(&stream.lock)
        try:
            for slot in range(stream.slot_capacity):
                segment = &stream.segments[slot]
                used += segment.state != SEGMENT_FREE
                assert segment.filled <= stream.segment_bytes
                assert segment.live_bytes <= stream.segment_bytes
                if segment.version:
                    assert segment.state in (SEGMENT_OPEN, SEGMENT_SEALED)
                    assert chain_find(stream, segment.version) == slot
            assert used == stream.slots_used
            assert stream.stable <= stream.end
            assert stream.next - stream.oldest <= stream.buffer_count
            for sequence in range(stream.oldest, stream.next):
                buffer = &stream.buffers[sequence % stream.buffer_count]
                assert buffer.sequence == sequence
                assert buffer.written <= stream.buffer_bytes
                assert buffer.filled <= stream.buffer_bytes
        finally:
            pthread_mutex_unlock(&stream.lock)

    # Closing

    def close(self):
        """Sync, write the clean mark, end. After a failure: no I/O at all. Idempotent."""
        if self._closed:
            return
        if self._pid != os.getpid():
            self._closed = True
            return
        try:
            if self._recovered is not None and not self.read_only and not self.stream.failed:
                self.sync()
                self.device.write_superblock(clean=True, stable_position=self.stable_position)
        finally:
            self._closed = True
            with nogil:
                ordered_stop(&self.stream)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


cdef class Group:
    """Records that recovery shows all together, at their commit mark, or not at all.

    One thread's. It holds no buffer: a group may be larger than all buffers together.
    """

    def __cinit__(self, OrderedLog log not None):
        memset(&self.group, 0, sizeof(group_t))
        self.log = log

    def append(self, int kind, const unsigned char[::1] payload not None, *, bint urgent=False):
        cdef part_t part
        cdef uint64_t position = 0
        cdef int result
        self._check()
        self.log._kind(kind)
        part.size = <uint64_t>payload.shape[0]
        part.data = &payload[0] if part.size else NULL
        with nogil:
            result = ordered_group_append(&self.log.stream, &self.group, kind, &part,
                                          1 if part.size else 0,
                                          ORDERED_URGENT if urgent else 0, &position)
        self.log._raise(result, position)
        return position

    def commit(self, bytes extra=b"", *, bint urgent=False):
        """The mark, with the engine's own bytes. Returns the position to sync up to."""
        cdef part_t part
        cdef uint64_t position = 0, end = 0
        cdef int result
        self._check()
        part.data = PyBytes_AS_STRING(extra)
        part.size = <uint64_t>len(extra)
        with nogil:
            result = ordered_group_commit(&self.log.stream, &self.group, &part,
                                          ORDERED_URGENT if urgent else 0, &position, &end)
        self.log._raise(result, position)
        self.done = True
        return end

    def abandon(self):
        """Without a mark its records count for nothing. The engine declares them dead."""
        if not self.done:
            self.done = True
            ordered_group_abandon(&self.log.stream, &self.group)

    def _check(self):
        if self.done:
            raise Closed("the group is closed")
        self.log._check(True)

    def __dealloc__(self):
        if self.log is not None and not self.done:
            ordered_group_abandon(&self.log.stream, &self.group)


cdef class Reservation:
    """A position whose payload is still to come."""

    def __cinit__(self, OrderedLog log not None):
        self.log = log
        self.done = True

    @property
    def position(self):
        return self.reservation.position

    def complete(self, const unsigned char[::1] payload not None):
        if self.done:
            raise Closed("the reservation is closed")
        if <uint64_t>payload.shape[0] != self.reservation.size:
            raise InvalidValue(f"{self.reservation.size} bytes were reserved, "
                               f"not {payload.shape[0]}")
        self.done = True
        if self.reservation.size:
            memcpy(self.reservation.payload, &payload[0], self.reservation.size)
        with nogil:
            ordered_complete(&self.log.stream, &self.reservation)
        return self.reservation.position

    def abort(self):
        """A pad record takes its place."""
        if not self.done:
            self.done = True
            with nogil:
                ordered_abort(&self.log.stream, &self.reservation)

    def __dealloc__(self):
        # Forgotten: what it holds up must go on.
        if self.log is not None and not self.done:
            ordered_abort(&self.log.stream, &self.reservation)
