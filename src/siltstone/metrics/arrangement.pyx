"""Which chunks are those of a picture; and where the samples of some of its series shall lie: in
two long arrays, series by series, of each those of its chunks, then its head's, then what came
late.

Plain loops over descriptors: with numpy it is fifty calls, which for one series took longer than
its samples did. Holds no state but its own arrays.
"""
from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.string cimport memcpy

import numpy as np

from siltstone.metrics.head cimport chunk_t

from siltstone.metrics.head import CHUNK


cdef const chunk_t *chunks_of(const unsigned char[::1] rows) except? NULL:
    assert rows.shape[0] % <Py_ssize_t>sizeof(chunk_t) == 0
    return <const chunk_t *>&rows[0] if rows.shape[0] else NULL


cdef class Chooser:
    """The chunks of these series that touch the range [start, end]."""

    cdef int64_t _start, _end
    cdef uint32_t _only             # the id, if there is but one; never 0
    cdef uint8_t[::1] _wanted       # else of each id; those beyond are not

    def __init__(self, const uint32_t[:] ids not None, int64_t start, int64_t end):
        cdef Py_ssize_t n
        cdef uint32_t largest = 0
        self._start, self._end, self._only = start, end, 0
        if ids.shape[0] == 1:
            self._only = ids[0]
            return
        for n in range(ids.shape[0]):
            largest = max(largest, ids[n])
        self._wanted = np.zeros(<Py_ssize_t>largest + 1, np.uint8)
        for n in range(ids.shape[0]):
            self._wanted[ids[n]] = 1

    def places(self, const unsigned char[::1] rows not None):
        """Where they are in `rows`, the bytes of descriptors; rising."""
        cdef const chunk_t *chunks = chunks_of(rows)
        cdef int64_t n, count = rows.shape[0] // <Py_ssize_t>sizeof(chunk_t), found = 0
        cdef int64_t many = 0 if self._only else self._wanted.shape[0]
        cdef int64_t start = self._start, end = self._end
        cdef uint32_t only = self._only
        cdef uint8_t *wanted = &self._wanted[0] if many else NULL
        places = np.empty(count, np.int64)
        cdef int64_t[::1] out = places
        with nogil:
            for n in range(count):
                if only:
                    if chunks[n].series != only:
                        continue
                elif chunks[n].series >= many or not wanted[chunks[n].series]:
                    continue
                if chunks[n].start_ms <= end and chunks[n].end_ms >= start:
                    out[found] = n
                    found += 1
        return places[:found]


def in_order(const unsigned char[::1] rows not None):
    """Whether these descriptors stand by series, of each by their start."""
    cdef const chunk_t *chunks = chunks_of(rows)
    cdef int64_t n, count = rows.shape[0] // <Py_ssize_t>sizeof(chunk_t)
    for n in range(1, count):
        if chunks[n].series < chunks[n - 1].series:
            return False
        if chunks[n].series == chunks[n - 1].series and chunks[n].start_ms < chunks[n - 1].start_ms:
            return False
    return True


cdef class Arrangement:
    """See the module's docstring. `rows` and `places`: those of the picture; the rows of series n
    are [firsts[n], lasts[n]), its head has `counts[n]` samples and `late[n]`."""

    cdef readonly object rows       # the descriptors of these series
    cdef readonly object places     # of each row, as the picture has it
    cdef readonly object at         # of each row, where its samples begin
    cdef readonly object edges      # of each series its rows are [edges[n], edges[n + 1])
    cdef readonly object bases      # of each series, where its samples begin
    cdef readonly object ends       # and where they end
    cdef readonly int64_t total     # samples
    cdef object _heads_at           # of each series, where its head's samples begin
    cdef const int64_t[::1] _late

    def __init__(self, rows not None, const int64_t[::1] places not None,
                 const int64_t[::1] firsts not None, const int64_t[::1] lasts not None,
                 const int64_t[::1] counts not None, const int64_t[::1] late not None):
        cdef int64_t series = firsts.shape[0], many = 0, row = 0, n, s, position = 0
        cdef const unsigned char[::1] given = rows.view(np.uint8)
        cdef const chunk_t *chunks = <const chunk_t *>&given[0] if given.shape[0] else NULL
        assert series == lasts.shape[0] == counts.shape[0] == late.shape[0]
        for s in range(series):
            assert 0 <= firsts[s] <= lasts[s] <= places.shape[0]
            many += lasts[s] - firsts[s]
        self.rows, self.places = np.empty(many, CHUNK), np.empty(many, np.int64)
        self.at, self.edges = np.empty(many, np.int64), np.empty(series + 1, np.int64)
        self.bases, self.ends = np.empty(series, np.int64), np.empty(series, np.int64)
        self._heads_at, self._late = np.empty(series, np.int64), late
        cdef unsigned char[::1] picked = self.rows.view(np.uint8)
        cdef chunk_t *own = <chunk_t *>&picked[0] if many else NULL
        cdef int64_t[::1] own_places = self.places, at = self.at, edges = self.edges
        cdef int64_t[::1] bases = self.bases, ends = self.ends, heads_at = self._heads_at
        assert given.shape[0] == places.shape[0] * <int64_t>sizeof(chunk_t)
        edges[0] = 0
        for s in range(series):
            bases[s] = position
            for n in range(firsts[s], lasts[s]):
                own[row], own_places[row], at[row] = chunks[n], places[n], position
                position += chunks[n].count
                row += 1
            edges[s + 1] = row
            heads_at[s] = position
            position += counts[s] + late[s]
            ends[s] = position
        self.total = position

    def put_heads(self, int64_t[::1] times not None, double[::1] values not None,
                  const int64_t[::1] head_times not None, const double[::1] head_values not None,
                  int64_t first):
        """Copy the samples of heads into their places; those of these series begin at `first`."""
        cdef const int64_t[::1] heads_at = self._heads_at, ends = self.ends
        cdef int64_t s, count
        assert times.shape[0] == values.shape[0] == self.total
        assert head_times.shape[0] == head_values.shape[0]
        for s in range(heads_at.shape[0]):
            count = ends[s] - heads_at[s]
            if count:
                assert 0 <= first <= head_times.shape[0] - count
                memcpy(&times[heads_at[s]], &head_times[first], count * 8)
                memcpy(&values[heads_at[s]], &head_values[first], count * 8)
                first += count

    def mixed(self, const int64_t[::1] times not None, const uint8_t[::1] good not None):
        """Of each series: whether its samples are not simply one chunk behind another."""
        cdef const int64_t[::1] edges = self.edges, heads_at = self._heads_at, ends = self.ends
        cdef int64_t series = heads_at.shape[0], s, n
        cdef const unsigned char[::1] rows = self.rows.view(np.uint8)
        cdef const chunk_t *chunks = <const chunk_t *>&rows[0] if rows.shape[0] else NULL
        cdef list found = []
        cdef bint is_mixed
        assert times.shape[0] == self.total
        assert good.shape[0] == edges[series]
        for s in range(series):
            is_mixed = self._late[s] > 0
            for n in range(edges[s], edges[s + 1]):
                is_mixed |= not good[n]
                is_mixed |= n > edges[s] and chunks[n].start_ms <= chunks[n - 1].end_ms
            if edges[s] < edges[s + 1] and heads_at[s] < ends[s]:
                is_mixed |= times[heads_at[s]] <= chunks[edges[s + 1] - 1].end_ms
            found.append(is_mixed)
        return found
