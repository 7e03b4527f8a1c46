"""Metrics beside the memcached server: the engine, what comes into it, its HTTP port, ourselves.

`open_monitoring` puts them together and `Monitoring.close` takes them apart in the other order, so
that nobody writes to an engine that is closed. Called in the main thread; what runs are threads of
their own.
"""

from __future__ import annotations

import dataclasses
import errno
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from siltstone import __version__
from siltstone.cache.cache import Cache
from siltstone.clock import SYSTEM_CLOCK, Clock
from siltstone.config import MIB
from siltstone.errors import ConfigError, EnvironmentFailure
from siltstone.log.device import MemoryDevice
from siltstone.metrics.metrics import ENGINE, Metrics
from siltstone.metrics.settings import MetricsSettings
from siltstone.serve import dashboard, influx_answers
from siltstone.serve.admin import Admin
from siltstone.serve.compression import compressed
from siltstone.serve.exposition import Sample
from siltstone.serve.federation import Federation
from siltstone.serve.forward import Forwarder
from siltstone.serve.http import HttpServer, OwnRoutes, application
from siltstone.serve.http_settings import HttpSettings
from siltstone.serve.lines import LinePort
from siltstone.serve.loop import LoopThread, Service
from siltstone.serve.machine import machine_samples
from siltstone.serve.metadata import Metadata, MetadataKeeper
from siltstone.serve.observe import Observer, Recorder
from siltstone.serve.outbox import left_behind
from siltstone.serve.prometheus import PrometheusApi
from siltstone.serve.reloading import Load, Reloader
from siltstone.serve.scraping import Scraper
from siltstone.serve.sections import inputs
from siltstone.serve.sink import Sink
from siltstone.serve.status import Status
from siltstone.serve.takers import GraphiteTaker, StatsdTaker
from siltstone.serve.writing import Writer

log = logging.getLogger("siltstone.serve")

DIRECTORY = "metrics"  # in the data directory
QUEUES = "remote_write"  # in that of the time series, and there a directory each
METADATA = "metadata"  # a file beside it
MEMORY_BYTES_MAX = 64 * MIB


class Monitoring:
    """A `Metrics` with all that leads to it and from it. `start()` once, then `close()` once."""

    def __init__(
        self,
        metrics: Metrics,
        cache: Cache | None,
        sections: Mapping[str, Any],
        data: Path | None,
        clock: Clock = SYSTEM_CLOCK,
        load: Load | None = None,
    ) -> None:
        settings: HttpSettings = sections["http"]
        self.metrics = metrics
        directory = _directory(sections["metrics"], data)
        metadata = Metadata(None if directory is None else directory / METADATA)
        self.forwarders = [
            Forwarder(one, _queues(directory), self._labels_of, clock)
            for one in sections["remote_write"]
        ]
        if directory is not None:
            names = {one.name for one in sections["remote_write"]}
            for name in left_behind(directory / QUEUES, names):
                text = "%s holds samples for a [[remote_write]] that is not in the settings"
                log.warning(text, directory / QUEUES / name)
        self.sink = Sink(metrics, metadata, self.forwarders)
        self.scraper = Scraper(sections["scrape"], self.sink, clock)
        statsd = StatsdTaker(sections["statsd"], self.sink, clock)
        self.ports = (
            LinePort(sections["graphite"], GraphiteTaker(self.sink, clock)),
            LinePort(sections["statsd"], statsd),
        )
        # stopped the other way round: who brings samples first
        services: list[Service] = [
            MetadataKeeper(metadata), *self.forwarders, self.scraper, statsd, *self.ports,
        ]  # fmt: skip
        self.loop = LoopThread(services)
        self.reloader = Reloader(
            load, sections, self.scraper, self.loop, clock, enabled=settings.lifecycle
        )
        self.api = PrometheusApi(
            metrics,
            clock,
            version=__version__,
            metadata=metadata,
            timeout=settings.query_timeout,
            points_max=settings.points_max,
        )
        self.writer = Writer(self.sink, clock, body_bytes_max=settings.body_size_max)
        self.admin = Admin(metrics, directory, clock, enabled=settings.admin)
        self.status = Status(metrics, directory, clock, settings, self.reloader)
        self.observer = Observer(
            clock, cache=cache, metrics=metrics, api=self.api, writer=self.writer, more=self._more
        )
        sources: list[Callable[[], Iterable[Sample]]] = []
        if settings.record:
            sources.append(self.observer.samples)
        if settings.record_machine:
            sources.append(machine_samples)
        self.recorder = Recorder(self.observer, sources=sources) if sources else None
        self.http = self._http(settings)

    def _http(self, settings: HttpSettings) -> HttpServer | None:
        if settings.address is None:
            return None
        routes = [
            *self.api.routes(),
            *self.status.routes(),
            *Federation(self.metrics, self.api.clock).routes(),
            *self.scraper.routes(),
            *self.reloader.routes(),
            *self.writer.routes(),
            *influx_answers.routes(),
            *self.admin.routes(),
            *OwnRoutes(self.observer).routes(),
            *dashboard.routes(),
        ]
        try:
            return HttpServer(compressed(application(routes)), *settings.address)
        except EnvironmentFailure as error:
            if settings.chosen or error.errno != errno.EADDRINUSE:
                raise
            log.warning("%s; going on without HTTP, --http chooses another address", error)
            return None

    def _labels_of(self, id: int) -> dict[str, str]:
        engine = self.metrics.engine
        with engine.lock:
            return engine.registry.labels(id)

    def _more(self) -> Iterator[Sample]:
        yield from self.scraper.samples()
        yield from self.reloader.samples()
        for port in self.ports:
            yield from port.samples()
        for forwarder in self.forwarders:
            yield from forwarder.samples()

    def start(self) -> None:
        """EnvironmentFailure: a port cannot be had, and nothing runs."""
        try:
            self.loop.start()
        except BaseException:
            if self.http is not None:
                self.http.stop()
            raise
        if self.http is not None:
            self.http.start()
        if self.recorder is not None:
            self.recorder.start()

    def close(self) -> None:
        """Answer what was asked, store what came, record no more, close the engine."""
        if self.http is not None:
            self.http.stop()
        self.loop.stop()
        if self.recorder is not None:
            self.recorder.stop()
        for forwarder in self.forwarders:
            forwarder.close()
        self.metrics.close()


def open_monitoring(
    cache: Cache | None,
    sections: Mapping[str, Any],
    data: Path | None,
    clock: Clock = SYSTEM_CLOCK,
    load: Load | None = None,
) -> Monitoring | None:
    """Running, or None where nothing is wanted of it, or nobody chose the HTTP port, another
    process has it, and there is nothing else. `load`: see `Reloader`."""
    if sections["http"].address is None and not inputs(sections):
        return None
    metrics = _open_metrics(sections["metrics"], data, clock)
    try:
        monitoring = Monitoring(metrics, cache, sections, data, clock, load)
        if monitoring.http is None and not inputs(sections):
            metrics.close()
            return None
        monitoring.start()
    except BaseException:
        metrics.close()
        raise
    return monitoring


def _directory(engine: MetricsSettings, data: Path | None) -> Path | None:
    return engine.path or (data / DIRECTORY if data is not None else None)


def _queues(directory: Path | None) -> Path:
    if directory is None:
        raise ConfigError("[[remote_write]] keeps its queue on disk: say where with --data")
    return directory / QUEUES


def _open_metrics(engine: MetricsSettings, data: Path | None, clock: Clock) -> Metrics:
    """In its own directory, in that of the data, or, without either, in memory."""
    path = _directory(engine, data)
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
