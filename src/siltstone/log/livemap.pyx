"""The live map: which records count after the arena is lost. Cache streams only.

One bit for 64 B of flash (a record is at least that long), in a file that is mapped shared, so
that a store into it survives `kill -9`. A bit is set after the index shows the record and cleared
before it stops showing it. Beside the bits stands which life of the segment they belong to
(version and salt): a segment may have been opened again, and bits set, without one byte of its new
life on the device yet; the bytes of its former life must not be taken for what the bits mean.
After a power cut or another boot the map is worth nothing unless it was closed clean:
`trusted()` says which. The file is opened by log/device.py; without one the map is anonymous
memory. Bits are changed by log.pyx, by any thread, with atomic or/and.
"""
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

import mmap
import os

from siltstone import errors

cdef extern from *:
    """
    _Static_assert(sizeof(uint64_t) * 8 * 64 == 4096, "a word of bits is a block of flash");
    """

cdef uint64_t LIVE_MAGIC = 0x65766c2d746c73         # "slt-lve"


def live_map_bytes(segment_count: int, segment_bytes: int) -> int:
    """Size of the file `live` for a device of this geometry."""
    return (LIVE_HEADER_SIZE + _versions_bytes(segment_count)
            + segment_count * (segment_bytes // 4096) * 8)


def _versions_bytes(segment_count: int) -> int:
    return (segment_count * 8 + 4095) // 4096 * 4096


cdef class LiveMap:
    """The bits of one device. `fd` -1: anonymous memory that no other process needs.

    The map of another device or geometry, or of another format, is emptied (`found` is False).
    """

    def __cinit__(self, uint32_t segment_count, uint64_t segment_bytes, bytes uuid, int fd=-1,
                  bint shared=False):
        if segment_bytes % 4096:
            raise errors.ConfigError("segment size must be a multiple of 4 KiB")
        if len(uuid) != 16:
            raise errors.ConfigError("a device's uuid has 16 bytes")
        cdef uint64_t size = live_map_bytes(segment_count, segment_bytes)
        cdef bint whole = True
        self.segment_count, self.segment_bytes = segment_count, segment_bytes
        self.words = segment_bytes // 4096
        if fd >= 0:
            whole = <uint64_t>os.fstat(fd).st_size == size
            if not whole:
                os.ftruncate(fd, size)
            # blocks behind every page before it is touched: a hole on a full disk is SIGBUS
            os.posix_fallocate(fd, 0, size)
            self._mapping = mmap.mmap(fd, size, flags=mmap.MAP_SHARED)
        else:
            kind = mmap.MAP_SHARED if shared else mmap.MAP_PRIVATE
            self._mapping = mmap.mmap(-1, size, flags=kind | mmap.MAP_ANONYMOUS)
        cdef char[::1] view = self._mapping
        self.header = <live_header_t *>&view[0]
        self.versions = <uint64_t *>(&view[0] + LIVE_HEADER_SIZE)
        self.bits = <uint64_t *>(&view[0] + LIVE_HEADER_SIZE
                                 + <uint64_t>_versions_bytes(segment_count))
        self.found = whole and self._fits(uuid)
        if not self.found:
            self._format(uuid, size)

    def _fits(self, bytes uuid):
        cdef live_header_t *header = self.header
        return (header.magic == LIVE_MAGIC and header.format_version == LIVE_FORMAT_VERSION
                and header.segment_count == self.segment_count
                and header.segment_bytes == self.segment_bytes
                and memcmp(header.uuid, <const char *>uuid, 16) == 0)

    def _format(self, bytes uuid, uint64_t size):
        memset(self.header, 0, size)
        self.header.format_version = LIVE_FORMAT_VERSION
        self.header.segment_count = self.segment_count
        self.header.segment_bytes = self.segment_bytes
        memcpy(self.header.uuid, <const char *>uuid, 16)
        self.header.magic = LIVE_MAGIC

    def trusted(self, bytes boot_id) -> bool:
        """Do the bits say the truth? Same boot (a killed process), or closed clean before."""
        if not self.found or len(boot_id) != 16:
            return False
        if self.header.clean == 1:
            return True
        # a machine that does not say which boot this is gives zeros
        return any(boot_id) and memcmp(
            self.header.boot_id, <const char *>boot_id, 16) == 0

    def begin(self, bytes boot_id) -> None:
        """In use from here on: no clean mark until `finish`. On the medium before the return."""
        if len(boot_id) != 16:
            raise errors.ConfigError("a boot id has 16 bytes")
        self.header.clean = 0
        memcpy(self.header.boot_id, <const char *>boot_id, 16)
        self._mapping.flush()

    def finish(self) -> None:
        """Closed in order: bits first, then the mark. The device must have been synced before."""
        self._mapping.flush()
        self.header.clean = 1
        self._mapping.flush()

    def clear(self) -> None:
        """No record counts any more."""
        memset(self.versions, 0, self.segment_count * 8)
        memset(self.bits, 0, self.segment_count * self.words * 8)

    def count(self, uint32_t slot) -> int:
        """Bits that are set in a segment."""
        cdef uint64_t word
        if slot >= self.segment_count:
            raise errors.ConfigError("no such segment")
        return sum((self.bits[slot * self.words + word]).bit_count() for word in range(self.words))

    @property
    def flush_word(self) -> int:
        """Flush epoch of the cache (16 bits) above its due time in Unix ms (48 bits)."""
        return self.header.flush_word

    @flush_word.setter
    def flush_word(self, uint64_t value):
        self.header.flush_word = value

    @property
    def cas_ceiling(self) -> int:
        """CAS numbers below it may have been given out."""
        return self.header.cas_ceiling

    @cas_ceiling.setter
    def cas_ceiling(self, uint64_t value):
        self.header.cas_ceiling = value
