"""The store's surface, one promise a test: mapping, trees, batches, snapshots, streams, ends."""

from __future__ import annotations

import asyncio
import io
import os
import pickle
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import pytest
from fakes import CrashDevice
from storerig import TINY, on_device

import siltstone
from siltstone import errors


@pytest.fixture
def store() -> Any:
    with siltstone.Store(None, **TINY) as opened:
        yield opened


# Mapping --------------------------------------------------------------------------------------


def test_it_is_a_mapping(store):
    assert isinstance(store, MutableMapping)
    assert isinstance(store.tree("t"), MutableMapping)
    store[b"b"] = b"2"
    store.update({b"a": b"1", b"c": b"3"})
    store.update([(b"d", b"4")])
    assert list(store) == [b"a", b"b", b"c", b"d"]
    assert dict(store) == dict(store.items()) == {b"a": b"1", b"b": b"2", b"c": b"3", b"d": b"4"}
    assert store.setdefault(b"a", b"x") == b"1"
    assert store.popitem() == (b"d", b"4")
    assert store.pop(b"c") == b"3"
    assert store.pop(b"c", None) is None
    with pytest.raises(KeyError):
        store.pop(b"c")
    store.clear()
    assert len(store) == 0
    assert not list(store)
    with pytest.raises(KeyError):
        store.popitem()


def test_keys_and_values_are_bytes_of_any_kind(store):
    store[bytearray(b"k")] = memoryview(b"value")
    assert store[memoryview(b"k")] == b"value"
    assert type(store[b"k"]) is bytes
    store[b""] = b""
    assert store[b""] == b""
    assert b"" in store


@pytest.mark.parametrize("key", ["text", 1, None, (b"a",)])
def test_other_keys_are_refused_with_advice(store, key):
    for use in (store.get, store.__getitem__, store.delete, lambda key: store.set(key, b"")):
        with pytest.raises((errors.InvalidKey, TypeError), match="bytes"):
            use(key)


@pytest.mark.parametrize("value", ["text", 1, None, [b"a"]])
def test_other_values_are_refused_with_advice(store, value):
    with pytest.raises((errors.InvalidValue, TypeError), match="bytes"):
        store.set(b"k", value)
    assert b"k" not in store


def test_the_limits_of_keys(store):
    longest = b"k" * (64 << 10)
    with siltstone.Store(None) as roomy:
        roomy[longest] = b"v"
        assert roomy[longest] == b"v"
        with pytest.raises((errors.TooLarge, errors.InvalidKey)):
            roomy[longest + b"x"] = b"v"
        assert len(roomy) == 1
    with pytest.raises(errors.TooLarge, match="buffer_size"):
        store[longest] = b"v"


def test_values_beyond_the_limit_are_refused():
    with siltstone.Store(None, value_size_max="10KiB") as store:
        store[b"k"] = b"v" * (10 << 10)
        with pytest.raises(errors.TooLarge):
            store[b"k"] = b"v" * ((10 << 10) + 1)
        with pytest.raises(errors.TooLarge), store.open(b"k", "wb") as file:  # noqa: PT012
            for _ in range(12):
                file.write(b"w" * 1024)
        assert store[b"k"] == b"v" * (10 << 10)


@pytest.mark.parametrize("size", [0, 1, 200, 255, 256, 257, 4000, 4096, 16_000, 100_000, 3_000_000])
def test_values_of_every_size(store, size):
    value = os.urandom(size)
    store[b"k"] = value
    assert store[b"k"] == value
    store.checkpoint()
    assert store[b"k"] == value
    assert store.verify().problems == []


def test_missing_keys_name_themselves(store):
    with pytest.raises(errors.KeyMissing, match="nothing here"):
        store[b"nothing here"]
    with pytest.raises(errors.KeyMissing):
        del store[b"nothing here"]


def test_ranges(store):
    for number in range(10):
        store[b"%d" % number] = b"v%d" % number
    assert list(store.keys(b"3", b"6")) == [b"3", b"4", b"5"]
    assert list(store.keys(b"3", b"6", include_start=False, include_stop=True)) == [
        b"4",
        b"5",
        b"6",
    ]
    assert list(store.keys(b"3", b"6", reverse=True)) == [b"5", b"4", b"3"]
    assert list(store.keys(limit=2, reverse=True)) == [b"9", b"8"]
    assert list(store.keys(b"6", b"3")) == []
    assert list(store.values(prefix=b"4")) == [b"v4"]
    assert list(store.keys(b"35", prefix=b"3")) == []
    assert store.first() == (b"0", b"v0")
    assert store.last() == (b"9", b"v9")
    assert store.next_after(b"4") == (b"5", b"v5")
    assert store.last_before(b"4") == (b"3", b"v3")
    assert store.next_after(b"9") is None
    assert store.last_before(b"0") is None
    with pytest.raises(ValueError):
        store.items(limit=-1)


def test_merge_functions(store):
    with pytest.raises(errors.CallerError, match="set_merge"):
        store.merge(b"k", b"x")
    store.set_merge(lambda key, old, operand: None if operand == b"-" else (old or b"") + operand)
    store.merge(b"k", b"a")
    store.merge(b"k", b"b")
    assert store[b"k"] == b"ab"
    store.merge(b"k", b"-")
    assert b"k" not in store
    store.set_merge(lambda key, old, operand: 1)
    with pytest.raises((errors.InvalidValue, TypeError)):
        store.merge(b"k", b"a")


# Trees ----------------------------------------------------------------------------------------


def test_trees_are_apart_and_counted_apart(store):
    users = store.tree("users")
    users[b"k"] = b"user"
    store[b"k"] = b"own"
    assert (store[b"k"], users[b"k"]) == (b"own", b"user")
    assert store.trees() == ["users"]
    assert (len(store), len(users)) == (1, 1)
    assert store.tree("users")[b"k"] == b"user"
    store.drop_tree("users")
    assert store.trees() == []
    with pytest.raises(errors.SiltstoneError):
        users[b"k"]
    assert list(store.tree("users")) == []
    assert store[b"k"] == b"own"


@pytest.mark.parametrize("name", ["", 7, None, "x" * 2000])
def test_bad_names_of_trees(store, name):
    with pytest.raises((ValueError, TypeError)):
        store.tree(name)


def test_many_trees_come_and_go_without_growth():
    with siltstone.Store(None, **TINY) as store:
        for turn in range(4):
            for number in range(60):
                store.tree(f"t{number}").update({b"%d" % n: b"v" * 50 for n in range(20)})
            for number in range(60):
                store.drop_tree(f"t{number}")
            store.checkpoint()
            if turn == 1:
                size = store.size_on_disk
        assert store.size_on_disk <= 2 * size
        assert store.verify().problems == []


# Batches, transactions, snapshots -------------------------------------------------------------


def test_a_batch_is_all_or_nothing(store):
    store[b"c"] = b"0"
    with store.batch() as batch:
        batch[b"a"] = b"1"
        del batch[b"c"]
        batch.tree("users")[b"u"] = b"2"
        assert b"a" not in store
    assert (store[b"a"], b"c" in store, store.tree("users")[b"u"]) == (b"1", False, b"2")
    with pytest.raises(ZeroDivisionError), store.batch() as batch:  # noqa: PT012
        batch[b"a"] = b"9"
        raise ZeroDivisionError
    assert store[b"a"] == b"1"
    with pytest.raises(errors.Closed):
        batch[b"x"] = b"late"


def test_a_batch_makes_trees_with_its_commit(store):
    """Not before, not without; also empty ones, several, and one that came meanwhile."""
    with store.batch() as batch:
        one, two = batch.tree("one"), batch.tree("two")
        one.update({b"%d" % number: b"v" * 90 for number in range(500)})
        batch.tree("empty")
        two[b"a"] = b"b"
        assert batch.tree("two") is two
        assert store.trees() == []
    assert store.trees() == ["empty", "one", "two"]
    assert len(store.tree("one")) == 500
    assert dict(store.tree("two").items()) == {b"a": b"b"}
    assert len(store.tree("empty")) == 0
    batch = store.batch()
    batch.tree("three")[b"a"] = b"b"
    batch.abandon()
    batch = store.batch()
    batch.tree("four")[b"a"] = b"batch"
    store.tree("four").update({b"a": b"tree", b"c": b"d"})
    batch.commit()
    assert store.trees() == ["empty", "four", "one", "two"]
    assert dict(store.tree("four").items()) == {b"a": b"batch", b"c": b"d"}
    with pytest.raises(errors.InvalidKey):
        store.batch().tree("")
    assert store.drop_tree("two")
    with store.batch() as batch:
        batch.tree("two")[b"x"] = b"y"
    assert dict(store.tree("two").items()) == {b"x": b"y"}
    assert store.verify().problems == []
    with store.watch(b"") as watch:  # of the store's own tree: others are not seen there
        with store.batch() as batch:
            batch.tree("five")[b"k"] = batch[b"k"] = b"v"
        watch.close()
        assert [(event.key, event.value) for event in watch] == [(b"k", b"v")]


def test_a_range_is_deleted_at_once(store):
    store.update({b"%04d" % number: b"v" for number in range(9000)})
    with store.snapshot() as before:
        assert store.delete_range(b"1000", b"8000") == 7000
        assert len(before) == 9000
        assert len(list(before.keys())) == 9000
    commits = store.stats()["commits"]
    assert store.delete_range(prefix=b"09") == 100
    assert store.delete_range(b"2", b"3") == 0
    assert len(store) == 1900
    assert store.stats()["commits"] - commits < 20  # one, and what leaves do that became small


def test_the_last_change_of_a_key_in_a_batch_counts(store):
    with store.batch() as batch:
        batch[b"a"] = b"1"
        del batch[b"a"]
        batch[b"b"] = b"1"
        batch[b"b"] = b"2"
        del batch[b"c"]
        batch[b"c"] = b"3"
    assert dict(store) == {b"b": b"2", b"c": b"3"}


def test_a_transaction_reads_its_own_writes(store):
    store.update({b"%d" % n: b"old" for n in range(5)})
    with store.transaction() as transaction:
        transaction[b"1"] = b"new"
        del transaction[b"2"]
        transaction[b"9"] = b"new"
        assert transaction[b"1"] == b"new"
        assert b"2" not in transaction
        assert list(transaction.keys()) == [b"0", b"1", b"3", b"4", b"9"]
        assert list(transaction.keys(reverse=True, limit=2)) == [b"9", b"4"]
        assert transaction.first() == (b"0", b"old")
        assert transaction.last() == (b"9", b"new")
        assert transaction.next_after(b"1") == (b"3", b"old")
        assert transaction.pop(b"0") == b"old"
        assert len(transaction) == 4
        assert store[b"1"] == b"old"
    assert dict(store) == {b"1": b"new", b"3": b"old", b"4": b"old", b"9": b"new"}


def test_an_abandoned_transaction_leaves_no_trace(store):
    with pytest.raises(KeyError), store.transaction() as transaction:  # noqa: PT012
        transaction[b"a"] = b"1"
        transaction[b"missing"]
    transaction = store.transaction()
    transaction[b"a"] = b"1"
    transaction.abandon()
    assert len(store) == 0
    with pytest.raises(errors.Closed):
        transaction.commit()


def test_snapshots_are_held_and_end(store):
    store.tree("t")[b"x"] = b"1"
    for number in range(300):
        store[b"%03d" % number] = b"old"
    snapshot = store.snapshot()
    for number in range(300):
        store[b"%03d" % number] = b"new" * 20
    store.tree("t")[b"x"] = b"2"
    store.drop_tree("t")
    store.checkpoint()
    assert set(snapshot.values()) == {b"old"}
    assert len(snapshot) == 300
    assert snapshot.tree("t")[b"x"] == b"1"
    assert snapshot.trees() == ["t"]
    with pytest.raises(errors.KeyMissing):
        snapshot.tree("none")
    with pytest.raises((AttributeError, TypeError)):
        snapshot[b"a"] = b"b"
    snapshot.close()
    with pytest.raises(errors.Closed):
        snapshot.get(b"000")
    assert store.stats()["snapshot_bytes"] == 0


def test_a_snapshot_over_its_budget_ends_and_writers_never_wait():
    with siltstone.Store(None, **TINY, snapshot_bytes_max="16KiB") as store:
        for number in range(500):
            store[b"%03d" % number] = b"old" * 20
        snapshot = store.snapshot()
        for number in range(500):
            store[b"%03d" % number] = b"new" * 20
        with pytest.raises(errors.SnapshotTooOld):
            list(snapshot.items())
        assert len(set(store.values())) == 1
        snapshot.close()
        with store.snapshot() as fresh:
            assert len(list(fresh)) == 500


# Streams --------------------------------------------------------------------------------------


def test_streams_are_visible_at_close_and_atomic(store):
    store[b"k"] = b"before"
    with store.open(b"k", "wb") as file:
        assert isinstance(file, io.IOBase)
        assert file.writable()
        for number in range(50):
            file.write(b"%05d" % number * 1000)
        assert store[b"k"] == b"before"
    with store.open(b"k", "rb") as file:
        assert file.readable()
        assert file.seekable()
        assert file.seek(-5, io.SEEK_END) == 50 * 5000 - 5
        assert file.read() == b"00049"
        file.seek(5000)
        assert file.read(5) == b"00001"
        store[b"k"] = b"after"
        assert file.read(5) == b"00001"  # it reads what was there when it was opened
    assert store[b"k"] == b"after"
    with pytest.raises(ZeroDivisionError), store.open(b"k", "wb") as file:  # noqa: PT012
        file.write(b"x" * 100_000)
        raise ZeroDivisionError
    assert store[b"k"] == b"after"
    with pytest.raises(errors.KeyMissing):
        store.open(b"missing", "rb")
    with pytest.raises(ValueError):
        store.open(b"k", "r+")
    assert store.verify().problems == []


def test_a_stream_that_is_dropped_leaves_nothing(store):
    with store.open(b"k", "wb") as file:
        file.write(b"kept" * 30_000)
    for _ in range(20):
        file = store.open(b"k", "wb")
        file.write(b"x" * 120_000)
        del file
    store.checkpoint()
    store.checkpoint()
    assert store[b"k"] == b"kept" * 30_000
    assert store.size_on_disk < 16 * 120_000


# Watches --------------------------------------------------------------------------------------


def test_a_watch_sees_commits_and_nothing_else(store):
    store[b"user:0"] = b"before"
    with store.watch(b"user:") as watch:
        store[b"user:1"] = b"Ann"
        store[b"other"] = b"x"
        store.delete(b"user:9")  # was not there
        store.delete(b"user:0")
        assert not store.compare_and_set(b"user:1", b"wrong", b"y")
        with store.batch() as batch:
            batch[b"user:2"] = b"Bob"
            batch.tree("t")[b"user:3"] = b"elsewhere"
        with pytest.raises(ZeroDivisionError), store.transaction() as transaction:  # noqa: PT012
            transaction[b"user:4"] = b"no"
            raise ZeroDivisionError
        with store.open(b"user:5", "wb") as file:
            file.write(b"v" * 20_000)
    events = list(watch)
    assert [(event.key, event.value and event.value[:3]) for event in events] == [
        (b"user:1", b"Ann"),
        (b"user:0", None),
        (b"user:2", b"Bob"),
        (b"user:5", b"vvv"),
    ]
    assert len(events[-1].value) == 20_000


def test_watching_from_asyncio(store):
    async def read() -> list[bytes]:
        watch = store.watch()
        loop = asyncio.get_running_loop()
        for number in range(5):
            loop.call_soon(store.set, b"%d" % number, b"v")
        found = []
        async for event in watch:
            found.append(event.key)
            if len(found) == 5:
                watch.close()
        return found

    assert asyncio.run(read()) == [b"0", b"1", b"2", b"3", b"4"]


# The whole store ------------------------------------------------------------------------------


def test_everything_is_there_after_a_restart(tmp_path):
    path = tmp_path / "deep" / "er" / "store"
    with siltstone.Store(path) as store:
        assert not store.was_recovered
        store[b"k"] = b"v"
        store.tree("t")[b"k"] = b"t"
        with store.open(b"big", "wb") as file:
            file.write(b"b" * 2_000_000)
        first = store.generate_id()
    with siltstone.Store(str(path)) as store:
        assert store.was_recovered
        assert store[b"k"] == b"v"
        assert store.tree("t")[b"k"] == b"t"
        assert store[b"big"] == b"b" * 2_000_000
        assert store.generate_id() > first
        assert store.size_on_disk > 2_000_000
        assert store.path == path


def test_use_after_close(tmp_path):
    store = siltstone.Store(tmp_path / "store")
    users, snapshot, iterator = store.tree("users"), store.snapshot(), iter(store.items())
    watch = store.watch()
    store.close()
    store.close()
    for use in (
        lambda: store[b"a"],
        lambda: store.set(b"a", b"b"),
        lambda: len(store),
        lambda: users.get(b"a"),
        lambda: snapshot.get(b"a"),
        lambda: list(store.items()),
        lambda: next(iterator),
        store.sync,
        store.checkpoint,
        store.verify,
        store.batch,
        store.transaction,
        store.snapshot,
        store.stats,
        lambda: store.open(b"a", "rb"),
        lambda: store.tree("x"),
        store.generate_id,
    ):
        with pytest.raises((errors.Closed, StopIteration)):
            use()
    assert list(watch) == []


def test_one_writer_whose_pid_is_named(tmp_path):
    path = tmp_path / "store"
    with siltstone.Store(path) as store:
        store[b"a"] = b"1"
        with pytest.raises(errors.Locked, match=str(os.getpid())):
            siltstone.Store(path)
        store[b"b"] = b"2"
    siltstone.Store(path).close()


def test_a_forked_child_is_refused(tmp_path):
    with siltstone.Store(tmp_path / "store") as store:
        store[b"a"] = b"1"
        child = os.fork()
        if child == 0:
            code = 1
            try:
                store.get(b"a")
            except errors.ForkedProcess:
                store.close()  # touches nothing
                code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        store[b"b"] = b"2"
        assert store[b"a"] == b"1"


def test_pickled_by_path(tmp_path):
    with siltstone.Store(tmp_path / "store", cache="32MiB") as store:
        store[b"a"] = b"1"
        packed = pickle.dumps(store)
    with pickle.loads(packed) as again:
        assert again[b"a"] == b"1"
        assert again.settings.cache == 32 << 20
    with siltstone.Store(None) as temporary, pytest.raises((TypeError, errors.CallerError)):
        pickle.dumps(temporary)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"durability": "always"}, "sync"),
        ({"cache": "1KiB"}, "too small"),
        ({"flush_interval": "soon"}, "duration"),
        ({"cach": "1MiB"}, "cache"),
        ({"read_only": True}, "path"),
        ({"segment_size": "10000"}, "multiple"),
    ],
)
def test_settings_that_cannot_work(options, text):
    with pytest.raises(errors.ConfigError, match=text):
        siltstone.Store(None, **options)


def test_durability_is_counted_in_syncs(tmp_path):
    """What waits for the medium, and what does not: by store and by commit."""

    def syncs(store: Any, *args: Any, **options: Any) -> int:
        before = store.stats()["syncs"]
        store.set(b"k", os.urandom(5), *args, **options)
        return store.stats()["syncs"] - before

    quiet = {"flush_interval": 3600}
    with siltstone.Store(tmp_path / "sync", durability="sync", **quiet) as store:
        assert syncs(store) == 1
        assert syncs(store, durable=False) == 0
    with siltstone.Store(tmp_path / "interval", **quiet) as store:
        assert syncs(store) == 0
        assert syncs(store, durable=True) == 1
        before = store.stats()["syncs"]
        with store.batch(durable=True) as batch:
            batch.update({b"%d" % n: b"v" for n in range(100)})
        assert store.stats()["syncs"] == before + 1
    with siltstone.Store(tmp_path / "none", durability="none", flush_interval=0.001) as store:
        assert syncs(store) == 0


def test_a_durable_change_that_changes_nothing_makes_durable_what_it_saw():
    """It says that a key is gone: after a power cut it must be. Each way, on an unsynced store."""
    noops: list[Any] = [
        lambda store: store.delete(b"gone", durable=True),
        lambda store: store.pop(b"gone", None, durable=True),
        lambda store: store.set_default(b"there", b"2", durable=True),
        lambda store: store.compare_and_set(b"gone", b"1", b"2", durable=True),
        lambda store: store.merge(b"there", b"same", durable=True),
        lambda store: store.delete_range(b"gone", b"gone\0", durable=True),
        lambda store: _batch(store, lambda batch: batch.delete(b"gone")),
        lambda store: store.transact(lambda tx: tx.get(b"gone"), durable=True),
    ]
    for noop in noops:
        device = CrashDevice(120, 16384, engine="store")
        with on_device(device) as store:
            store.set_merge(lambda key, old, operand: old)
            store[b"gone"] = b"1"
            store.sync()
            del store[b"gone"]
            store[b"there"] = b"1"
            noop(store)
            image, _ = device.durable_at(len(device.events))
            with on_device(device.reopened(image)) as again:
                assert dict(again.items()) == {b"there": b"1"}


def _batch(store: Any, fill: Any) -> None:
    with store.batch(durable=True) as batch:
        fill(batch)


def test_the_interval_syncs_in_the_background(tmp_path):
    with siltstone.Store(tmp_path / "store", flush_interval="5ms") as store:
        store[b"a"] = b"1"
        before = store.stats()["syncs"]
        store[b"b"] = b"2"
        for _ in range(2000):
            if store.stats()["unsynced_bytes"] == 0:
                break
            os.sched_yield()
            Path("/proc/self/stat").read_bytes()
        assert store.stats()["unsynced_bytes"] == 0
        assert store.stats()["syncs"] >= before


def test_ids_rise_and_never_repeat(tmp_path):
    seen: list[int] = []
    for _ in range(5):
        with siltstone.Store(tmp_path / "store", id_interval=10) as store:
            seen += [store.generate_id() for _ in range(25)]
    assert seen == sorted(set(seen))


# Copies ---------------------------------------------------------------------------------------


def filled(store: Any) -> None:
    store.update({b"%05d" % number: b"v" * (number % 200) for number in range(2000)})
    store.tree("users")[b"ann"] = b"1"
    store.tree("empty")
    store[b"big"] = os.urandom(300_000)


def test_backup_is_a_store_of_one_moment(tmp_path):
    with siltstone.Store(tmp_path / "store") as store:
        filled(store)
        store.backup(tmp_path / "copy")
        expected = dict(store)
        store[b"00000"] = b"later"
        with pytest.raises(errors.SiltstoneError, match="copy"):
            store.backup(tmp_path / "copy")
    with siltstone.Store(tmp_path / "copy") as copy:
        assert dict(copy) == expected
        assert copy.tree("users")[b"ann"] == b"1"
        assert copy.trees() == ["empty", "users"]
        assert copy.verify().problems == []


def test_a_backup_gives_out_no_id_again(tmp_path):
    with siltstone.Store(tmp_path / "store", id_interval=10) as store:
        given = [store.generate_id() for _ in range(25)]
        store.backup(tmp_path / "copy")
    with siltstone.Store(tmp_path / "store", read_only=True) as reader:
        reader.backup(tmp_path / "beside")
    for copy in ("copy", "beside"):
        with siltstone.Store(tmp_path / copy) as store:
            assert store.generate_id() > given[-1]


def test_dump_and_load(tmp_path):
    file = io.BytesIO()
    with siltstone.Store(None) as store:
        filled(store)
        store.dump(file)
        expected = dict(store)
    data = file.getvalue()
    with siltstone.Store(None) as store:
        store.load(io.BytesIO(data))
        assert dict(store) == expected
        assert store.trees() == ["empty", "users"]
    for cut in (0, 7, 20, len(data) // 2, len(data) - 1):
        with siltstone.Store(None) as store, pytest.raises(errors.Corruption):
            store.load(io.BytesIO(data[:cut]))
    flipped = bytearray(data)
    flipped[len(data) // 3] ^= 4
    with siltstone.Store(None) as store, pytest.raises(errors.Corruption):
        store.load(io.BytesIO(bytes(flipped)))


def test_reading_beside_a_writer(tmp_path):
    path = tmp_path / "store"
    with siltstone.Store(path, **TINY) as store:
        store.update({b"%03d" % number: b"old" for number in range(200)})
        store.checkpoint()
        with siltstone.Store(path, read_only=True, **TINY) as reader:
            assert set(reader.values()) == {b"old"}
            for use in (
                lambda: reader.set(b"a", b"b"),
                lambda: reader.delete(b"000"),
                reader.batch,
                lambda: reader.open(b"a", "wb"),
                reader.checkpoint,
            ):
                with pytest.raises((errors.ReadOnly, errors.CallerError)):
                    use()
            store.update({b"%03d" % number: b"new" for number in range(200)})
            store.checkpoint()
            reader.refresh()
            assert set(reader.values()) == {b"new"}
    with siltstone.Store(path, read_only=True, **TINY) as reader:
        assert len(reader) == 200
