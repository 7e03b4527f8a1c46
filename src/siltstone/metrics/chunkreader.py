"""Bytes of segments, checked and cached, and the samples of many chunks out of them.

A sealed segment is read in blocks of 64 KiB through the cache (readcache.py); so are the blocks of
an open one that are full, since what is written of it never changes. Damage is counted once a
chunk, and reads as a gap. Any thread may call; no lock is held.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from siltstone.errors import Corruption, DeviceFailed, SnapshotTooOld
from siltstone.metrics import chunks as codecs
from siltstone.metrics import decoding
from siltstone.metrics.head import CHUNK
from siltstone.metrics.readcache import BLOCK_BYTES
from siltstone.metrics.segment import Chunks, Segment, load_index, read_header, salvage

if TYPE_CHECKING:
    from siltstone.metrics.engine import Engine

BLOCK_BITS: Final = 20  # of a block's number within its segment
NO_DATA: Final = 61  # ENODATA: the file ends before it
# Series of one range lie in the same blocks, and groups of them are decoded one after another: what
# the first group took from the cache the others have at hand (0.1 us a block instead of 4; 1,000
# series of six hours are 80 groups of 600 blocks). 64 MiB, mostly the cache's own.
BLOCKS_HELD: Final = 1024
Held = dict[int, Any]  # blocks by the place of their source and their number there
Bytes = Segment | npt.NDArray[np.uint8]  # where chunks lie: in a segment, or in memory


class Outdated(Exception):
    """A segment of the picture is gone."""


class ChunkReader:
    """See the module's docstring."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._damaged: set[tuple[int, int]] = set()

    # Many chunks

    def decode(
        self, rows: Chunks, places: npt.NDArray[np.int64], sources: Sequence[Bytes],
        at: npt.NDArray[np.int64], times: npt.NDArray[np.int64], values: npt.NDArray[np.float64],
        held: Held | None = None,
    ) -> npt.NDArray[np.bool_]:  # fmt: skip
        """Whether each chunk is sound. Chunk n of `rows` lies in `sources[places[n]]`; its samples
        go to `times` and `values` from `at[n]` on. `held`: blocks of these sources, kept from call
        to call. Outdated when a segment of them is gone."""
        if not rows.size:
            return np.ones(0, np.bool_)
        self._engine.counters["chunk_reads"] += rows.size
        blocks, block, inside = self._locate(rows, places, sources, {} if held is None else held)
        left = decoding.decode(
            rows.view(np.uint8), blocks, block, inside, places, [_seed(one) for one in sources],
            at, times, values,
        )  # fmt: skip
        good = np.ones(rows.size, np.bool_)
        for n, state, data, first, last in left:
            if state == decoding.DAMAGED:
                good[n] = False
                continue
            try:
                codecs.decode_columns(data, state, times[first:last], values[first:last])
            except Corruption:
                good[n] = False
        for n in np.flatnonzero(~good).tolist() if left else ():
            source = sources[places[n]]
            assert isinstance(source, Segment), "what is in memory is sound"
            self.note_damage(source, int(rows["offset"][n]))
        return good

    def _locate(
        self, rows: Chunks, places: npt.NDArray[np.int64], sources: Sequence[Bytes], held: Held
    ) -> tuple[list[Any], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """See decoding.locate()."""

        def load(code: int) -> Any:
            found = held.get(code)
            if found is None:
                found = sources[code >> BLOCK_BITS]
                if isinstance(found, Segment):
                    found = self._block_or_none(found, code & ((1 << BLOCK_BITS) - 1))
                if len(held) < BLOCKS_HELD:
                    held[code] = found
            return found

        stored = [isinstance(one, Segment) for one in sources]
        return decoding.locate(rows.view(np.uint8), places, stored, load, BLOCK_BYTES, BLOCK_BITS)

    def _block_or_none(self, segment: Segment, number: int) -> bytes:
        try:
            return self._block(segment, number)
        except Corruption:
            return b""  # then its chunks are damaged

    # One chunk

    def chunk(self, segment: Segment, offset: int, size: int, crc: int) -> bytes:
        """A chunk's bytes, checked."""
        self._engine.counters["chunk_reads"] += 1
        first, last = offset // BLOCK_BYTES, (offset + size - 1) // BLOCK_BYTES
        blocks = [self._block(segment, number) for number in range(first, last + 1)]
        data = _joined(blocks, 0, offset - first * BLOCK_BYTES, size)
        if codecs.checksum(data, segment.salt, segment.version, offset) != crc:
            where = self._engine.device.handle.describe(segment.slot, offset)
            raise Corruption(f"the chunk at {where} fails its checksum", path=where, offset=offset)
        return data

    def note_damage(self, segment: Segment, offset: int) -> None:
        """Counted once a chunk. Outdated when the segment is simply gone."""
        if segment.version not in self._engine.segments:
            raise Outdated
        if self._engine.settings.read_only:
            self._check_still_there(segment)
        if (segment.version, offset) not in self._damaged:
            self._damaged.add((segment.version, offset))
            self._engine.counters["corrupt_chunks"] += 1

    def _check_still_there(self, segment: Segment) -> None:
        """Beside a writer: damage, or dropped by it?"""
        try:
            read_header(self._engine.device, segment)
        except Corruption:
            raise SnapshotTooOld(
                "the writer has dropped what this read-only opening saw: refresh() it"
            ) from None

    # Blocks, indexes

    def _block(self, segment: Segment, number: int) -> bytes:
        base = number * BLOCK_BYTES
        size = min(BLOCK_BYTES, segment.end - base)

        def read() -> tuple[bytes, int]:
            return self._read(segment, base, size), size

        if size < BLOCK_BYTES and not segment.sealed:
            return read()[0]  # it will get longer
        found: bytes = self._engine.cache.get((segment.version, number), read)
        return found

    def _read(self, segment: Segment, offset: int, size: int) -> bytes:
        try:
            return self._engine.device.read(segment.slot, offset, size)
        except DeviceFailed as error:
            self._engine.counters["read_errors"] += 1
            if error.errno == NO_DATA:
                raise Corruption(str(error), offset=offset) from None
            raise

    def index(self, segment: Segment) -> Chunks:
        """The descriptors of a sealed segment; of one that is not sealed it has them itself."""
        if not segment.sealed:
            return np.empty(0, CHUNK)
        engine = self._engine

        def read() -> tuple[Chunks, int]:
            engine.counters["index_reads"] += 1
            try:
                chunks = load_index(engine.device, segment, engine.intern)
            except Corruption:
                if segment.version not in engine.segments:
                    return np.empty(0, CHUNK), 0
                if engine.settings.read_only:
                    self._check_still_there(segment)
                engine.counters["corrupt_indexes"] += 1
                chunks = salvage(engine.device, segment, engine.intern)
            return chunks, int(chunks.nbytes)

        found: Chunks = engine.cache.get((segment.version, -1), read)
        return found


def _seed(source: Bytes) -> tuple[int, int]:
    """(salt, version) of checksums; (0, 0): in memory, without."""
    return (source.salt, source.version) if isinstance(source, Segment) else (0, 0)


def _joined(blocks: Sequence[Any], first: int, inside: int, size: int) -> bytes:
    """`size` bytes from `inside` the block on, over as many blocks as it takes."""
    data = bytes(blocks[first][inside : inside + size])
    while len(data) < size and first + 1 < len(blocks):
        first += 1
        data += bytes(blocks[first][: size - len(data)])
    return data
