"""Many series to few on a grid of steps: aggregations, the k largest, quantiles of histograms.

Rows are series, columns steps; `group` says which row of the result a series belongs to. Values
are taken in the order of the rows, so that rounding is the same as Prometheus' on the same order.
No GIL below the argument checks.
"""
from libc.math cimport INFINITY, NAN, isinf, isnan, sqrt
from libc.stdint cimport int64_t, uint8_t
from libc.stdlib cimport free, malloc

import numpy as np

from siltstone.metrics.windows cimport quantile_of

cdef enum Operation:
    SUM = 0
    AVG = 1
    MIN = 2
    MAX = 3
    COUNT = 4
    GROUP = 5
    STDVAR = 6
    STDDEV = 7

OPERATIONS = {
    "sum": SUM, "avg": AVG, "min": MIN, "max": MAX, "count": COUNT, "group": GROUP,
    "stdvar": STDVAR, "stddev": STDDEV,
}


cdef inline void take_mean(double *mean, double count, double value) noexcept nogil:
    # an infinite mean stays, unless the other infinity or NaN comes
    if isinf(mean[0]):
        if isinf(value) and (mean[0] > 0) == (value > 0):
            return
        if not isinf(value) and not isnan(value):
            return
    mean[0] += value / count - mean[0] / count


cdef inline void take(
    int operation, double *out, double *mean, double count, double value
) noexcept nogil:
    """`value` as the `count`-th of its group; counts from 2."""
    cdef double delta
    if operation == SUM:
        out[0] += value
    elif operation == AVG:
        take_mean(out, count, value)
    elif operation == MIN:
        if out[0] > value or isnan(out[0]):
            out[0] = value
    elif operation == MAX:
        if out[0] < value or isnan(out[0]):
            out[0] = value
    elif operation == STDVAR or operation == STDDEV:
        delta = value - mean[0]
        mean[0] += delta / count
        out[0] += delta * (value - mean[0])


def aggregate(
    str name, const double[:, ::1] values, const uint8_t[:, ::1] present,
    const int64_t[::1] group, Py_ssize_t groups
):
    """Returns (values, present) of each (group, step)."""
    cdef int operation = OPERATIONS[name]
    cdef Py_ssize_t rows = values.shape[0], steps = values.shape[1], row, step, g
    result = np.zeros((groups, steps))
    seen = np.zeros((groups, steps))
    means = np.zeros((groups, steps))
    cdef double[:, ::1] out = result
    cdef double[:, ::1] count = seen
    cdef double[:, ::1] mean = means
    with nogil:
        for row in range(rows):
            g = group[row]
            for step in range(steps):
                if not present[row, step]:
                    continue
                count[g, step] += 1
                if count[g, step] == 1:
                    out[g, step] = 0 if operation >= STDVAR else values[row, step]
                    mean[g, step] = values[row, step]
                else:
                    take(
                        operation, &out[g, step], &mean[g, step], count[g, step],
                        values[row, step],
                    )
        for g in range(groups):
            for step in range(steps):
                if count[g, step] == 0:
                    continue
                if operation == COUNT:
                    out[g, step] = count[g, step]
                elif operation == GROUP:
                    out[g, step] = 1
                elif operation == STDVAR:
                    out[g, step] /= count[g, step]
                elif operation == STDDEV:
                    out[g, step] = sqrt(out[g, step] / count[g, step])
    return result, seen > 0


def quantile(
    const double[:, ::1] values, const uint8_t[:, ::1] present,
    const int64_t[::1] group, Py_ssize_t groups, const double[::1] q
):
    """The q-quantile (of each step) over the rows of each group."""
    cdef Py_ssize_t rows = values.shape[0], steps = values.shape[1], i, step, g, found
    # rows by group, each group's in their order
    cdef const int64_t[::1] order = np.argsort(group, kind="stable").astype(np.int64)
    cdef const int64_t[::1] start = np.searchsorted(
        np.asarray(group)[order], np.arange(groups + 1)
    ).astype(np.int64)
    result = np.zeros((groups, steps))
    has = np.zeros((groups, steps), np.bool_)
    cdef double[:, ::1] out = result
    cdef uint8_t[:, ::1] out_present = has.view(np.uint8)
    cdef double *scratch = <double *>malloc(max(rows, 1) * sizeof(double))
    if scratch == NULL:
        raise MemoryError
    with nogil:
        for g in range(groups):
            for step in range(steps):
                found = 0
                for i in range(start[g], start[g + 1]):
                    if present[order[i], step]:
                        scratch[found] = values[order[i], step]
                        found += 1
                if found:
                    out[g, step] = quantile_of(scratch, found, q[step])
                    out_present[g, step] = 1
        free(scratch)
    return result, has


# The k largest -------------------------------------------------------------------------------


cdef inline bint below(double a, double b, bint largest) noexcept nogil:
    """Whether `a` leaves the heap before `b`: NaN first."""
    if isnan(a):
        return True
    return a < b if largest else a > b


cdef void sink(int64_t *heap, Py_ssize_t size, const double *column, Py_ssize_t stride,
               bint largest) noexcept nogil:
    cdef Py_ssize_t at = 0, child
    cdef int64_t moved
    while True:
        child = 2 * at + 1
        if child >= size:
            return
        if child + 1 < size and below(
            column[heap[child + 1] * stride], column[heap[child] * stride], largest
        ):
            child += 1
        if not below(column[heap[child] * stride], column[heap[at] * stride], largest):
            return
        moved = heap[at]
        heap[at] = heap[child]
        heap[child] = moved
        at = child


cdef void rise(int64_t *heap, Py_ssize_t at, const double *column, Py_ssize_t stride,
               bint largest) noexcept nogil:
    cdef Py_ssize_t parent
    cdef int64_t moved
    while at > 0:
        parent = (at - 1) // 2
        if not below(column[heap[at] * stride], column[heap[parent] * stride], largest):
            return
        moved = heap[at]
        heap[at] = heap[parent]
        heap[parent] = moved
        at = parent


cdef void sort_best_first(int64_t *heap, Py_ssize_t size, const double *column,
                          Py_ssize_t stride, bint largest) noexcept nogil:
    """Sorts a heap's rows, best first, equal ones as they lie (few: insertion)."""
    cdef Py_ssize_t i, j
    cdef int64_t moved
    for i in range(1, size):
        j = i
        while j > 0 and below(column[heap[j - 1] * stride], column[heap[j] * stride], largest):
            moved = heap[j]
            heap[j] = heap[j - 1]
            heap[j - 1] = moved
            j -= 1


def select_k(
    bint largest, const double[:, ::1] values, const uint8_t[:, ::1] present,
    const int64_t[::1] group, Py_ssize_t groups, const int64_t[::1] k
):
    """The k (of each step) largest or smallest of each group.

    Returns (selected, order): which cells stay, and the rows of the last step, group by group,
    best first.
    """
    cdef Py_ssize_t rows = values.shape[0], steps = values.shape[1], i, step, g, size, keep
    cdef const int64_t[::1] by_group = np.argsort(group, kind="stable").astype(np.int64)
    cdef const int64_t[::1] start = np.searchsorted(
        np.asarray(group)[by_group], np.arange(groups + 1)
    ).astype(np.int64)
    chosen = np.zeros((rows, steps), np.bool_)
    cdef uint8_t[:, ::1] selected = chosen.view(np.uint8)
    cdef int64_t *heap = <int64_t *>malloc(max(rows, 1) * sizeof(int64_t))
    cdef const double *column
    cdef int64_t row
    order = []
    if heap == NULL:
        raise MemoryError
    for g in range(groups):
        size = 0
        with nogil:
            for step in range(steps):
                column, keep, size = &values[0, step], k[step], 0
                for i in range(start[g], start[g + 1] if keep > 0 else start[g]):
                    row = by_group[i]
                    if not present[row, step]:
                        continue
                    if size < keep:
                        heap[size] = row
                        size += 1
                        rise(heap, size - 1, column, steps, largest)
                    elif better(values[row, step], column[heap[0] * steps], largest):
                        # out with the worst, then in: which of equals stays depends on it
                        heap[0] = heap[size - 1]
                        sink(heap, size - 1, column, steps, largest)
                        heap[size - 1] = row
                        rise(heap, size - 1, column, steps, largest)
                for i in range(size):
                    selected[heap[i], step] = 1
            if steps:
                sort_best_first(heap, size, &values[0, steps - 1], steps, largest)
        order.extend(heap[i] for i in range(size))
    free(heap)
    return chosen, np.array(order, np.int64)


cdef inline bint better(double new, double worst, bint largest) noexcept nogil:
    return isnan(worst) or (new > worst if largest else new < worst)


# Histograms ----------------------------------------------------------------------------------


cdef double quantile_of_buckets(
    double q, double *bounds, double *counts, Py_ssize_t n
) noexcept nogil:
    """Linear within the bucket that holds the q-quantile; `bounds` rise, `counts` cumulate."""
    cdef Py_ssize_t i, unique, low, high, middle
    cdef double rank, highest, start, count
    if isnan(q):
        return NAN
    if q < 0:
        return -INFINITY
    if q > 1:
        return INFINITY
    if n == 0 or bounds[n - 1] != INFINITY:
        return NAN
    unique = 0
    for i in range(1, n):
        if bounds[i] == bounds[unique]:
            counts[unique] += counts[i]
        else:
            unique += 1
            bounds[unique] = bounds[i]
            counts[unique] = counts[i]
    n = unique + 1
    # scrapes are not atomic: a bucket may lag behind a smaller one
    highest = counts[0]
    for i in range(1, n):
        if counts[i] > highest:
            highest = counts[i]
        elif counts[i] < highest:
            counts[i] = highest
    if n < 2 or counts[n - 1] == 0:
        return NAN
    rank = q * counts[n - 1]
    low, high = 0, n - 1
    while low < high:
        middle = (low + high) >> 1
        if counts[middle] >= rank:
            high = middle
        else:
            low = middle + 1
    if low == n - 1:
        return bounds[n - 2]
    if low == 0 and bounds[0] <= 0:
        return bounds[0]
    start, count = 0, counts[low]
    if low > 0:
        start = bounds[low - 1]
        count -= counts[low - 1]
        rank -= counts[low - 1]
    return start + (bounds[low] - start) * (rank / count)


def histogram_quantile(
    const double[::1] q, const double[::1] bounds, const double[:, ::1] values,
    const uint8_t[:, ::1] present, const int64_t[::1] start
):
    """Rows are buckets, sorted by histogram and bound; histogram h has rows start[h]:start[h+1].

    Returns (values, present) of each (histogram, step).
    """
    cdef Py_ssize_t histograms = start.shape[0] - 1, rows = values.shape[0]
    cdef Py_ssize_t steps = values.shape[1], h, step, row, found
    result = np.zeros((histograms, steps))
    has = np.zeros((histograms, steps), np.bool_)
    cdef double[:, ::1] out = result
    cdef uint8_t[:, ::1] out_present = has.view(np.uint8)
    cdef double *scratch = <double *>malloc(2 * max(rows, 1) * sizeof(double))
    if scratch == NULL:
        raise MemoryError
    with nogil:
        for h in range(histograms):
            for step in range(steps):
                found = 0
                for row in range(start[h], start[h + 1]):
                    if present[row, step]:
                        scratch[found] = bounds[row]
                        scratch[rows + found] = values[row, step]
                        found += 1
                if found:
                    out[h, step] = quantile_of_buckets(
                        q[step], scratch, scratch + rows, found
                    )
                    out_present[h, step] = 1
        free(scratch)
    return result, has
