"""The memcached server over asyncio (uvloop when it is there): sockets, connections, stopping.

Owns the listening sockets, the connections and the pool of threads for flash reads. Promises: a
client that does not read, or sends without end, costs bounded memory and nobody else's time; a
stop finishes what is in flight and closes the cache, so that a restart is warm. Runs in one
thread, the event loop's; everything that may wait for the device is done by the pool.

The seam: all that a transport needs of the protocol is `Session` (feed, resume, submit, pending,
paused, closing). A transport without the GIL, one thread a core, calls `session_loop` of
memcache.pxd on its own buffers in the place of `Connection` here; nothing below would change.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import socket
import stat
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from siltstone.cache.cache import Cache
from siltstone.cache.engine import CacheEngine
from siltstone.errors import ConfigError, EnvironmentFailure
from siltstone.log.workers import Completions, WorkerPool
from siltstone.serve.backend import CacheBackend
from siltstone.serve.control import Control
from siltstone.serve.memcache import Receiver, Session, completed
from siltstone.serve.settings import PLAIN, Settings, split_address
from siltstone.serve.tls import Tls

log = logging.getLogger("siltstone.serve")

TOO_MANY = b"ERROR Too many open connections\r\n"
RETRY_SECONDS = 0.001  # when the pool's queue is full
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


# One connection -----------------------------------------------------------------------------


class Connection(Receiver, asyncio.Protocol):
    """Bytes between a transport and a session, and when to stop reading."""

    __slots__ = ("ended", "number", "reads", "server", "transport", "writable")

    def __init__(self, server: Server) -> None:
        self.server = server
        self.transport: asyncio.Transport = None  # type: ignore[assignment]
        self.writable = True
        self.ended = False  # the client has said all it will say
        self.reads = 0
        self.number = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]  # uvloop's is no asyncio.Transport
        self.write = transport.write  # type: ignore[attr-defined]
        self.server.opened(self)

    def settle(self) -> None:
        """After feed or resume left something to wait for, or nothing more to do."""
        session = self.session
        if session.closing:
            self.transport.close()
        elif session.pending:
            self.transport.pause_reading()
            if not self.reads:
                self.server.read(self)
        elif session.paused:
            self.transport.pause_reading()
            if self.writable:
                # others have their turn first
                self.server.loop.call_soon(self.go_on)
        elif self.ended:
            self.transport.close()
        elif self.writable:
            self.transport.resume_reading()

    def go_on(self) -> None:
        """The reads are back, or the client has taken what was sent."""
        session = self.session
        if self.transport.is_closing() or session.pending:
            return
        out = session.resume()
        if out:
            self.transport.write(out)
        self.settle()

    def reads_done(self) -> None:
        self.reads = 0
        if self.session.paused and not self.writable:
            return  # resume_writing goes on
        self.go_on()

    def pause_writing(self) -> None:
        self.writable = False
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        self.writable = True
        if self.session is None:
            return
        if self.session.pending:
            return
        if self.session.paused:
            self.server.loop.call_soon(self.go_on)
        else:
            self.settle()

    def eof_received(self) -> bool:
        self.ended = True
        session = self.session
        if session is None or self.transport.get_extra_info("sslcontext") is not None:
            return False  # TLS ends for both sides
        return bool(session.pending or session.paused)

    def connection_lost(self, error: Exception | None) -> None:
        if self.session is not None:
            self.session.close()
            self.server.closed(self)


# The server ---------------------------------------------------------------------------------


class Server:
    """Listens, and answers. `start()` once, then `stop()` once."""

    def __init__(self, engine: CacheEngine, settings: Settings, control: Control) -> None:
        self.engine = engine
        self.settings = settings
        self.control = control
        self.control.shutdown = self.control.shutdown or self.request_stop
        self.control.connections = self.describe
        self.counters = self.control.counters
        self.tls = Tls(settings) if settings.tls_certificate is not None else None
        if self.tls is not None:
            self.control.refresh_certificates = self.tls.refresh
        self.connections: set[Connection] = set()
        self.addresses: list[str] = []
        self.stopping = False
        self._numbers = 0
        self._servers: list[asyncio.Server] = []
        self._reads = 0
        self._waiting: deque[Connection] = deque()
        self._unsubmitted: list[Connection] = []
        self._idle_timer: asyncio.TimerHandle | None = None
        self._stop = asyncio.Event()
        self._empty = asyncio.Event()

    async def start(self) -> None:
        """Listen on every address; an address that cannot be had is an EnvironmentFailure."""
        self.loop = asyncio.get_running_loop()
        self.time: Callable[[], float] = self.loop.time
        self._pool = WorkerPool(self.settings.read_threads, name="siltstone-read")
        self._completions = Completions()
        self.loop.add_reader(self._completions.fileno(), self._completed)
        try:
            for sock, plain in self._sockets():
                options = {} if self.tls is None or plain else self.tls.options
                self._servers.append(
                    await self.loop.create_server(
                        lambda: Connection(self),
                        sock=sock,
                        backlog=self.settings.backlog,
                        **options,
                    )
                )
                self.addresses.append(_shown(sock))
            if self.settings.unix_socket is not None:
                unix = _unix_socket(self.settings.unix_socket, self.settings.unix_mode)
                self._servers.append(
                    await self.loop.create_unix_server(
                        lambda: Connection(self), sock=unix, backlog=self.settings.backlog
                    )
                )
                self.addresses.append(f"unix:{self.settings.unix_socket}")
        except BaseException:
            await self.stop()
            raise
        if self.settings.idle_timeout:
            self._watch_idle()
        log.info("listening on %s", ", ".join(self.addresses))

    def _sockets(self) -> Iterator[tuple[socket.socket, bool]]:
        """Each with whether it is never TLS."""
        for address in self.settings.listen:
            host, port = split_address(address.removeprefix(PLAIN), self.settings.port)
            for sock in _tcp_sockets(host, port):
                yield sock, address.startswith(PLAIN)

    @property
    def ports(self) -> list[int]:
        """TCP ports that are listened on, in the order of `settings.listen`."""
        return [
            sock.getsockname()[1]
            for server in self._servers
            for sock in server.sockets
            if sock.family != socket.AF_UNIX
        ]

    def request_stop(self, graceful: bool = True) -> None:
        """Make `wait_stopped` return; safe to call from a command or a signal."""
        log.info("stopping")
        self._stop.set()

    async def wait_stopped(self) -> None:
        await self._stop.wait()

    async def stop(self) -> None:
        """Accept nothing more, finish what is in flight, close every connection."""
        self.stopping = True
        for server in self._servers:
            server.close()
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        for connection in list(self.connections):
            connection.ended = True
            connection.transport.pause_reading()
            if not (connection.session.pending or connection.session.paused):
                connection.transport.close()
        if self.connections:
            self._empty.clear()
            try:
                await asyncio.wait_for(self._empty.wait(), self.settings.close_timeout)
            except TimeoutError:
                for connection in list(self.connections):
                    connection.transport.abort()
                await self._empty.wait()
        while self._reads:
            await asyncio.sleep(RETRY_SECONDS)
        self._servers.clear()
        self.loop.remove_reader(self._completions.fileno())
        self._pool.close()
        self._completions.close()
        if self.settings.unix_socket is not None:
            self.settings.unix_socket.unlink(missing_ok=True)

    # Connections --------------------------------------------------------------------------

    def opened(self, connection: Connection) -> None:
        """A client has come: a session, or the line that there are too many."""
        transport = connection.transport
        self.counters = self.control.counters  # `stats reset` makes new ones
        if len(self.connections) >= self.settings.connections_max or self.stopping:
            self.counters.rejected += 1
            transport.write(TOO_MANY)
            transport.close()
            return
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        transport.set_write_buffer_limits(high=self.settings.output_size_max)
        connection.session = Session(self.engine, self.control, self.settings)
        connection.session.owner = connection
        connection.last = self.time()
        self._numbers += 1
        connection.number = self._numbers
        self.connections.add(connection)
        self.counters.connections += 1
        self.counters.connections_total += 1
        log.debug("connection %d opened", connection.number)

    def closed(self, connection: Connection) -> None:
        self.connections.discard(connection)
        self.control.counters.connections -= 1
        connection.session.owner = None
        log.debug("connection %d closed", connection.number)
        if not self.connections:
            self._empty.set()

    def describe(self) -> Iterator[dict[str, Any]]:
        """For `stats conns`."""
        now = self.time()
        for connection in self.connections:
            peer = connection.transport.get_extra_info("peername")
            local = connection.transport.get_extra_info("sockname")
            session = connection.session
            waiting = "conn_io_pending" if session.pending else "conn_mwrite"
            yield {
                "number": connection.number,
                "addr": _address_text(peer),
                "listen_addr": _address_text(local),
                "state": waiting if session.pending or session.paused else "conn_read",
                "secs_since_last_cmd": int(now - connection.last),
            }

    def _watch_idle(self) -> None:
        limit = self.time() - self.settings.idle_timeout
        for connection in list(self.connections):
            if connection.last < limit and not connection.session.pending:
                self.control.counters.idle_kicks += 1
                # what it never read does not keep it
                connection.transport.abort()
        self._idle_timer = self.loop.call_later(
            min(1.0, self.settings.idle_timeout / 4), self._watch_idle
        )

    # Flash reads --------------------------------------------------------------------------

    def read(self, connection: Connection) -> None:
        """Have the session's parked reads done; `reads_done` is called when all are back."""
        count = connection.session.pending
        if self._reads and self._reads + count > self.settings.reads_in_flight_max:
            self._waiting.append(connection)
            return
        connection.reads = count
        self._reads += count
        self._submit(connection)

    def _submit(self, connection: Connection) -> None:
        if not connection.session.submit(self._pool, self._completions):
            self._unsubmitted.append(connection)
            if len(self._unsubmitted) == 1:
                self.loop.call_later(RETRY_SECONDS, self._submit_again)
        elif connection.session.pending == 0 and connection.reads:
            self._back(connection)  # the pool was closed: they were done at once

    def _submit_again(self) -> None:
        again, self._unsubmitted = self._unsubmitted, []
        for connection in again:
            self._submit(connection)

    def _completed(self) -> None:
        for session in completed(self._completions):
            self._back(session.owner)
        while self._waiting and (
            not self._reads
            or self._reads + self._waiting[0].session.pending <= self.settings.reads_in_flight_max
        ):
            connection = self._waiting.popleft()
            if not connection.transport.is_closing():
                self.read(connection)

    def _back(self, connection: Connection) -> None:
        self._reads -= connection.reads
        connection.reads_done()


# Sockets ------------------------------------------------------------------------------------


def _tcp_sockets(host: str, port: int) -> Iterator[socket.socket]:
    """A listening socket for each address that the host has."""
    try:
        found = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except socket.gaierror as error:
        raise ConfigError(f"cannot listen on {host!r}: {error.strerror}") from None
    except UnicodeError:
        raise ConfigError(f"cannot listen on {host!r}: it is no host's name") from None
    made = 0
    for family, kind, protocol, _, address in dict.fromkeys(found):
        try:
            sock = socket.socket(family, kind, protocol)
        except OSError:
            continue  # a family that this machine does not have
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            sock.bind(address)
        except OSError as error:
            sock.close()
            if error.errno == errno.EADDRNOTAVAIL and len(found) > 1:
                continue  # ::1 of a machine without IPv6
            raise EnvironmentFailure(
                error.errno, f"failed to listen on TCP port {port}: {os.strerror(error.errno or 0)}"
            ) from None
        made += 1
        yield sock
    if not made:
        raise EnvironmentFailure(errno.EADDRNOTAVAIL, f"no address to listen on for {host!r}")


def _unix_socket(path: Path, mode: int) -> socket.socket:
    """A bound Unix socket; one that nobody listens on any more is removed first."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    if path.exists() and stat.S_ISSOCK(path.stat().st_mode):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            if probe.connect_ex(str(path)) == 0:
                sock.close()
                raise EnvironmentFailure(
                    errno.EADDRINUSE, f"failed to listen on UNIX socket: {path} is in use"
                )
        path.unlink()
    former = os.umask(~mode & 0o777)
    try:
        sock.bind(str(path))
        os.chmod(path, mode)
    except OSError as error:
        sock.close()
        raise EnvironmentFailure(
            error.errno,
            f"failed to listen on UNIX socket: {path}: {error.strerror or error}",
        ) from None
    finally:
        os.umask(former)
    return sock


def _shown(sock: socket.socket) -> str:
    return _address_text(sock.getsockname())


def _address_text(address: Any) -> str:
    if isinstance(address, tuple):
        host = f"[{address[0]}]" if ":" in address[0] else address[0]
        return f"{'tcp6' if ':' in address[0] else 'tcp'}:{host}:{address[1]}"
    return f"unix:{address}" if address else "unix"


def port_lines(server: Server) -> str:
    """What MEMCACHED_PORT_FILENAME names a file for."""
    return "".join(f"TCP INET: {port}\n" for port in server.ports)


# Entry --------------------------------------------------------------------------------------


async def serve(
    cache: Cache,
    settings: Settings,
    control: Control | None = None,
    *,
    ready: Callable[[Server], None] | None = None,
) -> None:
    """Serve until SIGTERM, SIGINT or SIGUSR1 (or the shutdown command), then close the cache.

    `ready` is called once it listens.
    """
    control = control or Control(CacheBackend(cache), settings)
    server = Server(cache.engine, settings, control)
    loop = asyncio.get_running_loop()
    signals = (*STOP_SIGNALS, signal.SIGUSR1)
    try:
        await server.start()
        for number in signals:
            loop.add_signal_handler(number, server.request_stop)
        _write_ports(server)
        if ready is not None:
            ready(server)
        await server.wait_stopped()
        await server.stop()
    finally:
        for number in signals:
            loop.remove_signal_handler(number)
        cache.close()


def _write_ports(server: Server) -> None:
    name = os.environ.get("MEMCACHED_PORT_FILENAME")
    if name:
        # whoever waits for the file must find it whole
        partial = Path(f"{name}.lck")
        partial.write_text(port_lines(server))
        partial.replace(name)


def run(
    cache: Cache,
    settings: Settings,
    control: Control | None = None,
    *,
    ready: Callable[[Server], None] | None = None,
) -> None:
    """`serve` in a loop of its own."""
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(serve(cache, settings, control, ready=ready))


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's, when it is installed."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop
