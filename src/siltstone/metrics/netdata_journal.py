"""Journals: which extents a datafile has, and which pages they hold.

After the super-block come 4,096-byte blocks, each with whole transactions from its start:

    offset  0     1          5               13                15
            kind  reserved   transaction id  payload length    payload
            u8    u32        u64             u16
    payload: u64 extent offset, u32 extent size, u8 number of pages, descriptors (37 bytes each);
    then the CRC-32 of header and payload. Kind 0 is padding: go on at the next block; 1 is this.

A record that fails its CRC-32 is reported, and reading goes on at the next block: its length is
not to be trusted. Pure functions on bytes, any thread.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from siltstone.metrics.netdata_extent import BLOCK, PAGES_MAX, size_max
from siltstone.metrics.netdata_page import DESCRIPTOR, Rows

HEADER: Final = struct.Struct("<BIQH")
STORE: Final = struct.Struct("<QIB")
assert (HEADER.size, STORE.size) == (15, 13)
TRAILER_BYTES: Final = 4
PADDING, STORE_DATA, RESERVED = 0, 1, 2


@dataclass(frozen=True)
class Transaction:
    """An extent as its journal knows it."""

    number: int
    offset: int
    size: int
    descriptors: Rows


@dataclass(frozen=True)
class BadRecord:
    """What could not be used, at which byte of the block."""

    offset: int
    text: str


def size_of(pages: int) -> int:
    """Bytes of a transaction; it must fit a block."""
    return HEADER.size + STORE.size + DESCRIPTOR.itemsize * pages + TRAILER_BYTES


assert size_of(PAGES_MAX) <= BLOCK < size_of(PAGES_MAX + 1)


def records(block: bytes) -> Iterator[Transaction | BadRecord]:
    """What a block, or the part of it that the file still has, holds."""
    offset = 0
    while offset < len(block) and block[offset] != PADDING:
        if offset + HEADER.size > len(block):
            yield BadRecord(offset, "a record that the file cuts off")
            return
        kind, _, number, length = HEADER.unpack_from(block, offset)
        end = offset + HEADER.size + length
        if end + TRAILER_BYTES > len(block):
            yield BadRecord(offset, f"a record of {length} bytes that its block has no room for")
            return
        stored = int.from_bytes(block[end : end + TRAILER_BYTES], "little")
        if stored != zlib.crc32(memoryview(block)[offset:end]):
            yield BadRecord(offset, f"a record (transaction {number}?) whose CRC-32 does not fit")
            return
        if kind == STORE_DATA:
            yield _transaction(block[offset + HEADER.size : end], number, offset)
        elif kind != RESERVED:
            yield BadRecord(offset, f"a record of unknown kind {kind}")
        offset = end + TRAILER_BYTES


def _transaction(payload: bytes, number: int, at: int) -> Transaction | BadRecord:
    if len(payload) < STORE.size:
        return BadRecord(at, f"transaction {number} is too short")
    offset, size, pages = STORE.unpack_from(payload)
    if len(payload) != STORE.size + DESCRIPTOR.itemsize * pages or not 1 <= pages <= PAGES_MAX:
        return BadRecord(at, f"transaction {number}: {pages} pages in {len(payload)} bytes")
    if offset % BLOCK or offset < BLOCK or size > size_max(pages):
        return BadRecord(at, f"transaction {number}: no extent of {size} bytes can be at {offset}")
    descriptors = np.frombuffer(payload, DESCRIPTOR, pages, STORE.size)
    return Transaction(number, offset, size, descriptors)


def build(transaction: Transaction) -> bytes:
    """The record, without the padding of its block."""
    payload = STORE.pack(transaction.offset, transaction.size, len(transaction.descriptors))
    payload += transaction.descriptors.tobytes()
    body = HEADER.pack(STORE_DATA, 0, transaction.number, len(payload)) + payload
    return body + zlib.crc32(body).to_bytes(TRAILER_BYTES, "little")
