"""Chunks: the bytes of a run of one series' samples or of one series' points of a tier.

Codec 1 is smallchunk.pyx's, 2 and 3 are here; numbers are little-endian, columns pcodec's:

    long   (2)  := flags (1) column-size (4) times values
    points (3)  := flags (1) column-size (4) times (value-flags (1) size (4) values) x 7: FIELDS
                 | ... times zstd of (size (4) small chunk) x 7     flags & 4: less than 128 points
    times       := first (8) step (8)        flags & 1: all that far apart
                 | column
    values      := bits (8)                  flags & 2: all the same
                 | scale (1) column          flags & 8: of whole numbers, see scaling.pyx
                 | scale (1) first (8) factor (8) column        flags & 16 as well
                 | column

Values keep all their bits. Decoding checks what it is given: bytes that passed their checksum and
do not decode are Corruption all the same. Pure functions.
"""

from __future__ import annotations

import struct
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import zstandard
from pcodec import ChunkConfig, standalone

from siltstone.errors import Corruption
from siltstone.log.checksum import crc32c
from siltstone.metrics.decoding import TIMES_LEFT, VALUES_LEFT
from siltstone.metrics.scaling import numbers_back, whole_numbers
from siltstone.metrics.smallchunk import decode_into as decode_small
from siltstone.metrics.smallchunk import encode as encode_small
from siltstone.metrics.smallchunk import even, same
from siltstone.metrics.smallchunk import size_max as small_size_max

Times = npt.NDArray[np.int64]
Values = npt.NDArray[np.float64]

SMALL: Final = 1
LONG: Final = 2
POINTS: Final = 3
EVEN: Final = 1
SAME: Final = 2
FEW: Final = 4
WHOLE: Final = 8
STEPPED: Final = 16
SCALE_MAX: Final = 6
FEW_MAX: Final = 128  # below it pcodec takes ten times as long for much the same size
_HEAD: Final = struct.Struct("<BI")
_EVEN: Final = struct.Struct("<qq")
_SIZE: Final = struct.Struct("<I")
_COLUMN: Final = struct.Struct("<BI")
_SEED: Final = struct.Struct("<IQI")
# Level 8 takes 2.5 x the time of level 4 for 2 % fewer bytes of a random walk of 8,192. Mode and
# deltas are pcodec's choice, of whole numbers, too: a third slower than an order that is guessed
# from sums of differences (69 and 107 M/s), for a quarter less of a Netdata agent's samples (0.35
# and 0.47 bytes each where they are whole) and 3 % of host-like ones; decoded as fast or faster.
_CONFIG: Final = ChunkConfig(compression_level=4)
_SCALE: Final = struct.Struct("<B")
_STEPPED: Final = struct.Struct("<qq")


def checksum(data: Any, salt: int, version: int, offset: int) -> int:
    """CRC32C of a chunk, bound to its segment and its place there."""
    return crc32c(data, crc32c(_SEED.pack(salt, version, offset)))


def encode(times: Times, values: Values) -> bytes:
    """A long chunk. `times` strictly rising, at least one."""
    flags, columns = _encoded_times(times)
    values = np.ascontiguousarray(values)
    kind, column = SAME, values[:1].tobytes()
    if not same(values):
        kind, column = _encoded_values(values)
    flags |= kind
    return _HEAD.pack(flags, len(columns)) + columns + column


def _encoded_values(values: Values) -> tuple[int, bytes]:
    found = whole_numbers(values)
    if found is None:
        return 0, bytes(standalone.simple_compress(values, _CONFIG))
    numbers, scale, first, factor = found
    column = bytes(standalone.simple_compress(numbers, _CONFIG))
    if factor == 1:
        return WHOLE, _SCALE.pack(scale) + column
    return WHOLE | STEPPED, _SCALE.pack(scale) + _STEPPED.pack(first, factor) + column


def _decode_values(column: bytes, flags: int, values: Values) -> None:
    if not flags & WHOLE:
        _decode_column(column, values)
        return
    size = _SCALE.size + (_STEPPED.size if flags & STEPPED else 0)
    if len(column) < size or column[0] > SCALE_MAX:
        raise Corruption("a chunk of whole numbers that does not say which")
    _decode_column(column[size:], values.view(np.int64))
    first, factor = _STEPPED.unpack_from(column, _SCALE.size) if flags & STEPPED else (0, 1)
    numbers_back(values, column[0], first, factor)


def _encoded_times(times: Times) -> tuple[int, bytes]:
    times = np.ascontiguousarray(times)
    if even(times):
        step = int(times[1] - times[0]) if times.size > 1 else 0
        return EVEN, _EVEN.pack(int(times[0]), step)
    return 0, bytes(standalone.simple_compress(times, _CONFIG))


def decode_into(codec: int, data: bytes, times: Times, values: Values) -> None:
    """Fill `times` and `values`, as many as the chunk's descriptor says."""
    if codec == SMALL:
        decode_small(data, times, values)
        return
    if codec != LONG or len(data) < _HEAD.size:
        raise Corruption(f"a chunk of the unknown codec {codec}")
    flags, size = _HEAD.unpack_from(data)
    _decode_times(data[_HEAD.size : _HEAD.size + size], flags, times)
    _fill_values(data[_HEAD.size + size :], flags, values)


def _fill_values(column: bytes, flags: int, values: Values) -> None:
    if not flags & SAME:
        _decode_values(column, flags, values)
    elif len(column) != 8:
        raise Corruption("a chunk of equal values does not hold one value")
    else:
        values.view(np.uint64)[:] = np.frombuffer(column, "<u8")[0]


def decode_columns(data: bytes, left: int, times: Times, values: Values) -> None:
    """What decoding.pyx has left of a long chunk that it found well-formed."""
    flags, size = _HEAD.unpack_from(data)
    if left & TIMES_LEFT:
        _decode_times(data[_HEAD.size : _HEAD.size + size], flags, times)
    if left & VALUES_LEFT:
        _decode_values(data[_HEAD.size + size :], flags, values)


def _decode_times(column: bytes, flags: int, times: Times) -> None:
    if not flags & EVEN:
        _decode_column(column, times)
    elif len(column) != _EVEN.size:
        raise Corruption("a chunk of even steps does not hold one step")
    else:
        first, step = _EVEN.unpack(column)
        np.multiply(np.arange(times.size), step, out=times)
        times += first


def _decode_column(column: bytes, into: npt.NDArray[Any]) -> None:
    try:
        progress = standalone.simple_decompress_into(column, into)
    except (RuntimeError, TypeError, ValueError) as error:
        raise Corruption(f"a column of {len(column)} bytes: {error}") from None
    if progress.n_processed != into.size or not progress.finished:
        raise Corruption(f"a column of {progress.n_processed} numbers, not {into.size}")


# Tiers ---------------------------------------------------------------------------------------

# What a point says beside its time: see tiers.py.
FIELDS: Final = {
    "sum": np.dtype("<f8"),
    "min": np.dtype("<f8"),
    "max": np.dtype("<f8"),
    "last": np.dtype("<f8"),
    "count": np.dtype("<i8"),
    "nans": np.dtype("<i8"),
    "lag": np.dtype("<i8"),
}


def encode_points(times: Times, columns: dict[str, npt.NDArray[Any]]) -> bytes:
    """Points of a tier, rising."""
    flags, encoded = _encoded_times(times)
    if times.size < FEW_MAX:
        small = [encode_small(times, _as_values(columns[name])) for name in FIELDS]
        raw = b"".join(_SIZE.pack(len(column)) + column for column in small)
        column = zstandard.ZstdCompressor(level=3).compress(raw)
        return _HEAD.pack(flags | FEW, len(encoded)) + encoded + column
    parts = [_HEAD.pack(flags, len(encoded)), encoded]
    for name in FIELDS:
        values = _as_values(columns[name])
        kind, column = SAME, values[:1].tobytes()
        if not same(values):
            kind, column = _encoded_values(values)
        parts += [_COLUMN.pack(kind, len(column)), column]
    return b"".join(parts)


def _as_values(column: npt.NDArray[Any]) -> Values:
    """Counts and milliseconds are whole numbers that a double holds."""
    return np.ascontiguousarray(column, np.float64)


def decode_points(data: bytes, count: int) -> tuple[Times, dict[str, npt.NDArray[Any]]]:
    if len(data) < _HEAD.size:
        raise Corruption("a chunk of points that ends too early")
    times = np.empty(count, np.int64)
    flags, size = _HEAD.unpack_from(data)
    at = _HEAD.size + size
    _decode_times(data[_HEAD.size : at], flags, times)
    if flags & FEW:
        return times, _decode_few(data[at:], count)
    columns: dict[str, npt.NDArray[Any]] = {}
    for name, kind in FIELDS.items():
        if at + _COLUMN.size > len(data):
            raise Corruption("a chunk of points that ends too early")
        flags, size = _COLUMN.unpack_from(data, at)
        at += _COLUMN.size
        values = np.empty(count, np.float64)
        _fill_values(data[at : at + size], flags, values)
        columns[name] = values if kind.kind == "f" else values.astype(np.int64)
        at += size
    return times, columns


def _decode_few(data: bytes, count: int) -> dict[str, npt.NDArray[Any]]:
    most = len(FIELDS) * small_size_max(count)
    try:
        raw = zstandard.ZstdDecompressor().decompress(data, max_output_size=most)
    except zstandard.ZstdError as error:
        raise Corruption(f"a chunk of {count} points: {error}") from None
    columns: dict[str, npt.NDArray[Any]] = {}
    at = 0
    times = np.empty(count, np.int64)
    for name, kind in FIELDS.items():
        if at + _SIZE.size > len(raw):
            raise Corruption("a chunk of points that ends too early")
        (size,) = _SIZE.unpack_from(raw, at)
        at += _SIZE.size
        values = np.empty(count, np.float64)
        decode_small(raw[at : at + size], times, values)
        columns[name] = values if kind.kind == "f" else values.astype(np.int64)
        at += size
    return columns
