"""Extents: up to 109 pages, compressed together, in a datafile at a multiple of 4,096.

    offset  0                 4              5                 6
            payload length    compression    number of pages   descriptors, 37 bytes each
            u32               u8             u8
    then the payload: the pages one after the other, compressed; then the CRC-32 of all before it

Nothing of an extent is used before its CRC-32 fits, and nothing is allocated for a length before
that is checked against the descriptors. Pure functions, any thread.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import Final

import lz4.block
import numpy as np
import zstandard

from siltstone.errors import Corruption, WrongFormat
from siltstone.metrics.netdata_page import DESCRIPTOR, PAGE_BYTES_MAX, Bytes, Rows

BLOCK: Final = 4096
HEADER: Final = struct.Struct("<IBB")
TRAILER_BYTES: Final = 4
PAGES_MAX: Final = 109  # as many descriptors as fit a journal's block
PLAIN, LZ4, ZSTD = 0, 1, 2
COMPRESSIONS: Final = {PLAIN: "none", LZ4: "LZ4", ZSTD: "ZSTD"}


def size_max(pages: int) -> int:
    """The most bytes that an extent of so many pages can have: its payload grew by packing."""
    return size_of(pages, pages * (PAGE_BYTES_MAX + PAGE_BYTES_MAX // 128) + 64)


def size_of(pages: int, payload: int) -> int:
    return HEADER.size + DESCRIPTOR.itemsize * pages + payload + TRAILER_BYTES


def padded(size: int) -> int:
    """With what follows until the next extent may start."""
    return -(-size // BLOCK) * BLOCK


@dataclass(frozen=True)
class Extent:
    """A checked extent as it was read."""

    compression: int
    descriptors: Rows
    packed: bytes

    @property
    def raw_size(self) -> int:
        return int(self.descriptors["length"].sum(dtype=np.int64))


def size_by_header(head: bytes) -> int:
    """The size that the bytes at an extent's front promise; 0 when they are none's front."""
    if len(head) < HEADER.size:
        return 0
    payload, compression, pages = HEADER.unpack_from(head)
    if not 1 <= pages <= PAGES_MAX or compression not in COMPRESSIONS or not payload:
        return 0
    size = size_of(pages, payload)
    return size if size <= size_max(pages) else 0


def parse(data: bytes) -> Extent:
    """The extent in exactly these bytes; Corruption when they are not one."""
    if len(data) < size_of(1, 1):
        raise Corruption(f"an extent of {len(data)} bytes", expected=size_of(1, 1), found=len(data))
    stored = int.from_bytes(data[-TRAILER_BYTES:], "little")
    found = zlib.crc32(memoryview(data)[:-TRAILER_BYTES])
    if stored != found:
        raise Corruption("its CRC-32 does not fit", expected=f"{stored:08x}", found=f"{found:08x}")
    payload, compression, pages = HEADER.unpack_from(data)
    if size_of(pages, payload) != len(data) or not 1 <= pages <= PAGES_MAX:
        raise Corruption(
            f"its header promises {pages} pages and {payload} bytes",
            expected=len(data),
            found=size_of(pages, payload),
        )
    descriptors = np.frombuffer(data, DESCRIPTOR, pages, HEADER.size)
    return Extent(compression, descriptors, data[HEADER.size + descriptors.nbytes : -TRAILER_BYTES])


def unpack(extent: Extent) -> Bytes:
    """The pages, one after the other. WrongFormat for an unknown compression."""
    if int(extent.descriptors["length"].max()) > PAGE_BYTES_MAX:
        raise Corruption(f"a page of {int(extent.descriptors['length'].max())} bytes")
    size = extent.raw_size
    if extent.compression == PLAIN:
        raw = extent.packed
    elif extent.compression == LZ4:
        raw = _unpack_lz4(extent.packed, size)
    elif extent.compression == ZSTD:
        raw = _unpack_zstd(extent.packed, size)
    else:
        raise WrongFormat(f"compression {extent.compression} is not supported")
    if len(raw) != size:
        raise Corruption(
            f"{len(raw)} bytes of pages instead of {size}", expected=size, found=len(raw)
        )
    return np.frombuffer(raw, np.uint8)


def _unpack_lz4(packed: bytes, size: int) -> bytes:
    try:
        return bytes(lz4.block.decompress(packed, uncompressed_size=size))
    except (lz4.block.LZ4BlockError, ValueError, OverflowError) as error:
        raise Corruption(f"LZ4: {error}") from error


def _unpack_zstd(packed: bytes, size: int) -> bytes:
    try:
        # a frame that names its size makes the library allocate that much
        said = zstandard.frame_content_size(packed)
        if said > size:
            raise Corruption(f"ZSTD: a frame of {said} bytes instead of {size}")
        return zstandard.ZstdDecompressor().decompress(packed, max_output_size=size)
    except zstandard.ZstdError as error:
        raise Corruption(f"ZSTD: {error}") from error


def build(descriptors: Rows, pages: list[bytes], compression: int = LZ4) -> bytes:
    """An extent without its padding. A payload that packing would not shrink stays as it is."""
    assert 1 <= len(pages) == len(descriptors) <= PAGES_MAX
    raw = b"".join(pages)
    assert len(raw) == int(descriptors["length"].sum(dtype=np.int64))
    packed = raw
    if compression == LZ4:
        packed = lz4.block.compress(raw, store_size=False)
    elif compression == ZSTD:
        packed = zstandard.ZstdCompressor().compress(raw)
    if len(packed) >= len(raw):
        compression, packed = PLAIN, raw
    body = HEADER.pack(len(packed), compression, len(pages)) + descriptors.tobytes() + packed
    return body + zlib.crc32(body).to_bytes(TRAILER_BYTES, "little")
