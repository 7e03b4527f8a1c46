from collections.abc import Callable, Sequence
from typing import Any

from siltstone.log.ordered_log import OrderedLog
from siltstone.log.replay import Walk

class Visitor: ...

class Replay:
    def __init__(
        self,
        log: OrderedLog,
        walk: Walk,
        visit: Visitor | Callable[[int, int, bytes, int], object] | None,
        start: int,
        kept_bytes_max: int,
    ) -> None: ...
    def run(self) -> tuple[Any, ...]: ...
    def never_committed(self, groups: Sequence[int]) -> None: ...
    @property
    def records(self) -> int: ...
    @property
    def groups(self) -> int: ...
    @property
    def groups_open(self) -> int: ...
