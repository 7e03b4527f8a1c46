"""Reading tables through Arrow's C stream interface, without a library for it.

Anything with `__arrow_c_stream__` (pandas, polars, pyarrow, duckdb) hands over a stream of batches;
here each batch's columns become numpy arrays or lists of strings. Structures and rules are those
of the Arrow C data and C stream interfaces (arrow.apache.org/docs/format/CDataInterface.html). The
data stays the producer's and is released when its batch was copied. Lengths and offsets of a
producer in the same process are trusted as far as the interface demands, not further: types that
are not known here are refused by name.
"""
from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_IsValid
from libc.stdint cimport int32_t, int64_t, uint8_t
from libc.string cimport memcpy

import numpy as np

from siltstone.errors import InvalidValue
from siltstone.metrics.arrow_structures cimport ArrowArray, ArrowArrayStream, ArrowSchema

NUMBERS = {"c": "i1", "C": "u1", "s": "i2", "S": "u2", "i": "i4", "I": "u4", "l": "i8", "L": "u8",
           "e": "f2", "f": "f4", "g": "f8", "tdD": "i4", "tdm": "i8"}
UNITS = {"tss": "s", "tsm": "ms", "tsu": "us", "tsn": "ns", "tdD": "D", "tdm": "ms"}
cdef int VIEW_INLINE = 12       # a view's string up to this length is in the view itself


cdef object valid_of(const ArrowArray *array):
    """None, or which rows are there."""
    cdef const uint8_t *bitmap = <const uint8_t *>array.buffers[0] if array.n_buffers else NULL
    cdef int64_t n, at
    if array.null_count == 0 or bitmap == NULL:
        return None
    valid = np.empty(array.length, np.bool_)
    cdef uint8_t[::1] to = valid.view(np.uint8)
    for n in range(array.length):
        at = array.offset + n
        to[n] = bitmap[at >> 3] >> (at & 7) & 1
    return valid


cdef object numbers_of(const ArrowArray *array, str dtype):
    found = np.empty(array.length, dtype)
    cdef uint8_t[::1] to = found.view(np.uint8)
    cdef int64_t size = found.itemsize
    if array.length:
        memcpy(&to[0], <const char *>array.buffers[1] + array.offset * size, array.length * size)
    return found


cdef str text_at(const ArrowArray *array, str kind, int64_t at):
    cdef const char *data
    cdef int64_t start, end
    cdef int32_t size, buffer_number, place
    if kind == "u":
        start = (<const int32_t *>array.buffers[1])[at]
        end = (<const int32_t *>array.buffers[1])[at + 1]
    elif kind == "U":
        start = (<const int64_t *>array.buffers[1])[at]
        end = (<const int64_t *>array.buffers[1])[at + 1]
    else:
        data = <const char *>array.buffers[1] + at * 16
        memcpy(&size, data, 4)
        if size <= VIEW_INLINE:
            return data[4:4 + size].decode()
        memcpy(&buffer_number, data + 8, 4)
        memcpy(&place, data + 12, 4)
        data = <const char *>array.buffers[2 + buffer_number] + place
        return data[:size].decode()
    data = <const char *>array.buffers[2]
    return data[start:end].decode()


cdef list texts_of(const ArrowArray *array, str kind):
    valid = valid_of(array)
    cdef int64_t n
    cdef list found = []
    for n in range(array.length):
        found.append(text_at(array, kind, array.offset + n) if valid is None or valid[n] else None)
    return found


cdef object column_of(const ArrowSchema *schema, const ArrowArray *array):
    """A list of str or None, or (numbers, which of them are there or None)."""
    kind = schema.format.decode()
    if schema.dictionary != NULL:
        words = column_of(schema.dictionary, array.dictionary)
        if not isinstance(words, list):
            raise InvalidValue("dictionaries of something else than strings are not supported")
        valid = valid_of(array)
        indexes = numbers_of(array, NUMBERS[kind]).tolist()
        return [words[index] if valid is None or valid[n] else None
                for n, index in enumerate(indexes)]
    if kind in ("u", "U", "vu"):
        return texts_of(array, kind)
    if kind == "n":
        return [None] * array.length
    if kind in NUMBERS or kind[:3] in UNITS:
        found = numbers_of(array, NUMBERS.get(kind, "i8"))
        if kind[:3] in UNITS:
            found = found.astype("i8").view(f"datetime64[{UNITS[kind[:3]]}]")
        return found, valid_of(array)
    raise InvalidValue(f"columns of Arrow's type {kind!r} are not supported")


def batches(table):
    """Each batch of the table as a dict: column -> list of str, or (array, valid or None)."""
    if not hasattr(table, "__arrow_c_stream__"):
        raise InvalidValue(f"{type(table).__name__} has no __arrow_c_stream__: give a table of "
                           "pandas, polars, pyarrow or the like")
    capsule = table.__arrow_c_stream__(None)
    if not PyCapsule_IsValid(capsule, "arrow_array_stream"):
        raise InvalidValue("__arrow_c_stream__ gave no stream")
    cdef ArrowArrayStream *stream = <ArrowArrayStream *>PyCapsule_GetPointer(
        capsule, "arrow_array_stream")
    cdef ArrowSchema schema
    cdef ArrowArray array
    if stream.get_schema(stream, &schema) != 0:
        raise InvalidValue(f"the table has no schema: {said(stream)}")
    found = []
    try:
        if schema.format != b"+s":
            raise InvalidValue("the stream is of single values, not of a table's rows")
        while True:
            if stream.get_next(stream, &array) != 0:
                raise InvalidValue(f"the table cannot be read: {said(stream)}")
            if array.release == NULL:
                return found
            try:
                found.append({
                    schema.children[n].name.decode(): column_of(schema.children[n],
                                                                array.children[n])
                    for n in range(schema.n_children)
                })
            finally:
                array.release(&array)
    finally:
        schema.release(&schema)


cdef str said(ArrowArrayStream *stream):
    cdef const char *text = stream.get_last_error(stream)
    return text.decode(errors="replace") if text != NULL else "no reason given"
