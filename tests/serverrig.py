"""A memcached server in a thread of its own, for tests that talk to it over sockets."""

from __future__ import annotations

import asyncio
import socket
import threading
from typing import Any

from backend import MemoryBackend
from pymemcache.client.base import Client

from siltstone.serve.control import Control
from siltstone.serve.server import Server, loop_factory
from siltstone.serve.settings import Settings


class Running:
    """A server in a thread of its own."""

    def __init__(self, backend: MemoryBackend | None = None, uvloop: bool = True, **settings: Any):
        self.backend = backend or MemoryBackend()
        self.settings = Settings(**{"listen": "127.0.0.1:0", "close_timeout": 1, **settings})
        self.control = Control(self.backend, self.settings)
        self._ready = threading.Event()
        self._factory = loop_factory() if uvloop else None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._main)

    def __enter__(self) -> Running:
        self._thread.start()
        self._ready.wait(10)
        if self._error is not None:
            self._thread.join()
            raise self._error
        return self

    def __exit__(self, *_: object) -> None:
        self.loop.call_soon_threadsafe(self.server.request_stop)
        self._thread.join(20)
        assert not self._thread.is_alive()

    def _main(self) -> None:
        with asyncio.Runner(loop_factory=self._factory) as runner:
            try:
                runner.run(self._serve())
            except BaseException as error:
                self._error = error
                self._ready.set()

    async def _serve(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.server = Server(self.backend.engine, self.settings, self.control)
        await self.server.start()
        self._ready.set()
        await self.server.wait_stopped()
        await self.server.stop()

    def connect(self, timeout: float = 10) -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", self.server.ports[0]))
        sock.settimeout(timeout)
        return sock

    def client(self, **options: Any) -> Client:
        return Client(("127.0.0.1", self.server.ports[0]), timeout=10, **options)

    def stats(self) -> dict[str, str]:
        with self.connect() as sock:
            sock.sendall(b"stats\r\n")
            reply = read_until(sock, b"END\r\n").decode()
        return dict(line.split(" ", 2)[1:] for line in reply.splitlines()[:-1])  # type: ignore


def read_until(sock: socket.socket, end: bytes) -> bytes:
    reply = b""
    while not reply.endswith(end):
        piece = sock.recv(1 << 16)
        if not piece:
            break
        reply += piece
    return reply
