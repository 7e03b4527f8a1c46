"""What opening after a kill reads and keeps: records are noted for blocks of the page table, and
applied when these are read. Whoever looks must not see a difference.
"""

from __future__ import annotations

import random
from typing import Any

import pytest
from fakes import CrashDevice
from storerig import contents, on_device

pytestmark = pytest.mark.slow

SEGMENT = 65536
SETTINGS: dict[str, Any] = {"cache": "4MiB", "buffer_size": "16KiB", "buffers": 8}
# A table block is 512 pages of 256 bytes, of two or three such records each.
KEYS = [random.Random(number).randbytes(12) for number in range(6000)]


def left(device: CrashDevice) -> CrashDevice:
    """What a kill leaves: whoever has the former one open may close it."""
    return device.reopened(device.content)


def killed(seed: int) -> tuple[CrashDevice, dict[bytes, bytes]]:
    """A store of some blocks whose last checkpoint knows all keys; then changes of every kind,
    and no close. What it holds."""
    rng = random.Random(seed)
    device = CrashDevice(128, SEGMENT, engine="store")
    store = on_device(device, **SETTINGS)
    expected = {}
    for start in range(0, len(KEYS), 500):
        part = {name: rng.randbytes(60) for name in KEYS[start : start + 500]}
        store.update(part)
        expected |= part
    store.checkpoint()
    with store.batch() as batch:
        for name in rng.sample(KEYS, 1500):
            batch[name] = expected[name] = rng.randbytes(rng.choice([5, 60, 70]))
    for name in rng.sample(KEYS, 500):
        store[name] = expected[name] = rng.randbytes(61)
    for name in rng.sample(sorted(expected), 500):
        del store[name]
        del expected[name]
    for number in range(3):
        expected[b"large %d" % number] = store[b"large %d" % number] = rng.randbytes(40_000)
    del store[b"large 1"], expected[b"large 1"]
    store.sync()
    return left(device), expected


def table_loads(store: Any) -> int:
    return int(store.stats()["table_loads"])


@pytest.mark.parametrize("how", ["all", "some", "none"])
def test_opening_after_a_kill_leaves_the_table_unread(seed, how):
    device, expected = killed(seed)
    rng = random.Random(seed)
    store = on_device(device, **SETTINGS)
    assert table_loads(store) <= 1  # where pages are allocated
    assert store.stats()["cache_bytes"] < 200_000
    assert len(store) == len(expected)
    for name in rng.sample(KEYS, {"all": len(KEYS), "some": 20, "none": 0}[how]):
        assert store.get(name) == expected.get(name)
    if how == "some":
        store[KEYS[0]] = expected[KEYS[0]] = b"new"
    # Blocks that nobody asked for: a checkpoint describes them as well, and keeps none of them.
    store.checkpoint()
    store._pages.check_invariants()
    assert contents(store)[""] == expected
    again = on_device(left(device), **SETTINGS)
    assert contents(again)[""] == expected
    again._pages.check_invariants()
    assert again.verify().ok


def test_what_is_noted_after_a_kill_is_exact_when_it_is_read(seed):
    """Live bytes of every segment, without a checkpoint in between."""
    device, expected = killed(seed)
    store = on_device(device, **SETTINGS)
    store._pages.check_invariants()
    assert store.verify().ok
    assert contents(store)[""] == expected


def test_noted_records_do_not_fill_a_small_cache(seed):
    """They cannot be evicted: a checkpoint is due at once."""
    device, expected = killed(seed)
    store = on_device(device, **{**SETTINGS, "cache": "64KiB"})
    before = store.stats()["cache_bytes"]
    assert before > 64 << 10 >> 3
    assert store.step()
    assert store.stats()["cache_bytes"] < 100_000
    assert contents(store)[""] == expected
    store._pages.check_invariants()


def test_cleaning_beside_noted_records(seed):
    device, expected = killed(seed)
    store = on_device(device, **SETTINGS)
    for _ in range(30):
        store._pages._clean(990, store._pages.log.end // SEGMENT)
    assert store.stats()["cleaned_segments"] > 10
    store.close()
    with on_device(device, **SETTINGS) as store:
        assert contents(store)[""] == expected
        assert store.stats()["damaged_segments"] == 0
        store._pages.check_invariants()


def test_kills_in_a_row_do_not_make_recovery_longer(seed):
    device, expected = killed(seed)
    rng, read = random.Random(seed), []
    for number in range(16):
        store = on_device(device, **SETTINGS)
        read.append(store._pages.recovery.segments_read)
        for _ in range(200):
            name = rng.choice(KEYS)
            store[name] = expected[name] = rng.randbytes(60)
        store.sync()
        while number and store.step():
            pass
        device = left(device)
    assert max(read[5:]) <= read[0] + read[1]
    assert contents(store)[""] == expected
