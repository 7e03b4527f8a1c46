"""The background threads of a page cache: one syncs at intervals and checkpoints, one cleans.

Cleaning goes on while a checkpoint waits for the medium. Both are woken when the stream opens a
segment and at every flush interval. A step that fails ends its thread; the error is kept and the
log itself says it to every later writer. A forked child has no such threads. Whatever they do may
be asked for directly as well: progress never needs them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol

from siltstone.clock import Clock
from siltstone.errors import SiltstoneError
from siltstone.store.settings import PageSettings

NAMES = ("siltstone-upkeep", "siltstone-cleaning")


class Maintained(Protocol):
    def tick(self) -> None: ...

    def checkpoint_if_due(self) -> bool: ...

    def clean_if_due(self) -> bool: ...


class Upkeep:
    """Calls `pages.tick()` every `flush_interval`, and what is due while there is work."""

    def __init__(self, pages: Maintained, settings: PageSettings, clock: Clock) -> None:
        self._pages = pages
        self._clock = clock
        self._interval_s = settings.flush_interval
        self._sync = settings.durability == "interval"
        self._ticked_ns = clock.monotonic_ns()
        self._closing = False
        self.error: SiltstoneError | None = None
        self._wakes = [threading.Event() for _ in NAMES]
        works = (self._checkpoints, pages.clean_if_due)
        self._threads = [
            threading.Thread(target=self._run, name=name, args=(wake, work), daemon=True)
            for name, wake, work in zip(NAMES, self._wakes, works, strict=True)
        ]
        try:
            for thread in self._threads:
                thread.start()
        except RuntimeError:  # no more threads are to be had
            self.close()
            raise

    def wake(self) -> None:
        for wake in self._wakes:
            wake.set()

    def _run(self, wake: threading.Event, work: Callable[[], bool]) -> None:
        try:
            while not self._closing:
                wake.wait(self._interval_s)
                wake.clear()
                while not self._closing and work():
                    pass
        except SiltstoneError as error:
            self.error = error

    def _checkpoints(self) -> bool:
        now_ns = self._clock.monotonic_ns()
        if self._sync and now_ns - self._ticked_ns >= self._interval_s * 0.9e9:
            self._pages.tick()
            self._ticked_ns = now_ns
        return self._pages.checkpoint_if_due()

    def close(self) -> None:
        """Returns when no step runs any more. Idempotent."""
        self._closing = True
        self.wake()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()


def close_forgotten(close: Callable[[], object]) -> None:
    """Close what nobody refers to any more. The garbage collector runs this on any thread; on a
    background one it would wait for itself, and is given to a thread of its own."""
    if threading.current_thread().name in NAMES:
        threading.Thread(target=close, name="siltstone-close").start()
    else:
        close()
