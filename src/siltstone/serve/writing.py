"""The routes that write samples: remote_write, exposition text, Influx lines, OTLP.

A request is handed to the operating system before it is answered, so that `kill -9` loses nothing
that was acknowledged. Bodies are bounded, unpacked ones too. Samples older than the out-of-order
window are counted and not stored, and the request succeeds: a sender would only send them again.
What a body means is decided by the parsers in `ingest/` and `remote_write.pyx`.
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from siltstone.clock import Clock
from siltstone.errors import InvalidValue, KeyMissing, ProtocolError
from siltstone.serve.ingest import influx, otlp, otlp_message, prometheus_text
from siltstone.serve.ingest.rows import Parsed
from siltstone.serve.parameters import (
    BodyTooLarge,
    UnknownKind,
    first,
    own_site,
    query_parameters,
    read_body,
)
from siltstone.serve.prometheus import answered
from siltstone.serve.remote_write import Batch, Decoder
from siltstone.serve.sink import Sink
from siltstone.serve.threads import in_thread

WRITE_REQUEST: Final = "prometheus.WriteRequest"  # of remote_write 1.0


class Writer:
    """The routes, and what came in by them."""

    def __init__(self, sink: Sink, clock: Clock, *, body_bytes_max: int) -> None:
        self.sink = sink
        self.clock = clock
        self.body_bytes_max = body_bytes_max
        self.requests = self.samples = self.rejected = 0
        self._decoder = Decoder(sink.resolve, body_bytes_max=body_bytes_max)
        self._decoding = threading.Lock()  # the decoder's cache of label sets is one thread's

    def routes(self) -> list[Route]:
        return [
            Route(path, answered(own_site(handler)), methods=["POST"])
            for path, handler in (
                ("/api/v1/write", self.remote_write),
                ("/api/v1/import/prometheus", self.exposition),
                ("/write", self.influx),
                ("/api/v2/write", self.influx),
                ("/api/v1/otlp/v1/metrics", self.otlp),
                ("/v1/metrics", self.otlp),  # what exporters add to a bare address
            )
        ]

    # Protocols ----------------------------------------------------------------------------

    async def remote_write(self, request: Request) -> Response:
        encoding = request.headers.get("content-encoding", "snappy").lower()
        kind = request.headers.get("content-type", "")
        if encoding != "snappy":
            raise UnknownKind(f"remote_write bodies are snappy, not {encoding!r}")
        if "proto=" in kind and WRITE_REQUEST not in kind:
            raise UnknownKind(f"remote_write 1.0 is spoken here, {WRITE_REQUEST}, not {kind!r}")
        body = await read_body(request, self.body_bytes_max)
        await in_thread(lambda: self._store_remote(body))
        return Response(status_code=204)

    def _store_remote(self, body: bytes) -> None:
        with self._decoding:
            batch = self._decoder.decode(body)
            try:
                accepted = self._write(batch)
            except KeyMissing:
                # a series went idle and lost its id since the decoder learned it
                self._decoder.forget()
                batch = self._decoder.decode(body)
                accepted = self._write(batch)
        self._done(len(batch.ids), accepted)
        if batch.refused:
            # the rest is stored; the sender does not try again what would be refused again
            raise InvalidValue(f"{batch.refused} series refused: {batch.refusal}")

    def _write(self, batch: Batch) -> int:
        return self.sink.write(batch.ids, batch.times, batch.values, metadata=batch.metadata)

    async def exposition(self, request: Request) -> Response:
        found = query_parameters(request)
        time_ms = _whole(first(found, "timestamp"))
        body = await self._body(request)
        openmetrics = "openmetrics" in request.headers.get("content-type", "")
        await self._stored(lambda: prometheus_text.parse(body, openmetrics=openmetrics), time_ms)
        return Response(status_code=204)

    async def influx(self, request: Request) -> Response:
        found = query_parameters(request)
        unit, database = first(found, "precision"), first(found, "db")
        body = await self._body(request)
        parsed = await self._stored(lambda: influx.parse(body, precision=unit, database=database))
        if parsed.problems:
            count = len(parsed.problems)
            raise ProtocolError(f"partial write: {count} lines left out; {parsed.problems[0]}")
        return Response(status_code=204)

    async def otlp(self, request: Request) -> Response:
        body = await self._body(request)
        json = "json" in request.headers.get("content-type", "")
        parsed = await self._stored(lambda: otlp.parse(body, json=json))
        said = otlp_message.response(parsed.skipped, "; ".join(parsed.problems), json=json)
        return Response(said, media_type=f"application/{'json' if json else 'x-protobuf'}")

    # Storing ------------------------------------------------------------------------------

    async def _stored(self, parse: Callable[[], Parsed], time_ms: int | None = None) -> Parsed:
        def store() -> Parsed:
            parsed = parse()
            now_ms = self.clock.now_ms() if time_ms is None else time_ms
            self._done(len(parsed.rows), self.sink.store(parsed, now_ms))
            return parsed

        return await in_thread(store)

    def _done(self, samples: int, accepted: int) -> None:
        self.requests += 1
        self.samples += accepted
        self.rejected += samples - accepted

    async def _body(self, request: Request) -> bytes:
        body = await read_body(request, self.body_bytes_max)
        encoding = request.headers.get("content-encoding", "identity").lower()
        if encoding in ("gzip", "x-gzip"):
            return _inflated(body, self.body_bytes_max)
        if encoding != "identity":
            raise ProtocolError(f"content-encoding {encoding!r}: gzip or none")
        return body


def _inflated(body: bytes, limit: int) -> bytes:
    """All members of a gzip body: some tools write one for each block."""
    parts, size = [], 0
    while body:
        reader = zlib.decompressobj(wbits=31)
        try:
            part = reader.decompress(body, limit + 1 - size)
        except zlib.error as error:
            raise ProtocolError(f"the body is no gzip: {error}") from None
        parts.append(part)
        size += len(part)
        if size > limit:
            raise BodyTooLarge(f"the body unpacks to more than {limit} bytes: send less at a time")
        if not reader.eof:
            raise ProtocolError("the gzip body ends too early")
        body = reader.unused_data
    return b"".join(parts)


def _whole(text: str) -> int | None:
    if not text:
        return None
    try:
        return int(text)
    except ValueError:
        raise ProtocolError(f"timestamp {text!r}: whole milliseconds") from None
