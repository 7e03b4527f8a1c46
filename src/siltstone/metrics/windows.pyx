"""Samples to values on a grid of steps: the instant selector and every function of a time window.

One call takes a batch of series and does all of (series, step) without the GIL. A window is closed
on both sides, as in Prometheus 2; windows move forward only, so their ends are looked for where
the last step's distance puts them, then by galloping. Sums follow Prometheus to the bit (their
compensation, the order of samples), because users compare. Staleness markers are removed before
anything else looks.

Functions that need only the ends of a window (rate, increase, delta) look at no sample between
but the counter resets, which are found once a series.
"""
from libc.math cimport INFINITY, NAN, fabs, floor, isinf, isnan, sqrt
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.stdlib cimport free, malloc, qsort
from libc.string cimport memcpy

import numpy as np

cdef extern from *:
    """
    /* Loops over all samples, where vector instructions pay. */
    #define SILT_VECTOR __attribute__((optimize("O3")))

    typedef struct { int64_t nans, drops; } silt_scan_t;

    static SILT_VECTOR silt_scan_t silt_scan(const double *v, Py_ssize_t n) {
        int64_t nans = n > 0 && v[0] != v[0], drops = 0;
        for (Py_ssize_t i = 1; i < n; i++) {
            nans += v[i] != v[i];
            drops += v[i] < v[i - 1];
        }
        silt_scan_t found = {nans, drops};
        return found;
    }

    /* Four chains at once; there is no NaN. */
    #define SILT_BEST(NAME, OP)                                                   \
    static double NAME(const double *v, Py_ssize_t n) {                           \
        double a = v[0], b = a, c = a, d = a;                                     \
        Py_ssize_t i = 0;                                                         \
        for (; i + 4 <= n; i += 4) {                                              \
            a = v[i] OP a ? v[i] : a;                                             \
            b = v[i + 1] OP b ? v[i + 1] : b;                                     \
            c = v[i + 2] OP c ? v[i + 2] : c;                                     \
            d = v[i + 3] OP d ? v[i + 3] : d;                                     \
        }                                                                         \
        for (; i < n; i++)                                                        \
            a = v[i] OP a ? v[i] : a;                                             \
        a = b OP a ? b : a;                                                       \
        c = d OP c ? d : c;                                                       \
        return c OP a ? c : a;                                                    \
    }
    SILT_BEST(silt_least, <)
    SILT_BEST(silt_greatest, >)

    /* Of the distances from v[0]: their mean, then of what is left of each the sum and the sum of
       squares. Four chains at once. */
    typedef struct { double left, squares; } silt_moments_t;

    static silt_moments_t silt_moments(const double *v, Py_ssize_t n) {
        double s[4] = {0, 0, 0, 0}, q[4] = {0, 0, 0, 0}, l[4] = {0, 0, 0, 0}, first = v[0], d;
        Py_ssize_t i, k;
        for (i = 0; i + 4 <= n; i += 4)
            for (k = 0; k < 4; k++)
                s[k] += v[i + k] - first;
        for (; i < n; i++)
            s[0] += v[i] - first;
        double mean = ((s[0] + s[1]) + (s[2] + s[3])) / (double)n;
        for (i = 0; i + 4 <= n; i += 4)
            for (k = 0; k < 4; k++) {
                d = (v[i + k] - first) - mean;
                l[k] += d;
                q[k] += d * d;
            }
        for (; i < n; i++) {
            d = (v[i] - first) - mean;
            l[0] += d;
            q[0] += d * d;
        }
        silt_moments_t found = {(l[0] + l[1]) + (l[2] + l[3]), (q[0] + q[1]) + (q[2] + q[3])};
        return found;
    }
    """
    ctypedef struct silt_moments_t:
        double left     # of the distances, after their mean was taken off: nearly 0
        double squares
    ctypedef struct silt_scan_t:
        int64_t nans   # values that are NaN
        int64_t drops  # values below the one before
    silt_moments_t silt_moments(const double *v, Py_ssize_t n) noexcept nogil
    silt_scan_t silt_scan(const double *v, Py_ssize_t n) noexcept nogil
    double silt_least(const double *v, Py_ssize_t n) noexcept nogil
    double silt_greatest(const double *v, Py_ssize_t n) noexcept nogil

cdef enum:
    STALE_HIGH = 0x7FF00000  # bits of the staleness marker: 0x7ff00000_00000002
    STALE_LOW = 2
    CHAINS = 4  # sums that add_peaks() has under way
# Cancellation up to which a mean is taken as sum / count, see f_avg.
cdef double CANCELLED_MAX = 1e3


cdef struct Window:
    # what a function of a window is told beside its samples
    int64_t start_ms     # the window, both ends inclusive
    int64_t end_ms
    int64_t at_ms        # the step that is computed
    double range_s
    double first         # parameters of the function at this step
    double second
    double change        # of a counter: last - first, and what it had reached before each reset
    double *scratch      # as long as the series, where a function asked for it
    bint has_nan         # somewhere in the series
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
    const int64_t *times, Py_ssize_t start, Py_ssize_t count, int64_t bound, Py_ssize_t guess
) noexcept nogil:
    """The first position from `start` on whose time is at least `bound`; perhaps guess ahead."""
    cdef Py_ssize_t low = start, high = start + guess, middle, stride = 1
    if start >= count or times[start] >= bound:
        return start
    if start < high < count and times[high] >= bound and times[high - 1] < bound:
        return high
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
    # the rounding error of the addition exactly, without a branch
    cdef double sum = total.value + term
    cdef double part = sum - total.value
    total.lost += (total.value - (sum - part)) + (term - part)
    total.value = sum


# Ends of the window: rate and its kin --------------------------------------------------------


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
    change = w.change if counter else values[count - 1] - values[0]
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
    """Prometheus keeps a running mean, two divisions a sample, so that large values do not
    overflow. Sum over count is the same but for the last bits, where the sum is finite and little
    cancelled; there it is taken."""
    cdef Sum total = Sum(0, 0)
    cdef double magnitude = 0
    cdef Py_ssize_t i
    for i in range(n):
        add(&total, v[i])
        magnitude += fabs(v[i])
    if magnitude <= fabs(total.value) * CANCELLED_MAX and not isinf(total.value):
        return (total.value + total.lost) / <double>n
    return running_mean(v, n)


cdef double running_mean(const double *v, Py_ssize_t n) noexcept nogil:
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
    if not w.has_nan:
        return silt_least(v, n)
    for i in range(1, n):
        if v[i] < best or isnan(best):
            best = v[i]
    return best


cdef double f_max(const int64_t *t, const double *v, Py_ssize_t n, Window *w) noexcept nogil:
    cdef double best = v[0]
    cdef Py_ssize_t i
    if not w.has_nan:
        return silt_greatest(v, n)
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
    """Prometheus follows Welford, whose divisions wait for one another. The mean first, of the
    distances from the first value (so that equal values have exactly none), then the squares, is
    as exact; the last bits may differ."""
    cdef silt_moments_t found = silt_moments(v, n)
    cdef double variance = (found.squares - found.left * found.left / <double>n) / <double>n
    if isnan(variance) or isinf(variance):
        return welford(v, n)
    return variance if variance > 0 else 0


cdef double welford(const double *v, Py_ssize_t n) noexcept nogil:
    # both sums compensated
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
    """Series as pointers; keeps the arrays alive."""

    cdef Samples *series
    cdef readonly Py_ssize_t count
    cdef list kept

    def __cinit__(self, list times, list values):
        cdef const int64_t[::1] time_view
        cdef const double[::1] value_view
        cdef Py_ssize_t i
        self.count = len(times)
        self.kept = [times, values]
        self.series = <Samples *>malloc(max(self.count, 1) * sizeof(Samples))
        if self.series == NULL:
            raise MemoryError
        for i in range(self.count):
            time_view, value_view = times[i], values[i]
            if time_view.shape[0] != value_view.shape[0]:
                raise ValueError(
                    f"{time_view.shape[0]} times and {value_view.shape[0]} values in a series"
                )
            self.series[i].count = time_view.shape[0]
            self.series[i].times = &time_view[0] if time_view.shape[0] else NULL
            self.series[i].values = &value_view[0] if time_view.shape[0] else NULL

    def __dealloc__(self):
        free(self.series)


def instant(list times, list values, const int64_t[::1] references, int64_t lookback_ms):
    """The newest sample at or before each reference, at most `lookback_ms` old.

    Returns (values, present, sample times in ms), each (series, step). A series whose newest
    sample is a staleness marker is absent.
    """
    cdef Batch batch = Batch(times, values)
    cdef Py_ssize_t steps = references.shape[0], s, step
    cdef Py_ssize_t above, before, moved
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
            above = before = 0
            for step in range(steps):
                moved = above - before
                before = above
                above = advance(series.times, above, series.count, references[step] + 1, moved)
                if above == 0 or series.times[above - 1] < references[step] - lookback_ms:
                    continue
                if is_stale(series.values[above - 1]):
                    continue
                out[s, step] = series.values[above - 1]
                sampled[s, step] = series.times[above - 1]
                present[s, step] = 1
    return found_values, found_present, found_times


# Windows over a batch ------------------------------------------------------------------------


cdef struct Prepared:
    # a series without its staleness markers; the arrays are its own where there were some
    Samples samples
    int64_t *times
    double *values
    int64_t *resets         # of a counter: the positions i with v[i] < v[i - 1]
    double *peaks           # v[i - 1] of each
    Py_ssize_t resets_count


cdef int without_markers(const Samples *series, Prepared *clean) noexcept nogil:
    cdef Py_ssize_t i, kept = 0, markers = 0
    clean.samples = series[0]
    for i in range(series.count):
        markers += is_stale(series.values[i])
    if markers == 0:
        return 0
    clean.times = <int64_t *>malloc(series.count * sizeof(int64_t))
    clean.values = <double *>malloc(series.count * sizeof(double))
    if clean.times == NULL or clean.values == NULL:
        return -1
    for i in range(series.count):
        if not is_stale(series.values[i]):
            clean.times[kept] = series.times[i]
            clean.values[kept] = series.values[i]
            kept += 1
    clean.samples.times, clean.samples.values = clean.times, clean.values
    clean.samples.count = kept
    return 0


cdef int find_resets(Prepared *clean, Py_ssize_t count) noexcept nogil:
    cdef Py_ssize_t i, found = 0
    cdef const double *values = clean.samples.values
    clean.resets = <int64_t *>malloc((count + 1) * sizeof(int64_t))
    clean.peaks = <double *>malloc((count + 1) * sizeof(double))
    if clean.resets == NULL or clean.peaks == NULL:
        return -1
    for i in range(1, clean.samples.count):
        clean.resets[found] = i     # without a branch: a gauge falls as often as it rises
        clean.peaks[found] = values[i - 1]
        found += values[i] < values[i - 1]
    clean.resets_count = count
    return 0


cdef int prepare(
    const Samples *series, Prepared *clean, Window *w, bint counter, bint sorter
) noexcept nogil:
    """What the functions need to know of a series, and memory for them; -1 if there is none."""
    cdef silt_scan_t found = silt_scan(series.values, series.count)
    clean.times, clean.values, clean.resets, clean.peaks = NULL, NULL, NULL, NULL
    clean.samples, clean.resets_count = series[0], 0
    w.scratch = NULL
    if found.nans:
        if without_markers(series, clean):
            return -1
        found = silt_scan(clean.samples.values, clean.samples.count)
    w.has_nan = found.nans != 0
    if counter and found.drops:
        if find_resets(clean, found.drops):
            return -1
    if sorter and series.count:
        w.scratch = <double *>malloc(series.count * sizeof(double))
        if w.scratch == NULL:
            return -1
    return 0


cdef void dismiss(Prepared *clean, Window *w) noexcept nogil:
    free(clean.times)
    free(clean.values)
    free(clean.resets)
    free(clean.peaks)
    free(w.scratch)


cdef struct Grid:
    # where the windows end, and what belongs to each step
    const int64_t *ends
    const int64_t *steps
    const double *first
    const double *second
    Py_ssize_t count
    int64_t range_ms


cdef struct Span:
    # the samples of one window: positions in the series, the second one excluded
    Py_ssize_t low
    Py_ssize_t high


cdef void find_spans(const Samples *series, const Grid *grid, Span *spans) noexcept nogil:
    cdef Py_ssize_t step, low = 0, high = 0, low_moved = 0, high_moved = 0, was
    cdef int64_t end_ms
    for step in range(grid.count):
        end_ms = grid.ends[step]
        was = low
        low = advance(series.times, low, series.count, end_ms - grid.range_ms, low_moved)
        low_moved = low - was
        was = high
        high = advance(series.times, max(low, high), series.count, end_ms + 1, high_moved)
        high_moved = high - was
        spans[step].low, spans[step].high = low, high


cdef void add_peaks(const double **peaks, const Py_ssize_t *counts, double *totals) noexcept nogil:
    """To each of CHAINS totals its peaks, one by one. The sums know nothing of each other, so that
    the processor has as many additions under way; one by one it waits for each."""
    cdef const double *p0 = peaks[0]
    cdef const double *p1 = peaks[1]
    cdef const double *p2 = peaks[2]
    cdef const double *p3 = peaks[3]
    cdef double t0 = totals[0], t1 = totals[1], t2 = totals[2], t3 = totals[3]
    cdef Py_ssize_t both = min(min(counts[0], counts[1]), min(counts[2], counts[3])), n, i
    for i in range(both):
        t0 += p0[i]
        t1 += p1[i]
        t2 += p2[i]
        t3 += p3[i]
    totals[0], totals[1], totals[2], totals[3] = t0, t1, t2, t3
    for n in range(CHAINS):
        for i in range(both, counts[n]):
            totals[n] += peaks[n][i]


cdef void find_changes(const Prepared *clean, const Span *spans, Py_ssize_t count,
                       double *changes) noexcept nogil:
    """Of a counter in each window: last minus first, plus what it had reached before each of its
    resets; added in this order, as Prometheus does."""
    cdef const double *values = clean.samples.values
    cdef (const double *)[CHAINS] peaks
    cdef Py_ssize_t[CHAINS] counts
    cdef double[CHAINS] totals
    cdef Py_ssize_t step, n, low = 0, high = 0, low_moved = 0, high_moved = 0, was
    for step in range(count):
        n = step % CHAINS
        peaks[n], counts[n], totals[n] = NULL, 0, 0
        if spans[step].high > spans[step].low:
            totals[n] = values[spans[step].high - 1] - values[spans[step].low]
            was = low
            low = advance(clean.resets, low, clean.resets_count, spans[step].low + 1, low_moved)
            low_moved = low - was
            was = high
            high = advance(clean.resets, max(low, high), clean.resets_count, spans[step].high,
                           high_moved)
            high_moved = high - was
            peaks[n], counts[n] = clean.peaks + low, high - low
        if n == CHAINS - 1 or step == count - 1:
            while n < CHAINS - 1:
                n += 1
                peaks[n], counts[n], totals[n] = NULL, 0, 0
            add_peaks(peaks, counts, totals)
            memcpy(changes + step - step % CHAINS, totals, (step % CHAINS + 1) * sizeof(double))


cdef void walk(
    Function function, const Prepared *clean, const Grid *grid, Window *w, const Span *spans,
    const double *changes, double *out, uint8_t *present
) noexcept nogil:
    """One series: a row of results. `changes`: NULL when it is no counter."""
    cdef Py_ssize_t step, low, high
    cdef double result
    for step in range(grid.count):
        low, high = spans[step].low, spans[step].high
        if high == low:
            continue
        w.end_ms = grid.ends[step]
        w.start_ms = w.end_ms - grid.range_ms
        w.at_ms, w.first, w.second = grid.steps[step], grid.first[step], grid.second[step]
        w.change, w.absent = changes[step] if changes != NULL else 0, False
        result = function(clean.samples.times + low, clean.samples.values + low, high - low, w)
        if not w.absent:
            out[step] = result
            present[step] = 1


def over_time(
    str name, list times, list values, const int64_t[::1] ends, int64_t range_ms,
    const int64_t[::1] steps, const double[::1] first, const double[::1] second
):
    """The function `name` over the samples in [end - range_ms, end] of each end and series.

    `ends` rises or stays, at least one; `steps` are the times that the results belong to, `first`
    and `second` the function's parameters there. Returns (values, present), each (series, step).
    """
    cdef Batch batch = Batch(times, values)
    cdef Function function = function_of(name)
    cdef bint counter = name in COUNTERS, sorter = name in SORTERS
    cdef Grid grid = Grid(
        &ends[0], &steps[0], &first[0], &second[0], ends.shape[0], range_ms
    )
    cdef Prepared clean
    cdef Window w
    cdef Py_ssize_t s
    cdef int failed = 0
    cdef Span *spans = <Span *>malloc(grid.count * sizeof(Span))
    cdef double *changes = <double *>malloc(grid.count * sizeof(double)) if counter else NULL
    found_values = np.zeros((batch.count, grid.count))
    found_present = np.zeros((batch.count, grid.count), np.bool_)
    cdef double[:, ::1] out = found_values
    cdef uint8_t[:, ::1] present = found_present.view(np.uint8)
    w.range_s = <double>range_ms / 1000
    failed = spans == NULL or (counter and changes == NULL)
    with nogil:
        for s in range(batch.count):
            if failed:
                break
            failed = prepare(&batch.series[s], &clean, &w, counter, sorter)
            if not failed:
                find_spans(&clean.samples, &grid, spans)
                if counter:
                    find_changes(&clean, spans, grid.count, changes)
                walk(function, &clean, &grid, &w, spans, changes, &out[s, 0], &present[s, 0])
            dismiss(&clean, &w)
    free(spans)
    free(changes)
    if failed:
        raise MemoryError
    return found_values, found_present
