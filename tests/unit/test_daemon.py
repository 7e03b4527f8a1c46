"""The servers as processes: start, answer, stop, exit codes; memcached's way and ours."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from siltstone.client import MemcachedClient
from siltstone.errors import EnvironmentFailure

pytestmark = pytest.mark.slow

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a command of `siltstone`; whatever still runs at the end is ended."""
    running: list[subprocess.Popen[str]] = []

    def run(*arguments: object) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "siltstone.cli", *map(str, arguments)],
            cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        running.append(process)
        return process

    yield run
    for process in running:
        if process.poll() is None:
            process.kill()
        process.communicate()


def connect(address: str, process: subprocess.Popen[str] | None = None) -> MemcachedClient:
    for _ in range(600):
        try:
            return MemcachedClient(address)
        except EnvironmentFailure:
            assert process is None or process.poll() is None, process.stderr.read()  # type: ignore[union-attr]
            threading.Event().wait(0.05)
    raise AssertionError(f"nobody answers at {address}")


def stop(process: subprocess.Popen[str], number: int = signal.SIGTERM) -> int:
    process.send_signal(number)
    return process.wait(30)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_serve_answers_and_stops_cleanly(start: Start, tmp_path: Path, number: int) -> None:
    server = start("serve", "--data", "data", "--memcached", tmp_path / "s", "--ram", "8MiB",
                   "--flash", "16MiB")  # fmt: skip
    with connect(str(tmp_path / "s"), server) as client:
        client.set(b"k", b"v")
        assert client.get(b"k") == (b"v", 0, -1)
    assert stop(server, number) == 0
    assert not (tmp_path / "s").exists()


def test_settings_come_from_file_and_environment(
    start: Start, tmp_path: Path, free_port: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    (tmp_path / "s.toml").write_text(
        f'[cache]\nram = "8MiB"\npath = "here"\n[memcached]\nlisten = ["127.0.0.1:{port}"]\n'
    )
    monkeypatch.setenv("SILTSTONE_CACHE_FLASH", "24MiB")
    server = start("serve", "--config", "s.toml", "--set", "memcached.connections_max=7")
    with connect(f"127.0.0.1:{port}", server) as client:
        stats = client.stats()
        assert int(stats["limit_maxbytes"]) == 8 << 20
        assert int(stats["extstore_limit_maxbytes"]) == 24 << 20
        assert int(stats["max_connections"]) == 7
    assert stop(server) == 0
    assert (tmp_path / "here" / "flash").exists()


def test_an_address_in_use_is_one_line(start: Start, free_port: Callable[[], int]) -> None:
    port = free_port()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        ours = start("serve", "--memcached", f"127.0.0.1:{port}", "--ram", "8MiB")
        theirs = start("memcached", "-l", "127.0.0.1", "-p", port, "-m", "8")
        assert ours.wait(30) == 1
        assert theirs.wait(30) == 71
    for process in (ours, theirs):
        assert process.stderr is not None
        text = process.stderr.read()
        assert f"failed to listen on TCP port {port}: Address already in use" in text
        assert text.count("\n") == 1


def test_memcached_with_flash(start: Start, tmp_path: Path) -> None:
    options = f"ext_page_size=2,ext_wbuf_size=2,ext_path={tmp_path}/flash:32m,ext_item_size=100"
    server = start("memcached", "-s", tmp_path / "s", "-m", "4", "-U", "0", "-o", options)
    with connect(str(tmp_path / "s"), server) as client:
        for number in range(20_000):
            client.set(b"k%d" % number, b"%d" % number * 100)
        for number in range(0, 20_000, 97):
            assert client.get(b"k%d" % number) == (b"%d" % number * 100, 0, -1)
        assert int(client.stats()["extstore_objects_used"]) > 1000
        settings = client.stats("settings")
        assert (settings["ext_item_size"], settings["ext_wbuf_size"]) == ("100", str(2 << 20))
        assert (settings["cas_enabled"], settings["evictions"]) == ("yes", "on")
    assert stop(server) == 0


def test_memcached_forbids_what_it_is_told_to(start: Start, tmp_path: Path) -> None:
    server = start(
        "memcached", "-s", tmp_path / "s", "-a", "0770", "-m", "8", "-M", "-F", "-X", "-C"
    )
    with connect(str(tmp_path / "s"), server) as client:
        assert (tmp_path / "s").stat().st_mode & 0o777 == 0o770
        settings = client.stats("settings")
        assert (settings["evictions"], settings["cas_enabled"]) == ("off", "no")
        assert (settings["flush_enabled"], settings["dump_enabled"]) == ("no", "no")
        refused = 0
        for number in range(30):
            try:
                client.set(b"k%d" % number, b"x" * 500_000)
            except EnvironmentFailure:
                refused += 1
        assert refused > 0
        assert client.get(b"k0") is not None  # nothing was evicted
    assert stop(server) == 0


def test_a_daemon_writes_its_pid_and_port(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEMCACHED_PORT_FILENAME", str(tmp_path / "ports"))
    parent = start("memcached", "-d", "-P", "pid", "-p", "-1", "-l", "127.0.0.1", "-m", "8", "-u",
                   "root")  # fmt: skip
    assert parent.wait(30) == 0
    for _ in range(600):
        if (tmp_path / "ports").exists():
            break
        threading.Event().wait(0.05)
    port = (tmp_path / "ports").read_text().strip().removeprefix("TCP INET: ")
    pid = int((tmp_path / "pid").read_text())
    try:
        with connect(f"127.0.0.1:{port}") as client:
            assert int(client.stats()["pid"]) == pid
    finally:
        os.kill(pid, signal.SIGTERM)
    for _ in range(600):
        if not (tmp_path / "pid").exists():
            break
        threading.Event().wait(0.05)
    assert not (tmp_path / "pid").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("ext_path=/no/such/folder/f:64m", "Failed to initialize external storage: "),
        ("ext_path=/proc/f:64m", "Failed to initialize external storage: "),
    ],
)
def test_flash_that_cannot_be_had(start: Start, options: str, message: str) -> None:
    server = start("memcached", "-p", "0", "-s", "s", "-o", options)
    assert server.wait(30) == 1
    assert server.stderr is not None
    text = server.stderr.read()
    assert text.startswith(message)
    assert text.count("\n") == 1


def test_an_unknown_user(start: Start) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root changes its user")
    server = start("memcached", "-u", "no-such-user", "-p", "0", "-s", "s")
    assert server.wait(30) == 67
    assert server.stderr is not None
    assert server.stderr.read() == "can't find the user no-such-user to switch to\n"


def test_a_pid_file_that_cannot_be_written_stops_nobody(start: Start, tmp_path: Path) -> None:
    server = start("memcached", "-s", tmp_path / "s", "-m", "8", "-P", tmp_path / "no" / "pid")
    with connect(str(tmp_path / "s"), server) as client:
        client.set(b"k", b"v")
    assert stop(server) == 0
    assert server.stderr is not None
    assert server.stderr.read().startswith("Could not open the pid file")
