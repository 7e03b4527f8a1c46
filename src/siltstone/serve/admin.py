"""Prometheus' admin API: what changes or copies the whole database. Off unless `http.admin` is on,
since everybody who reaches the port may use it then.

A snapshot is an online backup below the data directory, outside of the quota: a directory that
`siltstone verify`, `query --path` and `siltstone.Metrics` open. There is no `clean_tombstones`:
deleted samples are gone for every reader at once, and their bytes with the next merge.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from siltstone.clock import SYSTEM_RANDOM, Clock, Random
from siltstone.errors import EnvironmentFailure, ProtocolError
from siltstone.serve.parameters import first, own_site, parameters, time_of
from siltstone.serve.prometheus import answered, success
from siltstone.serve.threads import in_thread

SNAPSHOTS: Final = "snapshots"  # in the data directory of the time series


class Administrable(Protocol):
    """What is administered; `siltstone.Metrics` is one."""

    def backup(self, path: Path) -> Any: ...

    def delete(self, match: str, start: float | None = None, end: float | None = None) -> int: ...


class Admin:
    """The routes. `directory`: the data directory; None: all is in memory."""

    def __init__(
        self,
        metrics: Administrable,
        directory: Path | None,
        clock: Clock,
        *,
        enabled: bool,
        rng: Random = SYSTEM_RANDOM,
    ) -> None:
        self.metrics = metrics
        self.directory = directory
        self.clock = clock
        self.enabled = enabled
        self.rng = rng

    def routes(self) -> list[Route]:
        return [
            Route(
                f"/api/v1/admin/tsdb/{name}", answered(own_site(handler)), methods=["POST", "PUT"]
            )
            for name, handler in (
                ("snapshot", self.snapshot),
                ("delete_series", self.delete_series),
            )
        ]

    def _check(self) -> None:
        if not self.enabled:
            raise ProtocolError("the admin API is off: set http.admin = true to have it")

    async def snapshot(self, request: Request) -> Response:
        self._check()
        found = await parameters(request)
        if first(found, "skip_head").lower() in ("1", "t", "true"):
            raise ProtocolError('invalid parameter "skip_head": snapshots have all samples here')
        if self.directory is None:
            raise EnvironmentFailure(None, "no snapshot without a data directory: all is in memory")
        moment = datetime.datetime.fromtimestamp(self.clock.now_ms() / 1000, datetime.UTC)
        name = f"{moment:%Y%m%dT%H%M%SZ}-{self.rng.bytes(8).hex()}"
        path = self.directory / SNAPSHOTS / name
        await in_thread(lambda: self.metrics.backup(path))
        return success({"name": name})

    async def delete_series(self, request: Request) -> Response:
        self._check()
        found = await parameters(request)
        selectors: Sequence[str] = found.get("match[]", ())
        if not selectors:
            raise ProtocolError("no match[] parameter provided")
        start = time_of(found, "start") if first(found, "start") else None
        end = time_of(found, "end") if first(found, "end") else None

        def delete() -> None:
            for match in selectors:
                self.metrics.delete(match, start, end)

        await in_thread(delete)
        return Response(status_code=204)
