"""Prometheus' remote_write 1.0, decoded straight into columns: an id, a time, a value a sample.

The body is snappy (block format) around a protobuf message (prometheus.io, "Remote-Write 1.0"):

    WriteRequest   1: TimeSeries, 3: MetricMetadata
    TimeSeries     1: Label {1: name, 2: value}, 2: Sample {1: double value, 2: int64 ms}
                   3: exemplars, 4: native histograms: both passed over, and counted

A sender says the labels of a series with every request, byte for byte the same, so these bytes
are the key of a dictionary of ids: labels are decoded once. It says the series in the same order,
too, so the first guess is the one that followed last time, and comparing the bytes with those is
most often all there is to do (`known.pyx`). Promises: nothing outside the message is read, a
message that is malformed anywhere raises ProtocolError and gives no samples. For one thread at a
time, under the GIL; `resolve` is called in the middle of it, maybe twice for one series.
"""

from dataclasses import dataclass, field

import numpy as np

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from siltstone.errors import ConfigError, InvalidValue, LimitReached, ProtocolError, TooLarge
from siltstone.serve.known cimport Known

BODY_BYTES_MAX = 64 << 20  # of a message, unpacked; senders' default is a few MiB
SERIES_MAX = 1 << 20  # in the dictionary: about 500 bytes each
BUFFER_KEPT_MAX = 8 << 20  # of a message: memory that is there already costs no page faults
KINDS = ("unknown", "counter", "gauge", "histogram", "gaugehistogram", "summary", "info",
         "stateset")

cdef enum:
    VARINT = 0
    FIXED64 = 1
    BYTES = 2
    FIXED32 = 5
    # the first bytes of the fields that nearly all of a request consists of
    SAMPLE = 2 << 3 | BYTES
    VALUE = 1 << 3 | FIXED64
    TIME = 2 << 3 | VARINT


@dataclass
class Batch:
    """The samples of a request. `metadata`: {metric name: {"type", "help", "unit"}}. `refused`:
    how many series `resolve` would not have, and what it said of the first; theirs are left out."""

    ids: object
    times: object
    values: object
    series: int = 0
    exemplars: int = 0
    histograms: int = 0
    refused: int = 0
    refusal: str = ""
    metadata: dict = field(default_factory=dict)


cdef struct span_t:
    const uint8_t *at
    const uint8_t *end


cdef inline bint varint(span_t *span, uint64_t *value) noexcept nogil:
    """The next number; False when there is none."""
    cdef uint64_t found = 0
    cdef uint32_t shift = 0
    cdef uint8_t byte
    while span.at < span.end and shift < 70:
        byte = span.at[0]
        span.at += 1
        found |= <uint64_t>(byte & 127) << shift if shift < 64 else 0
        if byte < 128:
            value[0] = found
            return True
        shift += 7
    return False


cdef inline bint block(span_t *span, span_t *inner) noexcept nogil:
    """A length and that many bytes."""
    cdef uint64_t length
    if not varint(span, &length) or length > <uint64_t>(span.end - span.at):
        return False
    inner.at, inner.end = span.at, span.at + length
    span.at = inner.end
    return True


cdef bint skip(span_t *span, uint64_t tag) noexcept nogil:
    """Pass over a field that is not known."""
    cdef uint64_t number
    cdef span_t inner
    cdef uint32_t kind = tag & 7
    if tag >> 3 == 0:
        return False
    if kind == VARINT:
        return varint(span, &number)
    if kind == BYTES:
        return block(span, &inner)
    number = 8 if kind == FIXED64 else 4
    if kind not in (FIXED64, FIXED32) or <uint64_t>(span.end - span.at) < number:
        return False
    span.at += number
    return True


cdef inline bint usual_sample(span_t *span, int64_t *time, double *value) noexcept nogil:
    """A Sample field as all senders write it: a value, then a time, nothing else. False, and
    nothing is passed over, where it is another one (`sample` reads these)."""
    cdef const uint8_t *at = span.at
    cdef span_t rest
    cdef uint64_t number
    if span.end - at < 13 or at[0] != SAMPLE or at[2] != VALUE or at[11] != TIME:
        return False
    if at[1] > 127 or at[1] > span.end - at - 2:
        return False
    rest.at, rest.end = at + 12, at + 2 + at[1]
    if not varint(&rest, &number) or rest.at != rest.end:
        return False
    memcpy(value, at + 3, 8)
    time[0] = <int64_t>number
    span.at = rest.end
    return True


cdef bint sample(span_t *span, int64_t *time, double *value) noexcept nogil:
    """Sample {1: value, 2: time}; a field that is not there is 0."""
    cdef uint64_t tag, number
    time[0], value[0] = 0, 0.0
    while span.at < span.end:
        if not varint(span, &tag):
            return False
        if tag == (1 << 3 | FIXED64):
            if span.end - span.at < 8:
                return False
            memcpy(value, span.at, 8)
            span.at += 8
        elif tag == (2 << 3 | VARINT):
            if not varint(span, &number):
                return False
            time[0] = <int64_t>number
        elif not skip(span, tag):
            return False
    return True


cdef object text(span_t *span, const uint8_t *start):
    try:
        return (<const char *>span.at)[: span.end - span.at].decode("utf-8")
    except UnicodeDecodeError:
        raise malformed(span.at, start, "text that is not UTF-8") from None


cdef object malformed(const uint8_t *at, const uint8_t *start, str what):
    return ProtocolError(f"remote write: {what}, at byte {at - start} of the message")


cdef class Columns:
    """Arrays that grow."""

    cdef object id_array, time_array, value_array
    cdef uint32_t[::1] ids
    cdef int64_t[::1] times
    cdef double[::1] values
    cdef Py_ssize_t count, room
    cdef Py_ssize_t series, exemplars, histograms, refused
    cdef str refusal

    def __cinit__(self, Py_ssize_t room):
        self.refusal = ""
        self.set_room(room)

    cdef int set_room(self, Py_ssize_t room) except -1:
        cdef object old = (self.id_array, self.time_array, self.value_array)
        self.id_array, self.time_array = np.empty(room, np.uint32), np.empty(room, np.int64)
        self.value_array = np.empty(room, np.float64)
        if self.count:
            for new, former in zip(
                (self.id_array, self.time_array, self.value_array), old, strict=True
            ):
                new[: self.count] = former[: self.count]
        self.ids, self.times, self.values = self.id_array, self.time_array, self.value_array
        self.room = room
        return 0

    cdef object part(self, object array):
        return array[: self.count]


cdef class Decoder:
    """Bodies to batches. `resolve(labels) -> id` is asked for each series that is new to it.

    The dictionary empties itself at `series_max` entries; `forget` empties it when ids have become
    invalid. `series_known`, `forgotten`: entries, and how often it was emptied.
    """

    cdef Known known
    cdef object resolve, buffer
    cdef readonly Py_ssize_t series_max, body_bytes_max, forgotten

    def __init__(
        self, resolve, *, Py_ssize_t series_max=SERIES_MAX, Py_ssize_t body_bytes_max=BODY_BYTES_MAX
    ):
        if series_max < 1 or body_bytes_max < 1:
            raise ConfigError("series_max and body_bytes_max are at least 1")
        self.known = Known()
        self.buffer = bytearray()
        self.resolve = resolve
        self.series_max, self.body_bytes_max, self.forgotten = series_max, body_bytes_max, 0

    @property
    def series_known(self):
        return self.known.count

    def forget(self):
        """Ask `resolve` again for every series."""
        self.known = Known()
        self.forgotten += 1

    def decode(self, body):
        """The batch in a request's body. ProtocolError, TooLarge, or what `resolve` raises but
        InvalidValue and LimitReached, which concern one series."""
        import cramjam  # only servers need it

        try:
            size = cramjam.snappy.decompress_raw_len(body)
        except cramjam.DecompressionError as error:
            raise ProtocolError(f"remote write: the body is not snappy: {error}") from None
        if size > self.body_bytes_max:
            raise TooLarge(
                f"remote write: {size} bytes unpacked are more than {self.body_bytes_max}: "
                "lower max_samples_per_send"
            )
        if size > len(self.buffer):
            self.buffer = bytearray(size)
        try:
            cramjam.snappy.decompress_raw_into(body, self.buffer)
        except cramjam.DecompressionError as error:
            raise ProtocolError(f"remote write: the body is not snappy: {error}") from None
        try:
            return self.decode_plain(memoryview(self.buffer)[:size])
        finally:
            if size > BUFFER_KEPT_MAX:
                self.buffer = bytearray()

    def decode_plain(self, const uint8_t[::1] message not None):
        """The batch in a WriteRequest that is not packed."""
        cdef span_t span, inner
        cdef uint64_t tag
        cdef const uint8_t *start
        # a sample of today takes 18 bytes
        cdef Columns columns = Columns(message.shape[0] // 16 + 8)
        batch = Batch(None, None, None)
        if message.shape[0]:
            start = &message[0]
            span.at, span.end = start, start + message.shape[0]
            while span.at < span.end:
                if not varint(&span, &tag):
                    raise malformed(span.at, start, "a field cut off")
                if tag == (1 << 3 | BYTES) or tag == (3 << 3 | BYTES):
                    if not block(&span, &inner):
                        raise malformed(span.at, start, "a length beyond the end")
                    if tag == (1 << 3 | BYTES):
                        self.series(&inner, start, columns)
                    else:
                        self.metadata(&inner, start, batch)
                elif not skip(&span, tag):
                    raise malformed(span.at, start, "a field that makes no sense")
        batch.ids, batch.times = columns.part(columns.id_array), columns.part(columns.time_array)
        batch.values = columns.part(columns.value_array)
        batch.series, batch.exemplars = columns.series, columns.exemplars
        batch.histograms = columns.histograms
        batch.refused, batch.refusal = columns.refused, columns.refusal
        return batch

    cdef int series(self, span_t *span, const uint8_t *start, Columns columns) except -1:
        """One TimeSeries: the labels that are expected and usual samples, or anything else."""
        cdef Py_ssize_t before = columns.count, n
        cdef uint32_t id
        cdef span_t rest = span[0]
        columns.series += 1
        if self.known.expected(&rest.at, rest.end, &id):
            while rest.at < rest.end:
                if columns.count == columns.room:
                    columns.set_room(2 * columns.room)
                n = columns.count
                if not usual_sample(&rest, &columns.times[n], &columns.values[n]):
                    break
                columns.ids[n] = id
                columns.count += 1
        if rest.at == rest.end and columns.count > before:
            return 0
        columns.count = before
        return self.any_series(span, start, columns)

    cdef int any_series(self, span_t *span, const uint8_t *start, Columns columns) except -1:
        cdef span_t inner
        cdef uint64_t tag
        cdef const uint8_t *field
        cdef const uint8_t *first = NULL
        cdef const uint8_t *last = NULL
        cdef Py_ssize_t before = columns.count, n
        cdef uint32_t id
        apart = None  # labels that do not lie together
        while span.at < span.end:
            field = span.at
            if not varint(span, &tag) or not tag & 7 == BYTES or not block(span, &inner):
                raise malformed(field, start, "a field of a series that makes no sense")
            if tag >> 3 == 2:
                if columns.count == columns.room:
                    columns.set_room(2 * columns.room)
                n = columns.count
                if not sample(&inner, &columns.times[n], &columns.values[n]):
                    raise malformed(field, start, "a sample that makes no sense")
                columns.count += 1
            elif tag >> 3 == 1:
                if first == NULL:
                    first = field
                elif last != field:
                    apart = (apart or b"") + (<const char *>first)[: last - first]
                    first = field
                last = span.at
            elif tag >> 3 == 3:
                columns.exemplars += 1
            elif tag >> 3 == 4:
                columns.histograms += 1
        if columns.count == before:
            return 0
        if first == NULL:
            raise malformed(span.at, start, "a series without labels")
        key = (<const char *>first)[: last - first]
        try:
            id = self.id_of(key if apart is None else apart + key)
        except (InvalidValue, LimitReached) as error:
            columns.count = before
            columns.refused += 1
            columns.refusal = columns.refusal or str(error)
            return 0
        for n in range(before, columns.count):
            columns.ids[n] = id
        return 0

    cdef uint32_t id_of(self, bytes key) except? 0xFFFFFFFF:
        cdef uint32_t id
        if not self.known.find(key, &id):
            id = self.resolve(labels_of(key))
            if self.known.count >= self.series_max:
                self.forget()
            self.known.add(key, id)
        return id

    cdef int metadata(self, span_t *span, const uint8_t *start, object batch) except -1:
        cdef span_t inner
        cdef uint64_t tag, kind = 0
        fields = {}
        while span.at < span.end:
            if not varint(span, &tag):
                raise malformed(span.at, start, "metadata cut off")
            if tag == (1 << 3 | VARINT):
                if not varint(span, &kind):
                    raise malformed(span.at, start, "metadata cut off")
            elif tag & 7 == BYTES and block(span, &inner):
                fields[tag >> 3] = text(&inner, start)
            elif not skip(span, tag):
                raise malformed(span.at, start, "metadata that makes no sense")
        batch.metadata[fields.get(2, "")] = {
            "type": KINDS[kind] if kind < len(KINDS) else "unknown",
            "help": fields.get(4, ""),
            "unit": fields.get(5, ""),
        }
        return 0


def labels_of(const uint8_t[::1] key not None):
    """The labels in the bytes that are a series' key: its Label fields, one after the other."""
    cdef span_t span, label, part
    cdef uint64_t tag
    cdef const uint8_t *start
    labels = {}
    if key.shape[0] == 0:
        return labels
    start = &key[0]
    span.at, span.end = start, start + key.shape[0]
    while span.at < span.end:
        if not varint(&span, &tag) or tag != (1 << 3 | BYTES) or not block(&span, &label):
            raise malformed(span.at, start, "a label that makes no sense")
        name, value = "", ""
        while label.at < label.end:
            if not varint(&label, &tag) or tag & 7 != BYTES or not block(&label, &part):
                raise malformed(label.at, start, "a label that makes no sense")
            if tag >> 3 == 1:
                name = text(&part, start)
            elif tag >> 3 == 2:
                value = text(&part, start)
        if not name:
            raise malformed(span.at, start, "a label without a name")
        if name in labels:
            raise malformed(span.at, start, f"the label {name!r} twice")
        labels[name] = value
    return labels
