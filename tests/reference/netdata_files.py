"""Netdata's dbengine files, written down a second time: an oracle in plain Python.

Decodes a directory point by point, and builds any bytes that tests want, sound or not. Slow, and
independent of siltstone.metrics: only `struct`, `zlib` and the decompressors are shared.
"""

from __future__ import annotations

import dataclasses
import math
import struct
import uuid
import zlib
from pathlib import Path
from typing import Any

import lz4.block

BLOCK = 4096
EMPTY = 0x04000000


@dataclasses.dataclass(frozen=True)
class Page:
    kind: int
    metric: uuid.UUID
    length: int
    start_us: int
    end_us: int

    def pack(self) -> bytes:
        head = struct.pack("<B16sI", self.kind, self.metric.bytes, self.length)
        return head + struct.pack("<QQ", self.start_us, self.end_us)


def read_page(data: bytes, at: int) -> Page:
    kind, metric, length = struct.unpack_from("<B16sI", data, at)
    return Page(kind, uuid.UUID(bytes=metric), length, *struct.unpack_from("<QQ", data, at + 21))


# Decoding -----------------------------------------------------------------------------------


def number(word: int) -> float | None:
    """A storage number of 1.36 and later."""
    if word == EMPTY:
        return None
    base = 100 if word >> 26 & 1 else 10
    power, mantissa = base ** (word >> 27 & 7), word & 0xFFFFFF
    value = float(mantissa * power) if word >> 30 & 1 else mantissa / power
    return -value if word >> 31 else value


def super_block_of(path: Path, magic: bytes) -> bytes:
    data = path.read_bytes()
    assert data[:32] == magic + b"\0" * (32 - len(magic))
    assert data[32:48] == b"1.0" + b"\0" * 13
    return data


Decoded = dict[uuid.UUID, dict[int, Any]]


def decode(directory: Path) -> Decoded:
    """metric -> {time in s: value, or (sum, min, max, count, anomalies)}; gaps are left out.

    Any defect is an AssertionError. Later pages win.
    """
    found: Decoded = {}
    transaction = 0
    for journal in sorted(directory.glob("journalfile-1-*.njf")):
        data_path = journal.with_name(f"datafile{journal.stem[len('journalfile') :]}.ndf")
        data = super_block_of(data_path, b"netdata-data-file")
        assert data[48] == 1
        blocks = super_block_of(journal, b"netdata-journal-file")
        assert len(blocks) % BLOCK == 0
        for start in range(BLOCK, len(blocks), BLOCK):
            at = start
            while at < start + BLOCK and blocks[at] != 0:
                kind, reserved, identity, length = struct.unpack_from("<BIQH", blocks, at)
                assert (kind, reserved) == (1, 0)
                assert identity > transaction
                transaction = identity
                crc = struct.unpack_from("<I", blocks, at + 15 + length)[0]
                assert crc == zlib.crc32(blocks[at : at + 15 + length])
                offset, size, count = struct.unpack_from("<QIB", blocks, at + 15)
                assert length == 13 + 37 * count
                assert offset % BLOCK == 0
                pages = blocks[at + 28 : at + 28 + 37 * count]
                decode_extent(data[offset : offset + size], pages, found)
                at += 15 + length + 4
    return found


def decode_extent(data: bytes, pages: bytes, found: Decoded) -> None:
    payload, compression, count = struct.unpack_from("<IBB", data)
    assert len(data) == 6 + 37 * count + payload + 4
    assert 1 <= count <= 64
    assert data[6 : 6 + 37 * count] == pages
    assert struct.unpack("<I", data[-4:])[0] == zlib.crc32(data[:-4])
    descriptors = [read_page(pages, 37 * n) for n in range(count)]
    raw_size = sum(page.length for page in descriptors)
    packed = data[6 + 37 * count : -4]
    raw = packed if compression == 0 else lz4.block.decompress(packed, uncompressed_size=raw_size)
    assert compression in (0, 1)
    assert len(raw) == raw_size
    at = 0
    for page in descriptors:
        decode_page(page, raw[at : at + page.length], found.setdefault(page.metric, {}))
        at += page.length


def decode_page(page: Page, data: bytes, points: dict[int, Any]) -> None:
    width = {0: 4, 1: 16}[page.kind]
    assert page.length % width == 0
    assert 0 < page.length <= 4096
    count = page.length // width
    step, rest = divmod(page.end_us - page.start_us, count - 1) if count > 1 else (0, 0)
    assert rest == 0
    assert page.start_us % 1_000_000 == 0
    assert step % 1_000_000 == 0
    empty = True
    for n in range(count):
        time = (page.start_us + n * step) // 1_000_000
        if page.kind == 0:
            value: Any = number(struct.unpack_from("<I", data, 4 * n)[0])
        else:
            value = struct.unpack_from("<fffHH", data, 16 * n)
            value = None if math.isnan(value[0]) or value[3] == 0 else value
        if value is not None:
            points[time] = value
            empty = False
    assert not empty


# Building -----------------------------------------------------------------------------------


def super_block(magic: str, version: str = "1.0", tier: int = 1) -> bytes:
    head = magic.encode().ljust(32, b"\0") + version.encode().ljust(16, b"\0")
    return (head + (bytes([tier]) if magic.endswith("data-file") else b"")).ljust(BLOCK, b"\0")


def extent(pages: list[Page], payload: bytes, compression: int = 0) -> bytes:
    """`payload` as stored, already compressed."""
    body = struct.pack("<IBB", len(payload), compression, len(pages))
    body += b"".join(page.pack() for page in pages) + payload
    return body + struct.pack("<I", zlib.crc32(body))


def transaction(identity: int, offset: int, size: int, pages: list[Page], kind: int = 1) -> bytes:
    payload = struct.pack("<QIB", offset, size, len(pages))
    payload += b"".join(page.pack() for page in pages)
    body = struct.pack("<BIQH", kind, 0, identity, len(payload)) + payload
    return body + struct.pack("<I", zlib.crc32(body))


@dataclasses.dataclass
class Pair:
    """A pair in the making; `write` puts it into a directory."""

    data: bytes = super_block("netdata-data-file")
    journal: bytes = super_block("netdata-journal-file")
    count: int = 0

    def add(
        self, pages: list[Page], payload: bytes, compression: int = 0, *, log: bool = True
    ) -> int:
        """An extent, and unless told its transaction, alone in its block. Returns its offset."""
        offset, body = len(self.data), extent(pages, payload, compression)
        self.data += body.ljust(-(-len(body) // BLOCK) * BLOCK, b"\xaa")
        self.count += 1
        if log:
            record = transaction(self.count, offset, len(body), pages)
            self.journal += record.ljust(BLOCK, b"\0")
        return offset

    def write(self, directory: Path, number: int = 1) -> Path:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"datafile-1-{number:010}.ndf").write_bytes(self.data)
        (directory / f"journalfile-1-{number:010}.njf").write_bytes(self.journal)
        return directory


def array_page(
    metric: uuid.UUID, start_s: int, words: list[int], step_s: int = 1
) -> tuple[Page, bytes]:
    """A page of type 0 and its bytes."""
    end = start_s + (len(words) - 1) * step_s
    page = Page(0, metric, 4 * len(words), start_s * 1_000_000, end * 1_000_000)
    return page, struct.pack(f"<{len(words)}I", *words)


def whole(value: int) -> int:
    """The storage number of a small whole number."""
    return 1 << 24 | value


# Gorilla ------------------------------------------------------------------------------------


class Bits:
    """Bits appended from the low end."""

    def __init__(self) -> None:
        self.value = self.count = 0

    def put(self, value: int, count: int) -> None:
        self.value |= value << self.count
        self.count += count


def gorilla_buffers(words: list[int]) -> list[tuple[int, Bits]]:
    """(entries, bits) of as many buffers as the numbers need."""
    done: list[tuple[int, Bits]] = []
    bits, entries, zeros = Bits(), 0, 0
    for n, word in enumerate(words):
        if entries == 0 or bits.count + 2 + 5 + 32 > 496 * 8:
            if entries:
                done.append((entries, bits))
            bits, entries, zeros = Bits(), 0, 0
            bits.put(word, 32)
        elif word == words[n - 1]:
            bits.put(1, 1)
        else:
            xor = word ^ words[n - 1]
            leading = 32 - xor.bit_length()
            bits.put(0, 1)
            if leading == zeros:
                bits.put(1, 1)
            else:
                bits.put(0, 1)
                bits.put(leading, 5)
                zeros = leading
            bits.put(xor, 32 - leading)
        entries += 1
    return [*done, (entries, bits)]


def gorilla_page(words: list[int]) -> bytes:
    """The bytes of a page of type 2."""
    buffers = gorilla_buffers(words)
    page = b""
    for n, (entries, bits) in enumerate(buffers):
        following = 0 if n == len(buffers) - 1 else 0x7F00DEADBEEF
        page += struct.pack("<QII", following, entries, bits.count)
        page += bits.value.to_bytes(496, "little")
    return page


def gorilla_descriptor(
    metric: uuid.UUID, start_s: int, entries: int, seconds: int, length: int
) -> Page:
    return Page(2, metric, length, start_s * 1_000_000, entries | seconds << 32)
