"""Small logs for tests: tiny segments and buffers, so that everything happens soon."""

from __future__ import annotations

from siltstone.log.arena import Arena
from siltstone.log.device import Device, MemoryDevice
from siltstone.log.layout import log_sections
from siltstone.log.livemap import LiveMap
from siltstone.log.log_face import Log

BLOCK = 4096
OK, NO_BUFFER, NO_SEGMENT, TOO_LARGE, GONE = 0, 1, 2, 3, 4
WOULD_BLOCK, SHORT, CORRUPT, IO, BUSY, FAILED, NOTHING = 5, 6, 7, 8, 9, 10, 11
HEADERS = 96 + 48  # of a segment, and of its first run
STARTED_MS = 1_700_000_000_000


def arena_for(
    segments: int, buffer_bytes: int, buffers: int, streams: int = 4, fd: int = -1
) -> Arena:
    sections = log_sections(segments, streams, buffers, buffer_bytes)
    size = sum(sections.values()) + (1 << 19)
    return Arena(size, size, BLOCK, sections, STARTED_MS, fd)


def small_log(
    device: Device | None = None,
    *,
    segments: int = 8,
    segment_bytes: int = 4 * BLOCK,
    buffer_bytes: int = BLOCK,
    buffers: int = 6,
    streams: int = 4,
    live_map: LiveMap | None = None,
) -> Log:
    if device is None:
        device = MemoryDevice(segments, segment_bytes)
    arena = arena_for(device.segment_count, buffer_bytes, buffers, streams)
    return Log.create(
        arena,
        device,
        buffer_bytes=buffer_bytes,
        buffers=buffers,
        streams=streams,
        live_map=live_map,
    )


def reclaim(log: Log) -> None:
    """Forget the oldest segment; write out what stands in the way."""
    while (info := log.oldest()) is None:
        assert log.make_room() == OK
    assert log.forget(info["slot"], info["version"]) == OK


def put(log: Log, stream: int, kind: int, data: bytes) -> int:
    """Append, whatever has to be written or forgotten for it."""
    while True:
        status, position = log.try_append(stream, kind, data)
        if status == NO_BUFFER:
            log.make_room()
        elif status == NO_SEGMENT:
            reclaim(log)
        else:
            assert status == OK
            return position
