"""What of the limit is user data, what eviction keeps, and changing the limit while running."""

from __future__ import annotations

import random

import pytest
from cacherig import engine_of, face_of

from siltstone import errors
from siltstone.cache.engine import CacheEngine
from siltstone.cache.face import Face
from siltstone.cache.invariants import check_invariants
from siltstone.cache.trial import Options as O
from siltstone.cache.trial import execute, find

EVICTIONS = 24
BLOB = bytes(range(256)) * 2048  # 512 KiB


def share(engine: CacheEngine) -> float:
    """Key and value bytes over the limit."""
    part: float = engine.totals()["bytes_ram"] / engine.arena.limit_bytes
    return part


def fill(face: Face, size: int, key_size: int = 20, times: float = 1.4) -> int:
    """Store `times` the limit of values; how many."""
    count = int(face.engine.arena.limit_bytes * times / (size + key_size))
    for number in range(count):
        face[b"%0*d" % (key_size, number)] = BLOB[:size]
    return count


@pytest.mark.slow
@pytest.mark.parametrize(
    ("limit", "size", "least"),
    [(16 << 20, 1024, 0.85), (64 << 20, 1024, 0.88), (16 << 20, 100, 0.65), (16 << 20, 4096, 0.80)],
)
def test_share_of_user_data(limit: int, size: int, least: float) -> None:
    engine = engine_of(limit)
    fill(face_of(engine), size)
    assert engine.counters()[EVICTIONS] > 0
    assert share(engine) >= least
    check_invariants(engine)


@pytest.mark.slow
@pytest.mark.parametrize("keys", [0, 400, 1000], ids=["insert", "overwrite", "overwrite, evict"])
def test_share_after_ten_turnovers_of_mixed_sizes(keys: int, rng: random.Random) -> None:
    engine = engine_of(16 << 20)
    face = face_of(engine)
    written = number = 0
    least = 1.0
    while written < 10 * engine.arena.limit_bytes:
        size = int(64 * 2 ** (rng.random() * 13))  # 64 B to 512 KiB
        face[b"key %d" % (rng.randrange(keys) if keys else number)] = BLOB[:size]
        written += size
        number += 1
        if written > 2 * engine.arena.limit_bytes:
            least = min(least, share(engine))
    check_invariants(engine)
    assert engine.counters()[EVICTIONS] > 0
    assert share(engine) >= 0.75
    assert least >= 0.70


@pytest.mark.slow
def test_a_scan_does_not_push_out_what_is_hot() -> None:
    engine = engine_of(16 << 20)
    face = face_of(engine)
    hot = [b"hot %d" % number for number in range(2000)]
    for key in hot:
        face[key] = BLOB[:1000]
    for _ in range(3):
        assert all(face.get(key) is not None for key in hot)
    for number in range(60_000):  # four times the limit, each seen once
        face[b"scan %d" % number] = BLOB[:1000]
        if number % 3000 == 0:
            for key in hot:
                face.get(key)
    assert sum(key in face for key in hot) > 0.95 * len(hot)
    check_invariants(engine)


@pytest.mark.slow
def test_what_came_back_soon_is_kept() -> None:
    # a key that is asked for again after it was evicted goes to the main queue at once
    engine = engine_of(4 << 20, shards=2, frame_bytes=8192)
    face = face_of(engine)
    fill(face, 1000, times=1.2)
    before = engine.totals()["main_frames"]
    gone = [key for number in range(300) if (key := b"%020d" % number) not in face]
    assert gone
    for key in gone:
        face[key] = BLOB[:1000]
    assert engine.totals()["main_frames"] > before
    check_invariants(engine)


@pytest.mark.parametrize("size", [65_000, 400_000, (1 << 20) - 1, 1 << 20])
def test_large_values_near_the_limits(size: int) -> None:
    engine = engine_of(16 << 20)
    value = (BLOB * 3)[:size]
    for number in range(40):
        status, _ = execute(engine, O.SET, b"large %d" % number, value)
        assert status == O.OK
        found = find(engine, b"large %d" % number)
        assert found is not None
        assert found[0] == value
    check_invariants(engine)
    assert (
        execute(engine, O.SET, b"large 39", value + bytes((1 << 20) + 1 - size))[0] == O.TOO_LARGE
    )
    assert find(engine, b"large 39") is None  # a set that fails leaves nothing stale
    check_invariants(engine)


def test_eviction_forbidden_refuses_and_keeps_all() -> None:
    engine = engine_of(2 << 20, shards=2, frame_bytes=4096)
    engine.configure(evict=False)
    stored = 0
    while execute(engine, O.SET, b"%d" % stored, BLOB[:3000])[0] == O.OK:
        stored += 1
    assert stored > 200
    more = [execute(engine, O.SET, b"more %d" % number, BLOB[:3000])[0] for number in range(50)]
    assert O.NO_MEMORY in more
    assert set(more) <= {O.OK, O.NO_MEMORY}  # the other shard may have had room for one
    assert all(find(engine, b"%d" % number) for number in range(stored))
    for number in range(20):
        assert execute(engine, O.DELETE, b"%d" % number)[0] == O.OK
    assert execute(engine, O.SET, b"again", BLOB[:3000])[0] == O.OK
    check_invariants(engine)


# The limit changes while running ------------------------------------------------------------


def resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


@pytest.mark.slow
def test_the_limit_falls_and_rises() -> None:
    engine = engine_of(32 << 20, limit_max=64 << 20)
    face = face_of(engine)
    count = fill(face, 1000)
    full = engine.totals()["items_ram"]
    before = resident_bytes()
    engine.set_limit(8 << 20)
    assert resident_bytes() < before - (20 << 20)
    assert engine.arena.frames_used <= engine.arena.frames_limit
    check_invariants(engine)
    small = engine.totals()["items_ram"]
    assert 0 < small < full // 3
    for number in range(count):
        value = face.get(b"%020d" % number)
        assert value is None or value == BLOB[:1000]
    fill(face, 1000, times=2)
    assert engine.totals()["items_ram"] < full // 3
    engine.set_limit(64 << 20)
    fill(face, 1000, times=1.2)
    assert engine.totals()["items_ram"] > 1.7 * full
    check_invariants(engine)


def test_a_limit_below_the_index_costs_whole_shards() -> None:
    engine = engine_of(16 << 20)
    face = face_of(engine)
    for number in range(120_000):
        face[b"%d" % number] = b""
    assert engine.totals()["index_pages"] * 4096 > 2 << 20
    engine.set_limit(2 << 20)
    assert engine.arena.frames_used <= engine.arena.frames_limit
    for number in range(100):
        face[b"new %d" % number] = b"x" * 100
        assert face.get(b"new %d" % number) == b"x" * 100
    check_invariants(engine)


def test_limits_that_cannot_be() -> None:
    engine = engine_of(4 << 20)
    face = face_of(engine)
    with pytest.raises(errors.ConfigError, match="at least"):
        engine.set_limit(100_000)
    with pytest.raises(errors.ConfigError, match="ram_max"):
        engine.set_limit(1 << 30)
    engine.configure(evict=False)
    fill(face, 5000, times=0.5)
    with pytest.raises(errors.OutOfMemory):
        engine.set_limit(1 << 20)
    assert all(b"%020d" % number in face for number in range(100))
    check_invariants(engine)
