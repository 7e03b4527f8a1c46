"""Trees of a store: every call against a sorted dict, with the smallest pages, and restarts."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)
from storerig import Model

from siltstone.config import build
from siltstone.errors import (
    Closed,
    Conflict,
    InvalidKey,
    InvalidValue,
    KeyMissing,
    ReadOnly,
    SnapshotTooOld,
    TooLarge,
)
from siltstone.log.device import MemoryDevice
from siltstone.store.changes import Changes, Part
from siltstone.store.settings import PageSettings
from siltstone.store.tree import Tree, View
from siltstone.store.tree_check import check_trees
from siltstone.store.trees import Reads, TreePages

SMALL: dict[str, Any] = {"segment_size": "64KiB", "buffer_size": "8KiB", "cache": "64KiB"}


def memory(segments: int = 2048) -> MemoryDevice:
    return MemoryDevice(segments, 1 << 16, engine="store")


def opened(device: MemoryDevice, page_size: int = 256, **options: Any) -> tuple[TreePages, Tree]:
    pages = TreePages()
    pages.page_size, pages.part_size = page_size, 512
    given = SMALL | {"workers": 0} | options
    pages.open_with(build(PageSettings, given), device=device, background=False)
    return pages, bound(pages)


def bound(pages: TreePages, name: str = "") -> Tree:
    tree = Tree()
    tree._bind(pages, name, pages.tree_open(name, True))
    return tree


@pytest.fixture
def pages() -> Iterator[TreePages]:
    made, _ = opened(memory())
    yield made
    made.close()


@pytest.fixture
def tree(pages: TreePages) -> Tree:
    return bound(pages)


# Keys that meet, with long common beginnings, zeros and 0xFF.
PIECES = st.sampled_from(
    [b"", b"\x00", b"a", b"b", b"\xff", b"\xff\xff", b"long:common:beginning:"]
)
KEYS = st.lists(PIECES, max_size=4).map(b"".join)
VALUES = st.one_of(
    st.binary(max_size=12), st.sampled_from([b"x" * 80, b"y" * 81, b"z" * 700, b"w" * 9000])
)


class TreeModel(RuleBasedStateMachine):
    """Anything that one caller can do, and reopening."""

    @initialize(page_size=st.sampled_from([128, 256, 1024]), cache=st.sampled_from([16, 256]))
    def start(self, page_size: int, cache: int) -> None:
        self.options = {"page_size": page_size, "cache": cache << 10}
        self.device = memory()
        self.pages, self.tree = opened(self.device, **self.options)
        self.model = Model()
        self.snapshots: list[tuple[Any, Model]] = []
        self.iterators: list[tuple[Iterator[Any], list[Any]]] = []

    @rule(key=KEYS, value=VALUES)
    def set(self, key: bytes, value: bytes) -> None:
        self.tree.set(key, value)
        self.model.pairs[key] = value

    @rule(number=st.integers(0, 300), count=st.integers(1, 60), size=st.integers(0, 60))
    def set_many(self, number: int, count: int, size: int) -> None:
        for at in range(number, number + count):
            self.tree[b"n%04d" % at] = b"v" * size
            self.model.pairs[b"n%04d" % at] = b"v" * size

    @rule(number=st.integers(0, 300), count=st.integers(1, 100))
    def delete_many(self, number: int, count: int) -> None:
        for at in range(number, number + count):
            key = b"n%04d" % at
            assert self.tree.delete(key) == (self.model.pairs.pop(key, None) is not None)

    @rule(key=KEYS)
    def delete(self, key: bytes) -> None:
        if key in self.model.pairs:
            del self.model.pairs[key]
            del self.tree[key]
        else:
            with pytest.raises(KeyMissing):
                del self.tree[key]

    @rule(key=KEYS)
    def get(self, key: bytes) -> None:
        assert self.tree.get(key) == self.model.pairs.get(key)
        assert (key in self.tree) == (key in self.model.pairs)

    @rule(key=KEYS)
    def pop(self, key: bytes) -> None:
        assert self.tree.pop(key, None) == self.model.pairs.pop(key, None)

    @rule(key=KEYS, value=VALUES)
    def set_default(self, key: bytes, value: bytes) -> None:
        assert self.tree.set_default(key, value) == self.model.pairs.setdefault(key, value)

    @rule(key=KEYS, old=st.none() | VALUES, new=st.none() | VALUES, right=st.booleans())
    def compare_and_set(self, key: bytes, old: Any, new: Any, right: bool) -> None:
        present = self.model.pairs.get(key)
        if right:
            old = present
        assert self.tree.compare_and_set(key, old, new) == (old == present)
        if old == present:
            self.model.pairs.pop(key, None)
            if new is not None:
                self.model.pairs[key] = new

    @rule(reverse=st.booleans())
    def pop_end(self, reverse: bool) -> None:
        pairs = self.model.items(reverse=reverse, limit=1)
        found = self.tree.pop_last() if reverse else self.tree.pop_first()
        assert found == (pairs[0] if pairs else None)
        if found:
            del self.model.pairs[found[0]]

    @rule(
        changes=st.lists(st.tuples(KEYS, st.none() | VALUES), max_size=30),
        number=st.integers(0, 300),
        count=st.integers(0, 200),
        size=st.integers(0, 90),
    )
    def batch(self, changes: list[tuple[bytes, Any]], number: int, count: int, size: int) -> None:
        batch = Changes(self.pages)
        changes += [(b"n%04d" % at, b"b" * size) for at in range(number, number + count)]
        before = dict(self.model.pairs)
        for key, value in changes:
            if value is None:
                batch.delete(self.tree.root, key)
                self.model.pairs.pop(key, None)
            else:
                batch.set(self.tree.root, key, value)
                self.model.pairs[key] = value
        last = dict(changes)
        met = [key for key, value in last.items() if value is not None or key in before]
        assert batch.commit() == len(met)

    @rule(start=st.none() | KEYS, stop=st.none() | KEYS, prefix=st.none() | KEYS)
    def delete_range(self, start: Any, stop: Any, prefix: Any) -> None:
        gone = self.model.items(start, stop, prefix=prefix)
        assert self.tree.delete_range(start, stop, prefix=prefix) == len(gone)
        for key, _ in gone:
            del self.model.pairs[key]

    @rule(
        start=st.none() | KEYS,
        stop=st.none() | KEYS,
        prefix=st.none() | KEYS,
        reverse=st.booleans(),
        include_start=st.booleans(),
        include_stop=st.booleans(),
        limit=st.none() | st.integers(0, 40),
    )
    def ranges(self, **bounds: Any) -> None:
        expected = self.model.items(**bounds)
        assert list(self.tree.items(**bounds)) == expected
        assert list(self.tree.keys(**bounds)) == [key for key, _ in expected]
        assert list(self.tree.values(**bounds)) == [value for _, value in expected]

    @rule(key=KEYS)
    def neighbours(self, key: bytes) -> None:
        assert self.tree.next_after(key) == self.model.next_after(key)
        assert self.tree.last_before(key) == self.model.last_before(key)
        pairs = self.model.items()
        assert self.tree.first() == (pairs[0] if pairs else None)
        assert self.tree.last() == (pairs[-1] if pairs else None)

    @rule(keys=st.lists(KEYS, max_size=20))
    def get_many(self, keys: list[bytes]) -> None:
        found = {key: self.model.pairs[key] for key in keys if key in self.model.pairs}
        assert self.tree.get_many(keys) == found

    @precondition(lambda self: len(self.snapshots) < 3)
    @rule()
    def snapshot(self) -> None:
        self.snapshots.append((self.pages.snapshot(), self.model.copy()))

    @precondition(lambda self: len(self.iterators) < 3)
    @rule(reverse=st.booleans())
    def iterate(self, reverse: bool) -> None:
        self.iterators.append((self.tree.items(reverse=reverse), self.model.items(reverse=reverse)))

    @precondition(lambda self: self.iterators)
    @rule(data=st.data())
    def iterate_on(self, data: st.DataObject) -> None:
        found, expected = self.iterators.pop(
            data.draw(st.integers(0, len(self.iterators) - 1), label="which")
        )
        assert list(found) == expected

    @precondition(lambda self: self.snapshots)
    @rule(data=st.data(), reverse=st.booleans())
    def close_snapshot(self, data: st.DataObject, reverse: bool) -> None:
        snapshot, model = self.snapshots.pop(
            data.draw(st.integers(0, len(self.snapshots) - 1), label="which")
        )
        view = View(self.pages, "", self.tree.root, snapshot)
        assert len(view) == len(model.pairs)
        assert list(view.items(reverse=reverse)) == model.items(reverse=reverse)
        snapshot.close()
        with pytest.raises(Closed):
            view.get(b"a")

    @rule()
    def clear(self) -> None:
        assert self.tree.clear() == len(self.model.pairs)
        self.model.pairs.clear()

    @rule()
    def checkpoint(self) -> None:
        self.pages.checkpoint()
        while self.pages.step():
            pass

    @rule(clean=st.booleans())
    def reopen(self, clean: bool) -> None:
        self.iterators.clear()
        for snapshot, _ in self.snapshots:
            snapshot.close()
        self.snapshots.clear()
        self.pages.close()
        with pytest.raises(Closed):
            self.tree.get(b"a")
        self.pages, self.tree = opened(self.device, **self.options)
        assert self.pages.recovery.ok

    @invariant()
    def all_is_there(self) -> None:
        if hasattr(self, "tree"):
            assert len(self.tree) == len(self.model.pairs)
            assert list(self.tree.items()) == self.model.items()

    def teardown(self) -> None:
        if hasattr(self, "pages"):
            assert check_trees(self.pages) == []
            self.pages.close()


TreeModel.TestCase.settings = settings(max_examples=25, stateful_step_count=40, deadline=None)
TestTreeModel = TreeModel.TestCase


# What a model does not show -----------------------------------------------------------------


@pytest.mark.parametrize("order", ["up", "down", "spread"])
def test_pages_come_and_go_with_the_data(order: str) -> None:
    pages, tree = opened(memory(), cache="4MiB")
    numbers = list(range(3000))
    if order == "down":
        numbers.reverse()
    elif order == "spread":
        numbers = [number * 1009 % 3000 for number in numbers]
    for number in numbers:
        tree[b"%05d" % number] = b"v" * 30
    assert list(tree.keys()) == [b"%05d" % number for number in range(3000)]
    most = pages.stats()["cache_pages"]
    for number in numbers:
        assert tree.delete(b"%05d" % number)
    assert list(tree) == []
    assert pages.stats()["cache_pages"] <= 2 < most
    pages.close()


def test_long_keys_and_large_values(tree: Tree, pages: TreePages) -> None:
    key = b"k" * 7000
    tree[key] = b"v" * 100_000
    tree[key + b"x"] = b""
    tree[b""] = b"the empty key"
    assert list(tree) == [b"", key, key + b"x"]
    assert tree[key] == b"v" * 100_000
    with pytest.raises(TooLarge, match="buffer_size"):
        tree[b"k" * 9000] = b""
    with pytest.raises(InvalidKey, match="65536"):
        tree[b"k" * 65537] = b""
    pages.value_size_max = 1000
    with pytest.raises(TooLarge, match="1000"):
        tree[b"k"] = b"v" * 1001
    batch = Changes(pages)
    batch.set(tree.root, b"k", b"v" * 1001)
    with pytest.raises(TooLarge):
        batch.commit()


@pytest.mark.parametrize("key", ["text", 1, None])
def test_keys_and_values_are_bytes(tree: Tree, key: Any) -> None:
    with pytest.raises(InvalidKey, match="bytes"):
        tree.get(key)
    with pytest.raises(InvalidKey, match="bytes"):
        tree[key] = b""
    with pytest.raises(InvalidValue, match="bytes"):
        tree[b"k"] = key
    tree[bytearray(b"k")] = memoryview(b"v")  # type: ignore[index, assignment]
    assert tree[b"k"] == b"v"


def test_merge(tree: Tree) -> None:
    with pytest.raises(InvalidValue, match="set_merge"):
        tree.merge(b"k", b"1")
    tree.set_merge(lambda key, old, operand: None if operand is None else (old or b"") + operand)
    assert tree.merge(b"k", b"1") == b"1"
    assert tree.merge(b"k", b"2" * 1000) == b"1" + b"2" * 1000
    assert tree.merge(b"k", b"3") == b"1" + b"2" * 1000 + b"3"
    assert tree.merge(b"k", None) is None
    assert b"k" not in tree


def test_merges_of_several_threads_all_count(tree: Tree) -> None:
    tree.set_merge(lambda key, old, operand: b"%d" % (int(old or b"0") + operand))

    def add() -> None:
        for number in range(200):
            tree.merge(b"%d" % (number % 3), 1)

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(int(value) for value in tree.values()) == 800


def test_trees_are_apart_and_can_be_dropped(pages: TreePages) -> None:
    one, two = bound(pages, "one"), bound(pages, "two")
    for number in range(300):
        one[b"%d" % number] = two[b"%d" % number] = b"v" * (number * 7 % 900)
    assert pages.tree_names() == ["one", "two"]
    with pages.snapshot() as snapshot:
        assert pages.tree_drop("one")
        assert not pages.tree_drop("one")
        with pytest.raises(KeyMissing, match="dropped"):
            one.get(b"1")
        with pytest.raises(KeyMissing, match="dropped"):
            one[b"1"] = b""
        with pytest.raises(KeyMissing):
            pages.tree_open("one", False)
        again = bound(pages, "one")
        assert len(again) == 0
        view = View(pages, "one", pages.tree_open("one", False, snapshot), snapshot)
        assert len(view) == len(list(view)) == 300
        assert view[b"299"] == b"v" * (299 * 7 % 900)
    assert len(list(two)) == 300


def test_a_change_set_over_trees_and_what_it_says(pages: TreePages) -> None:
    one, two = bound(pages, "one"), bound(pages, "two")
    one[b"gone"] = b"1"
    batch = Changes(pages)
    part = Part()
    part._bind(batch, one.root)
    part[b"a"], part[b"c"] = b"1", b"3"
    del part[b"gone"]
    del part[b"never"]
    batch.set(two.root, b"b", b"2" * 5000)
    assert len(batch) == 5
    assert batch.get(one.root, b"a") == b"1"
    assert batch.get(one.root, b"gone", 0) is None
    assert batch.get(one.root, b"other", 0) == 0
    assert list(batch.items(one.root, b"a", b"gone", reverse=True)) == [(b"c", b"3"), (b"a", b"1")]
    assert list(batch.items(one.root, prefix=b"g")) == [(b"gone", None)]
    assert dict(one.items()) == {b"gone": b"1"}
    assert batch.commit() == 4
    assert dict(one.items()) == {b"a": b"1", b"c": b"3"}
    assert two[b"b"] == b"2" * 5000
    with pytest.raises(Closed):
        part[b"late"] = b""


@pytest.mark.parametrize(
    "other",
    [
        lambda tree: tree.set(b"read", b"2"),
        lambda tree: tree.set(b"absent", b"2"),
        lambda tree: tree.delete(b"read"),
        lambda tree: tree.clear(),
    ],
)
def test_what_was_read_must_not_change(pages: TreePages, tree: Tree, other: Any) -> None:
    tree[b"read"] = b"1"
    with pages.snapshot() as snapshot:
        reads = Reads(pages)
        view = View(pages, "", tree.root, snapshot, reads)
        assert view[b"read"] == b"1"
        assert b"absent" not in view
        other(tree)
        batch = Changes(pages)
        batch.set(tree.root, b"written", b"")
        with pytest.raises(Conflict):
            batch.commit(reads=reads)
    assert b"written" not in tree
    assert pages.conflict_count == 1


def test_a_range_that_was_read_has_no_phantoms(pages: TreePages, tree: Tree) -> None:
    for number in range(200):
        tree[b"%04d" % number] = b"v" * 20
    with pages.snapshot() as snapshot:
        reads = Reads(pages)
        view = View(pages, "", tree.root, snapshot, reads)
        assert len(list(view.keys(b"0050", b"0100"))) == 50
        tree[b"0190"] = b"elsewhere"
        first, second = Changes(pages), Changes(pages)
        first.set(tree.root, b"a", b"")
        first.commit(reads=reads)
        tree[b"0075x"] = b"phantom"
        second.set(tree.root, b"b", b"")
        with pytest.raises(Conflict):
            second.commit(reads=reads)
    assert b"a" in tree
    assert b"b" not in tree


def test_a_snapshot_over_its_budget_ends_and_writers_go_on() -> None:
    pages, tree = opened(memory(), snapshot_bytes_max="16KiB", cache="1MiB")
    for number in range(500):
        tree[b"%d" % number] = b"v" * 40
    with pages.snapshot() as snapshot:
        view = View(pages, "", tree.root, snapshot)
        iterator = iter(tree)
        next(iterator)
        for number in range(500):
            tree[b"%d" % number] = b"w" * 40
        with pytest.raises(SnapshotTooOld):
            list(view.items())
        with pytest.raises(SnapshotTooOld):
            list(iterator)
    assert set(tree.values()) == {b"w" * 40}
    pages.close()


def test_watchers_hear_of_what_changed(pages: TreePages, tree: Tree) -> None:
    class Watchers:
        def __init__(self) -> None:
            self.held, self.heard = 0, []

        def acquire(self) -> None:
            self.held += 1

        def release(self) -> None:
            self.held -= 1

        def publish(self, events: list[Any]) -> None:
            assert self.held == 1
            self.heard += events

    pages.watchers = watchers = Watchers()
    named = bound(pages, "named")
    tree[b"a"] = b"1"
    assert not tree.compare_and_set(b"a", b"2", b"3")
    assert tree.compare_and_set(b"none", None, None)
    tree.set_default(b"a", b"4")
    tree.delete(b"b")
    batch = Changes(pages)
    batch.delete(tree.root, b"a")
    batch.delete(tree.root, b"c")
    batch.set(named.root, b"d", b"5" * 1000)
    batch.commit()
    assert watchers.held == 0
    assert watchers.heard == [("", b"a", b"1"), ("", b"a", None), ("named", b"d", b"5" * 1000)]


def test_a_merge_function_that_raises_changes_nothing(tree: Tree) -> None:
    def raises(key: bytes, old: Any, operand: Any) -> bytes:
        raise ZeroDivisionError

    tree[b"k"] = b"1"
    tree.set_merge(raises)
    with pytest.raises(ZeroDivisionError):
        tree.merge(b"k", b"2")
    tree.set_merge(lambda *_: "text")  # type: ignore[arg-type, return-value]
    with pytest.raises(InvalidValue):
        tree.merge(b"k", b"2")
    assert tree[b"k"] == b"1"


@pytest.fixture
def quick_switches() -> Iterator[None]:
    """Threads that compute take turns often: more ways to meet, and nobody waits long."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(0.0002)
    yield
    sys.setswitchinterval(usual)


@pytest.mark.usefixtures("quick_switches")
def test_readers_and_writers_at_once(pages: TreePages, tree: Tree) -> None:
    """Pairs that are always written together are always seen together."""
    for number in range(100):
        tree[b"a%03d" % number] = tree[b"b%03d" % number] = b"0"
    stop, seen = threading.Event(), []

    def write(offset: int) -> None:
        for turn in range(60):
            batch = Changes(pages)
            for number in range(offset, 100, 2):
                value = b"%d" % turn * (turn % 9 + 1)
                batch.set(tree.root, b"a%03d" % number, value)
                batch.set(tree.root, b"b%03d" % number, value)
            batch.commit()

    def read() -> None:
        while not stop.is_set():
            found = dict(tree.items())
            seen.append(
                len(found) == 200
                and all(found[b"a%03d" % at] == found[b"b%03d" % at] for at in range(100))
            )

    writers = [threading.Thread(target=write, args=(offset,)) for offset in (0, 1)]
    readers = [threading.Thread(target=read) for _ in range(2)]
    for thread in writers + readers:
        thread.start()
    for thread in writers:
        thread.join()
    stop.set()
    for thread in readers:
        thread.join()
    assert seen
    assert all(seen)


def test_read_only(tmp_path: Any) -> None:
    settings = build(PageSettings, SMALL | {"path": tmp_path})
    pages = TreePages()
    pages.open_with(settings, background=False)
    bound(pages)[b"k"] = b"v"
    pages.close()
    pages = TreePages()
    pages.open_with(
        build(PageSettings, SMALL | {"path": tmp_path, "read_only": True}), background=False
    )
    tree = Tree()
    tree._bind(pages, "", pages.tree_open("", False))
    assert tree[b"k"] == b"v"
    with pytest.raises(ReadOnly):
        tree[b"k"] = b"w"
    batch = Changes(pages)
    batch.set(tree.root, b"k", b"w")
    with pytest.raises(ReadOnly):
        batch.commit()
    pages.close()


def test_a_check_names_what_cannot_be_read(tmp_path: Any) -> None:
    settings = build(PageSettings, SMALL | {"path": tmp_path})
    pages = TreePages()
    pages.page_size = 256
    pages.open_with(settings, background=False)
    tree = bound(pages)
    for number in range(400):
        tree[b"%04d" % number] = b"here is value %04d" % number
    assert check_trees(pages) == []
    pages.close()
    data = bytearray((tmp_path / "data").read_bytes())
    at = data.index(b"here is value 0123")
    while at >= 0:  # every copy of it
        data[at] ^= 1
        at = data.find(b"here is value 0123", at + 1)
    (tmp_path / "data").write_bytes(data)
    pages = TreePages()
    pages.page_size = 256
    pages.open_with(settings, background=False)
    problems = check_trees(pages)
    assert problems
    assert all(problem.startswith("tree ''") for problem in problems)
    pages.close()
