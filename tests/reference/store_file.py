"""A store's file, read a second time from docs/format.md, docs/ordered-log.md and docs/pages.md.

Of a file that was closed cleanly: the newest checkpoint says everything. No compression.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterator

from reference.log_format import RECORD, RUN, SEED, SEGMENT, Segment, crc, segment_header

SUPERBLOCK = struct.Struct("<8sIIQ16s16sQIIHHI16sIIQQQII120s256x")
FIRST = 8192
PLACE = struct.Struct("<QI")
GROUPED, MARK, PART, END = 0x80, 0x70, 0x71, 0x72
BASE, MORE, LINK, FREE, ROOT, IDS, TABLE, MOVED = 1, 2, 3, 4, 5, 6, 7, 8
LEAF, INNER, BLOB = 1, 2, 3
BLOB_BIT = 1 << 31
Node = dict[bytes, tuple[bytes, bool]]  # key: payload, whether it refers to a large value


@dataclasses.dataclass
class Root:
    name: bytes
    pid: int
    count: int


def records(
    image: bytes, segment: Segment, offset: int, end: int
) -> Iterator[tuple[int, int, bytes]]:
    """(position, kind, payload), up to the first bytes that are no record of this life."""
    while offset + RECORD.size <= end:
        checksum, word = RECORD.unpack_from(image, offset)
        kind, size = word & 0xFF, word >> 8
        payload = image[offset + RECORD.size : offset + RECORD.size + size]
        position = segment.version * segment.segment_bytes + offset
        if kind == 0 or checksum != crc(SEED.pack(segment.salt, position, word, crc(payload))):
            return
        yield position, kind, payload
        offset += max(64, (RECORD.size + size + 15) // 16 * 16)


class StoreFile:
    """`roots`, `contents()` of all trees, `stream()` of all records."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        copies = [SUPERBLOCK.unpack_from(data, at) for at in (0, 4096)]
        good = [c for c, at in zip(copies, (0, 4096), strict=True) if self._fits(c, at)]
        self.superblock = max(good, key=lambda copy: copy[3])
        self.segment_bytes: int = self.superblock[6]
        self.segments = {}  # version: (image, header)
        for start in range(FIRST, len(data), self.segment_bytes):
            image = data[start : start + self.segment_bytes]
            image = image.ljust(self.segment_bytes, b"\0")
            if image[:8] == b"slt-segm" and any(image[SEGMENT.size :]):
                header = segment_header(image)
                assert header.slot == (start - FIRST) // self.segment_bytes
                self.segments[header.version] = image, header
        self.roots: list[Root] = []
        self.blocks: list[list[tuple[int, int]]] = []
        self._state(self._checkpoint(self.superblock[16]))

    def _fits(self, copy: tuple[object, ...], at: int) -> bool:
        return copy[0] == b"siltston" and copy[1] == crc(self.data[at + 12 : at + 512])

    # Records

    def stream(self) -> Iterator[tuple[int, int, bytes]]:
        """(position, kind with its group bit, payload) of all records, oldest first."""
        for version in sorted(self.segments):
            image, header = self.segments[version]
            offset = 0
            while offset < len(image):
                place = offset + (SEGMENT.size if offset == 0 else 0)
                fields = RUN.unpack_from(image, place)
                if fields[0] != b"-run" or fields[2] != version:
                    break  # of an earlier life, or nothing
                assert fields[-1] == crc(image[place : place + RUN.size - 4])
                yield from records(image, header, place + RUN.size, offset + fields[4])
                offset += fields[4]

    def record(self, position: int, size: int) -> tuple[int, bytes]:
        """(kind, the engine's payload) of the record there."""
        image, header = self.segments[position // self.segment_bytes]
        offset = position % self.segment_bytes
        found = next(iter(records(image, header, offset, offset + size)))
        assert found[0] == position
        kind, payload = found[1], found[2]
        return (kind & ~GROUPED, payload[8:]) if kind & GROUPED else (kind, payload)

    # The checkpoint

    def _checkpoint(self, start: int) -> bytes:
        pieces = []
        for position, kind, payload in self.stream():
            if kind == PART and position > start and payload[:8] == start.to_bytes(8, "little"):
                assert struct.unpack_from("<I", payload, 8)[0] == len(pieces) + 1
                pieces.append(payload[12:])
            elif kind == END and payload[:8] == start.to_bytes(8, "little"):
                _, count, checksum, _ = struct.unpack("<QIIQ", payload)
                data = b"".join(pieces)
                assert (count, checksum) == (len(pieces), crc(data))
                (segments,) = struct.unpack_from("<I", data)
                at = 4 + 36 * segments
                (groups,) = struct.unpack_from("<I", data, at)
                return data[at + 4 + 8 * groups :]
        raise AssertionError("no end of the checkpoint")

    def _state(self, state: bytes) -> None:
        version, self.stamp, self.pid_next, self.ids, roots = struct.unpack_from("<IQQQI", state)
        assert version == 1
        at = 32
        for _ in range(roots):
            _, size, pid, count = struct.unpack_from("<IIQq", state, at)
            at += 24
            self.roots.append(Root(state[at : at + size], pid, count))
            at += size
        (dead,) = struct.unpack_from("<I", state, at)
        at += 4 + PLACE.size * dead
        (blocks,) = struct.unpack_from("<I", state, at)
        at += 4
        for _ in range(blocks):
            (count,) = struct.unpack_from("<I", state, at)
            at += 4
            self.blocks.append([PLACE.unpack_from(state, at + 12 * n) for n in range(count)])
            at += 12 * count
        assert at == len(state)

    # The table

    def chains(self) -> dict[int, list[tuple[int, int, int]]]:
        """(position, bytes, kind) of the records of each page that is there."""
        found = {}
        for number, places in enumerate(self.blocks):
            image = b""
            for position, size in places:
                kind, payload = self.record(position, size)
                block, offset, whole = struct.unpack_from("<QII", payload)
                assert (kind, block, offset) == (TABLE, number, len(image))
                image += payload[16:]
            assert not places or len(image) == whole
            found.update(dict(self._entries(number, image) if places else ()))
        return found

    def _entries(
        self, number: int, image: bytes
    ) -> Iterator[tuple[int, list[tuple[int, int, int]]]]:
        at = 0

        def integer() -> int:
            nonlocal at
            value = shift = 0
            while True:
                byte = image[at]
                at += 1
                value |= (byte & 0x7F) << shift
                shift += 7
                if byte < 0x80:
                    return value

        for entry in range(512):
            state = image[at]
            at += 1
            if state == 0:
                continue
            integer()  # the stamp
            if state == 1:
                continue
            assert state == 3
            places, position = [], 0
            for _ in range(integer()):
                step, size = integer(), integer()
                position += (step >> 1 ^ -(step & 1)) * 16
                places.append((position, (size >> 2) * 16, size & 3))
            yield number * 512 + entry, places
        assert at == len(image)

    # Pages

    def page(self, pid: int, places: list[tuple[int, int, int]]) -> tuple[int, int, Node, bytes]:
        """(kind, level, entries, content of a part of a large value)."""
        parts = [self.record(position, size) for position, size, _ in places]
        kind, payload = parts[0]
        word, size, stored = struct.unpack_from("<QII", payload)
        assert kind in (BASE, MOVED)
        assert (word, size) == (pid << 8, stored)  # not compressed
        image, used = payload[16:], 1
        while len(image) < stored:
            word, offset = struct.unpack_from("<QI", parts[used][1])
            assert (parts[used][0], word, offset) == (MORE, pid << 8, len(image))
            image += parts[used][1][12:]
            used += 1
        kind, level, zero, count, prefix_size = struct.unpack_from("<BBHII", image)
        assert zero == 0
        prefix, at = image[12 : 12 + prefix_size], 12 + prefix_size
        if kind == BLOB:
            return kind, level, {}, prefix
        node: Node = {}
        for number in range(count):
            key, payload, large, at = entry(image, at)
            node[b"" if kind == INNER and number == 0 else prefix + key] = payload, large
        for kind_of_link, link in parts[used:]:
            (word,) = struct.unpack_from("<Q", link)
            assert (kind_of_link, word >> 8) == (LINK, pid)
            apply(node, link[20 if word & 1 else 8 :])
        return kind, level, node, b""

    def contents(self) -> dict[str, dict[bytes, bytes]]:
        self.table = self.chains()
        found = {}
        for root in self.roots:
            pairs = dict(self._walk(root.pid))
            assert len(pairs) == root.count
            found[root.name.decode()] = pairs
        return found

    def _walk(self, pid: int) -> Iterator[tuple[bytes, bytes]]:
        kind, level, node, _ = self.page(pid, self.table[pid])
        assert (kind == LEAF) == (level == 0)
        for key, (payload, large) in sorted(node.items()):
            if kind == INNER:
                yield from self._walk(int.from_bytes(payload, "little"))
            else:
                yield key, self._large(payload) if large else payload

    def _large(self, reference: bytes) -> bytes:
        size, part_size, depth = struct.unpack_from("<QII", reference)
        pids = [pid for (pid,) in struct.iter_unpack("<Q", reference[16:])]
        for _ in range(depth):
            joined = b"".join(self.page(pid, self.table[pid])[3] for pid in pids)
            pids = [pid for (pid,) in struct.iter_unpack("<Q", joined)]
        parts = [self.page(pid, self.table[pid])[3] for pid in pids]
        assert all(len(part) == part_size for part in parts[:-1])
        value = b"".join(parts)
        assert len(value) == size
        return value


def entry(data: bytes, at: int) -> tuple[bytes, bytes, bool, int]:
    """(key, payload, whether that refers to a large value, where the next one is)."""
    (word,) = struct.unpack_from("<I", data, at)
    key_size, size = word & 0x1FFFF, word >> 17 & 0x3FFF
    key = data[at + 4 : at + 4 + key_size]
    end = at + 4 + key_size + size
    return key, data[at + 4 + key_size : end], bool(word & BLOB_BIT), end


def apply(node: Node, fragment: bytes) -> None:
    at = 0
    while at < len(fragment):
        op = fragment[at]
        key, payload, large, at = entry(fragment, at + 1)
        if op == 1:
            node[key] = payload, large
        elif op == 2:
            node.pop(key, None)
        else:
            assert op == 3
            for above in [other for other in node if other >= key]:
                del node[above]
