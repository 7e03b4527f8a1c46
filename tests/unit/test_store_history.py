"""Threads: transactions are serializable, writes are not lost, iterators are snapshots.

Every transaction reads some keys and ranges and writes values that name it. From what was read,
and from which value each write replaced, follows who must come before whom; a cycle in that graph
would mean that no order of the transactions explains what they saw.
"""

from __future__ import annotations

import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest
from storerig import TINY

import siltstone
from siltstone import errors

KEYS = [b"k%02d" % number for number in range(24)]
THREADS = 4


def run_threads(*work: Callable[[], None]) -> None:
    failures: list[BaseException] = []

    def guarded(function: Callable[[], None]) -> None:
        try:
            function()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(function,)) for function in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not any(thread.is_alive() for thread in threads), "deadlock"
    if failures:
        raise failures[0]


class Record:
    """What one committed transaction saw (key: writer or None) and replaced."""

    def __init__(self, name: bytes) -> None:
        self.name = name
        self.saw: dict[bytes, bytes | None] = {}
        self.wrote: dict[bytes, bytes | None] = {}  # key: the writer whose value it replaced


def one_transaction(store: Any, rng: random.Random, name: bytes) -> Record:
    record = Record(name)
    with store.transaction() as transaction:
        for key in rng.sample(KEYS, 3):
            record.saw[key] = transaction.get(key)
        if rng.random() < 0.6:
            start, stop = sorted(rng.sample(KEYS, 2))
            found = dict(transaction.items(start, stop))
            for key in KEYS:
                if start <= key < stop:  # absence was seen, too
                    record.saw.setdefault(key, found.get(key))
        for key in rng.sample(KEYS, rng.choice([0, 1, 1, 2])):
            replaced = transaction.get(key)
            record.saw.setdefault(key, replaced)
            record.wrote[key] = replaced
            transaction[key] = name
        if rng.random() < 0.2:
            time.sleep(0)
    return record


def edges_of(records: list[Record]) -> dict[bytes, set[bytes]]:
    """before -> after: who wrote what was read or replaced; who replaced what was read."""
    next_writer = {
        (key, replaced): record.name for record in records for key, replaced in record.wrote.items()
    }
    after: dict[bytes, set[bytes]] = defaultdict(set)
    for record in records:
        for key, writer in record.saw.items():
            if writer is not None:
                after[writer].add(record.name)
            follower = next_writer.get((key, writer))
            if follower is not None and follower != record.name:
                after[record.name].add(follower)
    return after


def find_cycle(after: dict[bytes, set[bytes]]) -> list[bytes]:
    """The names that stay when whoever has nobody before is taken away again and again."""
    before_count: dict[bytes, int] = defaultdict(int)
    for followers in after.values():
        for name in followers:
            before_count[name] += 1
    free = [name for name in after if before_count[name] == 0]
    left = set(after) | set(before_count)
    while free:
        name = free.pop()
        left.discard(name)
        for follower in after.get(name, ()):
            before_count[follower] -= 1
            if before_count[follower] == 0:
                free.append(follower)
    return sorted(left)


def test_the_checker_sees_a_write_skew():
    one, two = Record(b"1"), Record(b"2")
    one.saw, one.wrote = {b"a": None, b"b": None}, {b"a": None}
    two.saw, two.wrote = {b"a": None, b"b": None}, {b"b": None}
    assert find_cycle(edges_of([one, two])) == [b"1", b"2"]
    two.saw[b"a"] = b"1"
    assert find_cycle(edges_of([one, two])) == []


@pytest.mark.slow
@pytest.mark.parametrize("path", [None, "store"])
def test_history_of_conflicting_transactions_is_serializable(path, tmp_path, seed, thorough):
    records: list[Record] = []
    conflicts = [0]
    seconds = 60.0 if thorough else 2.0
    with siltstone.Store(path and tmp_path / path, **TINY) as store:
        end = time.monotonic() + seconds

        def work(number: int) -> None:
            rng, turn = random.Random(f"{seed} {number}"), 0
            while time.monotonic() < end:
                turn += 1
                name = b"%d.%d" % (number, turn)
                # an open iterator must not stand in anybody's way
                iterator = iter(store.items())
                next(iterator, None)
                try:
                    records.append(one_transaction(store, rng, name))
                except errors.Conflict:
                    conflicts[0] += 1

        run_threads(*[lambda number=number: work(number) for number in range(THREADS)])
        assert store.verify().problems == []
        last = dict(store.items())
    assert len(records) > 100
    assert find_cycle(edges_of(records)) == []
    written = {(key, record.name) for record in records for key in record.wrote}
    assert all((key, value) in written for key, value in last.items())


def test_write_skew_is_a_conflict():
    with siltstone.Store(None) as store:
        store[b"a"] = store[b"b"] = b"1"
        first, second = store.transaction(), store.transaction()
        for transaction, key in ((first, b"a"), (second, b"b")):
            assert transaction.get(b"a") == transaction.get(b"b") == b"1"
            transaction[key] = b"0"
        first.commit()
        with pytest.raises(errors.Conflict):
            second.commit()
        assert (store[b"a"], store[b"b"]) == (b"0", b"1")


def test_a_phantom_is_a_conflict():
    with siltstone.Store(None) as store:
        first = store.transaction()
        assert list(first.items(prefix=b"user:")) == []
        first[b"count"] = b"0"
        store[b"user:1"] = b"Ann"
        with pytest.raises(errors.Conflict):
            first.commit()
        assert b"count" not in store


def test_an_absent_key_that_comes_is_a_conflict():
    with siltstone.Store(None) as store:
        transaction = store.transaction()
        assert transaction.get(b"k") is None
        transaction[b"other"] = b"x"
        store[b"k"] = b"v"
        with pytest.raises(errors.Conflict):
            transaction.commit()


def test_reading_alone_never_conflicts():
    with siltstone.Store(None) as store:
        store[b"a"] = b"1"
        with store.transaction() as transaction:
            assert transaction[b"a"] == b"1"
            store[b"a"] = b"2"
            assert transaction[b"a"] == b"1"


def test_transact_counts_without_losing_any():
    with siltstone.Store(None) as store:
        store[b"n"] = b"0"

        def add(transaction: Any) -> int:
            number = int(transaction[b"n"]) + 1
            transaction[b"n"] = b"%d" % number
            return number

        def work() -> None:
            for _ in range(100):
                store.transact(add, attempts=10_000)

        run_threads(*[work] * THREADS)
        assert store[b"n"] == b"%d" % (100 * THREADS)


def test_transact_gives_up_after_its_attempts_and_passes_other_errors():
    with siltstone.Store(None) as store:
        calls = [0]

        def always_late(transaction: Any) -> None:
            calls[0] += 1
            transaction[b"mine"] = transaction.get(b"n", b"")
            store[b"n"] = b"%d" % calls[0]

        with pytest.raises(errors.Conflict):
            store.transact(always_late, attempts=3)
        assert calls[0] == 3
        with pytest.raises(ZeroDivisionError):
            store.transact(lambda transaction: 1 // 0)
        assert b"mine" not in store


def test_concurrent_batches_are_whole(seed):
    """32 batches over the same keys from several threads: one of them is there, whole."""
    with siltstone.Store(None, **TINY) as store:
        keys = [b"%04d" % number for number in range(120)]

        def work(number: int) -> None:
            for turn in range(4):
                with store.batch() as batch:
                    for key in keys:
                        batch[key] = b"%d.%d" % (number, turn)
                        batch.tree("copy")[key] = b"%d.%d" % (number, turn)
                with store.snapshot() as snapshot:
                    seen = set(snapshot.values())
                    assert len(seen) == 1
                    assert set(snapshot.tree("copy").values()) == seen

        run_threads(*[lambda number=number: work(number) for number in range(THREADS)])
        assert len(set(store.values())) == 1
        assert len(store) == len(store.tree("copy")) == 120


def test_compare_and_set_and_merge_lose_no_update():
    with siltstone.Store(None) as store:
        store.set_merge(lambda key, old, operand: b"%d" % (int(old or 0) + int(operand)))

        def swap() -> None:
            for _ in range(200):
                while True:
                    old = store.get(b"cas")
                    if store.compare_and_set(b"cas", old, b"%d" % (int(old or 0) + 1)):
                        break

        def merge() -> None:
            for _ in range(200):
                store.merge(b"merge", b"1")

        run_threads(swap, swap, merge, merge)
        assert store[b"cas"] == store[b"merge"] == b"400"


def test_iterators_show_one_moment_under_writers(seed):
    """Keys move in pairs; a scan that saw half of a pair would not add up."""
    with siltstone.Store(None, **TINY) as store:
        with store.batch() as batch:
            for number in range(400):
                batch[b"%04d" % number] = b"100"
        stop = threading.Event()

        def move() -> None:
            rng = random.Random(seed)
            while not stop.is_set():
                with store.transaction() as transaction:
                    a, b = (b"%04d" % number for number in rng.sample(range(400), 2))
                    amount = rng.randrange(50)
                    transaction[a] = b"%d" % (int(transaction[a]) - amount)
                    transaction[b] = b"%d" % (int(transaction[b]) + amount)

        def read() -> None:
            try:
                for turn in range(40):
                    values = list(store.values(reverse=turn % 2 == 1))
                    assert len(values) == 400
                    assert sum(map(int, values)) == 40_000
            finally:
                stop.set()

        run_threads(move, read)


def test_watches_see_the_order_of_commits():
    with siltstone.Store(None, **TINY) as store:
        watch = store.watch()

        def work(number: int) -> None:
            for turn in range(200):
                store[b"shared"] = b"%d.%d" % (number, turn)
                store[b"own %d" % number] = b"%d" % turn

        run_threads(*[lambda number=number: work(number) for number in range(THREADS)])
        last = store[b"shared"]
        watch.close()
        events = list(watch)
        assert len(events) == 2 * 200 * THREADS
        assert [event.value for event in events if event.key == b"shared"][-1] == last
        for number in range(THREADS):
            own = [event.value for event in events if event.key == b"own %d" % number]
            assert own == [b"%d" % turn for turn in range(200)]
