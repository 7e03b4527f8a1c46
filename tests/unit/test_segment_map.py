"""The picture and the tables of `siltstone inspect`."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from siltstone.segment_map import (
    as_json,
    human_age,
    human_size,
    picture,
    render,
    segments_of,
)

NOW_MS = 1_000_000_000


def row(slot: int, state: str = "sealed", stream: int | None = 0, **given: Any) -> dict[str, Any]:
    base = {
        "slot": slot,
        "state": state,
        "stream": stream,
        "version": slot + 1,
        "filled_bytes": 1000,
        "live_bytes": 500,
        "live_records": 5,
        "opened_ms": NOW_MS - 5000,
    }
    return {**base, **given}


ROWS = [
    row(0, live_bytes=0),
    row(1, live_bytes=1),
    row(2, live_bytes=1000),
    row(3, "open", 1),
    row(4, "draining"),
    row(5, "free", None, version=0, filled_bytes=0, live_bytes=0, opened_ms=None),
]


def test_one_cell_a_segment() -> None:
    assert picture(segments_of(ROWS, NOW_MS)).plain == "·▁█+~ "
    assert picture(segments_of(ROWS, NOW_MS), width=4).plain == "·▁█+\n~ "


def test_very_many_segments_share_cells() -> None:
    text = picture(segments_of([row(n) for n in range(10_000)], NOW_MS)).plain
    assert "one cell in 3 segments" in text
    assert len(text) < 5000


def test_tables_tell_stream_state_share_and_age() -> None:
    console = Console(width=120, file=io.StringIO())
    console.print(render(segments_of(ROWS, NOW_MS), details=True))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for word in ("fresh", "rescued", "sealed", "draining", "50%", "5s", "one cell a segment"):
        assert word in text


def test_json_has_names_and_shares() -> None:
    first, *_, last = as_json(segments_of(ROWS, NOW_MS))
    assert (first["stream"], first["live_share"], first["age_s"]) == ("fresh", 0.0, 5.0)
    assert (last["stream"], last["state"], last["age_s"]) == (None, "free", None)


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1024, "1.0 KiB"), (32 << 20, "32.0 MiB"), (200 << 30, "200 GiB")],
)
def test_sizes_for_reading(size: int, text: str) -> None:
    assert human_size(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.5, "0s"), (59, "59s"), (61, "1m"), (12_000, "3h20m"), (400_000, "4d15h")],
)
def test_ages_for_reading(seconds: float, text: str) -> None:
    assert human_age(seconds) == text
