"""Tags: evict makes what was stored under a tag vanish, in RAM and on flash, for every process."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import siltstone


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[siltstone.Cache]:
    with siltstone.Cache(tmp_path, ram="4MiB", flash="32MiB") as opened:
        yield opened


def test_evict_takes_a_tag_s_items_and_counts_them(cache: siltstone.Cache) -> None:
    assert cache.evict("red") == 0
    for number in range(20):
        cache.set(f"red:{number}", number, tag="red")
        cache.set(f"blue:{number}", number, tag="blue", ttl=100)
        cache[f"none:{number}"] = number
    assert cache.evict("red") == 20
    assert cache.evict("red") == 0
    assert [key for key in cache if str(key).startswith("red")] == []
    assert cache.get_many([f"red:{number}" for number in range(20)]) == {}
    assert len(cache.get_many([f"blue:{number}" for number in range(20)])) == 20
    assert len(cache.get_many([f"none:{number}" for number in range(20)])) == 20
    assert cache.stats()["get_flushed"] == 20


def test_every_operation_sees_an_evicted_item_as_missing(cache: siltstone.Cache) -> None:
    def store() -> None:
        for key in "abcdefgh":
            cache.set(key, b"1", tag="t")
        cache.evict("t")

    store()
    assert "a" not in cache
    assert cache.replace("b", 2) is False
    assert cache.add("c", 2) is True
    assert cache.delete("d") is False
    assert cache.pop("e", 7) == 7
    with pytest.raises(KeyError):
        cache.incr("f")
    assert cache.append("g", b"2") is False
    assert cache.touch("h", 5) is False
    assert list(cache) == ["c"]


def test_what_is_stored_again_is_there(cache: siltstone.Cache) -> None:
    cache.set("k", 1, tag="t")
    cache.evict("t")
    cache.set("k", 2, tag="t")
    assert cache["k"] == 2
    cache.append("k", b"3")
    cache.touch("k", 100)
    assert cache.evict("t") == 1
    assert "k" not in cache


def test_a_tag_stays_with_its_item(cache: siltstone.Cache) -> None:
    cache.set("append", b"1", tag="t")
    cache.set("incr", 1, tag="t")
    cache.set("touch", 1, tag="t")
    cache.set("untagged", 1, tag="t")
    cache.append("append", b"2")
    cache.incr("incr")
    cache.touch("touch", 100)
    cache.set("untagged", 2)
    cache.evict("t")
    assert list(cache) == ["untagged"]


def test_items_on_flash(cache: siltstone.Cache) -> None:
    for number in range(4000):
        cache.set(f"a:{number}", bytes(2000), tag="even" if number % 2 == 0 else "odd")
    assert cache.stats()["items_flash"] > 1000
    assert cache.evict("even") == 2000
    found = cache.get_many([f"a:{number}" for number in range(4000)])
    assert len(found) == 2000
    assert all(int(str(key)[2:]) % 2 for key in found)
    assert len(list(cache)) == 2000


def test_expire_gives_the_memory_back() -> None:
    with siltstone.Cache(ram="4MiB") as cache:
        for number in range(200):
            cache.set(number, bytes(100), tag="t")
        cache.evict("t")
        assert cache.expire() == 200
        assert len(cache) == 0


def test_a_clean_stop_keeps_tags(tmp_path: Path) -> None:
    with siltstone.Cache(tmp_path, ram="4MiB", flash="32MiB") as cache:
        cache.set("old", 1, tag="t")
        cache.set("other", 1, tag="u")
        cache.evict("t")
        cache.set("new", 1, tag="t")
    with siltstone.Cache(tmp_path, ram="4MiB", flash="32MiB") as cache:
        assert "old" not in cache
        assert cache["new"] == cache["other"] == 1
        assert cache.evict("u") == 1
        cache.evict("t")
        assert list(cache) == []


def test_after_the_arena_was_lost_nothing_evicted_comes_back(tmp_path: Path) -> None:
    pid = os.fork()
    if pid == 0:
        cache = siltstone.Cache(tmp_path, ram="4MiB", flash="32MiB", arena="memfd")
        for number in range(3000):
            cache.set(f"evicted:{number}", bytes(1500), tag="t")
            cache[f"plain:{number}"] = bytes(1500)
        cache.flush()
        cache.evict("t")
        os._exit(0)  # as a kill does: nothing is closed, and a memfd ends with its process
    assert os.waitpid(pid, 0)[1] == 0
    with siltstone.Cache(tmp_path, ram="4MiB", flash="32MiB") as cache:
        keys = [str(key) for key in cache]
    assert len(keys) > 1000
    assert all(key.startswith("plain") for key in keys)


def test_more_tags_than_the_table_holds_never_bring_evicted_ones_back() -> None:
    rng = random.Random(1)
    with siltstone.Cache(ram="32MiB") as cache:
        evicted = set()
        for number in range(12000):
            cache.set(number, 1, tag=f"tag {number}")
            if rng.random() < 0.5:
                cache.evict(f"tag {number}")
                evicted.add(number)
        kept = [number for number in range(12000) if number in cache]
        assert not evicted & set(kept)
        assert len(kept) > 1000  # only those whose tag shares a bucket with many evicted ones go
        cache.set("now", 1, tag="tag 3")
        assert cache["now"] == 1


def test_threads_that_store_while_others_evict() -> None:
    with siltstone.Cache(ram="4MiB") as cache:
        wrong = []

        def work(name: str) -> None:
            for number in range(400):
                cache.set((name, number), 1, tag=name)
                if number % 50 == 49:
                    cache.evict(name)
                    wrong.extend(n for n in range(number + 1) if (name, n) in cache)

        threads = [threading.Thread(target=work, args=(f"t{n}",)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
