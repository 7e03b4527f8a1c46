"""Dumps: the contents of a store as one stream of bytes that later versions read, too.

    dump   := magic "siltdump" (8) | version = 1 (4) | frame*
    frame  := kind (1) | key size (4) | value size (8) | key | value | CRC32C of all these (4)

| kind | key | value |
|---|---|---|
| 1 tree | its name, UTF-8; the records that follow are in it | empty |
| 2 record | key | value |
| 3 end | empty | number of records (8) |

Integers are little-endian. Before the first tree come the records of the store itself. A dump
without its end is cut: reading says so. Loading commits every few thousand records; what was loaded
before an error stays.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from siltstone.errors import Corruption, WrongFormat
from siltstone.log.checksum import crc32c

MAGIC = b"siltdump"
VERSION = 1
TREE, RECORD, END = 1, 2, 3
HEAD = struct.Struct("<8sI")
FRAME = struct.Struct("<BIQ")
SUM = struct.Struct("<I")
COUNT = struct.Struct("<Q")
KEY_SIZE_MAX = 64 << 10
VALUE_SIZE_MAX = 1 << 32
READ_AT_ONCE = 1 << 20

Pair = tuple[bytes, bytes]


def write(file: BinaryIO, trees: Iterable[tuple[str, Iterable[Pair]]]) -> int:
    """Write (name, records) of each tree, the store itself first as ""; the number of records."""
    file.write(HEAD.pack(MAGIC, VERSION))
    count = 0
    for name, pairs in trees:
        if name:
            _write_frame(file, TREE, name.encode(), b"")
        for key, value in pairs:
            _write_frame(file, RECORD, key, value)
            count += 1
    _write_frame(file, END, b"", COUNT.pack(count))
    return count


def _write_frame(file: BinaryIO, kind: int, key: bytes, value: bytes) -> None:
    head = FRAME.pack(kind, len(key), len(value)) + key
    file.write(head)
    file.write(value)
    file.write(SUM.pack(crc32c(value, crc32c(head))))


def read(file: BinaryIO) -> Iterator[tuple[str, bytes | None, bytes]]:
    """(tree, key, value) of each record; (tree, None, b"") where a tree begins.

    Corruption where a frame fails its check or the dump ends too early.
    """
    head = file.read(HEAD.size)
    if len(head) < HEAD.size or head[:8] != MAGIC:
        raise WrongFormat("this is no dump of a store", expected=MAGIC, found=head[:8])
    version = HEAD.unpack(head)[1]
    if version != VERSION:
        raise WrongFormat(f"a dump of version {version}; this program reads version {VERSION}")
    place, tree, count = HEAD.size, "", 0
    while True:
        kind, key, value, size = _read_frame(file, place)
        place += size
        if kind == TREE:
            tree = key.decode("utf-8", "surrogateescape")
            yield tree, None, b""
        elif kind == RECORD:
            count += 1
            yield tree, key, value
        else:
            if COUNT.unpack(value)[0] != count:
                raise Corruption(
                    f"the dump holds {count} records and says {COUNT.unpack(value)[0]}",
                    offset=place,
                    expected=COUNT.unpack(value)[0],
                    found=count,
                )
            return


def _read_frame(file: BinaryIO, place: int) -> tuple[int, bytes, bytes, int]:
    head = _exactly(file, FRAME.size, place)
    kind, key_size, value_size = FRAME.unpack(head)
    fits = key_size <= KEY_SIZE_MAX and value_size < VALUE_SIZE_MAX
    if kind not in (TREE, RECORD, END) or not fits or (kind == END and value_size != COUNT.size):
        raise Corruption(f"offset {place} of the dump is no record", offset=place, found=head)
    key = _exactly(file, key_size, place)
    value = _exactly(file, value_size, place)
    (found,) = SUM.unpack(_exactly(file, SUM.size, place))
    expected = crc32c(value, crc32c(head + key))
    if found != expected:
        raise Corruption(
            f"the record at offset {place} of the dump fails its checksum",
            offset=place,
            expected=expected,
            found=found,
        )
    return kind, key, value, FRAME.size + key_size + value_size + SUM.size


def _exactly(file: BinaryIO, size: int, place: int) -> bytes:
    """`size` bytes, taken in steps: a damaged size must not ask for memory that is not needed."""
    parts, missing = [], size
    while missing:
        part = file.read(min(missing, READ_AT_ONCE))
        if not part:
            raise Corruption(
                f"the dump ends early, in the record at offset {place}",
                offset=place,
                expected=size,
                found=size - missing,
            )
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)
