"""Protobuf messages written by hand: what the decoders of requests are tested with."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping


def varint(number: int) -> bytes:
    number &= (1 << 64) - 1
    parts = []
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes([*parts, number])


def whole(field: int, number: int) -> bytes:
    return varint(field << 3) + varint(number)


def double(field: int, number: float) -> bytes:
    return varint(field << 3 | 1) + struct.pack("<d", number)


def fixed64(field: int, number: int) -> bytes:
    return varint(field << 3 | 1) + struct.pack("<Q", number & (1 << 64) - 1)


def block(field: int, data: bytes | str) -> bytes:
    data = data.encode() if isinstance(data, str) else data
    return varint(field << 3 | 2) + varint(len(data)) + data


def packed(field: int, items: Iterable[bytes]) -> bytes:
    return block(field, b"".join(items))


# remote_write 1.0 ---------------------------------------------------------------------------


def label(name: str, value: str) -> bytes:
    return block(1, block(1, name) + block(2, value))


def sample(time_ms: int, value: float) -> bytes:
    """Zeros are left out, as proto3 does."""
    fields = double(1, value) if struct.pack("<d", value) != bytes(8) else b""
    return block(2, fields + (whole(2, time_ms) if time_ms else b""))


def series(labels: Mapping[str, str], samples: Iterable[tuple[int, float]]) -> bytes:
    body = b"".join(label(name, value) for name, value in sorted(labels.items()))
    return block(1, body + b"".join(sample(*one) for one in samples))
