"""What the engine writes into its journal beside samples, and its state at a checkpoint.

Records are MessagePack arrays (msgspec): `Changed` says which segments and extents count from now
on and which no longer; it is appended only when the bytes that it names are on the medium, so what
a record says is there is there. `Deleted` is a tombstone. `State` is everything at one moment.
"""

from __future__ import annotations

from typing import Final, TypeVar

import msgspec

from siltstone.errors import Corruption

# Kinds of records; 1 to 3 are the head's (head.pxd).
SERIES: Final = 1
POINTS: Final = 2
RUN: Final = 3
CHANGED: Final = 4
DELETED: Final = 5
MARKED: Final = 6
FORMAT: Final = 1
EVER: Final = (1 << 63) - 1

T = TypeVar("T")
SegmentRow = tuple[int, int, int, int, int, int, int, int, int, int, int, int]


class Changed(msgspec.Struct, array_like=True):
    """`segments`: rows (Segment.row) that are new or replace the one of the same version.

    `consumed`: for chunks that were sealed from the head, (id | late bit, samples) as u4 pairs: the
    first so many of a series' samples in the journal are in them; counts only for a replay that
    begins before `moment`.
    """

    segments: list[SegmentRow]
    dropped: list[int]
    consumed: bytes
    moment: int
    sequence: int


class Tombstone(msgspec.Struct, array_like=True):
    """Samples of these series within [start_ms, end_ms] in chunks up to `sequence` are deleted."""

    keys: list[bytes]
    start_ms: int
    end_ms: int
    sequence: int


class Mark(msgspec.Struct, array_like=True):
    """How far an import came: a number under a key."""

    key: str
    value: int


class Live(msgspec.Struct, array_like=True):
    """Of live series: 64-bit hashes of their keys (u8, rising), newest and derived (i8)."""

    hashes: bytes
    newest: bytes
    derived: bytes


class State(msgspec.Struct, array_like=True):
    format: int
    version: int  # of the segment opened last
    sequence: int
    segments: list[SegmentRow]
    tombstones: list[Tombstone]
    live: Live
    tiers: list[int]  # steps in ms
    marks: dict[str, int]
    dropped_until_ms: int  # newest sample that retention dropped


def pack(record: Changed | Tombstone | Mark | State) -> bytes:
    return msgspec.msgpack.encode(record)


def unpack_changed(payload: bytes) -> Changed:
    return _decoded(payload, Changed)


def unpack_tombstone(payload: bytes) -> Tombstone:
    return _decoded(payload, Tombstone)


def unpack_mark(payload: bytes) -> Mark:
    return _decoded(payload, Mark)


def unpack_state(payload: bytes) -> State:
    state = _decoded(payload, State)
    if state.format != FORMAT:
        raise Corruption(f"a checkpoint of format {state.format}", expected=FORMAT)
    return state


def _decoded(payload: bytes, kind: type[T]) -> T:
    try:
        return msgspec.msgpack.decode(payload, type=kind)
    except msgspec.MsgspecError as error:
        raise Corruption(f"a record of {len(payload)} bytes: {error}") from None
