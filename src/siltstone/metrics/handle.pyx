"""The handle of one series: the short way from a call to the head.

Holds a pointer into the head's table, which stays as long as a handle is there. Checks what the
caller gives and turns times into milliseconds; all else is head.pyx's. Any thread may use one.
"""
from cpython.float cimport PyFloat_AS_DOUBLE, PyFloat_Check
from libc.math cimport rint
from libc.stdint cimport int64_t, uint32_t

from siltstone.errors import InvalidValue
from siltstone.metrics.head cimport Head
from siltstone.metrics.values import number_of, numbers_of
from siltstone.metrics.times import time_ms, times_ms


cdef class SeriesHandle:
    """One series, for whoever appends to it often. From `Metrics.series()`; any thread may use it.

    `append(time, value)`: time in Unix seconds, or a datetime or datetime64. True when the sample
    was accepted, False when it is older than the window (and counted).
    `extend(times, values)`: arrays; how many were accepted. `backfill=True` accepts any age.
    """

    def __dealloc__(self):
        if self.series != NULL:
            self.series.handles -= 1

    @property
    def id(self):
        return self.series.id

    def append(self, time, value, *, bint backfill=False):
        cdef int64_t ms
        cdef double seconds, number
        if PyFloat_Check(time):
            seconds = PyFloat_AS_DOUBLE(time)
            if not -8589934592.0 <= seconds <= 8589934592.0:
                time_ms(time)       # says what is wrong
            ms = <int64_t>rint(seconds * 1000.0)
        else:
            ms = time_ms(time)
        number = PyFloat_AS_DOUBLE(value) if PyFloat_Check(value) else number_of(value)
        return bool(self.head.append_at(self.series, ms, number, backfill))

    def extend(self, times, values, *, bint backfill=False):
        cdef const int64_t[::1] at = times_ms(times)
        cdef const double[::1] given = numbers_of(values)
        if at.shape[0] != given.shape[0]:
            raise InvalidValue(f"{at.shape[0]} times and {given.shape[0]} values")
        if at.shape[0] == 0:
            return 0
        return self.head.extend_at(self.series, &at[0], &given[0], at.shape[0], backfill)

    def __repr__(self):
        return f"<series {self.labels}>"


def handle_of(Head head not None, uint32_t id, labels):
    """A handle of a live series."""
    cdef SeriesHandle handle = SeriesHandle.__new__(SeriesHandle)
    handle.series = head.find(id)
    handle.head = head
    handle.labels = labels
    handle.series.handles += 1
    return handle
