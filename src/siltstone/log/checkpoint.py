"""The bytes of a checkpoint: the segment table and the engine's state, in parts and an end record.

    part   8 id | 4 number | data          id = position of part 0, whose own id is 0 and which is
                                           empty: the moment that the checkpoint describes
    end    8 id | 4 parts | 4 CRC32C of all data | 8 replay from
    data   4 segments | segments x (8 version, 4 slot, 4 salt, 4 filled, 8 live, 8 empty since) |
           4 groups | groups x 8 id | the engine's state

The parts lie in the stream behind the position that they describe, other records between them.
Pure functions; called by OrderedLog and by recovery.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Sequence

from siltstone.errors import Corruption
from siltstone.log.checksum import crc32c

PART = struct.Struct("<QI")
END = struct.Struct("<QIIQ")
COUNT = struct.Struct("<I")
SEGMENT = struct.Struct("<QIIIQQ")
GROUP = struct.Struct("<Q")

Segment = tuple[int, int, int, int, int, int]


@dataclasses.dataclass
class Checkpoint:
    start: int
    replay_from: int
    segments: list[Segment]
    groups: list[int]  # open at the moment, by the position of their first record
    state: bytes
    met: list[tuple[int, int, int]] = dataclasses.field(default_factory=list)  # while reading it

    def slot_of(self, version: int) -> int | None:
        for segment in self.segments:
            if segment[0] == version:
                return segment[1]
        return None


def pack(
    start: int,
    replay_from: int,
    table: Sequence[Segment],
    groups: Sequence[int],
    state: bytes,
    payload_max: int,
) -> tuple[list[bytes], bytes]:
    """Payloads of the part records, and of the end record."""
    data = b"".join([COUNT.pack(len(table)), *(SEGMENT.pack(*segment) for segment in table)])
    data += COUNT.pack(len(groups)) + b"".join(map(GROUP.pack, groups)) + state
    room = payload_max - PART.size
    pieces = [data[at : at + room] for at in range(0, len(data), room)]
    parts = [PART.pack(start, number) + piece for number, piece in enumerate(pieces, 1)]
    return parts, END.pack(start, len(parts), crc32c(data), replay_from)


class Collector:
    """Puts the parts of the checkpoint at `start` together again as recovery meets them."""

    def __init__(self, start: int) -> None:
        self._start = start
        self._pieces: list[bytes] = []

    def part(self, payload: bytes) -> None:
        start, number = PART.unpack_from(payload)
        if start == self._start:
            if number != len(self._pieces) + 1:
                raise Corruption(f"part {len(self._pieces) + 1} of checkpoint {start} is missing")
            self._pieces.append(payload[PART.size :])

    def end(self, payload: bytes) -> Checkpoint | None:
        """The checkpoint, if this end is its own."""
        start, count, expected, replay_from = END.unpack_from(payload)
        if start != self._start:
            return None
        data = b"".join(self._pieces)
        if count != len(self._pieces) or crc32c(data) != expected:
            raise Corruption(f"checkpoint {start} is incomplete")
        (segments,) = COUNT.unpack_from(data)
        table_end = COUNT.size + segments * SEGMENT.size
        table = [
            SEGMENT.unpack_from(data, COUNT.size + at * SEGMENT.size) for at in range(segments)
        ]
        (open_groups,) = COUNT.unpack_from(data, table_end)
        state_at = table_end + COUNT.size + open_groups * GROUP.size
        groups = [
            GROUP.unpack_from(data, at)[0]
            for at in range(table_end + COUNT.size, state_at, GROUP.size)
        ]
        return Checkpoint(start, replay_from, table, groups, data[state_at:])
