"""Metrics beside the memcached server: the engine, its HTTP port, and the recording of ourselves.

`open_monitoring` puts them together and `Monitoring.close` takes them apart in the other order, so
that nobody writes to an engine that is closed. Called in the main thread; what runs are threads of
their own.
"""

from __future__ import annotations

import dataclasses
import errno
import logging
from pathlib import Path

from siltstone import __version__
from siltstone.cache.cache import Cache
from siltstone.clock import SYSTEM_CLOCK, Clock
from siltstone.config import MIB
from siltstone.errors import EnvironmentFailure
from siltstone.log.device import MemoryDevice
from siltstone.metrics.metrics import ENGINE, Metrics
from siltstone.metrics.settings import MetricsSettings
from siltstone.serve import dashboard
from siltstone.serve.http import HttpServer, OwnRoutes, application
from siltstone.serve.http_settings import HttpSettings
from siltstone.serve.machine import machine_samples
from siltstone.serve.metadata import Metadata
from siltstone.serve.observe import Observer, Recorder
from siltstone.serve.prometheus import PrometheusApi
from siltstone.serve.writing import Writer

log = logging.getLogger("siltstone.serve")

DIRECTORY = "metrics"  # in the data directory
MEMORY_BYTES_MAX = 64 * MIB


class Monitoring:
    """A running HTTP port over a `Metrics`."""

    def __init__(
        self, metrics: Metrics, cache: Cache | None, settings: HttpSettings, clock: Clock
    ) -> None:
        self.metrics = metrics
        metadata = Metadata()
        self.api = PrometheusApi(
            metrics,
            clock,
            version=__version__,
            metadata=metadata,
            timeout=settings.query_timeout,
            points_max=settings.points_max,
        )
        self.writer = Writer(metrics, metadata, clock, body_bytes_max=settings.body_size_max)
        self.observer = Observer(
            clock, cache=cache, metrics=metrics, api=self.api, writer=self.writer
        )
        routes = [
            *self.api.routes(),
            *self.writer.routes(),
            *OwnRoutes(self.observer).routes(),
            *dashboard.routes(),
        ]
        assert settings.address is not None
        self.http = HttpServer(application(routes), *settings.address)
        machine = [machine_samples] if settings.record_machine else []
        self.recorder = Recorder(self.observer, others=machine) if settings.record else None

    def start(self) -> None:
        self.http.start()
        if self.recorder is not None:
            self.recorder.start()

    def close(self) -> None:
        """Answer what was asked, record no more, close the engine."""
        self.http.stop()
        if self.recorder is not None:
            self.recorder.stop()
        self.metrics.close()


def open_monitoring(
    cache: Cache | None,
    settings: HttpSettings,
    engine: MetricsSettings,
    data: Path | None,
    clock: Clock = SYSTEM_CLOCK,
) -> Monitoring | None:
    """Running, or None where HTTP is off, or nobody chose its port and another process has it."""
    if settings.address is None:
        return None
    metrics = _open_metrics(engine, data, clock)
    try:
        monitoring = Monitoring(metrics, cache, settings, clock)
    except EnvironmentFailure as error:
        metrics.close()
        if settings.chosen or error.errno != errno.EADDRINUSE:
            raise
        log.warning("%s; going on without HTTP, --http chooses another address", error)
        return None
    monitoring.start()
    return monitoring


def _open_metrics(engine: MetricsSettings, data: Path | None, clock: Clock) -> Metrics:
    """In its own directory, in that of the data, or, without either, in memory."""
    path = engine.path or (data / DIRECTORY if data is not None else None)
    options = {
        field.name: getattr(engine, field.name)
        for field in dataclasses.fields(engine)
        if field.name != "path"
    }
    if path is not None:
        return Metrics(path, clock=clock, **options)
    # what nobody keeps on a disk must not fill the memory
    small = MetricsSettings(
        retention_size=min(engine.retention_size, MEMORY_BYTES_MAX), tiers=engine.tiers
    )
    device = MemoryDevice(small.slots, small.segment_size, engine=ENGINE)
    return Metrics.on_device(device, small, clock=clock)
