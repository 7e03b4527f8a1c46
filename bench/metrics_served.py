"""Time series over HTTP: siltstone, victoria-metrics and prometheus, each filled by remote write
with the same bodies, then asked the same questions through Prometheus' API.

The servers run with their defaults but for retention, on all cores, one at a time; the client asks
one question after the other over one connection. Answers are compared; windows of victoria-metrics
are open at their start and its rates are not extrapolated, so its answers differ by design. Bytes
are those on the disk after the merge that each server offers (prometheus: a snapshot, which makes
a block of its head).
"""

from __future__ import annotations

import contextlib
import http.client
import json
import shutil
import statistics
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cramjam
import numpy as np

from bench import harness
from bench.daemon import free_port
from bench.harness import OURS, Row, Settings
from siltstone.codecs import varint

READY_S = 30
STOP_S = 60
START = 1_699_999_200  # a multiple of an hour
HOURS = 6
AT_ONCE = 100  # samples of each series in one body
HOSTS = 20
TAG = 0x12  # field 2, bytes: a sample
_MS_BYTES = 6  # of a varint of a time in ms, from 2004 to 2109
_SAMPLE = 1 + 1 + 1 + 8 + 1 + _MS_BYTES


# Bodies ---------------------------------------------------------------------------------------


def _field(number: int, payload: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def labels_of(number: int) -> dict[str, str]:
    host = f"host-{number % HOSTS:02}"
    return {"__name__": "m", "host": host, "n": str(number)}


def series_message(number: int, times_ms: Any, values: Any) -> bytes:
    """A TimeSeries of remote write 1.0. All samples are equally long, so numpy packs them."""
    table = np.empty((len(values), _SAMPLE), np.uint8)
    table[:, 0], table[:, 1], table[:, 2] = TAG, _SAMPLE - 2, 0x09
    table[:, 3:11] = np.ascontiguousarray(values, "<f8").view(np.uint8).reshape(-1, 8)
    table[:, 11] = 0x10
    for n in range(_MS_BYTES):
        more = 128 if n < _MS_BYTES - 1 else 0
        table[:, 12 + n] = (times_ms >> 7 * n) & 127 | more
    labels = b"".join(
        _field(1, _field(1, name.encode()) + _field(2, value.encode()))
        for name, value in sorted(labels_of(number).items())
    )
    return _field(1, labels + table.tobytes())


def bodies(columns: list[Any]) -> Iterator[bytes]:
    for first in range(0, columns[0].size, AT_ONCE):
        times = (START + np.arange(first, min(first + AT_ONCE, columns[0].size))) * 1000
        plain = b"".join(
            series_message(number, times, column[first : first + AT_ONCE])
            for number, column in enumerate(columns)
        )
        yield bytes(cramjam.snappy.compress_raw(plain))


# Servers --------------------------------------------------------------------------------------


@dataclass
class Kind:
    """How to start one, and what is different about it."""

    name: str
    program: str
    arguments: Callable[[Path, int], list[str]]
    merge: Callable[[Served], int]  # bytes on the disk afterwards
    extra: str = ""  # of a query
    settle: str = ""  # what makes all that was written visible

    def command(self) -> str | None:
        beside = Path(sys.executable).with_name(self.program)
        return str(beside) if beside.exists() else shutil.which(self.program)


@dataclass
class Served:
    """One that runs."""

    kind: Kind
    path: Path
    process: subprocess.Popen[bytes]
    connection: http.client.HTTPConnection

    def ask(self, method: str, path: str, body: bytes | None = None) -> bytes:
        headers = {"Content-Encoding": "snappy", "Content-Type": "application/x-protobuf"}
        self.connection.request(method, path, body, headers if body else {})
        response = self.connection.getresponse()
        answer = response.read()
        if response.status >= 300:
            raise RuntimeError(f"{self.kind.name}: {path}: {response.status} {answer[:300]!r}")
        return answer

    def query(self, query: str, **parameters: float) -> Any:
        name = "query_range" if "step" in parameters else "query"
        text = urllib.parse.urlencode({"query": query, **parameters})
        return self.ask("GET", f"/api/v1/{name}?{text}{self.kind.extra}")


def disk_bytes(path: Path) -> int:
    return sum(file.stat().st_blocks * 512 for file in path.rglob("*") if file.is_file())


def _merged_prometheus(served: Served) -> int:
    answer = json.loads(served.ask("POST", "/api/v1/admin/tsdb/snapshot"))
    return disk_bytes(served.path / "snapshots" / answer["data"]["name"])


def _merged_victoria(served: Served) -> int:
    served.ask("GET", "/internal/force_merge")
    before = -1
    while (now := disk_bytes(served.path / "data")) != before:
        before = now
        time.sleep(1)
    return now + disk_bytes(served.path / "indexdb")


def _merged_ours(served: Served) -> int:
    """Its background merges when there is enough; the rest waits in small chunks."""
    from siltstone.metrics.metrics import Metrics

    stop(served)
    with Metrics(served.path / "metrics", background=False) as metrics:
        metrics.compact()
        kinds = metrics.stats()["segments"]
        return sum(kinds[name]["bytes"] for name in ("fresh", "raw"))


KINDS = (
    Kind(
        OURS,
        "siltstone",
        lambda path, port: [
            *("serve", "--data", str(path), "--http", f"127.0.0.1:{port}"),
            *("--memcached", f"127.0.0.1:{free_port()}", "--flash", "0"),
            *("--set", "metrics.retention_size=2GiB"),
        ],
        _merged_ours,
    ),
    Kind(
        "victoria-metrics",
        "victoria-metrics",
        lambda path, port: [
            *(f"-httpListenAddr=127.0.0.1:{port}", f"-storageDataPath={path}"),
            *("-retentionPeriod=100y", "-loggerLevel=ERROR"),
        ],
        _merged_victoria,
        extra="&nocache=1",
        settle="/internal/force_flush",
    ),
    Kind(
        "prometheus",
        "prometheus",
        lambda path, port: [
            *(f"--config.file={path}/prometheus.yml", f"--storage.tsdb.path={path}"),
            *(f"--web.listen-address=127.0.0.1:{port}", "--web.enable-remote-write-receiver"),
            *("--web.enable-admin-api", "--storage.tsdb.retention.time=100y"),
            *("--query.max-samples=1000000000", "--log.level=error"),
        ],
        _merged_prometheus,
    ),
)


def stop(served: Served) -> None:
    served.connection.close()
    served.process.terminate()
    try:
        served.process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        served.process.kill()
        served.process.wait()


@contextlib.contextmanager
def running(kind: Kind, path: Path) -> Iterator[Served]:
    port = free_port()
    (path / "prometheus.yml").write_text("")
    command = kind.command()
    assert command is not None
    process = subprocess.Popen(
        [command, *kind.arguments(path, port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    served = Served(kind, path, process, http.client.HTTPConnection("127.0.0.1", port, timeout=600))
    try:
        deadline = time.monotonic() + READY_S
        while True:
            try:
                served.query("vector(1)", time=START)
                break
            except (OSError, RuntimeError, http.client.HTTPException):
                served.connection.close()
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"{kind.name} does not start") from None
                time.sleep(0.05)
        yield served
    finally:
        if process.poll() is None:
            stop(served)


# Questions ------------------------------------------------------------------------------------


@dataclass
class Measured:
    bytes_a_sample: float
    seconds: dict[str, list[float]]
    answers: dict[str, Any]
    notes: dict[str, str]


def questions(series: int, end: int) -> dict[str, tuple[str, dict[str, float]]]:
    grid = {"start": START + 300, "end": end, "step": 60}
    return {
        f"last value of {series} series": ("m", {"time": end}),
        f"sum by (rate[5m]), {series} series, {HOURS} h, step 60 s": (
            "sum by (host) (rate(m[5m]))",
            grid,
        ),
        # Most of the series are gauges, in which a rate finds a reset at every fall; these are not.
        f"sum by (rate[5m]), {series // 5} counters, {HOURS} h, step 60 s": (
            'sum by (host) (rate(m{n=~".*[16]"}[5m]))',
            grid,
        ),
        f"max by (max_over_time[5m]), {series} series, {HOURS} h, step 60 s": (
            "max by (host) (max_over_time(m[5m]))",
            grid,
        ),
        "one series, every sample of an hour": ('m{n="7"}', {**grid, "start": end - 3600,
                                                            "step": 1}),
    }  # fmt: skip


def measure(kind: Kind, path: Path, columns: list[Any], rounds: int) -> Measured:
    count = columns[0].size
    end = START + count - 1
    sent = list(bodies(columns))  # before it starts: idle connections are closed
    with running(kind, path) as served:
        began, before = time.perf_counter(), harness.cpu_seconds(served.process.pid)
        for body in sent:
            served.ask("POST", "/api/v1/write", body)
        spent = time.perf_counter() - began
        cpu = harness.cpu_seconds(served.process.pid) - before
        if kind.settle:
            served.ask("GET", kind.settle)
        seconds: dict[str, list[float]] = {}
        answers = {}
        for name, (query, parameters) in questions(len(columns), end).items():
            times = []
            for _ in range(max(5, rounds) if "step" in parameters else 50):
                began = time.perf_counter()
                answer = served.query(query, **parameters)
                times.append(time.perf_counter() - began)
            seconds[name] = times
            answers[name] = json.loads(answer)["data"]["result"]
        size = kind.merge(served)
    total = count * len(columns)
    notes = {"load": f"{total / spent / 1e6:.2f} M samples/s, {cpu / total * 1e9:.0f} ns CPU each"}
    return Measured(size / total, seconds, answers, notes)


def _numbers(answer: Any) -> dict[str, list[tuple[float, float]]]:
    found = {}
    for row in answer:
        samples = row["values"] if "values" in row else [row["value"]]
        metric = {name: value for name, value in row["metric"].items() if name != "__name__"}
        found[json.dumps(metric, sort_keys=True)] = [
            (float(at), float(value)) for at, value in samples
        ]
    return found


def differences(ours: Any, theirs: Any) -> str:
    """ "" when two answers say the same, to a millionth."""
    mine, other = _numbers(ours), _numbers(theirs)
    if mine.keys() != other.keys():
        return f"{len(mine)} series, {len(other)}"
    worst = 0.0
    for key, samples in mine.items():
        if [at for at, _ in samples] != [at for at, _ in other[key]]:
            return f"other steps of {key}"
        for (_, value), (_, wanted) in zip(samples, other[key], strict=True):
            worst = max(worst, abs(value - wanted) / max(abs(wanted), 1e-9))
    return "" if worst < 1e-6 else f"off by up to {worst:.1%}"


TARGETS = {"last value": ("prometheus", 0.2), "sum by": ("victoria-metrics", 1.0)}


def run(settings: Settings, values: Callable[[int, int], Any]) -> list[Row]:
    """`values(count, number)`: the samples of a series."""
    series, count = settings.pick(1000, 100), settings.pick(HOURS * 3600, HOURS * 3600)
    columns = [values(count, number) for number in range(series)]
    found: dict[str, Measured] = {}
    missing = {}
    for kind in KINDS:
        if kind.command() is None:
            missing[kind.name] = f"not installed (Debian: apt install {kind.program})"
            continue
        with settings.directory() as path:
            found[kind.name] = measure(kind, path, columns, settings.rounds)
    return _rows(found, missing)


def _rows(found: dict[str, Measured], missing: dict[str, str]) -> list[Row]:
    ours = found[OURS]
    rows = []
    for peer in (kind.name for kind in KINDS[1:]):
        if peer not in found:
            print(f"{peer}: {missing[peer]}")
            continue
        theirs = found[peer]
        target = 1.0 if peer == "victoria-metrics" else None
        rows.append(Row(
            "served: bytes a sample on disk, merged", "bytes", [ours.bytes_a_sample], peer,
            [theirs.bytes_a_sample], target=target, at_most=True, smaller_is_better=True,
            exact=True,
        ))  # fmt: skip
        for name, seconds in ours.seconds.items():
            wanted = [limit for start, (of, limit) in TARGETS.items()
                      if name.startswith(start) and of == peer]  # fmt: skip
            differs = differences(ours.answers[name], theirs.answers[name])
            notes = {"answers": differs or "the same", "loaded, ours": ours.notes["load"],
                     "loaded, peer": theirs.notes["load"]}  # fmt: skip
            notes["p50"] = (
                f"{1000 * statistics.median(seconds):.1f} ms, "
                f"{1000 * statistics.median(theirs.seconds[name]):.1f} ms"
            )
            rows.append(Row(
                f"served: {name}", "ms", [1000 * one for one in seconds], peer,
                [1000 * one for one in theirs.seconds[name]], target=wanted[0] if wanted else None,
                at_most=True, smaller_is_better=True, notes=notes,
            ))  # fmt: skip
    return rows
