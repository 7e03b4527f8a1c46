"""Netdata's files as Netdata 1.37 wrote them, against its own answers (tests/golden/netdata)."""

from __future__ import annotations

import json
import lzma
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reference import netdata_files

from siltstone.metrics import netdata, promql
from siltstone.metrics.netdata_page import Points

GOLDEN = Path(__file__).parent.parent / "golden" / "netdata"
STORES = ("A-tier0", "D-tier0", "D-tier1", "D-tier2")
# Beyond this the text that Netdata prints has fewer digits than a double.
EXACT_MAX = 1e12


def load(name: str) -> Any:
    return json.loads(lzma.decompress((GOLDEN / name).read_bytes()))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("netdata")
    for path in GOLDEN.glob("*/*.xz"):
        target = directory / path.parent.name / path.stem
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(lzma.decompress(path.read_bytes()))
    return directory


@pytest.fixture(scope="module")
def metrics() -> Any:
    return load("metrics.json.xz")


@pytest.fixture(scope="module")
def expected() -> Any:
    return load("expected.json.xz")


@pytest.fixture(scope="module")
def views(files: Path, metrics: Any) -> Iterator[dict[str, netdata.View]]:
    opened = {
        store: netdata.open(files / store, names=names_of(metrics[store[0]])) for store in STORES
    }
    yield opened
    for view in opened.values():
        view.close()


def names_of(charts: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
    return {
        metric: {"chart": chart, "dimension": dimension}
        for chart, dimensions in charts.items()
        for dimension, metric in dimensions.items()
    }


def column(answer: Any, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Times in ms, ascending, and values, NaN where null, of one dimension of an answer."""
    rows = answer["data"][::-1]
    times = np.array([row[0] for row in rows], np.int64) * 1000
    return times, np.array([row[number] for row in rows], np.float64)


def natural(points: Points, group: str, times: np.ndarray) -> np.ndarray:
    """The stored values at `times`, NaN where there is none."""
    values = points.values if group == "average" else getattr(points, group)
    found = np.full(len(times), np.nan)
    places = np.searchsorted(points.times, times)
    there = (places < len(points.times)) & (
        np.append(points.times, 0)[np.minimum(places, len(points.times))] == times
    )
    found[there] = values[places[there]]
    return found


def grouped(points: Points, group: str, times: np.ndarray, step_ms: int) -> np.ndarray:
    """Each bucket (t - step, t] of samples; min and max by absolute value, as Netdata has it."""
    found = np.full(len(times), np.nan)
    first = np.searchsorted(points.times, times - step_ms, side="right")
    last = np.searchsorted(points.times, times, side="right")
    for place, (start, stop) in enumerate(zip(first, last, strict=True)):
        bucket = points.values[start:stop]
        if not len(bucket):
            continue
        size = np.abs(bucket)
        found[place] = {
            "average": lambda b=bucket: b.sum() / len(b),
            "sum": lambda b=bucket: b.sum(),
            "min": lambda b=bucket, s=size: b[s.argmin()],
            "max": lambda b=bucket, s=size: b[s.argmax()],
        }[group]()
    return found


def unequal(found: np.ndarray, wanted: np.ndarray, *, exact: bool) -> np.ndarray:
    """Which cells differ, gaps included."""
    gaps = np.isnan(found) != np.isnan(wanted)
    size = np.abs(wanted)
    # printed with 7 decimals: sums of floats may end a hair on the other side
    near = np.abs(found - wanted) <= (0 if exact else 1.01e-7) + size * 1e-12
    rounded = np.array([round(value, 7) for value in found.tolist()]) == wanted
    same = np.where(size < EXACT_MAX, rounded | (near if not exact else False), near)
    return gaps | ~(same | np.isnan(wanted))


def first_after_hole(points: Points, times: np.ndarray, step_ms: int) -> np.ndarray:
    """Buckets that hold the first sample after a hole of more than 10 s."""
    after = points.times[1:][np.diff(points.times) > 10_000]
    return np.isin(times, -(-after // step_ms) * step_ms) | np.array(
        [bool(((after > t - step_ms) & (after <= t)).any()) for t in times]
    )


def test_every_natural_point(views: dict[str, netdata.View], expected: Any, metrics: Any) -> None:
    cells = 0
    for answer in expected["answers"]:
        if "points=" in answer["query"]:
            continue
        for number, dimension in enumerate(answer["labels"][1:], 1):
            times, wanted = column(answer, number)
            metric = metrics[answer["run"]][answer["chart"]][dimension]
            points = views[answer["store"]].read(metric, int(times[0]), int(times[-1]))
            found = natural(points, answer["group"], times)
            # an average of 32-bit floats may be a tie at the seventh decimal
            wrong = np.flatnonzero(unequal(found, wanted, exact=answer["tier"] == 0))
            assert not len(wrong), (answer["query"], dimension, times[wrong], found[wrong])
            cells += len(times)
    assert cells > 250_000


def test_every_grouped_row(views: dict[str, netdata.View], expected: Any, metrics: Any) -> None:
    cells = excused = 0
    for answer in expected["answers"]:
        if "points=" not in answer["query"]:
            continue
        step_ms = answer["step"] * 1000
        for number, dimension in enumerate(answer["labels"][1:], 1):
            times, wanted = column(answer, number)
            metric = metrics[answer["run"]][answer["chart"]][dimension]
            points = views[answer["store"]].read(metric, int(times[0] - step_ms), int(times[-1]))
            found = grouped(points, answer["group"], times, step_ms)
            wrong = unequal(found, wanted, exact=False)
            habit = first_after_hole(points, times, step_ms)
            if answer["chart"] == "system.load" and answer["step"] % 5:
                habit[:] = True
            rows = np.flatnonzero(wrong & ~habit)
            assert not len(rows), (
                answer["query"],
                dimension,
                times[rows],
                found[rows],
                wanted[rows],
            )
            cells += len(times)
            if answer["chart"] != "system.load":
                excused += int(np.count_nonzero(wrong))
    assert cells > 10_000
    assert excused < 50


@pytest.fixture(scope="module")
def damaged(files: Path, expected: Any) -> Path:
    directory = files / "damaged-tier0"
    shutil.copytree(files / "D-tier0", directory)
    for patch in expected["damage"]["patches"]:
        path = directory / patch["file"]
        data = bytearray(path.read_bytes())
        data[patch["offset"]] ^= patch["xor"]
        path.write_bytes(data)
    return directory


def test_damage_reads_as_gaps_exactly_where_it_is(
    damaged: Path, expected: Any, metrics: Any
) -> None:
    with netdata.open(damaged, salvage=False) as view:
        cells = gaps = 0
        for answer in expected["damage"]["answers"]:
            for number, dimension in enumerate(answer["labels"][1:], 1):
                times, wanted = column(answer, number)
                metric = metrics["D"][answer["chart"]][dimension]
                found = natural(view.read(metric), "average", times)
                wrong = np.flatnonzero(unequal(found, wanted, exact=True))
                assert not len(wrong), (answer["query"], dimension, times[wrong])
                cells += len(times)
                gaps += int(np.isnan(found).sum())
        assert cells > 250_000
        assert gaps > 1000
        assert len(view.verify().problems) == 2
    texts = [str(problem) for problem in view.problems]
    assert any(text.endswith("860160: its CRC-32 does not fit") for text in texts)
    assert any("transaction 158" in text for text in texts)


def test_salvage_brings_back_what_only_the_journal_lost(
    damaged: Path, views: dict[str, netdata.View]
) -> None:
    whole = views["D-tier0"]
    with netdata.open(damaged) as view:
        pair = view.tiers[0].pairs[0]
        assert pair.salvaged == 1
        report = view.verify()
        assert report.extents == whole.tiers[0].extent_count
        bad = next(n for n, place in enumerate(pair.places) if place.offset == 860160)
        lost = int(np.count_nonzero(whole.tiers[0].pages["extent"] == bad))
        assert report.pages == len(whole.tiers[0].pages) - lost
        assert len(report.problems) == 2
        salvaged = next(
            number for number, place in enumerate(pair.places) if place.transaction == 0
        )
        for run in view.tiers[0].extent_runs(salvaged):
            points = whole.tiers[0].read(
                [run.metric], int(run.points.times[0]), int(run.points.times[-1])
            )[0]
            assert np.array_equal(points.times, run.points.times)
            assert np.array_equal(points.values, run.points.values)


def test_without_any_journal_everything_is_salvaged(
    files: Path, tmp_path: Path, views: dict[str, netdata.View]
) -> None:
    shutil.copy(files / "A-tier0" / "datafile-1-0000000001.ndf", tmp_path)
    with netdata.open(tmp_path) as view:
        assert view.tiers[0].pairs[0].salvaged == views["A-tier0"].tiers[0].extent_count
        assert len(view.problems) == 1
        assert "does not exist" in str(view.problems[0])
        metric = uuid.UUID(int=next(iter(view.tiers[0].metrics)))
        found, wanted = view.read(metric), views["A-tier0"].read(metric)
        assert np.array_equal(found.times, wanted.times)
        assert np.array_equal(found.values, wanted.values)


@pytest.mark.slow
@pytest.mark.parametrize("store", ["A-tier0", "D-tier2"])
def test_the_independent_decoder_reads_the_same(
    files: Path, views: dict[str, netdata.View], store: str
) -> None:
    decoded = netdata_files.decode(files / store)
    tier = views[store].tiers[views[store].finest_tier]
    assert {metric.int for metric in decoded} == set(tier.metrics)
    for metric, points in decoded.items():
        found = tier.read([metric.int])[0]
        assert (found.times // 1000).tolist() == sorted(points)
        if tier.number == 0:
            assert found.values.tolist() == [points[time] for time in sorted(points)]
        else:
            rows = zip(found.sum, found.min, found.max, found.count, found.anomalies, strict=True)
            assert list(rows) == [points[time] for time in sorted(points)]


def test_resets_are_told(views: dict[str, netdata.View], metrics: Any) -> None:
    points = views["A-tier0"].read(metrics["A"]["wave.counter"]["resets"])
    # the counter falls every 100 s
    assert 10 <= np.count_nonzero(points.reset) <= 16
    assert not points.anomalous.any()


def test_promql_on_a_view(views: dict[str, netdata.View], metrics: Any) -> None:
    view = views["A-tier0"]
    points = view.read(metrics["A"]["wave.counter"]["steady"])
    end_ms = int(points.times[-1])
    inside = points.values[points.times >= end_ms - 60_000]
    query = 'avg by (chart) (avg_over_time(netdata_wave_counter{dimension="steady"}[1m]))'
    result = promql.query(view, query, end_ms)
    assert result.labels == [{"chart": "wave.counter"}]
    assert result.values[0, 0] == pytest.approx(inside.mean(), rel=1e-12)


def test_what_a_view_says_of_itself(views: dict[str, netdata.View]) -> None:
    said = views["D-tier0"].describe()
    assert said["series"] == 556
    assert said["problems"] == []
    (tier,) = said["tiers"]
    assert (tier["tier"], tier["extents"], len(tier["files"])) == (0, 202, 2)
    assert tier["points"] == 9_012_307
    views["D-tier0"].tiers[0].check_invariants()
    (series,) = views["D-tier0"].select(chart="wave.smooth", dimension="const")
    assert series.labels["__name__"] == "netdata_wave_smooth"
    assert set(series.values) == {42.0}
