"""Walking an ordered stream's chain of segments, record by record. See replay.pyx."""
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t

from siltstone.log.device_io cimport DeviceHandle, device_t

cdef enum walk_event_t:
    WALK_END = 0            # the stream ends at `position`
    WALK_RECORD = 1         # kind, position, payload, size, checksum
    WALK_SEGMENT = 2        # entered: version, slot, salt
    WALK_DAMAGE = 3         # below stable: reason, position; what follows is still walked

cdef enum walk_reason_t:
    DAMAGE_NONE = 0
    DAMAGE_SEGMENT = 1      # segment header
    DAMAGE_RUN = 2          # run header
    DAMAGE_RECORD = 3
    DAMAGE_END = 4          # the stream ends before its stable position

cdef struct walk_t:
    device_t *device
    uint8_t uuid[16]
    uint64_t segment_bytes
    char *image             # of the present segment
    char *other             # of segments that are looked at ahead
    # The present segment
    uint64_t version
    uint32_t slot
    uint32_t salt
    uint32_t next_slots[2]
    uint64_t offset         # cursor
    uint64_t run_end        # 0 = at the front of a run
    uint64_t limit          # segment_bytes, or where the stream was cut in an earlier recovery
    bint limited            # `limit` is known from the next segment's header
    bint cut_short          # the stream was cut in this segment
    # The next one, if its header is valid
    bint has_next
    bint skipped            # the one in between is missing
    uint64_t next_version
    uint32_t next_slot
    uint32_t slots_present  # to be looked at when the chain is lost
    # What is known to be on the medium
    uint64_t stable
    uint64_t version_max    # seen anywhere
    bint looked_ahead
    bint ended
    bint chain_broken       # the last segment's header is lost: where it goes on is not known
    # The event
    uint64_t position
    uint8_t kind
    const char *payload
    uint32_t size
    uint32_t checksum
    uint32_t reason
    int32_t error           # errno of a device that failed

# `slot` and `position` say where to begin: (0, 0) = the first segment there ever was.
cdef int walk_start(walk_t *walk, uint32_t slot, uint64_t position) noexcept nogil
cdef int walk_next(walk_t *walk) noexcept nogil             # walk_event_t, or -errno

cdef class Walk:
    cdef walk_t walk
    cdef readonly DeviceHandle handle
    cdef object _event(self, int event)
