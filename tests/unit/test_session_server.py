"""The server on real sockets: clients, limits, clients that misbehave, stopping."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import bmemcached
import pytest
from backend import FlashBackend
from pymemcache.exceptions import MemcacheClientError, MemcacheServerError
from serverrig import Running, read_until

from siltstone.errors import ConfigError, EnvironmentFailure
from siltstone.serve.server import port_lines
from siltstone.serve.settings import Settings, split_address


def read_all(sock: socket.socket) -> bytes:
    return read_until(sock, b"\0 never sent")


def wait_for(condition: Callable[[], bool]) -> None:
    for _ in range(2000):
        if condition():
            return
        threading.Event().wait(0.005)
    raise AssertionError("it never became true")


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with Running() as server:
        yield server


# A real client ------------------------------------------------------------------------------


def test_a_client_of_the_binary_protocol(running: Running) -> None:
    client = bmemcached.Client((f"127.0.0.1:{running.server.ports[0]}",), compression=None)
    assert client.set("a", "text", time=60)
    assert client.get("a") == "text"
    assert client.set_multi({"x": 1, "y": b"two", "large": "z" * 500_000}) == []
    assert client.get_multi(["x", "y", "none"]) == {"x": 1, "y": b"two"}
    assert client.get("large") == "z" * 500_000
    assert [client.incr("n", 5, default=10), client.incr("n", 5), client.decr("n", 3)] == [
        10, 15, 12,
    ]  # fmt: skip
    _, cas = client.gets("a")
    assert client.cas("a", "new", cas)
    assert not client.cas("a", "newer", cas)
    assert not client.add("a", "z")
    assert not client.replace("none", "z")
    with contextlib.closing(running.client()) as text:
        assert text.get("a") == b"new"
    assert client.delete("a")
    assert client.get("a") is None
    (statistics,) = client.stats().values()
    assert int(statistics["cmd_set"]) >= 4
    assert client.flush_all()
    assert client.get_multi(["x", "y"]) == {}
    client.disconnect_all()


def test_pymemcache(running: Running) -> None:
    client = running.client(default_noreply=False)
    assert client.set("a", b"1")
    assert client.get("a") == b"1"
    assert client.get("none", b"default") == b"default"
    assert client.set_many({"x": b"1", "y": b"2", "z": b"3"}) == []
    assert client.get_many(["x", "y", "z", "none"]) == {"x": b"1", "y": b"2", "z": b"3"}
    assert client.gets("x")[1] is not None
    _value, cas = client.gets("x")
    assert client.cas("x", b"new", cas) is True
    assert client.cas("x", b"newer", cas) is False
    assert client.cas("none", b"newer", cas) is None
    assert sorted(client.gets_many(["x", "y"])) == ["x", "y"]
    assert client.add("a", b"2") is False
    assert client.add("b", b"2") is True
    assert client.replace("none", b"2") is False
    assert client.append("b", b"!")
    assert client.prepend("b", b"?")
    assert client.get("b") == b"?2!"
    assert client.incr("a", 41) == 42
    assert client.decr("a", 2) == 40
    assert client.incr("none", 1) is None
    assert client.touch("a", 100)
    assert not client.touch("none", 100)
    assert client.delete("a")
    assert not client.delete("a")
    assert client.delete_many(["x", "y"])
    assert client.version() == b"1.6.18"
    assert int(client.stats()[b"cmd_get"]) > 0
    assert client.stats("settings")[b"item_size_max"] == 1 << 20
    with pytest.raises(MemcacheServerError, match="too large"):
        client.set("big", b"x" * 2_000_000)
    with pytest.raises(MemcacheClientError):
        client.incr("b", 1)
    assert client.cache_memlimit(64)
    assert client.flush_all()
    assert client.get("z") is None
    client.set("q", b"1", noreply=True)
    assert client.get("q") == b"1"
    client.quit()


def test_pymemcache_with_values_of_all_sizes(running: Running) -> None:
    client = running.client()
    values = {f"s{size}": os.urandom(size) for size in (0, 1, 100, 4095, 65536, 1_000_000)}
    for key, value in values.items():
        client.set(key, value, noreply=False)
    assert client.get_many(list(values)) == values
    for key, value in values.items():
        assert client.get(key) == value
    client.close()


def test_without_uvloop() -> None:
    with Running(uvloop=False) as server:
        client = server.client(default_noreply=False)
        assert client.set("a", b"x" * 500_000)
        assert client.get("a") == b"x" * 500_000
        client.close()


# Many clients -------------------------------------------------------------------------------


def test_many_clients_and_one_that_never_reads() -> None:
    with Running(output_size_max=64 << 10) as server:
        with server.connect() as sock:
            sock.sendall(b"set big 0 0 100000\r\n" + b"x" * 100_000 + b"\r\n")
            assert read_until(sock, b"\r\n") == b"STORED\r\n"
        silent = server.connect()
        silent.setblocking(False)
        sent = 0
        try:
            while sent < 50 << 20:
                sent += silent.send(b"get big\r\n" * 1000)
        except BlockingIOError:
            pass  # the server has stopped reading
        assert sent < 50 << 20
        failures: list[str] = []

        def work(number: int) -> None:
            with server.connect() as sock:
                for turn in range(50):
                    key = b"k%d.%d" % (number, turn)
                    sock.sendall(b"set %b 0 0 4\r\nabcd\r\nget %b\r\n" % (key, key))
                    if read_until(sock, b"END\r\n") != (
                        b"STORED\r\nVALUE %b 0 4\r\nabcd\r\nEND\r\n" % key
                    ):
                        failures.append(key.decode())

        threads = [threading.Thread(target=work, args=(number,)) for number in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        assert server.control.shared.buffered < 4 << 20
        # it reads after all: what it asked for comes, in order
        silent.setblocking(True)
        silent.settimeout(10)
        one = b"VALUE big 0 100000\r\n" + b"x" * 100_000 + b"\r\nEND\r\n"
        reply = b""
        while len(reply) < 100 * len(one):
            reply += silent.recv(1 << 20)
        assert reply.startswith(one * 100)
        silent.close()


def test_a_pipeline_larger_than_every_buffer(running: Running) -> None:
    count = 100_000
    with running.connect() as sock:
        reply = bytearray()

        def read() -> None:
            reply.extend(read_until(sock, b"VERSION 1.6.18\r\n"))

        reader = threading.Thread(target=read)
        reader.start()
        sock.sendall(b"set a 0 0 1\r\nx\r\n" + b"get a\r\n" * count + b"version\r\n")
        reader.join(30)
    assert bytes(reply) == (
        b"STORED\r\n" + b"VALUE a 0 1\r\nx\r\nEND\r\n" * count + b"VERSION 1.6.18\r\n"
    )


def test_half_closed_clients_get_their_answers(running: Running) -> None:
    with running.connect() as sock:
        sock.sendall(b"set a 0 0 1\r\nx\r\n" + b"get a\r\n" * 1000)
        sock.shutdown(socket.SHUT_WR)
        assert read_all(sock) == b"STORED\r\n" + b"VALUE a 0 1\r\nx\r\nEND\r\n" * 1000


def test_quit_and_bad_lines_close(running: Running) -> None:
    for data, reply in (
        (b"version\r\nquit\r\nversion\r\n", b"VERSION 1.6.18\r\n"),
        (b"version\r\n" + b"x" * 10_000, b"VERSION 1.6.18\r\n"),
        (b"GET / HTTP/1.1\r\n\r\n", b""),
    ):
        with running.connect() as sock:
            sock.sendall(data)
            try:
                assert read_all(sock) == reply
            except ConnectionResetError:
                pass  # closed with unread input: the reply may be lost


def test_connections_have_a_limit() -> None:
    with Running(connections_max=3) as server:
        socks = [server.connect() for _ in range(3)]
        for sock in socks:
            sock.sendall(b"version\r\n")
            assert read_until(sock, b"\r\n") == b"VERSION 1.6.18\r\n"
        with server.connect() as refused:
            assert read_all(refused) == b"ERROR Too many open connections\r\n"
        socks.pop().close()
        wait_for(lambda: len(server.server.connections) == 2)
        assert server.stats()["rejected_connections"] == "1"
        assert server.stats()["curr_connections"] == "3"
        for sock in socks:
            sock.close()


def test_idle_connections_are_closed() -> None:
    with Running(idle_timeout=0.05) as server:
        with server.connect() as sock:
            sock.sendall(b"version\r\n")
            assert read_all(sock) == b"VERSION 1.6.18\r\n"
        assert server.control.counters.idle_kicks == 1


def test_socket_options(running: Running) -> None:
    with running.connect() as sock:
        sock.sendall(b"version\r\n")
        read_until(sock, b"\r\n")
        connection = max(running.server.connections, key=lambda each: each.number)
        ours = connection.transport.get_extra_info("socket")
        assert ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


# Flash --------------------------------------------------------------------------------------


def test_slow_flash_reads_delay_their_own_connection_only() -> None:
    backend = FlashBackend()
    with Running(backend) as server, server.connect() as slow, server.connect() as quick:
        slow.sendall(b"set a 0 0 1\r\nx\r\nset b 0 0 1\r\ny\r\n")
        assert read_until(slow, b"STORED\r\nSTORED\r\n") == b"STORED\r\nSTORED\r\n"
        backend.to_flash()
        backend.device.gate.clear()
        slow.sendall(b"get a\r\nversion\r\nget b\r\n")
        wait_for(lambda: backend.device.waiting > 0)
        quick.sendall(b"version\r\nstats conns\r\n")
        assert b"conn_io_pending" in read_until(quick, b"END\r\n")
        backend.device.gate.set()
        assert read_until(slow, b"y\r\nEND\r\n") == (
            b"VALUE a 0 1\r\nx\r\nEND\r\nVERSION 1.6.18\r\nVALUE b 0 1\r\ny\r\nEND\r\n"
        )


def test_a_client_that_leaves_during_a_read_is_no_trouble() -> None:
    backend = FlashBackend()
    with Running(backend) as server:
        with server.connect() as sock:
            sock.sendall(b"set a 0 0 1\r\nx\r\n")
            read_until(sock, b"\r\n")
        backend.to_flash()
        backend.device.gate.clear()
        gone = server.connect()
        gone.sendall(b"get a\r\n")
        wait_for(lambda: backend.device.waiting == 1)
        gone.close()
        wait_for(lambda: not server.server.connections or backend.device.waiting == 1)
        backend.device.gate.set()
        with server.connect() as sock:
            sock.sendall(b"get a\r\n")
            assert read_until(sock, b"END\r\n") == b"VALUE a 0 1\r\nx\r\nEND\r\n"


def test_reads_of_all_connections_have_a_limit() -> None:
    backend = FlashBackend()
    with Running(backend, reads_in_flight_max=4, read_threads=2) as server:
        socks = [server.connect() for _ in range(10)]
        with server.connect() as sock:
            for number in range(30):
                sock.sendall(b"set k%d 0 0 1\r\nx\r\n" % number)
                read_until(sock, b"STORED\r\n")
        backend.to_flash()
        for number, sock in enumerate(socks):
            keys = b" ".join(b"k%d" % (3 * number + k) for k in range(3))
            sock.sendall(b"get " + keys + b"\r\n")
        for number, sock in enumerate(socks):
            expected = b"".join(b"VALUE k%d 0 1\r\nx\r\n" % (3 * number + k) for k in range(3))
            assert read_until(sock, b"END\r\n") == expected + b"END\r\n"
            sock.close()


# Where it listens ---------------------------------------------------------------------------


def test_several_addresses() -> None:
    with Running(listen=("127.0.0.1:0", "127.0.0.2:-1")) as server:
        ports = server.server.ports
        assert len(ports) == 2
        for host, port in zip(("127.0.0.1", "127.0.0.2"), ports, strict=True):
            with socket.create_connection((host, port)) as sock:
                sock.sendall(b"version\r\n")
                assert read_until(sock, b"\r\n") == b"VERSION 1.6.18\r\n"
        assert port_lines(server.server) == f"TCP INET: {ports[0]}\nTCP INET: {ports[1]}\n"


def test_ipv6() -> None:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")
    with Running(listen="[::1]:0") as server:
        sock = socket.create_connection(("::1", server.server.ports[0]))
        sock.sendall(b"version\r\n")
        assert read_until(sock, b"\r\n") == b"VERSION 1.6.18\r\n"
        sock.close()


def test_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))  # left behind by a server that was killed
    with Running(listen=(), unix_socket=path, unix_mode=0o640) as server:
        assert path.stat().st_mode & 0o777 == 0o640
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(path))
            sock.sendall(b"version\r\n")
            assert read_until(sock, b"\r\n") == b"VERSION 1.6.18\r\n"
        with pytest.raises(EnvironmentFailure, match="in use"), Running(unix_socket=path):
            pass
        assert server.server.ports == []
    assert not path.exists()


def test_an_address_in_use() -> None:
    with Running() as server:
        port = server.server.ports[0]
        second = Running(listen=f"127.0.0.1:{port}")
        with pytest.raises(EnvironmentFailure, match=f"failed to listen on TCP port {port}"):
            second.__enter__()


def test_addresses_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="it is no host's name"):
        Running(listen="a..b:1").__enter__()
    with pytest.raises(EnvironmentFailure, match="path too long"):
        Running(unix_socket=tmp_path / ("x" * 200)).__enter__()


@pytest.mark.parametrize(
    ("text", "expected"),
    [("127.0.0.1", ("127.0.0.1", 11211)), ("host:5", ("host", 5)), ("[::1]:7", ("::1", 7)),
     ("[::1]", ("::1", 11211)), ("::1", ("::1", 11211)), ("*", ("", 11211)), ("h:-1", ("h", 0)),
     (":5", ("", 5))],
)  # fmt: skip
def test_addresses(text: str, expected: tuple[str, int]) -> None:
    assert split_address(text, 11211) == expected


@pytest.mark.parametrize("text", ["a:x", "a:70000", "[::1]x", "[::1]:x"])
def test_bad_addresses(text: str) -> None:
    with pytest.raises(ConfigError, match="is no address"):
        Settings(listen=text)


# Stopping -----------------------------------------------------------------------------------


def test_a_stop_finishes_what_is_in_flight() -> None:
    backend = FlashBackend()
    with Running(backend) as server:
        sock = server.connect()
        sock.sendall(b"set a 0 0 1\r\nx\r\n")
        read_until(sock, b"\r\n")
        backend.to_flash()
        backend.device.gate.clear()
        sock.sendall(b"get a\r\n")
        wait_for(lambda: backend.device.waiting == 1)
        server.loop.call_soon_threadsafe(server.server.request_stop)
        wait_for(lambda: server.server.stopping)
        backend.device.gate.set()
        assert read_all(sock) == b"VALUE a 0 1\r\nx\r\nEND\r\n"
        sock.close()


def test_a_stop_does_not_wait_for_clients_that_do_not_read() -> None:
    with Running(close_timeout=0.1) as server:
        with server.connect() as sock:
            sock.sendall(b"set big 0 0 1000000\r\n" + b"x" * 1_000_000 + b"\r\n")
            read_until(sock, b"\r\n")
        silent = server.connect()
        silent.sendall(b"get big\r\n" * 100)
        wait_for(lambda: any(not c.writable for c in server.server.connections))
    silent.close()


SERVE = """
import sys
import siltstone
from siltstone.serve import server
from siltstone.serve.settings import Settings
cache = siltstone.Cache(sys.argv[1], ram="8MiB", flash="32MiB", codec="raw")
server.run(cache, Settings(listen="127.0.0.1:0"), ready=lambda s: print(s.ports[0], flush=True))
print("closed" if cache.closed else "open")
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_signals_stop_and_close_the_cache(tmp_path: Path, number: int) -> None:
    ports = tmp_path / "ports"
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, str(tmp_path / "cache")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "MEMCACHED_PORT_FILENAME": str(ports)},
    )  # fmt: skip
    assert process.stdout is not None
    port = int(process.stdout.readline())
    assert ports.read_text() == f"TCP INET: {port}\n"
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.settimeout(10)
        sock.sendall(b"set a 7 0 5\r\nhello\r\nget a\r\n")
        assert read_until(sock, b"END\r\n") == b"STORED\r\nVALUE a 7 5\r\nhello\r\nEND\r\n"
        process.send_signal(number)
        out, errors = process.communicate(timeout=20)
    assert (process.returncode, out.strip()) == (0, "closed"), errors
