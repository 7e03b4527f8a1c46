"""The flash as a person sees it: one cell a segment, and a table by stream.

Pure functions from segment descriptions (slot, state, stream, live share, age) to rich's
renderables. Called by `siltstone inspect`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from siltstone.config import format_duration, format_size

STREAMS = ("fresh", "rescued", "large", "low ttl")
STREAM_COLOURS = ("green", "cyan", "magenta", "yellow", "blue", "red")
# Live share in eighths; a segment with nothing alive is a dot.
SHADES = "·▁▂▃▄▅▆▇█"
STATE_CELLS = {"free": (" ", "dim"), "open": ("+", "bold"), "draining": ("~", "red")}
CELLS_MAX = 4096


class Segment(NamedTuple):
    """One segment as the picture shows it."""

    slot: int
    state: str
    stream: str  # "" if it has none
    version: int
    filled_bytes: int
    live_bytes: int
    live_records: int
    age_s: float | None

    @property
    def live_share(self) -> float:
        return self.live_bytes / self.filled_bytes if self.filled_bytes else 0.0


def segments_of(rows: Iterable[dict[str, Any]], now_ms: int) -> list[Segment]:
    """Segments from the log's description of them."""
    return [
        Segment(
            slot=row["slot"],
            state=row["state"],
            stream=_stream_name(row["stream"]),
            version=row["version"],
            filled_bytes=row["filled_bytes"],
            live_bytes=row["live_bytes"],
            live_records=row.get("live_records", 0),
            age_s=None
            if row.get("opened_ms") is None
            else max(0, now_ms - row["opened_ms"]) / 1000,
        )
        for row in rows
    ]


def _stream_name(stream: int | str | None) -> str:
    """A cache's streams have numbers, other engines' have names."""
    if stream is None or isinstance(stream, str):
        return stream or ""
    return STREAMS[stream] if stream < len(STREAMS) else f"stream {stream}"


def _colours(segments: Iterable[Segment]) -> dict[str, str]:
    """A cache's streams always have the same."""
    others = sorted({segment.stream for segment in segments} - {*STREAMS, ""})
    return dict(zip((*STREAMS, *others), itertools.cycle(STREAM_COLOURS))) | {"": "green"}


def as_json(segments: Iterable[Segment]) -> list[dict[str, Any]]:
    return [
        {
            **segment._asdict(),
            "stream": segment.stream or None,
            "live_share": round(segment.live_share, 4),
        }
        for segment in segments
    ]


def picture(segments: Sequence[Segment], width: int = 64) -> Text:
    """One cell a segment (of very many: one cell several, by their first)."""
    step = -(-len(segments) // CELLS_MAX) or 1
    text, colours = Text(), _colours(segments)
    for number, segment in enumerate(segments[::step]):
        if number and number % width == 0:
            text.append("\n")
        text.append(*_cell(segment, colours[segment.stream]))
    if step > 1:
        text.append(f"\n(one cell in {step} segments)", "dim")
    return text


def _cell(segment: Segment, colour: str) -> tuple[str, str]:
    if segment.state in STATE_CELLS:
        cell, style = STATE_CELLS[segment.state]
        return cell, f"{style} {colour}" if segment.state == "open" else style
    share = min(max(segment.live_share, 0.0), 1.0)
    # anything alive shows: only a dead segment is a dot
    return SHADES[-(-int(share * 1000) * (len(SHADES) - 1) // 1000)], colour


def legend(segments: Sequence[Segment]) -> Text:
    text = Text("one cell a segment: ")
    text.append(f"{SHADES} live share   + open   ~ draining   (blank) free   ")
    found = {segment.stream for segment in segments}
    for stream, colour in _colours(segments).items():
        if stream and stream in found:
            text.append(f"{stream} ", colour)
    return text


def by_stream(segments: Sequence[Segment]) -> Table:
    """What each stream holds, and how old it is."""
    table = Table(title="segments by stream and state")
    table.add_column("stream")
    table.add_column("state")
    for name in ("segments", "filled", "live", "live share", "records", "youngest", "oldest"):
        table.add_column(name, justify="right")
    order = list(_colours(segments))
    groups: dict[tuple[int, str], list[Segment]] = {}
    for segment in segments:
        groups.setdefault((order.index(segment.stream), segment.state), []).append(segment)
    for (place, state), members in sorted(groups.items()):
        filled = sum(member.filled_bytes for member in members)
        live = sum(member.live_bytes for member in members)
        ages = [member.age_s for member in members if member.age_s is not None]
        table.add_row(
            order[place],
            state,
            str(len(members)),
            human_size(filled),
            human_size(live),
            f"{live / filled:.0%}" if filled else "",
            f"{sum(member.live_records for member in members):,}",
            human_age(min(ages)) if ages else "",
            human_age(max(ages)) if ages else "",
        )
    return table


def each_segment(segments: Sequence[Segment]) -> Table:
    table = Table(title="segments")
    for name in ("slot", "state", "stream", "version", "filled", "live", "share", "records", "age"):
        table.add_column(name, justify="left" if name in ("state", "stream") else "right")
    for segment in segments:
        if segment.state == "free":
            continue
        table.add_row(
            str(segment.slot),
            segment.state,
            segment.stream,
            str(segment.version),
            human_size(segment.filled_bytes),
            human_size(segment.live_bytes),
            f"{segment.live_share:.0%}",
            f"{segment.live_records:,}",
            "" if segment.age_s is None else human_age(segment.age_s),
        )
    return table


def render(segments: Sequence[Segment], *, details: bool = False) -> RenderableType:
    """Picture, legend and table together."""
    parts: list[RenderableType] = [picture(segments), legend(segments), by_stream(segments)]
    if details:
        parts.append(each_segment(segments))
    return Group(*parts)


def human_size(size: float) -> str:
    """Three digits and a unit, for reading; `format_size` is for writing back."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if size < 1000 or unit == "TiB":
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1024
    return format_size(int(size))


def human_age(seconds: float) -> str:
    """Two units at most: 5s, 12m, 3h20m, 4d6h."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return format_duration(whole - whole % 60)
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60}m"
    return f"{whole // 86400}d{whole % 86400 // 3600}h"
