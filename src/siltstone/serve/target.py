"""One target of a scrape job: how an answer of it becomes samples, and what is known of it.

Prometheus' rules (its scrape/scrape.go tells them by behaviour; docs: "Jobs and instances"):

- Each sample gets job, instance and the configured labels. A label that the target sent too is
  kept (`honor_labels`), or becomes exported_NAME. Then metric_relabel_configs may rewrite or drop
  it.
- Five series tell of the scrape: up, scrape_duration_seconds, scrape_samples_scraped,
  scrape_samples_post_metric_relabeling, scrape_series_added. No rule changes these.
- A series of the last answer that is not in this one ends with a staleness marker; a scrape that
  fails ends all. Samples with times of their own get none.
- An answer that is malformed anywhere, or beyond a limit, gives no samples at all.

`absorb` is called in one thread at a time; the attributes that say how it went may be read in any.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import numpy as np

from siltstone.errors import LimitReached, PeerError
from siltstone.metrics.source import STALE_NAN
from siltstone.serve.ingest import prometheus_text
from siltstone.serve.ingest.rows import NAME_LABEL, Labels, Row
from siltstone.serve.relabelling import relabelled
from siltstone.serve.scrape_settings import NONE, ScrapeSettings, duration_text
from siltstone.serve.sink import Sink

REPORTS: Final = (
    "up",
    "scrape_duration_seconds",
    "scrape_samples_scraped",
    "scrape_samples_post_metric_relabeling",
    "scrape_series_added",
)
# Forget what an answer no longer has once it is as much as what it has, and not for a few.
SPARE_MIN: Final = 100


class ScrapeFailed(PeerError, OSError):
    """A target gave no answer that can be used; the text says why."""


class Target:
    """What is known of one target, which its job's rules do not drop."""

    def __init__(
        self, settings: ScrapeSettings, address: str, sink: Sink, group: Mapping[str, str] = NONE
    ) -> None:
        place = settings.place_of(address, group)
        assert place is not None
        self.settings = settings
        self.sink = sink
        self.discovered = settings.discovered(address, group)
        self.url, self.labels = place
        self.metadata: Mapping[str, Mapping[str, str]] = {}  # of the last good answer
        self.kept = 0  # samples of the last good answer, after metric_relabel_configs
        self.health = "unknown"
        self.last_error = ""
        self.last_ms = 0
        self.last_seconds = 0.0
        # The text of a series in an answer -> its labels, one mapping for all scrapes; and by the
        # identity of that mapping the labels that it is stored with (None: not at all), and the
        # handle, which keeps the series' id valid.
        self._known: dict[str, Labels] = {}
        self._stored: dict[int, dict[str, str] | None] = {}
        self._handles: dict[int, Any] = {}
        self._live: set[int] = set()  # ids of the last answer, those without times of their own
        self._inherited: Iterable[Any] = ()  # handles of these, where another got it: see succeed
        self._reports = [
            sink.series({NAME_LABEL: name, **own_labels(self.labels)}) for name in REPORTS
        ]

    def absorb(
        self, body: bytes, now_ms: int, *, openmetrics: bool = False
    ) -> tuple[int, int, ScrapeFailed | None]:
        """An answer: samples scraped, series added, and what is wrong with it, if anything."""
        try:
            parsed = prometheus_text.parse(body, openmetrics=openmetrics, known=self._known)
            rows = [row for row in parsed.rows if self._labels(row) is not None]
            limit = self.settings.sample_limit
            if limit and len(rows) > limit:
                raise ScrapeFailed(f"{len(rows)} samples: sample_limit allows {limit}")
            added = self._store(rows, parsed.metadata, now_ms)
        except (PeerError, LimitReached) as error:
            self.lost(now_ms)
            return 0, 0, error if isinstance(error, ScrapeFailed) else ScrapeFailed(str(error))
        self._forget(parsed.rows)
        self.kept, self.metadata = len(rows), parsed.metadata
        return len(parsed.rows), added, None

    def is_of(self, settings: ScrapeSettings, address: str, group: Mapping[str, str]) -> bool:
        """Whether it is what these would make."""
        return self.settings == settings and self.discovered == settings.discovered(address, group)

    def succeed(self, other: Target) -> None:
        """Go on where another left off that had the same place under other settings: series that
        the next answer does not have end then."""
        self._live, self._inherited = other._live, list(other._handles.values())
        self.metadata = other.metadata
        self.health, self.last_error = other.health, other.last_error
        self.last_ms, self.last_seconds = other.last_ms, other.last_seconds

    def lost(self, now_ms: int) -> None:
        """Nothing came: every series of the last answer ends here."""
        self._end(self._live, now_ms)
        self._live, self._inherited = set(), ()

    def end(self, now_ms: int) -> None:
        """It is no target any more: nothing of it goes on."""
        self.lost(now_ms)
        self._end([handle.id for handle in self._reports], now_ms)

    def report(
        self, now_ms: int, seconds: float, scraped: int, added: int, error: Exception | None
    ) -> None:
        """How the scrape went, as series and for /api/v1/targets."""
        self.health = "up" if error is None else "down"
        self.last_error = "" if error is None else str(error)
        self.last_ms, self.last_seconds = now_ms, seconds
        kept = self.kept if error is None else 0
        values = [float(one) for one in (error is None, seconds, scraped, kept, added)]
        self._write(
            [handle.id for handle in self._reports],
            [now_ms] * len(values),
            values,
        )

    def about(self) -> dict[str, Any]:
        """For /api/v1/targets, but its time."""
        settings = self.settings
        return {
            "discoveredLabels": self.discovered,
            "labels": self.labels,
            "scrapePool": settings.job_name,
            "scrapeUrl": self.url,
            "globalUrl": self.url,
            "lastError": self.last_error,
            "lastScrapeDuration": self.last_seconds,
            "health": self.health,
            "scrapeInterval": duration_text(settings.scrape_interval),
            "scrapeTimeout": duration_text(settings.scrape_timeout),
        }

    def about_metrics(self, metric: str = "") -> list[dict[str, Any]]:
        """For /api/v1/targets/metadata, of one metric or of all."""
        names = sorted(self.metadata) if not metric else [metric] * (metric in self.metadata)
        return [
            {
                "target": self.labels,
                **({} if metric else {"metric": name}),
                "type": self.metadata[name].get("type", "unknown"),
                "help": self.metadata[name].get("help", ""),
                "unit": self.metadata[name].get("unit", ""),
            }
            for name in names
        ]

    def _store(
        self, rows: list[Row], metadata: Mapping[str, Mapping[str, str]], now_ms: int
    ) -> int:
        ids, times, live = [], [], set()
        honoured = self.settings.honor_timestamps
        for row in rows:
            handle = self._handle(row)
            ids.append(handle.id)
            if honoured and row.time_ms is not None:
                times.append(row.time_ms)
            else:
                times.append(now_ms)
                live.add(handle.id)
        self._write(ids, times, [row.value for row in rows], metadata)
        added, gone = len(live - self._live), self._live - live
        self._end(gone, now_ms)
        self._live, self._inherited = live, ()
        return added

    def _labels(self, row: Row) -> dict[str, str] | None:
        """What it is stored with; None: a rule drops it."""
        own = id(row.labels)
        if own not in self._stored:
            labels = labelled(row.labels, self.labels, self.settings.honor_labels)
            found = relabelled(labels, self.settings.metric_relabel_configs)
            if found and NAME_LABEL not in found:
                raise ScrapeFailed(f"metric_relabel_configs leave no name of {row.labels}")
            self._stored[own] = found or None
        return self._stored[own]

    def _handle(self, row: Row) -> Any:
        found = self._handles.get(id(row.labels))
        if found is None:
            labels = self._stored[id(row.labels)]
            assert labels is not None
            found = self._handles[id(row.labels)] = self.sink.series(labels)
        return found

    def _end(self, ids: Iterable[int], now_ms: int) -> None:
        ended = sorted(ids)
        if ended:
            self._write(ended, [now_ms] * len(ended), [STALE_NAN] * len(ended))

    def _write(
        self,
        ids: list[int],
        times: list[int],
        values: list[float],
        metadata: Mapping[str, Mapping[str, str]] | None = None,
    ) -> None:
        self.sink.write(
            np.array(ids, np.uint32), np.array(times, np.int64), np.array(values, np.float64),
            metadata=metadata,
        )  # fmt: skip

    def _forget(self, rows: list[Row]) -> None:
        """Keep of texts and handles what this answer had, once half of them are of others."""
        seen = {id(row.labels) for row in rows}
        if len(self._known) <= 2 * len(seen) + SPARE_MIN:
            return
        self._known = {text: one for text, one in self._known.items() if id(one) in seen}
        self._handles = {one: handle for one, handle in self._handles.items() if one in seen}
        self._stored = {one: labels for one, labels in self._stored.items() if one in seen}


def own_labels(target: Mapping[str, str]) -> dict[str, str]:
    """Those with a value: an empty one is as none."""
    return {name: value for name, value in target.items() if value}


def labelled(scraped: Labels, target: Mapping[str, str], honor: bool) -> dict[str, str]:
    """A sample's labels with those of its target."""
    labels = dict(scraped)
    for name, value in target.items():
        if name not in scraped:
            labels[name] = value
        elif not honor:
            labels[name] = value
            if scraped[name]:
                moved = f"exported_{name}"
                while moved in scraped or moved in target:
                    moved = f"exported_{moved}"
                labels[moved] = scraped[name]
    return own_labels(labels)
