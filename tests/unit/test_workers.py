"""The pool: bounded, ends cleanly, starts again after fork; finished jobs wake one loop."""

import os
import threading

import pytest

from siltstone.errors import Closed
from siltstone.log.workers import Completions, WorkerPool


def test_runs_everything_and_joins():
    done = []
    with WorkerPool(3, name="test") as pool:
        for number in range(200):
            pool.submit(lambda number=number: done.append(number))
    assert sorted(done) == list(range(200))
    assert pool.stats()["jobs"] == 200
    assert pool.stats()["running_latency"]["count"] == 200
    assert not [t for t in threading.enumerate() if t.name.startswith("test-")]
    pool.close()
    with pytest.raises(Closed):
        pool.submit(lambda: None)


def test_runs_in_parallel():
    both = threading.Barrier(2)
    with WorkerPool(2) as pool:
        pool.submit(both.wait)
        pool.submit(both.wait)
    assert both.n_waiting == 0
    assert not both.broken


def test_queue_is_bounded():
    started, go_on = threading.Event(), threading.Event()
    with WorkerPool(1, queued_max=2) as pool:
        pool.submit(lambda: (started.set(), go_on.wait()))
        assert started.wait(10)
        pool.submit(lambda: None)
        pool.submit(lambda: None)
        with pytest.raises(BlockingIOError):
            pool.submit(lambda: None)
        assert pool.stats()["refused"] == 1
        assert pool.stats()["queued"] == 2
        go_on.set()


def test_no_threads_means_at_once():
    seen = []
    with WorkerPool(0) as pool:
        pool.submit(lambda: seen.append(threading.current_thread()))
    assert seen == [threading.current_thread()]


def test_a_failing_job_does_not_end_its_worker(monkeypatch):
    failures, done = [], threading.Event()
    monkeypatch.setattr(threading, "excepthook", failures.append)
    with WorkerPool(1) as pool:
        pool.submit(lambda: 1 // 0)
        pool.submit(done.set)
        assert done.wait(10)
    assert [failure.exc_type for failure in failures] == [ZeroDivisionError]


def test_unfinished_jobs_are_finished_by_close():
    done, go_on = [], threading.Event()
    pool = WorkerPool(1)
    pool.submit(go_on.wait)
    for number in range(10):
        pool.submit(lambda number=number: done.append(number))
    go_on.set()
    pool.close()
    assert done == list(range(10))


def test_patient_workers_put_nobody_aside(monkeypatch):
    policies: list[int] = []
    with WorkerPool(1, patient=True) as pool:
        pool.submit(lambda: policies.append(os.sched_getscheduler(0)))
    with WorkerPool(1) as pool:
        pool.submit(lambda: policies.append(os.sched_getscheduler(0)))
    assert policies == [os.SCHED_BATCH, os.SCHED_OTHER]

    def forbidden(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "sched_setscheduler", forbidden)
    with WorkerPool(1, patient=True) as pool:
        pool.submit(lambda: policies.append(os.sched_getscheduler(0)))
    assert policies[2:] == [os.SCHED_OTHER]


def test_works_in_a_forked_child():
    with WorkerPool(2) as pool:
        first = threading.Event()
        pool.submit(first.set)
        assert first.wait(10)
        child = os.fork()
        if child == 0:
            again = threading.Event()
            pool.submit(again.set)
            fine = again.wait(10)
            pool.close()
            os._exit(0 if fine else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        still = threading.Event()
        pool.submit(still.set)
        assert still.wait(10)


def test_unclosed_pool_does_not_keep_the_interpreter():
    import subprocess
    import sys

    code = "from siltstone.log.workers import WorkerPool; p = WorkerPool(2); p.submit(int)"
    assert subprocess.run([sys.executable, "-c", code], timeout=20).returncode == 0


def test_completions_wake_only_when_something_is_there():
    completions = Completions()
    assert completions.fileno() >= 0
    assert not completions.wait(0)
    completions.close()
    assert completions.fileno() == -1
    completions.close()


def test_bad_settings():
    with pytest.raises(ValueError):
        WorkerPool(-1)
    with pytest.raises(ValueError):
        WorkerPool(1, queued_max=0)
