"""The log's bytes on a device, written down a second time: the oracle for log/format.pxd."""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterator

import google_crc32c

SEGMENT = struct.Struct("<8sIIQQ16sII2IqQQII")
RUN = struct.Struct("<4sIQIIQIIII")
RECORD = struct.Struct("<II")
SEED = struct.Struct("<IQII")
BLOCK = 4096


@dataclasses.dataclass
class Segment:
    format_version: int
    salt: int
    version: int
    previous_version: int
    uuid: bytes
    stream: int
    flags: int
    next_slots: tuple[int, int]
    opened_ms: int
    segment_bytes: int
    stable_position: int
    slot: int


@dataclasses.dataclass
class Run:
    offset: int
    length: int
    stable_position: int
    records: list[tuple[int, int, bytes]]  # position, kind, payload


def crc(data: bytes) -> int:
    value: int = google_crc32c.value(data)
    return value


def segment_header(image: bytes) -> Segment:
    magic, version, salt, *middle, checksum = SEGMENT.unpack_from(image)
    assert magic == b"slt-segm"
    assert checksum == crc(image[: SEGMENT.size - 4])
    number, previous, uuid, stream, flags, first, second, opened, size, stable, slot = middle
    return Segment(
        version,
        salt,
        number,
        previous,
        uuid,
        stream,
        flags,
        (first, second),
        opened,
        size,
        stable,
        slot,
    )


def runs(image: bytes, segment: Segment) -> Iterator[Run]:
    """The runs of a segment as far as they are valid."""
    offset = 0
    while offset < len(image):
        place = offset + (SEGMENT.size if offset == 0 else 0)
        header = image[place : place + RUN.size]
        magic, salt, version, at, length, stable, stream, slot, zero, checksum = RUN.unpack(header)
        if magic != b"-run" or checksum != crc(header[:-4]) or version != segment.version:
            return
        assert (salt, at, stream, slot) == (segment.salt, offset, segment.stream, segment.slot)
        assert zero == 0
        assert length % BLOCK == 0
        end = offset + length
        yield Run(offset, length, stable, list(records(image, segment, place + RUN.size, end)))
        offset = end


def records(
    image: bytes, segment: Segment, offset: int, end: int
) -> Iterator[tuple[int, int, bytes]]:
    while offset + RECORD.size <= end:
        checksum, word = RECORD.unpack_from(image, offset)
        if word == 0:
            assert not any(image[offset:end])
            return
        kind, size = word & 0xFF, word >> 8
        payload = image[offset + RECORD.size : offset + RECORD.size + size]
        position = segment.version * segment.segment_bytes + offset
        assert checksum == crc(SEED.pack(segment.salt, position, word, crc(payload)))
        yield position, kind, payload
        length = max(64, (RECORD.size + size + 15) // 16 * 16)
        assert not any(image[offset + RECORD.size + size : offset + length])
        offset += length
