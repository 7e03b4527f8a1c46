"""What the kernel says of this machine, as samples: processors, memory, load, disks, network.

Read from /proc; names and units are those of Prometheus' node exporter, so that its dashboards and
rules know them. What a kernel does not tell is left out.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from siltstone.serve.exposition import Sample

TICKS: Final = os.sysconf("SC_CLK_TCK")
SECTOR_BYTES: Final = 512  # in /proc/diskstats, whatever the disk has
MODES: Final = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")


def machine_samples(proc: Path = Path("/proc")) -> Iterator[Sample]:
    """As it is now."""
    for name, read in FILES.items():
        try:
            yield from read((proc / name).read_text().splitlines())
        except (OSError, ValueError, IndexError):
            continue  # not there, or in a form that is not known


def _processors(lines: list[str]) -> Iterator[Sample]:
    for line in lines:
        name, *ticks = line.split()
        if name.startswith("cpu") and name != "cpu":
            for mode, spent in zip(MODES, ticks, strict=False):
                labels = {"cpu": name[3:], "mode": mode}
                yield Sample("node_cpu_seconds_total", labels, float(spent) / TICKS)


def _memory(lines: list[str]) -> Iterator[Sample]:
    for line in lines:
        name, _, rest = line.partition(":")
        if rest.endswith(" kB"):
            label = name.replace("(", "_").rstrip(")")
            yield Sample(f"node_memory_{label}_bytes", {}, float(rest.split()[0]) * 1024)


def _load(lines: list[str]) -> Iterator[Sample]:
    for minutes, load in zip((1, 5, 15), lines[0].split(), strict=False):
        yield Sample(f"node_load{minutes}", {}, float(load))


def _disks(lines: list[str]) -> Iterator[Sample]:
    for line in lines:
        _, _, device, _, _, read, _, _, _, written, *_ = line.split()
        labels = {"device": device}
        yield Sample("node_disk_read_bytes_total", labels, float(read) * SECTOR_BYTES)
        yield Sample("node_disk_written_bytes_total", labels, float(written) * SECTOR_BYTES)


def _network(lines: list[str]) -> Iterator[Sample]:
    for line in lines[2:]:  # two of headings
        device, _, rest = line.partition(":")
        numbers, labels = rest.split(), {"device": device.strip()}
        yield Sample("node_network_receive_bytes_total", labels, float(numbers[0]))
        yield Sample("node_network_transmit_bytes_total", labels, float(numbers[8]))


FILES: Final = {
    "stat": _processors, "meminfo": _memory, "loadavg": _load, "diskstats": _disks,
    "net/dev": _network,
}  # fmt: skip
