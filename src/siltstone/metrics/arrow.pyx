"""Columns as an Arrow stream (the C stream and data interfaces), without an Arrow library.

A stream of one record batch. Each exported structure holds a reference to the `Table` whose
buffers it points into, so that a consumer may keep or move any of them for as long as it likes;
releasing takes the GIL. The layout of the structures: arrow.apache.org, "C data interface".
"""
from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_IsValid, PyCapsule_New
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.errno cimport ENOMEM
from libc.stdint cimport int64_t, uintptr_t
from libc.stdlib cimport calloc, free

import numpy as np

from siltstone.metrics.arrow_structures cimport (
    ARROW_FLAG_NULLABLE,
    ArrowArray,
    ArrowArrayStream,
    ArrowSchema,
)


cdef class Column:
    """One column's name, Arrow format and buffers; the first buffer, validity, may be None."""

    cdef readonly bytes name
    cdef readonly bytes format
    cdef readonly list buffers
    cdef readonly int64_t null_count

    def __init__(self, str name, values):
        self.name = name.encode()
        self.null_count = 0
        if values.dtype == np.float64:
            self.format = b"g"
            self.buffers = [None, np.ascontiguousarray(values)]
        elif values.dtype == np.dtype("datetime64[ms]"):
            self.format = b"tsm:UTC"
            self.buffers = [None, np.ascontiguousarray(values.view(np.int64))]
        elif values.dtype == np.dtype(object):
            self.format = b"U"  # UTF-8 with 64-bit offsets
            self._take_texts(values)
        else:
            raise TypeError(f"no Arrow type for a column of {values.dtype}")

    def _take_texts(self, values):
        texts = [b"" if text is None else text.encode() for text in values]
        offsets = np.zeros(len(texts) + 1, np.int64)
        np.cumsum([len(text) for text in texts], out=offsets[1:])
        here = np.array([text is not None for text in values], np.bool_)
        self.null_count = len(texts) - int(here.sum())
        validity = np.packbits(here, bitorder="little") if self.null_count else None
        data = np.frombuffer(b"".join(texts) or b"\0", np.uint8)
        self.buffers = [validity, offsets, data]


cdef class Table:
    """What a stream hands out."""

    cdef readonly list columns
    cdef readonly int64_t length
    cdef bint given

    def __init__(self, columns):
        self.columns = [Column(name, values) for name, values in columns.items()]
        self.length = len(next(iter(columns.values())))
        self.given = False


cdef inline const void *address(buffer):
    return NULL if buffer is None else <const void *><uintptr_t>buffer.ctypes.data


cdef void release_schema(ArrowSchema *schema) noexcept with gil:
    cdef int64_t i
    for i in range(schema.n_children):
        if schema.children[i] != NULL:
            if schema.children[i].release != NULL:
                schema.children[i].release(schema.children[i])
            free(schema.children[i])
    free(schema.children)
    Py_DECREF(<object>schema.private_data)
    schema.release = NULL


cdef void release_array(ArrowArray *array) noexcept with gil:
    cdef int64_t i
    for i in range(array.n_children):
        if array.children[i] != NULL:
            if array.children[i].release != NULL:
                array.children[i].release(array.children[i])
            free(array.children[i])
    free(array.children)
    free(array.buffers)
    Py_DECREF(<object>array.private_data)
    array.release = NULL


cdef void release_stream(ArrowArrayStream *stream) noexcept with gil:
    Py_DECREF(<object>stream.private_data)
    stream.release = NULL


cdef void fill_schema(ArrowSchema *schema, owner, bytes format, bytes name, int64_t flags):
    schema.format, schema.name, schema.metadata = format, name, NULL
    schema.flags, schema.n_children = flags, 0
    schema.children, schema.dictionary = NULL, NULL
    Py_INCREF(owner)
    schema.private_data = <void *>owner
    schema.release = release_schema


cdef int stream_schema(ArrowArrayStream *stream, ArrowSchema *out) noexcept with gil:
    cdef Table table = <Table>stream.private_data
    cdef Column column
    cdef int64_t i
    fill_schema(out, table, b"+s", b"", 0)
    out.children = <ArrowSchema **>calloc(len(table.columns), sizeof(ArrowSchema *))
    if out.children == NULL:
        out.release(out)
        return ENOMEM
    for i in range(len(table.columns)):
        out.children[i] = <ArrowSchema *>calloc(1, sizeof(ArrowSchema))
        out.n_children = i + 1
        if out.children[i] == NULL:
            out.release(out)
            return ENOMEM
        column = table.columns[i]
        fill_schema(out.children[i], column, column.format, column.name, ARROW_FLAG_NULLABLE)
    return 0


cdef int fill_array(ArrowArray *array, owner, int64_t length, list buffers) except -1:
    """0, or 1 where there is no memory: then nothing is to be released."""
    cdef Py_ssize_t i
    array.length, array.null_count, array.offset = length, 0, 0
    array.n_buffers, array.n_children = len(buffers), 0
    array.children, array.dictionary, array.release = NULL, NULL, NULL
    array.buffers = <const void **>calloc(len(buffers), sizeof(void *))
    if array.buffers == NULL:
        return 1
    for i in range(len(buffers)):
        array.buffers[i] = address(buffers[i])
    Py_INCREF(owner)
    array.private_data = <void *>owner
    array.release = release_array
    return 0


cdef int stream_next(ArrowArrayStream *stream, ArrowArray *out) noexcept with gil:
    cdef Table table = <Table>stream.private_data
    cdef Column column
    cdef int64_t i
    if table.given:
        out.release = NULL  # the end of the stream
        return 0
    if fill_array(out, table, table.length, [None]):
        return ENOMEM
    out.children = <ArrowArray **>calloc(len(table.columns), sizeof(ArrowArray *))
    if out.children == NULL:
        out.release(out)
        return ENOMEM
    for i in range(len(table.columns)):
        out.children[i] = <ArrowArray *>calloc(1, sizeof(ArrowArray))
        out.n_children = i + 1
        column = table.columns[i]
        if out.children[i] == NULL or fill_array(
            out.children[i], column, table.length, column.buffers
        ):
            out.release(out)
            return ENOMEM
        out.children[i].null_count = column.null_count
    table.given = True
    return 0


cdef const char *stream_error(ArrowArrayStream *stream) noexcept with gil:
    return "out of memory"


cdef void release_capsule(object capsule) noexcept:
    cdef ArrowArrayStream *stream
    if PyCapsule_IsValid(capsule, "arrow_array_stream"):
        stream = <ArrowArrayStream *>PyCapsule_GetPointer(capsule, "arrow_array_stream")
        # whoever took the stream over has cleared `release`
        if stream.release != NULL:
            stream.release(stream)
        free(stream)


def export_stream(columns):
    """A capsule "arrow_array_stream" of {name: array}; arrays of equal length, float64,
    datetime64[ms] (UTC) or objects (str or None)."""
    cdef Table table = Table(columns)
    cdef ArrowArrayStream *stream = <ArrowArrayStream *>calloc(1, sizeof(ArrowArrayStream))
    if stream == NULL:
        raise MemoryError
    stream.get_schema = stream_schema
    stream.get_next = stream_next
    stream.get_last_error = stream_error
    stream.release = release_stream
    Py_INCREF(table)
    stream.private_data = <void *>table
    return PyCapsule_New(stream, "arrow_array_stream", release_capsule)
