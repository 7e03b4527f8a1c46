"""The engine's thread: what the clock and the backlog bring, in order of urgency.

Commands wait in a bounded queue, ordered by priority, then by arrival; whoever puts one into a full
queue waits, at most so long, and then is told. Without a command the thread does a round every
`flush_interval`: journal to the medium, sealed chunks to segments, a checkpoint, a merge,
retention, as far as each is due. Reads go past the queue and before everything in it: long work
pauses for them (merge.py). A failed round is counted and tried again; a failed journal ends it all.
"""

from __future__ import annotations

import errno
import heapq
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from siltstone.errors import Busy, Closed, SiltstoneError

if TYPE_CHECKING:
    from siltstone.metrics.engine import Engine

QUEUE_MAX: Final = 2048
FLUSH, CARE = 0, 1  # priorities: what somebody waits for, what can wait


class Command:
    """A command, and what came of it."""

    def __init__(self, function: Callable[[], object]) -> None:
        self._function = function
        self._done = threading.Event()
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            self._function()
        except BaseException as error:
            self._error = error
        self._done.set()

    def refuse(self, error: SiltstoneError) -> None:
        self._error = error
        self._done.set()

    def wait(self, seconds: float | None = None) -> None:
        """Until it is done; raises what it raised. Busy when it takes longer than that."""
        if not self._done.wait(seconds):
            raise Busy(errno.ETIMEDOUT, f"not done within {seconds} s: try again")
        if self._error is not None:
            raise self._error


class CommandQueue:
    """See the module's docstring."""

    def __init__(self, size: int = QUEUE_MAX) -> None:
        self._size = size
        self._heap: list[tuple[int, int, Command]] = []
        self._changed = threading.Condition()
        self._number = 0
        self._closed = False
        self.counters = dict.fromkeys(("put", "done", "waits", "refused", "depth_max"), 0)

    def put(self, priority: int, function: Callable[[], object], wait_s: float = 10) -> Command:
        """Busy when the queue stays full; Closed when nobody will run it."""
        command = Command(function)
        with self._changed:
            if len(self._heap) >= self._size:
                self.counters["waits"] += 1
                room = self._changed.wait_for(
                    lambda: self._closed or len(self._heap) < self._size, wait_s
                )
                if not room:
                    self.counters["refused"] += 1
                    raise Busy(errno.ETIMEDOUT, f"{self._size} commands wait: try again")
            if self._closed:
                raise Closed("these metrics are closed")
            self._number += 1
            heapq.heappush(self._heap, (priority, self._number, command))
            self.counters["put"] += 1
            self.counters["depth_max"] = max(self.counters["depth_max"], len(self._heap))
            self._changed.notify_all()
        return command

    def get(self, wait_s: float) -> Command | None:
        """The most urgent one; None when there is none so long, or it is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._heap or self._closed, wait_s)
            if not self._heap:
                return None
            command = heapq.heappop(self._heap)[2]
            self.counters["done"] += 1
            self._changed.notify_all()
            return command

    @property
    def closed(self) -> bool:
        return self._closed

    def close(self) -> None:
        """Commands that wait are refused."""
        with self._changed:
            self._closed = True
            left, self._heap = self._heap, []
            self._changed.notify_all()
        for _, _, command in left:
            command.refuse(Closed("these metrics are closed"))

    def __len__(self) -> int:
        return len(self._heap)


class Background:
    """See the module's docstring."""

    def __init__(self, engine: Engine, interval_s: float) -> None:
        self._engine = engine
        self._interval_s = interval_s
        self.queue = CommandQueue()
        self.error: Exception | None = None
        self.rounds = self.failures = 0
        self._thread = threading.Thread(target=self._run, name="siltstone-metrics", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self.queue.closed:
            command = self.queue.get(self._interval_s)
            if command is not None:
                command.run()
            elif not self.queue.closed:
                self._round()

    def _round(self) -> None:
        try:
            self._engine.step()
            self.error = None
        except (SiltstoneError, OSError, MemoryError) as error:
            self.failures += 1
            self.error = error
        self.rounds += 1

    def do(self, priority: int, function: Callable[[], object]) -> None:
        """Have it done by the thread, in its turn; returns or raises when it is done."""
        self.queue.put(priority, function).wait()

    def check(self) -> None:
        """Raise what made the journal fail, so that nobody goes on in vain."""
        if self.error is not None and self._engine.log.stats()["failed"]:
            raise self.error

    def stats(self) -> dict[str, int | str]:
        return {
            "rounds": self.rounds,
            "failures": self.failures,
            "error": str(self.error or ""),
            "queued": len(self.queue),
            **{f"commands_{name}": count for name, count in self.queue.counters.items()},
        }

    def close(self) -> None:
        """Returns when the thread has ended. Idempotent."""
        self.queue.close()
        self._thread.join()
