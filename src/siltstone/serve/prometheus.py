"""Prometheus' HTTP API, as Grafana's data source and promtool call it, over a `Metrics`.

Owns the envelope, the names of errors and the shapes of answers (Prometheus: docs/querying/api.md,
version 2.42). Queries run in threads, so that a slow one holds up nobody; a client that goes away
or a timeout stops its query. What is stored, and what a query means, is the engine's.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from siltstone import errors
from siltstone.clock import Clock
from siltstone.metrics.promql import Limits
from siltstone.metrics.syntax import formatted, parse
from siltstone.metrics.syntax_tree import tree
from siltstone.serve.metadata import Metadata
from siltstone.serve.parameters import (
    BodyTooLarge,
    UnknownKind,
    duration_of,
    first,
    limit_of,
    parameters,
    time_of,
)
from siltstone.serve.threads import Client, in_thread

log = logging.getLogger("siltstone.serve")

# As Prometheus: enough for a chart of a week at a minute, or of a year at an hour.
POINTS_MAX = 11_000
TIMEOUT_SECONDS = 120.0
JSON = "application/json"
TRUNCATED = "results truncated due to limit"  # Prometheus' words
_LABEL_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")

# The first class in this order that fits decides: status, errorType.
KINDS: tuple[tuple[type[Exception], int, str], ...] = (
    (BodyTooLarge, 413, "bad_data"),
    (UnknownKind, 415, "bad_data"),
    (errors.QueryTimeout, 503, "timeout"),
    (errors.QueryCancelled, 503, "canceled"),
    (errors.QueryFailed, 422, "execution"),
    (errors.Busy, 503, "unavailable"),
    (errors.CallerError, 400, "bad_data"),
    (errors.PeerError, 400, "bad_data"),
    (errors.SiltstoneError, 500, "internal"),
)


class Answer(Protocol):
    """What a query gives: `Result` of the engine."""

    @property
    def warnings(self) -> Sequence[str]:
        """Where it is less exact than was asked for."""

    def to_json(self, most: int | None = None) -> str:
        """{"resultType": ..., "result": ...}; of at most so many series."""

    def __len__(self) -> int:
        """Series."""


class Queryable(Protocol):
    """What the API asks of an engine; `siltstone.Metrics` is one. Times are Unix seconds."""

    def query(self, promql: str, time: float, **limits: Any) -> Answer: ...

    def query_range(
        self, promql: str, start: float, end: float, step: float, **limits: Any
    ) -> Answer: ...

    def labels(self) -> list[str]: ...

    def label_values(self, name: str) -> list[str]: ...

    def list_series(
        self, match: str | None, start: float | None = None, end: float | None = None
    ) -> list[dict[str, str]]: ...


class Selection(NamedTuple):
    """Which series are asked about: those of any selector, alive in a range; None: no limit."""

    match: tuple[str, ...]
    start: float | None
    end: float | None


EVERYTHING = Selection((), None, None)
Handler = Callable[[Request], Awaitable[Response]]


def success(data: Any, warnings: Sequence[str] = ()) -> Response:
    """The envelope around `data`."""
    answer: dict[str, Any] = {"status": "success", "data": data}
    if warnings:
        answer["warnings"] = list(warnings)
    return Response(msgspec.json.encode(answer), media_type=JSON)


def success_raw(data: str, warnings: Sequence[str] = ()) -> Response:
    """The same around what is JSON already."""
    told = ',"warnings":' + msgspec.json.encode(warnings).decode() if warnings else ""
    return Response('{"status":"success","data":' + data + told + "}", media_type=JSON)


def failure(error: Exception) -> Response:
    """The envelope of an error; what nobody foresaw is logged, and named by its class only."""
    for kind, status, name in KINDS:
        if isinstance(error, kind):
            return _failure(status, name, _text(error))
    log.error("an answer failed", exc_info=error)
    return _failure(500, "internal", f"internal error: {type(error).__name__}")


def _failure(status: int, name: str, text: str) -> Response:
    body = {"status": "error", "errorType": name, "error": text}
    return Response(msgspec.json.encode(body), status_code=status, media_type=JSON)


def _text(error: Exception) -> str:
    if isinstance(error, KeyError) and error.args:
        return str(error.args[0])
    return str(error)


def answered(handler: Handler) -> Handler:
    """A handler whose errors are answers."""

    async def answer(request: Request) -> Response:
        try:
            return await handler(request)
        except Exception as error:
            return failure(error)

    return answer


class PrometheusApi:
    """The routes below /api/v1 that read."""

    def __init__(
        self,
        metrics: Queryable,
        clock: Clock,
        *,
        version: str,
        metadata: Metadata | None = None,
        timeout: float = TIMEOUT_SECONDS,
        points_max: int = POINTS_MAX,
    ) -> None:
        self.metrics = metrics
        self.clock = clock
        self.version = version
        self.metadata_of = metadata if metadata is not None else Metadata()
        self.timeout = timeout
        self.points_max = points_max
        self.queries = 0
        self.queries_failed = 0

    def routes(self) -> list[Route]:
        """Those that Grafana and promtool ask for, also those that are always empty here."""
        asked: list[tuple[str, Handler, tuple[str, ...]]] = [
            ("/api/v1/query", self.query, ("GET", "POST")),
            ("/api/v1/query_range", self.query_range, ("GET", "POST")),
            ("/api/v1/format_query", self.format_query, ("GET", "POST")),
            ("/api/v1/parse_query", self.parse_query, ("GET", "POST")),
            ("/api/v1/labels", self.labels, ("GET", "POST")),
            ("/api/v1/label/{name}/values", self.label_values, ("GET",)),
            ("/api/v1/series", self.series, ("GET", "POST")),
            ("/api/v1/metadata", self.metadata, ("GET",)),
            ("/api/v1/status/buildinfo", self.build_info, ("GET",)),
        ]
        for path, data in EMPTY.items():
            asked.append((f"/api/v1/{path}", _always(data), ("GET", "POST")))
        return [
            Route(path, answered(handler), methods=list(methods))
            for path, handler, methods in asked
        ]

    # Queries ------------------------------------------------------------------------------

    async def query(self, request: Request) -> Response:
        found = await parameters(request)
        time = time_of(found, "time", self.clock.now_ms() / 1000)
        text, limits = first(found, "query"), self._limits(found)
        return await self._run(
            request,
            lambda cancelled: self.metrics.query(text, time, limits=limits, cancelled=cancelled),
            limit_of(found),
        )

    async def query_range(self, request: Request) -> Response:
        found = await parameters(request)
        start, end = time_of(found, "start"), time_of(found, "end")
        step = duration_of(found, "step")
        self._check_range(start, end, step)
        text, limits = first(found, "query"), self._limits(found)
        return await self._run(
            request,
            lambda cancelled: self.metrics.query_range(
                text, start, end, step, limits=limits, cancelled=cancelled
            ),
            limit_of(found),
        )

    async def format_query(self, request: Request) -> Response:
        return success(formatted(first(await parameters(request), "query")))

    async def parse_query(self, request: Request) -> Response:
        return success(tree(parse(first(await parameters(request), "query"))))

    def _check_range(self, start: float, end: float, step: float) -> None:
        if end < start:
            raise errors.ProtocolError(
                'invalid parameter "end": end timestamp must not be before start time'
            )
        if step <= 0:
            raise errors.ProtocolError(
                'invalid parameter "step": zero or negative query resolution step widths are not '
                "accepted. Try a positive integer"
            )
        if (end - start) / step > self.points_max:
            raise errors.ProtocolError(
                f"exceeded maximum resolution of {self.points_max:,} points per timeseries. "
                "Try decreasing the query resolution (?step=XX)"
            )

    def _limits(self, found: Mapping[str, Sequence[str]]) -> Limits:
        seconds = min(duration_of(found, "timeout", self.timeout), self.timeout)
        return Limits(timeout_seconds=seconds, points_max=self.points_max + 1)

    async def _run(
        self, request: Request, evaluate: Callable[[Callable[[], bool]], Answer], limit: int
    ) -> Response:
        """Evaluate in a thread; tell it to stop when the client is gone. `limit`: series of the
        answer at most, 0 for all."""
        self.queries += 1
        client = Client(request)

        def answer() -> Response:
            found = evaluate(client.is_gone)
            if limit and len(found) > limit:
                return success_raw(found.to_json(limit), [*found.warnings, TRUNCATED])
            return success_raw(found.to_json(), found.warnings)

        try:
            return await in_thread(answer)
        except Exception:
            self.queries_failed += 1
            raise
        finally:
            client.done()

    # Names --------------------------------------------------------------------------------

    async def labels(self, request: Request) -> Response:
        found = await parameters(request)
        selection = self._selection(found)
        names = await in_thread(
            lambda: (
                self.metrics.labels()
                if selection == EVERYTHING
                else sorted({name for labels in self._series(selection) for name in labels})
            )
        )
        return _limited(names, limit_of(found))

    async def label_values(self, request: Request) -> Response:
        found = await parameters(request)
        name = request.path_params["name"]
        if not _LABEL_NAME.fullmatch(name):
            raise errors.ProtocolError(f'invalid label name: "{name}"')
        selection = self._selection(found)
        values = await in_thread(
            lambda: (
                self.metrics.label_values(name)
                if selection == EVERYTHING
                else sorted({one[name] for one in self._series(selection) if name in one})
            )
        )
        return _limited(values, limit_of(found))

    async def series(self, request: Request) -> Response:
        found = await parameters(request)
        selection = self._selection(found)
        if not selection.match:
            raise errors.ProtocolError("no match[] parameter provided")
        series = await in_thread(lambda: self._series(selection))
        return _limited(series, limit_of(found))

    def _selection(self, found: Mapping[str, Sequence[str]]) -> Selection:
        return Selection(
            tuple(found.get("match[]", ())),
            time_of(found, "start") if first(found, "start") else None,
            time_of(found, "end") if first(found, "end") else None,
        )

    def _series(self, selection: Selection) -> list[dict[str, str]]:
        """Each label set that one of the selectors finds, once, by its sorted labels."""
        found: dict[tuple[tuple[str, str], ...], dict[str, str]] = {}
        for match in selection.match or (None,):
            for labels in self.metrics.list_series(match, selection.start, selection.end):
                found[tuple(sorted(labels.items()))] = labels
        return [found[key] for key in sorted(found)]

    async def metadata(self, request: Request) -> Response:
        found = await parameters(request)
        wanted, limit = first(found, "metric"), limit_of(found)
        known = self.metadata_of.items()
        data = {name: [one.as_dict()] for name, one in known if not wanted or name == wanted}
        if limit:
            data = dict(list(data.items())[:limit])
        return success(data)

    async def build_info(self, request: Request) -> Response:
        return success(
            {
                "version": "2.42.0",  # of the API that is spoken: what data sources ask it for
                "revision": f"siltstone {self.version}",
                "branch": "",
                "buildUser": "",
                "buildDate": "",
                "goVersion": "",
                "application": "siltstone",
            }
        )


# What siltstone does not have: rules, alerts and exemplars. Clients take these for "none".
EMPTY: Mapping[str, Any] = {
    "rules": {"groups": []},
    "alerts": {"alerts": []},
    "alertmanagers": {"activeAlertmanagers": [], "droppedAlertmanagers": []},
    "query_exemplars": [],
    "status/config": {"yaml": ""},
}


def _always(data: Any) -> Handler:
    async def answer(request: Request) -> Response:
        return success(data)

    return answer


def _limited(items: Iterable[Any], limit: int) -> Response:
    data = list(items)
    if limit and len(data) > limit:
        return success(data[:limit], [TRUNCATED])
    return success(data)
