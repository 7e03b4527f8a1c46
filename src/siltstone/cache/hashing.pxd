"""The keyed hash of keys: SipHash-1-3 (Aumasson and Bernstein, 2012), 64 bits.

Keyed with the arena's secret, so that nobody who chooses keys can choose collisions.
"""
from libc.stdint cimport uint64_t
from libc.string cimport memcpy

cdef inline uint64_t _rotate(uint64_t x, int bits) noexcept nogil:
    return (x << bits) | (x >> (64 - bits))

cdef inline void _round(uint64_t *v) noexcept nogil:
    v[0] += v[1]
    v[2] += v[3]
    v[1] = _rotate(v[1], 13) ^ v[0]
    v[3] = _rotate(v[3], 16) ^ v[2]
    v[0] = _rotate(v[0], 32)
    v[2] += v[1]
    v[0] += v[3]
    v[1] = _rotate(v[1], 17) ^ v[2]
    v[3] = _rotate(v[3], 21) ^ v[0]
    v[2] = _rotate(v[2], 32)

cdef inline uint64_t siphash13(const uint64_t *secret, const char *data,
                               uint64_t size) noexcept nogil:
    cdef uint64_t v[4]
    cdef uint64_t word, position = 0, whole = size & ~<uint64_t>7
    v[0] = secret[0] ^ <uint64_t>0x736f6d6570736575
    v[1] = secret[1] ^ <uint64_t>0x646f72616e646f6d
    v[2] = secret[0] ^ <uint64_t>0x6c7967656e657261
    v[3] = secret[1] ^ <uint64_t>0x7465646279746573
    while position < whole:
        memcpy(&word, data + position, 8)
        v[3] ^= word
        _round(v)
        v[0] ^= word
        position += 8
    word = 0
    memcpy(&word, data + position, size - position)
    word |= size << 56
    v[3] ^= word
    _round(v)
    v[0] ^= word
    v[2] ^= 0xff
    _round(v)
    _round(v)
    _round(v)
    return v[0] ^ v[1] ^ v[2] ^ v[3]
