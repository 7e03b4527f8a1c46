"""The superblock: what a file of a device says about itself. Bytes only, no I/O.

Two copies (bytes 0 and 4096 of each file), written in turn: copy `generation % 2`. A copy counts
if its checksum fits; the higher generation wins, so a torn write costs one generation, never the
file. The identity (engine, uuid, geometry) stands in every file, the changing part (clean mark,
stable position, the engine's words) counts in file 0 alone.

    offset  size
         0     8  magic "siltston"
         8     4  CRC32C of bytes 12..511
        12     4  format version
        16     8  generation
        24    16  engine, ASCII, zero padded
        40    16  uuid of the device
        56     8  segment size, bytes
        64     4  segments of all files
        68     4  segments of this file
        72     2  number of this file
        74     2  files in all
        76     4  offset of the first segment
        80    16  boot id of the machine that wrote it last
        96     4  flags: 1 = closed cleanly
       100     4  zero
       104     8  stable position
       112     8  position of the newest checkpoint's first record; 0 = none
       120     8  position of the one before
       128     4  slot in which the newest begins
       132     4  slot in which the one before begins
       136   120  the engine's own
       256   256  zero
"""

from __future__ import annotations

import dataclasses
import struct

from siltstone.errors import Corruption, WrongFormat
from siltstone.log.checksum import crc32c

MAGIC = b"siltston"
FORMAT_VERSION = 1
SUPERBLOCK_SIZE = 512
COPY_DISTANCE = 4096
COPIES = 2
FIRST_DATA_OFFSET = 8192  # two copies, a block each; segments start block-aligned
ENGINE_DATA_SIZE = 120
FLAG_CLEAN = 1
VERSION_OFFSET = 12

_LAYOUT = struct.Struct("<8sIIQ16s16sQIIHHI16sIIQQQII120s256x")
assert _LAYOUT.size == SUPERBLOCK_SIZE


@dataclasses.dataclass(frozen=True)
class Superblock:
    engine: str
    uuid: bytes
    segment_bytes: int
    segment_count: int
    file_segments: int
    file_number: int = 0
    file_count: int = 1
    first_data_offset: int = FIRST_DATA_OFFSET
    generation: int = 0
    boot_id: bytes = bytes(16)
    clean: bool = False
    stable_position: int = 0
    checkpoint_position: int = 0
    checkpoint_before: int = 0
    checkpoint_slot: int = 0
    checkpoint_before_slot: int = 0
    engine_data: bytes = bytes(ENGINE_DATA_SIZE)

    def pack(self) -> bytes:
        """The 512 bytes of a copy."""
        body = _LAYOUT.pack(
            MAGIC,
            0,
            FORMAT_VERSION,
            self.generation,
            self.engine.encode("ascii"),
            self.uuid,
            self.segment_bytes,
            self.segment_count,
            self.file_segments,
            self.file_number,
            self.file_count,
            self.first_data_offset,
            self.boot_id,
            FLAG_CLEAN if self.clean else 0,
            0,
            self.stable_position,
            self.checkpoint_position,
            self.checkpoint_before,
            self.checkpoint_slot,
            self.checkpoint_before_slot,
            self.engine_data,
        )
        return body[:8] + crc32c(body[12:]).to_bytes(4, "little") + body[12:]

    @property
    def offset(self) -> int:
        """Where this generation's copy lies in its file."""
        return self.generation % COPIES * COPY_DISTANCE

    def identity(self) -> tuple[object, ...]:
        """What every file of one device agrees on."""
        return (
            self.engine,
            self.uuid,
            self.segment_bytes,
            self.segment_count,
            self.file_count,
            self.first_data_offset,
        )


def unpack(data: bytes, path: str) -> Superblock:
    """One copy; WrongFormat or Corruption with the reason when it is none."""
    if len(data) < SUPERBLOCK_SIZE or data[:8] != MAGIC:
        raise WrongFormat(
            f"{path} is not a siltstone file", path=path, offset=0, expected=MAGIC, found=data[:8]
        )
    fields = _LAYOUT.unpack_from(data)
    found = crc32c(data[12:SUPERBLOCK_SIZE])
    if found != fields[1]:
        raise Corruption(
            f"{path}: the superblock fails its checksum",
            path=path,
            offset=0,
            expected=fields[1],
            found=found,
        )
    if fields[2] != FORMAT_VERSION:
        raise WrongFormat(
            f"{path} has format version {fields[2]}, this siltstone reads {FORMAT_VERSION}",
            path=path,
            offset=VERSION_OFFSET,
            expected=FORMAT_VERSION,
            found=fields[2],
        )
    return Superblock(
        generation=fields[3],
        engine=fields[4].rstrip(b"\0").decode("ascii", "replace"),
        uuid=fields[5],
        segment_bytes=fields[6],
        segment_count=fields[7],
        file_segments=fields[8],
        file_number=fields[9],
        file_count=fields[10],
        first_data_offset=fields[11],
        boot_id=fields[12],
        clean=bool(fields[13] & FLAG_CLEAN),
        stable_position=fields[15],
        checkpoint_position=fields[16],
        checkpoint_before=fields[17],
        checkpoint_slot=fields[18],
        checkpoint_before_slot=fields[19],
        engine_data=fields[20],
    )


def newest(header: bytes, path: str) -> Superblock:
    """The better of both copies in a file's header area; the error that says most if none."""
    copies: list[Superblock] = []
    errors: list[Corruption] = []
    for copy in range(COPIES):
        start = copy * COPY_DISTANCE
        try:
            copies.append(unpack(header[start : start + SUPERBLOCK_SIZE], path))
        except Corruption as error:
            errors.append(error)
    newer = [error for error in errors if error.offset == VERSION_OFFSET]
    if newer:  # its older copy, if it fits ours, is not the present state
        raise newer[0]
    if copies:
        return max(copies, key=lambda copy: copy.generation)
    # A copy with our magic says more than one that was never written.
    raise min(errors, key=lambda error: isinstance(error, WrongFormat))
