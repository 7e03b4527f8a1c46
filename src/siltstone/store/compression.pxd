"""Compressing page images, by libraries that are loaded when they are asked for."""
from libc.stdint cimport int64_t, uint32_t, uint64_t

# `kind`: 0 none, 1 zstd, 2 lz4; as a page's header says it.
# Whether that library is there (it stays loaded).
cdef bint compression_ready(uint32_t kind) noexcept nogil
cdef uint64_t compress_bound(uint32_t kind, uint64_t size) noexcept nogil
# Bytes that it became, or -1: it did not get smaller, or cannot be done.
cdef int64_t compress(uint32_t kind, const char *data, uint64_t size, char *out,
                      uint64_t capacity) noexcept nogil
# 0 when exactly `size` bytes came out.
cdef int decompress(uint32_t kind, const char *data, uint64_t stored, char *out,
                    uint64_t size) noexcept nogil
