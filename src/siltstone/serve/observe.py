"""What siltstone measures of itself, as samples: for /metrics, and for its own time series.

One list serves both: the page at /metrics shows it, `Recorder` stores it every second, and the
dashboard draws what was stored. Names: siltstone_<engine>_<what>_<unit>, counters end in _total.
Called in any thread; reading statistics waits for nobody.
"""

from __future__ import annotations

import logging
import resource
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from siltstone.clock import Clock
from siltstone.errors import Closed, SiltstoneError
from siltstone.serve.exposition import Sample

log = logging.getLogger("siltstone.serve")

RECORD_SECONDS = 1.0
# RUSAGE_SELF counts in KiB on Linux
KIB = 1024


class CacheLike(Protocol):
    def stats(self) -> dict[str, Any]: ...

    def segments(self) -> list[dict[str, Any]]: ...


class MetricsLike(Protocol):
    def stats(self) -> dict[str, Any]: ...

    def segments(self) -> list[dict[str, Any]]: ...

    def append(self, name: str, labels: Mapping[str, str], time: float, value: float) -> Any: ...


class ApiLike(Protocol):
    queries: int
    queries_failed: int


class WriterLike(Protocol):
    requests: int
    samples: int
    rejected: int


# Of the cache: our name, its label, the name in `Cache.stats()`.
CACHE: Sequence[tuple[str, dict[str, str], str]] = (
    ("siltstone_cache_items", {"tier": "ram"}, "items_ram"),
    ("siltstone_cache_items", {"tier": "flash"}, "items_flash"),
    ("siltstone_cache_ram_used_bytes", {}, "bytes_ram"),
    ("siltstone_cache_ram_limit_bytes", {}, "limit_maxbytes"),
    ("siltstone_cache_gets_total", {"result": "hit"}, "get_hits"),
    ("siltstone_cache_gets_total", {"result": "miss"}, "get_misses"),
    ("siltstone_cache_flash_hits_total", {}, "get_flash_hits"),
    ("siltstone_cache_flash_misses_total", {}, "flash_misses"),
    ("siltstone_cache_sets_total", {}, "cmd_set"),
    ("siltstone_cache_evictions_total", {}, "evictions"),
    ("siltstone_cache_recached_total", {}, "recached"),
    ("siltstone_cache_rescued_total", {}, "compact_rescued"),
    ("siltstone_cache_segments_forgotten_total", {}, "segments_forgotten"),
    ("siltstone_cache_bad_checksums_total", {}, "flash_bad_checksums"),
    ("siltstone_cache_shards_reset_total", {}, "shards_reset"),
    ("siltstone_cache_write_amplification_ratio", {}, "write_amplification"),
    ("siltstone_cache_device_read_bytes_total", {}, "device_bytes_read"),
    ("siltstone_cache_device_written_bytes_total", {}, "device_bytes_written"),
    ("siltstone_cache_device_errors_total", {"call": "read"}, "device_read_errors"),
    ("siltstone_cache_device_errors_total", {"call": "write"}, "device_write_errors"),
)
# In microseconds there, in seconds here.
CACHE_LATENCIES: Sequence[tuple[str, str, str]] = (
    ("read", "0.5", "device_read_p50_us"),
    ("read", "0.99", "device_read_p99_us"),
    ("write", "0.5", "device_write_p50_us"),
    ("write", "0.99", "device_write_p99_us"),
)
# Of the time series: our name, the path in `Metrics.stats()`.
METRICS: Sequence[tuple[str, tuple[str, ...]]] = (
    ("siltstone_metrics_series", ("series_live",)),
    ("siltstone_metrics_samples_appended_total", ("samples",)),
    ("siltstone_metrics_samples_late_total", ("samples_late",)),
    ("siltstone_metrics_samples_rejected_total", ("samples_rejected",)),
    ("siltstone_metrics_size_on_disk_bytes", ("size_on_disk",)),
    ("siltstone_metrics_retention_limit_bytes", ("retention_size",)),
    ("siltstone_metrics_retention_forecast_seconds", ("retention", "seconds")),
    ("siltstone_metrics_write_amplification_ratio", ("write_amplification",)),
    ("siltstone_metrics_write_errors_total", ("write_errors",)),
)


class Observer:
    """The engines of this process, and what is known of them at a moment."""

    def __init__(
        self,
        clock: Clock,
        *,
        cache: CacheLike | None = None,
        metrics: MetricsLike | None = None,
        api: ApiLike | None = None,
        writer: WriterLike | None = None,
        more: Callable[[], Iterable[Sample]] = tuple,
    ) -> None:
        self.clock = clock
        self.api = api
        self.writer = writer
        self.more = more
        self.cache = cache
        self.metrics = metrics
        self.started_ns = clock.monotonic_ns()

    def samples(self) -> list[Sample]:
        """Everything, now."""
        return [*self._process(), *self._http(), *self._cache(), *self._metrics(), *self.more()]

    def segments(self) -> dict[str, list[dict[str, Any]]]:
        """The segment map of each engine: state, live share, age (`Cache.segments()`)."""
        found = {"cache": self.cache, "metrics": self.metrics}
        return {name: engine.segments() for name, engine in found.items() if engine is not None}

    def _process(self) -> Iterator[Sample]:
        used = resource.getrusage(resource.RUSAGE_SELF)
        up_seconds = (self.clock.monotonic_ns() - self.started_ns) / 1e9
        yield Sample("siltstone_process_uptime_seconds", {}, up_seconds)
        yield Sample("siltstone_process_cpu_seconds_total", {}, used.ru_utime + used.ru_stime)
        yield Sample("siltstone_process_resident_max_bytes", {}, used.ru_maxrss * KIB)

    def _cache(self) -> Iterator[Sample]:
        if self.cache is None:
            return
        try:
            stats, segments = self.cache.stats(), self.cache.segments()
        except Closed:
            return  # a stop closes it first
        for name, labels, source in CACHE:
            if source in stats:
                yield Sample(name, labels, float(stats[source]))
        for call, quantile, source in CACHE_LATENCIES:
            labels = {"call": call, "quantile": quantile}
            if source in stats:
                name = "siltstone_cache_device_latency_seconds"
                yield Sample(name, labels, stats[source] / 1e6)
        yield from _segments("siltstone_cache", segments)

    def _http(self) -> Iterator[Sample]:
        if self.api is not None:
            yield Sample("siltstone_http_queries_total", {}, self.api.queries)
            yield Sample("siltstone_http_queries_failed_total", {}, self.api.queries_failed)
        if self.writer is not None:
            yield Sample("siltstone_http_writes_total", {}, self.writer.requests)
            yield Sample("siltstone_http_samples_written_total", {}, self.writer.samples)
            yield Sample("siltstone_http_samples_rejected_total", {}, self.writer.rejected)

    def _metrics(self) -> Iterator[Sample]:
        if self.metrics is None:
            return
        stats = self.metrics.stats()
        for name, path in METRICS:
            value: Any = stats
            for part in path:
                value = value.get(part) if isinstance(value, Mapping) else None
            if value is not None:
                yield Sample(name, {}, float(value))
        yield from _segments("siltstone_metrics", self.metrics.segments())


def _segments(prefix: str, segments: Iterable[Mapping[str, Any]]) -> Iterator[Sample]:
    counts: dict[str, int] = {}
    live = filled = 0
    for segment in segments:
        counts[str(segment["state"])] = counts.get(str(segment["state"]), 0) + 1
        live += segment["live_bytes"]
        filled += segment["filled_bytes"]
    for state, count in sorted(counts.items()):
        yield Sample(f"{prefix}_segments", {"state": state}, count)
    yield Sample(f"{prefix}_live_bytes", {}, live)
    yield Sample(f"{prefix}_filled_bytes", {}, filled)


class Recorder:
    """Stores samples in an observer's Metrics every second, in a thread of its own.

    `sources` give them; the observer alone if none are named.
    """

    def __init__(
        self,
        observer: Observer,
        seconds: float = RECORD_SECONDS,
        sources: Sequence[Callable[[], Iterable[Sample]]] = (),
    ) -> None:
        self.observer = observer
        self.sources = sources or (observer.samples,)
        self.seconds = seconds
        self.failures = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="siltstone-record", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Returns when the last round has ended."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def record(self) -> int:
        """One round: how many samples it stored."""
        metrics = self.observer.metrics
        if metrics is None:
            return 0
        seconds = self.observer.clock.now_ms() / 1000
        samples = [sample for source in self.sources for sample in source()]
        for sample in samples:
            metrics.append(sample.name, sample.labels, seconds, sample.value)
        return len(samples)

    def _run(self) -> None:
        while not self._stop.wait(self.seconds):
            try:
                self.record()
            except SiltstoneError as error:
                # the next round may succeed (a full disk that is freed); one line, not one a second
                self.failures += 1
                if self.failures == 1:
                    log.warning("own statistics are not recorded: %s", error)
            else:
                self.failures = 0
