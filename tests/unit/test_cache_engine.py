"""Rules of the engine that a model does not reach: flushes, resets, and former defects."""

from __future__ import annotations

import random

import pytest
from cacherig import STARTED_MS, engine_of, face_of

from siltstone.cache.invariants import check_invariants
from siltstone.cache.trial import Options as O
from siltstone.cache.trial import execute, find, spoil

NOW = STARTED_MS
CAS_HITS, BAD_OFFSETS = 16, 41


def test_a_flush_that_is_due_is_not_replaced_by_a_later_one() -> None:
    engine = engine_of(4 << 20)
    execute(engine, O.SET, b"key", b"value")
    engine.flush_at(NOW)
    engine.flush_at(NOW + 60_000)  # nobody has looked at the cache in between
    assert find(engine, b"key") is None
    check_invariants(engine)


def test_a_delayed_flush_takes_what_is_there_when_it_comes() -> None:
    engine = engine_of(4 << 20)
    execute(engine, O.SET, b"before", b"1")
    engine.flush_at(NOW + 5000)
    execute(engine, O.SET, b"between", b"2")
    engine.set_clock(NOW + 4999)
    assert find(engine, b"before") is not None
    engine.set_clock(NOW + 5000)
    assert find(engine, b"before") is None
    execute(engine, O.SET, b"after", b"3")
    engine.set_clock(NOW + 50_000)
    assert find(engine, b"between") is None
    assert find(engine, b"after") is not None
    check_invariants(engine)


def test_a_flush_gives_all_frames_back() -> None:
    engine = engine_of(4 << 20)
    face = face_of(engine)
    for number in range(2000):
        face[b"%d" % number] = b"x" * 500
    engine.flush_at(NOW)
    assert not any(b"%d" % number in face for number in range(2000))
    check_invariants(engine)
    assert engine.arena.frames_used == 0
    assert engine.totals()["items_ram"] == 0


def test_meta_get_that_expires_its_item_writes_no_cas_number() -> None:
    # the slot is gone by then: the number went to where it used to point, or to the header
    engine = engine_of(4 << 20)
    execute(engine, O.SET, b"key", b"value")
    status, reply = execute(
        engine, O.META_GET, b"key", options=O.TOUCH_TTL | O.CAS_NEW | O.WANT_VALUE, expire_ms=-1,
        cas_new=99,
    )  # fmt: skip
    assert (status, reply["value"]) == (O.OK, b"value")
    assert find(engine, b"key") is None
    check_invariants(engine)


def test_heat_has_a_highest_degree() -> None:
    # one more than it would turn the item stale
    engine = engine_of(4 << 20)
    execute(engine, O.SET, b"key", b"value")
    for _ in range(20):
        assert execute(engine, O.ADD, b"key", b"other")[0] == O.NOT_STORED
        found = find(engine, b"key")
        assert found is not None
        assert (found[1]["stale"], found[1]["lost"]) == (False, False)


@pytest.mark.parametrize("ttl", [1, 999, 1000, 1001, 60_000, 9 * 366 * 86_400_000])
def test_items_expire_to_the_millisecond(ttl: int) -> None:
    engine = engine_of(4 << 20)
    execute(engine, O.SET, b"key", b"value", expire_ms=NOW + ttl)
    engine.set_clock(NOW + ttl - 1)
    assert find(engine, b"key") is not None
    engine.set_clock(NOW + ttl)
    assert find(engine, b"key") is None
    assert execute(engine, O.ADD, b"key", b"new")[0] == O.OK
    check_invariants(engine)


def test_a_step_back_of_the_clock_revives_nothing() -> None:
    engine = engine_of(4 << 20)
    execute(engine, O.SET, b"key", b"value", expire_ms=NOW + 1000)
    engine.set_clock(NOW + 1000)
    assert find(engine, b"key") is None
    engine.set_clock(NOW - 60_000)
    assert find(engine, b"key") is None
    execute(engine, O.SET, b"key", b"value", expire_ms=NOW + 1000)
    found = find(engine, b"key")
    assert found is not None
    assert found[1]["idle_s"] == 0


def test_numbers_keep_their_width() -> None:
    engine = engine_of(4 << 20)
    execute(engine, O.SET, b"n", b"100")
    assert execute(engine, O.DECR, b"n", delta=1)[1]["number"] == 99
    found = find(engine, b"n")
    assert found is not None
    assert found[0] == b"99 "
    assert execute(engine, O.INCR, b"n", delta=2**64 - 1)[1]["number"] == 98  # wraps
    assert execute(engine, O.DECR, b"n", delta=1000)[1]["number"] == 0
    for bad in (b"", b"x", b"1x", b" 1", b"-1", b"18446744073709551616", b"1" * 33):
        execute(engine, O.SET, b"n", bad)
        assert execute(engine, O.INCR, b"n", delta=1)[0] == O.NOT_NUMBER


def test_refused_operations_count_once() -> None:
    # making room repeats the attempt, not its statistics
    engine = engine_of(2 << 20, shards=2, frame_bytes=4096)
    for number in range(600):
        status, reply = execute(engine, O.SET, b"%d" % number, b"x" * 5000)
        assert status == O.OK
        execute(engine, O.SET, b"%d" % number, b"y" * 9000, options=O.CAS, cas=reply["cas"])
    assert engine.counters()[CAS_HITS] == 600
    check_invariants(engine)


@pytest.mark.slow
@pytest.mark.parametrize("round_number", range(6))
def test_wild_writes_cost_shards_and_never_the_process(
    round_number: int, rng: random.Random
) -> None:
    # frames hold items and index pages: every offset in them is looked at before it is followed
    engine = engine_of(2 << 20, shards=4, frame_bytes=4096)
    keys = [b"%d" % number for number in range(900)] + [b"k" * size for size in (5000, 20_000)]
    for _ in range(3000):
        key, die = rng.choice(keys), rng.random()
        if die < 0.4:
            execute(engine, O.SET, key, b"x" * rng.choice([5, 500, 3000, 30_000]))
        elif die < 0.5:
            execute(engine, O.APPEND, key, b"y" * 100)
        elif die < 0.6:
            execute(engine, O.DELETE, key)
        else:
            find(engine, key)
        for _ in range(rng.choice([0, 0, 1, 3])):
            word = rng.choice(
                [0, rng.getrandbits(64), rng.getrandbits(20) * 8, rng.getrandbits(21)]
            )
            spoil(engine, rng.getrandbits(32), word)
    assert engine.counters()[BAD_OFFSETS] > 0
    # cleared, all is well again
    engine.flush_at(NOW)
    for number in range(400):
        assert execute(engine, O.SET, b"new %d" % number, b"z" * 1000)[0] == O.OK
    check_invariants(engine)
