from collections.abc import Callable
from typing import Any, Self

from siltstone.clock import Clock, Random
from siltstone.log.device import Device
from siltstone.log.ordered_log import OrderedLog
from siltstone.log.ordered_recovery import Recovery
from siltstone.store.report import Report
from siltstone.store.settings import PageSettings

COMPRESSIONS: dict[str, int]
LIBRARIES: dict[str, str]
CHECKPOINT_SHARE: int
CHECKPOINT_SEGMENTS_MIN: int
LOOKS_MAX: int
PAUSE_US: int
PAUSE_MAX_US: int
HELP_SHARE: int
HELP_SEGMENTS: int
COMPACT_BELOW: int
CLOSED_FACTOR: float
COMPACT_SECONDS: int
CLOSED_NEAR: float
SLOTS_KEPT: int

class Pages:
    log: OrderedLog
    device: Device
    recovery: Recovery
    settings: PageSettings
    clock: Clock
    watchers: Any
    def __init__(self, *_: object, **__: object) -> None: ...
    def open_with(
        self,
        settings: PageSettings,
        *,
        device: Device | None = None,
        engine: str = "store",
        background: bool = True,
        pages_min: int = 64,
        clock: Clock = ...,
        rng: Random = ...,
    ) -> None: ...
    def _usable(self) -> None: ...
    def sync(self, end: int = 0) -> None: ...
    def checkpoint(self) -> None: ...
    def tick(self) -> None: ...
    def step(self) -> bool: ...
    def checkpoint_if_due(self) -> bool: ...
    def clean_if_due(self) -> bool: ...
    def behind(self) -> int: ...
    def collect_garbage(self) -> int: ...
    def check_invariants(self) -> None: ...
    def verify(self, progress: Callable[[int, int], object] | None = None) -> Report: ...
    def stats(self) -> dict[str, Any]: ...
    def close(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *_: object) -> None: ...
