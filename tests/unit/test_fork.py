"""fork(): a shared cache gets a member, a private one a copy that never touches the parent's."""

from __future__ import annotations

import os
import pickle
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from killrig import check_engine

import siltstone
from siltstone import errors

SMALL: dict[str, Any] = {"ram": "4MiB", "flash": "8MiB", "segment_size": "256KiB"}


def in_child(work: Callable[[], Any]) -> Any:
    """What `work` gives back in a forked child; its exception is raised here."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            answer = pickle.dumps((work(), None))
        except BaseException:
            answer = pickle.dumps((None, traceback.format_exc()))
        os.write(theirs, answer)
        os._exit(0)
    os.close(theirs)
    with open(ours, "rb") as file:
        value, failure = pickle.load(file)
    assert os.waitpid(pid, 0)[1] == 0
    assert failure is None, failure
    return value


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
    back, answer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.read(ours, 1)
        cache["b"] = cache["a"] + 1
        os.write(answer, b"x")
        cache.close()
        os._exit(0)
    cache.close()
    os.write(theirs, b"x")
    assert os.read(back, 1) == b"x"
    assert os.waitpid(pid, 0)[1] == 0
    for descriptor in (ours, theirs, back, answer):
        os.close(descriptor)
    with siltstone.Cache(tmp_path, **SMALL) as cache:
        assert cache["b"] == 2


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
            cache.clear()
            cache["x"] = 1
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
        stop = threading.Event()

        def write(name: int) -> None:
            number = 0
            while not stop.is_set():
                number += 1
                cache[name, number % 700] = bytes([name]) * (number % 5000)
                cache.get((name, number * 7 % 700))

        threads = [threading.Thread(target=write, args=(name,)) for name in range(3)]
        for thread in threads:
            thread.start()

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
            if kind != "shared":
                check_engine(cache)
            return cache.stats()["shards_reset"]

        try:
            for _ in range(8):
                assert in_child(work) == 0
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        check_engine(cache)


def test_leases_of_the_parent_do_not_bind_the_child() -> None:
    with siltstone.Cache(ram="4MiB", lease="60s") as cache:

        def compute() -> Any:
            return in_child(lambda: cache.get_or_set("k", lambda: "child's"))

        assert cache.get_or_set("k", compute) == "child's"


def test_a_child_that_finds_no_slot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from siltstone.cache import attachment

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
