"""The command line's memcached client, against a scripted server and against memcached."""

from __future__ import annotations

import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from siltstone.client import MemcachedClient, parse_address
from siltstone.errors import EnvironmentFailure, InvalidKey, PeerError, TooLarge


class Scripted:
    """Answers each received request with the next prepared reply; keeps what it received."""

    def __init__(self, path: Path, replies: list[bytes]) -> None:
        self.received = b""
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._replies = replies
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        connection, _ = self._listener.accept()
        with connection, self._listener:
            for reply in self._replies:
                self.received += connection.recv(65536)
                for byte in reply:  # one at a time: the client must join them
                    connection.sendall(bytes([byte]))

    def join(self) -> None:
        self._thread.join(5)


@pytest.fixture
def scripted(tmp_path: Path) -> Callable[..., tuple[Scripted, MemcachedClient]]:
    def start(*replies: bytes) -> tuple[Scripted, MemcachedClient]:
        path = tmp_path / "socket"
        return Scripted(path, list(replies)), MemcachedClient(str(path), timeout=5)

    return start


Start = Callable[..., tuple[Scripted, MemcachedClient]]


def test_requests_are_meta_commands(scripted: Start) -> None:
    replies = (b"VA 3 f16 t-1\r\na\nb\r\n", b"EN\r\n", b"HD\r\n", b"NF\r\n", b"HD\r\n")
    server, client = scripted(*replies)
    with client:
        assert client.get(b"k") == (b"a\nb", 16, -1)
        assert client.get(b"k") is None
        assert client.delete(b"with space") is True
        assert client.delete(b"k") is False
        client.set(b"k", b"v", 2, 60)
    server.join()
    assert server.received == (
        b"mg k v f t\r\nmg k v f t\r\nmd d2l0aCBzcGFjZQ== b\r\nmd k\r\nms k 1 F2 T60\r\nv\r\n"
    )


def test_stats_and_keys(scripted: Start) -> None:
    _, client = scripted(
        b"STAT a 1\r\nSTAT b x y\r\nEND\r\n", b"key=a%20b exp=-1\nkey=c exp=1\nEND\r\n"
    )
    with client:
        assert client.stats("settings") == {"a": "1", "b": "x y"}
        assert list(client.keys()) == [b"a b", b"c"]


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (b"SERVER_ERROR object too large for cache\r\n", TooLarge),
        (b"SERVER_ERROR busy\r\n", EnvironmentFailure),
        (b"CLIENT_ERROR bad\r\n", PeerError),
        (b"ERROR\r\n", PeerError),
        (b"", EnvironmentFailure),
    ],
)
def test_error_replies(scripted: Start, reply: bytes, error: type[Exception]) -> None:
    _, client = scripted(reply)
    with client, pytest.raises(error, match="socket"):
        client.set(b"k", b"v")


def test_keys_that_cannot_be_sent(scripted: Start) -> None:
    _, client = scripted()
    with client:
        for key in (b"", b"k" * 251):
            with pytest.raises(InvalidKey):
                client.get(key)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("h:1", ("h", 1)),
        ("[::1]:2", ("::1", 2)),
        ("3", ("127.0.0.1", 3)),
        ("h", ("h", 11211)),
        ("[::1]", ("::1", 11211)),
        (":4", ("127.0.0.1", 4)),
    ],
)
def test_addresses(text: str, address: tuple[str, int]) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize("text", ["h:x", "h:70000", "h:"])
def test_bad_addresses(text: str) -> None:
    with pytest.raises(ValueError, match="HOST:PORT"):
        parse_address(text)
    with pytest.raises(EnvironmentFailure, match="no server"):
        MemcachedClient(text)


def test_no_server(free_port: Callable[[], int]) -> None:
    with pytest.raises(EnvironmentFailure, match=r"no server at 127\.0\.0\.1"):
        MemcachedClient(f"127.0.0.1:{free_port()}")


@pytest.fixture
def memcached(tmp_path: Path) -> Iterator[str]:
    path = tmp_path / "memcached"
    process = subprocess.Popen(["memcached", "-u", "root", "-s", str(path), "-U", "0"])
    try:
        for _ in range(500):
            with socket.socket(socket.AF_UNIX) as probe:
                if probe.connect_ex(str(path)) == 0:
                    break
            threading.Event().wait(0.01)
        yield str(path)
    finally:
        process.terminate()
        process.wait()


@pytest.mark.skipif(not shutil.which("memcached"), reason="memcached is not here")
def test_memcached_understands_us(memcached: str) -> None:
    with MemcachedClient(memcached) as client:
        client.set(b"key", b"value", 16, 100)
        client.set(b"a key", b"x" * 100_000)
        value, flags, left = client.get(b"key") or (b"", 0, 0)
        assert (value, flags) == (b"value", 16)
        assert 98 <= left <= 100
        assert client.get(b"a key") == (b"x" * 100_000, 0, -1)
        assert client.get(b"none") is None
        assert client.delete(b"key")
        assert not client.delete(b"key")
        assert int(client.stats()["curr_items"]) == 1
        assert list(client.keys()) == [b"a key"]
        with pytest.raises(TooLarge):
            client.set(b"large", b"x" * (2 << 20))
        assert client.get(b"a key") is not None
