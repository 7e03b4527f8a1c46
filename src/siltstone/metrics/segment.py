"""Segments of chunks: their bytes, and what is known of each in memory.

    segment := header extent* index?
    extent  := extent-header descriptor* labels? data
    index   := extent-header descriptor* labels          of all chunks; behind the last extent

A segment belongs to one *kind*: fresh (small chunks, as the head sealed them), raw (long chunks),
or a tier. It is written front to back, extent by extent, and never changed. Its descriptors name
series by their number in this segment; each extent brings the labels of those that are new. So a
segment describes itself; a sealed one is known by one read, and only when it is asked for.

Everything is checked before it is used: headers and descriptors by a checksum of their own, each
chunk by one bound to its place. Reads and writes through the device; decides nothing.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import zstandard

from siltstone.errors import Corruption
from siltstone.log.checksum import crc32c
from siltstone.log.device import Device
from siltstone.metrics.decoding import put_checksums
from siltstone.metrics.head import CHUNK, CHUNK_SIZE
from siltstone.metrics.state import SegmentRow

MAGIC: Final = b"slt-chnk"
FORMAT: Final = 1
#                        magic format kind slot version salt segment_bytes uuid opened crc
HEADER: Final = struct.Struct("<8sHHIQII16sqI")
HEADER_SIZE: Final = 64
EXTENT_MAGIC: Final = b"xtnt"
#                        magic crc length chunks keys labels-size flags version offset first-number
EXTENT: Final = struct.Struct("<4sIIIIIIQII")
INDEX_FLAG: Final = 1
_FRAME: Final = struct.Struct("<I")
_KEY: Final = struct.Struct("<H")
FRESH: Final = 0
RAW: Final = 1
TIER: Final = 2  # the first tier; the next is 3
assert HEADER.size <= HEADER_SIZE
assert EXTENT.size == 4 + 6 * 4 + 8 + 2 * 4

Chunks = npt.NDArray[Any]  # of CHUNK; `series` is an id of the registry
Intern = Callable[[bytes], int]


@dataclasses.dataclass(frozen=True)
class Segment:
    """What is known of a segment. Replaced, never changed, so that a reader's stays as it was."""

    kind: int
    slot: int
    version: int
    salt: int
    end: int = HEADER_SIZE
    index_offset: int = 0  # 0: not sealed
    start_ms: int = 1 << 62
    end_ms: int = -(1 << 62)
    chunk_count: int = 0
    samples: int = 0
    sequence_min: int = 1 << 63
    sequence_max: int = 0
    # Of a segment that is not sealed: all descriptors, labels as they were written, numbers.
    parts: tuple[Chunks, ...] = ()
    frames: tuple[bytes, ...] = ()
    numbers: dict[int, int] = dataclasses.field(default_factory=dict, repr=False, compare=False)

    @property
    def sealed(self) -> bool:
        return self.index_offset > 0

    def row(self) -> SegmentRow:
        """What a checkpoint says of it."""
        return (
            *(self.kind, self.slot, self.version, self.salt, self.end, self.index_offset),
            *(self.start_ms, self.end_ms, self.chunk_count, self.samples),
            *(self.sequence_min, self.sequence_max),
        )


def joined(parts: Sequence[Chunks]) -> Chunks:
    """One behind another. By their bytes: numpy takes 100 us to compare structured types."""
    if len(parts) == 1:
        return parts[0]
    return np.concatenate([part.view(np.uint8) for part in parts] or [_NONE]).view(CHUNK)


_NONE: Final = np.empty(0, np.uint8)
_BYTES: Final = np.dtype((np.void, CHUNK_SIZE))


def picked(chunks: Chunks, places: npt.NDArray[np.integer[Any]]) -> Chunks:
    """`chunks[places]`, as bytes: numpy copies structured types field by field (8,500 rows: 60 us
    instead of 1,300)."""
    return chunks.view(_BYTES).take(places).view(CHUNK)


def _scattered(numbers: dict[int, int], ids: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    unique, places = np.unique(ids, return_inverse=True)
    found = np.fromiter((numbers[int(id)] for id in unique), np.uint32, unique.size)
    return found[places]


# Writing -------------------------------------------------------------------------------------


def pack_header(segment: Segment, segment_bytes: int, uuid: bytes, now_ms: int) -> bytes:
    fields = (
        *(MAGIC, FORMAT, segment.kind, segment.slot, segment.version, segment.salt),
        *(segment_bytes, uuid, now_ms),
    )
    body = HEADER.pack(*fields, 0)[:-4]
    return (body + _KEY_CRC.pack(crc32c(body))).ljust(HEADER_SIZE, b"\0")


_KEY_CRC: Final = struct.Struct("<I")


def pack_keys(keys: Sequence[bytes]) -> bytes:
    raw = b"".join(_KEY.pack(len(key)) + key for key in keys)
    return zstandard.ZstdCompressor(level=3).compress(raw)


def index_size(segment: Segment) -> int:
    frames = sum(_FRAME.size + len(frame) for frame in segment.frames)
    return EXTENT.size + segment.chunk_count * CHUNK_SIZE + frames


def extent_bytes(
    segment: Segment,
    segment_bytes: int,
    chunks: Chunks,
    data: npt.NDArray[np.uint8],
    key_of: Callable[[int], bytes],
) -> tuple[bytes, Segment] | None:
    """An extent to be written at `segment.end`, and the segment with it; None: no room for it and
    for an index behind it."""
    numbers = dict(segment.numbers)
    new = [int(id) for id in np.unique(chunks["series"]) if int(id) not in numbers]
    for id in new:
        numbers[id] = len(numbers)
    frame = pack_keys([key_of(id) for id in new]) if new else b""
    meta = EXTENT.size + chunks.size * CHUNK_SIZE + len(frame)
    length = meta + data.size
    frames = (*segment.frames, frame) if new else segment.frames
    grown = dataclasses.replace(
        segment,
        end=segment.end + length,
        start_ms=min(segment.start_ms, int(chunks["start_ms"].min())),
        end_ms=max(segment.end_ms, int(chunks["end_ms"].max())),
        chunk_count=segment.chunk_count + chunks.size,
        samples=segment.samples + int(chunks["count"].sum(dtype=np.int64)),
        sequence_min=min(segment.sequence_min, int(chunks["sequence"].min())),
        sequence_max=max(segment.sequence_max, int(chunks["sequence"].max())),
        frames=frames,
        numbers=numbers,
    )
    if grown.end + index_size(grown) > segment_bytes:
        return None
    placed = np.ascontiguousarray(chunks).copy()
    put_checksums(placed.view(np.uint8), data, segment.salt, segment.version, segment.end + meta)
    written = placed.copy()
    written["series"] = _scattered(numbers, placed["series"])
    head = _extent_header(segment, written, frame, len(new), length, 0, len(segment.numbers))
    return head + written.tobytes() + frame + data.tobytes(), dataclasses.replace(
        grown, parts=_with_part(segment.parts, placed)
    )


def _with_part(parts: tuple[Chunks, ...], new: Chunks) -> tuple[Chunks, ...]:
    """Small parts are joined as they come, so that there are few (a second's flush of a quiet
    engine is a handful of chunks) and none is copied often."""
    kept = len(parts)
    size = new.size
    while kept and parts[kept - 1].size <= 2 * size:
        kept -= 1
        size += parts[kept].size
    return (*parts[:kept], joined([*parts[kept:], new]))


def index_bytes(segment: Segment) -> tuple[bytes, Segment]:
    """The index to be written at `segment.end`, and the sealed segment."""
    chunks = joined(segment.parts).copy()
    chunks["series"] = _scattered(segment.numbers, chunks["series"])
    frames = b"".join(_FRAME.pack(len(frame)) + frame for frame in segment.frames)
    length = EXTENT.size + chunks.nbytes + len(frames)
    head = _extent_header(segment, chunks, frames, len(segment.numbers), length, INDEX_FLAG, 0)
    sealed = dataclasses.replace(
        segment,
        index_offset=segment.end,
        end=segment.end + length,
        parts=(),
        frames=(),
        numbers={},
    )
    return head + chunks.tobytes() + frames, sealed


def _extent_header(
    segment: Segment, chunks: Chunks, labels: bytes, keys: int, length: int, flags: int, first: int
) -> bytes:
    fields = (
        *(length, chunks.size, keys, len(labels), flags, segment.version, segment.end, first),
    )
    tail = EXTENT.pack(EXTENT_MAGIC, 0, *fields)[8:]
    crc = crc32c(tail, segment.salt)
    crc = crc32c(labels, crc32c(chunks.tobytes(), crc))
    return EXTENT_MAGIC + _KEY_CRC.pack(crc) + tail


# Reading -------------------------------------------------------------------------------------


def read_header(device: Device, segment: Segment) -> None:
    """Corruption when another segment, or none, stands in its slot."""
    data = device.read(segment.slot, 0, HEADER_SIZE)
    where = device.handle.describe(segment.slot, 0)
    fields = HEADER.unpack_from(data)
    if fields[0] != MAGIC or fields[-1] != crc32c(data[: HEADER.size - 4]):
        raise Corruption(f"the segment header at {where} is damaged", path=where, offset=0)
    expected = (segment.kind, segment.slot, segment.version, segment.salt, device.segment_bytes)
    if fields[2:7] != expected or fields[7] != device.uuid:
        raise Corruption(
            f"the segment at {where} is another one",
            path=where,
            offset=0,
            expected=expected,
            found=fields[2:7],
        )


@dataclasses.dataclass(frozen=True)
class Extent:
    """An extent or index as it was read; `chunks` with the numbers of this segment."""

    offset: int
    length: int
    flags: int
    first: int
    keys: list[bytes]
    frame: bytes
    chunks: Chunks


def read_extent(device: Device, segment: Segment, offset: int) -> Extent:
    """Its header, descriptors and labels, checked; Corruption says what is wrong and where."""
    where = device.handle.describe(segment.slot, offset)
    limit = device.segment_bytes
    if offset + EXTENT.size > limit:
        raise Corruption(f"an extent at {where} would not fit", path=where, offset=offset)
    head = device.read(segment.slot, offset, EXTENT.size)
    magic, crc, length, count, keys, labels_size, flags, version, place, first = EXTENT.unpack(head)
    meta = count * CHUNK_SIZE + labels_size
    sound = magic == EXTENT_MAGIC and version == segment.version and place == offset
    if not sound or EXTENT.size + meta > length or offset + length > limit:
        raise Corruption(f"the extent at {where} is damaged", path=where, offset=offset)
    body = device.read(segment.slot, offset + EXTENT.size, meta)
    if crc32c(body, crc32c(head[8:], segment.salt)) != crc:
        raise Corruption(f"the extent at {where} fails its checksum", path=where, offset=offset)
    chunks = np.frombuffer(body[: count * CHUNK_SIZE], CHUNK).copy()
    frame = body[count * CHUNK_SIZE :]
    found = _keys(frame, bool(flags & INDEX_FLAG), where)
    if len(found) != keys:
        raise Corruption(f"the extent at {where} names {len(found)} series, not {keys}", path=where)
    return Extent(offset, length, flags, first, found, frame, chunks)


def _keys(labels: bytes, framed: bool, where: str) -> list[bytes]:
    frames, at = [], 0
    if not framed:
        frames = [labels] if labels else []
    while framed and at < len(labels):
        (size,) = _FRAME.unpack_from(labels, at)
        frames.append(labels[at + _FRAME.size : at + _FRAME.size + size])
        at += _FRAME.size + size
    keys = []
    for frame in frames:
        try:
            raw = zstandard.ZstdDecompressor().decompress(frame)
        except zstandard.ZstdError as error:
            raise Corruption(f"the labels at {where}: {error}", path=where) from None
        at = 0
        while at < len(raw):
            (size,) = _KEY.unpack_from(raw, at)
            keys.append(raw[at + _KEY.size : at + _KEY.size + size])
            at += _KEY.size + size
    return keys


def load_parts(device: Device, segment: Segment, intern: Intern) -> Segment:
    """A segment that is not sealed, its extents walked up to `segment.end`."""
    read_header(device, segment)
    parts, frames, numbers = [], [], dict(segment.numbers)
    offset = HEADER_SIZE
    ids: list[int] = []
    while offset < segment.end:
        extent = read_extent(device, segment, offset)
        for key in extent.keys:
            ids.append(intern(key))
            numbers[ids[-1]] = len(ids) - 1
        if extent.keys:
            frames.append(extent.frame)
        parts.append(_with_ids(extent.chunks, ids, device, segment, offset))
        offset += extent.length
    return dataclasses.replace(
        segment,
        parts=(joined(parts),) if parts else (),
        frames=tuple(frames),
        numbers=numbers,
    )


def load_index(device: Device, segment: Segment, intern: Intern) -> Chunks:
    """The descriptors of a sealed segment."""
    extent = read_extent(device, segment, segment.index_offset)
    ids = [intern(key) for key in extent.keys]
    return _with_ids(extent.chunks, ids, device, segment, segment.index_offset)


def salvage(device: Device, segment: Segment, intern: Intern) -> Chunks:
    """The descriptors of a sealed segment whose index cannot be read: from its extents, up to the
    first that is damaged."""
    found: list[Chunks] = []
    ids: list[int] = []
    offset = HEADER_SIZE
    while offset < segment.index_offset:
        try:
            extent = read_extent(device, segment, offset)
            ids += [intern(key) for key in extent.keys]
            found.append(_with_ids(extent.chunks, ids, device, segment, offset))
        except Corruption:
            break
        offset += extent.length
    return joined(found)


def _with_ids(
    chunks: Chunks, ids: list[int], device: Device, segment: Segment, offset: int
) -> Chunks:
    bad = chunks.size and int(chunks["series"].max()) >= len(ids)
    ends = chunks["offset"].astype(np.int64) + chunks["size"]
    if bad or (chunks.size and int(ends.max()) > device.segment_bytes):
        where = device.handle.describe(segment.slot, offset)
        raise Corruption(f"the descriptors at {where} point nowhere", path=where, offset=offset)
    if chunks.size:
        chunks["series"] = np.array(ids, np.uint32)[chunks["series"]]
    return chunks
