"""Samples as Prometheus' JSON has them: [time,"value"], all rows of a result at once.

A number is the shortest decimal that reads back the same, with an exponent below 1e-6 and from
1e21 on (numbers.sample_text, which is the oracle). Its digits are found by Giulietti's method
("The Schubfach way to render doubles", 2020): the interval of decimals that round to the double is
scaled by a power of ten that is known to 128 bits, and of the multiples of ten, else of one, in it
the nearest is taken. The powers are computed when the module is loaded.
"""
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.unicode cimport PyUnicode_DecodeASCII, PyUnicode_DecodeUTF8
from libc.math cimport fabs, signbit
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

import numpy as np

cdef extern from *:
    """
    static inline uint64_t silt_high(uint64_t a, uint64_t b, uint64_t *low) {
        unsigned __int128 product = (unsigned __int128)a * b;
        *low = (uint64_t)product;
        return (uint64_t)(product >> 64);
    }

    static const char silt_pairs[] =
        "00010203040506070809101112131415161718192021222324252627282930313233343536373839"
        "40414243444546474849505152535455565758596061626364656667686970717273747576777879"
        "8081828384858687888990919293949596979899";

    /* Two digits at a time, the last ones first, in their place. */
    static char *silt_digits(char *to, uint64_t number) {
        int count = 1;
        for (uint64_t ten = 10; number >= ten; ten *= 10)
            if (++count == 20)
                break;
        char *end = to + count, *at = end;
        while (number >= 100) {
            at -= 2;
            memcpy(at, silt_pairs + 2 * (number % 100), 2);
            number /= 100;
        }
        if (number >= 10)
            memcpy(at - 2, silt_pairs + 2 * number, 2);
        else
            at[-1] = (char)('0' + number);
        return end;
    }
    """
    uint64_t high_product "silt_high"(uint64_t a, uint64_t b, uint64_t *low) noexcept nogil
    char *put_digits "silt_digits"(char *to, uint64_t number) noexcept nogil

cdef enum:
    POWER_MIN = -292            # of ten, for doubles of all sizes
    POWER_MAX = 324
    MANTISSA_BITS = 52
    BIAS = 1075                 # of the exponent, the mantissa being a whole number
    NUMBER_MAX = 32             # bytes of a number: sign, 17 digits, point, five zeros; or exponent
    DIGITS_MAX = 20
    TIME_MAX = 24               # sign, 16 digits, point, three digits
    SLACK = 32                  # behind a text: copies of a fixed size may write so far

# 10^n * 2^shift rounded up, between 2^127 and 2^128: high and low half.
cdef uint64_t[POWER_MAX - POWER_MIN + 1] powers_high
cdef uint64_t[POWER_MAX - POWER_MIN + 1] powers_low


def _power(n):
    """10^n, scaled to 128 bits."""
    over, under = (10 ** n, 1) if n >= 0 else (1, 10 ** -n)
    shift = 128 - over.bit_length() + under.bit_length()
    while True:
        top, bottom = (over << shift, under) if shift >= 0 else (over, under << -shift)
        scaled = -(-top // bottom)
        if scaled.bit_length() <= 128:      # the lengths' difference may be one bit too short
            return scaled
        shift -= 1


def _fill_powers():
    for n in range(POWER_MIN, POWER_MAX + 1):
        scaled = _power(n)
        powers_high[n - POWER_MIN] = scaled >> 64
        powers_low[n - POWER_MIN] = scaled & 0xFFFF_FFFF_FFFF_FFFF


_fill_powers()


cdef struct decimal_t:
    uint64_t digits
    int32_t exponent            # value = digits * 10^exponent


cdef inline uint64_t scaled(int32_t power, uint64_t number) noexcept nogil:
    """number * 10^power / 2^..., its lowest bit set when anything was cut off."""
    cdef uint64_t low, middle, unused
    cdef uint64_t carry = high_product(powers_low[power - POWER_MIN], number, &unused)
    cdef uint64_t high = high_product(powers_high[power - POWER_MIN], number, &middle)
    low = middle + carry
    high += low < middle
    return high | (low > 1)


cdef decimal_t shortest(uint64_t mantissa, int32_t biased) noexcept nogil:
    """Of a finite double above zero."""
    cdef uint64_t number, low, high, exact, tens, ones
    cdef int32_t binary, ten, shift
    cdef bint closer = mantissa == 0 and biased > 1     # the double below is half as far away
    cdef bint low_fits, high_fits, even
    cdef decimal_t found
    number = mantissa | (<uint64_t>(biased > 0) << MANTISSA_BITS)
    binary = (biased if biased else 1) - BIAS
    even = number & 1 == 0
    # floor(log10(2^binary)), of three quarters of it at the edge of a power of two
    ten = (binary * 1262611 - (524031 if closer else 0)) >> 22
    shift = binary + ((-ten * 1741647) >> 19) + 1
    low = scaled(-ten, (4 * number - 2 + closer) << shift) + (not even)
    exact = scaled(-ten, (4 * number) << shift)
    high = scaled(-ten, (4 * number + 2) << shift) - (not even)
    ones = exact >> 2
    if ones >= 10:
        tens = ones // 10
        low_fits = low <= 40 * tens
        high_fits = 40 * tens + 40 <= high
        if low_fits != high_fits:
            found.digits = tens + high_fits
            found.exponent = ten + 1
            return found
    low_fits = low <= 4 * ones
    high_fits = 4 * ones + 4 <= high
    found.exponent = ten
    if low_fits != high_fits:
        found.digits = ones + high_fits
    else:
        exact -= 4 * ones
        # the nearer one; of two equally near the even one
        found.digits = ones + <uint64_t>(exact > 2 or (exact == 2 and (ones & 1) == 1))
    return found


cdef inline char *put_zeros(char *to, int32_t count) noexcept nogil:
    cdef int32_t n
    for n in range(count):
        to[n] = c'0'
    return to + max(count, 0)


cdef char *put_decimal(char *to, decimal_t decimal, bint plain) noexcept nogil:
    cdef char[DIGITS_MAX] digits
    cdef int32_t count, point, exponent
    while decimal.digits % 10 == 0:
        decimal.digits //= 10
        decimal.exponent += 1
    count = <int32_t>(put_digits(digits, decimal.digits) - digits)
    point = count + decimal.exponent        # digits before the decimal point
    if not plain:
        to[0] = digits[0]
        to += 1
        if count > 1:
            to[0] = c'.'
            memcpy(to + 1, digits + 1, count - 1)
            to += count
        exponent = point - 1
        to[0] = c'e'
        to[1] = c'-' if exponent < 0 else c'+'
        exponent = -exponent if exponent < 0 else exponent
        if exponent < 10:
            to[2] = c'0'
            to += 1
        return put_digits(to + 2, exponent)
    if point <= 0:
        to[0] = c'0'
        to[1] = c'.'
        to = put_zeros(to + 2, -point)
        memcpy(to, digits, count)
        return to + count
    if point >= count:
        memcpy(to, digits, count)
        return put_zeros(to + count, point - count)
    memcpy(to, digits, point)
    to[point] = c'.'
    memcpy(to + point + 1, digits + point, count - point)
    return to + count + 1


cdef char *put_number(char *to, double value) noexcept nogil:
    """At most NUMBER_MAX bytes, and SLACK behind them."""
    cdef uint64_t bits
    cdef double size = fabs(value)
    memcpy(&bits, &value, 8)
    if value != value:
        memcpy(to, b"NaN", 3)
        return to + 3
    if size > 1.7976931348623157e308:
        memcpy(to, b"-Inf" if signbit(value) else b"+Inf", 4)
        return to + 4
    if signbit(value):
        to[0] = c'-'
        to += 1
    if size < 9007199254740992.0 and size == <double><uint64_t>size:
        return put_digits(to, <uint64_t>size)
    return put_decimal(
        to, shortest(bits & ((<uint64_t>1 << MANTISSA_BITS) - 1),
                     <int32_t>(bits >> MANTISSA_BITS) & 0x7FF),
        1e-6 <= size < 1e21,
    )


def number(double value):
    """One value, as a sample has it."""
    cdef char[NUMBER_MAX + SLACK] text
    return PyUnicode_DecodeASCII(text, put_number(text, value) - text, NULL)


# Rows of a result --------------------------------------------------------------------------------


cdef struct text_t:
    const char *data
    Py_ssize_t size

cdef struct shape_t:
    # what stands between the parts of a row
    text_t before
    text_t between
    text_t behind

cdef struct moments_t:
    # the moments of the columns as texts, one behind another
    char *texts
    uint32_t *ends


cdef inline char *put_text(char *to, const text_t *text) noexcept nogil:
    memcpy(to, text.data, text.size)
    return to + text.size


cdef char *put_time(char *to, int64_t time_ms) noexcept nogil:
    """Milliseconds as seconds, at most TIME_MAX bytes and SLACK; a fraction has three digits."""
    cdef uint64_t size = <uint64_t>time_ms
    cdef uint32_t fraction
    if time_ms < 0:
        size = 0 - size
        to[0] = c'-'
        to += 1
    to = put_digits(to, size // 1000)
    fraction = <uint32_t>(size % 1000)
    if fraction:
        to[0] = c'.'
        to[1] = <char>(c'0' + fraction // 100)
        to[2] = <char>(c'0' + fraction // 10 % 10)
        to[3] = <char>(c'0' + fraction % 10)
        to += 4
    return to


cdef char *put_samples(char *to, const moments_t *moments, const double *values,
                       const uint8_t *present, Py_ssize_t count) noexcept nogil:
    cdef Py_ssize_t n
    cdef uint32_t size, start = 0
    cdef char *first = to
    for n in range(count):
        size = moments.ends[n] - start
        if present[n]:
            if to > first:
                to[0] = c','
                to += 1
            to[0] = c'['
            memcpy(to + 1, moments.texts + start, TIME_MAX)
            to += 1 + size
            memcpy(to, b',"', 2)
            to = put_number(to + 2, values[n])
            memcpy(to, b'"]', 2)
            to += 2
        start = moments.ends[n]
    return to


cdef char *put_rows(char *to, const shape_t *shape, const text_t *heads, const moments_t *moments,
                    const double *values, const uint8_t *present, Py_ssize_t rows,
                    Py_ssize_t columns) noexcept nogil:
    cdef Py_ssize_t row
    for row in range(rows):
        if row:
            to[0] = c','
            to += 1
        to = put_text(to, &shape.before)
        to = put_text(to, &heads[row])
        to = put_text(to, &shape.between)
        to = put_samples(to, moments, values + row * columns, present + row * columns, columns)
        to = put_text(to, &shape.behind)
    return to


cdef text_t text_of(bytes text):
    """Good as long as `text` is."""
    return text_t(PyBytes_AS_STRING(text), PyBytes_GET_SIZE(text))


def rows_text(list heads not None, const int64_t[::1] times not None,
              const double[:, ::1] values not None, const uint8_t[:, ::1] present not None,
              bint single):
    """'[{"metric":HEAD,"values":[[time,"value"],...]},...]', a head (JSON, UTF-8) a row; `single`:
    "value" is the one sample itself."""
    cdef Py_ssize_t rows = len(heads), columns = times.shape[0], n, size
    cdef bytes before = b'{"metric":', between, behind
    cdef shape_t shape
    cdef moments_t moments
    cdef text_t *texts = NULL
    cdef char *start = NULL
    cdef char *to
    assert rows == values.shape[0] == present.shape[0]
    assert columns == values.shape[1] == present.shape[1]
    if rows == 0:
        return "[]"
    between, behind = (b',"value":', b"}") if single else (b',"values":[', b"]}")
    shape.before, shape.between, shape.behind = text_of(before), text_of(between), text_of(behind)
    size = 2 + SLACK + rows * (1 + shape.before.size + shape.between.size + shape.behind.size)
    # '[' time ',"' value '"],' for each; memory that is not written costs nothing
    size += np.count_nonzero(present) * (TIME_MAX + NUMBER_MAX + 6)
    moments.texts = <char *>malloc(columns * TIME_MAX + SLACK)
    moments.ends = <uint32_t *>malloc(max(columns, 1) * sizeof(uint32_t))
    texts = <text_t *>malloc(rows * sizeof(text_t))
    try:
        if moments.texts == NULL or moments.ends == NULL or texts == NULL:
            raise MemoryError
        for n in range(rows):
            texts[n] = text_of(heads[n])
            size += texts[n].size
        start = <char *>malloc(size)
        if start == NULL:
            raise MemoryError
        with nogil:
            to = moments.texts
            for n in range(columns):
                to = put_time(to, times[n])
                moments.ends[n] = <uint32_t>(to - moments.texts)
            start[0] = c'['
            to = start + 1
            if columns:
                to = put_rows(to, &shape, texts, &moments, &values[0, 0], &present[0, 0], rows,
                              columns)
            else:
                to = put_rows(to, &shape, texts, &moments, NULL, NULL, rows, 0)
            to[0] = c']'
        return PyUnicode_DecodeUTF8(start, to + 1 - start, NULL)
    finally:
        free(start)
        free(texts)
        free(moments.texts)
        free(moments.ends)
