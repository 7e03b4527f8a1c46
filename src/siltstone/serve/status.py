"""Prometheus' status pages: what the server is, how it was started, what its database holds.

Shapes: Prometheus, docs/querying/api.md, "Status" (2.42; keys that came later are there, too).
What only Go programs have is said to be nothing. Flags are those of Prometheus that siltstone has a
setting for, under Prometheus' names; all settings: `siltstone check-config`.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from siltstone.clock import Clock
from siltstone.config import format_duration, format_size
from siltstone.metrics.cardinality import Cardinality
from siltstone.metrics.promql import Limits
from siltstone.metrics.settings import MetricsSettings
from siltstone.serve.http_settings import HttpSettings
from siltstone.serve.parameters import BadParameter, first, limit_of, parameters, time_text
from siltstone.serve.prometheus import answered, success
from siltstone.serve.threads import in_thread

LISTED: Final = 10  # of each list, as Prometheus
LISTED_MAX: Final = 10_000
# What Prometheus tells as the times of no samples.
NO_START: Final = (1 << 63) - 1
NO_END: Final = -(1 << 63)


class Database(Protocol):
    """What is asked about; `siltstone.Metrics` is one."""

    settings: MetricsSettings

    def cardinality(self, most: int = 10) -> Cardinality: ...

    def stats(self) -> dict[str, Any]: ...


class Reloaded(Protocol):
    """When the settings were last read, and whether that went well: `Reloader`."""

    succeeded: bool
    succeeded_ms: int


class Status:
    """The routes below /api/v1/status that tell of this server. `directory`: None in memory."""

    def __init__(
        self, metrics: Database, directory: Path | None, clock: Clock, http: HttpSettings,
        reloader: Reloaded,
    ) -> None:  # fmt: skip
        self.metrics = metrics
        self.directory = directory
        self.clock = clock
        self.http = http
        self.reloader = reloader
        self.started_ms = clock.now_ms()

    def routes(self) -> list[Route]:
        return [
            Route(f"/api/v1/status/{name}", answered(handler), methods=["GET"])
            for name, handler in (
                ("tsdb", self.database),
                ("runtimeinfo", self.runtime),
                ("flags", self.flags),
            )
        ]

    async def database(self, request: Request) -> Response:
        found = await parameters(request)
        most = limit_of(found) if first(found, "limit") else LISTED
        if not 1 <= most <= LISTED_MAX:
            raise BadParameter("limit", f"a number from 1 to {LISTED_MAX}")
        counts = await in_thread(lambda: self.metrics.cardinality(most))
        return success(
            {
                "headStats": {
                    "numSeries": counts.series,
                    "numLabelPairs": counts.label_pairs,
                    "chunkCount": counts.chunks,
                    "minTime": NO_START if counts.start_ms is None else counts.start_ms,
                    "maxTime": NO_END if counts.end_ms is None else counts.end_ms,
                },
                "seriesCountByMetricName": _listed(counts.series_of_names),
                "labelValueCountByLabelName": _listed(counts.values_of_labels),
                "memoryInBytesByLabelName": _listed(counts.bytes_of_labels),
                "seriesCountByLabelValuePair": _listed(counts.series_of_pairs),
            }
        )

    async def runtime(self, request: Request) -> Response:
        stats = await in_thread(self.metrics.stats)
        started = time_text(self.started_ms)
        return success(
            {
                "startTime": started,
                "CWD": os.getcwd(),
                "hostname": socket.gethostname(),
                "serverTime": time_text(self.clock.now_ms()),
                "reloadConfigSuccess": self.reloader.succeeded,
                "lastConfigTime": time_text(self.reloader.succeeded_ms),
                "corruptionCount": stats["corrupt_chunks"] + stats["corrupt_indexes"],
                "goroutineCount": threading.active_count(),
                "GOMAXPROCS": len(os.sched_getaffinity(0)),
                "GOMEMLIMIT": NO_START,  # "none"
                "GOGC": "",
                "GODEBUG": "",
                "storageRetention": self._retention(),
            }
        )

    def _retention(self) -> str:
        size = format_size(self.metrics.settings.retention_size)
        seconds = self.metrics.settings.retention_time
        return size if seconds is None else f"{format_duration(seconds)} or {size}"

    async def flags(self, request: Request) -> Response:
        settings, limits = self.metrics.settings, Limits()
        seconds = settings.retention_time
        kept = "0s" if seconds is None else format_duration(seconds)
        return success(
            {
                "query.lookback-delta": format_duration(limits.lookback_ms / 1000),
                "query.max-samples": str(limits.samples_max),
                "query.timeout": format_duration(self.http.query_timeout),
                "storage.tsdb.path": str(self.directory or ""),
                "storage.tsdb.retention.size": format_size(settings.retention_size),
                "storage.tsdb.retention.time": kept,
                "web.enable-admin-api": _word(self.http.admin),
                "web.enable-lifecycle": _word(self.http.lifecycle),
                "web.enable-remote-write-receiver": _word(True),
                "web.listen-address": self.http.listen or "",
            }
        )


def _word(switch: bool) -> str:
    return "true" if switch else "false"


def _listed(counts: Sequence[tuple[str, int]]) -> list[dict[str, Any]]:
    return [{"name": name, "value": count} for name, count in counts]
