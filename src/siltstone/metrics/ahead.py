"""Work in threads on what comes next, while the caller is busy with what came before.

What is done this way runs without the GIL for the most part (decoding, pcodec's as well, and what
is computed of it), so the threads fill the cores. A call of one item is done by the caller: a
thread would only cost time. Any thread may call; jobs wait for no other jobs.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from siltstone.errors import Closed

A = TypeVar("A")
B = TypeVar("B")


class Ahead:
    """See the module's docstring. `threads`: at most; they start when they are needed."""

    def __init__(self, threads: int | None = None) -> None:
        self._threads = threads or len(os.sched_getaffinity(0))
        self._pool: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()
        self._closed = False

    def map(self, function: Callable[[A], B], items: Sequence[A]) -> Iterator[B]:
        """`function` of each item, in order; of as many as there are threads it is begun before
        they are asked for. Nothing runs any more when the iterator is closed."""
        if len(items) <= 1 or self._threads == 1:
            yield from map(function, items)
            return
        left = iter(items)
        begun: deque[Future[B]] = deque()
        try:
            while True:
                for item in left:
                    begun.append(self._submit(function, item))
                    if len(begun) == self._threads:
                        break
                if not begun:
                    return
                yield begun.popleft().result()
        finally:
            for one in begun:
                one.cancel()
            for one in begun:
                if not one.cancelled():
                    one.exception()  # waits; its error is nobody's any more

    def _submit(self, function: Callable[[A], B], item: A) -> Future[B]:
        with self._lock:
            if self._closed:
                raise Closed("these metrics are closed")
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self._threads, "siltstone-read")
            return self._pool.submit(function, item)

    def close(self) -> None:
        """What runs is finished, nothing new begins."""
        with self._lock:
            self._closed = True
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown()
