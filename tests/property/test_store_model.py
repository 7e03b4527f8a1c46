"""A store under random use against sorted dicts: trees, batches, transactions, snapshots, restarts.

Pages, segments and cache are so small that splits, merges, page-outs, checkpoints and cleaning
happen all the time. Every difference is a defect of the store; the model is a dict and sorted().
"""

from __future__ import annotations

import io
import shutil
import tempfile
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
)
from storerig import TINY, Model, joined

import siltstone
from siltstone import errors

TREES = ("", "users", "ümlaut")
# Few keys, so that they meet; long shared prefixes; the empty key; bytes at the edges.
KEYS = st.one_of(
    st.sampled_from([b"", b"\x00", b"\xff", b"\xff\xff", b"a", b"a\x00"]),
    st.integers(0, 60).map(lambda n: b"key:%03d" % n),
    st.integers(0, 9).map(lambda n: b"long shared prefix " * 6 + b"%d" % n),
    st.binary(max_size=6),
)
VALUES = st.one_of(
    st.binary(max_size=20),
    st.integers(0, 5).map(lambda n: bytes([n]) * (40 * n)),
    st.integers(1, 3).map(lambda n: bytes([n]) * (7000 * n)),  # out of line
)
BOUND = st.none() | KEYS
RANGES = st.fixed_dictionaries(
    {},
    optional={
        "start": BOUND,
        "stop": BOUND,
        "prefix": st.none() | st.sampled_from([b"", b"key:", b"key:01", b"\xff", b"long shared"]),
        "reverse": st.booleans(),
        "include_start": st.booleans(),
        "include_stop": st.booleans(),
        "limit": st.none() | st.integers(0, 12),
    },
)


class StoreMachine(RuleBasedStateMachine):
    """Rules are operations; `trees` is what the store must hold."""

    snapshots = Bundle("snapshots")
    iterators = Bundle("iterators")

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="store-model-"))
        self.trees: dict[str, Model] = {"": Model()}
        self.ids: list[int] = []
        self.open()

    def open(self, **options: Any) -> None:
        self.store = siltstone.Store(self.directory / "store", **{**TINY, **options})
        self.store.set_merge(joined)

    def teardown(self) -> None:
        self.store.close()
        shutil.rmtree(self.directory)

    def tree(self, name: str) -> tuple[Any, Model]:
        """The tree and its model, made when missing."""
        if name == "":
            return self.store, self.trees[""]
        model = self.trees.setdefault(name, Model())
        tree = self.store.tree(name)
        tree.set_merge(joined)
        return tree, model

    @initialize(count=st.integers(0, 120))
    def fill(self, count: int) -> None:
        for number in range(count):
            key, value = b"key:%03d" % (number * 37 % 1000), b"v" * (number % 90)
            self.store[key] = value
            self.trees[""].pairs[key] = value

    # One key

    @rule(name=st.sampled_from(TREES), key=KEYS, value=VALUES, how=st.integers(0, 2))
    def set(self, name: str, key: bytes, value: bytes, how: int) -> None:
        tree, model = self.tree(name)
        if how == 0:
            tree[key] = value
        else:
            tree.set(key, value, durable=how == 1)
        model.pairs[key] = value

    @rule(name=st.sampled_from(TREES), key=KEYS)
    def read(self, name: str, key: bytes) -> None:
        tree, model = self.tree(name)
        assert tree.get(key) == model.pairs.get(key)
        assert tree.get(key, b"default") == model.pairs.get(key, b"default")
        assert (key in tree) is (key in model.pairs)
        if key in model.pairs:
            assert tree[key] == model.pairs[key]
        else:
            with pytest.raises(KeyError):
                tree[key]
        assert tree.next_after(key) == model.next_after(key)
        assert tree.last_before(key) == model.last_before(key)

    @rule(name=st.sampled_from(TREES), key=KEYS, how=st.integers(0, 2))
    def delete(self, name: str, key: bytes, how: int) -> None:
        tree, model = self.tree(name)
        there = key in model.pairs
        if how == 0:
            assert tree.delete(key) is there
        elif how == 1:
            assert tree.pop(key, None) == model.pairs.get(key)
        elif there:
            del tree[key]
        else:
            with pytest.raises(KeyError):
                del tree[key]
        model.pairs.pop(key, None)

    @rule(name=st.sampled_from(TREES), key=KEYS, value=VALUES)
    def set_default(self, name: str, key: bytes, value: bytes) -> None:
        tree, model = self.tree(name)
        assert tree.set_default(key, value) == model.pairs.setdefault(key, value)

    @rule(name=st.sampled_from(TREES), key=KEYS, new=st.none() | VALUES, guess=st.none() | VALUES)
    def compare_and_set(
        self, name: str, key: bytes, new: bytes | None, guess: bytes | None
    ) -> None:
        tree, model = self.tree(name)
        for old in (guess, model.pairs.get(key)):
            fits = model.pairs.get(key) == old
            assert tree.compare_and_set(key, old, new) is fits
            if fits and new is None:
                model.pairs.pop(key, None)
            elif fits and new is not None:
                model.pairs[key] = new

    @rule(name=st.sampled_from(TREES), key=KEYS, operand=st.sampled_from([b"x", b"yy", b"!", b"-"]))
    def merge(self, name: str, key: bytes, operand: bytes) -> None:
        tree, model = self.tree(name)
        tree.merge(key, operand)
        model.merge(key, operand)
        assert tree.get(key) == model.pairs.get(key)

    @rule(name=st.sampled_from(TREES), last=st.booleans())
    def pop_end(self, name: str, last: bool) -> None:
        tree, model = self.tree(name)
        found = model.items(reverse=last, limit=1)
        assert (tree.last() if last else tree.first()) == (found[0] if found else None)
        assert (tree.pop_last() if last else tree.pop_first()) == (found[0] if found else None)
        if found:
            del model.pairs[found[0][0]]

    # Ranges

    @rule(name=st.sampled_from(TREES), bounds=RANGES)
    def scan(self, name: str, bounds: dict[str, Any]) -> None:
        tree, model = self.tree(name)
        expected = model.items(**bounds)
        assert list(tree.items(**bounds)) == expected
        assert list(tree.keys(**bounds)) == [key for key, _ in expected]
        assert list(tree.values(**bounds)) == [value for _, value in expected]

    @rule(target=iterators, name=st.sampled_from(TREES), bounds=RANGES, taken=st.integers(0, 5))
    def begin_iterator(self, name: str, bounds: dict[str, Any], taken: int) -> Any:
        tree, model = self.tree(name)
        expected = iter(model.items(**bounds))
        iterator = iter(tree.items(**bounds))
        for _ in range(taken):
            assert next(iterator, None) == next(expected, None)
        return self.store, iterator, expected

    @rule(opened=consumes(iterators))
    def end_iterator(self, opened: Any) -> None:
        """It shows what was there when it began, whatever came since."""
        store, iterator, expected = opened
        if store is self.store:
            assert list(iterator) == list(expected)

    # Many keys

    CHANGES = st.lists(
        st.tuples(st.sampled_from(TREES), KEYS, st.none() | VALUES), min_size=1, max_size=25
    )

    @rule(changes=CHANGES, durable=st.none() | st.booleans(), commit=st.booleans())
    def batch(self, changes: list[Any], durable: bool | None, commit: bool) -> None:
        for name, _, _ in changes:
            self.tree(name)
        try:
            with self.store.batch(durable=durable) as batch:
                for name, key, value in changes:
                    part = batch.tree(name) if name else batch
                    if value is None:
                        part.delete(key)
                    else:
                        part[key] = value
                if not commit:
                    raise InterruptedError
        except InterruptedError:
            return
        for name, key, value in changes:
            if value is None:
                self.trees[name].pairs.pop(key, None)
            else:
                self.trees[name].pairs[key] = value

    @rule(changes=CHANGES, bounds=RANGES, commit=st.booleans())
    def transaction(self, changes: list[Any], bounds: dict[str, Any], commit: bool) -> None:
        for name in TREES:
            self.tree(name)
        own = {name: model.copy() for name, model in self.trees.items()}
        try:
            with self.store.transaction() as transaction:
                for name, key, value in changes:
                    part = transaction.tree(name) if name else transaction
                    assert part.get(key) == own[name].pairs.get(key)
                    if value is None:
                        assert part.delete(key) is (key in own[name].pairs)
                        own[name].pairs.pop(key, None)
                    else:
                        part[key] = value
                        own[name].pairs[key] = value
                    assert list(part.items(**bounds)) == own[name].items(**bounds)
                    assert len(part) == len(own[name].pairs)
                if not commit:
                    raise InterruptedError
        except InterruptedError:
            return
        self.trees = own

    @rule(key=KEYS, size=st.integers(0, 30_000))
    def stream(self, key: bytes, size: int) -> None:
        value = bytes(n * 7 & 255 for n in range(size))
        with self.store.open(key, "wb") as file:
            for start in range(0, size, 4099):
                file.write(value[start : start + 4099])
            assert self.store.get(key) == self.trees[""].pairs.get(key)
        self.trees[""].pairs[key] = value
        with self.store.open(key, "rb") as file:
            assert file.read(10) == value[:10]
            file.seek(size // 2)
            assert file.read() == value[size // 2 :]

    # Snapshots

    @rule(target=snapshots)
    def take_snapshot(self) -> Any:
        return (
            self.store,
            self.store.snapshot(),
            {name: model.copy() for name, model in self.trees.items()},
        )

    @rule(taken=snapshots, name=st.sampled_from(TREES), bounds=RANGES, key=KEYS)
    def read_snapshot(self, taken: Any, name: str, bounds: dict[str, Any], key: bytes) -> None:
        store, snapshot, models = taken
        if store is not self.store or name not in models:
            return
        view = snapshot.tree(name) if name else snapshot
        assert list(view.items(**bounds)) == models[name].items(**bounds)
        assert view.get(key) == models[name].pairs.get(key)
        assert len(view) == len(models[name].pairs)

    @rule(taken=consumes(snapshots))
    def close_snapshot(self, taken: Any) -> None:
        taken[1].close()
        with pytest.raises((errors.Closed, ValueError)):
            taken[1].get(b"a")

    # The whole store

    @rule()
    def drop_a_tree(self) -> None:
        for name in list(self.trees):
            if name:
                self.store.drop_tree(name)
                del self.trees[name]
                return

    @rule(checkpoint=st.booleans())
    def settle(self, checkpoint: bool) -> None:
        if checkpoint:
            self.store.checkpoint()
        else:
            self.store.sync()

    @rule()
    def restart(self) -> None:
        self.store.close()
        with pytest.raises(errors.Closed):
            self.store.get(b"a")
        self.open()
        assert self.store.was_recovered
        assert self.store.verify().problems == []

    @rule(target=snapshots)
    def dump_and_load(self) -> Any:
        file = io.BytesIO()
        self.store.dump(file)
        file.seek(0)
        with siltstone.Store(None, **TINY) as other:
            other.load(file)
            assert sorted(other.trees()) == sorted(name for name in self.trees if name)
            for name, model in self.trees.items():
                tree = other.tree(name) if name else other
                assert list(tree.items()) == model.items()
        return multiple()

    @rule()
    def generate_id(self) -> None:
        self.ids.append(self.store.generate_id())
        assert len(self.ids) == 1 or self.ids[-1] > self.ids[-2]

    @invariant()
    def same_size(self) -> None:
        assert len(self.store) == len(self.trees[""].pairs)
        assert sorted(self.store.trees()) == sorted(name for name in self.trees if name)


class SmallCacheMachine(StoreMachine):
    """The same with a cache of a few pages and a store that checks itself all the time."""

    def open(self, **options: Any) -> None:
        super().open(cache="16KiB", **options)

    @rule()
    def check(self) -> None:
        assert self.store.verify().problems == []


TestStore = StoreMachine.TestCase
TestStore.settings = settings(max_examples=40, stateful_step_count=40)
TestSmallCache = SmallCacheMachine.TestCase
TestSmallCache.settings = settings(max_examples=20, stateful_step_count=40)
