"""What is left of a store's file: its superblock, checkpoints, segments and the pages in them.

For repair.py. Reads the file and never writes it. A superblock that is lost is made anew from the
segments' headers, checkpoints are found where they lie, and the table's blocks are made anew from
the records of all segments, in the order of the log: a page is its newest base and the links
behind it. Records behind a place at which a recovery cut the stream, and groups that were never
committed, are left out.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterable, Iterator
from typing import Final

from siltstone.errors import Corruption, DeviceFailed, SiltstoneError, WrongFormat
from siltstone.log import superblock as superblocks
from siltstone.log.checkpoint import COUNT, GROUP, SEGMENT, Collector
from siltstone.log.checkpoint import PART as PART_HEAD
from siltstone.log.device import HEADER_SLOT, Device
from siltstone.log.device_io import DeviceHandle
from siltstone.log.foreign import ForeignFile
from siltstone.log.superblock import FIRST_DATA_OFFSET, Superblock
from siltstone.store.salvage import header_in, scan_segment

BASE, MORE, LINK, FREE, ROOT, IDS, MOVED = 1, 2, 3, 4, 5, 6, 8  # kinds; docs/pages.md
MARK, PART, END = 0x70, 0x71, 0x72
WHOLE: Final = frozenset((ROOT, PART, END))
BLOCK_BITS = 9
READ_BLOCK = 4096
STATE_HEAD = struct.Struct("<IQQQI")  # version, commit stamp, next pid, ids below, roots
STATE_ROOT = struct.Struct("<IIQq")  # id, bytes of the name, pid, count

Place = tuple[int, int, int]  # position, bytes, kind
Record = tuple[int, int, int, int, int, bytes | None]


@dataclasses.dataclass
class Segment:
    slot: int
    version: int
    salt: int
    cut: int  # the stream was cut here before this segment began; -1: it was not
    records: list[Record]


class ReadOnlyFile(Device):
    """A store's file as a device that is only read; what it does not have reads as zeros."""

    growable = True

    def __init__(self, path: str) -> None:
        self._file = ForeignFile(path)
        self.path = path
        header = self._file.read(0, FIRST_DATA_OFFSET).ljust(FIRST_DATA_OFFSET, b"\0")
        self.damage: list[str] = []
        try:
            found = superblocks.newest(header, path)
        except WrongFormat as error:
            if error.offset == superblocks.VERSION_OFFSET or not self._slots_of_ours():
                self.close()
                raise  # another program's, or another version's: not damaged
            found = self._made_anew(error)
        except Corruption as error:
            found = self._made_anew(error)
        self.superblock = found
        self._make_handle()

    def _make_handle(self) -> None:
        count = max(self.superblock.segment_count, self.slots_present(), 1)
        self.handle = DeviceHandle.of_object(
            self, self.segment_bytes, count, FIRST_DATA_OFFSET, self.path
        )

    def _slots_of_ours(self) -> list[tuple[bytes, int, int]]:
        """(uuid, segment size, slot) of valid segment headers, which stand at whole blocks."""
        found = []
        for offset in range(FIRST_DATA_OFFSET, self._file.size, READ_BLOCK):
            header = header_in(self._file.read(offset, READ_BLOCK))
            if header is not None and offset == FIRST_DATA_OFFSET + header[2] * header[1]:
                found.append(header)
        return found

    def _made_anew(self, error: SiltstoneError) -> Superblock:
        self.damage.append(f"superblock: {error}")
        headers = self._slots_of_ours()
        if not headers:
            self.close()
            raise Corruption(
                f"{self.path}: the superblock is damaged and no segment is left", path=self.path
            )
        (uuid, size), _ = _most_common((uuid, size) for uuid, size, _ in headers)
        slots = -(-(self._file.size - FIRST_DATA_OFFSET) // size)
        return Superblock("store", uuid, size, slots, slots)

    # As a device, and as the object behind its handle

    def read(self, slot: int, offset: int, size: int, flags: int = 0) -> bytes:
        start = 0 if slot == HEADER_SLOT else FIRST_DATA_OFFSET + slot * self.segment_bytes
        return self._file.read(start + offset, size).ljust(size, b"\0")

    def write(self, slot: int, offset: int, data: bytes) -> None:
        raise AssertionError("the file of a store that is repaired is only read")

    def sync(self) -> None:
        raise AssertionError("the file of a store that is repaired is only read")

    def reload_superblock(self) -> Superblock:
        return self.superblock

    def slots_present(self) -> int:
        return max(0, -(-(self._file.size - FIRST_DATA_OFFSET) // self.segment_bytes))

    def segment(self, slot: int) -> bytes:
        """All of a slot; zeros for blocks that the medium does not give."""
        try:
            return self.read(slot, 0, self.segment_bytes)
        except DeviceFailed:
            return b"".join(self._block(slot, at) for at in range(0, self.segment_bytes, 4096))

    def _block(self, slot: int, offset: int) -> bytes:
        try:
            return self.read(slot, offset, READ_BLOCK)
        except DeviceFailed as error:
            self.damage.append(str(error))
            return bytes(READ_BLOCK)

    def close(self) -> None:
        self._file.close()


def _most_common(found: Iterable[tuple[bytes, int]]) -> tuple[tuple[bytes, int], int]:
    counts: dict[tuple[bytes, int], int] = {}
    for each in found:
        counts[each] = counts.get(each, 0) + 1
    return max(counts.items(), key=lambda item: item[1])


class Remains:
    """What the records of a file's segments say; of pages, those in `blocks` of the table only."""

    def __init__(self, device: ReadOnlyFile, blocks: frozenset[int] | None = None) -> None:
        self.device = device
        self._blocks = blocks
        self._segments: list[Segment] | None = None
        self.stable = 0

    @property
    def segments(self) -> list[Segment]:
        """All that can be read, in the order of the log."""
        if self._segments is None:
            self._segments = sorted(self._read(), key=lambda segment: segment.version)
        return self._segments

    def _read(self) -> Iterator[Segment]:
        uuid = self.device.superblock.uuid
        for slot in range(self.device.slots_present()):
            found = scan_segment(self.device.segment(slot), slot, WHOLE, self._blocks)
            if found is None or (found[2] and found[2] != uuid):
                continue
            self.stable = max(self.stable, found[4])
            yield Segment(slot, found[0], found[1], found[3], found[5])

    def records(self) -> Iterator[Record]:
        """In the order of the log, without what a recovery has cut off."""
        size = self.device.segment_bytes
        cuts = [(s.cut, s.version * size) for s in self.segments if s.cut >= 0]
        for segment in self.segments:
            void = [(low, high) for low, high in cuts if segment.version * size < high]
            for record in segment.records:
                if not any(low <= record[0] < high for low, high in void):
                    yield record

    # Checkpoints

    def with_checkpoints(self) -> Superblock:
        """The superblock with the two newest checkpoints that lie in the segments, complete."""
        size = self.device.segment_bytes
        slots = {segment.version: segment.slot for segment in self.segments}
        places = [
            (start, slots[start // size])
            for start in sorted(self._whole_checkpoints(), reverse=True)
            if start // size in slots
        ]
        (newest, slot), (before, before_slot) = (*places, (0, 0), (0, 0))[:2]
        return dataclasses.replace(
            self.device.superblock,
            clean=False,
            stable_position=self.stable,
            checkpoint_position=newest,
            checkpoint_slot=slot,
            checkpoint_before=before,
            checkpoint_before_slot=before_slot,
        )

    def _whole_checkpoints(self) -> Iterator[int]:
        parts: dict[int, Collector] = {}
        for position, kind, _, _, start, payload in self.records():
            if kind == PART and start == 0:
                parts[position] = Collector(position)
            elif kind in (PART, END) and start in parts and payload is not None:
                try:
                    if kind == PART:
                        parts[start].part(payload)
                    elif parts[start].end(payload) is not None:
                        yield start
                except Corruption:
                    del parts[start]

    # Pages

    def chains(self) -> dict[int, list[Place]]:
        """Base and links of each page, oldest first."""
        marks = {record[4] for record in self.records() if record[1] == MARK}
        begun = max((r[0] for r in self.records() if r[1] == PART and r[4] == 0), default=0)
        found: dict[int, list[Place]] = {}
        for position, kind, size, group, word, _ in self.records():
            if kind not in (BASE, MORE, LINK, FREE, MOVED):
                continue
            pid = word >> 8
            # A mark keeps nothing alive: that of an old group may be gone, and it counts even so.
            if group and group not in marks and group >= begun:
                continue
            if kind in (BASE, MOVED):
                found[pid] = [(position, size, BASE)]
            elif kind == FREE:
                found.pop(pid, None)
            else:
                found.setdefault(pid, []).append((position, size, kind))
        return found

    def roots(self) -> tuple[dict[bytes, int], int]:
        """Names and root pages of the trees, and the number below which ids may have been given
        out: as the newest readable beginning of a checkpoint says, and the records behind it."""
        start, by_id, ids = self._newest_head()
        for position, kind, _, _, word, payload in self.records():
            if position < start:
                continue
            if kind == ROOT and payload is not None and len(payload) >= 16:
                name_size = word >> 32
                pid = int.from_bytes(payload[8:16], "little")
                by_id[word & 0xFFFFFFFF] = (payload[16 : 16 + name_size], pid)
            elif kind == IDS:
                ids = max(ids, word)
        return {name: pid for name, pid in by_id.values() if pid}, ids

    def _newest_head(self) -> tuple[int, dict[int, tuple[bytes, int]], int]:
        pieces: dict[int, list[bytes]] = {}
        for _, kind, _, _, start, payload in self.records():
            if kind == PART and start and payload is not None:
                known = pieces.setdefault(start, [])
                if PART_HEAD.unpack_from(payload)[1] == len(known) + 1:
                    known.append(payload[PART_HEAD.size :])
        for start in sorted(pieces, reverse=True):
            try:
                return start, *_head(b"".join(pieces[start]))
            except struct.error:
                continue  # cut, or not whole: an older one
        return 0, {}, 0


def _head(data: bytes) -> tuple[dict[int, tuple[bytes, int]], int]:
    """Roots and the ids' marker in the state of a checkpoint; redo.pyx and checkpoint.py draw it.
    struct.error where the bytes end too early."""
    (segments,) = COUNT.unpack_from(data)
    at = COUNT.size + segments * SEGMENT.size
    (groups,) = COUNT.unpack_from(data, at)
    at += COUNT.size + groups * GROUP.size
    _, _, _, ids, count = STATE_HEAD.unpack_from(data, at)
    at += STATE_HEAD.size
    found = {}
    for _ in range(count):
        root, name_size, pid, _ = STATE_ROOT.unpack_from(data, at)
        at += STATE_ROOT.size
        (name,) = struct.unpack_from(f"{name_size}s", data, at)
        at += name_size
        found[root] = (name, pid)
    return found, ids
