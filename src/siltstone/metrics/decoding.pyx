"""Chunks to samples, many at a time, without the GIL; and the checksums of chunks to be written.

The bytes of a segment come in blocks, a chunk may lie across several. Each chunk is checked before
it is decoded. Small chunks and the even times of long ones are decoded here; columns of pcodec are
left to the caller, who learns which. Nothing that stands in a chunk is believed: what does not fit
is damaged. Holds no state.
"""
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy

import numpy as np

from siltstone.log.checksum cimport crc32c
from siltstone.metrics.head cimport chunk_t
from siltstone.metrics.smallchunk cimport SMALL_CODEC, small_decode

cdef enum:
    LONG_CODEC = 2              # chunks.py: flags, size of the column of times, columns
    LONG_HEADER = 1 + 4
    EVEN_SIZE = 8 + 8
    EVEN = 1
    SAME = 2
    TIMES_LEFT_BIT = 1
    VALUES_LEFT_BIT = 2
    DAMAGED_BIT = 4
    SEED_SIZE = 4 + 8 + 4       # salt, version, offset

# What decode() says of a chunk; 0: its samples are there.
TIMES_LEFT = TIMES_LEFT_BIT
VALUES_LEFT = VALUES_LEFT_BIT
DAMAGED = DAMAGED_BIT


cdef struct block_t:
    const char *data
    uint64_t size

cdef struct blocks_t:
    block_t *all
    int64_t count
    char *scratch               # for chunks across blocks
    uint64_t capacity


cdef const char *bytes_at(blocks_t *blocks, int64_t block, uint64_t inside,
                          uint64_t size) noexcept nogil:
    """`size` bytes from `inside` the block on, perhaps in the scratch; NULL when there are less."""
    cdef uint64_t filled = 0, some
    cdef char *scratch
    if not 0 <= block < blocks.count:
        return NULL
    if inside + size <= blocks.all[block].size:
        return blocks.all[block].data + inside
    if size > blocks.capacity:
        scratch = <char *>realloc(blocks.scratch, 2 * size)
        if scratch == NULL:
            return NULL
        blocks.scratch, blocks.capacity = scratch, 2 * size
    while filled < size:
        if block == blocks.count or inside >= blocks.all[block].size:
            return NULL
        some = min(size - filled, blocks.all[block].size - inside)
        memcpy(blocks.scratch + filled, blocks.all[block].data + inside, some)
        filled += some
        inside = 0
        block += 1
    return blocks.scratch


cdef uint32_t checksum_of(const char *data, uint64_t size, uint32_t salt, uint64_t version,
                          uint32_t offset) noexcept nogil:
    cdef char seed[SEED_SIZE]
    memcpy(seed, &salt, 4)
    memcpy(seed + 4, &version, 8)
    memcpy(seed + 4 + 8, &offset, 4)
    return crc32c(crc32c(0, seed, SEED_SIZE), data, size)


cdef uint8_t decode_long(const char *data, uint64_t size, uint32_t count, int64_t *times,
                         double *values) noexcept nogil:
    cdef uint32_t column, n
    cdef uint8_t flags, left = 0
    cdef int64_t first, step
    if size < LONG_HEADER or count == 0:
        return DAMAGED_BIT
    flags = <uint8_t>data[0]
    memcpy(&column, data + 1, 4)
    if <uint64_t>column + LONG_HEADER > size:
        return DAMAGED_BIT
    data += LONG_HEADER
    size -= LONG_HEADER + <uint64_t>column
    if not flags & EVEN:
        left |= TIMES_LEFT_BIT
    elif column != EVEN_SIZE:
        return DAMAGED_BIT
    else:
        memcpy(&first, data, 8)
        memcpy(&step, data + 8, 8)
        for n in range(count):
            times[n] = <int64_t>(<uint64_t>first + <uint64_t>n * <uint64_t>step)
    if not flags & SAME:
        return left | VALUES_LEFT_BIT
    if size != 8:
        return DAMAGED_BIT
    for n in range(count):
        memcpy(&values[n], data + column, 8)
    return left


cdef uint8_t decode_one(blocks_t *blocks, const chunk_t *chunk, int64_t block, uint64_t inside,
                        uint32_t salt, uint64_t version, int64_t *times,
                        double *values) noexcept nogil:
    cdef const char *data = bytes_at(blocks, block, inside, chunk.size)
    if data == NULL or chunk.count == 0:
        return DAMAGED_BIT
    if version and checksum_of(data, chunk.size, salt, version, chunk.offset) != chunk.crc:
        return DAMAGED_BIT
    if chunk.codec == LONG_CODEC:
        return decode_long(data, chunk.size, chunk.count, times, values)
    if chunk.codec == SMALL_CODEC and small_decode(data, chunk.size, chunk.count, times,
                                                   values) == 0:
        return 0
    return DAMAGED_BIT


def decode(const unsigned char[::1] rows not None, list blocks not None,
           const int64_t[::1] block not None, const int64_t[::1] inside not None,
           const int64_t[::1] places not None, list seeds not None,
           const int64_t[::1] at not None, int64_t[::1] times not None,
           double[::1] values not None):
    """Of the chunks that are not done: (its number, what came of it, its bytes, where its samples
    begin, where they end); see TIMES_LEFT and the others, without bytes for what is damaged.

    `rows` are the bytes of descriptors. A chunk lies `inside` its `block` of `blocks` and those
    that follow; its samples go to `times` and `values` from `at` on. `seeds[places[n]]` is (salt,
    version) of where it comes from. A version of 0: bytes of our own memory, without a checksum.
    """
    cdef const chunk_t *chunks = <const chunk_t *>&rows[0] if rows.shape[0] else NULL
    cdef int64_t n, count = block.shape[0]
    cdef blocks_t table
    cdef const unsigned char[::1] view
    cdef uint8_t[::1] out = np.zeros(count, np.uint8)
    cdef uint32_t[::1] salts = np.array([salt for salt, _ in seeds], np.uint32)
    cdef uint64_t[::1] versions = np.array([version for _, version in seeds], np.uint64)
    cdef list left = []
    assert rows.shape[0] == count * <Py_ssize_t>sizeof(chunk_t)
    assert count == inside.shape[0] == places.shape[0] == at.shape[0]
    assert times.shape[0] == values.shape[0]
    for n in range(count):
        assert 0 <= at[n] <= times.shape[0] - <int64_t>chunks[n].count
        assert 0 <= places[n] < salts.shape[0]
    table.count, table.scratch, table.capacity = len(blocks), NULL, 0
    table.all = <block_t *>malloc(max(1, table.count) * sizeof(block_t))
    if table.all == NULL:
        raise MemoryError
    try:
        for n in range(table.count):
            view = blocks[n]
            table.all[n].size = <uint64_t>view.shape[0]
            table.all[n].data = <const char *>&view[0] if view.shape[0] else NULL
        with nogil:
            for n in range(count):
                out[n] = decode_one(&table, &chunks[n], block[n], <uint64_t>inside[n],
                                    salts[places[n]], versions[places[n]], &times[0] + at[n],
                                    &values[0] + at[n])
        for n in range(count):
            if out[n]:
                left.append((n, out[n], column_of(&table, &chunks[n], block[n], inside[n], out[n]),
                             at[n], at[n] + chunks[n].count))
    finally:
        free(table.all)
        free(table.scratch)
    return left


cdef bytes column_of(blocks_t *blocks, const chunk_t *chunk, int64_t block, uint64_t inside,
                     uint8_t state):
    cdef const char *data = NULL
    if not state & DAMAGED_BIT:
        data = bytes_at(blocks, block, inside, chunk.size)
    return b"" if data == NULL else data[:chunk.size]


def locate(const unsigned char[::1] rows not None, const int64_t[::1] places not None,
           list stored not None, load not None, int64_t block_bytes, int64_t block_bits):
    """(blocks, the first block of each chunk, its place there). `stored`: of each source, whether
    it is read in blocks. `load(place << block_bits | number)` gives a block; those that a chunk
    lies across follow one another."""
    cdef const chunk_t *chunks = <const chunk_t *>&rows[0] if rows.shape[0] else NULL
    cdef int64_t n, first, last, code, before = -1, here = 0, count = places.shape[0]
    cdef list blocks = []
    cdef dict known = {}
    block, inside = np.empty(count, np.int64), np.empty(count, np.int64)
    cdef int64_t[::1] to_block = block, to_inside = inside
    assert rows.shape[0] == count * <Py_ssize_t>sizeof(chunk_t)
    for n in range(count):
        first = last = 0
        if stored[places[n]]:
            first = chunks[n].offset // block_bytes
            last = (<int64_t>chunks[n].offset + chunks[n].size - 1) // block_bytes
        code = places[n] << block_bits | first
        to_inside[n] = chunks[n].offset - first * block_bytes
        if last > first:
            before, here = -1, len(blocks)
            blocks += [load(code + number) for number in range(last - first + 1)]
        elif code != before:
            before, here = code, known.setdefault(code, len(blocks))
            if here == len(blocks):
                blocks.append(load(code))
        to_block[n] = here
    return blocks, block, inside


def trim(const int64_t[::1] times not None, const int64_t[::1] firsts not None,
         const int64_t[::1] lasts not None, int64_t start, int64_t end):
    """Of each run of rising times [first, last) those within [start, end]: (low, high)."""
    cdef int64_t n, low, high
    cdef list found = []
    assert firsts.shape[0] == lasts.shape[0]
    for n in range(firsts.shape[0]):
        assert 0 <= firsts[n] <= lasts[n] <= times.shape[0]
        low, high = first_from(times, firsts[n], lasts[n], start), lasts[n]
        if low < high and times[high - 1] > end:
            high = first_from(times, low, high, end + 1)
        found.append((low, high))
    return found


cdef int64_t first_from(const int64_t[::1] times, int64_t low, int64_t high,
                        int64_t bound) noexcept nogil:
    """The first place in [low, high) whose time is at least `bound`, else `high`."""
    cdef int64_t middle
    while low < high:
        middle = (low + high) >> 1
        if times[middle] < bound:
            low = middle + 1
        else:
            high = middle
    return low


def put_checksums(unsigned char[::1] rows not None, const unsigned char[::1] data not None,
                  uint32_t salt, uint64_t version, uint32_t base):
    """Place chunks that lie in `data` by their offsets `base` further on, with their checksums."""
    cdef chunk_t *chunks = <chunk_t *>&rows[0] if rows.shape[0] else NULL
    cdef int64_t n, count = rows.shape[0] // <Py_ssize_t>sizeof(chunk_t)
    cdef uint64_t size = <uint64_t>data.shape[0]
    for n in range(count):
        assert <uint64_t>chunks[n].offset + chunks[n].size <= size
    with nogil:
        for n in range(count):
            chunks[n].crc = checksum_of(<const char *>&data[0] + chunks[n].offset, chunks[n].size,
                                        salt, version, base + chunks[n].offset)
            chunks[n].offset += base
