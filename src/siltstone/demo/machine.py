"""The demo's second job: this machine's own numbers in Metrics, read back and asked with PromQL.

`/proc` is read every quarter of a second while the first job works. Names and units are those of
Prometheus' node exporter, so that its dashboards know them. One thread of its own.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from rich.table import Table

import siltstone
from siltstone.clock import SYSTEM_CLOCK
from siltstone.metrics.result import Result
from siltstone.segment_map import human_size

EVERY_S: Final = 0.25
ROUNDS_MIN: Final = 3  # a rate needs two, and the last may lie between two steps
TICKS: Final = os.sysconf("SC_CLK_TCK")
SECTOR_BYTES: Final = 512  # in /proc/diskstats, whatever the disk has
MODES: Final = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
BUSY: Final = 'sum by (mode) (rate(node_cpu_seconds_total{mode!~"idle|iowait"}[2s]))'

Sample = tuple[str, dict[str, str], float]


# What the kernel says -----------------------------------------------------------------------


def samples(proc: Path = Path("/proc")) -> Iterator[Sample]:
    """Name, labels, value: processors, memory, load, disks and network as they are now."""
    yield from _processors((proc / "stat").read_text())
    for line in (proc / "meminfo").read_text().splitlines():
        name, _, rest = line.partition(":")
        if rest.endswith(" kB"):
            label = name.replace("(", "_").rstrip(")")
            yield f"node_memory_{label}_bytes", {}, float(rest.split()[0]) * 1024
    loads = (proc / "loadavg").read_text().split()
    yield from (
        (f"node_load{n}", {}, float(load)) for n, load in zip((1, 5, 15), loads, strict=False)
    )
    for line in (proc / "diskstats").read_text().splitlines():
        _, _, disk, _, _, read, _, _, _, written, *_ = line.split()
        yield "node_disk_read_bytes_total", {"device": disk}, float(read) * SECTOR_BYTES
        yield "node_disk_written_bytes_total", {"device": disk}, float(written) * SECTOR_BYTES
    for line in (proc / "net" / "dev").read_text().splitlines()[2:]:
        device, _, rest = line.partition(":")
        numbers, labels = rest.split(), {"device": device.strip()}
        yield "node_network_receive_bytes_total", labels, float(numbers[0])
        yield "node_network_transmit_bytes_total", labels, float(numbers[8])


def _processors(stat: str) -> Iterator[Sample]:
    for line in stat.splitlines():
        name, *ticks = line.split()
        if name.startswith("cpu") and name != "cpu":
            for mode, spent in zip(MODES, ticks, strict=False):
                labels = {"cpu": name[3:], "mode": mode}
                yield "node_cpu_seconds_total", labels, float(spent) / TICKS


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
        for name, labels, value in samples():
            self._metrics.append(name, labels, now / 1000, value)
            key = (name, tuple(sorted(labels.items())))
            self._kept.setdefault(key, []).append((now, value))
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
