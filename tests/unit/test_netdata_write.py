"""Netdata's files written: read back by an independent decoder; and their import."""

from __future__ import annotations

import errno
import uuid
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reference import netdata_files

from siltstone.errors import ConfigError, DeviceFailed, EnvironmentFailure
from siltstone.log import foreign
from siltstone.metrics import netdata, netdata_extent, netdata_import, netdata_write
from siltstone.metrics.netdata_page import Points
from siltstone.metrics.netdata_write import Writer
from siltstone.metrics.source import Matcher, Series

ONE, TWO = uuid.UUID(int=1), uuid.UUID(int=2)
T0 = 1_700_000_000


def seconds(*times: int) -> np.ndarray:
    return np.array(times, np.int64) * 1000


samples = st.lists(
    st.tuples(
        st.one_of(st.integers(1, 3), st.integers(60, 70), st.integers(1, 5000)),
        st.one_of(st.integers(-1000, 1000).map(float), st.just(float("nan"))),
    ),
    min_size=1,
    max_size=200,
)


@given(
    st.lists(samples, min_size=1, max_size=3),
    st.sampled_from([1, 2, 5]),
    st.sampled_from([0, 1, 2]),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_an_independent_decoder_reads_what_was_written(
    tmp_path_factory: pytest.TempPathFactory,
    runs: list[list[tuple[int, float]]],
    step: int,
    compression: int,
) -> None:
    directory = tmp_path_factory.mktemp("written")
    wanted: dict[uuid.UUID, dict[int, float]] = {}
    with Writer(directory, datafile_bytes=16384, compression=compression) as writer:
        for number, run in enumerate(runs):
            metric = uuid.UUID(int=number + 1)
            times = T0 + step * np.cumsum([distance for distance, _ in run])
            values = np.array([value for _, value in run])
            writer.samples(metric, times * 1000, values, step * 1000)
            there = ~np.isnan(values)
            if there.any():
                wanted[metric] = dict(zip(times[there].tolist(), values[there], strict=True))
    if compression < 2:
        assert netdata_files.decode(directory) == wanted
    if not wanted:
        assert not netdata.is_store(directory)
        return
    with netdata.open(directory) as view:
        assert view.verify().ok
        for metric, points in wanted.items():
            found = view.read(metric)
            assert dict(zip((found.times // 1000).tolist(), found.values, strict=True)) == points


def test_flags_survive(tmp_path: Path) -> None:
    with Writer(tmp_path) as writer:
        writer.samples(
            ONE, seconds(T0, T0 + 1, T0 + 2), np.array([0.0, 1.5, -2]),
            anomalous=np.array([True, False, False]), reset=np.array([False, False, True]),
        )  # fmt: skip
    # an anomalous zero is what an empty slot was before 1.36, and no other slot tells here
    with netdata.open(tmp_path, zero_is_empty=False) as view:
        points = view.read(ONE)
        assert points.values.tolist() == [0, 1.5, -2]
        assert points.anomalous.tolist() == [True, False, False]
        assert points.reset.tolist() == [False, False, True]


def test_tier_points_written(tmp_path: Path) -> None:
    count = np.arange(1, 601, dtype=np.uint16)
    times = seconds(*range(T0, T0 + 6000, 10))
    times[300:] += 10_000  # one point is missing
    total = np.arange(600) * 2.0
    low, high = total - 1, total + 1
    points = Points(times, total / count, None, total, low, high, count, count // 2)
    with Writer(tmp_path / "dbengine-tier1") as writer:
        writer.points(ONE, points, 10_000)
    decoded = netdata_files.decode(tmp_path / "dbengine-tier1")[ONE]
    assert list(decoded) == (times // 1000).tolist()
    assert list(decoded.values())[7] == (14, 13, 15, 8, 4)
    with netdata.open(tmp_path) as view:
        found = view.read(ONE, tier=1)
        for mine, theirs in zip(found.columns(), points.columns(), strict=True):
            assert (mine is None and theirs is None) or np.array_equal(mine, theirs)


def test_random_payloads_are_stored_as_they_are(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    with Writer(tmp_path) as writer:
        for n in range(130):
            metric = uuid.UUID(int=n + 1)
            mantissas = rng.integers(10**6, 10**7, 1024).astype(float)
            writer.samples(metric, seconds(*range(T0, T0 + 1024)), mantissas)
    with netdata.open(tmp_path) as view:
        pair = view.tiers[0].pairs[0]
        assert [len(pair.extent(n).descriptors) for n in range(3)] == [64, 64, 2]
        for place in pair.places:
            pages = len(pair.extent(pair.places.index(place)).descriptors)
            assert place.size <= netdata_extent.size_of(pages, 4096 * pages)
            assert place.offset % 4096 == 0


@pytest.mark.parametrize(
    ("times", "step", "text"),
    [([1000, 1500], 1000, "whole seconds"), ([1000, 2000], 1500, "whole seconds"),
     ([1000, 2000], 0, "whole seconds"), ([2000, 1000], 1000, "rise strictly")],
)  # fmt: skip
def test_what_the_format_cannot_hold_is_refused(
    tmp_path: Path, times: list[int], step: int, text: str
) -> None:
    writer = Writer(tmp_path)
    writer.samples(TWO, seconds(5), np.array([1.0]))
    with pytest.raises(ConfigError, match=text):
        writer.samples(ONE, np.array(times, np.int64), np.ones(2), step)
    writer.abandon()
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    with Writer(tmp_path) as writer:
        writer.samples(ONE, seconds(T0), np.array([1.0]))
    with pytest.raises(ConfigError, match="give a new directory"):
        Writer(tmp_path)
    with pytest.raises(EnvironmentFailure, match="cannot be created"):
        foreign.NewFile(tmp_path / "datafile-1-0000000001.ndf")


@pytest.mark.parametrize("call", ["pwrite", "fsync"])
def test_after_a_failed_write_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    real, count = getattr(foreign.os, call), iter(range(100))

    def failing(*arguments: object) -> object:
        if next(count) == (2 if call == "pwrite" else 0):
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*arguments)

    monkeypatch.setattr(foreign.os, call, failing)
    with pytest.raises(DeviceFailed, match="No space left"), Writer(tmp_path) as writer:
        writer.samples(ONE, seconds(T0), np.array([1.0]))
    assert list(tmp_path.iterdir()) == []


class Kept:
    """Samples in memory: a Source, and a Sink."""

    def __init__(self) -> None:
        self.samples: dict[tuple[tuple[str, str], ...], dict[int, float]] = {}
        self.marks: dict[str, int] = {}
        self.calls = 0
        self.stop_at = -1

    def extend(self, labels: Mapping[str, str], times: np.ndarray, values: np.ndarray) -> None:
        self.calls += 1
        if self.calls == self.stop_at:
            raise KeyboardInterrupt
        assert (np.diff(times) > 0).all()
        mine = self.samples.setdefault(tuple(sorted(labels.items())), {})
        mine.update(zip(times.tolist(), values.tolist(), strict=True))

    def mark(self, key: str) -> int:
        return self.marks.get(key, 0)

    def set_mark(self, key: str, value: int) -> None:
        assert value >= self.marks.get(key, 0)
        self.marks[key] = value

    def select(
        self, matchers: list[Matcher], start_ms: int, end_ms: int, step_hint_ms: int = 0
    ) -> list[Series]:
        found = []
        for labels, samples in sorted(self.samples.items()):
            times = sorted(time for time in samples if start_ms <= time <= end_ms)
            values = np.array([samples[time] for time in times])
            if times:
                found.append(Series(dict(labels), np.array(times, np.int64), values))
        return found


def test_export_and_import_of_a_source(tmp_path: Path) -> None:
    source = Kept()
    times = np.arange(T0 * 1000, (T0 + 3000) * 1000, 1000)
    source.extend({"__name__": "up", "job": "a"}, times, np.ones(3000))
    source.extend({"__name__": "up", "uuid": str(TWO)}, times[::10], np.arange(300.0))
    crooked = np.array([T0 * 1000 + 400, T0 * 1000 + 499, T0 * 1000 + 2600])
    source.extend({"__name__": "odd"}, crooked, np.array([1.0, 2.0, float("inf")]))
    report = netdata_write.export(source, tmp_path, T0 * 1000, (T0 + 3000) * 1000)
    assert (report.series, report.samples, report.left_out) == (3, 3301, 2)
    assert netdata_files.decode(tmp_path)[TWO] == {T0 + 10 * n: float(n) for n in range(300)}
    sink = Kept()
    with netdata.open(tmp_path) as view:
        assert {"__name__": "up", "job": "a"}.items() <= view.list_series(job="a")[0].items()
        seen: list[tuple[int, int]] = []
        found = netdata_import.run(view, sink, progress=lambda *both: seen.append(both))
        assert (found.series, found.samples, found.ok) == (3, 3301, True)
        assert seen[-1][0] == seen[-1][1] == found.bytes
        again = netdata_import.run(view, sink)
        assert (again.samples, again.extents_skipped) == (0, found.extents)
    assert {tuple(values.values()) for values in sink.samples.values()} == {
        (1.0,) * 3000, tuple(map(float, range(300))), (2.0,),
    }  # fmt: skip
    with pytest.raises(ConfigError, match="window_ms"):
        netdata_write.export(source, tmp_path / "other", 0, 1, window_ms=1500)


def test_an_import_goes_on_where_it_was_interrupted(tmp_path: Path) -> None:
    pair = netdata_files.Pair()
    for n in range(200):
        page, data = netdata_files.array_page(ONE, T0 + n, [netdata_files.whole(n)])
        pair.add([page], data)
    pair.write(tmp_path)
    sink = Kept()
    sink.stop_at = 150
    with netdata.open(tmp_path) as view:
        with pytest.raises(KeyboardInterrupt):
            netdata_import.run(view, sink)
        report = netdata_import.run(view, sink)
        assert report.extents_skipped == 2 * netdata_import.MARK_EXTENTS
        assert report.ok
    # its owner goes on writing
    page, data = netdata_files.array_page(ONE, T0 + 200, [netdata_files.whole(200)])
    pair.add([page], data)
    with netdata.open(pair.write(tmp_path)) as view:
        assert netdata_import.run(view, sink).samples == 1
    (mine,) = sink.samples.values()
    assert mine == {(T0 + n) * 1000: float(n) for n in range(201)}


@pytest.mark.parametrize("logged", [True, False])
def test_what_could_not_be_read_is_tried_again_by_the_next_import(
    tmp_path: Path, logged: bool
) -> None:
    pair = netdata_files.Pair()
    for n in range(3):
        page, data = netdata_files.array_page(ONE, T0 + n, [netdata_files.whole(n)])
        pair.add([page], data, log=logged)
    sound = pair.data
    pair.data = sound[:8192] + b"\xff" * 60 + sound[8252:]  # still on its way
    sink = Kept()
    with netdata.open(pair.write(tmp_path)) as view:
        report = netdata_import.run(view, sink)
        assert (report.samples, report.ok) == (2, False)
    pair.data = sound
    with netdata.open(pair.write(tmp_path)) as view:
        assert netdata_import.run(view, sink).ok
    (mine,) = sink.samples.values()
    assert mine == {(T0 + n) * 1000: float(n) for n in range(3)}
