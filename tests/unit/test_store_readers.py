"""One writer, and readers beside it, in one process and in several."""

from __future__ import annotations

import errno
import gc
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from storerig import TINY

import siltstone
from siltstone import errors
from siltstone.log import openers

VALUE = 60


def write(store: Any, turn: int, count: int = 200) -> None:
    for number in range(count):
        store[b"%04d" % number] = b"%d" % turn * VALUE


def read(store: Any) -> set[bytes]:
    """The first byte of each value: which turns are seen."""
    return {value[:1] for value in store.values()}


def overwrite(store: Any, turns: range) -> None:
    for turn in turns:
        write(store, turn)
        settle(store)


def settle(store: Any) -> None:
    """Clean, and use again what that has emptied."""
    store._pages.collect_garbage()
    store.checkpoint()


def opened(path: Path, **options: Any) -> Any:
    return siltstone.Store(path, background=False, **{**TINY, **options})


def test_a_second_writer_in_this_process_is_refused(tmp_path):
    with opened(tmp_path) as store:
        store[b"k"] = b"v"
        for _ in range(2):
            with pytest.raises(errors.Locked, match=r"in use by pid \d+ \(this one\): use that"):
                opened(tmp_path)
        store[b"k"] = b"w"
    with opened(tmp_path) as store:
        assert store[b"k"] == b"w"


@pytest.mark.parametrize("first", ["writer", "reader"])
def test_a_reader_in_the_writers_process(tmp_path, first):
    with opened(tmp_path) as store:
        write(store, 1)
    if first == "reader":
        reader = opened(tmp_path, read_only=True)
        writer = opened(tmp_path)
    else:
        writer = opened(tmp_path)
        reader = opened(tmp_path, read_only=True)
    with writer, reader:
        overwrite(writer, range(2, 6))
        assert read(reader) == {b"1"}
        reader.refresh()
        assert read(reader) == {b"5"}
        with pytest.raises(errors.ReadOnly):
            reader[b"k"] = b"v"


def test_what_a_reader_looks_at_is_kept_until_it_goes(tmp_path):
    """The reader has a cache for a fraction of the data only: all else is read from the file."""
    with opened(tmp_path) as store:
        write(store, 1, 1000)
        store.checkpoint()
        with (
            opened(tmp_path, read_only=True, cache="16KiB") as reader,
            opened(tmp_path, read_only=True, cache="16KiB") as other,
        ):
            for turn in range(2, 8):
                write(store, turn, 1000)
                settle(store)
                assert read(reader) == {b"1"}
            assert reader.verify().ok
            held = store.stats()["used_bytes"]
            other.close()
            assert read(reader) == {b"1"}
        for _ in range(3):
            store.checkpoint()
        assert store.stats()["used_bytes"] < held / 2


READER = """
import sys, siltstone
with siltstone.Store(sys.argv[1], read_only=True, cache="16KiB") as store:
    print("open", flush=True)
    for line in sys.stdin:
        if line == "refresh\\n":
            store.refresh()
        print({value[:1] for value in store.values()}, flush=True)
"""
WRITER = """
import sys, siltstone
store = siltstone.Store(sys.argv[1], background=False, segment_size="16KiB", buffer_size="4KiB",
                        page_size=256, cache="64KiB")
for turn in range(2, 5):
    for number in range(200):
        store[b"%04d" % number] = b"%d" % turn * 60
    store.checkpoint()
print("done", flush=True)
sys.stdin.read()
"""


def child(code: str, path: Path) -> subprocess.Popen[str]:
    started = subprocess.Popen(
        [sys.executable, "-c", code, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert started.stdout is not None
    assert started.stdout.readline() in ("open\n", "done\n")
    return started


def ask(reader: subprocess.Popen[str], line: str) -> str:
    assert reader.stdin is not None
    assert reader.stdout is not None
    reader.stdin.write(line + "\n")
    reader.stdin.flush()
    return reader.stdout.readline().strip()


def test_a_reader_in_another_process(tmp_path):
    with opened(tmp_path) as store:
        write(store, 1)
        store.checkpoint()
        with child(READER, tmp_path) as reader:
            overwrite(store, range(2, 10))
            assert ask(reader, "look") == "{b'1'}"
            assert ask(reader, "refresh") == "{b'9'}"
            reader.kill()
        before = store.stats()["used_bytes"]
        overwrite(store, range(3, 6))
        assert store.stats()["used_bytes"] <= before


def test_the_next_writer_keeps_what_readers_of_the_one_before_look_at(tmp_path):
    """A writer is killed; nobody tells the next one which checkpoint the reader opened with."""
    with opened(tmp_path) as store:
        write(store, 1)
        store.checkpoint()
    with opened(tmp_path, read_only=True, cache="16KiB") as reader:
        with child(WRITER, tmp_path) as writer:
            writer.send_signal(signal.SIGKILL)
        with opened(tmp_path) as store:
            overwrite(store, range(5, 9))
            assert read(reader) == {b"1"}
            reader.close()
            held = store.stats()["used_bytes"]
            for _ in range(3):
                store.checkpoint()
            assert store.stats()["used_bytes"] < held


def test_a_reader_without_a_lock_is_told_and_refresh_helps(tmp_path, monkeypatch):
    """As on a read-only medium: the lock file cannot be opened."""

    def refused(*_: Any, **__: Any) -> Any:
        raise errors.EnvironmentFailure(30, "read-only file system")

    with opened(tmp_path) as store:
        write(store, 1, 1000)
        store.checkpoint()
        with monkeypatch.context() as patch:
            patch.setattr(openers, "open_lock_file", refused)
            reader = opened(tmp_path, read_only=True, cache="16KiB")
        with reader:
            for turn in range(2, 8):
                write(store, turn, 1000)
                settle(store)
            with pytest.raises(errors.SnapshotTooOld):
                read(reader)
            reader.refresh()
            assert read(reader) == {b"7"}


def test_locks_of_readers_are_counted(tmp_path):
    opened(tmp_path).close()
    writer = openers.Writer(str(tmp_path))
    one, two = openers.Reader(str(tmp_path)), openers.Reader(str(tmp_path))
    assert not writer.others()
    one.look_at(1600)
    two.look_at(1600)
    one.close()
    assert writer.looked_at(1600)
    two.look_at(4800)
    assert writer.looked_at(4800)
    assert not writer.looked_at(1600)
    assert writer.others(1600)
    assert writer.looked_at(0)  # somebody looks at what this writer does not know
    two.close()
    assert not writer.looked_at(4800)
    assert not writer.looked_at(0)
    writer.close()


def test_a_lock_that_cannot_be_had_is_not_counted(tmp_path, monkeypatch):
    opened(tmp_path).close()
    writer, reader = openers.Writer(str(tmp_path)), openers.Reader(str(tmp_path))

    def no_locks(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    with monkeypatch.context() as patch:
        patch.setattr(openers, "lock_bytes", no_locks)
        with pytest.raises(OSError, match=r"[Ll]ock"):
            reader.look_at(1600)
    assert not writer.looked_at(1600)
    reader.look_at(1600)
    assert writer.looked_at(1600)
    reader.close()
    writer.close()


def test_a_store_that_is_forgotten_on_a_background_thread_is_closed(tmp_path):
    """The garbage collector may run there, and closing waits for that very thread."""
    held = [siltstone.Store(tmp_path, **TINY)]
    held[0][b"k"] = b"v"
    forgetting = threading.Thread(
        name="siltstone-cleaning", target=lambda: (held.clear(), gc.collect())
    )
    forgetting.start()
    forgetting.join()
    for thread in threading.enumerate():
        if thread.name == "siltstone-close":
            thread.join()
    with opened(tmp_path) as store:
        assert store.recovery.outcome == "clean"
        assert store[b"k"] == b"v"


def test_refreshing_finds_trees_gone_and_come_again(tmp_path):
    path = tmp_path / "store"
    with siltstone.Store(path) as store:
        for name in ("a", "b", "c"):
            store.tree(name)[b"k"] = b"1"
    with siltstone.Store(path, read_only=True) as reader:
        trees = {name: reader.tree(name) for name in ("a", "b", "c")}
        with siltstone.Store(path) as store:
            store.drop_tree("b")
            store.tree("a")[b"k"] = store.tree("c")[b"k"] = b"2"
        reader.refresh()
        assert trees["a"][b"k"] == trees["c"][b"k"] == b"2"
        for use in (
            lambda: trees["b"][b"k"],
            lambda: len(trees["b"]),
            lambda: [*trees["b"].items()],
        ):
            with pytest.raises(errors.KeyMissing, match="'b' was dropped"):
                use()
        with siltstone.Store(path) as store:
            store.tree("b")[b"k"] = b"3"
        reader.refresh()
        assert trees["b"][b"k"] == b"3"


def test_a_refresh_that_failed_can_be_tried_again_and_not_after_close(tmp_path):
    path = tmp_path / "store"
    with siltstone.Store(path) as store:
        store[b"k"] = b"1"
    reader = siltstone.Store(path, read_only=True)
    path.rename(tmp_path / "away")
    with pytest.raises(errors.EnvironmentFailure):
        reader.refresh()
    for use in (reader.stats, reader.segments, lambda: reader[b"k"], lambda: reader.size_on_disk):
        with pytest.raises(errors.Closed):
            use()
    assert not reader.was_recovered
    (tmp_path / "away").rename(path)
    reader.refresh()
    assert reader[b"k"] == b"1"
    reader.close()
    with pytest.raises(errors.Closed):
        reader.refresh()
    with pytest.raises(errors.Closed):
        reader.get(b"k")
