"""Netdata's files as a person sees them: tables of tiers and files, series, and what is damaged.

Pure functions from a view to rich's renderables. Called by `siltstone inspect` and `verify`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from siltstone.metrics.netdata import View
from siltstone.segment_map import human_size

PROBLEMS_SHOWN = 20


def as_json(view: View, *, details: bool) -> dict[str, Any]:
    """All of it as plain values; with `details` also a row for each series."""
    said = view.describe()
    if details:
        said["list"] = series_rows(view)
    return said


def series_rows(view: View) -> list[dict[str, Any]]:
    """Labels, first and last time of each series of the finest tier that has it."""
    rows = []
    for labels in view.list_series():
        for tier in view.tiers:
            try:
                first_ms, last_ms = view.span_ms(labels["uuid"], tier)
            except KeyError:
                continue
            rows.append({"labels": labels, "tier": tier, "first_ms": first_ms, "last_ms": last_ms})
            break
    return rows


def render(view: View, *, details: bool) -> RenderableType:
    """Tables: tiers, files, with `details` series; then the problems."""
    said = view.describe()
    parts: list[RenderableType] = [
        Text(f"Netdata dbengine, format 1.0: {said['series']} series in {said['directory']}"),
        _tiers(said["tiers"]),
        _files(said["tiers"]),
    ]
    if details:
        parts.append(_series(series_rows(view)))
    parts.append(problems(said["problems"]))
    return Group(*parts)


def problems(found: Sequence[str]) -> Text:
    """The first problems, and how many more there are."""
    if not found:
        return Text("no damage seen (siltstone verify reads everything)")
    lines = [*found[:PROBLEMS_SHOWN]]
    if len(found) > PROBLEMS_SHOWN:
        lines.append(f"and {len(found) - PROBLEMS_SHOWN} more (--json lists all)")
    return Text("\n".join([f"{len(found)} problems; what they name reads as gaps:", *lines]))


def when(time_ms: int | None) -> str:
    """UTC to the second."""
    if time_ms is None:
        return "-"
    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _table(*names: str) -> Table:
    table = Table(show_edge=False)
    for name in names:
        left = name in ("datafile", "labels", "first (UTC)", "last (UTC)")
        table.add_column(name, justify="left" if left else "right", overflow="fold")
    return table


def _tiers(tiers: Iterable[dict[str, Any]]) -> Table:
    names = ("tier", "series", "extents", "pages", "points", "first (UTC)", "last (UTC)")
    table = _table(*names)
    for tier in tiers:
        numbers = [f"{tier[name]}" for name in names[:5]]
        table.add_row(*numbers, when(tier["first_ms"]), when(tier["last_ms"]))
    return table


def _files(tiers: Iterable[dict[str, Any]]) -> Table:
    table = _table("datafile", "size", "journal", "extents", "salvaged", "pages")
    for tier in tiers:
        for file in tier["files"]:
            sizes = human_size(file["datafile_bytes"]), human_size(file["journal_bytes"])
            numbers = (f"{file[name]}" for name in ("extents", "salvaged", "pages"))
            table.add_row(Text(file["datafile"]), *sizes, *numbers)
    return table


def _series(rows: Iterable[dict[str, Any]]) -> Table:
    table = _table("tier", "first (UTC)", "last (UTC)", "labels")
    for row in rows:
        labels = ", ".join(f'{name}="{value}"' for name, value in sorted(row["labels"].items()))
        table.add_row(str(row["tier"]), when(row["first_ms"]), when(row["last_ms"]), Text(labels))
    return table
