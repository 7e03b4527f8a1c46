"""Metrics as a user meets it: what it takes, what it refuses, and how it says so."""

from __future__ import annotations

import datetime
import lzma
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from fakes import CrashDevice, ManualClock
from metricsrig import SEGMENT, T0, contents, crash_device, opened, settings

import siltstone
from siltstone.errors import (
    Closed,
    ConfigError,
    Corruption,
    InvalidValue,
    LimitReached,
    Locked,
    ReadOnly,
    SiltstoneError,
    SnapshotTooOld,
    WrongFormat,
)
from siltstone.metrics import metrics as metrics_module
from siltstone.metrics import windows
from siltstone.metrics.ahead import Ahead
from siltstone.metrics.background import CARE, FLUSH, CommandQueue
from siltstone.metrics.metrics import Metrics
from siltstone.metrics.query import GROUP_SERIES
from siltstone.metrics.readcache import ReadCache
from siltstone.metrics.segment import FRESH, RAW, joined
from siltstone.metrics.source import STALE_NAN, Matcher


@pytest.fixture
def metrics():
    found = opened(crash_device())
    yield found
    found.close()


def fill(metrics, series=3, samples=600, start=T0):
    for n in range(series):
        times = start + np.arange(samples)
        metrics.series("m", n=str(n)).extend(times, times % 100 * (n + 1.0))


# Times ----------------------------------------------------------------------------------------


def test_times_are_seconds_of_any_kind(metrics):
    series = metrics.series("m", n="a")
    utc = datetime.UTC
    series.append(T0, 1)
    series.append(T0 + 1.0005, 2)
    series.append(datetime.datetime.fromtimestamp(T0 + 2, utc), 3)
    series.append(np.datetime64(T0 * 1000 + 3000, "ms"), 4)
    series.append(np.float64(T0 + 4), 5)
    series.append(np.int64(T0 + 5), 6)
    (found,) = metrics.select("m")
    assert (found.times - T0 * 1000).tolist() == [0, 1000, 2000, 3000, 4000, 5000]
    assert found.seconds[1] == T0 + 1.0
    more = np.array([T0 + 6, T0 + 7], "datetime64[s]")
    assert series.extend(more, [7, 8]) == 2
    assert metrics.select("m")[0].times[-1] == T0 * 1000 + 7000


@pytest.mark.parametrize(
    "time",
    [T0 * 1000, float(T0 * 1000), float("nan"), "now", None, True, np.datetime64("NaT", "s")],
)
def test_what_is_no_time_is_said(metrics, time):
    with pytest.raises(InvalidValue, match=r"milliseconds\?|is no time"):
        metrics.series("m", n="a").append(time, 1.0)


def test_milliseconds_in_an_array_are_noticed(metrics):
    with pytest.raises(ValueError, match=r"milliseconds\?"):
        metrics.series("m").extend([T0 * 1000], [1.0])
    with pytest.raises(ValueError, match="2 times and 1 values"):
        metrics.series("m").extend([T0, T0 + 1], [1.0])


# Labels and limits ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "labels", "text"),
    [
        ("a b", {}, "metric name"),
        ("", {}, "at least one label"),
        ("m", {"0": "x"}, "label name"),
        ("m", {"a": 5}, "labels are text"),
        ("m", {"a": "\ud800"}, "no valid text"),
        ("m", {"a": "x" * 3000}, "at most 2048"),
        ("m", {"a" * 300: "x"}, "over 256 bytes"),
        ("m", {f"l{n}": "x" for n in range(70)}, "at most 64"),
        ("m", {f"l{n}": "x" * 2000 for n in range(8)}, "at most 8192"),
    ],
)
def test_labels_that_cannot_be_are_refused(metrics, name, labels, text):
    with pytest.raises(InvalidValue, match=text):
        metrics.series(name, labels)


def test_an_empty_label_is_none(metrics):
    metrics.append("m", {"a": "", "b": "x"}, T0, 1.0)
    assert metrics.list_series() == [{"__name__": "m", "b": "x"}]
    assert metrics.select('m{a=""}')[0].labels == {"__name__": "m", "b": "x"}


def test_limits_name_their_setting():
    metrics = opened(crash_device(), series_max=2, request_samples_max=3, select_samples_max=100)
    metrics.series("a")
    metrics.series("b")
    with pytest.raises(LimitReached, match="series_max"):
        metrics.series("c")
    with pytest.raises(LimitReached, match="request_samples_max"):
        metrics.write([("a", {}, T0 + n, 0.0) for n in range(4)])
    metrics.series("a").extend(T0 + np.arange(200), np.zeros(200))
    with pytest.raises(LimitReached, match="select_samples_max"):
        metrics.select("a")


def test_settings_say_what_would_work(tmp_path):
    with pytest.raises(ConfigError, match="16392KiB"):
        Metrics(tmp_path, retention_size="4MiB")
    Metrics(tmp_path, retention_size="16392KiB").close()
    for options, text in (
        ({"tiers": ("1h", "1m")}, "must rise"),
        ({"tiers": ("10ms",)}, "too fine"),
        ({"segment_size": 100_000}, "64KiB"),
        ({"retention": 5}, "retention_time"),
    ):
        with pytest.raises(ConfigError, match=text):
            Metrics(tmp_path / "other", **options)
    with pytest.raises(ConfigError, match="tiers"):
        Metrics(tmp_path, tiers=("5m",))


# Reading ----------------------------------------------------------------------------------------


def test_matchers(metrics):
    for host in ("a", "b", "c"):
        for cpu in ("0", "1"):
            metrics.append("load", {"host": host, "cpu": cpu}, T0, 1.0)
    metrics.append("up", {"host": "a"}, T0, 1.0)

    def hosts(selector):
        return [(s.labels["host"], s.labels.get("cpu")) for s in metrics.select(selector)]

    assert len(hosts("load")) == 6
    assert hosts('load{host="a",cpu!="0"}') == [("a", "1")]
    assert hosts('load{host=~"a|b",cpu="1"}') == [("a", "1"), ("b", "1")]
    assert hosts('{host=~"."}')[-1] == ("a", None)
    assert hosts('{host="a",cpu=""}') == [("a", None)]
    assert hosts('load{host!~"[ab]"}') == [("c", "0"), ("c", "1")]
    assert hosts('load{host="z"}') == []
    assert hosts([Matcher("cpu", "=", "1"), Matcher("host", "!=", "c")]) == [("a", "1"), ("b", "1")]
    for wrong in ("load{", "load[5m]", "load offset 5m", "1 + 1", 'load{a=~"("}'):
        with pytest.raises(InvalidValue):
            metrics.select(wrong)


def test_both_ends_of_a_range_are_included(metrics):
    fill(metrics, 1, 1000)
    for low, high in ((0, 999), (10, 10), (250, 260), (900, 2000), (500, 499 + 1)):
        (found,) = metrics.select("m", T0 + low, T0 + high)
        assert found.times[0] == (T0 + low) * 1000
        assert found.times[-1] == (T0 + min(high, 999)) * 1000
    assert metrics.select("m", T0 + 1000, T0 + 2000) == []
    with pytest.raises(InvalidValue, match="before it starts"):
        metrics.select("m", T0 + 1, T0)


def test_names_and_values(metrics):
    fill(metrics)
    metrics.append("other", {"zone": "x"}, T0, 1.0)
    assert metrics.labels() == ["__name__", "n", "zone"]
    assert metrics.labels('m{n="0"}') == ["__name__", "n"]
    assert metrics.label_values("n") == ["0", "1", "2"]
    assert metrics.label_values("n", 'm{n!="1"}') == ["0", "2"]
    assert metrics.label_values("nothing") == []
    metrics.checkpoint()
    device = metrics.engine.device
    again = opened(device.reopened(device.content))
    assert again.label_values("__name__") == ["m", "other"]
    assert again.list_series('{zone="x"}') == [{"__name__": "other", "zone": "x"}]


def test_results_do_not_depend_on_the_cache():
    found = []
    for cache in (0, 1 << 17, 1 << 24):
        metrics = opened(crash_device(), cache=cache)
        fill(metrics, 3, 3000)
        metrics.compact()
        sealed = metrics.engine
        sealed.checkpoint()
        found.append(contents(metrics))
        assert contents(metrics) == found[0]
        metrics.engine.cache.check_invariants()


# Tables ---------------------------------------------------------------------------------------


def test_a_long_table_of_pandas(metrics):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(
        {
            "time": pandas.to_datetime([T0 + 2, T0, T0 + 1, T0], unit="s", utc=True),
            "name": ["m", "m", "m", "other"],
            "n": ["a", "a", "a", None],
            "value": [3.0, 1.0, None, 9.0],
        }
    )
    assert metrics.write_table(frame) == 3
    assert [s.labels for s in metrics.select(None)] == [
        {"__name__": "m", "n": "a"},
        {"__name__": "other"},
    ]
    assert metrics.select("m")[0].values.tolist() == [1.0, 3.0]


def test_a_wide_table_of_pyarrow(metrics):
    pyarrow = pytest.importorskip("pyarrow")
    table = pyarrow.table(
        {
            "when": pyarrow.array([T0, T0 + 1, T0 + 2], pyarrow.int64()),
            "host": pyarrow.array(["x", "y", "x"]).dictionary_encode(),
            "cpu": pyarrow.array([1, 2, None], pyarrow.int32()),
            "load": pyarrow.array([0.5, 0.25, 0.125], pyarrow.float32()),
        }
    )
    assert metrics.write_table(table, time="when") == 5
    assert metrics.select('load{host="x"}')[0].values.tolist() == [0.5, 0.125]
    assert metrics.select('cpu{host="x"}')[0].values.tolist() == [1.0]
    for column, text in (("nothing", "no column"), ("host", "text, not times")):
        with pytest.raises(InvalidValue, match=text):
            metrics.write_table(table, time=column)
    with pytest.raises(InvalidValue, match="type 'b'"):
        metrics.write_table(pyarrow.table({"time": [T0], "value": [True]}), name="m")
    with pytest.raises(InvalidValue, match="name="):
        metrics.write_table(pyarrow.table({"time": [T0], "value": [1.0]}))
    with pytest.raises(InvalidValue, match="__arrow_c_stream__"):
        metrics.write_table([1, 2])


def test_a_result_can_be_written_back(metrics):
    fill(metrics, 2, 100)
    before = contents(metrics)
    result = metrics.query_range("m", T0, T0 + 99, 1)
    other = opened(crash_device())
    assert other.write_table(result) == 200
    assert contents(other) == before


# Late samples, duplicates, staleness ------------------------------------------------------------


def test_late_samples_and_duplicates_are_counted(metrics):
    series = metrics.series("m", n="a")
    series.extend(T0 + np.arange(300), np.arange(300.0))
    assert series.append(T0 + 299, -1.0)  # again
    assert series.append(T0 + 250, -2.0)  # again, late
    assert series.append(T0 + 250.5, -3.0)  # late
    assert not series.append(T0 + 198, -4.0)  # too late
    assert series.append(T0 + 10, -5.0, backfill=True)
    found = contents(metrics)["a"]
    assert len(found) == 301
    values = metrics.select("m")[0].values
    assert (values[-1], values[10]) == (-1.0, -5.0)
    stats = metrics.stats()
    assert (stats["samples_rejected"], stats["samples_late"]) == (1, 3)
    assert stats["samples_duplicate"] == 1  # the other two are in a chunk already
    metrics.compact()
    assert metrics.stats()["merged_duplicates"] == 2
    assert contents(metrics)["a"] == found


def test_one_sample_of_the_far_future_closes_only_its_own_series(metrics):
    assert metrics.series("m", n="a").append(T0 + 10**6, 1.0)
    assert not metrics.series("m", n="a").append(T0, 1.0)
    assert metrics.series("m", n="b").append(T0, 1.0)


def test_staleness_markers_keep_their_bits(metrics):
    series = metrics.series("m", n="a")
    for n in range(700):
        series.append(T0 + n, STALE_NAN if n % 9 == 0 else n)
    before = contents(metrics)
    metrics.compact()
    assert contents(metrics) == before
    assert before["a"][T0 * 1000] == 0x7FF0000000000002


def test_deleted_samples_stay_deleted_and_new_ones_count(metrics):
    fill(metrics, 2, 800)
    metrics.checkpoint()
    assert metrics.delete('m{n="0"}', T0 + 100, T0 + 199) == 1
    assert len(contents(metrics)["0"]) == 700
    metrics.series("m", n="0").append(T0 + 150, 5.0, backfill=True)
    assert len(contents(metrics)["0"]) == 701
    for _ in range(2):
        metrics.compact()
        device = metrics.engine.device
        metrics = opened(device.reopened(device.content))
        assert len(contents(metrics)["0"]) == 701
        assert len(contents(metrics)["1"]) == 800
    assert metrics.delete("nothing") == 0
    metrics.delete('{__name__=~".+"}')
    assert contents(metrics) == {}


# Retention --------------------------------------------------------------------------------------


def test_the_quota_holds_and_the_oldest_goes(tmp_path):
    rng = np.random.default_rng(1)
    quota = 2 << 20
    metrics = Metrics(
        tmp_path, retention_size=quota, segment_size=SEGMENT, tiers=("10s", "60s"),
        background=False,
    )  # fmt: skip
    handles = [metrics.series("m", n=str(n)) for n in range(4)]
    largest = 0
    for number in range(150):
        times = T0 + number * 1000 + np.arange(1000)
        for handle in handles:
            handle.extend(times, rng.normal(size=1000))
        metrics.engine.step()
        largest = max(largest, metrics.size_on_disk)
    assert largest <= quota
    assert metrics.stats()["segments_dropped"] > 10
    found = metrics.select("m")
    assert len(found) == 4
    for series in found:
        assert series.times[-1] == (T0 + 150 * 1000 - 1) * 1000
        assert series.seconds[0] > T0 + 1000
        assert (np.diff(series.times) == 1000).all()
    # What is gone as raw data is still there as points, each with all of its samples.
    (first, *_) = metrics.select("m", tier="60s")
    assert first.seconds[0] < found[0].seconds[0]
    assert set(first.count[1:-1].tolist()) == {60}
    assert metrics.verify().problems == []
    for segment in metrics.engine.segments.values():
        assert segment.slot < metrics.settings.slots
    metrics.close()


def stored(path, **options):
    """Much noise in a small store; then what is there."""
    rng = np.random.default_rng(1)
    with Metrics(path, segment_size=SEGMENT, background=False, **options) as metrics:
        noise(metrics, rng, 0, 60)
        metrics.compact()
        return metrics.select("m")[0].times.size


def noise(metrics, rng, first, last):
    """30 KB of each thousand seconds."""
    for number in range(first, last):
        times = T0 + number * 1000 + np.arange(1000)
        for n in range(4):
            metrics.extend("m", {"n": str(n)}, times, rng.normal(size=1000))
        metrics.engine.step()


def reopened(path, **options):
    return Metrics(path, background=False, **options)


def test_a_quota_can_grow(tmp_path):
    before = stored(tmp_path, retention_size="2MiB")
    with reopened(tmp_path, retention_size="8MiB") as metrics:
        assert metrics.select("m")[0].times.size == before
        noise(metrics, np.random.default_rng(2), 60, 300)
        assert 3 << 20 < metrics.size_on_disk <= 8 << 20
        assert metrics.select("m")[0].times.size > 3 * before
        assert metrics.verify().problems == []
    with reopened(tmp_path) as metrics:  # remembered
        assert metrics.settings.slots == 127
    with reopened(tmp_path, read_only=True, retention_size="2MiB") as metrics:
        assert metrics.settings.slots == 127


def test_a_smaller_quota_deletes_nothing_unasked(tmp_path):
    before = stored(tmp_path, retention_size="8MiB")
    with pytest.raises(ConfigError, match="the oldest would be deleted") as caught:
        reopened(tmp_path, retention_size="1280KiB")
    assert "from 2023-11-14T22:13:20.000 on" in str(caught.value)
    assert "retention_drop=True" in str(caught.value)
    with reopened(tmp_path) as metrics:
        assert metrics.settings.slots == 127
        assert metrics.select("m")[0].times.size == before
    with reopened(tmp_path, retention_size="4MiB") as metrics:  # it fits: nothing goes
        assert metrics.select("m")[0].times.size == before
        assert metrics.settings.slots == metrics.engine.log.slots_max < 64
        metrics.backup(tmp_path / "copy")
    for path in (tmp_path, tmp_path / "copy"):
        with reopened(path) as metrics:
            assert metrics.settings.slots == 63
            assert metrics.select("m")[0].times.size == before


def test_a_smaller_quota_drops_the_oldest_when_told_to(tmp_path):
    before = stored(tmp_path, retention_size="8MiB")
    with reopened(tmp_path, retention_size="1280KiB", retention_drop=True) as metrics:
        left = metrics.select("m")[0]
        assert 0 < left.times.size < before
        assert left.times[-1] == (T0 + 60_000 - 1) * 1000  # the newest are there
        assert metrics.stats()["segments_dropped"] > 0
        assert metrics.size_on_disk <= 1280 << 10
        assert len(metrics.segments()) >= metrics.settings.slots
        fill(metrics, samples=5000, start=T0 + 60_000)
        metrics.compact()
        assert metrics.size_on_disk <= 1280 << 10
        assert metrics.verify().problems == []
    with reopened(tmp_path) as metrics:
        assert metrics.settings.retention_size <= 1280 << 10
        assert metrics.select('m{n="0"}')[0].times.size >= 5000


def test_what_is_too_old_is_hidden_at_once_and_dropped_in_time():
    clock = ManualClock(T0 * 1000)
    metrics = Metrics.on_device(crash_device(), settings(48, retention_time="1h"), clock=clock)
    fill(metrics, 1, 3000)
    clock.advance(3000)
    assert len(contents(metrics)["0"]) == 3000
    clock.advance(1000)
    assert len(contents(metrics)["0"]) == 3000 - 400
    metrics.compact()
    clock.advance(10**5)
    assert contents(metrics) == {}
    change_all_sealed(metrics)
    assert metrics.engine.retention.expire() > 0
    assert all(segment.kind > RAW for segment in metrics.engine.segments.values())


def change_all_sealed(metrics):
    from siltstone.metrics.change import Change

    change = Change(metrics.engine)
    for segment in metrics.engine.segments.values():
        if not segment.sealed and segment.kind in (FRESH, RAW):
            change.seal(segment)
    change.commit()


# Opening, closing -------------------------------------------------------------------------------


def test_reopening_needs_no_settings_and_another_writer_is_refused(tmp_path):
    with Metrics(tmp_path, retention_size="2MiB", segment_size="64KiB") as metrics:
        fill(metrics)
        code = (
            "import sys, siltstone\n"
            "try: siltstone.Metrics(sys.argv[1])\n"
            "except siltstone.errors.Locked as error: print(error)"
        )
        out = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True
        )
        assert f"in use by pid {os.getpid()}" in out.stdout, out.stderr
        with pytest.raises(Locked):
            Metrics(tmp_path)
    with Metrics(tmp_path) as metrics:
        assert metrics.settings.segment_size == 1 << 16
        assert len(contents(metrics)) == 3
        assert metrics.engine.recovery.records <= 1  # nothing to replay but the last change


def test_after_close_everything_says_so(metrics):
    metrics.close()
    metrics.close()
    for call in (metrics.flush, metrics.stats, lambda: metrics.select("m")):
        with pytest.raises(Closed):
            call()


def test_a_handle_refuses_after_close_and_in_a_forked_child(metrics):
    handle = metrics.series("m", n="a")
    handle.append(T0, 1.0)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            handle.append(T0 + 1, 1.0)
        except RuntimeError:
            status = 0
        os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    metrics.close()
    for call in (lambda: handle.append(T0 + 2, 1.0), lambda: handle.extend([T0 + 2], [1.0])):
        with pytest.raises(Closed):
            call()


def test_a_foreign_file_is_refused_and_left_as_it_was(tmp_path):
    (tmp_path / "metrics").write_bytes(b"something else" * 1000)
    with pytest.raises((WrongFormat, SiltstoneError)):
        Metrics(tmp_path)
    assert (tmp_path / "metrics").read_bytes() == b"something else" * 1000


def test_read_only_beside_a_writer(tmp_path):
    with Metrics(tmp_path, retention_size="2MiB", segment_size="64KiB") as writer:
        fill(writer)
        writer.flush()
        with Metrics(tmp_path, read_only=True) as reader:
            assert contents(reader) == contents(writer)
            for call in (reader.flush, reader.sync, lambda: reader.series("m")):
                with pytest.raises(ReadOnly):
                    call()
            assert reader.verify().problems == []
        copy = pickle.loads(pickle.dumps(writer))
        assert len(contents(copy)) == 3
        copy.close()
    with pytest.raises(SiltstoneError):
        Metrics(tmp_path / "missing", read_only=True)


def test_a_reader_looks_again_when_a_writer_was_at_work(tmp_path, monkeypatch):
    stored(tmp_path, retention_size="8MiB")
    real, looks = metrics_module.Engine, []

    def seen(problems):
        """What one look after the other finds; None: all is well."""
        looks[:] = problems

        def engine(*arguments, **more):
            found = real(*arguments, **more)
            problem = looks.pop(0)
            if isinstance(problem, Corruption):
                raise problem
            found.problems += problem or []
            return found

        monkeypatch.setattr(metrics_module, "Engine", engine)

    seen([Corruption("torn"), None])
    with Metrics(tmp_path, read_only=True) as reader:
        assert reader.verify().ok
        looks[:] = [["an index"], ["another"], None]
        reader.refresh()
        assert reader.verify().ok
    seen([["an index"], ["an index"]])
    with Metrics(tmp_path, read_only=True) as reader:
        assert reader.verify().problems == ["an index"]  # damage indeed
    seen([Corruption("torn"), Corruption("torn")])
    with pytest.raises(Corruption, match="torn"):
        Metrics(tmp_path, read_only=True)
    seen([[str(n)] for n in range(5)])
    with pytest.raises(SnapshotTooOld, match="faster than it can be read"):
        Metrics(tmp_path, read_only=True)


def test_a_read_only_opening_says_when_it_is_outdated(tmp_path):
    with Metrics(
        tmp_path, retention_size="2MiB", segment_size="64KiB", background=False, tiers=()
    ) as writer:
        rng = np.random.default_rng(1)

        def write(number):
            times = T0 + number * 5000 + np.arange(5000)
            writer.series("m", n="0").extend(times, rng.normal(size=5000))
            writer.engine.step()

        for number in range(10):
            write(number)
        writer.checkpoint()
        with Metrics(tmp_path, read_only=True) as reader:
            before = contents(reader)
            assert before == contents(writer)
            for number in range(10, 80):
                write(number)
            writer.sync()
            reader.engine.cache = ReadCache(0)
            with pytest.raises(SnapshotTooOld, match="refresh"):
                contents(reader)
            reader.refresh()
            assert contents(reader) == contents(writer)
        with pytest.raises(InvalidValue):
            writer.refresh()


def chunks_of(metrics):
    """(segment, descriptors) of all that is stored, each checked to lie in its place alone."""
    engine = metrics.engine
    slots = [one.slot for one in engine.segments.values()]
    assert len(set(slots)) == len(slots)
    found = []
    for segment in engine.segments.values():
        rows = engine.reader.chunks.index(segment) if segment.sealed else joined(segment.parts)
        starts = np.sort(rows["offset"].astype(np.int64))
        ends = np.sort(rows["offset"].astype(np.int64) + rows["size"])
        assert (starts[1:] >= ends[:-1]).all()  # none in another's bytes
        assert ends[-1] <= (segment.index_offset or segment.end) <= SEGMENT
        assert rows.size == segment.chunk_count
        found.append((segment, rows))
    return found


def test_a_chunk_lies_in_one_segment_and_numbers_only_rise_whatever_happens():
    device = crash_device()
    metrics = opened(device, tiers=())
    rng, now = np.random.default_rng(1), T0
    versions, sequence = set(), 0
    for turn in range(12):
        before = {one.version for one in metrics.engine.segments.values()}
        for n in range(3):
            metrics.extend("m", {"n": str(n)}, now + np.arange(700), rng.normal(size=700))
        now += 700
        metrics.checkpoint()
        stored = chunks_of(metrics)
        new = {one.version for one, _ in stored} - before
        assert not new & versions  # no number is used twice
        assert min(new, default=1 << 62) > max(versions, default=0)
        versions |= new
        sealed = [rows for one, rows in stored if one.kind == FRESH]
        newest = joined(sealed)
        newest = newest[newest["start_ms"] >= (now - 700) * 1000]["sequence"]
        assert newest.min() > sequence  # above all that was sealed before
        sequence = int(newest.max())
        if turn % 3 == 1:
            metrics.compact()
            versions |= {one.version for one, _ in chunks_of(metrics)}
        if turn % 4 == 2:
            metrics.close()
        elif turn % 4 == 3:
            metrics.sync()  # and then the process dies
        if turn % 4 >= 2:
            device = device.reopened(device.content)
            metrics = opened(device, seed=turn, tiers=())
    samples = sum(int(rows["count"].sum()) for _, rows in chunks_of(metrics))
    assert samples == sum(one.times.size for one in metrics.select("m")) == 12 * 3 * 700
    metrics.close()


def test_gaps_and_nothing_are_not_stored(metrics):
    assert metrics.series("m", n="0").extend([], []) == 0
    metrics.checkpoint()
    assert chunks_of(metrics) == []
    metrics.extend("m", {"n": "1"}, T0 + np.arange(256), np.arange(256.0))
    metrics.checkpoint()
    metrics.extend("m", {"n": "1"}, T0 + 10**7 + np.arange(256), np.arange(256.0))
    metrics.checkpoint()
    (_, rows), *_ = chunks_of(metrics)
    assert rows["count"].tolist() == [256, 256]  # the months between them take no byte
    assert np.ptp(rows["size"]) <= 1
    assert metrics.select("m", T0 + 256, T0 + 10**7 - 1) == []


def noisy_writer(path, size="2MiB"):
    return Metrics(path, retention_size=size, segment_size="64KiB", background=False, tiers=())


def write_noise(writer, rng, numbers):
    for number in numbers:
        times = T0 + number * 5000 + np.arange(5000)
        writer.series("m", n="0").extend(times, rng.normal(size=5000))
        writer.engine.step()


def test_a_writer_uses_nothing_again_that_a_reader_beside_it_reads(tmp_path):
    with noisy_writer(tmp_path, "8MiB") as writer:
        rng = np.random.default_rng(1)
        write_noise(writer, rng, range(6))
        writer.checkpoint()
        with Metrics(tmp_path, read_only=True, cache=0) as reader:
            before = contents(reader)
            assert before == contents(writer)
            read = {one.slot: one.version for one in reader.engine.segments.values()}
            dropped = writer.stats()["merges"]
            for number in range(6, 10):
                write_noise(writer, rng, [number])
                writer.compact()
                assert contents(reader) == before  # from the device, every time
                for one in writer.engine.segments.values():
                    assert read.get(one.slot, one.version) == one.version
            assert writer.stats()["merges"] > dropped
            assert 0 < writer.stats()["slots_held"] <= writer.settings.slots // 8
            assert reader.verify().ok
            free = writer.stats()["slots_free"]
        writer.engine.step()
        assert writer.stats()["slots_held"] == 0
        assert writer.stats()["slots_free"] > free
        assert contents(writer).keys() == before.keys()


def test_what_is_held_for_readers_is_bounded_and_goes_when_they_look_again(tmp_path):
    with noisy_writer(tmp_path) as writer, noisy_writer(tmp_path / "other") as other:
        rng = np.random.default_rng(1)
        write_noise(writer, rng, range(6))
        writer.checkpoint()
        with Metrics(tmp_path, read_only=True, cache=0) as reader:
            for number in range(6, 60):
                write_noise(writer, rng, [number])
                assert writer.stats()["slots_held"] <= writer.settings.slots // 8
                assert writer.size_on_disk <= 2 << 20
            assert writer.stats()["slots_held"] > 0
            writer.checkpoint()
            writer.sync()
            reader.refresh()  # it looks at what there is now
            assert contents(reader) == contents(writer)
            writer.engine.step()
            assert writer.stats()["slots_held"] == 0
        write_noise(other, rng, range(6))
        other.compact()
        assert other.stats()["slots_held"] == 0  # nobody looks


def test_a_reader_of_another_process_is_seen(tmp_path):
    code = (
        "import sys; from siltstone.metrics.metrics import Metrics\n"
        "with Metrics(sys.argv[1], read_only=True): print('open', flush=True); sys.stdin.read()"
    )
    with noisy_writer(tmp_path) as writer:
        rng = np.random.default_rng(1)
        write_noise(writer, rng, range(6))
        writer.checkpoint()
        with subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        ) as reader:  # fmt: skip
            assert reader.stdout is not None
            assert reader.stdout.readline() == b"open\n"
            writer.compact()
            assert writer.stats()["slots_held"] > 0
            reader.kill()
        writer.engine.step()
        assert writer.stats()["slots_held"] == 0


def test_a_reader_without_a_lock_reads_all_the_same(tmp_path):
    with noisy_writer(tmp_path) as writer:
        write_noise(writer, np.random.default_rng(1), range(3))
        before = contents(writer)
    (tmp_path / "lock").unlink()
    with Metrics(tmp_path, read_only=True) as reader:
        assert contents(reader) == before
    assert not (tmp_path / "lock").exists()


def test_a_reader_that_checkpoints_overtake_looks_again(tmp_path, monkeypatch):
    stored(tmp_path, retention_size="8MiB")
    real, ahead = metrics_module.Metrics._looked_at_newest, [False, False]

    def overtaken(self, device):
        return ahead.pop(0) if ahead else real(self, device)

    monkeypatch.setattr(metrics_module.Metrics, "_looked_at_newest", overtaken)
    with Metrics(tmp_path, read_only=True) as reader:
        assert reader.verify().ok
    ahead[:] = [False] * 9
    with pytest.raises(SnapshotTooOld, match="faster than it can be read"):
        Metrics(tmp_path, read_only=True)


def test_backup_of_a_store_that_is_written_to(tmp_path):
    with Metrics(tmp_path / "a", retention_size="4MiB", segment_size="64KiB") as metrics:
        fill(metrics, 3, 5000)
        metrics.compact()
        fill(metrics, 3, 100, T0 + 5000)
        before = contents(metrics)
        stop = threading.Event()

        def write():
            number = 6000
            while not stop.is_set():
                fill(metrics, 3, 50, T0 + number)
                number += 50

        thread = threading.Thread(target=write)
        thread.start()
        report = metrics.backup(tmp_path / "b")
        stop.set()
        thread.join()
        assert report.samples >= 3 * 5100
        with pytest.raises(ConfigError, match="another directory"):
            metrics.backup(tmp_path / "b")
    with Metrics(tmp_path / "b") as copy:
        found = contents(copy, None, T0 + 5099)
        assert found == before
        assert copy.verify().problems == []
        fill(copy, 3, 10, T0 + 10**6)
        copy.compact()
        assert len(contents(copy, T0 + 10**6, None)["0"]) == 10


def test_an_import_goes_on_where_it_was(tmp_path):
    directory = tmp_path / "dbengine"
    directory.mkdir()
    for path in (Path(__file__).parent.parent / "golden" / "netdata" / "A-tier0").iterdir():
        (directory / path.stem).write_bytes(lzma.decompress(path.read_bytes()))
    metrics = opened(crash_device(200), tiers=())
    report = metrics.import_netdata(directory)
    assert report.ok
    assert report.samples > 100_000
    before = {s.labels["uuid"]: (s.times.size, s.values.sum()) for s in metrics.select(None)}
    assert sum(count for count, _ in before.values()) == report.samples
    device = metrics.engine.device
    metrics = opened(device.reopened(device.content), tiers=())  # it did not even close
    again = metrics.import_netdata(directory)
    assert (again.extents, again.extents_skipped) == (0, report.extents)
    metrics.engine.marks.clear()
    metrics.import_netdata(directory)
    metrics.compact()
    after = {s.labels["uuid"]: (s.times.size, s.values.sum()) for s in metrics.select(None)}
    assert after == before


def test_idle_series_leave_memory_and_come_back(metrics):
    fill(metrics, 50, 20)
    assert metrics.stats()["series_live"] == 50
    for number in range(4):
        fill(metrics, 1, 5, T0 + 100 + number * 10)
        metrics.checkpoint()
    assert metrics.stats()["series_live"] == 1
    assert len(contents(metrics)) == 50
    assert not metrics.series("m", n="7").append(T0 - 1000, 1.0)  # its newest is still known
    assert metrics.series("m", n="7").append(T0 + 20, 1.0)
    assert len(contents(metrics)["7"]) == 21


# Threads and parts --------------------------------------------------------------------------------


@pytest.mark.slow
def test_windows_are_computed_by_the_threads_that_decode(metrics, monkeypatch):
    fill(metrics, series=GROUP_SERIES + 1, samples=3)
    metrics.engine.ahead = Ahead(2)
    over_time, by = windows.over_time, []

    def noted(*arguments):
        by.append(threading.current_thread().name.rpartition("_")[0])
        return over_time(*arguments)

    monkeypatch.setattr(windows, "over_time", noted)
    found = metrics.query("increase(m[1m])", T0 + 2)
    assert by == ["siltstone-read"] * 2
    assert [dict(labels)["n"] for labels in found.labels] == sorted(map(str, range(257)))
    monkeypatch.undo()
    assert metrics.query_range("m", T0, T0 + 2, 1).values.shape == (GROUP_SERIES + 1, 3)


def test_many_threads_write_and_read(tmp_path):
    metrics = Metrics(
        tmp_path, retention_size="4MiB", segment_size="64KiB", flush_interval=0.02, tiers=("10s",)
    )
    errors: list[BaseException] = []
    stop = threading.Event()

    def write(n):
        try:
            handle = metrics.series("m", n=str(n))
            for number in range(60):
                times = T0 + number * 100 + np.arange(100)
                assert handle.extend(times, times * 1.0) == 100
        except BaseException as error:
            errors.append(error)

    def read():
        try:
            while not stop.is_set():
                for series in metrics.select("m"):
                    assert (series.values == series.seconds).all()
                    assert (np.diff(series.times) == 1000).all()
        except BaseException as error:
            errors.append(error)

    writers = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    readers = [threading.Thread(target=read) for _ in range(2)]
    for thread in writers + readers:
        thread.start()
    for thread in writers:
        thread.join()
    metrics.compact()
    stop.set()
    for thread in readers:
        thread.join()
    assert not errors
    assert all(len(samples) == 6000 for samples in contents(metrics).values())
    metrics.close()


def test_commands_run_by_priority_and_a_full_queue_refuses():
    queue, ran = CommandQueue(3), []
    queue.put(CARE, lambda: ran.append("care"))
    queue.put(FLUSH, lambda: ran.append("flush 1"))
    queue.put(FLUSH, lambda: ran.append("flush 2"))
    with pytest.raises(TimeoutError, match="3 commands wait"):
        queue.put(FLUSH, lambda: None, wait_s=0.01)
    for _ in range(3):
        queue.get(0).run()
    assert ran == ["flush 1", "flush 2", "care"]
    assert queue.get(0) is None
    failing = queue.put(CARE, lambda: 1 / 0)
    queue.get(0).run()
    with pytest.raises(ZeroDivisionError):
        failing.wait(0)
    left = queue.put(CARE, lambda: None)
    queue.close()
    with pytest.raises(Closed):
        left.wait(0)
    with pytest.raises(Closed):
        queue.put(CARE, lambda: None)


def test_a_scan_does_not_push_out_what_is_in_use():
    cache = ReadCache(20 * 65536)
    block = (b"x", 65536)
    for number in range(10):
        cache.get((1, number), lambda: block)
        cache.get((1, number), lambda: block)
    for number in range(1000):
        cache.get((2, number), lambda: block)
    cache.check_invariants()
    hits = cache.stats()["hits"]
    for number in range(10):
        cache.get((1, number), lambda: block)
    assert cache.stats()["hits"] == hits + 10


def test_reads_of_one_block_at_the_same_time_are_one():
    cache, began, go, reads = ReadCache(1 << 20), threading.Event(), threading.Event(), []

    def read():
        reads.append(1)
        began.set()
        go.wait(5)
        return b"data", 4

    found: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: found.append(cache.get((1, 0), read))) for _ in range(4)
    ]
    threads[0].start()
    began.wait(5)
    for thread in threads[1:]:
        thread.start()
    while cache.stats()["merged"] < 3:
        pass
    go.set()
    for thread in threads:
        thread.join()
    assert len(reads) == 1
    assert found == [b"data"] * 4

    def fail():
        raise OSError("broken")

    with pytest.raises(OSError, match="broken"):
        cache.get((1, 1), fail)
    assert cache.get((1, 1), lambda: (b"whole", 5)) == b"whole"


def test_promql_on_what_is_stored(metrics):
    fill(metrics, 2, 3000)
    metrics.compact()
    fill(metrics, 2, 100, T0 + 3000)
    result = metrics.query("sum(m)", T0 + 3050)
    assert (result.kind, result.values.tolist()) == ("vector", [[3 * 50.0]])
    matrix = metrics.query_range("max_over_time(m[100s])", T0 + 200, T0 + 3000, "100s")
    assert matrix.values.shape == (2, 29)
    assert matrix.values[:, -1].tolist() == [99.0, 198.0]
    with pytest.raises(ValueError, match="parse error"):
        metrics.query("sum(")


def test_counters_balance(metrics):
    fill(metrics, 3, 3000)
    metrics.compact()
    stats = metrics.stats()
    assert stats["samples"] == 9000
    assert stats["merged_samples_in"] == stats["merged_samples_out"] == 9000
    assert stats["segments"]["raw"]["samples"] == 9000
    assert stats["segments"]["fresh"]["segments"] == 0
    assert stats["segment_write_bytes"] > stats["segments"]["raw"]["bytes"]
    assert 0 < stats["write_amplification"] < 3
    assert stats["slots_free"] < stats["slots"]


def test_the_extra_is_named_when_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "siltstone.metrics.metrics", None)
    monkeypatch.delitem(vars(siltstone), "Metrics", raising=False)  # had before
    with pytest.raises(ImportError, match=r"siltstone\[metrics\]"):
        siltstone.Metrics  # noqa: B018
    with pytest.raises(AttributeError):
        siltstone.Metric  # noqa: B018


def test_a_device_of_another_kind_works_too():
    device = CrashDevice(48, SEGMENT, engine="metrics")
    metrics = opened(device)
    fill(metrics, 1, 10)
    assert metrics.size_on_disk == 0
    metrics.close()
