"""The head: the newest samples of every live series, in memory, and the way of samples to the log.

Owns, for each live series, at most 256 samples in order (4 KiB), and as many that came late. A
sample is journaled first (in batches: `flush` hands them to the log), then visible. A full head is
sealed, here and at once, into a small chunk (smallchunk.pyx); the engine collects these and writes
them to segments. What is sealed keeps its journal records until the engine checkpoints.

In order is what is newer than all of its series; the newest sample again is overwritten; what is
older by at most the window is late, and kept apart; the rest is rejected. Each of these is counted.
A chunk's sequence says which sample of equal times counts: the higher. Hence late samples are
sealed only behind the head that they may correct.

Any thread may call; the lock is never held while Python runs. Series are found by id or handle.
"""
from cpython.bytes cimport PyBytes_AS_STRING
from cpython.ref cimport Py_DECREF, Py_INCREF, PyObject
from libc.stdint cimport INT64_MIN, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcpy, memmove, memset

import os

import numpy as np

from siltstone.errors import Closed, ForkedProcess, InvalidValue, KeyMissing
from siltstone.log.format cimport record_bytes
from siltstone.log.log cimport LOG_NO_SEGMENT, LOG_OK
from siltstone.log.ordered cimport ordered_append, ordered_dead, ordered_payload_max
from siltstone.log.pthread cimport (pthread_mutex_destroy, pthread_mutex_init, pthread_mutex_lock,
                                    pthread_mutex_trylock, pthread_mutex_unlock)
from siltstone.metrics.smallchunk cimport SMALL_CODEC, small_bound, small_encode, small_even

cdef enum:
    BATCH_BYTES = 1 << 16
    POINT_SIZE = 4 + 8 + 8          # id, time, value
    LABELS_HEADER = 4 + 4           # id, size
    RUN_HEADER = 4 + 4 + 4 + 4 + 8 + 8  # id, count, flags, 0, first time, step
    RUN_UNEVEN = 1                  # flag: the times are there
    FIRST_SAMPLES = 8

cdef int forks = 0              # since the program began: a child must not write for its parent


def _forked():
    global forks
    forks += 1


os.register_at_fork(after_in_child=_forked)

CHUNK = np.dtype([
    ("series", "<u4"), ("offset", "<u4"), ("size", "<u4"), ("count", "<u4"), ("start_ms", "<i8"),
    ("end_ms", "<i8"), ("sequence", "<u8"), ("crc", "<u4"), ("consumed", "<u4"), ("codec", "<u2"),
    ("flags", "<u2"), ("spare", "<u4"),
])
CHUNK_SIZE = sizeof(chunk_t)
assert CHUNK.itemsize == CHUNK_SIZE == 4 * 4 + 3 * 8 + 2 * 4 + 2 * 2 + 4
KEY_BYTES_MAX = 8192
NONE_MS = INT64_MIN


# Memory of a series ------------------------------------------------------------------------------


cdef bint grow(int64_t **times, double **values, uint16_t count, uint16_t *capacity) noexcept nogil:
    """Room for one more: doubled, times and values in one block."""
    cdef uint16_t wanted = max(<uint16_t>FIRST_SAMPLES, <uint16_t>(2 * capacity[0]))
    cdef int64_t *block
    if count < capacity[0]:
        return True
    block = <int64_t *>malloc(wanted * 16)
    if block == NULL:
        return False
    if count:
        memcpy(block, times[0], count * 8)
        memcpy(block + wanted, values[0], count * 8)
    free(times[0])
    times[0] = block
    values[0] = <double *>(block + wanted)
    capacity[0] = wanted
    return True


cdef bint room(series_t *series) noexcept nogil:
    return grow(&series.times, &series.values, series.count, &series.capacity)


cdef void give_memory(series_t *series) noexcept nogil:
    """An empty head and no late samples need none."""
    if series.count == 0:
        free(series.times)
        series.times = NULL
        series.capacity = 0
    if series.late_count == 0:
        free(series.late_times)
        series.late_times = NULL
        series.late_capacity = 0


# Sealing -----------------------------------------------------------------------------------------


cdef bint chunk_room(Head head, uint32_t count) noexcept nogil:
    cdef uint64_t wanted = head.data_size + small_bound(count)
    cdef uint32_t capacity = max(<uint32_t>64, 2 * head.chunk_capacity)
    cdef void *block
    if head.chunk_count == head.chunk_capacity:
        block = realloc(head.chunks, capacity * sizeof(chunk_t))
        if block == NULL:
            return False
        head.chunks = <chunk_t *>block
        head.chunk_capacity = capacity
    if wanted > head.data_capacity:
        wanted = max(2 * wanted, <uint64_t>1 << 16)
        block = realloc(head.data, wanted)
        if block == NULL:
            return False
        head.data = <char *>block
        head.data_capacity = wanted
    return True


cdef bint seal_samples(Head head, uint32_t id, const int64_t *times, const double *values,
                       uint32_t count, uint32_t consumed, uint16_t flags) noexcept nogil:
    cdef chunk_t *chunk
    if not chunk_room(head, count):
        return False
    chunk = &head.chunks[head.chunk_count]
    memset(chunk, 0, sizeof(chunk_t))
    chunk.series = id
    chunk.offset = <uint32_t>head.data_size
    chunk.size = <uint32_t>small_encode(times, values, count, head.data + head.data_size)
    chunk.count = count
    chunk.consumed = consumed
    chunk.start_ms = times[0]
    chunk.end_ms = times[count - 1]
    chunk.codec = SMALL_CODEC
    chunk.flags = flags
    head.sequence += 1
    chunk.sequence = head.sequence
    head.data_size += chunk.size
    head.chunk_count += 1
    head.counters.sealed_chunks += 1
    head.counters.sealed_samples += count
    head.counters.sealed_bytes += chunk.size
    return True


cdef bint seal_head(Head head, series_t *series) noexcept nogil:
    if series.count == 0:
        return True
    if not seal_samples(head, series.id, series.times, series.values, series.count, series.count,
                        0):
        return False
    series.count = 0
    return True


cdef uint32_t sort_late(series_t *series) noexcept nogil:
    """By time; of equal times the one that came last. How many are left."""
    cdef uint32_t n, place, kept = 0
    cdef int64_t time
    cdef double value
    for n in range(series.late_count):
        time = series.late_times[n]
        value = series.late_values[n]
        place = kept
        while place > 0 and series.late_times[place - 1] > time:
            place -= 1
        if place > 0 and series.late_times[place - 1] == time:
            series.late_values[place - 1] = value
            continue
        # What is moved was placed before: the samples still to come lie at n + 1 and above.
        memmove(series.late_times + place + 1, series.late_times + place, (kept - place) * 8)
        memmove(series.late_values + place + 1, series.late_values + place, (kept - place) * 8)
        series.late_times[place] = time
        series.late_values[place] = value
        kept += 1
    return kept


cdef bint seal_late(Head head, series_t *series) noexcept nogil:
    cdef uint32_t kept
    if series.late_count == 0:
        return True
    if not seal_head(head, series) or not chunk_room(head, series.late_count):
        return False
    kept = sort_late(series)
    seal_samples(head, series.id, series.late_times, series.late_values, kept,
                 series.late_count, CHUNK_LATE)
    series.late_count = 0
    return True


# The journal -------------------------------------------------------------------------------------


cdef int journal(Head head, uint8_t kind, const part_t *parts, uint32_t count) noexcept nogil:
    """A record that the next checkpoint replaces: counted as dead from the start."""
    cdef uint64_t position = 0, size = 0
    cdef uint32_t number
    cdef int result = ordered_append(&head.log.stream, kind, parts, count, 0, &position)
    if result == LOG_OK:
        for number in range(count):
            size += parts[number].size
        ordered_dead(&head.log.stream, position, record_bytes(size))
        head.counters.journal_bytes += record_bytes(size)
        head.counters.journal_records += 1
    return result


cdef int flush_labels(Head head) noexcept nogil:
    cdef part_t part
    cdef int result
    if head.labels_filled == 0:
        return LOG_OK
    part.data = head.labels
    part.size = head.labels_filled
    result = journal(head, JOURNAL_SERIES, &part, 1)
    if result == LOG_OK:
        head.labels_filled = 0
    return result


cdef int define(Head head, series_t *series) noexcept nogil:
    """Its labels go to the journal before its first sample of this epoch."""
    cdef uint32_t size = series.key_size
    cdef int result
    if head.labels_filled + LABELS_HEADER + size > head.batch_size:
        result = flush_labels(head)
        if result != LOG_OK:
            return result
    memcpy(head.labels + head.labels_filled, &series.id, 4)
    memcpy(head.labels + head.labels_filled + 4, &size, 4)
    memcpy(head.labels + head.labels_filled + LABELS_HEADER, series.key_data, size)
    head.labels_filled += LABELS_HEADER + size
    series.epoch = head.epoch
    return LOG_OK


cdef inline int batch_point(Head head, series_t *series, int64_t time, double value,
                            bint late) noexcept nogil:
    cdef uint32_t id = series.id | (ID_LATE if late else 0)
    cdef char *to
    cdef int result
    if series.epoch != head.epoch:
        result = define(head, series)
        if result != LOG_OK:
            return result
    if head.batch_filled + POINT_SIZE > head.batch_size:
        result = head.flush_locked()
        if result != LOG_OK:
            return result
    to = head.batch + head.batch_filled
    memcpy(to, &id, 4)
    memcpy(to + 4, &time, 8)
    memcpy(to + 4 + 8, &value, 8)
    head.batch_filled += POINT_SIZE
    return LOG_OK


cdef int journal_run(Head head, series_t *series, const int64_t *times, const double *values,
                     uint32_t count) noexcept nogil:
    cdef bint is_even = small_even(times, count)
    cdef char header[RUN_HEADER]
    cdef uint32_t flags = 0 if is_even else RUN_UNEVEN
    cdef int64_t step = times[1] - times[0] if count > 1 else 0
    cdef part_t parts[3]
    cdef int result = LOG_OK
    if series.epoch != head.epoch:
        result = define(head, series)
    if result == LOG_OK:
        result = head.flush_locked()
    if result != LOG_OK:
        return result
    memset(header, 0, RUN_HEADER)
    memcpy(header, &series.id, 4)
    memcpy(header + 4, &count, 4)
    memcpy(header + 8, &flags, 4)
    memcpy(header + 16, times, 8)
    memcpy(header + 24, &step, 8)
    parts[0].data = header
    parts[0].size = RUN_HEADER
    parts[1].data = <const char *>values
    parts[1].size = <uint64_t>count * 8
    parts[2].data = <const char *>times
    parts[2].size = <uint64_t>count * 8
    return journal(head, JOURNAL_RUN, parts, 2 if is_even else 3)


# Filling -----------------------------------------------------------------------------------------


cdef inline void note_last(series_t *series, const double *value) noexcept nogil:
    memcpy(&series.last, value, 8)      # its bits, see copy_range()
    series.has_last = True


cdef int fill(Head head, series_t *series, const int64_t *times, const double *values,
              int64_t count) noexcept nogil:
    """Samples that rise from above the newest, journaled: into the head, sealing it when full."""
    cdef int64_t done = 0, some
    while done < count:
        if series.count == HEAD_SAMPLES and not seal_head(head, series):
            return PUT_NO_MEMORY
        if series.count == 0 and count - done >= HEAD_SAMPLES:
            if not seal_samples(head, series.id, times + done, values + done, HEAD_SAMPLES,
                                HEAD_SAMPLES, 0):
                return PUT_NO_MEMORY
            some = HEAD_SAMPLES
        else:
            if not room(series):
                return PUT_NO_MEMORY
            some = min(count - done, <int64_t>(series.capacity - series.count))
            memcpy(series.times + series.count, times + done, some * 8)
            memcpy(series.values + series.count, values + done, some * 8)
            series.count += <uint16_t>some
        done += some
    series.newest = times[count - 1]
    note_last(series, &values[count - 1])
    head.counters.samples += count
    return LOG_OK


cdef bint rising(series_t *series, const int64_t *times, int64_t count) noexcept nogil:
    cdef int64_t n
    cdef bint good = times[0] > series.newest
    for n in range(1, count):
        good &= times[n] > times[n - 1]
    return good


cdef bint in_head(series_t *series, int64_t time) noexcept nogil:
    cdef uint32_t low = 0, high = series.count, middle
    while low < high:
        middle = (low + high) // 2
        if series.times[middle] < time:
            low = middle + 1
        else:
            high = middle
    return low < series.count and series.times[low] == time


cdef class Head:
    """See the module's docstring. `relieve()` is called, without locks, when the log has no room;
    `pressed()` when `uncollected_max` bytes of sealed chunks wait, or a checkpoint is overdue; it
    writes them, or raises the limits."""

    def __cinit__(self, OrderedLog log not None, int64_t window_ms, relieve, pressed, *,
                  uint64_t uncollected_max=8 << 20):
        pthread_mutex_init(&self.lock, NULL)
        self.log = log
        self.window_ms = window_ms
        self.uncollected_max = uncollected_max
        self._relieve, self._pressed = relieve, pressed
        self.epoch = 1
        self.forks = forks
        self.journal_max = <uint64_t>-1
        self.batch_size = min(<uint32_t>BATCH_BYTES, ordered_payload_max(&log.stream))
        self.batch = <char *>malloc(self.batch_size)
        self.labels = <char *>malloc(self.batch_size)
        if self.batch == NULL or self.labels == NULL:
            raise MemoryError()

    def __dealloc__(self):
        cdef uint32_t id
        for id in range(self.table_size):
            if self.table[id] != NULL:
                free(self.table[id].times)
                free(self.table[id].late_times)
                Py_DECREF(<object>self.table[id].key)
                free(self.table[id])
        free(self.table)
        free(self.batch)
        free(self.labels)
        free(self.chunks)
        free(self.data)
        pthread_mutex_destroy(&self.lock)

    cdef void take(self) noexcept:
        if pthread_mutex_trylock(&self.lock) != 0:
            with nogil:
                pthread_mutex_lock(&self.lock)

    cdef void drop(self) noexcept nogil:
        pthread_mutex_unlock(&self.lock)

    cdef int refuse(self) except -1:
        if self.forks < 0:
            raise Closed("these metrics are closed")
        raise ForkedProcess("these metrics belong to the parent process; open them again here")

    def close(self):
        """Nothing is accepted any more."""
        self.forks = -1

    cdef bint has_room(self) noexcept nogil:
        return (self.data_size < self.uncollected_max
                and self.counters.journal_bytes < self.journal_max)

    # Series

    def enter(self, bytes key not None, uint32_t id, int64_t newest=INT64_MIN,
              int64_t derived=INT64_MIN):
        """A series becomes live. Its labels are `key`; `id` was never another's."""
        cdef series_t *series
        cdef uint32_t size = self.table_size
        if len(key) > KEY_BYTES_MAX:
            raise InvalidValue(f"labels of {len(key)} bytes: at most {KEY_BYTES_MAX}")
        if id >= ID_LATE:
            raise InvalidValue("there are no more ids for series: reopen")
        self.take()
        if id >= size:
            size = max(<uint32_t>1024, 2 * id)
            table = <series_t **>realloc(self.table, size * sizeof(series_t *))
            if table != NULL:
                memset(table + self.table_size, 0, (size - self.table_size) * sizeof(series_t *))
                self.table, self.table_size = table, size
        series = <series_t *>calloc(1, sizeof(series_t))
        if id >= self.table_size or series == NULL:
            free(series)
            self.drop()
            raise MemoryError()
        assert self.table[id] == NULL
        series.id, series.newest, series.derived = id, newest, derived
        # Not written in any epoch yet, and not idle either.
        series.epoch = self.epoch - 1
        series.key = <PyObject *>key
        series.key_data = PyBytes_AS_STRING(key)
        series.key_size = <uint32_t>len(key)
        Py_INCREF(key)
        self.table[id] = series
        self.live += 1
        self.drop()

    def forget(self, uint32_t id):
        """Out of memory, unless it has samples or a handle. Whether it went."""
        cdef series_t *series = self.find(id)
        self.take()
        going = not (series.count or series.late_count or series.handles)
        if going:
            self.table[id] = NULL
            self.live -= 1
        self.drop()
        if going:
            free(series.times)
            free(series.late_times)
            Py_DECREF(<object>series.key)
            free(series)
        return going

    cdef series_t *find(self, uint32_t id) except NULL:
        if id >= self.table_size or self.table[id] == NULL:
            raise KeyMissing(f"no live series has the id {id}")
        return self.table[id]

    def __contains__(self, uint32_t id):
        return id < self.table_size and self.table[id] != NULL

    def newest(self, uint32_t id):
        """ms of the newest sample that was given; NONE_MS: none."""
        return self.find(id).newest

    def derived(self, uint32_t id):
        return self.find(id).derived

    def set_derived(self, uint32_t id, int64_t derived):
        self.find(id).derived = derived

    # Appending

    cdef int put(self, series_t *series, int64_t time, double value, bint backfill) noexcept nogil:
        """LOG_OK; PUT_*; or a code of the log, and nothing was changed. Lock held."""
        cdef bint overwrite = False, late = False
        cdef int result
        if time <= series.newest:
            overwrite = series.count > 0 and time == series.times[series.count - 1]
            late = not overwrite
            # newest - window may lie below what 64 bits hold: the difference does not
            if late and not backfill and (<uint64_t>(series.newest - time)
                                          > <uint64_t>self.window_ms):
                self.counters.rejected += 1
                return PUT_REJECTED
        if late:
            if series.late_count == HEAD_SAMPLES and not seal_late(self, series):
                return PUT_NO_MEMORY
            if not grow(&series.late_times, &series.late_values, series.late_count,
                        &series.late_capacity):
                return PUT_NO_MEMORY
        elif not overwrite:
            if series.count == HEAD_SAMPLES and not seal_head(self, series):
                return PUT_NO_MEMORY
            if not room(series):
                return PUT_NO_MEMORY
        result = batch_point(self, series, time, value, late)
        if result != LOG_OK:
            return result
        self.counters.samples += 1
        if late:
            self.counters.late += 1
            self.counters.duplicates += in_head(series, time)
            series.late_times[series.late_count] = time
            series.late_values[series.late_count] = value
            series.late_count += 1
            if time == series.newest:   # the newest was sealed, and is given again
                note_last(series, &value)
        elif overwrite:
            self.counters.duplicates += 1
            series.values[series.count - 1] = value
            note_last(series, &value)
        else:
            series.times[series.count] = time
            series.values[series.count] = value
            series.count += 1
            series.newest = time
            note_last(series, &value)
        return LOG_OK

    cdef int settle(self, int result) except -1:
        """After a call without the lock: 1 = try again, 0 = done; raises what went wrong."""
        if result == LOG_OK or result == PUT_REJECTED:
            if not self.has_room():
                self._pressed()
            return 0
        if result == PUT_NO_MEMORY:
            raise MemoryError("no memory for samples")
        if result == LOG_NO_SEGMENT:
            self._relieve()
            return 1
        self.log._raise(result, 0)
        return 0

    cdef int append_at(self, series_t *series, int64_t time, double value,
                       bint backfill) except -1:
        cdef int result
        if self.forks != forks:
            self.refuse()
        while True:
            self.take()
            if self.batch_filled + POINT_SIZE > self.batch_size:
                with nogil:     # the log may wait for its device
                    result = self.flush_locked()
                if result != LOG_OK:
                    self.drop()
                    self.settle(result)
                    continue
            result = self.put(series, time, value, backfill)
            self.drop()
            if self.has_room() and result <= LOG_OK:
                if result == PUT_NO_MEMORY:
                    self.settle(result)
                return result == LOG_OK
            if not self.settle(result):
                return result == LOG_OK

    cdef int64_t extend_at(self, series_t *series, const int64_t *times, const double *values,
                           int64_t count, bint backfill) except -1:
        """How many were accepted."""
        cdef int64_t done = 0, accepted = 0, some
        cdef int64_t most = (self.batch_size - RUN_HEADER) // 16
        cdef int result
        if self.forks != forks:
            self.refuse()
        while done < count:
            result = LOG_OK
            self.take()
            with nogil:
                if rising(series, times + done, count - done):
                    while result == LOG_OK and done < count and self.has_room():
                        some = min(count - done, most)
                        result = journal_run(self, series, times + done, values + done,
                                             <uint32_t>some)
                        if result == LOG_OK:
                            result = fill(self, series, times + done, values + done, some)
                            done += some
                            accepted += some
                else:
                    while result == LOG_OK and done < count and self.has_room():
                        result = self.put(series, times[done], values[done], backfill)
                        if result == PUT_REJECTED:
                            done += 1
                            result = LOG_OK
                        elif result == LOG_OK:
                            done += 1
                            accepted += 1
            self.drop()
            self.settle(result)
        return accepted

    def extend(self, uint32_t id, const int64_t[::1] times not None,
               const double[::1] values not None, bint backfill=False):
        """How many were accepted; the rest was older than the window."""
        if times.shape[0] != values.shape[0]:
            raise InvalidValue(f"{times.shape[0]} times and {values.shape[0]} values")
        if times.shape[0] == 0:
            return 0
        return self.extend_at(self.find(id), &times[0], &values[0], times.shape[0], backfill)

    def write(self, const uint32_t[::1] ids not None, const int64_t[::1] times not None,
              const double[::1] values not None, bint backfill=False):
        """A sample for each id; how many were accepted."""
        cdef int64_t n = 0, count = ids.shape[0], accepted = 0
        cdef int result
        if times.shape[0] != count or values.shape[0] != count:
            raise InvalidValue("ids, times and values are not equally many")
        if self.forks != forks:
            self.refuse()
        for n in range(count):
            self.find(ids[n])
        n = 0
        while n < count:
            result = LOG_OK
            self.take()
            with nogil:
                while result == LOG_OK and n < count and self.has_room():
                    result = self.put(self.table[ids[n]], times[n], values[n], backfill)
                    if result == LOG_OK:
                        accepted += 1
                        n += 1
                    elif result == PUT_REJECTED:
                        n += 1
                        result = LOG_OK
            self.drop()
            self.settle(result)
        return accepted

    cdef int flush_locked(self) noexcept nogil:
        cdef part_t part
        cdef int result = flush_labels(self)
        if result != LOG_OK or self.batch_filled == 0:
            return result
        part.data = self.batch
        part.size = self.batch_filled
        result = journal(self, JOURNAL_POINTS, &part, 1)
        if result == LOG_OK:
            self.batch_filled = 0
        return result

    def flush(self):
        """All accepted samples into the log's buffers."""
        cdef int result = -1
        while result != LOG_OK:
            self.take()
            with nogil:
                result = self.flush_locked()
            self.drop()
            self.settle(result)

    @property
    def journal_bytes(self):
        """Bytes of the journal's records, ever."""
        return self.counters.journal_bytes

    @property
    def uncollected(self):
        """Bytes of sealed chunks that wait for collect()."""
        return self.data_size

    # Sealing and reading

    cdef bint seal_all(self) noexcept nogil:
        cdef uint32_t id
        for id in range(self.table_size):
            if self.table[id] != NULL:
                if not (seal_head(self, self.table[id]) and seal_late(self, self.table[id])):
                    return False
                give_memory(self.table[id])
        return True

    def at_once(self, begin, ids=None):
        """One moment: what was accepted is in the log, these series (None: all) are sealed, and
        `begin()` is called, whose result is returned; None when the log has no room. With all of
        them sealed a new epoch begins: what follows is understood without what came before."""
        cdef uint32_t id
        cdef int result
        cdef bint good = True
        self.take()
        try:
            if ids is None:
                good = self.seal_all()
            else:
                for id in ids:
                    if id in self:
                        good = good and seal_late(self, self.table[id])
                        good = good and seal_head(self, self.table[id])
                        self.table[id].has_last = False     # it may be deleted
            if not good:
                raise MemoryError("no memory to seal chunks")
            with nogil:
                result = self.flush_locked()
            if result == LOG_NO_SEGMENT:
                return None
            self.log._raise(result, 0)
            begun = begin()
            if ids is None:
                self.epoch += 1
            return begun
        finally:
            self.drop()

    def collect(self):
        """(chunks, data) of what was sealed since the last call, or None."""
        self.take()
        try:
            if self.chunk_count == 0:
                return None
            chunks = np.empty(self.chunk_count, CHUNK)
            data = np.empty(self.data_size, np.uint8)
            self.copy_out(chunks.view(np.uint8), data)
            return chunks, data
        finally:
            self.drop()

    def copy_out(self, unsigned char[::1] chunks, unsigned char[::1] data):
        memcpy(&chunks[0], self.chunks, self.chunk_count * sizeof(chunk_t))
        memcpy(&data[0], self.data, self.data_size)
        self.chunk_count = 0
        self.data_size = 0

    def snapshot(self, const uint32_t[::1] ids not None, int64_t start, int64_t end):
        """(times, values, counts, late counts): of each id its head's samples within [start, end],
        then its late ones, in order of arrival."""
        cdef int64_t n, count = ids.shape[0], total = 0
        cdef series_t *series
        counts = np.zeros((2, count), np.int64)
        cdef int64_t[:, ::1] many = counts
        cdef int64_t[::1] times
        cdef double[::1] values
        self.take()
        try:
            for n in range(count):
                if ids[n] < self.table_size and self.table[ids[n]] != NULL:
                    total += self.table[ids[n]].count + self.table[ids[n]].late_count
            all_times, all_values = np.empty(total, np.int64), np.empty(total, np.float64)
            times, values = all_times, all_values
            total = 0
            for n in range(count):
                if ids[n] < self.table_size and self.table[ids[n]] != NULL:
                    series = self.table[ids[n]]
                    many[0, n] = copy_range(series.times, series.values, series.count, start, end,
                                            times, values, total)
                    total += many[0, n]
                    many[1, n] = copy_range(series.late_times, series.late_values,
                                            series.late_count, start, end, times, values, total)
                    total += many[1, n]
        finally:
            self.drop()
        return all_times[:total], all_values[:total], counts[0], counts[1]

    def latest(self, const uint32_t[::1] ids not None, int64_t end, int64_t dropped):
        """(times, values, known): of each id its newest sample, where that is known to be there
        still (`dropped`: what retention dropped was no newer) and to be the newest at `end`."""
        cdef int64_t n, count = ids.shape[0]
        cdef series_t *series
        times, values, known = np.zeros(count, np.int64), np.zeros(count), np.zeros(count, np.bool_)
        cdef int64_t[::1] to_times = times
        cdef double[::1] to_values = values
        cdef uint8_t[::1] to_known = known.view(np.uint8)
        self.take()
        for n in range(count):
            series = self.table[ids[n]] if ids[n] < self.table_size else NULL
            if series == NULL or not series.has_last or series.newest > end:
                continue
            if series.count or series.late_count or series.newest > dropped:
                to_times[n] = series.newest
                memcpy(&to_values[n], &series.last, 8)
                to_known[n] = True
        self.drop()
        return times, values, known

    # What the engine keeps of live series

    def table_of(self):
        """(ids, newest, derived) of every live series."""
        cdef uint32_t id
        cdef int64_t n = 0
        ids = np.empty(self.live, np.uint32)
        newest, derived = np.empty(self.live, np.int64), np.empty(self.live, np.int64)
        cdef uint32_t[::1] to_ids = ids
        cdef int64_t[::1] to_newest = newest, to_derived = derived
        for id in range(self.table_size):
            if self.table[id] != NULL:
                to_ids[n] = id
                to_newest[n] = self.table[id].newest
                to_derived[n] = self.table[id].derived
                n += 1
        return ids, newest, derived

    def idle(self):
        """Series without samples and handles that were not written to in the last two epochs."""
        cdef uint32_t id
        cdef series_t *series
        found = []
        for id in range(self.table_size):
            series = self.table[id]
            if series != NULL and series.epoch + 2 <= self.epoch:
                if not (series.count or series.late_count or series.handles):
                    found.append(id)
        return found

    def restore(self, uint32_t id, const int64_t[::1] times not None,
                const double[::1] values not None, bint late):
        """Samples that the journal holds already, in the order in which they came."""
        cdef series_t *series = self.find(id)
        cdef int64_t n
        cdef bint good = True
        self.take()
        for n in range(times.shape[0]):
            if late:
                if series.late_count == HEAD_SAMPLES:
                    good = good and seal_late(self, series)
                good = good and grow(&series.late_times, &series.late_values, series.late_count,
                                     &series.late_capacity)
                if good:
                    series.late_times[series.late_count] = times[n]
                    series.late_values[series.late_count] = values[n]
                    series.late_count += 1
                    if times[n] == series.newest:
                        note_last(series, &values[n])
            elif good:
                good = fill(self, series, &times[n], &values[n], 1) == LOG_OK
                self.counters.samples -= good
        self.drop()
        if not good:
            raise MemoryError("no memory for samples")

    def note_newest(self, uint32_t id, int64_t newest):
        cdef series_t *series = self.find(id)   # newest of all that came, left or not
        if newest > series.newest:
            series.newest, series.has_last = newest, False

    def stats(self):
        return {
            "samples": self.counters.samples,
            "samples_late": self.counters.late,
            "samples_duplicate": self.counters.duplicates,
            "samples_rejected": self.counters.rejected,
            "chunks_sealed": self.counters.sealed_chunks,
            "samples_sealed": self.counters.sealed_samples,
            "bytes_sealed": self.counters.sealed_bytes,
            "journal_bytes": self.counters.journal_bytes,
            "journal_records": self.counters.journal_records,
        }

    def check_invariants(self):
        cdef uint32_t id, n, found = 0
        cdef series_t *series
        self.take()
        try:
            for id in range(self.table_size):
                series = self.table[id]
                if series == NULL:
                    continue
                found += 1
                assert series.id == id
                assert series.count <= series.capacity <= HEAD_SAMPLES
                assert series.late_count <= series.late_capacity <= HEAD_SAMPLES
                for n in range(1, series.count):
                    assert series.times[n - 1] < series.times[n]
                assert series.count == 0 or series.times[series.count - 1] <= series.newest
            assert found == self.live
        finally:
            self.drop()


cdef int64_t copy_range(const int64_t *from_times, const double *from_values, uint32_t count,
                        int64_t start, int64_t end, int64_t[::1] times, double[::1] values,
                        int64_t at) noexcept nogil:
    cdef uint32_t n
    cdef int64_t copied = 0
    for n in range(count):
        if start <= from_times[n] <= end:
            times[at + copied] = from_times[n]
            # Not by assignment: a signalling NaN is a staleness marker and must keep its bits.
            memcpy(&values[at + copied], &from_values[n], 8)
            copied += 1
    return copied
