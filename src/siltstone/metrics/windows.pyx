"""Samples to values on a grid of steps: the instant selector and every function of a time window.

One call takes a batch of series and does all of (series, step) without the GIL. A window is closed
on both sides, as in Prometheus 2; windows move forward only, so their ends are found by galloping
from the last ones. Sums follow Prometheus to the bit (Neumaier's compensation, the order of
samples), because users compare. Staleness markers are removed before anything else looks.

Functions that need only the ends of a window (rate, increase, delta) look at no sample between
but the counter resets, which are found once a series.
"""
from libc.math cimport INFINITY, NAN, fabs, floor, isinf, isnan, sqrt
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.stdlib cimport free, malloc, qsort
from libc.string cimport memcpy

import numpy as np

cdef enum:
    STALE_HIGH = 0x7FF00000  # bits of the staleness marker: 0x7ff00000_00000002
    STALE_LOW = 2


cdef struct Window:
    # what a function of a window is told beside its samples
    int64_t start_ms     # the window, both ends inclusive
    int64_t end_ms
    int64_t at_ms        # the step that is computed
    double range_s
    double first         # parameters of the function at this step
    double second
    const Py_ssize_t *resets  # positions i (from the series' start) with v[i] < v[i - 1]
    Py_ssize_t resets_count
    Py_ssize_t offset    # position of the window's first sample in the series
    double *scratch      # as long as the series, where a function asked for it
    bint absent          # set by the function: no result here


ctypedef double (*Function)(
    const int64_t *times, const double *values, Py_ssize_t count, Window *window
) noexcept nogil


cdef inline uint64_t bits_of(double value) noexcept nogil:
    cdef uint64_t bits
    memcpy(&bits, &value, 8)
    return bits


cdef inline bint is_stale(double value) noexcept nogil:
    return bits_of(value) == ((<uint64_t>STALE_HIGH << 32) | STALE_LOW)


cdef inline Py_ssize_t advance(
    const int64_t *times, Py_ssize_t start, Py_ssize_t count, int64_t bound
) noexcept nogil:
    """The first position from `start` on whose time is at least `bound`."""
    cdef Py_ssize_t low = start, high, middle, stride = 1
    if start >= count or times[start] >= bound:
        return start
    # times[low] < bound from here on
    while low + stride < count and times[low + stride] < bound:
        low += stride
        stride <<= 1
    high = low + stride
    if high > count:
        high = count
    while low + 1 < high:
        middle = (low + high) >> 1
        if times[middle] < bound:
            low = middle
        else:
            high = middle
    return low + 1


# Compensated sums ----------------------------------------------------------------------------


cdef struct Sum:
    double value
    double lost


cdef inline void add(Sum *total, double term) noexcept nogil:
    cdef double sum = total.value + term
    if fabs(total.value) >= fabs(term):
        total.lost += (total.value - sum) + term
    else:
        total.lost += (term - sum) + total.value
    total.value = sum


# Ends of the window: rate and its kin --------------------------------------------------------


cdef double increase_within(const double *values, Py_ssize_t count, Window *w) noexcept nogil:
    """Last minus first, plus what the counter had reached before each of its resets."""
    cdef double result = values[count - 1] - values[0]
    cdef Py_ssize_t low = 0, high = w.resets_count, middle
    while low < high:
        middle = (low + high) >> 1
        if w.resets[middle] <= w.offset:
            low = middle + 1
        else:
            high = middle
    while low < w.resets_count and w.resets[low] < w.offset + count:
        result += values[w.resets[low] - w.offset - 1]
        low += 1
    return result


cdef double extrapolated(
    const int64_t *times, const double *values, Py_ssize_t count, Window *w,
    bint counter, bint per_second
) noexcept nogil:
    """The change over the samples, stretched to the window: to its ends where a sample is near,
    half a distance between samples beyond them where none is; a counter never below zero."""
    if count < 2:
        w.absent = True
        return 0
    cdef double change
    change = increase_within(values, count, w) if counter else values[count - 1] - values[0]
    cdef double to_start = <double>(times[0] - w.start_ms) / 1000
    cdef double to_end = <double>(w.end_ms - times[count - 1]) / 1000
    cdef double sampled = <double>(times[count - 1] - times[0]) / 1000
    cdef double distance = sampled / <double>(count - 1)
    cdef double near = distance * 1.1
    cdef double stretched = sampled, to_zero, factor
    if counter and change > 0 and values[0] >= 0:
        to_zero = sampled * (values[0] / change)
        if to_zero < to_start:
            to_start = to_zero
    stretched += to_start if to_start < near else distance / 2
    stretched += to_end if to_end < near else distance / 2
    factor = stretched / sampled
    if per_second:
        factor /= w.range_s
    return change * factor


cdef double f_rate(const int64_t *t, const double *v, Py_ssize_t n, Window *w) noexcept nogil:
    return extrapolated(t, v, n, w, True, True)


cdef double f_increase(const int64_t *t, const double *v, Py_ssize_t n, Window *w) noexcept nogil:
    return extrapolated(t, v, n, w, True, False)


cdef double f_delta(const int64_t *t, const double *v, Py_ssize_t n, Window *w) noexcept nogil:
    return extrapolated(t, v, n, w, False, False)


cdef double f_irate(const int64_t *t, const double *v, Py_ssize_t n, Window *w) noexcept nogil:
    cdef double change
    if n < 2:
        w.absent = True
        return 0
    change = v[n - 1] if v[n - 1] < v[n - 2] else v[n - 1] - v[n - 2]
    return change / (<double>(t[n - 1] - t[n - 2]) / 1000)


cdef double f_idelta(const int64_t *t, const double *v, Py_ssize_t n, Window *w) noexcept nogil:
    if n < 2:
        w.absent = True
        return 0
    return v[n - 1] - v[n - 2]


# Over all samples of the window --------------------------------------------------------------


cdef double f_sum(const int64_t *t, const double *v, Py_ssize_t n, Window *w) noexcept nogil:
    cdef Sum total = Sum(0, 0)
    cdef Py_ssize_t i
    for i in range(n):
        add(&total, v[i])
    return total.value if isinf(total.value) else total.value + total.lost


cdef double f_avg(const int64_t *t, const double *v, Py_ssize_t n, Window *w) noexcept nogil:
    # a running mean: the sum of large values could overflow
    cdef Sum mean = Sum(0, 0)
    cdef Py_ssize_t i
    for i in range(n):
        if isinf(mean.value):
            # the same infinity, or anything finite, changes nothing; the other one and NaN do
            if isinf(v[i]) and (mean.value > 0) == (v[i] > 0):
                continue
            if not isinf(v[i]) and not isnan(v[i]):
                continue
        add(&mean, v[i] / <double>(i + 1) - mean.value / <double>(i + 1))
    return mean.value if isinf(mean.value) else mean.value + mean.lost


cdef double f_min(const int64_t *t, const double *v, Py_ssize_t n, Window *w) noexcept nogil:
    cdef double best = v[0]
    cdef Py_ssize_t i
    for i in range(1, n):
        if v[i] < best or isnan(best):
            best = v[i]
    return best


cdef double f_max(const int64_t *t, const double *v, Py_ssize_t n, Window *w) noexcept nogil:
    cdef double best = v[0]
    cdef Py_ssize_t i
    for i in range(1, n):
        if v[i] > best or isnan(best):
            best = v[i]
    return best


cdef double f_count(const int64_t *t, const double *v, Py_ssize_t n, Window *w) noexcept nogil:
    return <double>n


cdef double f_present(const int64_t *t, const double *v, Py_ssize_t n, Window *w) noexcept nogil:
    return 1


cdef double f_last(const int64_t *t, const double *v, Py_ssize_t n, Window *w) noexcept nogil:
    return v[n - 1]


cdef double f_first(const int64_t *t, const double *v, Py_ssize_t n, Window *w) noexcept nogil:
    return v[0]


cdef double f_stdvar(const int64_t *t, const double *v, Py_ssize_t n, Window *w) noexcept nogil:
    # Welford's method, both sums compensated
    cdef Sum mean = Sum(0, 0)
    cdef Sum squares = Sum(0, 0)
    cdef double delta
    cdef Py_ssize_t i
    for i in range(n):
        delta = v[i] - (mean.value + mean.lost)
        add(&mean, delta / <double>(i + 1))
        add(&squares, delta * (v[i] - (mean.value + mean.lost)))
    return (squares.value + squares.lost) / <double>n


cdef double f_stddev(const int64_t *t, const double *v, Py_ssize_t n, Window *w) noexcept nogil:
    return sqrt(f_stdvar(t, v, n, w))


cdef double f_changes(const int64_t *t, const double *v, Py_ssize_t n, Window *w) noexcept nogil:
    cdef Py_ssize_t i, changes = 0
    for i in range(1, n):
        if v[i] != v[i - 1] and not (isnan(v[i]) and isnan(v[i - 1])):
            changes += 1
    return <double>changes


cdef double f_resets(const int64_t *t, const double *v, Py_ssize_t n, Window *w) noexcept nogil:
    cdef Py_ssize_t i, resets = 0
    for i in range(1, n):
        if v[i] < v[i - 1]:
            resets += 1
    return <double>resets


cdef int by_value(const void *left, const void *right) noexcept nogil:
    # NaN is below everything
    cdef double a = (<const double *>left)[0], b = (<const double *>right)[0]
    if isnan(a) or isnan(b):
        return (not isnan(a)) - (not isnan(b))
    return (a > b) - (a < b)


cdef double quantile_of(double *values, Py_ssize_t n, double q) noexcept nogil:
    """The q-quantile, linear between the two nearest; sorts `values` in place."""
    cdef double rank, low
    cdef Py_ssize_t below, above
    if n == 0 or isnan(q):
        return NAN
    if q < 0:
        return -INFINITY
    if q > 1:
        return INFINITY
    qsort(values, n, sizeof(double), by_value)
    rank = q * <double>(n - 1)
    low = floor(rank)
    below = <Py_ssize_t>low
    above = below + 1 if below + 1 < n else n - 1
    return values[below] * (1 - (rank - low)) + values[above] * (rank - low)


cdef double f_quantile(const int64_t *t, const double *v, Py_ssize_t n, Window *w) noexcept nogil:
    memcpy(w.scratch, v, n * sizeof(double))
    return quantile_of(w.scratch, n, w.first)


cdef double f_mad(const int64_t *t, const double *v, Py_ssize_t n, Window *w) noexcept nogil:
    # median of the distances from the median
    cdef Py_ssize_t i
    memcpy(w.scratch, v, n * sizeof(double))
    cdef double median = quantile_of(w.scratch, n, 0.5)
    for i in range(n):
        w.scratch[i] = fabs(v[i] - median)
    return quantile_of(w.scratch, n, 0.5)


cdef struct Line:
    double slope
    double intercept


cdef Line regression(
    const int64_t *t, const double *v, Py_ssize_t n, int64_t zero_ms
) noexcept nogil:
    """Least squares over (seconds since zero_ms, value)."""
    cdef Sum x = Sum(0, 0), y = Sum(0, 0), xy = Sum(0, 0), xx = Sum(0, 0)
    cdef double seconds, sum_x, sum_y, covariance, variance, count = <double>n
    cdef bint constant = True
    cdef Py_ssize_t i
    cdef Line line
    for i in range(n):
        if v[i] != v[0]:
            constant = False
        seconds = <double>(t[i] - zero_ms) / 1e3
        add(&x, seconds)
        add(&y, v[i])
        add(&xy, seconds * v[i])
        add(&xx, seconds * seconds)
    if constant:
        # exactly flat, whatever rounding would say
        line.slope = NAN if isinf(v[0]) else 0
        line.intercept = NAN if isinf(v[0]) else v[0]
        return line
    sum_x = x.value + x.lost
    sum_y = y.value + y.lost
    covariance = (xy.value + xy.lost) - sum_x * sum_y / count
    variance = (xx.value + xx.lost) - sum_x * sum_x / count
    line.slope = covariance / variance
    line.intercept = sum_y / count - line.slope * sum_x / count
    return line


cdef double f_deriv(const int64_t *t, const double *v, Py_ssize_t n, Window *w) noexcept nogil:
    if n < 2:
        w.absent = True
        return 0
    return regression(t, v, n, t[0]).slope


cdef double f_predict(const int64_t *t, const double *v, Py_ssize_t n, Window *w) noexcept nogil:
    cdef Line line
    if n < 2:
        w.absent = True
        return 0
    line = regression(t, v, n, w.at_ms)
    return line.slope * w.first + line.intercept


cdef double f_smooth(const int64_t *t, const double *v, Py_ssize_t n, Window *w) noexcept nogil:
    """Double exponential smoothing: level (w.first) and trend (w.second), the last level."""
    cdef double level, before = 0, trend, next
    cdef Py_ssize_t i
    if n < 2:
        w.absent = True
        return 0
    level = v[0]
    trend = v[1] - v[0]
    for i in range(1, n):
        if i > 1:
            trend = w.second * (level - before) + (1 - w.second) * trend
        next = w.first * v[i] + (1 - w.first) * (level + trend)
        before = level
        level = next
    return level


cdef Function function_of(str name) except NULL:
    cdef dict table = {
        "rate": <size_t>f_rate, "increase": <size_t>f_increase, "delta": <size_t>f_delta,
        "irate": <size_t>f_irate, "idelta": <size_t>f_idelta, "sum_over_time": <size_t>f_sum,
        "avg_over_time": <size_t>f_avg, "min_over_time": <size_t>f_min,
        "max_over_time": <size_t>f_max, "count_over_time": <size_t>f_count,
        "present_over_time": <size_t>f_present, "last_over_time": <size_t>f_last,
        "first_over_time": <size_t>f_first, "stdvar_over_time": <size_t>f_stdvar,
        "stddev_over_time": <size_t>f_stddev, "changes": <size_t>f_changes,
        "resets": <size_t>f_resets, "quantile_over_time": <size_t>f_quantile,
        "mad_over_time": <size_t>f_mad, "deriv": <size_t>f_deriv,
        "predict_linear": <size_t>f_predict, "holt_winters": <size_t>f_smooth,
        "double_exponential_smoothing": <size_t>f_smooth,
    }
    return <Function><size_t>table[name]


COUNTERS = frozenset({"rate", "increase"})
SORTERS = frozenset({"quantile_over_time", "mad_over_time"})


# The batch -----------------------------------------------------------------------------------


cdef struct Samples:
    const int64_t *times
    const double *values
    Py_ssize_t count


cdef class Batch:
    """Series as pointers; keeps the arrays alive. Series with staleness markers are copied."""

    cdef Samples *series
    cdef readonly Py_ssize_t count
    cdef list kept

    def __cinit__(self, list times, list values, bint markers):
        """`markers`: keep staleness markers (the instant selector must see them)."""
        cdef const int64_t[::1] time_view
        cdef const double[::1] value_view
        cdef Py_ssize_t i
        self.count = len(times)
        self.kept = []
        self.series = <Samples *>malloc(max(self.count, 1) * sizeof(Samples))
        if self.series == NULL:
            raise MemoryError
        for i in range(self.count):
            time_view, value_view = times[i], values[i]
            if time_view.shape[0] != value_view.shape[0]:
                raise ValueError(
                    f"{time_view.shape[0]} times and {value_view.shape[0]} values in a series"
                )
            if not markers and value_view.shape[0] and has_stale(
                &value_view[0], value_view.shape[0]
            ):
                alive = np.asarray(values[i]).view(np.uint64) != 0x7FF0000000000002
                time_view = np.asarray(times[i])[alive]
                value_view = np.asarray(values[i])[alive]
            self.kept.append((time_view.base, value_view.base))
            self.series[i].count = time_view.shape[0]
            self.series[i].times = &time_view[0] if time_view.shape[0] else NULL
            self.series[i].values = &value_view[0] if time_view.shape[0] else NULL

    def __dealloc__(self):
        free(self.series)


cdef bint has_stale(const double *values, Py_ssize_t count) noexcept nogil:
    cdef const uint64_t *bits = <const uint64_t *>values
    cdef uint64_t marker = (<uint64_t>STALE_HIGH << 32) | STALE_LOW
    cdef uint64_t found = 0
    cdef Py_ssize_t i
    for i in range(count):
        found |= bits[i] == marker
    return found != 0


def instant(list times, list values, const int64_t[::1] references, int64_t lookback_ms):
    """The newest sample at or before each reference, at most `lookback_ms` old.

    Returns (values, present, sample times in ms), each (series, step). A series whose newest
    sample is a staleness marker is absent.
    """
    cdef Batch batch = Batch(times, values, True)
    cdef Py_ssize_t steps = references.shape[0], s, step, position
    cdef const Samples *series
    found_values = np.zeros((batch.count, steps))
    found_present = np.zeros((batch.count, steps), np.bool_)
    found_times = np.zeros((batch.count, steps), np.int64)
    cdef double[:, ::1] out = found_values
    cdef uint8_t[:, ::1] present = found_present.view(np.uint8)
    cdef int64_t[:, ::1] sampled = found_times
    with nogil:
        for s in range(batch.count):
            series = &batch.series[s]
            position = 0
            for step in range(steps):
                position = advance(series.times, position, series.count, references[step] + 1)
                if position == 0:
                    continue
                position -= 1
                if series.times[position] < references[step] - lookback_ms:
                    continue
                if is_stale(series.values[position]):
                    continue
                out[s, step] = series.values[position]
                sampled[s, step] = series.times[position]
                present[s, step] = 1
    return found_values, found_present, found_times


cdef Py_ssize_t find_resets(const Samples *series, Py_ssize_t *resets) noexcept nogil:
    # NULL: only counts
    cdef Py_ssize_t i, found = 0
    if resets == NULL:
        for i in range(1, series.count):
            found += series.values[i] < series.values[i - 1]
    else:
        for i in range(1, series.count):
            if series.values[i] < series.values[i - 1]:
                resets[found] = i
                found += 1
    return found


cdef int prepare(const Samples *series, Window *w, bint counter, bint sorter) noexcept nogil:
    """The memory that the functions of one series need; -1 if there is none."""
    cdef Py_ssize_t *resets
    w.resets, w.resets_count, w.scratch = NULL, 0, NULL
    if counter:
        w.resets_count = find_resets(series, NULL)
        if w.resets_count:
            resets = <Py_ssize_t *>malloc(w.resets_count * sizeof(Py_ssize_t))
            if resets == NULL:
                return -1
            find_resets(series, resets)
            w.resets = resets
    if sorter and series.count:
        w.scratch = <double *>malloc(series.count * sizeof(double))
        if w.scratch == NULL:
            return -1
    return 0


def over_time(
    str name, list times, list values, const int64_t[::1] ends, int64_t range_ms,
    const int64_t[::1] steps, const double[::1] first, const double[::1] second
):
    """The function `name` over the samples in [end - range_ms, end] of each end and series.

    `ends` rises or stays; `steps` are the times that the results belong to, `first` and `second`
    the function's parameters there. Returns (values, present), each (series, step).
    """
    cdef Batch batch = Batch(times, values, False)
    cdef Function function = function_of(name)
    cdef bint counter = name in COUNTERS, sorter = name in SORTERS
    cdef Py_ssize_t count = ends.shape[0], s, step, low, high
    cdef const Samples *series
    cdef double result
    cdef Window w
    cdef int failed = 0
    found_values = np.zeros((batch.count, count))
    found_present = np.zeros((batch.count, count), np.bool_)
    cdef double[:, ::1] out = found_values
    cdef uint8_t[:, ::1] present = found_present.view(np.uint8)
    w.range_s = <double>range_ms / 1000
    with nogil:
        for s in range(batch.count):
            series = &batch.series[s]
            failed = prepare(series, &w, counter, sorter)
            low = high = 0
            for step in range(0 if failed else count):
                w.start_ms, w.end_ms, w.at_ms = ends[step] - range_ms, ends[step], steps[step]
                low = advance(series.times, low, series.count, w.start_ms)
                high = advance(series.times, max(low, high), series.count, w.end_ms + 1)
                if high == low:
                    continue
                w.offset, w.absent, w.first, w.second = low, False, first[step], second[step]
                result = function(series.times + low, series.values + low, high - low, &w)
                out[s, step] = 0 if w.absent else result
                present[s, step] = not w.absent
            free(<void *>w.resets)
            free(w.scratch)
            if failed:
                break
    if failed:
        raise MemoryError
    return found_values, found_present
