"""Metrics in process: ingest, size, reads, memory and opening, beside duckdb and Parquet.

`python -m bench metrics` runs all parts, `metrics.ingest` one of them. Data is host-like: gauges
with one decimal that move slowly, counters, constants, some noise; one sample a second. Every side
gets the same arrays. `metrics.served` is over HTTP, beside victoria-metrics and prometheus
(metrics_served.py). A peer that is not installed is told in one line.
"""

from __future__ import annotations

import importlib.util
import lzma
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bench import harness, metrics_served
from bench.harness import OURS, Row, Settings
from siltstone.metrics.metrics import Metrics

TITLE = "Metrics: one sample a second, host-like data"
START = 1_700_000_000
ARRAY = 1000
QUOTA = "1GiB"
AGENT = Path(__file__).parents[1] / "tests/golden/netdata/D-tier0"


# Data -----------------------------------------------------------------------------------------


def host_like(count: int, number: int) -> Any:
    """Values of series `number`, one a second."""
    rng = np.random.default_rng(number)
    kind = number % 5
    if kind == 0:  # a percentage that wanders
        return np.round(np.clip(50 + np.cumsum(rng.normal(size=count)), 0, 100), 1)
    if kind == 1:  # a counter
        return np.cumsum(rng.integers(0, 1500, count)).astype(float)
    if kind == 2:  # hardly ever changes
        return np.repeat(rng.integers(0, 50, count // 600 + 1), 600)[:count].astype(float)
    if kind == 3:  # bytes in use, in pages
        return (1e9 + 4096 * np.cumsum(rng.integers(-3, 4, count))).astype(float)
    return np.round(rng.gamma(2.0, 3.0, count), 2)  # a latency


def opened(path: Path, **options: Any) -> Metrics:
    return Metrics(path, **{"retention_size": QUOTA, "background": False, **options})


def fill(metrics: Metrics, series: int, count: int, values: list[Any] | None = None) -> None:
    """Round robin in arrays, as a collector would. `values`: made beforehand, to time the rest."""
    handles = [metrics.series("host_metric", n=str(n)) for n in range(series)]
    values = values or [host_like(count, n) for n in range(series)]
    for first in range(0, count, ARRAY):
        times = (START + np.arange(first, min(first + ARRAY, count))).astype(float)
        for handle, column in zip(handles, values, strict=True):
            handle.extend(times, column[first : first + ARRAY])
        metrics.engine.step()


# Ingest ---------------------------------------------------------------------------------------


def ingest(settings: Settings) -> list[Row]:
    arrays = settings.pick(10_000, 2_000)
    series = 100
    columns = [host_like(ARRAY * (arrays // series), n) for n in range(series)]
    sides = {
        OURS: _extend_ours,
        "duckdb": _extend_duckdb,
        "Parquet": _extend_parquet,
    }
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for name, module in (("duckdb", "duckdb"), ("Parquet", "pyarrow")):
        if not all(importlib.util.find_spec(one) for one in (module, "pyarrow")):
            print(f"{name}: not installed (pip install {module})")
            del sides[name]
    for turn in range(settings.rounds):
        for name in sides if turn % 2 == 0 else reversed(sides):
            with settings.directory() as path:
                rates[name].append(sides[name](path, columns) / 1e6)
    unit = "M samples/s"
    rows = [
        Row("extend in arrays of 1,000: head and log", unit, rates[OURS], peer,
            rates[peer], target=20, compare=False)
        for peer in ("duckdb", "Parquet") if rates[peer]
    ]  # fmt: skip
    return [*rows, *_sustained(settings), *_single(settings)]


def _pieces(columns: list[Any]) -> Any:
    for first in range(0, columns[0].size, ARRAY):
        times = START + np.arange(first, first + ARRAY)
        for number, column in enumerate(columns):
            yield number, times, column[first : first + ARRAY]


def _extend_ours(path: Path, columns: list[Any]) -> float:
    with opened(path) as metrics:
        handles = [metrics.series("host_metric", n=str(n)) for n in range(len(columns))]
        pieces = [(handles[n], times.astype(float), values) for n, times, values in
                  _pieces(columns)]  # fmt: skip
        spent = 0.0
        for number, (handle, times, values) in enumerate(pieces):
            began = time.perf_counter()
            handle.extend(times, values)
            spent += time.perf_counter() - began
            if number % 500 == 499:
                metrics.engine.step()  # segments and merges are measured apart
        began = time.perf_counter()
        metrics.flush()
        spent += time.perf_counter() - began
        return len(pieces) * ARRAY / spent


def _extend_duckdb(path: Path, columns: list[Any]) -> float:
    import duckdb
    import pyarrow

    with duckdb.connect(str(path / "data.duckdb")) as database:
        database.execute("create table samples(series integer, time timestamp, value double)")
        tables = [
            pyarrow.table({
                "series": np.full(ARRAY * 100, number, np.int32),
                "time": np.resize(times, ARRAY * 100).astype("datetime64[s]").astype(
                    "datetime64[us]"),
                "value": np.resize(values, ARRAY * 100),
            })
            for number, times, values in list(_pieces(columns))[::100]
        ]  # fmt: skip
        began = time.perf_counter()
        for table in tables:  # of 100,000 rows: it is slow with small ones
            database.register("piece", table)
            database.execute("insert into samples select * from piece")
        return len(tables) * ARRAY * 100 / (time.perf_counter() - began)


def _extend_parquet(path: Path, columns: list[Any]) -> float:
    import pyarrow
    import pyarrow.parquet as parquet

    pieces = list(_pieces(columns))
    schema = pyarrow.schema(
        [
            ("series", pyarrow.int32()),
            ("time", pyarrow.timestamp("s")),
            ("value", pyarrow.float64()),
        ]
    )
    began = time.perf_counter()
    with parquet.ParquetWriter(path / "data.parquet", schema, compression="zstd") as writer:
        for number in range(0, len(pieces), 100):
            some = pieces[number : number + 100]
            writer.write_table(pyarrow.table({
                "series": np.repeat(np.array([n for n, _, _ in some], np.int32), ARRAY),
                "time": np.concatenate([t for _, t, _ in some]).astype("datetime64[s]"),
                "value": np.concatenate([v for _, _, v in some]),
            }, schema=schema))  # fmt: skip
    return len(pieces) * ARRAY / (time.perf_counter() - began)


def _sustained(settings: Settings) -> list[Row]:
    """All included, on one core: journal, sealing, segments, merge, tiers. The background's thread
    does what is not appending, so that appends go on while it waits for the disk."""
    found, seconds, amplified = [], [], 0.0
    count = settings.pick(40_000, 20_000)
    columns = [host_like(count, n) for n in range(200)]
    for _ in range(settings.pick(3, 1)):
        with (
            settings.directory() as path,
            harness.pinned(harness.cores()[0]),
            opened(path, retention_size="256MiB", background=True) as metrics,
        ):
            began, used = time.perf_counter(), time.process_time()
            handles = [metrics.series("host_metric", n=str(n)) for n in range(len(columns))]
            for number, times, values in _pieces(columns):
                handles[number].extend(times.astype(float), values)
            metrics.compact()
            found.append(200 * count / (time.perf_counter() - began) / 1e6)
            seconds.append((time.process_time() - used) / (200 * count) * 1e9)
            stats = metrics.stats()
            amplified = stats["write_amplification"]
            stored = sum(kind["bytes"] for kind in stats["segments"].values()) / (200 * count)
    notes = {"CPU a sample": f"{statistics.median(seconds):.0f} ns"}
    parts = {"written a sample": f"{16 * amplified:.1f} bytes (journal 8), stored {stored:.2f}"}
    return [
        Row("sustained, everything included, one core", "M samples/s", found, target=5,
            notes=notes),
        Row("bytes written a byte given (16 a sample), merges and tiers included", "x",
            [amplified], target=3, at_most=True, smaller_is_better=True, exact=True, notes=parts),
    ]  # fmt: skip


def _single(settings: Settings) -> list[Row]:
    found = []
    count = settings.pick(1_000_000, 200_000)
    for _ in range(settings.rounds):
        with settings.directory() as path, opened(path) as metrics:
            append = metrics.series("single", n="0").append
            moments = [float(START + n) for n in range(count)]
            found.append(1e3 / harness.set_nanoseconds(append, [(t, 1.5) for t in moments]))
    return [Row("single append through a handle", "M samples/s", found, target=1.5)]


# Size -----------------------------------------------------------------------------------------


def size(settings: Settings) -> list[Row]:
    """Bytes a sample after the merge, for several lengths of chunks."""
    rows = []
    series, count = 100, settings.pick(65_536, 16_384)
    for samples in (2048, 8192, 16_384):
        options = {"merge_samples": samples, "tiers": (), "retention_size": "256MiB"}
        with settings.directory() as path, opened(path, **options) as metrics:
            fill(metrics, series, count)
            metrics.compact()
            raw = metrics.stats()["segments"]["raw"]
            rows.append(Row(
                f"host-like data, chunks of {samples}", "bytes a sample",
                [raw["bytes"] / raw["samples"]], target=0.9 if samples == 16_384 else None,
                at_most=True, smaller_is_better=True, exact=True,
            ))  # fmt: skip
    return [*rows, *netdata_size(settings)]


def netdata_size(settings: Settings) -> list[Row]:
    """Five hours of a Netdata agent, 9 M samples: its own data files and ours."""
    with settings.directory() as path:
        files = path / "dbengine"
        files.mkdir()
        for packed in AGENT.glob("*.xz"):
            (files / packed.stem).write_bytes(lzma.decompress(packed.read_bytes()))
        theirs = sum(file.stat().st_size for file in files.glob("*.ndf"))
        with opened(path / "metrics", tiers=()) as metrics:
            metrics.import_netdata(files)
            metrics.compact()
            raw = metrics.stats()["segments"]["raw"]
    return [Row(
        "an agent's samples", "bytes a sample", [raw["bytes"] / raw["samples"]],
        "Netdata", [theirs / raw["samples"]], target=0.5, at_most=True, smaller_is_better=True,
        exact=True, notes={"samples": f"{raw['samples']:,}", "Netdata": "without its journals"},
    )]  # fmt: skip


# Reading --------------------------------------------------------------------------------------


def read(settings: Settings) -> list[Row]:
    series, count = settings.pick(1000, 100), 6 * 3600
    newest = START + count - 1
    rate = "sum by (host) (rate(host_metric[5m]))"
    with settings.directory() as path, opened(path, tiers=()) as metrics:
        fill(metrics, series, count)
        metrics.compact()

        def timed(function: Callable[[], Any]) -> list[float]:
            return [_seconds(function) for _ in range(settings.rounds)]

        one = timed(lambda: metrics.select('host_metric{n="0"}'))
        everything = timed(lambda: metrics.select("host_metric"))
        last = timed(lambda: metrics.query("host_metric", newest).to_json())
        before = timed(lambda: metrics.query("host_metric", newest - 7200))
        rates = timed(lambda: metrics.query_range(rate, START + 300, newest, 60))
        deviation = timed(
            lambda: metrics.query_range(
                "max(stddev_over_time(host_metric[5m]))", START + 300, newest, 60
            )
        )
        grid = metrics.query_range("host_metric", START + 300, newest, 60)
        written = timed(grid.to_json)
        long = settings.pick(1_000_000, 200_000)
        metrics.extend("long", {}, START + np.arange(long), host_like(long, 0))
        metrics.compact()
        whole = timed(lambda: metrics.select("long"))
    numbers = grid.values.size

    def rows(name: str, samples: int, seconds: list[float], target: float | None = None) -> Row:
        return Row(name, "M samples/s", [samples / one / 1e6 for one in seconds], target=target)

    def spent(name: str, seconds: list[float]) -> Row:
        return Row(name, "ms", [1000 * one for one in seconds], smaller_is_better=True)

    return [
        rows(f"raw range of one series, decoded: {long} samples", long, whole, 100),
        rows("raw range of one series, decoded: 6 h, 21,600 samples", count, one),
        rows(f"raw range of {series} series, decoded", series * count, everything, 100),
        spent(f"last value of {series} live series, with JSON", last),
        spent(f"value of {series} series two hours ago", before),
        spent(f"sum by (rate[5m]), {series} series, 6 h, step 60 s", rates),
        spent(f"max(stddev_over_time[5m]), {series} series, 6 h, step 60 s", deviation),
        rows(f"JSON of {numbers} samples", numbers, written),
    ]


def _seconds(function: Callable[[], Any]) -> float:
    function()
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


# Memory, opening --------------------------------------------------------------------------------


def memory(settings: Settings) -> list[Row]:
    series = settings.pick(100_000, 20_000)
    with settings.directory() as path, opened(path) as metrics:
        before = harness.resident_bytes()
        ids = np.array([
            metrics.series("m", n=str(n), host=f"host-{n % 100}", job="bench").id
            for n in range(series)
        ], np.uint32)  # fmt: skip
        metrics.write_ids(ids, np.full(series, START * 1000), np.zeros(series))
        labels = (harness.resident_bytes() - before) / series
        for n in range(1, 250):
            metrics.write_ids(ids, np.full(series, (START + n) * 1000), np.full(series, n * 1.0))
        full = (harness.resident_bytes() - before) / series
    return [
        Row("a live series with one sample", "bytes", [labels], target=1024 + 128, at_most=True,
            smaller_is_better=True),
        Row("a live series with a full head", "bytes", [full], target=1024 + 4096 + 128,
            at_most=True, smaller_is_better=True),
    ]  # fmt: skip


def opening(settings: Settings) -> list[Row]:
    """The time to open what is stored, for two sizes: it should not grow with them."""
    found = []
    for millions in settings.pick((10, 1000), (2, 20)):
        with settings.directory() as path:
            options = {"tiers": (), "retention_size": "2GiB"}
            with opened(path, **options) as metrics:
                _much(metrics, millions)
                size = metrics.stats()["segments"]
            samples = sum(kind["samples"] for kind in size.values())
            assert samples == millions * 1_000_000
            before = harness.resident_bytes()
            began = time.perf_counter()
            with opened(path, **options) as metrics:
                spent = time.perf_counter() - began
                resident = harness.resident_bytes() - before
            notes = {"on disk": f"{sum(kind['bytes'] for kind in size.values()) / 1e6:.0f} MB",
                     "memory": f"{resident / 1e6:.1f} MB"}  # fmt: skip
            found.append(Row(f"open {millions} M samples", "s", [spent], target=1, at_most=True,
                             smaller_is_better=True, notes=notes))  # fmt: skip
    return found


def _much(metrics: Metrics, millions: int) -> None:
    """So many samples of 100 series, quickly: values that hardly change, in long arrays."""
    many = 100_000
    values = np.repeat(np.arange(many // 1000), 1000).astype(float)
    handles = [metrics.series("host_metric", n=str(n)) for n in range(100)]
    for turn in range(millions * 1_000_000 // (many * len(handles))):
        times = START + np.arange(turn * many, (turn + 1) * many)
        for handle in handles:
            handle.extend(times, values)
    for handle in handles[: millions * 1_000_000 % (many * len(handles)) // many]:
        handle.extend(START + np.arange(1000 * many, 1001 * many), values)
    metrics.compact()


def served(settings: Settings) -> list[Row]:
    return metrics_served.run(settings, host_like)


PARTS = {
    "ingest": ingest,
    "size": size,
    "read": read,
    "memory": memory,
    "opening": opening,
    "served": served,
}


def run(settings: Settings) -> list[Row]:
    parts = [PARTS[settings.part]] if settings.part else PARTS.values()
    return [row for part in parts for row in part(settings)]
