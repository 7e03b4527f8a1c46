"""Samples packed for Prometheus' remote_write 1.0: the message that remote_write.pyx reads.

    WriteRequest   1: TimeSeries {1: Label {1: name, 2: value}, 2: Sample {1: double, 2: int64 ms}}

Neighbouring samples of one series share a TimeSeries. Messages put one after the other are one
message again, so a sender may join what was packed apart. Any thread, under the GIL.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE

SERIES_MAX = 1 << 20  # whose labels are kept packed

cdef enum:
    # a Sample's field: its tag and length, then tag and double, tag and time
    FIXED = 1 + 1 + 1 + 8 + 1


cdef inline Py_ssize_t size_of(uint64_t number) noexcept nogil:
    cdef Py_ssize_t size = 1
    while number > 127:
        number >>= 7
        size += 1
    return size


cdef inline uint8_t *put(uint8_t *at, uint64_t number) noexcept nogil:
    while number > 127:
        at[0] = <uint8_t>(number & 127 | 128)
        number >>= 7
        at += 1
    at[0] = <uint8_t>number
    return at + 1


def pack_labels(labels):
    """The Label fields of a series, sorted by name; those without a value left out."""
    fields = []
    for name, value in sorted(labels.items()):
        if value:
            pair = field(1, name.encode()) + field(2, value.encode())
            fields.append(field(1, pair))
    return b"".join(fields)


cdef bytes field(uint32_t number, bytes data):
    cdef uint8_t head[12]
    cdef uint8_t *end = put(put(head, number << 3 | 2), PyBytes_GET_SIZE(data))
    return PyBytes_FromStringAndSize(<char *>head, end - head) + data


cdef class Packer:
    """Arrays of ids, times and values to messages. `labels_of(id)` is asked once for each id, and
    again when SERIES_MAX were."""

    cdef dict packed
    cdef object labels_of

    def __init__(self, labels_of):
        self.packed = {}
        self.labels_of = labels_of

    cdef bytes labels(self, uint32_t id):
        found = self.packed.get(id)
        if found is None:
            if len(self.packed) >= SERIES_MAX:
                self.packed = {}
            found = self.packed[id] = pack_labels(self.labels_of(id))
        return <bytes>found

    def pack(
        self, const uint32_t[::1] ids not None, const int64_t[::1] times not None,
        const double[::1] values not None,
    ):
        """One message."""
        cdef Py_ssize_t count = ids.shape[0], n = 0, first, total = 0, inner
        cdef bytes labels
        assert times.shape[0] == count and values.shape[0] == count
        runs = []  # packed labels, first sample, sample behind, bytes of the TimeSeries
        while n < count:
            labels = self.labels(ids[n])
            first, inner = n, PyBytes_GET_SIZE(labels)
            while n < count and ids[n] == ids[first]:
                inner += FIXED + size_of(<uint64_t>times[n])
                n += 1
            runs.append((labels, first, n, inner))
            total += 1 + size_of(inner) + inner
        message = PyBytes_FromStringAndSize(NULL, total)
        cdef uint8_t *at = <uint8_t *>PyBytes_AS_STRING(message)
        cdef Py_ssize_t last
        for labels, first, last, inner in runs:
            at[0] = 1 << 3 | 2
            at = put(at + 1, inner)
            memcpy(at, PyBytes_AS_STRING(labels), PyBytes_GET_SIZE(labels))
            at += PyBytes_GET_SIZE(labels)
            for n in range(first, last):
                at[0] = 2 << 3 | 2
                at[1] = <uint8_t>(FIXED - 2 + size_of(<uint64_t>times[n]))
                at[2] = 1 << 3 | 1
                memcpy(at + 3, &values[n], 8)
                at[11] = 2 << 3
                at = put(at + 12, <uint64_t>times[n])
        assert at == <uint8_t *>PyBytes_AS_STRING(message) + total
        return message
