"""Batches of every size: one commit each, pages in shape, and nobody waits for a large one."""

from __future__ import annotations

import random
import threading
from typing import Any

import pytest
from fakes import FaultDevice
from storerig import Model, contents, on_device

import siltstone
from siltstone.log.device import MemoryDevice

WAIT_S = 20


def device(segments: int = 1500) -> MemoryDevice:
    return MemoryDevice(segments, 16384, engine="store")


def in_thread(work: Any) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def key(number: int) -> bytes:
    return b"%06d" % number


@pytest.mark.parametrize("size", [1, 30, 700, 6000])
def test_batches_of_any_size_against_a_dict(size):
    """Sets and deletions over and between what is there; values of every kind; restarts."""
    rng = random.Random(size)
    model = Model()
    medium = device()
    for _ in range(2):
        with on_device(medium) as store:
            for _ in range(3):
                with store.batch() as batch:
                    for _ in range(size):
                        name = key(rng.randrange(2 * size))
                        if rng.random() < 0.3:
                            batch.delete(name)
                            model.pairs.pop(name, None)
                        else:
                            value = rng.randbytes(rng.choice([0, 5, 20, 20, 60, 100, 900]))
                            batch[name] = model.pairs[name] = value
                assert list(store.items()) == model.items()
                assert len(store) == len(model.pairs)
            assert store.verify().problems == []
            store._pages.check_invariants()


@pytest.mark.parametrize("order", ["up", "down", "spread"])
def test_pages_of_a_batch_are_full_and_none_is_too_large(order):
    numbers = list(range(5000))
    if order == "down":
        numbers.reverse()
    elif order == "spread":
        random.Random(1).shuffle(numbers)
    with siltstone.Store(page_size=1024, cache="64MiB", background=False) as store:
        for start in range(0, 5000, 1250):
            with store.batch() as batch:
                for number in numbers[start : start + 1250]:
                    batch[key(number)] = b"v" * 50
        pages = store.stats()["cache_pages"]
        bytes_in_all = 5000 * (6 + 50 + 4)
        assert bytes_in_all / 1024 < pages < 2.2 * bytes_in_all / 1024
        with store.batch() as batch:
            for number in range(5000):
                batch.delete(key(number))
        assert store.stats()["cache_pages"] <= 3
        assert len(store) == 0


def test_keys_as_long_as_pages_in_one_batch():
    """Inner pages that hold two keys: many levels at once."""
    with on_device(device()) as store:
        pairs = {b"k" * 300 + b"%03d" % number * 60: b"%d" % number for number in range(300)}
        store.update(pairs)
        assert contents(store)[""] == pairs
        assert store.verify().problems == []


def test_one_large_batch_is_as_quick_as_its_records(tmp_path):
    """Far more than the buffers hold, into nothing, then over everything."""
    with siltstone.Store(tmp_path / "store") as store:
        for turn in range(2):
            store.update(
                {key(number * 7919 % 20_000): b"%d" % turn * 50 for number in range(20_000)}
            )
            assert len(store) == 20_000
            assert store[key(77)] == b"%d" % turn * 50
        assert store.verify().ok


def test_values_far_larger_than_all_buffers(tmp_path):
    with on_device(device()) as store:
        store[b"one"] = b"1" * 3_000_000
        with store.batch() as batch:
            batch[b"one"], batch[b"two"] = b"", b"2" * 3_000_000
        assert (store[b"one"], store[b"two"]) == (b"", b"2" * 3_000_000)


def test_trees_that_several_batches_make_at_once_are_one_each():
    """Large ones are prepared without the lock: who commits second finds the tree made, or gone."""
    with siltstone.Store(cache="64MiB", background=False) as store:
        start = threading.Barrier(3)

        def make(part: int) -> None:
            for turn in range(8):
                start.wait(WAIT_S)
                with store.batch() as batch:
                    tree = batch.tree(f"tree {turn}")
                    tree.update({b"%d:%05d" % (part, number): b"v" for number in range(1500)})

        makers = [in_thread(lambda part=part: make(part)) for part in range(3)]
        for maker in makers:
            maker.join()
        assert store.trees() == [f"tree {turn}" for turn in range(8)]
        for name in store.trees():
            assert len(store.tree(name)) == len(list(store.tree(name))) == 4500
        assert store.verify().problems == []
        store._pages.check_invariants()


def test_a_large_batch_that_waits_for_the_device_holds_up_no_reader():
    medium = FaultDevice(device())
    waits, goes_on = threading.Event(), threading.Event()
    with on_device(medium) as store:
        store.update({key(number): b"before" for number in range(50)})
        medium.add(
            "write",
            before=lambda: (waits.set(), goes_on.wait(WAIT_S)),
            last=medium.calls["write"] + 1,
        )
        pairs = {key(number): b"after" * 30 for number in range(1000)}
        writer = in_thread(lambda: store.update(pairs))
        assert waits.wait(WAIT_S)
        seen: list[Any] = []
        reader = in_thread(lambda: seen.extend([store[key(7)], list(store.values()), len(store)]))
        reader.join(WAIT_S)
        still = writer.is_alive()
        goes_on.set()
        writer.join()
        assert seen == [b"before", [b"before"] * 50, 50]
        assert still
        assert dict(store.items()) == pairs


def test_a_store_that_waits_for_its_device_holds_up_no_other():
    medium = FaultDevice(device())
    waits, goes_on = threading.Event(), threading.Event()
    with on_device(medium) as store, on_device(device()) as other:
        medium.add("sync", before=lambda: (waits.set(), goes_on.wait(WAIT_S)))
        writer = in_thread(lambda: store.set(b"k", b"v", durable=True))
        assert waits.wait(WAIT_S)

        def use() -> None:
            for number in range(300):
                other.set(key(number), b"v" * 100, durable=number % 50 == 0)
            with other.transaction() as transaction:
                transaction[b"n"] = b"%d" % len(other)
            other.checkpoint()
            assert other.verify().ok

        user = in_thread(use)
        user.join(WAIT_S)
        done, still = not user.is_alive(), writer.is_alive()
        goes_on.set()
        writer.join()
        assert done
        assert still
        assert store[b"k"] == b"v"
        assert other[b"n"] == b"300"


@pytest.mark.parametrize("times", [1, 8])
def test_a_large_batch_whose_pages_others_change_is_made_in_the_end(times):
    """While it loads one page, another that it had dealt with is changed: it begins anew."""
    medium = FaultDevice(device())
    pairs = {key(number): b"before" * 10 for number in range(3000)}
    with on_device(medium) as store:
        store.update(pairs)
    with on_device(medium) as store:
        store[key(2)] = b"its page is in memory"
        todo = list(range(times))

        def meddle() -> None:
            if todo:
                store[key(2)] = b"%d" % todo.pop()

        medium.add("read", before=meddle, last=medium.calls["read"] + 100_000)
        after = {key(number): b"after" * 20 for number in range(1, 3000, 2)}
        with store.batch() as batch:
            batch.update(after)
            batch[key(2)] = b"batch"
        assert not todo
        assert 1 <= store.stats()["restarts"] <= times
        assert dict(store.items()) == pairs | after | {key(2): b"batch"}
        assert store.verify().problems == []
        store._pages.check_invariants()


def test_changes_of_one_page_that_no_write_buffer_holds():
    """A page of 12 KiB stays one, and what changes in it takes several fragments."""
    medium = device()
    pairs = {key(number): b"before" * 10 for number in range(110)}
    with on_device(medium, page_size=12288) as store:
        store.update(pairs)
        changes = {key(number): b"after" * 12 for number in range(80)}
        pairs |= changes
        pages = store.stats()["pages_written_bytes"]
        store.update(changes)
        assert store.stats()["pages_written_bytes"] == pages
    with on_device(medium, page_size=12288) as store:
        assert dict(store.items()) == pairs
        assert store.verify().problems == []


def test_runs_worked_on_without_the_lock_beside_others(seed, tmp_path):
    """Thousands of changes in one leaf, some in those behind it, which others cut meanwhile."""
    rng = random.Random(seed)
    pairs = {key(number * 1000): b"there" * 8 for number in range(400)}
    going, near = True, 0

    def meddle() -> None:
        number = 0
        while going:
            name = key((near + 1 + number % 9) * 1000) + b"%06d" % (number * 7919 % 999_983)
            store[name] = pairs[name] = b"other" * 8
            number += 1

    with siltstone.Store(tmp_path, page_size=256) as store:
        store.update(pairs)
        other = in_thread(meddle)
        try:
            for turn in range(6):
                near = rng.randrange(380)
                changes = {key(near * 1000 + 1) + b"%05d" % n: b"new" * 10 for n in range(15_000)}
                changes |= {key(n * 1000) + b"~": b"%d" % turn for n in range(400)}
                store.update(changes)
                pairs.update(changes)
        finally:
            going = False
            other.join()
        assert dict(store.items()) == pairs
        assert len(store) == len(pairs)
        assert store.verify().problems == []
        store._pages.check_invariants()
