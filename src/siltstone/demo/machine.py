"""The demo's second job: this machine's own numbers in Metrics, read back and asked with PromQL.

The kernel is asked every quarter of a second while the first job works. One thread of its own.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from rich.table import Table

import siltstone
from siltstone.clock import SYSTEM_CLOCK
from siltstone.metrics.result import Result
from siltstone.segment_map import human_size
from siltstone.serve.machine import machine_samples

EVERY_S: Final = 0.25
ROUNDS_MIN: Final = 3  # a rate needs two, and the last may lie between two steps
BUSY: Final = 'sum by (mode) (rate(node_cpu_seconds_total{mode!~"idle|iowait"}[2s]))'

# Recorded and read back ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Recorded:
    """What was found again after closing and opening."""

    rounds: int
    series: int
    written: int
    lost: int  # samples that did not come back as they went in
    size: int  # bytes on disk
    cores: Result  # busy cores by mode, over the time


class Recorder:
    """Takes samples into a Metrics directory from its own thread, while entered."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._kept: dict[tuple[str, tuple[tuple[str, str], ...]], list[tuple[int, float]]] = {}
        self._rounds = 0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._work, name="recorder")
        self._metrics: siltstone.Metrics | None = None

    def __enter__(self) -> Self:
        self._metrics = siltstone.Metrics(self._path)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._metrics
        self._end.set()
        self._thread.join()
        self._metrics.close()

    def _work(self) -> None:
        while not self._end.is_set() or self._rounds < ROUNDS_MIN:
            self.take()
            SYSTEM_CLOCK.sleep(EVERY_S)

    def take(self) -> None:
        """One round of samples, all of the same millisecond."""
        assert self._metrics
        now = SYSTEM_CLOCK.now_ms()
        for sample in machine_samples():
            self._metrics.append(sample.name, sample.labels, now / 1000, sample.value)
            key = (sample.name, tuple(sorted(sample.labels.items())))
            self._kept.setdefault(key, []).append((now, sample.value))
        self._rounds += 1

    def read_back(self) -> Recorded:
        """Opens what was written and compares each sample with what was taken."""
        with siltstone.Metrics(self._path, read_only=True) as metrics:
            lost = 0
            for (name, labels), kept in self._kept.items():
                matchers = ",".join(f'{label}="{value}"' for label, value in labels)
                found = {
                    (int(time), float(value))
                    for series in metrics.select(f"{name}{{{matchers}}}", None, None)
                    for time, value in zip(series.times, series.values, strict=True)
                }
                lost += len(set(kept) - found)
            times = [time / 1000 for kept in self._kept.values() for time, _ in kept]
            cores = metrics.query_range(BUSY, min(times), max(times), EVERY_S)
            written = len(times)
            size = metrics.size_on_disk
        return Recorded(self._rounds, len(self._kept), written, lost, size, cores)


def table(recorded: Recorded) -> Table:
    shown = Table(title="Metrics: this machine, every quarter of a second", show_header=False)
    shown.add_column("what")
    shown.add_column("value", justify="right")
    shown.add_row("series", f"{recorded.series:,}")
    shown.add_row("samples", f"{recorded.written:,}")
    shown.add_row("lost or changed", f"{recorded.lost:,}")
    shown.add_row("on disk", human_size(recorded.size))
    shown.add_row("asked in PromQL", BUSY)
    return shown
