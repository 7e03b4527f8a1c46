"""The background thread of a page cache: syncs at intervals, checkpoints, cleans.

It is woken when the stream opens a segment and at every flush interval. A step that fails ends the
thread; the error is kept and the log itself says it to every later writer. A forked child has no
such thread. Whatever it does may be asked for directly as well: progress never needs it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol

from siltstone.clock import Clock
from siltstone.errors import SiltstoneError
from siltstone.store.settings import PageSettings

NAME = "siltstone-upkeep"


class Maintained(Protocol):
    def tick(self) -> None: ...

    def step(self) -> bool: ...


class Upkeep:
    """Calls `pages.tick()` every `flush_interval` and `pages.step()` while there is work."""

    def __init__(self, pages: Maintained, settings: PageSettings, clock: Clock) -> None:
        self._pages = pages
        self._clock = clock
        self._interval_s = settings.flush_interval
        self._sync = settings.durability == "interval"
        self._wake = threading.Event()
        self._closing = False
        self.error: SiltstoneError | None = None
        self._thread = threading.Thread(target=self._run, name=NAME, daemon=True)
        self._thread.start()

    def wake(self) -> None:
        self._wake.set()

    def _run(self) -> None:
        ticked_ns = self._clock.monotonic_ns()
        try:
            while not self._closing:
                self._wake.wait(self._interval_s)
                self._wake.clear()
                now_ns = self._clock.monotonic_ns()
                if self._sync and now_ns - ticked_ns >= self._interval_s * 0.9e9:
                    self._pages.tick()
                    ticked_ns = now_ns
                while not self._closing and self._pages.step():
                    pass
        except SiltstoneError as error:
            self.error = error

    def close(self) -> None:
        """Returns when no step runs any more. Idempotent."""
        self._closing = True
        self._wake.set()
        self._thread.join()


def close_forgotten(close: Callable[[], object]) -> None:
    """Close what nobody refers to any more. The garbage collector runs this on any thread; on a
    background one it would wait for itself, and is given to a thread of its own."""
    if threading.current_thread().name == NAME:
        threading.Thread(target=close, name="siltstone-close").start()
    else:
        close()
