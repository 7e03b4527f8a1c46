"""Who stores the lines of Graphite's and statsd's ports."""

from __future__ import annotations

import asyncio
import logging

from siltstone.clock import Clock
from siltstone.errors import SiltstoneError
from siltstone.serve.ingest import graphite
from siltstone.serve.ingest.statsd import Gatherer
from siltstone.serve.port_settings import StatsdSettings
from siltstone.serve.sink import Sink

log = logging.getLogger("siltstone.serve")


class GraphiteTaker:
    """Stores lines as they come."""

    def __init__(self, sink: Sink, clock: Clock) -> None:
        self.sink = sink
        self.clock = clock

    async def take(self, lines: bytes) -> list[str]:
        return await asyncio.to_thread(self._store, lines)

    def _store(self, lines: bytes) -> list[str]:
        parsed = graphite.parse(lines)
        refused: list[str] = []
        self.sink.store(parsed, self.clock.now_ms(), refused)
        return parsed.problems + refused


class StatsdTaker:
    """Gathers lines, and stores what is known every `flush_interval`. A `Service` too."""

    def __init__(self, settings: StatsdSettings, sink: Sink, clock: Clock) -> None:
        self.settings = settings
        self.sink = sink
        self.clock = clock
        self.gatherer = Gatherer()
        self.failures = 0
        self._ended_ms = 0
        self._task: asyncio.Task[None] | None = None

    async def take(self, lines: bytes) -> list[str]:
        return self.gatherer.take(lines)

    async def start(self) -> None:
        if self.settings.address is not None:
            self._task = asyncio.create_task(self._keep_storing())

    async def stop(self) -> None:
        """What was gathered is stored first."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            await self.store()

    async def store(self) -> None:
        """End an interval."""
        now_ms = self.clock.now_ms()
        # Two that end in one millisecond: the later one must not replace what the first counted.
        again = now_ms <= self._ended_ms < now_ms + 1000  # not where the clock was set back
        self._ended_ms = self._ended_ms + 1 if again else now_ms
        parsed = self.gatherer.flush(self._ended_ms)
        if not parsed.rows:
            return
        refused: list[str] = []
        try:
            await asyncio.to_thread(self.sink.store, parsed, self.clock.now_ms(), refused)
        except SiltstoneError as error:
            refused.append(str(error))
        if refused and not self.failures:
            log.warning("statsd: an interval is not stored, or not whole: %s", refused[0])
        self.failures = self.failures + 1 if refused else 0

    async def _keep_storing(self) -> None:
        while True:
            await asyncio.sleep(self.settings.flush_interval)
            await self.store()
