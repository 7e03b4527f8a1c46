"""A thread that lets time pass for a log: `tick()` every interval, until it is closed.

It bounds what a crash may cost an engine that does not sync each change. An idle log's tick does
no I/O. After a tick fails the thread ends and keeps the error; the log itself says it to every
later caller, too. A forked child has no such thread.
"""

from __future__ import annotations

import threading
from typing import Protocol, Self

from siltstone.errors import SiltstoneError


class Ticking(Protocol):
    def tick(self) -> None: ...


class Periodic:
    """Calls `target.tick()` every `interval_ms`."""

    def __init__(self, target: Ticking, interval_ms: int, *, name: str = "siltstone-sync") -> None:
        self._target = target
        self._interval_s = interval_ms / 1000
        self._stop = threading.Event()
        self.error: SiltstoneError | None = None
        self.ticks = 0
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(self._interval_s):
            try:
                self._target.tick()
            except SiltstoneError as error:
                self.error = error
                return
            self.ticks += 1

    def close(self) -> None:
        """Returns when no tick runs any more. Idempotent."""
        self._stop.set()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
