"""Several processes (and several names) on one data directory: who gets in, who is refused why."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import siltstone
from siltstone import errors
from siltstone.cache import attachment, orphans
from siltstone.log import device, machine

SMALL: dict[str, Any] = {"ram": "4MiB", "flash": "8MiB", "segment_size": "256KiB"}


def open_small(path: Path, **settings: Any) -> siltstone.Cache:
    return siltstone.Cache(path, **{**SMALL, **settings})


class Member:
    """Another process that has the cache open, and does what it is told."""

    def __init__(self, path: Path, **settings: Any) -> None:
        self._ours, theirs = multiprocessing.Pipe()
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                self._ours.close()
                with open_small(path, **settings) as cache:
                    theirs.send("open")
                    while (word := theirs.recv()) is not None:
                        theirs.send(getattr(cache, word[0])(*word[1:]))
                code = 0
            finally:
                os._exit(code)
        theirs.close()
        assert self._ours.recv() == "open"

    def do(self, *word: Any) -> Any:
        self._ours.send(word)
        return self._ours.recv()

    def close(self) -> None:
        self._ours.send(None)
        assert os.waitpid(self.pid, 0)[1] == 0
        self._ours.close()

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        self._ours.close()


def door_of(path: Path) -> dict[str, Any]:
    return dict(json.loads((path / "lock").read_bytes()[:1024].strip(b"\0 ")))


@pytest.mark.parametrize("arena", ["shm", "memfd", "file"])
def test_members_see_the_same_items(tmp_path: Path, arena: str) -> None:
    member = Member(tmp_path, arena=arena)
    assert member.do("set", "a", 1) is True
    with open_small(tmp_path, arena=arena) as cache:
        assert cache["a"] == 1
        cache["b"] = [2]
        assert member.do("get", "b") == [2]
        assert member.do("incr", "a") == 2
        third = Member(tmp_path, arena=arena)
        member.close()
        assert third.do("get", "a") == 2
        assert cache.incr("a") == 3
        third.close()
        assert cache["b"] == [2]
    with open_small(tmp_path, arena=arena) as cache:
        assert cache["a"] == 3


@pytest.mark.parametrize("arena", ["shm", "file"])
def test_the_last_one_out_removes_the_arena(tmp_path: Path, arena: str) -> None:
    member = Member(tmp_path, arena=arena)
    name = door_of(tmp_path)["arena"]
    assert os.stat(name).st_mode & 0o777 == 0o600
    assert os.path.dirname(name) == ("/dev/shm" if arena == "shm" else str(tmp_path))
    with open_small(tmp_path, arena=arena):
        member.close()
        assert os.path.exists(name)
    assert not os.path.exists(name)
    assert "arena" not in door_of(tmp_path)


def test_a_killed_member_s_arena_is_used_again(tmp_path: Path) -> None:
    member = Member(tmp_path)
    member.do("set", "a", "in memory only")
    name = door_of(tmp_path)["arena"]
    member.kill()
    assert os.path.exists(name)
    with open_small(tmp_path) as cache:
        assert door_of(tmp_path)["arena"] == name
        assert cache["a"] == "in memory only"
    assert not os.path.exists(name)


def test_with_other_settings_it_is_not(tmp_path: Path) -> None:
    member = Member(tmp_path)
    member.do("set", "a", 1)
    name = door_of(tmp_path)["arena"]
    member.kill()
    with open_small(tmp_path, ram="5MiB") as cache:
        assert not os.path.exists(name)
        assert cache.stats()["limit_maxbytes"] == 5 << 20


def test_another_device_makes_it_useless(tmp_path: Path) -> None:
    member = Member(tmp_path)
    member.do("set", "a", 1)
    member.kill()
    (tmp_path / "flash").unlink()
    with open_small(tmp_path) as cache:
        assert "a" not in cache
        cache["b"] = 1
        assert cache["b"] == 1


def test_a_copy_of_a_data_directory_is_another_cache(tmp_path: Path) -> None:
    original, copy = tmp_path / "original", tmp_path / "copy"
    with open_small(original) as cache:
        cache["a"] = 1
        shutil.copytree(original, copy)
        member = Member(copy)
        member.do("set", "b", 2)
        assert "b" not in cache
        assert cache["a"] == 1
        member.close()
        assert os.path.exists(door_of(original)["arena"])
        cache["c"] = 3
    with open_small(copy) as other:
        assert other["b"] == 2
        assert "c" not in other


def test_symbolic_links_lead_to_the_same_cache(tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    real.mkdir()
    link.symlink_to(real)
    with open_small(real) as one, open_small(link) as two:
        assert one.engine is two.engine
        one["a"] = 1
        assert two["a"] == 1
        member = Member(link)
        assert member.do("get", "a") == 1
        member.close()


def test_two_openings_in_a_process_share_one_attachment(tmp_path: Path) -> None:
    one = open_small(tmp_path)
    two = open_small(tmp_path)
    one["a"] = 1
    one.close()
    assert two["a"] == 1
    with pytest.raises(errors.ConfigError, match="ram = 4194304, not 8388608"):
        open_small(tmp_path, ram="8MiB")
    two.close()
    with open_small(tmp_path, ram="8MiB") as three:
        assert three["a"] == 1


def test_other_settings_while_it_is_open_are_refused(tmp_path: Path) -> None:
    member = Member(tmp_path)
    with pytest.raises(errors.ConfigError, match=rf"pid {member.pid} with other settings: ram"):
        open_small(tmp_path, ram="8MiB")
    member.close()


def test_private_and_shared_do_not_mix(tmp_path: Path) -> None:
    member = Member(tmp_path)
    with pytest.raises(errors.Locked, match=rf"in use by pid {member.pid}"):
        open_small(tmp_path, arena="private")
    member.close()
    member = Member(tmp_path, arena="private")
    with pytest.raises(errors.Locked, match=rf"in use by pid {member.pid}"):
        open_small(tmp_path)
    member.close()


def rewrite_door(path: Path, **changes: Any) -> None:
    door = {**door_of(path), **changes}
    with open(path / "lock", "r+b") as file:
        file.write(json.dumps(door).encode().ljust(1024))


def test_another_dev_shm_is_refused(tmp_path: Path) -> None:
    member = Member(tmp_path)
    rewrite_door(tmp_path, inode=1)
    with pytest.raises(errors.Locked) as caught:
        open_small(tmp_path)
    assert str(caught.value).endswith(
        f"{tmp_path} is in use by pid {member.pid} with another /dev/shm; "
        'start both with the same one, or use arena="file"'
    )
    member.kill()


def test_another_layout_is_refused(tmp_path: Path) -> None:
    member = Member(tmp_path)
    rewrite_door(tmp_path, layout=99)
    with pytest.raises(errors.Locked, match=rf"pid {member.pid} with memory of layout 99.*layout"):
        open_small(tmp_path)
    member.kill()
    with open_small(tmp_path) as cache:  # nobody uses it any more: a new one
        cache["a"] = 1


def test_network_file_systems_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "network_file_system", lambda path: "nfs4")
    with pytest.raises(errors.ConfigError, match="nfs4"):
        open_small(tmp_path)


def test_more_than_128_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attachment, "PROCESS_SLOTS", 2)
    one, two = Member(tmp_path), Member(tmp_path)
    with pytest.raises(errors.Locked, match="open in 2 processes"):
        open_small(tmp_path)
    one.close()
    with open_small(tmp_path):
        pass
    two.close()


def test_a_small_dev_shm_gives_a_memfd_and_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(attachment, "free_bytes", lambda directory: 1 << 20)
    with caplog.at_level(logging.WARNING), open_small(tmp_path) as cache:
        assert door_of(tmp_path)["arena"] == "memfd"
        member = Member(tmp_path)
        member.do("set", "a", 1)
        assert cache["a"] == 1
        member.close()
    assert "less than 4MiB free" in caplog.text
    assert "--shm-size" in caplog.text
    with pytest.raises(errors.OutOfMemory, match="/dev/shm has no room for an arena of 4MiB"):
        open_small(tmp_path, arena="shm")
    with open_small(tmp_path) as cache:
        assert cache["a"] == 1


def test_a_directory_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.EnvironmentFailure):
        open_small(tmp_path / "file")
    with pytest.raises(errors.EnvironmentFailure):
        open_small(tmp_path / "file" / "below")


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_directory_that_is_not_writable(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(errors.EnvironmentFailure, match="not writable"):
        open_small(tmp_path)
    tmp_path.chmod(0o700)


# The flash file ------------------------------------------------------------------------------


def test_flash_files_that_are_wrong(tmp_path: Path) -> None:
    def prepared(name: str) -> Path:
        with open_small(tmp_path / name) as cache:
            cache["a"] = 1
        return tmp_path / name

    truncated = prepared("truncated")
    os.truncate(truncated / "flash", 1 << 20)
    with pytest.raises(errors.Corruption, match="truncated"):
        open_small(truncated)
    foreign = prepared("foreign")
    (foreign / "flash").write_bytes(b"not ours" * (1 << 20))
    with pytest.raises(errors.Corruption):
        open_small(foreign)
    missing = prepared("missing")
    (missing / "flash").unlink()
    with open_small(missing) as cache:
        assert "a" not in cache
        cache["b"] = 1
    leftovers = [name for name in os.listdir("/dev/shm") if names_one_of(tmp_path, name)]
    assert leftovers == []


def names_one_of(path: Path, name: str) -> bool:
    if not name.startswith("siltstone-"):
        return False
    try:
        with open(f"/dev/shm/{name}", "rb") as file:
            return str(path).encode() in file.read(4096)
    except OSError:
        return False


def test_a_missing_flash_file_while_others_use_it(tmp_path: Path) -> None:
    member = Member(tmp_path)
    (tmp_path / "flash").unlink()
    with pytest.raises(errors.EnvironmentFailure, match="does not exist"):
        open_small(tmp_path)
    assert not (tmp_path / "flash").exists()
    assert member.do("set", "a", 1) is True
    member.close()


def test_a_flash_file_that_another_has(tmp_path: Path) -> None:
    flash = tmp_path / "flash"
    member = Member(tmp_path / "one", files=[(flash, "8MiB")], arena="private")
    with pytest.raises(errors.Locked, match=rf"flash is in use by pid {member.pid}"):
        open_small(tmp_path / "two", files=[(flash, "8MiB")])
    member.close()


# Orphans -------------------------------------------------------------------------------------


def test_arenas_of_dead_caches_are_removed(tmp_path: Path) -> None:
    gone, kept = tmp_path / "gone", tmp_path / "kept"
    names = []
    for path in (gone, kept):
        member = Member(path)
        member.do("set", "a", 1)
        names.append(door_of(path)["arena"])
        member.kill()
    shutil.rmtree(gone)
    living = Member(tmp_path / "living")
    with open_small(tmp_path / "new"):
        assert [os.path.exists(name) for name in names] == [False, True]
        assert os.path.exists(door_of(tmp_path / "living")["arena"])
    living.close()
    with open_small(kept) as cache:
        assert cache["a"] == 1


def test_an_arena_that_was_never_announced_is_removed(tmp_path: Path) -> None:
    with open_small(tmp_path) as cache:
        descriptor, name = device.create_arena_file("/dev/shm", 1 << 16)
        orphans.sign(descriptor, tmp_path)
        unsigned, other = device.create_arena_file("/dev/shm", 1 << 16)
        os.close(descriptor)
        os.close(unsigned)
        try:
            with open_small(tmp_path / "second"):
                assert not os.path.exists(name)
                assert os.path.exists(other)  # perhaps somebody is making it right now
            os.utime(other, (0, 0))
            with open_small(tmp_path / "second"):
                assert not os.path.exists(other)
        finally:
            device.remove_files([name, other])
        cache["a"] = 1


# Leaving -------------------------------------------------------------------------------------


def test_a_cache_that_is_dropped_lets_go(tmp_path: Path) -> None:
    cache = open_small(tmp_path)
    cache["a"] = 1
    name = door_of(tmp_path)["arena"]
    del cache
    assert not os.path.exists(name)


def test_a_program_that_forgets_to_close(tmp_path: Path) -> None:
    program = (
        "import siltstone, sys\n"
        "cache = siltstone.Cache(sys.argv[1], ram='4MiB', flash='8MiB', segment_size='256KiB')\n"
        "cache['a'] = 1\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, timeout=60)
    assert "arena" not in door_of(tmp_path)
    with open_small(tmp_path) as cache:
        assert cache["a"] == 1


def test_without_workers_there_is_no_thread(tmp_path: Path) -> None:
    before = threading.active_count()
    with open_small(tmp_path, workers=0) as cache:
        assert threading.active_count() == before
        for number in range(4000):
            cache[number] = bytes(2000)
        assert cache.stats()["items_flash"] > 1000
        assert sum(number in cache for number in range(4000)) > 2000
    with open_small(tmp_path, workers=2):
        assert threading.active_count() == before + 1
    assert threading.active_count() == before


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_multiprocessing(tmp_path: Path, method: str) -> None:
    context = multiprocessing.get_context(method)
    ours, theirs = context.Pipe()
    with open_small(tmp_path) as cache:
        cache["a"] = 1
        process = context.Process(target=_send, args=(theirs, cache))
        process.start()
        assert ours.recv() == 1
        process.join(60)
        assert process.exitcode == 0
        assert cache["b"] == 2
    ours.close()
    theirs.close()
    with open_small(tmp_path) as cache:
        assert cache["b"] == 2


def _send(pipe: Any, cache: siltstone.Cache) -> None:
    cache["b"] = 2
    pipe.send(cache["a"])


def test_a_finalizer_waits_for_nobody(tmp_path: Path) -> None:
    """It may run in a thread whose start somebody awaits who opens a cache."""
    cache = siltstone.Cache(tmp_path / "a", ram="2MiB", flash=0)
    attached = cache._attachment
    cache._release.detach()
    with attachment._guard:
        finalizer = threading.Thread(target=attached.forget)
        finalizer.start()
        finalizer.join(10)
        assert not finalizer.is_alive()
        assert not attached.closed
    with siltstone.Cache(tmp_path / "b", ram="2MiB", flash=0):
        assert attached.closed


# Who is at the door -------------------------------------------------------------------------

DOORKEEPER = """
import fcntl, os, sys
descriptor = os.open(sys.argv[1], os.O_RDWR)
fcntl.lockf(descriptor, fcntl.LOCK_EX, 1, (1 << 20) + 1)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def doorkeeper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Starts a process that holds the door of the cache at `tmp_path / "c"`, and gives it."""
    monkeypatch.setattr(attachment, "DOOR_LIMIT_MS", 20)
    started: list[subprocess.Popen[str]] = []

    def start() -> subprocess.Popen[str]:
        command = [sys.executable, "-c", DOORKEEPER, str(tmp_path / "c" / "lock")]
        pipe = subprocess.PIPE
        started.append(subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True))
        assert started[-1].stdout is not None
        assert started[-1].stdout.readline() == "held\n"
        return started[-1]

    yield start
    for one in started:
        one.communicate()


def test_who_cannot_close_in_order_lets_go_all_the_same(tmp_path: Path, doorkeeper: Any) -> None:
    cache = siltstone.Cache(tmp_path / "c", ram="4MiB", flash="64MiB")
    cache["k"] = 1
    keeper = doorkeeper()
    with pytest.raises(errors.Busy):
        cache.close()
    keeper.communicate()
    assert not [file for file in device._open_files.values() if str(tmp_path) in file.path]
    with siltstone.Cache(tmp_path / "c", ram="4MiB", flash="64MiB") as again:
        assert again["k"] == 1
        again["l"] = 2
    with siltstone.Cache(tmp_path / "c", ram="4MiB", flash="64MiB") as again:
        assert dict(again.items()) == {"k": 1, "l": 2}


def test_a_forgotten_cache_that_cannot_close_is_nobody_else_s_error(
    tmp_path: Path, doorkeeper: Any, caplog: pytest.LogCaptureFixture
) -> None:
    cache = siltstone.Cache(tmp_path / "c", ram="4MiB", flash="64MiB")
    doorkeeper()
    cache._release.detach()
    cache._unbind()
    attachment._forgotten.append(cache._attachment)
    with siltstone.Cache(tmp_path / "other", ram="4MiB") as other:
        other["k"] = 1
    assert not attachment._forgotten
    assert "was not closed in order" in caplog.text
