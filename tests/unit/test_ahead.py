"""Work ahead: in order, a bounded number at a time, over when the caller is done."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing

import pytest

from siltstone.errors import Closed
from siltstone.metrics.ahead import Ahead


@pytest.fixture
def ahead() -> Iterator[Ahead]:
    one = Ahead(2)
    yield one
    one.close()


def test_results_come_in_order(ahead: Ahead) -> None:
    assert list(ahead.map(lambda n: n * n, range(50))) == [n * n for n in range(50)]
    assert list(ahead.map(str, [])) == []


def test_one_item_is_done_by_the_caller(ahead: Ahead) -> None:
    caller = threading.get_ident()
    assert list(ahead.map(lambda _: threading.get_ident(), [1])) == [caller]
    assert caller not in list(ahead.map(lambda _: threading.get_ident(), [1, 2]))


def test_with_one_thread_the_caller_does_everything() -> None:
    caller = threading.get_ident()
    assert list(Ahead(1).map(lambda _: threading.get_ident(), range(3))) == [caller] * 3


def test_as_many_as_there_are_threads_run_at_a_time(ahead: Ahead) -> None:
    both = threading.Barrier(2)
    assert list(ahead.map(lambda _: both.wait(10) >= 0, range(4))) == [True] * 4


def test_no_more_is_begun_than_can_be_worked_on(ahead: Ahead) -> None:
    begun = []
    with closing(ahead.map(begun.append, range(100))) as found:
        next(found)
    assert len(begun) <= 2


def test_an_error_reaches_the_caller_after_what_came_before(ahead: Ahead) -> None:
    def halved(n: int) -> float:
        return 2 / n

    found = ahead.map(halved, [2, 1, 0, 1])
    assert [next(found), next(found)] == [1, 2]
    with pytest.raises(ZeroDivisionError):
        next(found)
    assert list(ahead.map(halved, [1, 2])) == [2, 1]  # the threads are none the worse


def test_closing_waits_for_what_runs_and_forgets_its_error(ahead: Ahead) -> None:
    going, go, done = threading.Event(), threading.Event(), []

    def work(n: int) -> int:
        if n:
            going.set()
            assert go.wait(10)
            done.append(n)
            raise ValueError(n)
        return n

    found = ahead.map(work, range(4))
    assert next(found) == 0
    assert going.wait(10)
    go.set()
    found.close()
    running = list(done)
    assert running
    ahead.close()  # waits for all threads
    assert done == running


def test_nothing_begins_after_close() -> None:
    ahead = Ahead(2)
    found = ahead.map(str, range(9))
    assert next(found) == "0"
    ahead.close()
    with pytest.raises(Closed):
        list(found)
    with pytest.raises(Closed):
        list(ahead.map(str, range(9)))
