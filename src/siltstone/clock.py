"""Time and randomness as constructor arguments: the one place that asks the machine for them.

Everything that needs the time takes a `Clock`, everything that needs chance a `Random`; tests pass
their own (tests/fakes.py), so that they are repeatable and never sleep.
"""

from __future__ import annotations

import os
import random
import time
from typing import Protocol


class Clock(Protocol):
    """What the engines need to know about time."""

    def now_ms(self) -> int:
        """Wall clock, Unix milliseconds. May step back."""

    def monotonic_ns(self) -> int:
        """For durations; never steps back."""

    def sleep(self, seconds: float) -> None:
        """Let that much time pass."""


class SystemClock:
    """The machine's clock."""

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def monotonic_ns(self) -> int:
        return time.monotonic_ns()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


class Random(Protocol):
    """Chance: salts, uuids, sampling."""

    def bytes(self, size: int) -> bytes: ...

    def uniform(self) -> float:
        """At least 0, below 1."""


class SystemRandom:
    """Bytes from the operating system (salts must not repeat after a crash), fast numbers."""

    def __init__(self) -> None:
        self._random = random.Random(os.urandom(16))

    def bytes(self, size: int) -> bytes:
        return os.urandom(size)

    def uniform(self) -> float:
        return self._random.random()


SYSTEM_CLOCK = SystemClock()
SYSTEM_RANDOM = SystemRandom()
