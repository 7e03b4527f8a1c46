"""The index as it grows: everything is found, the load stays in its bounds, nothing leaks."""

from __future__ import annotations

import random

import pytest
from cacherig import engine_of, face_of

from siltstone.cache.invariants import check_invariants, describe_index

ITEMS = 120_000


@pytest.mark.slow
def test_growth_and_splits_lose_nothing(rng: random.Random) -> None:
    # two shards: groups split several times over, and the directory doubles
    engine = engine_of(24 << 20, shards=2, frame_bytes=16384)
    face = face_of(engine)
    for number in range(ITEMS):
        face[b"%d" % number] = b"v%d" % number
        if number in (1, 1000, 10_000, 60_000):
            check_invariants(engine)
    check_invariants(engine)
    index = describe_index(engine)
    assert index["slots_ram"] == ITEMS
    assert index["groups_by_pages"][0] == 0
    assert index["groups"] == 128  # they started as 16: three splits each
    assert 0.6 < index["load"] <= 0.92
    assert index["bytes_per_slot_in_use"] < 27
    for number in range(ITEMS):
        assert face.get(b"%d" % number) == b"v%d" % number
    for number in rng.sample(range(ITEMS), ITEMS // 2):
        del face[b"%d" % number]
    check_invariants(engine)
    assert describe_index(engine)["slots_ram"] == ITEMS - ITEMS // 2


@pytest.mark.slow
def test_a_directory_that_doubles() -> None:
    # one shard's worth of roots is not enough for so many: groups split and split again
    items = 700_000
    engine = engine_of(64 << 20, shards=2, frame_bytes=16384)
    face = face_of(engine)
    for number in range(items):
        face[b"%d" % number] = b""
    check_invariants(engine)
    index = describe_index(engine)
    assert index["slots_ram"] == items
    assert index["groups"] > 300
    assert 0.7 < index["load"] <= 0.92
    assert index["bytes_per_slot_in_use"] < 24
    assert all(b"%d" % number in face for number in range(0, items, 7))
    assert not any(b"no %d" % number in face for number in range(10_000))
    # 24 bytes of head, the key, rounded up to 8, and the slot
    assert engine.arena.frames_used * engine.arena.frame_bytes / items < 24 + 8 + 24


def test_deleting_closes_the_gaps(rng: random.Random) -> None:
    engine = engine_of(8 << 20, shards=2, frame_bytes=8192)
    face = face_of(engine)
    there: set[bytes] = set()
    for step in range(6000):
        key = b"%d" % rng.randrange(4000)
        if key in there:
            del face[key]
            there.remove(key)
        else:
            face[key] = key
            there.add(key)
        if step % 1000 == 0:
            check_invariants(engine)
    check_invariants(engine)
    assert all((b"%d" % number in face) == (b"%d" % number in there) for number in range(4000))


@pytest.mark.slow
def test_ghosts_and_expired_slots_do_not_make_the_index_grow() -> None:
    engine = engine_of(4 << 20, shards=2, frame_bytes=8192)
    face = face_of(engine)
    for number in range(200_000):  # forty times what fits
        face[b"%d" % number] = b"x" * 300
    check_invariants(engine)
    index = describe_index(engine)
    assert engine.totals()["index_pages"] * 4096 < engine.arena.limit_bytes * 0.3
    assert index["slots_ghost"] < 40_000
