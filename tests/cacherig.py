"""Small cache engines for tests: private arenas, few shards, a clock that stands still."""

from __future__ import annotations

from siltstone import codecs
from siltstone.cache.engine import CacheEngine, cache_section_bytes, geometry
from siltstone.cache.face import Face
from siltstone.log.arena import Arena
from siltstone.log.device import MemoryDevice
from siltstone.log.layout import log_sections
from siltstone.log.log_face import Log

SECTION_CACHE = 1
STARTED_MS = 1_700_000_000_000
SECRET = b"the same in all "  # keys fall into the same shards in every run


def engine_of(
    limit: int, *, shards: int = 0, frame_bytes: int = 0, limit_max: int = 0, clock: bool = True
) -> CacheEngine:
    """An engine over `limit` bytes; with `clock` the time stands still at STARTED_MS."""
    usual_shards, usual_frame_bytes = geometry(limit)
    shards = shards or usual_shards
    arena = Arena(
        limit, limit_max or limit, frame_bytes or usual_frame_bytes,
        {SECTION_CACHE: cache_section_bytes(shards)}, STARTED_MS,
    )  # fmt: skip
    arena.secret = SECRET
    engine = CacheEngine(arena, shards)
    if clock:
        engine.set_clock(STARTED_MS)
    return engine


def flash_engine_of(
    limit: int, *, segments: int, segment_bytes: int, buffer_bytes: int, shards: int,
    frame_bytes: int,
) -> CacheEngine:  # fmt: skip
    """An engine whose items go on to a device in memory; `limit` is without the log's own part."""
    sections = log_sections(segments, 4, 6, buffer_bytes)
    size = limit + sum(sections.values())
    arena = Arena(
        size, size, frame_bytes, {**sections, SECTION_CACHE: cache_section_bytes(shards)},
        STARTED_MS,
    )  # fmt: skip
    arena.secret = SECRET
    device = MemoryDevice(segments, segment_bytes)
    log = Log.create(arena, device, buffer_bytes=buffer_bytes, buffers=6, streams=4)
    engine = CacheEngine(arena, shards, log)
    engine.set_clock(STARTED_MS)
    return engine


def face_of(engine: CacheEngine) -> Face:
    """The embedded face, values as they are."""
    face = Face()
    face._bind(engine, codecs.resolve("raw"))
    return face
