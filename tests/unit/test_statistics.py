"""The names of the statistics, and that they add up."""

from __future__ import annotations

from pathlib import Path

import siltstone
from siltstone.cache.statistics import percentile_us


def test_what_is_counted_adds_up(tmp_path: Path) -> None:
    with siltstone.Cache(tmp_path / "c", ram="4MiB", flash="64MiB", codec="raw") as cache:
        for number in range(8000):
            cache[number] = b"x" * 1000
        found = sum(cache.get(number) is not None for number in range(8000))
        stats = cache.stats()
    assert found == 8000
    assert stats["items_ram"] + stats["items_flash"] == stats["curr_items"] == 8000
    assert stats["get_hits"] == 8000
    assert 0 < stats["get_flash_hits"] <= 8000
    assert stats["items_flash"] * 1000 <= stats["device_bytes_written"] + (1 << 20)
    assert 0.5 < stats["write_amplification"] < 1.5
    assert stats["device_write_p50_us"] <= stats["device_write_p99_us"]


def test_without_flash_there_are_no_flash_statistics() -> None:
    with siltstone.Cache(ram="4MiB") as cache:
        cache["k"] = 1
        stats = cache.stats()
    assert stats["curr_items"] == 1
    assert "write_amplification" not in stats


def test_clearing_is_counted() -> None:
    with siltstone.Cache(ram="4MiB") as cache:
        cache["k"] = 1
        cache.clear()
        assert cache.stats()["cmd_flush"] == 1


def test_percentiles_of_a_histogram() -> None:
    assert percentile_us([0, 0, 98, 2], 0.5) == 8
    assert percentile_us([0, 0, 98, 2], 0.99) == 16
    assert percentile_us([0, 0], 0.5) == 0
