"""remote_write over HTTP: server on one core, generator on another, beside Debian's packages
victoria-metrics and prometheus.

Two shapes of requests, the same bytes for every side: *bulk*, 100 samples of each of 100 series, as
a backfill or a queue that has grown sends them; *scrape*, one sample of each of 2,000 series, as
Prometheus sends what it has just scraped. Labels are those of a node exporter's series (seven, 150
bytes). What counts is samples per second of the server's CPU time, all its threads; the next
request goes out when the last one is answered, on one connection. Afterwards each side is asked how
many samples it has.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cramjam
import numpy as np

from bench import harness
from bench.harness import OURS, Row, Settings
from bench.metrics import host_like
from siltstone.serve.write_request import Packer

TITLE = "remote_write over HTTP: samples a server-CPU second"
VICTORIA, PROMETHEUS = "victoria-metrics", "prometheus"
TARGETS = {VICTORIA: 1.0, PROMETHEUS: 3.0}
HEADERS = {
    "Content-Encoding": "snappy",
    "Content-Type": "application/x-protobuf",
    "X-Prometheus-Remote-Write-Version": "0.1.0",
}
READY_SECONDS = 30
ROUNDS_MAX = 3  # of some seconds each: CPU time is steady


# Requests -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """Requests of `series` x `run` samples, over `known` series in all."""

    name: str
    known: int
    series: int
    run: int
    step_ms: int

    @property
    def request(self) -> int:
        return self.series * self.run


BULK = Shape("bulk", known=1000, series=100, run=100, step_ms=1000)
SCRAPE = Shape("scrape", known=10_000, series=2000, run=1, step_ms=15_000)


def labels_of(number: int) -> dict[str, str]:
    cpu, mode = divmod(number % 64, 8)
    return {
        "__name__": f"node_cpu_seconds_total_{number % 20}",
        "cpu": str(cpu),
        "device": f"nvme{number // 640}n1",
        "instance": f"host-{number // 64:04}.example.com:9100",
        "job": "node",
        "mode": ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")[mode],
        "n": str(number),
    }


def requests(shape: Shape, samples: int) -> list[bytes]:
    """All series move on together, as time does; the last sample is some minutes old."""
    turns = max(1, samples // (shape.known * shape.run))
    count = turns * shape.run
    values = [host_like(count, number) for number in range(min(shape.known, 200))]
    start_ms = (int(time.time()) - 300) * 1000 - count * shape.step_ms
    packer = Packer(labels_of)
    bodies = []
    for turn in range(turns):
        moments = np.arange(turn * shape.run, (turn + 1) * shape.run)
        times = np.tile(start_ms + moments * shape.step_ms, shape.series)
        for first in range(0, shape.known, shape.series):
            numbers = np.arange(first, first + shape.series, dtype=np.uint32)
            data = np.concatenate([values[n % len(values)][moments] for n in numbers])
            message = packer.pack(np.repeat(numbers, shape.run), times.astype(np.int64), data)
            bodies.append(bytes(cramjam.snappy.compress_raw(message)))
    return bodies


# Servers --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Server:
    pid: int
    port: int

    def ask(self, path: str, **parameters: str) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request("GET", f"{path}?{urllib.parse.urlencode(parameters)}")
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def is_up(self) -> bool:
        try:
            return bool(self.ask("/api/v1/query", query="1")[0] == 200)
        except OSError:
            return False


def command(side: str, path: Path, port: int) -> list[str]:
    if side == VICTORIA:
        return [VICTORIA, f"-storageDataPath={path}", "-retentionPeriod=1y",
                f"-httpListenAddr=127.0.0.1:{port}", "-search.latencyOffset=0s"]  # fmt: skip
    if side == PROMETHEUS:
        config = path / "prometheus.yml"
        config.write_text("global: {scrape_interval: 1h}\n")
        return [PROMETHEUS, f"--config.file={config}", f"--storage.tsdb.path={path / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
                "--web.enable-remote-write-receiver"]  # fmt: skip
    return [sys.executable, "-m", "siltstone.cli", "serve", "--data", str(path), "--memcached",
            str(path / "socket"), "--http", f"127.0.0.1:{port}", "--ram", "8MiB", "--flash",
            "16MiB"]  # fmt: skip


@contextlib.contextmanager
def running(side: str, path: Path) -> Iterator[Server]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with harness.pinned(harness.cores()[0]), (path.parent / f"{side}.log").open("wb") as log:
        process = subprocess.Popen(command(side, path, port), stdout=log, stderr=log)
    try:
        server = Server(process.pid, port)
        if not harness.wait_for(server.is_up, READY_SECONDS):
            raise RuntimeError(f"{side} did not start")
        yield server
    finally:
        process.terminate()
        process.wait(60)


# Measuring ------------------------------------------------------------------------------------


def send(server: Server, bodies: Sequence[bytes]) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    try:
        for body in bodies:
            connection.request("POST", "/api/v1/write", body, HEADERS)
            response = connection.getresponse()
            answer = response.read()
            if response.status not in (200, 204):
                raise RuntimeError(f"{response.status}: {answer[:200]!r}")
    finally:
        connection.close()


def stored(server: Server) -> int:
    question = 'sum(count_over_time({job="node"}[6h]))'
    data = json.loads(server.ask("/api/v1/query", query=question)[1])["data"]["result"]
    return int(data[0]["value"][1]) if data else 0


def measure(settings: Settings, shape: Shape, bodies: Sequence[bytes], side: str) -> Any:
    """(M samples a server-CPU second, M samples a second)."""
    count = len(bodies) * shape.request
    with settings.directory() as directory:
        path = directory / side
        path.mkdir()
        with running(side, path) as server, harness.pinned(harness.cores()[1]):
            cpu, began = harness.cpu_seconds(server.pid), time.perf_counter()
            send(server, bodies)
            elapsed = time.perf_counter() - began
            spent = harness.cpu_seconds(server.pid) - cpu
            # the newest may be shown a moment later (victoria-metrics)
            if not harness.wait_for(lambda: stored(server) == count, 10, 0.5):
                raise RuntimeError(f"{side} has {stored(server)} of {count} samples")
    return count / spent / 1e6, count / elapsed / 1e6


def run(settings: Settings) -> list[Row]:
    sides = [OURS, *(name for name in (VICTORIA, PROMETHEUS) if shutil.which(name))]
    if settings.peers_only:
        sides = sides[1:]
    rows = []
    for shape in (BULK, SCRAPE):
        if settings.part not in ("", shape.name):
            continue
        bodies = requests(shape, settings.pick(2_000_000, 400_000))
        one = functools.partial(measure, settings, shape, bodies)
        rounds = min(settings.rounds, ROUNDS_MAX)
        found = harness.alternate({side: side for side in sides}, one, rounds)
        rows += rows_of(shape, found)
    return rows


def rows_of(shape: Shape, found: dict[str, list[Any]]) -> list[Row]:
    rows = []
    for peer in (VICTORIA, PROMETHEUS):
        row = Row(
            f"remote_write, {shape.name}: {shape.series:,} series x {shape.run} a request",
            "M samples/CPU s",
            [cpu for cpu, _ in found.get(OURS, [])],
            peer,
            [cpu for cpu, _ in found.get(peer, [])],
            TARGETS[peer],
        )
        for side in (OURS, peer):
            if side in found:
                best = max(clock for _, clock in found[side])
                row.notes[f"{side} at most"] = f"{best:.2f} M samples/s"
        rows.append(row)
    return rows
