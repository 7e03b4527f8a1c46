"""Moving pages out of sparse segments, so that those can be used again. See cleaning.pyx."""
from libc.stdint cimport int64_t, uint32_t, uint64_t

from siltstone.store.state cimport pages_t

cdef enum:
    # Segments to what pages say (of 1000) above which segments are cleaned, and so many more before
    # it begins. What chains repeat lives, but is none of it: the bound is of what users stored, and
    # so a store that is being filled, whose links repeat nothing, has the same room as one that is
    # overwritten. The bound is 2.0 and 16 segments: the rest is for what waits for checkpoints.
    # Measured (2026-11-25) beside 1.22 of live bytes and 7: filling with 1 M records cleaning moved
    # 134 bytes a record of 124 instead of 494; 200,000 records written six times had their peak at
    # 1.9 x (less 16 segments) instead of 2.07. Spare ones (2026-11-30): 40,000 records written six
    # times had their peak at 2.12 to 2.33 with 6, at 1.48 to 1.69 with 3; 200,000 are overwritten
    # a sixth faster with 5 or 6 than with 3.
    SPACE_PERMILLE = 1600
    SPARE_MIN = 3
    SPARE_MAX = 6
    SPARE_SHARE = 8
    # A segment that is fuller than this (of 1000) is not worth moving while the store is in use.
    CLEAN_BELOW = 900
    CLEAN_RATE = 8
    # Of what changes write, the part that the file's bound comes down by after deletions. Measured
    # (2026-12-01): deleting half of 200,000 records, pauses took 130 of 300 ms without, and with a
    # share of 1, 2, 4: 65, 50, 15.
    HELD_SHARE = 4

cdef struct space_t:
    uint64_t segment_bytes
    uint64_t segments           # with a version, the open one included
    uint64_t live_bytes
    uint64_t empty              # of them: without live bytes, waiting for checkpoints

# What pages have said at most, less a share of what changes have written since. Deleting leaves
# less to hold at once, but writes little: whoever does it does not wait for a smaller file, too.
cdef struct held_t:
    uint64_t content
    uint64_t written            # when space_behind() looked last

cdef void space_take(pages_t *pages, space_t *space) noexcept nogil
# Segments, with those that only wait for checkpoints, above what pages say, or have said (held_t).
cdef int64_t space_behind(pages_t *pages, held_t *held) noexcept nogil
# The sealed segment that is best moved: slot and version; -1: none is less than `below` (of 1000)
# full of live bytes and of a version below `before` (what was just moved is not moved again).
cdef int64_t space_victim(pages_t *pages, uint32_t below, uint64_t before,
                          uint64_t *version) noexcept nogil
# Move what lives in it. Without the lock. OK; PAGES_CORRUPT: some of it cannot be read, and the
# segment is pinned, never to be looked at again; PAGES_WAIT: an open group has records there.
cdef int segment_clean(pages_t *pages, uint32_t slot, uint64_t version) noexcept nogil
# Clean as long as it is due, the stream has opened at most `opened_max` segments in its life, and
# pages.stopping is 0; without the lock. Adds to both counts.
cdef int clean_while_due(pages_t *pages, uint64_t opened_max, uint64_t *cleaned,
                         uint64_t *damaged) noexcept nogil
