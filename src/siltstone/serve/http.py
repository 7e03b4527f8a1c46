"""The HTTP port: Prometheus' API, ingest, siltstone's own statistics, the dashboard.

Puts the routes of its neighbours together into one ASGI application (starlette) and runs it in a
thread of its own (uvicorn), beside the memcached server's loop. Everything listens on loopback
unless told otherwise; a request that is no GET, POST or HEAD, or a page of another site, gets
nothing: see `security`.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import threading
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from siltstone.errors import EnvironmentFailure
from siltstone.serve import exposition
from siltstone.serve.http_protocol import protocol
from siltstone.serve.observe import Observer
from siltstone.serve.prometheus import success
from siltstone.serve.server import loop_factory

log = logging.getLogger("siltstone.serve")

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Asgi = Callable[[Message, Receive, Send], Awaitable[None]]

STOP_SECONDS = 5
THREADS_MAX = 40  # requests that are worked on at a time; the others wait
HEADERS = (
    (b"content-security-policy", b"default-src 'self'; frame-ancestors 'none'; base-uri 'none'"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)


def security(app: Asgi) -> Asgi:
    """Headers on every answer: scripts and styles from here only, in nobody's frame."""

    async def secured(scope: Message, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *HEADERS]
            await send(message)

        await app(scope, receive, with_headers if scope["type"] == "http" else send)

    return secured


class OwnRoutes:
    """Health, /metrics, and what the dashboard asks beside PromQL."""

    def __init__(self, observer: Observer) -> None:
        self.observer = observer

    def routes(self) -> list[BaseRoute]:
        return [
            Route("/-/healthy", self.healthy, methods=["GET"]),
            Route("/-/ready", self.healthy, methods=["GET"]),
            Route("/metrics", self.metrics, methods=["GET"]),
            Route("/api/siltstone/segments", self.segments, methods=["GET"]),
        ]

    async def healthy(self, request: Request) -> Response:
        return PlainTextResponse("siltstone is up\n")

    def metrics(self, request: Request) -> Response:
        body = exposition.render(self.observer.samples())
        return Response(body, media_type=exposition.CONTENT_TYPE)

    def segments(self, request: Request) -> Response:
        return success(self.observer.segments())


def application(routes: Sequence[BaseRoute]) -> Asgi:
    """What answers at these routes. Paths without parameters are looked up: Starlette goes through
    its middleware and tries one pattern after another, 60 us a request."""
    every = Starlette(routes=list(routes))
    plain: dict[str, Route] = {}
    for route in routes:
        if isinstance(route, Route) and not route.param_convertors:
            plain.setdefault(route.path, route)

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        found = plain.get(scope["path"]) if scope["type"] == "http" else None
        if found is None or found.methods is None or scope["method"] not in found.methods:
            await every(scope, receive, send)
        else:
            await found.app(scope, receive, send)

    return security(app)


class HttpServer:
    """The application on a socket, in a thread. `start()` once, then `stop()` once."""

    def __init__(self, app: Asgi, host: str, port: int) -> None:
        self.app = app
        self._socket = _listening(host, port)
        self.address = "{}:{}".format(*self._socket.getsockname()[:2])
        config = uvicorn.Config(
            app,
            http=protocol(),
            log_config=None,
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=STOP_SECONDS,
            server_header=False,
            proxy_headers=False,  # nothing here asks who the client is
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._run, name="siltstone-http", daemon=True)

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    def start(self) -> None:
        self._thread.start()
        log.info("HTTP on %s", self.address)

    def _run(self) -> None:
        # not uvicorn's own run(): signals are the main thread's
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            runner.get_loop().set_default_executor(
                ThreadPoolExecutor(THREADS_MAX, thread_name_prefix="siltstone-http")
            )
            runner.run(self._server.serve(sockets=[self._socket]))

    def stop(self) -> None:
        """Finish what is being answered, at most a few seconds of it."""
        self._server.should_exit = True
        if self._thread.is_alive():
            self._thread.join()
        self._socket.close()


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol named, so that asyncio turns Nagle's algorithm off for its connections: an
    # answer in two packets would wait 40 ms for the first one's acknowledgement.
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host or "0.0.0.0", port))  # "" is what was asked for: everywhere
    except OSError as error:
        sock.close()
        number = error.errno or errno.EIO
        hint = ": another server has it" if number == errno.EADDRINUSE else ""
        raise EnvironmentFailure(
            number, f"cannot listen for HTTP on {host}:{port}{hint}: {error.strerror or error}"
        ) from None
    sock.listen(1024)
    return sock
