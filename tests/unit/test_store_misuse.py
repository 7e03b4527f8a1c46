"""What a user may get wrong with a store and a page cache: an error that says so, nothing lost."""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from storerig import TINY

import siltstone
from siltstone import errors


class Joined:
    def merge(self, fragments: Sequence[bytes]) -> bytes:
        return b"".join(fragments)


@pytest.fixture
def store() -> Any:
    with siltstone.Store(None, **TINY) as opened:
        yield opened


# Trees ----------------------------------------------------------------------------------------


def test_the_stores_own_tree_cannot_be_dropped(store):
    store[b"a"] = b"1"
    with pytest.raises(errors.InvalidKey):
        store.drop_tree("")
    assert store[b"a"] == b"1"


@pytest.mark.parametrize("name", ["\0a", "\0" + 8 * "x", "\ud800", None, 5, b"a", ["a"], {}])
def test_names_that_trees_cannot_have(store, name):
    for ask in (store.tree, store.drop_tree, store.batch().tree, store.snapshot().tree):
        with pytest.raises(errors.InvalidKey):
            ask(name)
    with store.transaction() as transaction, pytest.raises(errors.InvalidKey):
        transaction.tree(name)
    assert store.trees() == []


@pytest.mark.parametrize("again", [False, True])
def test_a_tree_that_was_dropped_takes_nothing(store, again):
    tree = store.tree("t")
    tree[b"a"] = b"1"
    store.drop_tree("t")
    if again:
        store.tree("t")[b"new"] = b"2"
    for change in (
        lambda: tree.update({b"b": b"3"}),
        lambda: tree.set(b"b", b"3"),
        lambda: tree.delete_range(),
        tree.clear,
    ):
        with pytest.raises(errors.KeyMissing, match="was dropped"):
            change()
    assert store.trees() == (["t"] if again else [])
    assert not again or dict(store.tree("t")) == {b"new": b"2"}


def test_a_tree_says_what_it_is(store):
    assert repr(store.tree("users")) == "<tree 'users' of Store(None)>"


# Merging --------------------------------------------------------------------------------------


def test_a_merge_function_may_change_other_records_of_its_leaf(store):
    calls = []

    def noting(key: bytes, old: bytes | None, operand: bytes) -> bytes:
        calls.append(old)
        store[b"log%d" % len(calls)] = key
        return (old or b"") + operand

    store.set_merge(noting)
    assert store.merge(b"k", b"1") == b"1"
    assert store.merge(b"k", b"2") == b"12"
    assert calls == [None, b"1"]
    assert dict(store) == {b"k": b"12", b"log1": b"k", b"log2": b"k"}


@pytest.mark.parametrize("size", [10, 300])
def test_a_merge_function_that_changes_its_own_record_ends(store, size):
    turns = iter(range(10**6))

    def foolish(key: bytes, old: bytes | None, operand: bytes) -> bytes:
        store[key] = b"%d" % next(turns) * size
        return operand

    store.set_merge(foolish)
    with pytest.raises(errors.Conflict, match="1000 times"):
        store.merge(b"k", b"1")
    store.set_merge(lambda key, old, operand: operand)
    assert store.merge(b"k", b"1") == b"1"


@pytest.mark.parametrize("size", [10, 10_000])
def test_merging_small_and_large_values(store, size):
    store.set_merge(lambda key, old, operand: (old or b"") + operand)
    for number in range(5):
        store.merge(b"k", b"%d" % number * size)
    assert store[b"k"] == b"".join(b"%d" % number * size for number in range(5))


# Ranges ---------------------------------------------------------------------------------------


def test_limits_are_whole_numbers(store):
    for number in range(5):
        store[b"%d" % number] = b""
    with store.snapshot() as snapshot, store.transaction() as transaction:
        for tree in (store, snapshot, transaction):
            for limit in (-1, 2.5, "2", b"2"):
                with pytest.raises(errors.InvalidValue, match="limit"):
                    tree.items(limit=limit)
            assert len(list(tree.items(limit=1 << 80))) == 5
            assert list(tree.items(limit=0)) == []


def test_iterators_end_with_their_snapshot_and_transaction(store):
    store.update((b"%d" % number, b"") for number in range(5))
    with store.snapshot() as snapshot, store.transaction() as transaction:
        iterators = [iter(snapshot.items()), iter(snapshot.keys()), iter(transaction.items())]
        for iterator in iterators:
            next(iterator)
    for iterator in iterators:
        with pytest.raises(errors.Closed):
            next(iterator)


@pytest.mark.parametrize("key", [None, "a", 5])
def test_neighbours_of_what_is_no_key(store, key):
    store[b"a"] = b"1"
    with store.snapshot() as snapshot, store.transaction() as transaction:
        for tree in (store, snapshot, transaction):
            for ask in (tree.next_after, tree.last_before):
                with pytest.raises(errors.InvalidKey):
                    ask(key)


def test_many_keys_come_from_any_iterable(store):
    store.update((b"%d" % number, b"v") for number in range(9))
    with store.snapshot() as snapshot:
        for tree in (store, snapshot):
            assert tree.get_many(b"%d" % number for number in (3, 7, 11)) == {
                b"3": b"v",
                b"7": b"v",
            }
            assert tree.get_many([bytearray(b"3"), memoryview(b"7")]) == {b"3": b"v", b"7": b"v"}
            for keys in (["3"], "3", [None], b"3"):
                with pytest.raises(errors.InvalidKey):
                    tree.get_many(keys)
            for keys in (None, 3):
                with pytest.raises(errors.InvalidValue):
                    tree.get_many(keys)


def test_update_takes_pairs(store):
    for pairs in (None, 5):
        for update in (store.update, store.batch().update, store.transaction().update):
            with pytest.raises(errors.InvalidValue, match="mapping or pairs"):
                update(pairs)
    for pairs in ([(b"a", b"1"), (b"b",)], [b"ab"[:1]], [5], [(b"a", b"1", b"2")]):
        with pytest.raises(errors.InvalidValue, match="no pair"):
            store.update(pairs)
    with pytest.raises(TypeError):
        store.update(a=b"1")
    assert len(store) == 0


def test_a_transaction_is_tried_at_least_once(store):
    for attempts in (0, None, "3", 1.5, True):
        with pytest.raises(errors.InvalidValue, match="too few"):
            store.transact(lambda transaction: None, attempts=attempts)
    with pytest.raises(errors.InvalidValue, match="no function"):
        store.transact(None)


# Files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("piece", ["text", 3, None])
def test_a_file_takes_bytes_only(store, piece):
    with store.open(b"k", "wb") as file:
        with pytest.raises(errors.InvalidValue, match="made of bytes"):
            file.write(piece)
        file.write(b"a")
        file.write(memoryview(b"bcd")[::2])
    assert store[b"k"] == b"abd"


def test_files_have_keys_and_modes_like_records(store):
    store[b"k"] = b"v"
    with store.snapshot() as snapshot:
        for tree in (store, snapshot):
            with pytest.raises(errors.InvalidKey):
                tree.open("k")
            with pytest.raises(errors.InvalidValue):
                tree.open(b"k", "r+")
    with store.open(b"k") as file, pytest.raises(errors.InvalidValue):
        file.seek(-5)
    with store.open(b"k").detach() as file, pytest.raises(errors.InvalidValue, match="whence"):
        file.seek(0, 3)
    with pytest.raises(errors.InvalidKey):
        store.watch("k")
    with pytest.raises(errors.InvalidKey):
        store.watch(3)


# Read-only and closed -------------------------------------------------------------------------


def test_what_was_opened_read_only_changes_nothing(tmp_path):
    with siltstone.Store(tmp_path, **TINY) as store:
        store[b"a"] = store.tree("t")[b"b"] = b"1"
    with siltstone.Store(tmp_path, read_only=True) as reader:
        tree = reader.tree("t")
        dump = io.BytesIO()
        reader.dump(dump)
        for change in (
            reader.clear,
            tree.clear,
            lambda: reader.drop_tree("t"),
            lambda: reader._pages.tree_drop("t"),
            reader.delete_range,
            reader.pop_first,
            reader.watch,
            lambda: reader.load(io.BytesIO(dump.getvalue())),
        ):
            with pytest.raises(errors.ReadOnly):
                change()
        assert dict(reader) == {b"a": b"1"}
        assert dict(tree) == {b"b": b"1"}


def test_what_is_closed_is_not_entered_again(tmp_path):
    made = (
        siltstone.Store(tmp_path / "s", **TINY),
        siltstone.PageCache(tmp_path / "p", Joined()),
    )
    for one in made:
        one.close()
        with pytest.raises(errors.Closed), one:
            pass
    with pytest.raises(errors.Closed):
        made[0].watch()


def test_verify_counts_the_records_of_all_trees(store):
    store.update((b"%d" % number, b"") for number in range(100))
    store.tree("t")[b"x"] = b""
    report = store.verify()
    assert (report.ok, report.records, report.trees) == (True, 101, 2)


@pytest.mark.parametrize("path", [None, 5, "", "a\0b", "\ud800"])
def test_paths_of_copies(store, tmp_path, path):
    for ask in (
        store.backup,
        lambda path: siltstone.Store.repair(path, tmp_path / "new"),
        lambda path: siltstone.Store.repair(tmp_path, path),
    ):
        with pytest.raises(errors.ConfigError, match="is no path"):
            ask(path)


@pytest.mark.parametrize("file", [None, "name", 5, io.StringIO()])
def test_files_of_dumps(store, file):
    for ask in (store.dump, store.load):
        with pytest.raises(errors.InvalidValue, match="opened as binary"):
            ask(file)


def test_what_is_closed_has_no_size_and_takes_no_file(tmp_path):
    store = siltstone.Store(tmp_path / "s", **TINY)
    pages = siltstone.PageCache(tmp_path / "p", Joined())
    store.close()
    pages.close()
    for ask in (
        lambda: store.size_on_disk,
        lambda: pages.size_on_disk,
        lambda: store.open(b"k", "wb"),
    ):
        with pytest.raises(errors.Closed):
            ask()


def test_a_copy_that_is_not_whole_is_not_there(tmp_path):
    def cut(done: int, of: int) -> None:
        if done:
            raise KeyboardInterrupt

    made = tmp_path / "made"
    with siltstone.Store(tmp_path / "s", **TINY) as store:
        store.update((b"%05d" % number, b"v") for number in range(5000))
        with pytest.raises(KeyboardInterrupt):
            store.backup(made, cut)
        assert list(made.iterdir()) == []
        store.backup(made)
    assert sorted(path.name for path in made.iterdir()) == ["data", "lock"]
    again = tmp_path / "again"
    with pytest.raises(KeyboardInterrupt):
        siltstone.Store.repair(made, again, cut)
    assert list(again.iterdir()) == []
    assert siltstone.Store.repair(made, again).records == 5000
    with siltstone.Store(again) as copy:
        assert len(copy) == 5000


# Page caches ----------------------------------------------------------------------------------


@pytest.fixture
def pages(tmp_path: Path) -> Any:
    with siltstone.PageCache(tmp_path / "p", Joined(), segment_size=65536) as opened:
        yield opened


def test_roots_name_pages_that_there_are(pages):
    for pid in (2, 12345):
        with pytest.raises(errors.KeyMissing):
            pages.compare_and_set_root("r", None, pid)
    with pages.batch():
        pid, _ = pages.allocate(b"x")
        assert pages.compare_and_set_root("r", None, pid)
        with pytest.raises(errors.KeyMissing):
            pages.compare_and_set_root("q", None, pid + 1)
    assert (pages.root("r"), pages.root("q")) == (pid, None)
    assert pages.compare_and_set_root("r", pid, None)


def test_positions_are_whole_numbers(pages):
    pages.allocate(b"x")
    for position in (-1, "1", 1.0, None, True):
        with pytest.raises(errors.InvalidValue):
            pages.make_stable(position)
    pages.make_stable(1 << 80)
    assert pages.stable_position >= pages.position


def test_a_page_cache_is_pickled_by_path(tmp_path):
    with siltstone.PageCache(tmp_path / "p", Joined(), cache="1MiB") as pages:
        pid, _ = pages.allocate(b"x")
        pickled = pickle.dumps(pages)
        assert repr(pages) == f"PageCache({str(tmp_path / 'p')!r})"
    with pickle.loads(pickled) as again:
        assert again.get(pid)[0] == b"x"
        assert again.settings.cache == 1 << 20


def test_names_of_roots(pages):
    for name in ("", None, 5, b"r", "\ud800", 2000 * "r"):
        for ask in (pages.root, lambda name: pages.compare_and_set_root(name, None, None)):
            with pytest.raises(errors.InvalidKey):
                ask(name)


@pytest.mark.parametrize("threshold", [0, None, "3", 1.5])
def test_fragments_are_merged_above_a_number(tmp_path, threshold):
    with pytest.raises(errors.InvalidValue, match="consolidation_threshold"):
        siltstone.PageCache(tmp_path / "p", Joined(), consolidation_threshold=threshold)


def test_unknown_settings_of_a_page_cache(tmp_path):
    with pytest.raises(errors.ConfigError, match="did you mean 'cache'"):
        siltstone.PageCache(tmp_path / "p", Joined(), cahce=1)
