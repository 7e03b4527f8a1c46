"""Netdata's files into something that keeps samples: resumable, and harmless when repeated.

Extents are read one at a time, in the order in which they were written, so that each series'
samples come in the order of time. The sink keeps a mark for each datafile: where the next extent
to import starts. A run that was interrupted goes on there; a Netdata that went on writing has its
new extents imported by the next run. The caller's thread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from siltstone.metrics.netdata import View
from siltstone.metrics.netdata_extent import padded
from siltstone.metrics.netdata_pair import Pair
from siltstone.metrics.netdata_tier import Tier

# A mark costs the sink a sync; this much is imported again at most after an interruption.
MARK_EXTENTS: Final = 64


class Sink(Protocol):
    """Who takes the samples."""

    def extend(
        self,
        labels: Mapping[str, str],
        times: npt.NDArray[np.int64],
        values: npt.NDArray[np.float64],
    ) -> None:
        """Samples of one series, times in ms and strictly rising; they may be there already."""

    def mark(self, key: str) -> int:
        """What `set_mark` last kept under this key; 0 if nothing."""

    def set_mark(self, key: str, value: int) -> None:
        """Keep a number, durable only after everything that was given to `extend` before."""


@dataclass
class ImportReport:
    """What was imported. `problems` are sentences; what they name is a gap."""

    series: int = 0
    samples: int = 0
    extents: int = 0
    extents_skipped: int = 0  # imported by an earlier run
    bytes: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.problems


def run(
    view: View,
    sink: Sink,
    *,
    tier: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ImportReport:
    """Import a tier, the finest unless told. `progress(done, of)` counts bytes of datafiles."""
    chosen = view.tiers[view.finest_tier if tier is None else tier]
    report, seen = ImportReport(), set[int]()
    total = sum(place.size for pair in chosen.pairs for place in pair.places)
    done, extent = 0, 0
    for pair in chosen.pairs:
        key = f"netdata:{chosen.number}:{pair.number}:{pair.identity():08x}"
        # What could not be read may still be on its way from a Netdata that runs: tried again.
        first, since, sound = sink.mark(key), 0, pair.sound_until
        for place in pair.places:
            if place.offset < first:
                report.extents_skipped += 1
            else:
                _extent(view, chosen, extent, sink, report, seen)
                if chosen.is_bad(extent):
                    sound = min(sound, place.offset)
                report.extents += 1
                since += 1
            extent += 1
            done += place.size
            if since == MARK_EXTENTS:
                sink.set_mark(key, min(place.offset + padded(place.size), sound))
                since = 0
            if progress is not None:
                progress(done, total)
        if since:
            sink.set_mark(key, min(_end(pair), sound))
    report.series, report.bytes = len(seen), done
    report.problems = [str(problem) for problem in view.problems]
    return report


def _extent(
    view: View, tier: Tier, extent: int, sink: Sink, report: ImportReport, seen: set[int]
) -> None:
    for found in tier.extent_runs(extent):
        if len(found.points.times):
            sink.extend(view.labels_of(found.metric), found.points.times, found.points.values)
            report.samples += len(found.points.times)
            seen.add(found.metric)


def _end(pair: Pair) -> int:
    return pair.places[-1].offset + padded(pair.places[-1].size)
