"""Long work stands still while somebody reads, as long as is fair."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from fakes import ManualClock

from siltstone.metrics.courtesy import Courtesy


class Clock(ManualClock):
    """Calls back at each sleep."""

    def __init__(self) -> None:
        super().__init__()
        self.sleeps = 0
        self.then: Any = None

    def sleep(self, seconds: float) -> None:
        self.sleeps += 1
        super().sleep(seconds)
        if self.then is not None:
            self.then()


@pytest.fixture
def engine() -> Any:
    return SimpleNamespace(clock=Clock(), readers=0, journal_is_short=True)


def worked(engine: Any, courtesy: Courtesy, seconds: float) -> int:
    """How often a step after so much work slept."""
    engine.clock.advance(seconds)
    before = engine.clock.sleeps
    courtesy.step()
    return int(engine.clock.sleeps - before)


def test_without_readers_it_goes_on(engine: Any) -> None:
    assert worked(engine, Courtesy(engine), 1) == 0


def test_it_stands_still_until_the_reader_is_done(engine: Any) -> None:
    engine.readers = 1

    def then() -> None:
        engine.readers = 0

    engine.clock.then = then
    assert worked(engine, Courtesy(engine), 1) == 1


def test_at_most_nine_times_as_long_as_it_worked(engine: Any) -> None:
    engine.readers = 1
    courtesy = Courtesy(engine)
    assert worked(engine, courtesy, 0.002) == 18
    assert worked(engine, courtesy, 0.004) == 36  # standing still is no work
    assert worked(engine, courtesy, 0) == 0


def test_not_when_room_gets_short(engine: Any) -> None:
    engine.readers, engine.journal_is_short = 1, False
    assert worked(engine, Courtesy(engine), 1) == 0
