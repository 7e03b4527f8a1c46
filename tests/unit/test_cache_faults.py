"""A device that fails: counted misses that stay misses, never a wrong value, and it goes on."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes import FaultDevice
from flashrig import SEGMENT, Rig, value_of

from siltstone import Cache, errors
from siltstone.cache import attachment as attachment_module
from siltstone.cache import restart as restart_module
from siltstone.log.device import FileDevice

FIRST_DATA = 64 * 1024


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setattr(
        attachment_module, "FileDevice", lambda *a, **k: FaultDevice(FileDevice(*a, **k))
    )
    rigs: list[Rig] = []

    def opened(**options: Any) -> Rig:
        rigs.append(Rig(tmp_path, **options))
        return rigs[-1]

    yield opened
    for rig in rigs:
        rig.cache.close()


def place_of(rig: Rig, value: bytes) -> tuple[int, int]:
    """Slot and offset of a value on the device."""
    for info in rig.log.segments():
        data = rig.device.read(info["slot"], 0, SEGMENT)
        if value in data:
            return info["slot"], data.index(value)
    raise AssertionError("not on flash")


def flip(rig: Rig, value: bytes) -> None:
    slot, offset = place_of(rig, value)
    block = bytearray(rig.device.read(slot, offset, 16))
    block[7] ^= 0x10
    rig.device.write(slot, offset, bytes(block))


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC])
def test_a_failed_write_loses_its_segment_and_nothing_else(make: Any, error: int) -> None:
    rig = make()
    stored = rig.fill(800)
    rig.device.add("write", error=error)
    for number in range(800, 1600):
        stored[f"key {number}"] = rig.cache[f"key {number}"] = value_of(number)
    rig.to_flash()
    rig.check()
    found = {key: rig.cache.get(key) for key in stored}
    lost = [key for key, value in found.items() if value is None]
    assert 0 < len(lost) <= 70  # one segment
    assert all(value in (None, stored[key]) for key, value in found.items())
    assert all(rig.cache.get(key) is None for key in lost)
    assert rig.cache.stats()["log"]["write_errors"] == 1
    for key in lost:
        rig.cache[key] = b"new"
        assert rig.cache[key] == b"new"


def test_a_device_that_takes_no_writes_leaves_a_cache_in_ram(make: Any) -> None:
    rig = make()
    stored = rig.fill(500)
    rig.device.add("write", error=errno.EIO, last=1 << 30)
    for number in range(3000):
        rig.cache[f"new {number}"] = value_of(number)
    for number in range(3000):
        assert rig.cache.get(f"new {number}") in (None, value_of(number))
    assert rig.cache["new 2999"] == value_of(2999)
    found = sum(rig.cache.get(key) == value for key, value in stored.items())
    assert found > 400  # what had been written can still be read
    assert rig.cache.stats()["log"]["failed_errno"] == errno.EIO
    rig.check()
    rig.cache.close()
    again = make()
    assert all(again.cache.get(key) in (None, value) for key, value in stored.items())
    again.cache["works"] = b"again"
    assert again.cache["works"] == b"again"


def test_a_failed_read_is_a_miss_that_stays_one(make: Any) -> None:
    rig = make()
    stored = rig.fill(300)
    rig.device.add("read", error=errno.EIO)
    assert rig.cache.get("key 5") is None
    assert rig.counter("flash_read_errors") == 1
    assert rig.cache.get("key 5") is None
    assert "key 5" not in rig.cache
    assert rig.counter("flash_read_errors") == 1  # the device was not asked again
    del stored["key 5"]
    assert dict(rig.cache.items()) == stored
    rig.check()


@pytest.mark.parametrize(
    "change",
    [
        lambda cache, key: cache.append(key, b"more"),
        lambda cache, key: cache.incr(key),
        lambda cache, key: cache.replace(key, b"new"),
        lambda cache, key: cache.touch(key, 10),
        lambda cache, key: cache.delete(key),
        lambda cache, key: cache.pop(key) is not None,
    ],
    ids=["append", "incr", "replace", "touch", "delete", "pop"],
)
def test_a_change_of_what_cannot_be_read_finds_nothing(make: Any, change: Any) -> None:
    rig = make()
    rig.fill(100)
    rig.device.add("read", error=errno.EIO)
    try:
        assert not change(rig.cache, "key 3")
    except KeyError:
        pass  # incr of a missing key
    assert rig.cache.get("key 3") is None
    rig.check()


def test_add_succeeds_where_the_old_value_cannot_be_read(make: Any) -> None:
    rig = make()
    rig.fill(100)
    rig.device.add("read", error=errno.EIO)
    assert rig.cache.add("key 3", b"new")
    assert rig.cache["key 3"] == b"new"


def test_a_flipped_bit_is_a_miss_that_stays_one(make: Any) -> None:
    rig = make()
    stored = rig.fill(300)
    flip(rig, stored["key 7"][:300])
    assert rig.cache.get("key 7") is None
    assert rig.counter("flash_bad_checksums") == 1
    flip(rig, bytes([*stored["key 7"][:7], stored["key 7"][7] ^ 0x10, *stored["key 7"][8:300]]))
    assert rig.cache.get("key 7") is None
    del stored["key 7"]
    assert dict(rig.cache.items()) == stored


def test_bytes_of_another_place_are_no_value(make: Any) -> None:
    """A misdirected write: valid bytes, but not of this position."""
    rig = make()
    stored = rig.fill(300)
    one, other = place_of(rig, stored["key 7"][:300]), place_of(rig, stored["key 8"][:300])
    rig.device.write(*one, rig.device.read(*other, 900))
    assert rig.cache.get("key 7") is None
    assert rig.cache["key 8"] == stored["key 8"]


def test_verify_counts_what_is_damaged(make: Any) -> None:
    rig = make()
    stored = rig.fill(300)
    for key in ("key 7", "key 70", "key 270"):
        flip(rig, stored[key][:300])
    report = rig.cache.verify()
    assert len(report.problems) == 1
    assert "3" in report.problems[0]


def test_a_file_cut_off_while_it_is_open(make: Any, tmp_path: Path) -> None:
    rig = make()
    stored = rig.fill(1000)
    os.truncate(tmp_path / "flash", FIRST_DATA + 5 * SEGMENT + 777)
    found = {key: rig.cache.get(key) for key in stored}
    assert all(value in (None, stored[key]) for key, value in found.items())
    assert sum(value is None for value in found.values()) > 500
    assert all(rig.cache.get(key) is None for key, value in found.items() if value is None)
    rig.cache["new"] = b"value"
    assert rig.cache["new"] == b"value"


def test_a_file_cut_off_before_it_is_opened_is_refused(make: Any, tmp_path: Path) -> None:
    rig = make()
    rig.fill(100)
    rig.cache.close()
    os.truncate(tmp_path / "flash", FIRST_DATA + SEGMENT)
    with pytest.raises(errors.Corruption, match="truncated"):
        make()


def test_damage_costs_a_scan_only_what_is_damaged(make: Any) -> None:
    rig = make()
    stored = rig.fill(1000)
    for key in ("key 7", "key 70", "key 700"):
        flip(rig, stored[key][:300])
    rig.lose()
    again = make()
    for key in ("key 7", "key 70", "key 700"):
        del stored[key]
    assert dict(again.cache.items()) == stored
    again.check()


def test_read_errors_cost_a_scan_only_what_cannot_be_read(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = make()
    stored = rig.fill(1000)
    headers = rig.device.segment_count
    rig.lose()

    def failing(*a: Any, **k: Any) -> FaultDevice:
        device = FaultDevice(FileDevice(*a, **k))
        device.add("read", error=errno.EIO)  # one header
        device.faults[0].nth = 3
        device.add("read", error=errno.EIO)
        device.faults[1].nth = headers + 4  # one segment's records
        return device

    monkeypatch.setattr(attachment_module, "FileDevice", failing)
    again = make()
    found = dict(again.cache.items())
    assert found.items() <= stored.items()
    assert len(stored) - 2 * 64 <= len(found) < len(stored)
    again.check()


def test_a_failed_sync_at_the_end_is_no_clean_stop(
    make: Any, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    rig = make()
    stored = rig.fill(300)
    rig.device.add("sync", error=errno.EIO)
    with caplog.at_level(logging.ERROR, "siltstone.cache"):
        rig.cache.close()
    assert "not closed in order" in caplog.text
    assert not (tmp_path / "index").exists()
    again = make()
    assert dict(again.cache.items()) == stored


def test_no_room_for_the_index_image(
    make: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rig = make()
    stored = rig.fill(300)

    def full(*_: Any, **__: Any) -> int:
        raise errors.EnvironmentFailure(errno.ENOSPC, "no room")

    monkeypatch.setattr(restart_module, "create_file", full)
    rig.cache.close()
    assert not (tmp_path / "index").exists()
    again = make()
    assert dict(again.cache.items()) == stored


@pytest.mark.parametrize("damage", ["missing", "cut", "foreign", "zeros"])
def test_without_its_live_map_it_starts_empty(make: Any, tmp_path: Path, damage: str) -> None:
    rig = make()
    rig.fill(300)
    rig.cache.close()
    live = tmp_path / "live"
    size = live.stat().st_size
    if damage == "missing":
        live.unlink()
    elif damage == "cut":
        os.truncate(live, size // 2)
    else:
        live.write_bytes(b"x" * size if damage == "foreign" else bytes(size))
    again = make()
    assert len(again.cache) == 0
    again.cache["new"] = b"value"
    again.cache.close()
    third = make()
    assert dict(third.cache.items()) == {"new": b"value"}


def test_sets_go_on_while_every_third_write_fails(make: Any) -> None:
    rig = make()
    stored: dict[str, bytes] = {}
    for number in range(4000):
        if number % 60 == 0:
            rig.device.add("write", error=errno.EIO)
        key = f"key {number % 1500}"
        stored[key] = rig.cache[key] = value_of(number)
        if number % 3 == 0:
            rig.background.tick()
    rig.check()
    assert all(rig.cache.get(key) in (None, value) for key, value in stored.items())
    assert rig.cache.stats()["log"]["failed_errno"] == 0
    assert rig.cache.stats()["log"]["write_errors"] > 5


def test_private_flash_of_a_cache_without_a_path(tmp_path: Path) -> None:
    """memcached's way: the file starts empty each time."""
    options: dict[str, Any] = {"files": [(tmp_path / "f", 48 * SEGMENT)], "segment_size": SEGMENT}
    for _ in range(2):
        with Cache(None, ram="2MiB", buffer_size=SEGMENT // 2, codec="raw", **options) as cache:
            assert len(cache) == 0
            for number in range(2000):
                cache[f"key {number}"] = value_of(number)
            assert all(cache[f"key {number}"] == value_of(number) for number in range(2000))
