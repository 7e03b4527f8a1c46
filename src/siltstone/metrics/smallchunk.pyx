"""Small chunks: a quick code for a few hundred samples, from the head's sealing to the merge.

    chunk   := flags (1) first-time (8) times values
    times   := step                        flags & 1 = 0: one varint, all samples that far apart
             | varint * (count - 1)        flags & 1 = 1: each step less the one before
    values  := bits (8)                    flags >> 1 = 0: all the same
             | varint * count              flags >> 1 = 1: whole numbers, each less the one before
             | scale (1) varint * count    flags >> 1 = 3: the same, of so many decimals
             | bits (8) change * (count-1) flags >> 1 = 2: xor with the one before
    change  := 0 | (zero bytes at the low end << 4 | bytes) (1) bytes

Varints are LEB128 of zigzag numbers; numbers little-endian. Values keep all 64 bits: NaN payloads
(staleness markers) and -0.0 too. Decoding checks every length. Without the GIL; holds no state.
"""
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

import numpy as np

from siltstone.errors import Corruption
from siltstone.metrics.scaling cimport SCALE_MAX, scale_down, scale_of, scale_up

cdef enum:
    TIMES_UNEVEN = 1
    VALUES_SAME = 0
    VALUES_WHOLE = 1
    VALUES_XOR = 2
    VALUES_SCALED = 3
    SCALED_AT_ONCE = 64

cdef extern from *:
    """
    static inline uint64_t silt_bits(double value) {
        uint64_t bits; memcpy(&bits, &value, 8); return bits;
    }
    static inline double silt_double(uint64_t bits) {
        double value; memcpy(&value, &bits, 8); return value;
    }
    static __attribute__((optimize("O3"))) void silt_even(int64_t *times, uint32_t count,
                                                          uint64_t first, uint64_t step) {
        for (uint32_t n = 0; n < count; n++)
            times[n] = (int64_t)(first + n * step);
    }
    #define SILT_LOW_ZERO_BYTES(x) ((uint32_t)(__builtin_ctzll(x) >> 3))
    #define SILT_HIGH_ZERO_BYTES(x) ((uint32_t)(__builtin_clzll(x) >> 3))
    """
    uint64_t bits_of "silt_bits"(double value) noexcept nogil
    void put_even "silt_even"(int64_t *times, uint32_t count, uint64_t first,
                              uint64_t step) noexcept nogil
    double double_of "silt_double"(uint64_t bits) noexcept nogil
    uint32_t low_zero_bytes "SILT_LOW_ZERO_BYTES"(uint64_t) noexcept nogil
    uint32_t high_zero_bytes "SILT_HIGH_ZERO_BYTES"(uint64_t) noexcept nogil


# Varints -----------------------------------------------------------------------------------------


cdef inline char *put_varint(char *to, uint64_t number) noexcept nogil:
    number = (number << 1) ^ <uint64_t>(<int64_t>number >> 63)
    while number >= 0x80:
        to[0] = <char>(number | 0x80)
        to += 1
        number >>= 7
    to[0] = <char>number
    return to + 1


cdef inline const char *get_varint(const char *at, const char *end,
                                   uint64_t *number) noexcept nogil:
    """NULL when it does not end in time."""
    cdef uint64_t found = 0
    cdef uint32_t shift = 0
    while at < end and shift < 70:
        found |= <uint64_t>(<uint8_t>at[0] & 0x7F) << shift
        at += 1
        if not <uint8_t>at[-1] & 0x80:
            number[0] = (found >> 1) ^ (0 - (found & 1))
            return at
        shift += 7
    return NULL


# Encoding ----------------------------------------------------------------------------------------


cdef uint64_t small_bound(uint32_t count) noexcept nogil:
    return SMALL_HEADER + 10 + <uint64_t>count * SMALL_SAMPLE_MAX


cdef bint small_even(const int64_t *times, uint32_t count) noexcept nogil:
    cdef uint64_t step
    cdef uint32_t n
    if count < 2:
        return True
    step = <uint64_t>times[1] - <uint64_t>times[0]
    for n in range(2, count):
        if <uint64_t>times[n] - <uint64_t>times[n - 1] != step:
            return False
    return True


cdef bint all_same(const double *values, uint32_t count) noexcept nogil:
    cdef uint32_t n
    for n in range(1, count):
        if bits_of(values[n]) != bits_of(values[0]):
            return False
    return True


cdef char *put_times(char *to, const int64_t *times, uint32_t count,
                     bint is_even) noexcept nogil:
    cdef uint64_t before = 0, step
    cdef uint32_t n
    memcpy(to, times, 8)
    to += 8
    if is_even:
        return put_varint(to, <uint64_t>times[1] - <uint64_t>times[0] if count > 1 else 0)
    for n in range(1, count):
        step = <uint64_t>times[n] - <uint64_t>times[n - 1]
        to = put_varint(to, step - before)
        before = step
    return to


cdef char *put_xors(char *to, const double *values, uint32_t count) noexcept nogil:
    cdef uint64_t before = bits_of(values[0]), now, differs
    cdef uint32_t n, low, size
    memcpy(to, &before, 8)
    to += 8
    for n in range(1, count):
        now = bits_of(values[n])
        differs = now ^ before
        before = now
        if differs == 0:
            to[0] = 0
            to += 1
            continue
        low = low_zero_bytes(differs)
        size = 8 - low - high_zero_bytes(differs)
        to[0] = <char>(low << 4 | size)
        differs >>= 8 * low
        memcpy(to + 1, &differs, 8)     # the bound has room for all eight
        to += 1 + size
    return to


cdef char *put_wholes(char *to, const double *values, uint32_t count, int scale) noexcept nogil:
    cdef int64_t[SCALED_AT_ONCE] whole
    cdef uint64_t before = 0
    cdef uint32_t first = 0, some, n
    while first < count:
        some = min(count - first, <uint32_t>SCALED_AT_ONCE)
        scale_up(values + first, some, scale, whole)
        for n in range(some):
            to = put_varint(to, <uint64_t>whole[n] - before)
            before = <uint64_t>whole[n]
        first += some
    return to


cdef uint64_t small_encode(const int64_t *times, const double *values, uint32_t count,
                           char *out) noexcept nogil:
    cdef bint is_even = small_even(times, count)
    cdef uint64_t bits = bits_of(values[0])
    cdef int scale = 0
    cdef int mode = VALUES_SAME
    cdef char *to = out + 1
    if not all_same(values, count):
        scale = scale_of(values, count)
        mode = VALUES_XOR if scale < 0 else VALUES_SCALED if scale else VALUES_WHOLE
    out[0] = <char>((0 if is_even else TIMES_UNEVEN) | mode << 1)
    to = put_times(to, times, count, is_even)
    if mode == VALUES_SAME:
        memcpy(to, &bits, 8)
        return <uint64_t>(to + 8 - out)
    if mode == VALUES_SCALED:
        to[0] = <char>scale
        to += 1
    to = put_xors(to, values, count) if mode == VALUES_XOR else put_wholes(to, values, count, scale)
    return <uint64_t>(to - out)


# Decoding ----------------------------------------------------------------------------------------


cdef const char *get_times(const char *at, const char *end, bint is_even, uint32_t count,
                           int64_t *times) noexcept nogil:
    cdef uint64_t step = 0, change, now
    cdef uint32_t n
    if end - at < 8:
        return NULL
    memcpy(&now, at, 8)
    at += 8
    times[0] = <int64_t>now
    if is_even:
        at = get_varint(at, end, &step)
        if at != NULL:
            put_even(times, count, now, step)
        return at
    for n in range(1, count):
        at = get_varint(at, end, &change)
        if at == NULL:
            return NULL
        step += change
        now += step
        times[n] = <int64_t>now
    return at


cdef const char *get_xors(const char *at, const char *end, uint32_t count,
                          double *values) noexcept nogil:
    cdef uint64_t bits, differs
    cdef uint32_t n, low, size
    if end - at < 8:
        return NULL
    memcpy(&bits, at, 8)
    at += 8
    values[0] = double_of(bits)
    for n in range(1, count):
        if at >= end:
            return NULL
        low = <uint8_t>at[0] >> 4
        size = <uint8_t>at[0] & 15
        at += 1
        if low + size > 8 or end - at < size:
            return NULL
        if size:
            differs = 0
            memcpy(&differs, at, size)
            bits ^= differs << (8 * low)
            at += size
        values[n] = double_of(bits)
    return at


cdef const char *get_wholes(const char *at, const char *end, uint32_t count, int scale,
                            double *values) noexcept nogil:
    cdef int64_t *whole = <int64_t *>values
    cdef uint64_t number = 0, change
    cdef uint32_t n
    for n in range(count):
        if at < end and not <uint8_t>at[0] & 0x80:     # of one byte, as most are
            change = <uint8_t>at[0]
            change = (change >> 1) ^ (0 - (change & 1))
            at += 1
        else:
            at = get_varint(at, end, &change)
            if at == NULL:
                return NULL
        number += change
        whole[n] = <int64_t>number
    scale_down(whole, count, scale, values)
    return at


cdef int small_decode(const char *data, uint64_t size, uint32_t count, int64_t *times,
                      double *values) noexcept nogil:
    cdef const char *at = data + 1
    cdef const char *end = data + size
    cdef uint64_t bits = 0
    cdef uint32_t n
    cdef int mode, scale = 0
    if size < SMALL_HEADER or count == 0 or <uint8_t>data[0] >> 1 > VALUES_SCALED:
        return -1
    mode = <uint8_t>data[0] >> 1
    at = get_times(at, end, not data[0] & TIMES_UNEVEN, count, times)
    if at == NULL:
        return -1
    if mode == VALUES_XOR:
        at = get_xors(at, end, count, values)
    elif mode == VALUES_SAME:
        if end - at < 8:
            return -1
        memcpy(&bits, at, 8)
        at += 8
        for n in range(count):
            values[n] = double_of(bits)
    else:
        if mode == VALUES_SCALED:
            if at >= end or <uint8_t>at[0] > SCALE_MAX:
                return -1
            scale = <uint8_t>at[0]
            at += 1
        at = get_wholes(at, end, count, scale, values)
        if at == NULL:
            return -1
    return 0 if at == end else -1


# For Python --------------------------------------------------------------------------------------


def size_max(uint32_t count):
    """Bytes of a chunk of so many samples at most."""
    return small_bound(count)


def even(const int64_t[::1] times not None):
    """Whether they lie all as far apart."""
    return times.shape[0] < 3 or small_even(&times[0], <uint32_t>times.shape[0])


def same(const double[::1] values not None):
    """Whether they are all the same, to the bit."""
    return values.shape[0] < 2 or all_same(&values[0], <uint32_t>values.shape[0])


def encode(const int64_t[::1] times not None, const double[::1] values not None):
    """The bytes of a small chunk. `times` strictly rising, at least one."""
    cdef uint32_t count = <uint32_t>times.shape[0]
    assert count > 0
    assert times.shape[0] == values.shape[0]
    out = bytearray(small_bound(count))
    cdef char[::1] view = out
    cdef uint64_t size
    with nogil:
        size = small_encode(&times[0], &values[0], count, &view[0])
    return bytes(out[:size])


def decode_into(const unsigned char[::1] data not None, int64_t[::1] times not None,
                double[::1] values not None):
    """Fill `times` and `values`; Corruption when `data` is not exactly that many samples."""
    cdef int result = -1
    assert times.shape[0] == values.shape[0]
    if data.shape[0] and times.shape[0]:
        with nogil:
            result = small_decode(<const char *>&data[0], <uint64_t>data.shape[0],
                                  <uint32_t>times.shape[0], &times[0], &values[0])
    if result != 0:
        raise Corruption(f"a chunk of {data.shape[0]} bytes does not hold {times.shape[0]} samples")


def decode(data, count):
    """(times, values)."""
    times, values = np.empty(count, np.int64), np.empty(count, np.float64)
    decode_into(data, times, values)
    return times, values
