"""The durability table of docs/store.md: one test for each cell, by name.

Kills are real. A power cut is what a CrashDevice may leave at its worst: all that was not synced
is gone.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from fakes import CrashDevice
from storerig import contents, on_device

import siltstone

pytestmark = pytest.mark.crash

DOCUMENT = Path(__file__).parents[2] / "docs" / "store.md"
SLOTS, SEGMENT = 120, 16384
LAST = b"last"


def ended(path: Path, durability: str, how: str, durable: bool | None = None) -> bool:
    """Whether the last of many commits is there after a process has ended so."""
    script = f"""
import os, signal, sys, siltstone
store = siltstone.Store({str(path)!r}, durability={durability!r}, flush_interval=3600)
for number in range(200):
    store[b"%d" % number] = b"v" * 100
store.set({LAST!r}, b"v", durable={durable!r})
{how}
"""
    ran = subprocess.run([sys.executable, "-c", script], timeout=60, check=False)
    assert ran.returncode in (0, -signal.SIGKILL)
    with siltstone.Store(path) as store:
        keys = {int(key) for key in store if key != LAST}
        assert keys == set(range(len(keys)))  # a prefix
        assert LAST not in store or len(keys) == 200
        assert store.verify().ok
        return LAST in store


CLOSE, EXIT = "store.close()", "pass"
KILL = "os.kill(os.getpid(), signal.SIGKILL)"


def cut(durability: str, durable: bool | None = None, then: str = "") -> bool:
    """Whether the last commit is there after a power cut that drops all that was not synced."""
    device = CrashDevice(SLOTS, SEGMENT, engine="store")
    store = on_device(device, durability=durability)
    for number in range(50):
        store[b"%d" % number] = b"v" * 100
    store.set(LAST, b"v", durable=durable)
    if then:
        getattr(store, then)()
    image, _ = device.durable_at(len(device.events))
    with on_device(device.reopened(image)) as again:
        found = contents(again)[""]
        keys = {int(key) for key in found if key != LAST}
        assert keys == set(range(len(keys)))
        assert LAST not in found or len(keys) == 50
        return LAST in found


@pytest.mark.slow
@pytest.mark.parametrize("durability", ["sync", "interval", "none"])
def test_close_keeps_everything(durability, tmp_path):
    assert ended(tmp_path / "store", durability, CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize("durability", ["sync", "interval", "none"])
def test_the_end_of_the_interpreter_keeps_everything(durability, tmp_path):
    assert ended(tmp_path / "store", durability, EXIT)


@pytest.mark.slow
def test_kill_keeps_every_commit_with_sync(tmp_path):
    assert ended(tmp_path / "store", "sync", KILL)


@pytest.mark.slow
@pytest.mark.parametrize("durability", ["interval", "none"])
def test_kill_keeps_durable_commits(durability, tmp_path):
    assert ended(tmp_path / "store", durability, KILL, durable=True)


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 4])
def test_kill_keeps_durable_batches(threads, tmp_path):
    """Large enough that their records are on the way before they are installed."""
    script = f"""
import os, signal, siltstone
from concurrent.futures import ThreadPoolExecutor
store = siltstone.Store({str(tmp_path / "store")!r}, durability="sync")
def work(thread):
    for number in range(0, 1000, 100):
        with store.batch() as batch:
            for key in range(number, number + 100):
                batch[b"%d:%d" % (thread, key)] = b"%d" % key * 40
with ThreadPoolExecutor({threads}) as pool:
    list(pool.map(work, range({threads})))
os.kill(os.getpid(), signal.SIGKILL)
"""
    ran = subprocess.run([sys.executable, "-c", script], timeout=60, check=False)
    assert ran.returncode == -signal.SIGKILL
    with siltstone.Store(tmp_path / "store") as store:
        assert len(store) == 1000 * threads
        for thread in range(threads):
            for key in range(1000):
                assert store[b"%d:%d" % (thread, key)] == b"%d" % key * 40
        assert store.verify().ok


@pytest.mark.slow
def test_a_durable_batch_that_cannot_be_written_is_an_error_and_the_last_one(tmp_path):
    """A file that may not be written any more, met when the batch begins to be written."""
    script = f"""
import resource, siltstone
def fill(store, name):
    with store.batch() as batch:
        for key in range(100):
            batch[b"%s%d" % (name, key)] = b"v" * 400
def refused(store, name):
    try:
        fill(store, name)
    except siltstone.errors.EnvironmentFailure as error:
        return str(error)
    raise AssertionError("nothing was written, and nobody said so")
store = siltstone.Store({str(tmp_path / "store")!r}, durability="sync")
fill(store, b"a")
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (1, hard))
print(refused(store, b"b"))
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
refused(store, b"c")
assert store[b"a99"] == b"v" * 400
"""
    ran = subprocess.run(
        [sys.executable, "-c", script], timeout=60, check=True, capture_output=True, text=True
    )
    assert "takes no more writes until it is opened again" in ran.stdout
    with siltstone.Store(tmp_path / "store") as store:
        keys = set(store)
        assert keys >= {b"a%d" % key for key in range(100)}
        assert not any(key.startswith(b"c") for key in keys)
        assert len(keys) in (100, 200)  # no part of a batch
        assert store.verify().ok


@pytest.mark.slow
@pytest.mark.parametrize("durability", ["interval", "none"])
def test_kill_keeps_a_prefix_up_to_the_last_sync(durability, tmp_path):
    assert ended(tmp_path / "store", durability, "store.sync(); " + KILL)
    assert not ended(tmp_path / "other", durability, KILL)


def test_power_cut_keeps_every_commit_with_sync():
    assert cut("sync")


@pytest.mark.parametrize("durability", ["interval", "none"])
def test_power_cut_keeps_durable_commits(durability):
    assert cut(durability, durable=True)


def test_power_cut_keeps_what_is_older_than_the_interval():
    """The interval's tick is what the background thread does at every flush_interval."""
    assert cut("interval", then="tick")
    assert not cut("interval")


@pytest.mark.parametrize("then", ["sync", "checkpoint", "close"])
def test_power_cut_with_none_keeps_what_was_synced(then):
    assert cut("none", then=then)
    assert not cut("none")


def test_relaxed_commit_of_a_sync_store_may_be_lost():
    assert not cut("sync", durable=False)


def test_every_cell_of_the_table_names_tests_that_exist():
    table = DOCUMENT.read_text().split("| durability |")[1].split("\n\n")[0]
    names = re.findall(r"`(test_\w+)`", table)
    assert len(names) >= 8
    here = Path(__file__).read_text()
    assert [name for name in names if f"def {name}(" not in here] == []
