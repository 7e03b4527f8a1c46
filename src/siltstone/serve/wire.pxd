"""Bytes in, bytes out: tokens, numbers and the growable output of a session. Inline, no GIL.

`output_t` grows by doubling; a failed allocation sets `failed` and later writes do nothing, so
that callers check once, at the end. Functions whose name ends in `_fit` need room made before.
"""
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memchr, memcpy

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>
    static const char silt_pairs[201] =
        "00010203040506070809101112131415161718192021222324252627282930313233343536373839"
        "40414243444546474849505152535455565758596061626364656667686970717273747576777879"
        "8081828384858687888990919293949596979899";
    /* Decimal digits of `number` to `to`; returns how many (at most 20). */
    static inline uint32_t silt_decimal(char *to, uint64_t number) {
        char digits[20];
        uint32_t at = 20;
        while (number >= 100) {
            uint64_t rest = number / 100;
            at -= 2;
            memcpy(digits + at, silt_pairs + 2 * (number - rest * 100), 2);
            number = rest;
        }
        if (number >= 10) { at -= 2; memcpy(digits + at, silt_pairs + 2 * number, 2); }
        else digits[--at] = (char)('0' + number);
        memcpy(to, digits + at, 20 - at);
        return 20 - at;
    }
    """
    uint32_t decimal "silt_decimal"(char *to, uint64_t number) noexcept nogil

cdef enum:
    TOKENS_MAX = 24
    DIGITS_MAX = 20

cdef struct token_t:
    const char *data
    uint32_t size

cdef struct output_t:
    char *data
    uint64_t size
    uint64_t capacity
    bint failed

cdef inline bint output_room(output_t *out, uint64_t size) noexcept nogil:
    """Make room for `size` more bytes; 0 when there is no memory."""
    cdef uint64_t capacity
    cdef char *data
    if out.capacity - out.size >= size:
        return not out.failed
    if out.failed:
        return False
    capacity = out.capacity * 2 if out.capacity else 4096
    while capacity - out.size < size:
        capacity *= 2
    data = <char *>realloc(out.data, capacity)
    if data == NULL:
        out.failed = True
        return False
    out.data = data
    out.capacity = capacity
    return True

cdef inline void put_fit(output_t *out, const char *data, uint64_t size) noexcept nogil:
    memcpy(out.data + out.size, data, size)
    out.size += size

cdef inline void put_number_fit(output_t *out, uint64_t number) noexcept nogil:
    out.size += decimal(out.data + out.size, number)

cdef inline void put_byte_fit(output_t *out, char byte) noexcept nogil:
    out.data[out.size] = byte
    out.size += 1

cdef inline void put(output_t *out, const char *data, uint64_t size) noexcept nogil:
    if output_room(out, size):
        put_fit(out, data, size)

cdef inline void put_number(output_t *out, uint64_t number) noexcept nogil:
    if output_room(out, DIGITS_MAX):
        put_number_fit(out, number)

cdef inline void output_free(output_t *out) noexcept nogil:
    free(out.data)
    out.data = NULL
    out.size = out.capacity = 0
    out.failed = False

cdef inline bint token_is(const token_t *token, const char *word, uint32_t size) noexcept nogil:
    cdef uint32_t i
    if token.size != size:
        return False
    for i in range(size):
        if token.data[i] != word[i]:
            return False
    return True

cdef inline const char *next_token(const char *at, const char *end, token_t *token) noexcept nogil:
    """The next run of bytes other than space; its size is 0 at the end. Returns where to go on."""
    while at < end and at[0] == b' ':
        at += 1
    token.data = at
    while at < end and at[0] != b' ':
        at += 1
    token.size = <uint32_t>(at - token.data)
    return at

cdef inline uint32_t split_tokens(const char *at, const char *end, token_t *tokens) noexcept nogil:
    """Tokens of a line, TOKENS_MAX + 1 when there are more than TOKENS_MAX."""
    cdef uint32_t count = 0
    cdef token_t token
    while True:
        at = next_token(at, end, &token)
        if token.size == 0:
            return count
        if count == TOKENS_MAX:
            return TOKENS_MAX + 1
        tokens[count] = token
        count += 1

cdef inline bint parse_u64(const char *data, uint32_t size, uint64_t *number) noexcept nogil:
    """An unsigned decimal, a leading plus allowed; 0 when it is none or above 2^64 - 1."""
    cdef uint64_t value = 0
    cdef uint32_t i = 0
    cdef uint8_t digit
    if size > 1 and data[0] == b'+':
        i = 1
    if i == size:
        return False
    while i < size:
        digit = <uint8_t>(data[i] - 48)
        if digit > 9:
            return False
        if value >= 1844674407370955161ULL and (
                value > 1844674407370955161ULL or digit > 5):
            return False
        value = value * 10 + digit
        i += 1
    number[0] = value
    return True

cdef inline bint parse_i64(const char *data, uint32_t size, int64_t *number) noexcept nogil:
    """A signed decimal; 0 when it is none or outside 64 bits."""
    cdef uint64_t value = 0
    if size > 1 and data[0] == b'-':
        if (data[1] == b'+' or not parse_u64(data + 1, size - 1, &value)
                or value > 9223372036854775808ULL):
            return False
        number[0] = -<int64_t>value
        return True
    if not parse_u64(data, size, &value) or value > 9223372036854775807ULL:
        return False
    number[0] = <int64_t>value
    return True
