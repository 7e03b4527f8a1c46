"""Netdata's dbengine files (format 1.0) as a read-only view: `open(directory)`.

Goals: every sample that the files hold, exactly, with its time; whatever is damaged reads as a gap
and is listed in `View.problems`; a Netdata that runs meanwhile is not disturbed. Non-goals: names
of metrics, which Netdata keeps elsewhere (give `names`), and repairing files.

A view is also a `Source` (source.py), so PromQL can be evaluated on it. Any thread; picklable, as
its directory and settings. Memory: 50 bytes a page, a few extents of 256 KiB, and what is returned.
"""

from __future__ import annotations

import json
import os
import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import numpy as np

from siltstone import report as reports
from siltstone.errors import ConfigError, KeyMissing, SiltstoneError, WrongFormat
from siltstone.log import foreign
from siltstone.metrics.labels import predicate
from siltstone.metrics.netdata_page import Points
from siltstone.metrics.netdata_pair import Problem, pair_numbers
from siltstone.metrics.netdata_tier import ALWAYS, Tier
from siltstone.metrics.source import NAME_LABEL, Matcher, Series
from siltstone.metrics.syntax import selector

NAMES_FILE: Final = "names.json"
NAMES_BYTES_MAX: Final = 1 << 28
_DIRECTORY: Final = re.compile(r"dbengine(?:-tier([1-4]))?")
_TIER: Final = re.compile(r".*-tier([0-4])")
Names = Mapping[str, Mapping[str, str]]


@dataclass(kw_only=True)
class Report(reports.Report):
    """What reading everything found. `problems` are sentences that name place and finding."""

    extents: int = 0
    pages: int = 0
    points: int = 0
    bytes: int = 0


def open(
    directory: str | os.PathLike[str],
    *,
    names: Names | None = None,
    salvage: bool = True,
    zero_is_empty: bool | None = None,
) -> View:
    """The files in `directory`: one of Netdata's `dbengine` directories, or the one above them.

    `names` gives labels to metrics: {uuid: {"chart": ..., "dimension": ...}}; without it a
    `names.json` of that form in the directory is used. `salvage`: also read extents that no
    journal names. `zero_is_empty`: how Netdata before 1.36 marked empty slots; None finds out.
    """
    return View(Path(directory), names=names, salvage=salvage, zero_is_empty=zero_is_empty)


def is_store(directory: str | os.PathLike[str]) -> bool:
    """Whether `open` would find datafiles there; their contents are not looked at."""
    try:
        return bool(_tiers_in(Path(directory)))
    except SiltstoneError:
        return False


class View:
    """See `open`."""

    def __init__(
        self,
        directory: Path,
        *,
        names: Names | None = None,
        salvage: bool = True,
        zero_is_empty: bool | None = None,
    ) -> None:
        self.directory = directory
        self._given = {"names": names, "salvage": salvage, "zero_is_empty": zero_is_empty}
        found = _tiers_in(directory)
        if not found:
            raise WrongFormat(
                f"{directory} holds no datafile-1-*.ndf: give Netdata's directory 'dbengine', "
                "or the one above it",
                path=str(directory),
            )
        self.tiers: dict[int, Tier] = {}
        self._set_aside: list[Problem] = []
        if zero_is_empty is None and len(found) > 1:
            zero_is_empty = False  # a Netdata that has tiers marks empty slots in the new way
        self._open_tiers(found, salvage, zero_is_empty)
        try:
            names = _names_file(found) if names is None else names
            self._labels = _labels_of(self.tiers.values(), _checked_names(names))
        except BaseException:
            self.close()
            raise

    def _open_tiers(
        self, found: dict[int, Path], salvage: bool, zero_is_empty: bool | None
    ) -> None:
        failed: SiltstoneError | None = None
        for number, path in found.items():
            try:
                self.tiers[number] = Tier(
                    path, number, salvage=salvage, zero_is_empty=zero_is_empty
                )
            except SiltstoneError as error:
                failed = failed or error
                self._set_aside.append(Problem(str(path), -1, f"{error}: this tier is set aside"))
        if failed is not None and not self.tiers:
            raise failed

    # What there is

    @property
    def problems(self) -> list[Problem]:
        """What could not be used, as far as it was read until now; `verify` reads everything."""
        return self._set_aside + [found for tier in self.tiers.values() for found in tier.problems]

    @property
    def finest_tier(self) -> int:
        return min(self.tiers)

    def list_series(
        self, matchers: str | Sequence[Matcher] = (), **labels: str
    ) -> list[dict[str, str]]:
        """The labels of the metrics that match, in the order of their sorted labels."""
        return [dict(self._labels[metric]) for metric in self._find(matchers, labels)]

    def span_ms(self, metric: str | uuid.UUID, tier: int | None = None) -> tuple[int, int]:
        """Times of the first and the last point that a tier's index knows of."""
        rows = self._tier(tier).pages_of(self._metric(metric))
        if not len(rows):
            raise KeyMissing(f"tier {tier} has nothing of {metric}")
        return int(rows["start"].min()) // 1000, int(rows["end"].max()) // 1000

    # Reading

    def read(
        self,
        metric: str | uuid.UUID,
        start_ms: int | None = None,
        end_ms: int | None = None,
        *,
        tier: int | None = None,
    ) -> Points:
        """The points of one metric in [start_ms, end_ms], of the finest tier unless told."""
        number, chosen = self._metric(metric), self._tier(tier)
        return chosen.read([number], *_range(start_ms, end_ms))[0]

    def select(
        self,
        matchers: str | Sequence[Matcher] = (),
        start_ms: int | None = None,
        end_ms: int | None = None,
        step_hint_ms: int = 0,
        *,
        tier: int | None = None,
        **labels: str,
    ) -> list[Series]:
        """The samples of all metrics that match; a Source's `select`, with its ends optional.

        `matchers` may be text: '{chart=~"system[.].*"}'. `labels` are further conditions:
        `select(chart="system.cpu", dimension="user")`. Values of tiers above 0 are averages.
        `step_hint_ms` never leads to a coarser tier: its averages would not serve every function.
        """
        found = self._find(matchers, labels)
        columns = self._tier(tier).read(found, *_range(start_ms, end_ms))
        return [
            Series(self._labels[metric], points.times, points.values)
            for metric, points in zip(found, columns, strict=True)
            if len(points.times)
        ]

    def verify(self, progress: Callable[[int, int], None] | None = None) -> Report:
        """Read and check every extent and page. `progress(done, of)` counts extents."""
        report = Report()
        total = sum(tier.extent_count for tier in self.tiers.values())
        for tier in self.tiers.values():
            for extent in range(tier.extent_count):
                for run in tier.extent_runs(extent):
                    report.pages += 1
                    report.points += len(run.points.times)
                report.extents += 1
                report.bytes += tier.place(extent)[1].size
                if progress is not None:
                    progress(report.extents, total)
        report.problems = [str(problem) for problem in self.problems]
        return report

    def labels_of(self, metric: int) -> Mapping[str, str]:
        """The labels of a metric (its UUID as a number)."""
        return self._labels[metric]

    def describe(self) -> dict[str, Any]:
        """Files, extents, series, time ranges and problems, as plain values."""
        return {
            "directory": str(self.directory),
            "series": len(self._labels),
            "tiers": [_describe(tier) for tier in self.tiers.values()],
            "problems": [str(problem) for problem in self.problems],
        }

    # Leaves

    def _find(self, matchers: str | Sequence[Matcher], labels: Mapping[str, str]) -> list[int]:
        wanted = selector(matchers) if isinstance(matchers, str) else list(matchers)
        wanted += (Matcher(name, "=", value) for name, value in labels.items())
        satisfied = predicate(wanted)
        return [metric for metric, found in self._labels.items() if satisfied(found)]

    def _metric(self, metric: str | uuid.UUID) -> int:
        try:
            number = (metric if isinstance(metric, uuid.UUID) else uuid.UUID(metric)).int
        except ValueError:
            raise KeyMissing(f"{metric!r} is no UUID; find it by list_series(chart=...)") from None
        if number not in self._labels:
            raise KeyMissing(f"no metric {metric} in {self.directory}")
        return number

    def _tier(self, number: int | None) -> Tier:
        number = self.finest_tier if number is None else number
        if number not in self.tiers:
            have = ", ".join(map(str, self.tiers))
            raise KeyMissing(f"{self.directory} has no tier {number}, only {have}")
        return self.tiers[number]

    def close(self) -> None:
        """Idempotent."""
        for tier in self.tiers.values():
            tier.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.directory, self._given)


def _reopen(directory: Path, given: dict[str, Any]) -> View:
    return View(directory, **given)


def _tiers_in(directory: Path) -> dict[int, Path]:
    names = foreign.names_in(directory)
    if pair_numbers(names):
        match = _TIER.fullmatch(directory.absolute().name)
        return {int(match[1]) if match else 0: directory}
    tiers: dict[int, Path] = {}
    for name in names:
        match = _DIRECTORY.fullmatch(name)
        if (
            match
            and (directory / name).is_dir()
            and pair_numbers(foreign.names_in(directory / name))
        ):
            tiers[int(match[1] or 0)] = directory / name
    return dict(sorted(tiers.items()))


def _names_file(tiers: dict[int, Path]) -> Names:
    path = next(iter(tiers.values())) / NAMES_FILE
    if not path.exists():
        return {}
    return read_names(path)


def read_names(path: str | os.PathLike[str]) -> dict[str, dict[str, str]]:
    """The labels of metrics from a JSON file: {uuid: {"chart": ..., "dimension": ...}}."""
    with foreign.ForeignFile(path) as file:
        if file.size > NAMES_BYTES_MAX:
            raise ConfigError(f"{file.path}: {file.size} bytes are too many for names")
        data = file.read(0, NAMES_BYTES_MAX)
    try:
        names = json.loads(data)
    except ValueError as error:
        raise ConfigError(f"{file.path} is not JSON: {error}") from None
    return _checked_names(names, file.path)


def _checked_names(names: Any, source: str = "names") -> dict[str, dict[str, str]]:
    form = 'expected {uuid: {"chart": "system.cpu", "dimension": "user"}}'
    if not isinstance(names, Mapping):
        raise ConfigError(f"{source}: {form}, not {type(names).__name__}")
    checked = {}
    for key, labels in names.items():
        try:
            name = str(key if isinstance(key, uuid.UUID) else uuid.UUID(str(key)))
        except ValueError:
            raise ConfigError(f"{source}: {key!r} is no UUID; {form}") from None
        if not isinstance(labels, Mapping) or not all(
            isinstance(part, str) for pair in labels.items() for part in pair
        ):
            raise ConfigError(f"{source}: the labels of {name} are {labels!r}; {form}")
        checked[name] = dict(labels)
    return checked


def _labels_of(tiers: Any, names: Names) -> dict[int, dict[str, str]]:
    """Labels of every metric of all tiers, in the order of their sorted labels."""
    every = {metric for tier in tiers for metric in tier.metrics}
    labels = {}
    for metric in every:
        own = str(uuid.UUID(int=metric))
        given = names.get(own, {})
        name = "netdata"
        if given.get("chart"):
            name += "_" + re.sub("[^a-zA-Z0-9_:]", "_", given["chart"])
        labels[metric] = {NAME_LABEL: name, **given, "uuid": own}
    return dict(sorted(labels.items(), key=lambda item: sorted(item[1].items())))


def _range(start_ms: int | None, end_ms: int | None) -> tuple[int, int]:
    return (
        ALWAYS[0] if start_ms is None else max(start_ms, ALWAYS[0]),
        ALWAYS[1] if end_ms is None else min(end_ms, ALWAYS[1]),
    )


def _describe(tier: Tier) -> dict[str, Any]:
    rows = tier.pages
    there = len(rows) > 0
    return {
        "tier": tier.number,
        "directory": str(tier.directory),
        "series": len(tier.metrics),
        "extents": tier.extent_count,
        "pages": len(rows),
        "points": int(rows["points"].sum(dtype=np.int64)),
        "page_types": np.unique(rows["type"]).tolist(),
        "first_ms": int(rows["start"].min()) // 1000 if there else None,
        "last_ms": int(rows["end"].max()) // 1000 if there else None,
        "files": [
            {
                "number": pair.number,
                "datafile": pair.data.path,
                "datafile_bytes": pair.data_bytes,
                "journal_bytes": pair.journal_bytes,
                "extents": len(pair.places),
                "salvaged": pair.salvaged,
                "pages": len(pair.pages),
            }
            for pair in tier.pairs
        ],
    }
