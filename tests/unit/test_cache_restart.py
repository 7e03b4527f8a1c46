"""Warm restart: after a clean stop, with the arena lost, with it kept; and what starts cold."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from siltstone import Cache
from siltstone.cache.attachment import _open_attachments

RAM, FLASH = "2MiB", "32MiB"


def opened(path: Path, *, arena: str = "private", **options: Any) -> Cache:
    options = {"ram": RAM, "flash": FLASH, "codec": "raw", "workers": 0, **options}
    return Cache(path, arena=arena, **options)


def value_of(number: int, version: int = 0) -> bytes:
    return b"%d/%d " % (number, version) * (3 + number % 150)


def fill(cache: Cache, count: int = 4000) -> dict[bytes, bytes]:
    stored = {b"key %d" % number: value_of(number) for number in range(count)}
    for key, value in stored.items():
        cache[key] = value
    return stored


def abandon(cache: Cache) -> None:
    """As if the process had been killed: nothing is written, nobody says goodbye."""
    attachment = cache._attachment
    cache._unbind()
    attachment.background.stop()
    attachment.closed = True
    _open_attachments.pop(attachment.key, None)
    attachment._abandon()


def to_flash(cache: Cache) -> None:
    """Everything that is in RAM moves down, and out of the write buffers."""
    from siltstone.cache.sweep import drain

    drain(cache.engine)
    cache.flush()


@pytest.mark.parametrize("arena", ["private", "shm"])
def test_everything_is_there_after_a_clean_stop(tmp_path: Path, arena: str) -> None:
    with opened(tmp_path, arena=arena) as cache:
        stored = fill(cache)
        cache.set("with ttl", b"x", ttl=1000)
        token = cache.get_with_token(b"key 7")[1]
    assert (tmp_path / "index").exists()
    with opened(tmp_path, arena=arena) as cache:
        assert not (tmp_path / "index").exists()
        assert cache._attachment.restored == len(stored) + 1
        assert len(cache) == len(stored) + 1
        for key, value in stored.items():
            assert cache[key] == value
        assert cache.get_with_token(b"key 7")[1] == token
        assert list(cache.keys()).count("with ttl") == 1
        assert cache.verify().problems == []


def test_many_restarts_lose_nothing(tmp_path: Path) -> None:
    with opened(tmp_path) as cache:
        stored = fill(cache, 1000)
    for turn in range(1, 8):
        with opened(tmp_path) as cache:
            for number in range(turn, 1000, 7):
                stored[b"key %d" % number] = cache[b"key %d" % number] = value_of(number, turn)
            gone = b"key %d" % (turn * 100)
            assert cache.delete(gone)
            del stored[gone]
    with opened(tmp_path) as cache:
        assert dict(cache.items()) == stored


def test_the_image_is_as_good_as_the_scan(tmp_path: Path) -> None:
    with opened(tmp_path) as cache:
        stored = fill(cache)
    shutil.copytree(tmp_path, tmp_path / "copy", ignore=shutil.ignore_patterns("copy", "index"))
    with opened(tmp_path) as first, opened(tmp_path / "copy") as second:
        assert len(first) == len(second) == len(stored)
        # what compaction chooses by is the same, too
        assert first.segments() == second.segments()


def test_a_damaged_image_is_refused_and_the_flash_read(tmp_path: Path) -> None:
    with opened(tmp_path) as cache:
        stored = fill(cache)
    size = (tmp_path / "index").stat().st_size
    with open(tmp_path / "index", "r+b") as file:
        file.seek(size - 100)
        byte = file.read(1)
        file.seek(size - 100)
        file.write(bytes([byte[0] ^ 4]))
    with opened(tmp_path) as cache:
        assert dict(cache.items()) == stored


@pytest.mark.parametrize("cut", [0, 1, 4096, 70_000])
def test_a_cut_image_is_refused(tmp_path: Path, cut: int) -> None:
    with opened(tmp_path) as cache:
        stored = fill(cache, 500)
    os.truncate(tmp_path / "index", cut)
    with opened(tmp_path) as cache:
        assert dict(cache.items()) == stored


def test_an_older_image_is_refused(tmp_path: Path) -> None:
    with opened(tmp_path) as cache:
        fill(cache, 500)
    shutil.copy(tmp_path / "index", tmp_path / "older")
    with opened(tmp_path) as cache:
        for number in range(500):
            cache[b"key %d" % number] = value_of(number, 1)
    os.replace(tmp_path / "older", tmp_path / "index")
    with opened(tmp_path) as cache:
        for number in range(500):
            assert cache[b"key %d" % number] == value_of(number, 1)


def test_another_ram_goes_through_the_scan(tmp_path: Path) -> None:
    with opened(tmp_path) as cache:
        stored = fill(cache)
    with opened(tmp_path, ram="40MiB") as cache:
        assert dict(cache.items()) == stored


def test_with_the_arena_lost_what_was_on_flash_comes_back(tmp_path: Path) -> None:
    cache = opened(tmp_path)
    stored = fill(cache)
    to_flash(cache)
    abandon(cache)
    with opened(tmp_path) as cache:
        assert dict(cache.items()) == stored
        assert cache._attachment.restored == len(stored)


def test_with_the_arena_lost_no_old_value_comes_back(tmp_path: Path) -> None:
    cache = opened(tmp_path)
    fill(cache)
    to_flash(cache)
    for number in range(0, 4000, 3):
        assert cache.delete(b"key %d" % number)
    for number in range(1, 4000, 3):
        cache[b"key %d" % number] = value_of(number, 1)  # many of these stay in RAM, and go
    abandon(cache)
    with opened(tmp_path) as cache:
        for number in range(4000):
            found = cache.get(b"key %d" % number)
            if number % 3 == 0:
                assert found is None
            elif number % 3 == 1:
                assert found in (None, value_of(number, 1))
            else:
                assert found == value_of(number)


def test_with_the_arena_kept_ram_items_come_back(tmp_path: Path) -> None:
    cache = opened(tmp_path, arena="file")
    stored = fill(cache)
    abandon(cache)
    with opened(tmp_path, arena="file") as cache:
        assert dict(cache.items()) == stored


def test_a_clean_stop_after_a_kept_arena_is_not_trusted_too_early(tmp_path: Path) -> None:
    """Killed between the image and the arena's removal: the image is of the past at once."""
    cache = opened(tmp_path, arena="file")
    fill(cache, 500)
    to_flash(cache)
    from siltstone.cache import restart

    restart.save(cache._attachment)
    abandon(cache)
    cache = opened(tmp_path, arena="file")
    assert not (tmp_path / "index").exists()
    for number in range(500):
        cache[b"key %d" % number] = value_of(number, 1)
    abandon(cache)
    with opened(tmp_path) as cache:  # another kind of arena: the one that was there is not used
        for number in range(500):
            assert cache.get(b"key %d" % number) in (None, value_of(number, 1))


@pytest.fixture
def another_boot(monkeypatch: pytest.MonkeyPatch) -> Any:
    def happen() -> None:
        for module in ("siltstone.cache.restart", "siltstone.cache.attachment"):
            monkeypatch.setattr(f"{module}.boot_id", lambda: b"another boot....")

    return happen


def test_after_a_power_cut_it_starts_empty(tmp_path: Path, another_boot: Any) -> None:
    cache = opened(tmp_path)
    fill(cache, 500)
    to_flash(cache)
    abandon(cache)
    another_boot()
    with opened(tmp_path) as cache:
        assert len(cache) == 0
        assert all(cache.get(b"key %d" % number) is None for number in range(500))
        cache["new"] = b"value"
    with opened(tmp_path) as cache:
        assert dict(cache.items()) == {"new": b"value"}


def test_a_reboot_after_a_clean_stop_is_warm(tmp_path: Path, another_boot: Any) -> None:
    with opened(tmp_path) as cache:
        stored = fill(cache, 500)
    another_boot()
    with opened(tmp_path) as cache:
        assert dict(cache.items()) == stored


@pytest.mark.parametrize("clean", [True, False])
def test_what_was_cleared_stays_cleared(tmp_path: Path, clean: bool) -> None:
    cache = opened(tmp_path)
    fill(cache, 500)
    to_flash(cache)
    cache.clear()
    cache["after"] = b"1"
    to_flash(cache)
    if clean:
        cache.close()
    else:
        abandon(cache)
    with opened(tmp_path) as cache:
        assert dict(cache.items()) == {"after": b"1"}


def test_a_delayed_flush_is_not_forgotten(tmp_path: Path) -> None:
    cache = opened(tmp_path)
    fill(cache, 100)
    to_flash(cache)
    cache.engine.flush_at(cache._clock.now_ms() + 3_600_000)
    due = cache._attachment.arena.flush_word
    abandon(cache)
    with opened(tmp_path) as cache:
        assert len(cache) == 100
        assert cache._attachment.arena.flush_word == due


def test_cas_numbers_never_repeat(tmp_path: Path) -> None:
    cache = opened(tmp_path)
    cache["a"] = b"1"
    token = cache.get_with_token("a")[1]
    abandon(cache)
    with opened(tmp_path) as cache:
        cache["a"] = b"2"
        assert cache.get_with_token("a")[1] > token
        assert not cache.compare_and_set("a", b"3", token)


def test_a_shorter_ttl_survives_the_loss_of_the_arena(tmp_path: Path) -> None:
    cache = opened(tmp_path)
    for number in range(100):
        cache.set(b"short %d" % number, b"x" * 600, ttl=1000)
        cache.set(b"never %d" % number, b"x" * 600)
        cache.set(b"long %d" % number, b"x" * 600, ttl=1000)
    to_flash(cache)
    for number in range(100):
        assert cache.touch(b"short %d" % number, 500)
        assert cache.touch(b"never %d" % number, 500)
        assert cache.touch(b"long %d" % number, 2000)
    abandon(cache)
    limit = 0
    with opened(tmp_path) as cache:
        limit = cache._clock.now_ms() + 501_000
        for name in (b"short", b"never"):
            for number in range(100):
                found = cache._get_meta(b"%s %d" % (name, number))
                assert found is None or 0 < found[3] <= limit
        for number in range(100):
            assert cache.get(b"long %d" % number) == b"x" * 600


def test_ttl_and_flags_are_kept(tmp_path: Path) -> None:
    with opened(tmp_path) as cache:
        cache.set("a", b"1", ttl=100)
        cache.set("n", 17)
        before = cache._get_meta("a")
    for _ in range(2):
        with opened(tmp_path) as cache:
            after = cache._get_meta("a")
            assert after[:3] == before[:3]
            assert before[3] <= after[3] <= before[3] + 1000
            assert cache["n"] == 17
            assert cache.incr("n") >= 18
            cache["n"] = 17


@pytest.mark.parametrize("image", [True, False], ids=["from the image", "by reading the flash"])
@pytest.mark.parametrize("step", [4096, 100_000])
def test_verify_tells_of_all_that_was_damaged(tmp_path: Path, image: bool, step: int) -> None:
    with opened(tmp_path) as cache:
        stored = fill(cache)
    if not image:
        (tmp_path / "index").unlink()
    flash = tmp_path / "flash"
    data = bytearray(flash.read_bytes())
    for offset in range(70_000, len(data), step):
        data[offset] ^= 0x10
    flash.write_bytes(data)
    with opened(tmp_path) as cache:
        report = cache.verify()
        found = {key: cache.get(key) for key in stored}
    assert all(value in (None, stored[key]) for key, value in found.items())
    missing = sum(value is None for value in found.values())
    assert missing
    assert sum(int(problem.split()[0]) for problem in report.problems) == missing
