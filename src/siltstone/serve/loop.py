"""An event loop in a thread of its own: for scrapes, ports and queues, beside HTTP and memcached.

Owns the thread; what runs in it are `Service`s, started in order and stopped in the other one. A
service that cannot start is the caller's error; those before it are stopped again.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Coroutine, Sequence
from concurrent.futures import Future
from typing import Any, Protocol, TypeVar

A = TypeVar("A")

log = logging.getLogger("siltstone.serve")


class Service(Protocol):
    """What runs in the loop's thread; both are called there, once."""

    async def start(self) -> None: ...

    async def stop(self) -> None: ...


class LoopThread:
    """`start()` once, then `stop()` once."""

    def __init__(self, services: Sequence[Service], name: str = "siltstone-loop") -> None:
        self.services = services
        self._failed: BaseException | None = None
        self._ready = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._end: asyncio.Event | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Returns when all run; raises what the first one that cannot start raised."""
        self._thread.start()
        self._ready.wait()
        if self._failed is not None:
            self._thread.join()
            raise self._failed

    def begin(self, work: Coroutine[Any, Any, A]) -> Future[A]:
        """Have the loop do it, between `start` and `stop`; its errors are the future's."""
        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def call(self, work: Coroutine[Any, Any, A]) -> A:
        """The same, and wait for what it gives; in any other thread."""
        return self.begin(work).result()

    def stop(self) -> None:
        """Returns when all have stopped."""
        if self._loop is not None and self._end is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._end.set)
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        asyncio.run(self._main())

    async def _main(self) -> None:
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        started: list[Service] = []
        try:
            for service in self.services:
                await service.start()
                started.append(service)
        except BaseException as error:
            self._failed = error
        else:
            self._ready.set()
            await self._end.wait()
        finally:
            for service in reversed(started):
                try:
                    await service.stop()
                except Exception:
                    log.exception("%s did not stop well", type(service).__name__)
            self._ready.set()
