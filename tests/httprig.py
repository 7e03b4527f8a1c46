"""HTTP servers that answer as they are told, on free loopback ports."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple


class Asked(NamedTuple):
    """A request as it came."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


class Reply(NamedTuple):
    """What is answered."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = {}


class Peer:
    """`answer` decides; `asked` are the requests so far."""

    def __init__(self, answer: Callable[[Asked], Reply]) -> None:
        self.answer = answer
        self.asked: list[Asked] = []
        self.address = ""
        self.arrived = threading.Condition()

    def wait_for(self, count: int) -> None:
        """Until so many requests came."""
        with self.arrived:
            assert self.arrived.wait_for(lambda: len(self.asked) >= count, 20)


@contextmanager
def peer(answer: Callable[[Asked], Reply], tls: ssl.SSLContext | None = None) -> Iterator[Peer]:
    one = Peer(answer)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", "0")))
            asked = Asked(self.command, self.path, dict(self.headers), body)
            reply = one.answer(asked)
            if reply.status in (204, 304):  # these have no body
                reply = reply._replace(body=b"")
            with one.arrived:
                one.asked.append(asked)
                one.arrived.notify_all()
            try:
                self.send_response(reply.status)
                self.send_header("Content-Length", str(len(reply.body)))
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(reply.body)
            except OSError:
                self.close_connection = True  # the client did not wait

        do_GET = do_POST = handle_any

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # a client that hangs up is what tests do
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    one.address = f"127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield one
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
