"""Work of requests in threads, beside the event loop.

The loop's own executor runs it (http.py says how many threads), not starlette's
`run_in_threadpool`, which counts tasks and limits through anyio: on a query that reads nothing,
150 us of the 640 that it took in all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from starlette.requests import Request

DISCONNECT_POLL_SECONDS = 0.5
T = TypeVar("T")


def in_thread(function: Callable[[], T]) -> asyncio.Future[T]:
    """What `function` returns or raises, once it is awaited; it goes on when nobody waits any
    more."""
    return asyncio.get_running_loop().run_in_executor(None, function)


class Client:
    """Whether who asked still waits: looked at now and then, until `done`; work in threads asks
    `is_gone`."""

    def __init__(self, request: Request) -> None:
        self.gone = False
        self._request = request
        self._loop = asyncio.get_running_loop()
        self._look: asyncio.Task[None] | None = None
        self._timer = self._loop.call_later(DISCONNECT_POLL_SECONDS, self._start)

    def is_gone(self) -> bool:
        return self.gone

    def _start(self) -> None:
        # most are answered before: until then nothing but a timer is spent on it
        self._look = self._loop.create_task(self._watch())

    async def _watch(self) -> None:
        while not await self._request.is_disconnected():
            await asyncio.sleep(DISCONNECT_POLL_SECONDS)
        self.gone = True

    def done(self) -> None:
        """Answered, or given up: whatever still works for it should stop."""
        self.gone = True
        self._timer.cancel()
        if self._look is not None:
            self._look.cancel()
