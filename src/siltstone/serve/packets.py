"""stat and flush of memcached's binary protocol, in the words of the text protocol and back.

They are rare, and what they do is Control's. Promises: a packet that `binary.pyx` found sound has a
line; every answer to that line has packets. The forms are those of memcached 1.6.18.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

# magic, opcode, key size, extras size, data type, status, body size, opaque, CAS
HEADER: Final = struct.Struct(">BBHBBHI4sQ")
REPLY_MAGIC: Final = 0x81
FLUSH_QUIET: Final = 0x18
STAT: Final = 0x10
NOT_FOUND: Final = (0x01, b"Not found")
NOT_ALLOWED: Final = (0x20, b"Auth failure.")  # memcached's answer where flush_all is switched off
INTERNAL: Final = (0x84, b"Internal error")


def line_of(packet: bytes) -> bytes:
    """The line that asks for the same."""
    body = packet[HEADER.size :]
    if packet[1] == STAT:
        return b"stats " + body
    return b"flush_all %d" % int.from_bytes(body, "big")


def replies_to(packet: bytes, answer: bytes) -> bytes:
    """The answer to its line, as packets."""
    if answer.startswith(b"SERVER_ERROR"):
        return _reply(packet, *INTERNAL)
    if packet[1] == STAT:
        return b"".join(_statistics(packet, answer))
    if answer != b"OK\r\n":
        return _reply(packet, *NOT_ALLOWED)
    return b"" if packet[1] == FLUSH_QUIET else _reply(packet)


def _statistics(packet: bytes, answer: bytes) -> Iterator[bytes]:
    """One packet for each, and an empty one behind the last."""
    if packet[HEADER.size :].split() == [b"detail", b"dump"]:
        yield _reply(packet, key=b"detailed", value=answer)
    elif answer.startswith(b"STAT ") or (answer == b"END\r\n" and b"cachedump" not in packet):
        for line in answer.split(b"\r\n")[:-2]:
            _, name, value = line.split(b" ", 2)
            yield _reply(packet, key=name, value=value)
    elif answer not in (b"OK\r\n", b"RESET\r\n"):
        yield _reply(packet, *NOT_FOUND)
        return
    yield _reply(packet)


def _reply(packet: bytes, status: int = 0, value: bytes = b"", *, key: bytes = b"") -> bytes:
    opcode, opaque = packet[1], HEADER.unpack_from(packet)[7]
    size = len(key) + len(value)
    head = HEADER.pack(REPLY_MAGIC, opcode, len(key), 0, 0, status, size, opaque, 0)
    return head + key + value
