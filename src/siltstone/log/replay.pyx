"""Recovery's record loop: walks an ordered stream from a position to its end.

Reads whole segments, follows the chain (each header names the next two slots), and tells three
outcomes apart. S is the highest stable position in any valid run header, segment header,
superblock or checkpoint: everything below S had reached the medium. An invalid place at or above S
is the tail: the stream ends there, whatever valid bytes lie behind it. An invalid place below S is
damage: it is reported and the walk goes on with the next valid record. A segment whose header says
"after a cut" names the place where an earlier recovery ended its predecessor: what lies behind
that place is void and was never anybody's data. Writes nothing. One thread; no GIL needed.
"""
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.errno cimport ENODATA
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from siltstone.log.checksum cimport crc32c
from siltstone.log.device_io cimport DeviceHandle, device_read
from siltstone.log.format cimport (RECORD_HEADER_SIZE, RECORD_PAD, RECORD_SIZE_MIN, RUN_ALIGNMENT,
                                   RUN_HEADER_SIZE, RUN_MAGIC, SEGMENT_HEADER_SIZE, SLOT_NONE,
                                   record_bytes, record_check, record_header_t, run_first_record,
                                   run_header_offset, run_header_t, run_header_valid,
                                   segment_header_t, segment_header_valid, word_kind)
from siltstone.log.ordered cimport SEGMENT_AFTER_CUT

cdef enum:
    RECORD_STEP = 16
    READ_PIECE = 1 << 16


# Reading segments --------------------------------------------------------------------------------


cdef int read_image(walk_t *walk, uint32_t slot, char *image) noexcept nogil:
    """A whole segment; what the file does not have (truncated, never written) reads as zeros."""
    cdef uint64_t offset = 0, piece
    cdef int64_t got
    if device_read(walk.device, slot, 0, image, walk.segment_bytes, 0) >= 0:
        return 0
    # In pieces, so that one bad block costs no more than itself.
    while offset < walk.segment_bytes:
        piece = min(<uint64_t>READ_PIECE, walk.segment_bytes - offset)
        got = device_read(walk.device, slot, offset, image + offset, piece, 0)
        if got < 0:
            got = read_blocks(walk, slot, offset, image + offset, piece)
            if got < 0:
                walk.error = <int>-got
        offset += piece
    return 0


cdef int64_t read_blocks(walk_t *walk, uint32_t slot, uint64_t offset, char *image,
                         uint64_t size) noexcept nogil:
    cdef uint64_t done = 0, byte
    cdef int64_t got, result = 0
    while done < size:
        got = device_read(walk.device, slot, offset + done, image + done, RUN_ALIGNMENT, 0)
        if got < 0:
            memset(image + done, 0, RUN_ALIGNMENT)
            if got != -ENODATA:
                result = got
            else:               # the file may end inside this block
                byte = 0
                while byte < RUN_ALIGNMENT and device_read(
                        walk.device, slot, offset + done + byte, image + done + byte,
                        RECORD_STEP, 0) >= 0:
                    byte += RECORD_STEP
        done += RUN_ALIGNMENT
    return result


cdef bint read_header(walk_t *walk, uint32_t slot, segment_header_t *header) noexcept nogil:
    """Whether a valid segment header lies there."""
    if slot >= walk.device.segment_count:
        return False
    if device_read(walk.device, slot, 0, header, SEGMENT_HEADER_SIZE, 0) < 0:
        return False
    return segment_header_valid(header, walk.uuid, walk.segment_bytes, slot)


cdef bint frame_here(const char *image, uint64_t offset, uint32_t slot,
                     run_header_t *header) noexcept nogil:
    """A valid run header of any life of this slot; it carries version and salt itself."""
    memcpy(header, image + run_header_offset(offset), RUN_HEADER_SIZE)
    return (header.magic == RUN_MAGIC and header.slot == slot and header.offset == offset
            and header.version != 0
            and header.checksum == crc32c(0, header, RUN_HEADER_SIZE - 4))


# What is known to be stable ----------------------------------------------------------------------


cdef void note_stable(walk_t *walk, uint64_t position) noexcept nogil:
    if position > walk.stable:
        walk.stable = position


cdef void note_frames(walk_t *walk, const char *image, uint32_t slot, uint64_t version,
                      uint64_t offset) noexcept nogil:
    cdef run_header_t header
    while offset < walk.segment_bytes:
        if frame_here(image, offset, slot, &header) and header.version == version:
            note_stable(walk, header.stable_position)
        offset += RUN_ALIGNMENT


cdef void look_ahead(walk_t *walk) noexcept nogil:
    """Raise S by what the rest of the chain says. Once a walk, at the first invalid place."""
    cdef uint32_t slots[2]
    cdef uint64_t version = walk.version
    cdef segment_header_t header
    cdef int which
    cdef bint found = True
    if walk.looked_ahead:
        return
    walk.looked_ahead = True
    if walk.version:
        note_frames(walk, walk.image, walk.slot, walk.version,
                    walk.offset - walk.offset % RUN_ALIGNMENT)
    slots[0], slots[1] = walk.next_slots[0], walk.next_slots[1]
    while found:
        found = False
        for which in range(2):
            if not found and read_header(walk, slots[which], &header):
                if header.version > version:
                    found = True
        if found:
            version = header.version
            walk.version_max = max(walk.version_max, version)
            note_stable(walk, header.stable_position)
            read_image(walk, header.slot, walk.other)
            note_frames(walk, walk.other, header.slot, version, 0)
            slots[0], slots[1] = header.next_slots[0], header.next_slots[1]


# Segments ----------------------------------------------------------------------------------------


cdef void take_next(walk_t *walk, const segment_header_t *header) noexcept nogil:
    """The successor is known, and through it where this segment was cut, if it was."""
    cdef uint64_t base = walk.version * walk.segment_bytes
    walk.has_next = True
    walk.skipped = header.previous_version != walk.version
    walk.next_version = header.version
    walk.next_slot = header.slot
    walk.version_max = max(walk.version_max, header.version)
    note_stable(walk, header.stable_position)
    if header.flags & SEGMENT_AFTER_CUT and not walk.skipped:
        walk.limited = True
        if base <= header.stable_position < base + walk.segment_bytes:
            walk.limit = header.stable_position - base
            walk.cut_short = True


cdef void find_next(walk_t *walk) noexcept nogil:
    """Where the chain goes on: the first slot that the header names, else the one behind it."""
    cdef segment_header_t header
    walk.has_next = walk.skipped = walk.limited = walk.cut_short = False
    walk.limit = walk.segment_bytes
    if (read_header(walk, walk.next_slots[0], &header) and header.version > walk.version
            and header.previous_version == walk.version):
        take_next(walk, &header)
    elif (read_header(walk, walk.next_slots[1], &header) and header.version > walk.version
            and header.previous_version > walk.version):
        take_next(walk, &header)


cdef void search_next(walk_t *walk) noexcept nogil:
    """Its own header is lost: look at all of them for the one that names it. The newest, since
    what an earlier recovery dropped may name it too."""
    cdef segment_header_t header, best
    cdef uint32_t slot
    best.version = 0
    for slot in range(walk.slots_present):
        if read_header(walk, slot, &header) and header.previous_version == walk.version:
            if header.version > max(walk.version, best.version):
                best = header
    if best.version:
        take_next(walk, &best)


cdef int enter(walk_t *walk, uint32_t slot) noexcept nogil:
    """Read a segment and stand at its first run. DAMAGE_SEGMENT: its header is lost."""
    cdef segment_header_t header
    cdef run_header_t frame
    cdef uint64_t offset = 0
    cdef int reason = DAMAGE_NONE
    walk.offset = walk.run_end = 0
    read_image(walk, slot, walk.image)
    memcpy(&header, walk.image, SEGMENT_HEADER_SIZE)
    if segment_header_valid(&header, walk.uuid, walk.segment_bytes, slot):
        walk.version = header.version
        walk.salt = header.salt
        walk.next_slots[0] = header.next_slots[0]
        walk.next_slots[1] = header.next_slots[1]
        note_stable(walk, header.stable_position)
        walk.chain_broken = False
    else:
        reason = DAMAGE_SEGMENT
        walk.chain_broken = True
        # Its runs say version and salt too. The chain goes on with the second slot ahead.
        while offset < walk.segment_bytes:
            if frame_here(walk.image, offset, slot, &frame) and frame.version > walk.version:
                break
            offset += RUN_ALIGNMENT
        if offset >= walk.segment_bytes:
            walk.offset = walk.segment_bytes
            return DAMAGE_END
        walk.version = frame.version
        walk.salt = frame.salt
        walk.offset = offset
        walk.next_slots[0] = walk.next_slots[1]
        walk.next_slots[1] = SLOT_NONE
    walk.slot = slot
    walk.version_max = max(walk.version_max, walk.version)
    find_next(walk)
    if reason == DAMAGE_SEGMENT and (walk.skipped or not walk.has_next):
        search_next(walk)
    return reason


cdef int end_at(walk_t *walk, uint64_t position) noexcept nogil:
    """The end. Below S it is damage first: something that was stable is missing."""
    walk.position = position
    if position < walk.stable and not walk.ended:
        walk.ended = True
        walk.reason = DAMAGE_END
        return WALK_DAMAGE
    walk.ended = True
    walk.position = max(position, walk.stable)
    return WALK_END


cdef int leave(walk_t *walk) noexcept nogil:
    """From the end of a segment into the next one."""
    cdef uint64_t end = (walk.version + 1) * walk.segment_bytes
    cdef uint64_t version = walk.version
    cdef uint32_t wanted = walk.next_slots[0], after = walk.next_slots[1], slot
    cdef int reason
    if walk.has_next and not walk.skipped:
        reason = enter(walk, walk.next_slot)
        return WALK_SEGMENT
    walk.position = end
    look_ahead(walk)
    if end >= walk.stable:
        return end_at(walk, end)
    # A stable segment is missing: look for its runs, else go on behind it.
    slot = walk.next_slot
    reason = DAMAGE_END
    if wanted < walk.device.segment_count:
        reason = enter(walk, wanted)
    if reason != DAMAGE_SEGMENT:
        if not walk.skipped:
            return end_at(walk, end)
        walk.version = version
        enter(walk, slot)
    walk.position = end
    walk.reason = DAMAGE_SEGMENT
    return WALK_DAMAGE


# Inside a segment --------------------------------------------------------------------------------


cdef bint run_at(walk_t *walk, uint64_t offset, run_header_t *header) noexcept nogil:
    memcpy(header, walk.image + run_header_offset(offset), RUN_HEADER_SIZE)
    return run_header_valid(header, walk.salt, walk.version, walk.slot, offset,
                            walk.segment_bytes)


cdef uint64_t next_run(walk_t *walk, uint64_t offset) noexcept nogil:
    """Offset of the next valid run header at or above `offset`, else the segment's end."""
    cdef run_header_t header
    offset += (RUN_ALIGNMENT - offset % RUN_ALIGNMENT) % RUN_ALIGNMENT
    while offset < walk.segment_bytes and not run_at(walk, offset, &header):
        offset += RUN_ALIGNMENT
    return offset


cdef uint64_t next_record(walk_t *walk) noexcept nogil:
    """After a bad record: the next place in this run where a record validates, else its end."""
    cdef uint64_t offset = walk.offset + RECORD_STEP
    cdef uint64_t base = walk.version * walk.segment_bytes
    while offset + RECORD_SIZE_MIN <= walk.run_end:
        if record_check(walk.image + offset, walk.run_end - offset, walk.salt, base + offset) >= 0:
            return offset
        offset += RECORD_STEP
    return walk.run_end


cdef int invalid(walk_t *walk, uint32_t reason) noexcept nogil:
    """Damage, or the tail? Damage moves the cursor to where the walk can go on."""
    cdef uint64_t base = walk.version * walk.segment_bytes
    cdef uint64_t position = base + walk.offset
    if not walk.limited:
        look_ahead(walk)
        if position >= walk.stable:
            return end_at(walk, position)
    walk.position = position
    walk.reason = reason
    if reason == DAMAGE_RUN:
        walk.offset = next_run(walk, walk.offset + RUN_ALIGNMENT)
        walk.run_end = 0
    else:
        walk.offset = next_record(walk)
    # What lies beyond S behind a gap may have lost its predecessors: it is not taken.
    if not walk.limited and base + walk.offset > walk.stable and walk.stable > position:
        if walk.stable < base + walk.segment_bytes:
            walk.limit = walk.stable - base
            walk.limited = True
            walk.has_next = walk.skipped = False
            walk.cut_short = True
    return WALK_DAMAGE


cdef int walk_next(walk_t *walk) noexcept nogil:
    cdef run_header_t run
    cdef record_header_t header
    cdef int64_t size
    cdef uint64_t base
    if walk.ended:
        return end_at(walk, walk.position)
    while True:
        base = walk.version * walk.segment_bytes
        if walk.offset >= walk.limit:
            if walk.cut_short and not walk.has_next:
                return end_at(walk, base + walk.limit)
            return leave(walk)
        if walk.run_end == 0:
            if not run_at(walk, walk.offset, &run):
                return invalid(walk, DAMAGE_RUN)
            note_stable(walk, run.stable_position)
            walk.run_end = walk.offset + run.length
            walk.offset = run_first_record(walk.offset)
        if walk.offset + RECORD_SIZE_MIN > walk.run_end:
            walk.offset = walk.run_end
            walk.run_end = 0
            continue
        if walk.offset >= walk.limit:
            continue
        size = record_check(walk.image + walk.offset, walk.run_end - walk.offset, walk.salt,
                            base + walk.offset)
        if size < 0 or walk.offset + record_bytes(size) > walk.run_end:
            return invalid(walk, DAMAGE_RECORD)
        memcpy(&header, walk.image + walk.offset, RECORD_HEADER_SIZE)
        walk.position = base + walk.offset
        walk.kind = word_kind(header.word)
        walk.checksum = header.checksum
        walk.payload = walk.image + walk.offset + RECORD_HEADER_SIZE
        walk.size = <uint32_t>size
        walk.offset += record_bytes(size)
        return WALK_RECORD


cdef int walk_start(walk_t *walk, uint32_t slot, uint64_t position) noexcept nogil:
    """WALK_SEGMENT, or WALK_END when there is no stream (position 0), or WALK_DAMAGE."""
    cdef uint64_t offset = position % walk.segment_bytes, run
    cdef run_header_t header
    cdef int reason
    walk.version = position // walk.segment_bytes - 1 if position else 0
    walk.next_slots[0] = walk.next_slots[1] = SLOT_NONE
    walk.ended = walk.looked_ahead = False
    reason = enter(walk, slot)
    if reason == DAMAGE_END or (position and walk.version != position // walk.segment_bytes):
        walk.version = position // walk.segment_bytes
        return end_at(walk, position)
    if reason == DAMAGE_SEGMENT and position == 0:
        note_frames(walk, walk.image, slot, walk.version, 0)
        look_ahead(walk)
        if walk.stable <= walk.version * walk.segment_bytes:
            walk.version = 0        # nothing of it was ever promised: a stream not yet begun
            walk.chain_broken = False
            return end_at(walk, 0)
        walk.reason = DAMAGE_SEGMENT
        walk.position = walk.version * walk.segment_bytes
        return WALK_DAMAGE
    if position == 0 or offset == 0:
        return WALK_SEGMENT
    run = walk.offset = 0
    while run < walk.segment_bytes and walk.run_end == 0:
        if run_at(walk, run, &header) and run + header.length > offset:
            walk.run_end = run + header.length
            note_stable(walk, header.stable_position)
        run += RUN_ALIGNMENT
    walk.offset = offset
    if walk.run_end <= offset:
        walk.run_end = next_run(walk, offset)
    return WALK_SEGMENT


# As Python sees it -------------------------------------------------------------------------------


cdef class Walk:
    """Events of a walk, as tuples. For recovery, which handles groups and checkpoints above it.

    ("segment", version, slot, salt) | ("record", kind, position, payload, checksum) |
    ("damage", reason, position, slot) | ("end", position)
    """

    REASONS = ("", "segment header", "run header", "record",
               "the stream ends before what is stable")

    def __cinit__(self, DeviceHandle handle not None, bytes uuid not None, uint64_t stable=0,
                  uint32_t slots_present=0):
        memset(&self.walk, 0, sizeof(walk_t))
        self.handle = handle
        self.walk.device = &handle.device
        self.walk.segment_bytes = handle.device.segment_bytes
        self.walk.stable = stable
        self.walk.slots_present = slots_present
        if len(uuid) != 16:
            raise ValueError("a uuid has 16 bytes")
        memcpy(self.walk.uuid, PyBytes_AS_STRING(uuid), 16)
        self.walk.image = <char *>malloc(self.walk.segment_bytes)
        self.walk.other = <char *>malloc(self.walk.segment_bytes)
        if self.walk.image == NULL or self.walk.other == NULL:
            raise MemoryError()

    def __dealloc__(self):
        free(self.walk.image)
        free(self.walk.other)

    def start(self, uint32_t slot=0, uint64_t position=0):
        """The first event."""
        cdef int event
        with nogil:
            event = walk_start(&self.walk, slot, position)
        return self._event(event)

    def next(self, uint8_t low=0, uint8_t high=RECORD_PAD - 1):
        """The next one; of records only those of kinds `low` to `high`."""
        cdef int event = WALK_RECORD
        with nogil:
            while event == WALK_RECORD:
                event = walk_next(&self.walk)
                if event == WALK_RECORD and low <= self.walk.kind <= high:
                    break
        return self._event(event)

    cdef object _event(self, int event):
        cdef walk_t *walk = &self.walk
        if event == WALK_RECORD:
            payload = PyBytes_FromStringAndSize(walk.payload, walk.size)
            return "record", walk.kind, walk.position, payload, walk.checksum
        if event == WALK_SEGMENT:
            return "segment", walk.version, walk.slot, walk.salt
        if event == WALK_DAMAGE:
            return "damage", self.REASONS[walk.reason], walk.position, walk.slot
        return "end", walk.position

    @property
    def segment(self):
        """(version, slot, salt) of the segment that the walk stands in."""
        return self.walk.version, self.walk.slot, self.walk.salt

    @property
    def next_slots(self):
        return self.walk.next_slots[0], self.walk.next_slots[1]

    @property
    def stable(self):
        return self.walk.stable

    @property
    def version_max(self):
        return self.walk.version_max

    @property
    def chain_broken(self):
        return self.walk.chain_broken

    @property
    def read_errors(self):
        return self.walk.error
