"""fork(): a shared cache gets a member, a private one a copy that never touches the parent's."""

from __future__ import annotations

import concurrent.futures
import itertools
import os
import pickle
import signal
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from killrig import check_engine

import siltstone
from siltstone import errors
from siltstone.cache import attachment, births, fork
from siltstone.log import turns

HANG_S = 40
SMALL: dict[str, Any] = {"ram": "4MiB", "flash": "8MiB", "segment_size": "256KiB"}


class Child:
    """A forked child that does `work`; whatever that does, the child ends with it."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self._answer, theirs = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(HANG_S)
            try:
                answer = pickle.dumps((work(), None))
            except BaseException:
                answer = pickle.dumps((None, traceback.format_exc()))
            os.write(theirs, answer)
            os._exit(0)
        os.close(theirs)

    def result(self) -> Any:
        """What `work` gave back; its exception is raised here."""
        with open(self._answer, "rb") as file:
            answer = file.read()
        assert os.waitpid(self.pid, 0)[1] == 0, "the child hung, or crashed"
        value, failure = pickle.loads(answer)
        assert failure is None, failure
        return value


def in_child(work: Callable[[], Any]) -> Any:
    return Child(work).result()


class Threads:
    """Functions that run until the end of the block; what they raise is raised there."""

    def __init__(self, *functions: Callable[[], Any]) -> None:
        self.stop = threading.Event()
        self._pool = concurrent.futures.ThreadPoolExecutor(len(functions))
        self._runs = [self._pool.submit(self._repeat, function) for function in functions]

    def _repeat(self, function: Callable[[], Any]) -> None:
        while not self.stop.is_set():
            function()

    def __enter__(self) -> Threads:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        for run in self._runs:
            run.result()
        self._pool.shutdown()


def test_a_child_gives_no_turns_to_the_threads_of_its_parent():
    try:
        assert turns.asked(1) == 1
        assert in_child(turns.asked) == 0
    finally:
        assert turns.asked(-1) == 0


def test_a_child_is_a_member_of_its_own(tmp_path: Path) -> None:
    with siltstone.Cache(tmp_path, **SMALL) as cache:
        cache["a"] = 1
        slot = cache.engine.arena.slot

        def work() -> tuple[int, int, int]:
            before = threading.active_count()
            assert cache["a"] == 1
            cache["b"] = 2  # the first change starts the background thread
            assert threading.active_count() == before + 1
            return cache.engine.arena.slot, cache.engine.arena.process(1)[0], os.getpid()

        child_slot, noted, pid = in_child(work)
        assert child_slot == 1 != slot
        assert noted == pid
        assert cache["b"] == 2
        assert in_child(lambda: cache.engine.arena.slot) == 1  # free again: the child is dead
        assert cache.engine.arena.slot == slot


def test_a_child_outlives_its_parent_s_cache(tmp_path: Path) -> None:
    cache = siltstone.Cache(tmp_path, **SMALL)
    cache["a"] = 1
    ours, theirs = os.pipe()

    def work() -> None:
        os.read(ours, 1)
        cache["b"] = cache["a"] + 1
        cache.close()

    child = Child(work)
    cache.close()
    os.write(theirs, b"x")
    child.result()
    os.close(ours)
    os.close(theirs)
    with siltstone.Cache(tmp_path, **SMALL) as cache:
        assert cache["b"] == 2


class LateChild:
    """A child that becomes a member only when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, work: Callable[[], Any]) -> None:
        ours, theirs = os.pipe()
        join = attachment.Attachment._join_again

        def join_late(self: Any) -> None:
            os.close(theirs)
            os.read(ours, 1)
            join(self)

        with monkeypatch.context() as patch:
            patch.setattr(attachment.Attachment, "_join_again", join_late)
            self._child = Child(work)
        os.close(ours)
        self._tell = theirs

    def result(self) -> Any:
        os.close(self._tell)
        return self._child.result()


def test_the_last_one_out_waits_for_a_child_that_is_not_yet_a_member(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = siltstone.Cache(tmp_path, **SMALL)
    cache["a"] = 1
    child = LateChild(monkeypatch, lambda: cache["a"])
    assert not births.wait(0)
    closing = threading.Thread(target=cache.close)
    closing.start()
    closing.join(0.05)
    assert closing.is_alive()
    assert child.result() == 1
    closing.join()
    with siltstone.Cache(tmp_path, **SMALL) as cache:
        assert cache["a"] == 1


def test_a_child_that_is_stopped_before_it_joined_finds_all_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attachment, "BIRTH_LIMIT_MS", 1)
    cache = siltstone.Cache(tmp_path, **SMALL)
    cache["a"] = 1
    child = LateChild(monkeypatch, lambda: cache["a"])
    cache.close()  # not as the last one
    with siltstone.Cache(tmp_path, **SMALL) as again:
        again["a"] += 1
    assert child.result() == 2


def test_a_child_that_joins_too_late_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = siltstone.Cache(tmp_path, **SMALL)
    cache["a"] = 1

    def work() -> bool:
        with pytest.raises(errors.Closed):
            cache.get("a")
        return cache.closed

    child = LateChild(monkeypatch, work)
    with monkeypatch.context() as patch:
        patch.setattr(births, "wait", lambda limit_ms: True)  # as for another process
        cache.close()
    assert child.result() is True


def test_a_child_that_becomes_another_program_holds_nobody_up(tmp_path: Path) -> None:
    cache = siltstone.Cache(tmp_path, **SMALL)
    pid = os.fork()
    if pid == 0:
        os.execv("/bin/true", ["true"])
    assert os.waitpid(pid, 0)[1] == 0
    cache["a"] = 1
    arena = Path(cache._attachment.arena_path)
    assert arena.exists()
    cache.close()
    assert not arena.exists()


def test_a_child_of_a_child(tmp_path: Path) -> None:
    with siltstone.Cache(tmp_path, **SMALL) as cache:

        def work() -> Any:
            cache["child"] = 1
            return in_child(lambda: (cache.set("grandchild", 2), cache.engine.arena.slot))

        assert in_child(work) == (True, 2)
        assert cache["child"] == 1
        assert cache["grandchild"] == 2


def test_a_private_arena_is_copied() -> None:
    with siltstone.Cache(ram="4MiB") as cache:
        cache["a"] = 1

        def work() -> Any:
            cache["a"] = 2
            cache["b"] = 3
            check_engine(cache)
            return cache["a"], len(cache)

        assert in_child(work) == (2, 2)
        assert cache["a"] == 1
        assert "b" not in cache


def test_a_private_cache_with_flash_goes_on_in_ram_only(tmp_path: Path) -> None:
    with siltstone.Cache(tmp_path, **SMALL, arena="private") as cache:
        for number in range(2500):
            cache[number] = b"%d." % number * 400
        cache.flush()
        before = (tmp_path / "flash").read_bytes(), (tmp_path / "live").read_bytes()[4096:]

        def work() -> Any:
            kept = [number for number in range(2500) if number in cache]
            assert all(cache[number] == b"%d." % number * 400 for number in kept)
            for number in range(3000):
                cache[f"child:{number}"] = bytes(1500)
                cache.delete(number)
            assert set(kept) <= {key for key in cache if isinstance(key, int)} | set(range(2500))
            assert cache.verify().ok
            assert cache.segments() == []
            cache.flush()
            cache.sync()
            cache.clear()
            cache["x"] = 1
            assert list(cache.items()) == [("x", 1)]
            check_engine(cache)
            stats = cache.stats()
            cache.close()
            return len(kept), stats["items_flash"], stats["evictions"] > 100

        kept, on_flash, evicted = in_child(work)
        assert 0 < kept < 2500
        assert on_flash == 0
        assert evicted
        assert (
            (tmp_path / "flash").read_bytes(),
            (tmp_path / "live").read_bytes()[4096:],
        ) == before
        assert sum(cache.get(number) == b"%d." % number * 400 for number in range(2500)) == 2500
        check_engine(cache)


@pytest.mark.parametrize("kind", ["private", "private flash", "shared"])
def test_forks_while_other_threads_write(tmp_path: Path, kind: str) -> None:
    settings: dict[str, Any] = {**SMALL, "path": tmp_path} if kind != "private" else {"ram": "4MiB"}
    if kind == "private flash":
        settings["arena"] = "private"
    with siltstone.Cache(**settings) as cache:

        def writer(name: int) -> Callable[[], None]:
            numbers = itertools.count(1)

            def write() -> None:
                number = next(numbers)
                cache[name, number % 700] = bytes([name]) * (number % 5000)
                cache.get((name, number * 7 % 700))
                cache.set("brief", 1, ttl=0.001)
                cache.get("brief")  # often expired: a read that takes it away
                if number % 50 == 0:
                    cache.sync()

            return write

        def work() -> int:
            for number in range(200):
                cache["child", number] = bytes(3000)
            found = 0
            for name in range(3):
                for number in range(700):
                    value = cache.get((name, number))
                    if value is not None:
                        assert value == bytes([name]) * len(value)
                        found += 1
            cache.sync()
            if kind != "shared":
                check_engine(cache)
            return cache.stats()["shards_reset"]

        with Threads(*(writer(name) for name in range(3))):
            for _ in range(8):
                assert in_child(work) == 0
        check_engine(cache)
        assert cache.stats()["busy"] == 0


def test_a_reader_that_must_wait_lets_the_others_run() -> None:
    with siltstone.Cache(ram="4MiB", workers=0) as cache:
        cache.set("a", 1, ttl=1)
        cache.engine.set_clock(cache._clock.now_ms() + 5000)
        held, let_go = threading.Event(), threading.Event()

        def hold() -> None:
            fork.hold(cache.engine)
            held.set()
            let_go.wait()
            fork.release()

        holder = threading.Thread(target=hold)
        holder.start()
        held.wait()
        answers: list[Any] = []
        reader = threading.Thread(target=lambda: answers.append(cache.get("a")))
        reader.start()  # it finds the item expired: to take it away, it has to wait
        reader.join(0.05)
        waits = reader.is_alive()
        let_go.set()
        holder.join()
        reader.join()
        assert waits
        assert answers == [None]
        assert cache.stats()["busy"] == 0


def test_every_lock_is_dropped_however_many_there_are() -> None:
    with siltstone.Cache(ram="2GiB") as one, siltstone.Cache(ram="4GiB") as other:
        assert in_child(lambda: one.get("a")) is None
        for number in range(200):
            one[number] = other[number] = b""
        assert len(one) == len(other) == 200
        assert one.stats()["busy"] == other.stats()["busy"] == 0


def test_leases_of_the_parent_do_not_bind_the_child() -> None:
    with siltstone.Cache(ram="4MiB", lease="60s") as cache:

        def compute() -> Any:
            return in_child(lambda: cache.get_or_set("k", lambda: "child's"))

        assert cache.get_or_set("k", compute) == "child's"


def test_a_child_that_finds_no_slot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attachment, "PROCESS_SLOTS", 1)
    with siltstone.Cache(tmp_path, **SMALL) as cache:

        def work() -> bool:
            with pytest.raises(errors.Closed):
                cache.get("a")
            cache.close()
            return cache.closed

        assert in_child(work) is True
        cache["a"] = 1
        assert cache["a"] == 1
