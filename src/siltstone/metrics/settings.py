"""The settings of `Metrics`, with units, defaults and limits; what follows from the quota."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from siltstone.config import (
    COUNT,
    DURATION,
    GIB,
    KIB,
    MIB,
    PATH,
    SIZE,
    SWITCH,
    Kind,
    SettingsBase,
    format_duration,
    format_size,
    parse_duration,
    setting,
)
from siltstone.errors import ConfigError
from siltstone.log.superblock import FIRST_DATA_OFFSET

TIERS_MAX: Final = 8
SEGMENT_STEP: Final = 64 * KIB
# What must fit: the journal between two checkpoints and two slots ahead (6), fresh data (2), raw
# data (2), two slots for merging, two kept for checkpoints; and one for each tier.
SLOTS_MIN: Final = 14


def _tiers(value: Any) -> tuple[int, ...]:
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
    if not isinstance(value, Iterable):
        raise ConfigError('tiers is a list of steps: ("1m", "1h"), or () for none')
    steps = []
    for entry in value:
        ms = round(parse_duration(entry) * 1000)
        if ms < 1000:
            raise ConfigError(f"a tier of {entry!r} is too fine: 1s or more")
        steps.append(ms)
    if len(steps) > TIERS_MAX:
        raise ConfigError(f"{len(steps)} tiers: at most {TIERS_MAX}")
    if sorted(set(steps)) != steps:
        raise ConfigError("the steps of tiers must rise")
    return tuple(steps)


TIERS: Final = Kind(
    "tiers", _tiers, lambda value: ",".join(format_duration(step / 1000) for step in value)
)


@dataclass(frozen=True)
class MetricsSettings(SettingsBase):
    """What `Metrics(...)` takes."""

    section = "metrics"

    path: Path = setting(None, PATH, "the data directory")
    retention_size: int = setting(
        GIB, SIZE, "all that is on the disk; the oldest goes first", high=1 << 50
    )
    retention_drop: bool = setting(
        False, SWITCH, "a retention_size made smaller may delete the oldest data at once"
    )
    retention_time: float = setting(
        None, DURATION, "samples older than this are gone; none: only the size counts", low=1
    )
    tiers: tuple[int, ...] = setting(("1m", "1h"), TIERS, "steps of the coarser data")
    flush_interval: float = setting(
        1, DURATION, "what a crash may cost of embedded appends, at most", low=0.01, high=3600
    )
    out_of_order_window: float = setting(
        300, DURATION, "how late a sample may be, against the newest of its series"
    )
    read_only: bool = setting(False, SWITCH, "only read, also beside a writer")
    cache: int = setting(64 * MIB, SIZE, "memory for what is read of segments")
    segment_size: int = setting(
        None, SIZE, "unit of retention; retention_size/256 within 1MiB..16MiB",
        low=SEGMENT_STEP, high=256 * MIB,
    )  # fmt: skip
    merge_samples: int = setting(
        16384, COUNT, "samples of a chunk after the merge", low=256, high=1 << 20
    )
    tier_from_samples: int = setting(
        65_536, COUNT, "samples of a series from which on a coarse query reads a tier"
    )
    background: bool = setting(
        True, SWITCH, "a thread flushes, merges and drops; false: callers do it"
    )
    series_max: int = setting(1_000_000, COUNT, "live series", low=1)
    labels_max: int = setting(64, COUNT, "labels of a series", low=1, high=1000)
    label_name_bytes_max: int = setting(256, COUNT, "bytes of a label's name", low=1, high=4096)
    label_value_bytes_max: int = setting(2048, COUNT, "bytes of a label's value", low=1, high=8000)
    request_samples_max: int = setting(
        5_000_000, COUNT, "samples of one write_table or write", low=1
    )
    select_samples_max: int = setting(
        500_000_000, COUNT, "samples that one select may return", low=1
    )

    def derive(self) -> None:
        if self.segment_size is None:
            size = self.retention_size // 256
            size = min(max(size - size % SEGMENT_STEP, MIB), 16 * MIB)
            self._set("segment_size", size)
        if self.segment_size % SEGMENT_STEP:
            up = self.segment_size + SEGMENT_STEP - self.segment_size % SEGMENT_STEP
            self.refuse("segment_size", f"no multiple of 64KiB, use {format_size(up)}")
        if self.slots < self.slots_min:
            least = self.slots_min * self.segment_size + FIRST_DATA_OFFSET
            self.refuse(
                "retention_size",
                f"{format_size(self.retention_size)} holds {max(0, self.slots)} segments of "
                f"{format_size(self.segment_size)}, {self.slots_min} are needed: use "
                f"{format_size(-(-least // KIB) * KIB)} or more, or smaller segments",
            )

    @property
    def slots(self) -> int:
        """Segments that the quota holds, the superblocks' 8 KiB included."""
        return (self.retention_size - FIRST_DATA_OFFSET) // self.segment_size

    @property
    def slots_min(self) -> int:
        return SLOTS_MIN + len(self.tiers)

    @property
    def window_ms(self) -> int:
        return round(self.out_of_order_window * 1000)
