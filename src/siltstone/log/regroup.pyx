"""Replay: one walk from where a checkpoint says to the end of the stream, records to the engine.

A group's records are shown at its commit mark, together, or never. Payloads of groups whose mark
has yet to come are kept up to a limit; of the rest only the places, read again at the mark.
Live bytes: every record behind the checkpoint's moment counts when it counts for the engine; what a
group had appended before the moment is in the checkpoint's table already, and is taken out again
when its mark never comes. Decides nothing; ordered_recovery.py says from where and what it means.
"""
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.errno cimport EIO, ENOMEM
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy, memset

from siltstone.log.checksum cimport crc32c
from siltstone.log.device_io cimport device_read
from siltstone.log.format cimport RECORD_HEADER_SIZE, RECORD_PAD, record_bytes
from siltstone.log.ordered cimport (COMMIT_SIZE, GROUP_ID_SIZE, ORDERED_COMMIT, ORDERED_GROUPED,
                                    ORDERED_KIND_MAX, ordered_dead, ordered_live, ordered_t)
from siltstone.log.ordered_log cimport OrderedLog
from siltstone.log.replay cimport WALK_RECORD, Walk, walk_next, walk_t

cdef enum:
    STOPPED = 100               # the engine refused a record

cdef struct grouped_t:
    uint64_t position
    uint32_t slot
    uint32_t size               # of the engine's payload
    uint8_t kind
    char *payload               # NULL: to be read again

cdef struct open_group_t:
    uint64_t identity           # 0: not in use
    grouped_t *records
    uint32_t count
    uint32_t capacity
    uint32_t crc

cdef struct replay_t:
    ordered_t *stream
    walk_t *walk
    visit_t visit
    void *context
    uint64_t start              # the checkpoint's moment
    open_group_t *groups
    uint32_t group_count
    uint64_t kept_bytes
    uint64_t kept_bytes_max
    uint64_t records
    uint64_t committed
    int result                  # why the engine stopped
    uint64_t bad_mark           # position of a mark whose group is not whole
    uint32_t bad_found
    uint32_t bad_expected


cdef class Visitor:
    pass


# Groups ------------------------------------------------------------------------------------------


cdef open_group_t *group_find(replay_t *replay, uint64_t identity, bint make) noexcept nogil:
    cdef uint32_t number
    cdef open_group_t *larger
    cdef open_group_t *unused = NULL
    for number in range(replay.group_count):
        if replay.groups[number].identity == identity:
            return &replay.groups[number]
        if replay.groups[number].identity == 0:
            unused = &replay.groups[number]
    if not make:
        return NULL
    if unused == NULL:
        larger = <open_group_t *>realloc(replay.groups,
                                         (replay.group_count + 16) * sizeof(open_group_t))
        if larger == NULL:
            return NULL
        memset(larger + replay.group_count, 0, 16 * sizeof(open_group_t))
        unused = &larger[replay.group_count]
        replay.groups = larger
        replay.group_count += 16
    unused.identity = identity
    return unused


cdef void group_end(replay_t *replay, open_group_t *group) noexcept nogil:
    cdef uint32_t number
    for number in range(group.count):
        if group.records[number].payload != NULL:
            replay.kept_bytes -= group.records[number].size
            free(group.records[number].payload)
    free(group.records)
    memset(group, 0, sizeof(open_group_t))


cdef int grouped(replay_t *replay) noexcept nogil:
    """A record of a group: kept until the mark."""
    cdef walk_t *walk = replay.walk
    cdef uint64_t identity = 0
    cdef open_group_t *group
    cdef grouped_t *larger
    cdef grouped_t *record
    if walk.size < GROUP_ID_SIZE:
        return 0
    memcpy(&identity, walk.payload, GROUP_ID_SIZE)
    group = group_find(replay, identity if identity else walk.position, True)
    if group == NULL:
        return -ENOMEM
    if group.count == group.capacity:
        larger = <grouped_t *>realloc(group.records,
                                      (2 * group.capacity + 4) * sizeof(grouped_t))
        if larger == NULL:
            return -ENOMEM
        group.records = larger
        group.capacity = 2 * group.capacity + 4
    record = &group.records[group.count]
    record.position = walk.position
    record.slot = walk.slot
    record.size = walk.size - GROUP_ID_SIZE
    record.kind = walk.kind & ~<uint8_t>ORDERED_GROUPED
    record.payload = NULL
    if replay.kept_bytes + record.size <= replay.kept_bytes_max:
        record.payload = <char *>malloc(record.size + 1)
        if record.payload == NULL:
            return -ENOMEM
        memcpy(record.payload, walk.payload + GROUP_ID_SIZE, record.size)
        replay.kept_bytes += record.size
    group.count += 1
    group.crc = crc32c(group.crc, &walk.checksum, 4)
    return 0


cdef int show(replay_t *replay, uint32_t kind, uint64_t position, const char *payload,
              uint64_t size, uint64_t mark) noexcept nogil:
    cdef int result = 0
    if kind != ORDERED_COMMIT:
        replay.records += 1
    if replay.visit != NULL:
        result = replay.visit(replay.context, kind, position, payload, size, mark)
    if result != 0:
        replay.result = result
        return STOPPED
    return 0


cdef int show_grouped(replay_t *replay, const grouped_t *record, uint64_t mark) noexcept nogil:
    """Its payload was kept, or is read again."""
    cdef uint64_t offset = record.position % replay.stream.segment_bytes
    cdef char *again
    cdef int result
    if record.position >= replay.start:
        ordered_live(replay.stream, record.position, record_bytes(record.size + GROUP_ID_SIZE))
    if record.payload != NULL:
        return show(replay, record.kind, record.position, record.payload, record.size, mark)
    again = <char *>malloc(record.size + 1)
    if again == NULL:
        return -ENOMEM
    if device_read(replay.walk.device, record.slot, offset + RECORD_HEADER_SIZE + GROUP_ID_SIZE,
                   again, record.size, 0) < 0:
        free(again)
        return -EIO
    result = show(replay, record.kind, record.position, again, record.size, mark)
    free(again)
    return result


cdef int commit(replay_t *replay) noexcept nogil:
    cdef walk_t *walk = replay.walk
    cdef uint64_t identity = 0, position = walk.position
    cdef uint32_t expected = 0, crc = 0, number, found = 0
    cdef open_group_t *group
    cdef int result = 0
    if walk.size < COMMIT_SIZE:
        return 0
    memcpy(&identity, walk.payload, 8)
    memcpy(&expected, walk.payload + 8, 4)
    memcpy(&crc, walk.payload + 8 + 4, 4)
    group = group_find(replay, identity, False)
    if group != NULL:
        found = group.count
    if found != expected or (group != NULL and group.crc != crc):
        replay.bad_mark = position
        replay.bad_found, replay.bad_expected = found, expected
        if group != NULL:
            group_end(replay, group)
        return 0
    replay.committed += 1
    for number in range(found):
        if result == 0:
            result = show_grouped(replay, &group.records[number], position)
    if result == 0:
        result = show(replay, ORDERED_COMMIT, position, walk.payload + COMMIT_SIZE,
                      walk.size - COMMIT_SIZE, position)
    if group != NULL:
        group_end(replay, group)
    return result


# The loop ----------------------------------------------------------------------------------------


cdef int record(replay_t *replay) noexcept nogil:
    cdef walk_t *walk = replay.walk
    if walk.kind == RECORD_PAD:
        return 0
    if walk.kind & ORDERED_GROUPED:
        return grouped(replay)
    if walk.position < replay.start:
        return 0
    if walk.kind == ORDERED_COMMIT:
        return commit(replay)
    if walk.kind <= ORDERED_KIND_MAX:
        ordered_live(replay.stream, walk.position, record_bytes(walk.size))
        return show(replay, walk.kind, walk.position, walk.payload, walk.size, walk.position)
    return 0


cdef int run(replay_t *replay, int *event) noexcept nogil:
    """Until the walk says something else than a record, or a mark's group is not whole."""
    cdef int result = 0
    while result == 0 and replay.bad_mark == 0:
        event[0] = walk_next(replay.walk)
        if event[0] != WALK_RECORD:
            break
        result = record(replay)
    return result


cdef int python_visit(void *context, uint32_t kind, uint64_t position, const char *payload,
                      uint64_t size, uint64_t mark) noexcept with gil:
    """A Python engine's function; its exception is kept and raised by Replay.run()."""
    cdef Replay replay = <Replay>context
    try:
        replay.function(kind, position, PyBytes_FromStringAndSize(payload, size), mark)
    except BaseException as error:
        replay.error = error
        return 1
    return 0


cdef class Replay:
    """`run()` gives the walk's other events ("segment", "damage", "end"; "incomplete" for a mark
    whose group is not whole) one by one, and shows all records in between."""

    cdef replay_t replay
    cdef Walk walk
    cdef OrderedLog log
    cdef object function
    cdef object error

    def __cinit__(self, OrderedLog log not None, Walk walk not None, visit, uint64_t start,
                  uint64_t kept_bytes_max):
        self.walk, self.log = walk, log
        self.replay.stream = &log.stream
        self.replay.walk = &walk.walk
        self.replay.start = start
        self.replay.kept_bytes_max = kept_bytes_max
        if isinstance(visit, Visitor):
            self.replay.visit = (<Visitor>visit).visit
            self.replay.context = (<Visitor>visit).context
        elif visit is not None:
            self.function = visit
            self.replay.visit = <visit_t>python_visit
            self.replay.context = <void *>self

    def __dealloc__(self):
        cdef uint32_t number
        for number in range(self.replay.group_count):
            group_end(&self.replay, &self.replay.groups[number])
        free(self.replay.groups)

    def run(self):
        """The next event that is no record."""
        cdef int event = WALK_RECORD, result
        cdef replay_t *replay = &self.replay
        with nogil:
            result = run(replay, &event)
        if result == STOPPED:
            if self.error is not None:
                raise self.error
            return "stopped", replay.result
        if result == -ENOMEM:
            raise MemoryError("no memory for an open group")
        if result < 0:
            raise OSError(-result, "a group's record cannot be read again")
        if replay.bad_mark:
            found = "incomplete", replay.bad_mark, replay.bad_found, replay.bad_expected
            replay.bad_mark = 0
            return found
        return self.walk._event(event)

    def never_committed(self, groups):
        """Of these ids: what they had appended before the checkpoint counts in its table."""
        cdef open_group_t *group
        cdef uint32_t number
        for identity in groups:
            group = group_find(&self.replay, identity, False)
            for number in range(group.count if group != NULL else 0):
                if group.records[number].position < self.replay.start:
                    ordered_dead(self.replay.stream, group.records[number].position,
                                 record_bytes(group.records[number].size + GROUP_ID_SIZE))

    @property
    def records(self):
        return self.replay.records

    @property
    def groups(self):
        return self.replay.committed

    @property
    def groups_open(self):
        cdef uint32_t number, count = 0
        for number in range(self.replay.group_count):
            count += self.replay.groups[number].identity != 0
        return count
