"""Packets of memcached's binary protocol, made and taken apart for tests."""

from __future__ import annotations

import struct
from typing import NamedTuple

HEADER = struct.Struct(">BBHBBHI4sQ")

GET, SET, ADD, REPLACE, DELETE, INCR, DECR, QUIT = range(8)
FLUSH, GETQ, NOOP, VERSION, GETK, GETKQ, APPEND, PREPEND, STAT = range(8, 17)
SETQ, ADDQ, REPLACEQ, DELETEQ, INCRQ, DECRQ, QUITQ, FLUSHQ, APPENDQ, PREPENDQ = range(17, 27)
VERBOSITY, TOUCH, GAT, GATQ, GATK, GATKQ = 0x1B, 0x1C, 0x1D, 0x1E, 0x23, 0x24

NOT_FOUND = b"Not found"
EXISTS = b"Data exists for key."


def packet(
    opcode: int,
    key: bytes = b"",
    value: bytes = b"",
    *,
    extras: bytes = b"",
    cas: int = 0,
    opaque: bytes = b"\x01\x02\xfe\xff",
    magic: int = 0x80,
    body_size: int | None = None,
) -> bytes:
    size = len(extras) + len(key) + len(value) if body_size is None else body_size
    head = HEADER.pack(magic, opcode, len(key), len(extras), 0, 0, size, opaque, cas)
    return head + extras + key + value


def store(
    opcode: int, key: bytes, value: bytes, *, flags: int = 0, expiry: int = 0, cas: int = 0
) -> bytes:
    return packet(opcode, key, value, extras=struct.pack(">II", flags, expiry), cas=cas)


def count(
    opcode: int, key: bytes, delta: int, initial: int = 0, expiry: int = 0, cas: int = 0
) -> bytes:
    return packet(opcode, key, extras=struct.pack(">QQI", delta, initial, expiry), cas=cas)


def touch(opcode: int, key: bytes, expiry: int) -> bytes:
    return packet(opcode, key, extras=struct.pack(">I", expiry))


class Reply(NamedTuple):
    opcode: int
    status: int
    extras: bytes
    key: bytes
    value: bytes
    opaque: bytes
    cas: int


def replies(data: bytes) -> list[Reply]:
    found = []
    while data:
        magic, opcode, key_size, extras_size, kind, status, size, opaque, cas = HEADER.unpack_from(
            data
        )
        assert magic == 0x81
        assert kind == 0
        body, data = data[HEADER.size : HEADER.size + size], data[HEADER.size + size :]
        assert len(body) == size
        key, value = body[extras_size:][:key_size], body[extras_size + key_size :]
        found.append(Reply(opcode, status, body[:extras_size], key, value, opaque, cas))
    return found
