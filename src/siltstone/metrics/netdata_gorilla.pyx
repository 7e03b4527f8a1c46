"""Gorilla-coded pages of storage numbers (Netdata of 2023 and later), decoded.

A page is a row of 512-byte buffers:

    offset  0                 8         12        16
            next: 0 = last    entries   bits      496 bytes of bits

Bits are taken from the low end of little-endian 32-bit words. Each buffer starts with a number in
32 plain bits. Then, for each number: 1 = the same again; 0 = then 1 (as many leading zeros as the
exclusive-or before) or 0 and 5 bits that say how many, then the exclusive-or with the number
before, without those zeros. Pure function without the GIL, any thread.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

cdef enum:
    BUFFER_BYTES = 512
    HEADER_BYTES = 8 + 4 + 4
    BITS_MAX = (BUFFER_BYTES - HEADER_BYTES) * 8


cdef struct bits_t:
    const uint8_t *data
    uint32_t used
    bint over  # more bits were asked for than there are


cdef inline uint32_t take(bits_t *bits, uint32_t count) noexcept nogil:
    """The next `count` bits, at most 32."""
    cdef uint64_t window = 0
    cdef uint32_t byte = (bits.used >> 5) << 2, room
    if count == 0:
        return 0
    if bits.used + count > BITS_MAX:
        bits.over = True
        return 0
    room = BITS_MAX // 8 - byte
    memcpy(&window, bits.data + byte, 8 if room >= 8 else room)
    window >>= bits.used & 31
    bits.used += count
    return <uint32_t>(window & ((<uint64_t>1 << count) - 1))


cdef int decode_buffer(
    const uint8_t *buffer, uint32_t *numbers, Py_ssize_t room, uint64_t *following
) noexcept nogil:
    """Numbers decoded, or -1 when the buffer contradicts itself."""
    cdef bits_t bits
    cdef uint32_t entries, said, number, zeros = 0, done
    memcpy(following, buffer, 8)
    memcpy(&entries, buffer + 8, 4)
    memcpy(&said, buffer + 12, 4)
    if entries == 0 or entries > room:
        return -1
    bits.data, bits.used, bits.over = buffer + HEADER_BYTES, 0, False
    number = take(&bits, 32)
    numbers[0] = number
    for done in range(1, entries):
        if take(&bits, 1) == 0:
            if take(&bits, 1) == 0:
                zeros = take(&bits, 5)
            number ^= take(&bits, 32 - zeros)
        if bits.over:
            return -1
        numbers[done] = number
    # The header's own count of bits, with or without the first number, proves the reading right.
    return <int>entries if said == bits.used or said + 32 == bits.used else -1


cdef Py_ssize_t decode_page(
    const uint8_t *page, Py_ssize_t size, uint32_t *numbers, Py_ssize_t room
) noexcept nogil:
    cdef Py_ssize_t offset = 0, found = 0
    cdef uint64_t following = 1
    cdef int got
    while following:
        if offset + BUFFER_BYTES > size:
            return -1
        got = decode_buffer(page + offset, numbers + found, room - found, &following)
        if got < 0:
            return -1
        found += got
        offset += BUFFER_BYTES
    return found


def decode(const uint8_t[::1] page not None, uint32_t[::1] numbers not None) -> int:
    """Fill `numbers` from a page; how many were found, or -1 when the page makes no sense."""
    cdef Py_ssize_t found
    if page.shape[0] == 0 or numbers.shape[0] == 0:
        return -1
    with nogil:
        found = decode_page(&page[0], page.shape[0], &numbers[0], numbers.shape[0])
    return found
