"""The settings of a store and of a page cache, with units, defaults and limits.

`StoreSettings` is what `siltstone.Store` takes; what of it concerns pages, the log and memory is
`PageSettings`, which `siltstone.PageCache` takes as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from siltstone.config import (
    COUNT,
    DURATION,
    GIB,
    KIB,
    MIB,
    MODE,
    PATH,
    SEGMENT_ALIGNMENT,
    SIZE,
    SWITCH,
    TEXT,
    SettingsBase,
    check_log_sizes,
    setting,
)

DURABILITIES = ("sync", "interval", "none")
COMPRESSIONS = ("none", "lz4", "zstd")
VALUE_SIZE_MAX = 4 * GIB - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class PageSettings(SettingsBase):
    """Sizes in bytes, durations in seconds. `path` None: in memory, gone when it is closed."""

    section = "pages"

    path: Path | None = setting(None, PATH, "data directory; none: a temporary one in memory")
    durability: str = setting(
        "interval",
        TEXT,
        "sync: a commit is on the medium on return; interval: after flush_interval at most; "
        "none: at sync(), checkpoints and close()",
        choices=DURABILITIES,
    )
    flush_interval: float = setting(0.5, DURATION, "time between background syncs", low=0.001)
    cache: int = setting("256MiB", SIZE, "memory of pages and the page table", low=16 * KIB)
    read_only: bool = setting(False, SWITCH, "look beside a writer, write nothing")
    segment_size: int = setting(
        "1MiB", SIZE, "unit of reclaim in the file", low=4 * KIB, high=256 * MIB
    )
    buffer_size: int = setting(
        None, SIZE, "write buffer; segment_size, at most 256KiB", low=4 * KIB, high=64 * MIB
    )
    buffers: int = setting(4, COUNT, "write buffers", low=2, high=16)
    snapshot_bytes_max: int = setting(
        None, SIZE, "memory of what open snapshots need; cache, at least 64MiB"
    )
    compression: str = setting("none", TEXT, "of whole pages in the file", choices=COMPRESSIONS)
    workers: int = setting(2, COUNT, "threads for device I/O; 0: callers do it", low=0, high=256)
    align_commits: bool = setting(
        False, SWITCH, "never write a block of 4 KiB twice, for devices that may tear one"
    )
    id_interval: int = setting(
        1_000_000, COUNT, "ids given out between two markers", low=1, high=1 << 40
    )
    mode: int = setting(0o600, MODE, "of the files in the data directory", low=0, high=0o777)

    def derive(self) -> None:
        if self.buffer_size is None:
            size = min(self.segment_size, 256 * KIB)
            while self.segment_size % size and size > SEGMENT_ALIGNMENT:
                size -= SEGMENT_ALIGNMENT
            self._set("buffer_size", size)
        if self.snapshot_bytes_max is None:
            self._set("snapshot_bytes_max", max(self.cache, 64 * MIB))
        check_log_sizes(self)
        if self.read_only and self.path is None:
            self.refuse("read_only", "a temporary store has nothing to read: give a path")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreSettings(PageSettings):
    """The settings of a store: those of its pages, and its own."""

    section = "store"

    page_size: int = setting(4096, SIZE, "a page that is larger is split", low=128, high=64 * KIB)
    value_size_max: int = setting(GIB, SIZE, "largest value", low=KIB, high=VALUE_SIZE_MAX)
    watch_events_max: int = setting(
        10_000, COUNT, "events that wait in a watch; more are dropped, and told", low=1
    )
