"""A port that lines come in by, over TCP and UDP: what Graphite's and statsd's ports share.

Owns the sockets; whole lines go to a `Taker`. A `Service` of a `LoopThread`. Bounds: connections,
the length of a line, and the packets that wait. What is bad or too much is counted, and told in
the log at the first time and then once for each doubling: no client can fill a disk with it.

A TCP connection is read again only when what it sent is stored; packets gather meanwhile and are
stored together.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Iterable
from typing import Final, Protocol

from siltstone.errors import EnvironmentFailure, SiltstoneError
from siltstone.serve.exposition import Sample
from siltstone.serve.port_settings import PortSettings

log = logging.getLogger("siltstone.serve")

READ_SIZE: Final = 1 << 18
RECEIVE_BUFFER: Final = 1 << 22  # of the kernel, for bursts of packets; it may give less


class Taker(Protocol):
    """Who stores lines. Called in the loop's thread."""

    async def take(self, lines: bytes) -> list[str]:
        """Whole lines, each with its end or the last without; sentences about bad ones."""


class LinePort:
    """One address. `tcp_port`, `udp_port`: those that were had, 0 for none."""

    def __init__(self, settings: PortSettings, taker: Taker) -> None:
        self.settings = settings
        self.taker = taker
        self.tcp_port = self.udp_port = 0
        self.bytes = self.bad_lines = self.dropped_packets = self.refused = self.failures = 0
        self._connections: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._transport: asyncio.DatagramTransport | None = None
        self._packets: list[bytes] = []
        self._packets_size = 0
        self._arrived = asyncio.Event()

    async def start(self) -> None:
        """EnvironmentFailure: the address cannot be had."""
        if self.settings.address is None:
            return
        host, port = self.settings.address
        try:
            if self.settings.tcp:
                self._server = await asyncio.start_server(
                    self._connected, sock=_bound(socket.SOCK_STREAM, host, port), limit=READ_SIZE
                )
                self.tcp_port = port = self._server.sockets[0].getsockname()[1]
            if self.settings.udp:
                loop = asyncio.get_running_loop()
                sock = _bound(socket.SOCK_DGRAM, host, port)
                self._transport, _ = await loop.create_datagram_endpoint(
                    lambda: _Packets(self), sock=sock
                )
                self.udp_port = sock.getsockname()[1]
                self._keep(asyncio.create_task(self._store_packets()))
        except OSError as error:
            await self.stop()
            raise EnvironmentFailure(
                error.errno,
                f"[{self.settings.section}] cannot listen on {host}:{port}: "
                f"{error.strerror or error}",
            ) from None
        log.info("%s on %s:%s", self.settings.section, host, port)

    async def stop(self) -> None:
        """What has arrived whole is stored first."""
        if self._server is not None:
            self._server.close()
        if self._transport is not None:
            self._transport.close()
        await self._store(self._waiting())
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # TCP ----------------------------------------------------------------------------------

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if len(self._connections) >= self.settings.connections_max:
            self.refused += 1
            self._told("connection refused: connections_max are open", self.refused)
            writer.close()
            return
        self._keep(task)
        self._connections.add(writer)
        try:
            await self._read(reader)
        except ConnectionError:
            pass  # as good as an end: what came whole is stored
        finally:
            self._connections.discard(writer)
            writer.close()

    async def _read(self, reader: asyncio.StreamReader) -> None:
        rest = b""
        while data := await reader.read(READ_SIZE):
            lines, end, rest = (rest + data).rpartition(b"\n")
            await self._store(lines + end)
            if len(rest) > self.settings.line_size_max:
                self._bad(["a line longer than line_size_max: connection closed"])
                return
        await self._store(rest)

    # UDP ----------------------------------------------------------------------------------

    def packet(self, data: bytes) -> None:
        """One that came; the loop's thread."""
        if self._packets_size + len(data) > self.settings.packets_size_max:
            self.dropped_packets += 1
            self._told("packet dropped: storing is slower than what comes", self.dropped_packets)
            return
        self._packets.append(data)
        self._packets_size += len(data)
        self._arrived.set()

    def _waiting(self) -> bytes:
        packets, self._packets, self._packets_size = self._packets, [], 0
        self._arrived.clear()
        return b"\n".join(packets)

    async def _store_packets(self) -> None:
        while True:
            await self._arrived.wait()
            await self._store(self._waiting())

    # Both ---------------------------------------------------------------------------------

    async def _store(self, lines: bytes) -> None:
        if not lines:
            return
        self.bytes += len(lines)
        try:
            self._bad(await self.taker.take(lines))
        except SiltstoneError as error:
            # a full disk, a limit: there is nobody whom it could be told
            self.failures += 1
            self._told(f"lines are not stored: {error}", self.failures)

    def _bad(self, problems: list[str]) -> None:
        for problem in problems:
            self.bad_lines += 1
            self._told(problem, self.bad_lines)

    def _told(self, what: str, count: int) -> None:
        if count & (count - 1) == 0:
            log.warning("%s: %s (%d so far)", self.settings.section, what, count)

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def samples(self) -> Iterable[Sample]:
        """What the server tells of itself about it."""
        if self.settings.address is None:
            return
        labels = {"protocol": self.settings.section}
        for name, value in (
            ("siltstone_ingest_bytes_total", self.bytes),
            ("siltstone_ingest_bad_lines_total", self.bad_lines),
            ("siltstone_ingest_dropped_packets_total", self.dropped_packets),
            ("siltstone_ingest_refused_connections_total", self.refused),
            ("siltstone_ingest_failures_total", self.failures),
            ("siltstone_ingest_connections", len(self._connections)),
        ):
            yield Sample(name, labels, value)


class _Packets(asyncio.DatagramProtocol):
    def __init__(self, port: LinePort) -> None:
        self.port = port

    def datagram_received(self, data: bytes, address: object) -> None:
        self.port.packet(data)


def _bound(kind: socket.SocketKind, host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, kind)
    if kind == socket.SOCK_STREAM:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    else:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
    sock.setblocking(False)
    try:
        sock.bind((host or "0.0.0.0", port))
    except OSError:
        sock.close()
        raise
    return sock
