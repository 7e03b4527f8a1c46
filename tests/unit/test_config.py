"""Sizes, durations, the cache's settings, and where settings come from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from siltstone import config
from siltstone.config import (
    GIB,
    KIB,
    MIB,
    CacheSettings,
    build,
    duration_ms,
    format_duration,
    format_size,
    load,
    parse_duration,
    parse_size,
    setting,
)
from siltstone.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (0, 0),
        (1024, 1024),
        ("0", 0),
        ("64MiB", 64 * MIB),
        ("1GiB", GIB),
        ("100k", 100 * KIB),
        ("1.5 g", 3 * GIB // 2),
        ("2MB", 2_000_000),
        (" 7 b ", 7),
        ("1TiB", 1024 * GIB),
    ],
)
def test_sizes(text: Any, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("bad", ["", "x", "1x", "-1", -1, "1e3", 1.5, True, None, "1 2", 1 << 60])
def test_bad_sizes(bad: Any) -> None:
    with pytest.raises(ConfigError, match="size"):
        parse_size(bad)


@given(st.integers(0, config.SIZE_MAX))
def test_sizes_are_written_as_they_are_read(size: int) -> None:
    assert parse_size(format_size(size)) == size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (0, 0),
        (1.5, 1.5),
        ("60", 60),
        ("500ms", 0.5),
        ("2h5m", 7500),
        ("1d 12h", 129600),
        ("1.5m", 90),
        (timedelta(minutes=2), 120),
        ("2us", 2e-6),
    ],
)
def test_durations(text: Any, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "bad", ["", "h", "5x", "5m-1s", -1, float("nan"), float("inf"), True, None, "1s junk", [1]]
)
def test_bad_durations(bad: Any) -> None:
    with pytest.raises(ConfigError, match="duration"):
        parse_duration(bad)


def test_milliseconds_are_rounded_up() -> None:
    assert duration_ms("500ms") == 500
    assert duration_ms(0.0001) == 1
    assert duration_ms(0.3) == 300
    assert duration_ms(1.0005) == 1001


@given(st.integers(1, 10**9))
def test_durations_are_written_as_they_are_read(milliseconds: int) -> None:
    text = format_duration(milliseconds / 1000)
    assert parse_duration(text) == pytest.approx(milliseconds / 1000, rel=1e-5)


def test_defaults_follow_the_size() -> None:
    small = CacheSettings(path=Path("/x"), ram="32MiB", flash="1GiB")
    assert (small.segment_size, small.buffer_size, small.buffers) == (4 * MIB, 256 * KIB, 2 * MIB)
    assert small.ram_max == 128 * MIB
    assert small.segments == 256
    assert small.flash_files == ((Path("/x/flash"), GIB),)
    large = CacheSettings(path=Path("/x"), ram="64GiB", flash="4TiB")
    assert (large.segment_size, large.buffer_size) == (64 * MIB, 4 * MIB)


def test_no_path_means_no_flash() -> None:
    settings = CacheSettings(flash="1GiB")
    assert settings.flash == settings.segments == 0
    assert settings.flash_files == ()


def test_files_decide_about_flash() -> None:
    files = [["/disk1/a", "100MiB"], ("/disk2/b", 64 * MIB)]
    settings = CacheSettings(path=Path("/x"), files=files, segment_size="16MiB")
    assert settings.flash == 164 * MIB
    assert settings.segments == 6 + 4
    # in whole segments
    assert settings.flash_files == ((Path("/disk1/a"), 96 * MIB), (Path("/disk2/b"), 64 * MIB))
    same = CacheSettings(path=Path("/x"), files="/disk1/a:100MiB,/disk2/b:64m", segment_size="16m")
    assert same == settings


@pytest.mark.parametrize(
    ("options", "works"),
    [
        ({"ram": "1k"}, "use 1MiB or more"),
        ({"ram": "2MiB", "ram_max": "1MiB"}, "use 2MiB or more"),
        ({"ram": "64MiB", "item_size_max": "40MiB"}, "at most half of ram, 32MiB"),
        ({"path": "/x", "flash": "4MiB"}, "use 8MiB or more"),
        ({"path": "/x", "segment_size": 100_000, "buffer_size": "8k"}, "use 100KiB"),
        ({"path": "/x", "segment_size": "10MiB", "buffer_size": "4MiB"}, "use 8MiB"),
        ({"arena": "ram"}, '"shm"'),
        ({"workers": -1}, "use 0 or more"),
        ({"max_fragmentation": 1.5}, "use 1.0 or less"),
        ({"drop_unread": "maybe"}, "neither true nor false"),
        ({"files": [["/a"]]}, "pair of path and size"),
    ],
)
def test_an_error_says_what_would_work(options: dict[str, Any], works: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(CacheSettings, options)
    assert works in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("segment", ["6MiB", "192k", "64KiB", "100k", "1GiB"])
def test_the_automatic_buffer_fits_the_segment(segment: str) -> None:
    settings = CacheSettings(path=Path("/x"), flash="16GiB", ram="1GiB", segment_size=segment)
    assert settings.segment_size % settings.buffer_size == 0


@given(
    ram=st.integers(MIB, 1 << 44),
    flash=st.integers(8 * MIB, 1 << 48),
)
def test_every_size_has_defaults_that_fit(ram: int, flash: int) -> None:
    settings = CacheSettings(path=Path("/x"), ram=ram, flash=flash)
    assert settings.segment_size % settings.buffer_size == 0
    assert settings.segments >= config.SEGMENTS_MIN
    assert replace(settings) == settings


def test_an_unknown_setting_gives_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match="did you mean 'segment_size'"):
        build(CacheSettings, {"segmentsize": 1})


# Sources ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class DoorSettings(config.SettingsBase):
    section = "door"

    width: int = setting(80, config.COUNT, "of the door", low=1)
    open_after: float = setting("1s", config.DURATION, "time")


def write(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "siltstone.toml"
    file.write_text(text)
    return file


def test_later_sources_win(tmp_path: Path) -> None:
    file = write(tmp_path, '[cache]\nram = "32MiB"\nworkers = 3\n[door]\nwidth = 70\n')
    found = load(
        [CacheSettings, DoorSettings],
        file=file,
        environ={"SILTSTONE_CACHE_WORKERS": "4", "SILTSTONE_DOOR_OPEN_AFTER": "2m", "HOME": "/"},
        flags={"cache": {"item_age": "1h"}},
    )
    assert found["cache"].ram == 32 * MIB
    assert found["cache"].workers == 4
    assert found["cache"].item_age == 3600
    assert found["door"] == DoorSettings(width=70, open_after=120)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[cache]\nrma = 1", "unknown setting 'rma' in [cache], did you mean 'ram'?"),
        ("[cach]\nram = 1", "unknown section 'cach', did you mean 'cache'?"),
        ("cache = 1", "write [cache]"),
        ('[cache]\nram = "lots"', "[cache] ram: 'lots' is no size"),
        ("[cache", "siltstone.toml: "),
    ],
)
def test_a_bad_file_is_named_with_its_mistake(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load([CacheSettings], file=write(tmp_path, text))
    assert message in str(caught.value)
    assert "siltstone.toml" in str(caught.value)


def test_a_missing_file_and_a_bad_variable(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml: No such file"):
        load([CacheSettings], file=tmp_path / "none.toml")
    with pytest.raises(ConfigError, match=r"environment: unknown setting 'rum'.*'ram'"):
        load([CacheSettings], environ={"SILTSTONE_CACHE_RUM": "1"})
    with pytest.raises(ConfigError, match="environment: unknown section 'cash'"):
        load([CacheSettings], environ={"SILTSTONE_CASH_RAM": "1"})


def test_every_setting_is_described_with_a_default_that_reads_back() -> None:
    rows = list(config.describe(CacheSettings))
    assert {"ram", "flash", "segment_size", "item_size_min"} <= {row.name for row in rows}
    assert all(row.text for row in rows)
    values = config.shown(CacheSettings(path=Path("/x")))
    again = {name: text for name, text in values.items() if text != "none" and text}
    assert build(CacheSettings, again) == CacheSettings(path=Path("/x"))
