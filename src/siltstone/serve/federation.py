"""/federate: the newest sample of every series that is asked for, for another Prometheus to scrape.

As Prometheus answers it (docs: "Federation"; checked against 2.42): what an instant query of each
`match[]` would find now, without series that have ended; text format 0.0.4, type untyped, the time
of the sample, an empty label `instance` where there is none (so that `honor_labels` adds none).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from siltstone.clock import Clock
from siltstone.errors import CallerError
from siltstone.metrics.source import NAME_LABEL, STALE_NAN_BITS
from siltstone.serve.exposition import CONTENT_TYPE, Sample, render
from siltstone.serve.parameters import parameters
from siltstone.serve.threads import in_thread

LOOKBACK_MS = 5 * 60 * 1000


class Selectable(Protocol):
    """What is asked; `siltstone.Metrics` is one. Times are Unix seconds."""

    def select(self, match: Any, start: Any = None, end: Any = None) -> list[Any]: ...


class Federation:
    """The route."""

    def __init__(self, metrics: Selectable, clock: Clock) -> None:
        self.metrics = metrics
        self.clock = clock

    def routes(self) -> list[Route]:
        return [Route("/federate", self.answer, methods=["GET"])]

    async def answer(self, request: Request) -> Response:
        matches = (await parameters(request)).get("match[]", [])
        try:
            body = await in_thread(lambda: self._body(matches))
        except CallerError as error:
            return PlainTextResponse(f"{error}\n", status_code=400)
        return Response(body, media_type=CONTENT_TYPE)

    def _body(self, matches: list[str]) -> bytes:
        found: dict[tuple[tuple[str, str], ...], Sample] = {}
        for match in matches:
            for labels, sample in self._newest(match):
                found[tuple(sorted(labels.items()))] = sample
        ordered = sorted(found.items(), key=lambda item: (item[1].name, item[0]))
        return render((sample for _, sample in ordered), lambda name: "untyped")

    def _newest(self, match: str) -> Iterator[tuple[Mapping[str, str], Sample]]:
        now_ms = self.clock.now_ms()
        for series in self.metrics.select(match, (now_ms - LOOKBACK_MS) / 1000, now_ms / 1000):
            name = series.labels.get(NAME_LABEL)
            if not name or int(series.values[-1:].view("u8")[0]) == STALE_NAN_BITS:
                continue
            labels = {key: value for key, value in series.labels.items() if key != NAME_LABEL}
            labels.setdefault("instance", "")
            value, time_ms = float(series.values[-1]), int(series.times[-1])
            yield series.labels, Sample(name, labels, value, time_ms)
