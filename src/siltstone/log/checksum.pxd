"""CRC32C, the one checksum of the log. See checksum.pyx."""
from libc.stdint cimport uint32_t, uint64_t

# The CRC32C of `size` bytes, continuing from `crc` (0 = start): what google_crc32c.extend returns.
cdef uint32_t crc32c(uint32_t crc, const void *data, uint64_t size) noexcept nogil
