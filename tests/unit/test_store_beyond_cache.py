"""More data than the cache holds: what a change needs is read, several pages at a time."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import Any

import pytest
from fakes import FaultDevice
from storerig import on_device

from siltstone.errors import Corruption
from siltstone.log.device import MemoryDevice

KEYS = [random.Random(number).randbytes(24) for number in range(6_000)]
SETTINGS: dict[str, Any] = {"buffer_size": "8KiB", "cache": "64KiB", "page_size": 1024}


@pytest.fixture
def device() -> FaultDevice:
    return FaultDevice(MemoryDevice(4096, 1 << 14, engine="store"))


def filled(device: FaultDevice, **options: Any) -> Any:
    """Pages of several records each, nearly all of them out of memory."""
    store = on_device(device, **{**SETTINGS, **options})
    for start in range(0, len(KEYS), 100):
        store.update(dict.fromkeys(KEYS[start : start + 100], b"v" * 50))
    return store


def in_time(work: Callable[[], object]) -> None:
    """Work that could wait for itself: the test fails instead."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive(), "it waits for itself"


def test_workers_that_read_pages_do_not_wait_for_each_other(device: FaultDevice) -> None:
    """Each of them reads a page of several records, none of which is to be had at once."""
    store = filled(device, workers=2)
    device.cached = False
    found: dict[bytes, bytes] = {}
    in_time(lambda: found.update(store.get_many(KEYS)))
    assert found == dict.fromkeys(KEYS, b"v" * 50)
    in_time(lambda: store.update(dict.fromkeys(KEYS, b"w")))
    in_time(lambda: found.update(store.items()))
    assert found == dict.fromkeys(KEYS, b"w")
    store.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_batch_whose_pages_are_not_in_memory(device: FaultDevice, workers: int) -> None:
    store = filled(device, workers=workers)
    before = store.stats()
    rng = random.Random(1)
    expected = dict.fromkeys(KEYS, b"v" * 50)
    for turn in range(20):
        changes = dict.fromkeys(rng.sample(KEYS, 300), b"%d" % turn)
        store.update(changes)
        expected |= changes
    assert dict(store.items()) == expected
    assert store.stats()["cache_misses"] - before["cache_misses"] > 1_000
    assert store.stats()["cache_bytes"] < 4 * (64 << 10)
    assert store.verify().ok
    store.close()


def test_damage_is_met_by_the_batch_that_needs_the_page(device: FaultDevice) -> None:
    store = filled(device, workers=2)
    store.checkpoint()
    device.add("read", keep=0, last=1 << 30)
    with pytest.raises((Corruption, OSError)):
        store.update(dict.fromkeys(KEYS, b"w"))
    device.faults.clear()
    assert dict(store.items()) == dict.fromkeys(KEYS, b"v" * 50)
    store.close()
