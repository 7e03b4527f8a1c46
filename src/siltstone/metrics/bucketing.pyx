"""Samples to the points of a tier (tiers.py says what a point is), in one pass without the GIL.

Sums of numbers with few decimals are made of whole numbers: exact, and with few decimals again, so
that they compress; others are compensated.
"""
from libc.math cimport NAN, isinf
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

import numpy as np

from siltstone.metrics.scaling cimport SCALE_NONE, scale_of, scale_up

cdef extern from *:
    """
    static const double silt_bucket_tens[] = {1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6};
    #define SILT_IS_STALE(bits) ((bits) == 0x7FF0000000000002ULL)
    """
    const double *tens "silt_bucket_tens"
    bint is_stale "SILT_IS_STALE"(uint64_t bits) noexcept nogil


cdef inline int64_t end_of(int64_t time, int64_t step) noexcept nogil:
    """The multiple of the step at or after `time`."""
    cdef int64_t rest = time % step     # towards zero, as C has it
    if rest > 0:
        return time + (step - rest)
    return time - rest


cdef struct point_t:
    double sum
    double lost                 # what rounding took from the sum
    int64_t whole               # the sum of whole numbers
    double least
    double most
    int64_t count
    int64_t nans


cdef inline void take(point_t *point, double value, const int64_t *whole) noexcept nogil:
    cdef double sum, part
    cdef uint64_t bits
    if value != value:
        memcpy(&bits, &value, 8)
        point.nans += not is_stale(bits)
        return
    if whole != NULL:
        point.whole += whole[0]
    else:
        sum = point.sum + value
        part = sum - point.sum
        point.lost += (point.sum - (sum - part)) + (value - part)
        point.sum = sum
    if point.count == 0 or value < point.least:
        point.least = value
    if point.count == 0 or value > point.most:
        point.most = value
    point.count += 1


def bucket(const int64_t[::1] times not None, const double[::1] values not None, int64_t step):
    """(ends, sum, min, max, count, nans, last, lag) of the buckets that have samples; `times`
    rising."""
    cdef int64_t n, count = times.shape[0], found = 0, end = 0
    cdef int scale = SCALE_NONE
    cdef int64_t *whole = NULL
    cdef point_t point
    assert values.shape[0] == count and step > 0
    # at most a bucket a sample, and one for each step of the time
    cdef int64_t most = min(count, (times[count - 1] - times[0]) // step + 2) if count else 0
    ends, lags = np.empty(most, np.int64), np.empty(most, np.int64)
    counts, nans = np.empty(most, np.int64), np.empty(most, np.int64)
    sums, least, greatest, last = (np.empty(most, np.float64) for _ in range(4))
    cdef int64_t[::1] to_ends = ends, to_lags = lags, to_counts = counts, to_nans = nans
    cdef double[::1] to_sums = sums, to_least = least, to_most = greatest, to_last = last
    if count:
        whole = <int64_t *>malloc(count * sizeof(int64_t))
        if whole == NULL:
            raise MemoryError
        with nogil:
            scale = scale_of(&values[0], <uint32_t>count)
            if scale != SCALE_NONE:
                scale_up(&values[0], <uint32_t>count, scale, whole)
            n = 0
            while n < count:
                end = end_of(times[n], step)
                point.sum, point.lost, point.whole, point.least, point.most = 0, 0, 0, NAN, NAN
                point.count, point.nans = 0, 0
                while n < count and times[n] <= end:
                    take(&point, values[n], whole + n if scale != SCALE_NONE else NULL)
                    n += 1
                to_ends[found] = end
                to_lags[found] = end - times[n - 1]
                memcpy(&to_last[found], &values[n - 1], 8)
                to_counts[found], to_nans[found] = point.count, point.nans
                to_least[found], to_most[found] = point.least, point.most
                if scale != SCALE_NONE:
                    to_sums[found] = <double>point.whole / tens[scale]
                elif isinf(point.sum):
                    to_sums[found] = point.sum
                else:
                    to_sums[found] = point.sum + point.lost
                found += 1
        free(whole)
    part = slice(0, found)
    return (
        ends[part], sums[part], least[part], greatest[part], counts[part], nans[part], last[part],
        lags[part],
    )
