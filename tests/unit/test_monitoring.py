"""`siltstone serve` with its HTTP port, as a process: written in every protocol, then asked."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cramjam
import pytest
from reference.protobuf import series

import siltstone

CURLS_OWN = "application/x-www-form-urlencoded"  # of any --data, if nobody says another
STARTED = re.compile(r"HTTP on (127\.0\.0\.1):(\d+)")


class Server:
    """A server process and its HTTP port."""

    def __init__(self, data: Path) -> None:
        command = [sys.executable, "-m", "siltstone.cli", "serve", "--data", str(data)]
        command += ["--memcached", str(data.parent / "socket"), "--http", "127.0.0.1:0"]
        command += ["--ram", "8MiB", "--flash", "16MiB", "-v"]
        command += ["--set", "metrics.retention_size=32MiB"]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if match := STARTED.search(line):
                self.port = int(match[2])
                break
        else:
            raise AssertionError(f"no HTTP: exit code {self.process.wait()}")

    def ask(
        self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def query(self, promql: str) -> Any:
        status, body = self.ask("GET", "/api/v1/query?" + urllib.parse.urlencode({"query": promql}))
        assert status == 200, body
        return json.loads(body)["data"]["result"]

    def value(self, promql: str) -> float:
        (only,) = self.query(promql)
        return float(only["value"][1])

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(20)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path / "data")
    yield server
    if server.process.poll() is None:
        server.process.kill()
        server.process.wait()
    assert server.process.stderr is not None
    server.process.stderr.close()


def remote_write(name: str, value: float) -> bytes:
    """One sample of now, as a sender packs it."""
    body = series({"__name__": name}, [(round(time.time() * 1000), value)])
    return bytes(cramjam.snappy.compress_raw(body))


def test_every_protocol_writes_and_promql_reads(server: Server) -> None:
    nanoseconds = time.time_ns()
    otlp = {
        "resourceMetrics": [
            {"scopeMetrics": [{"metrics": [{"name": "by_otlp", "gauge": {"dataPoints": [
                {"asDouble": 4.0, "timeUnixNano": str(nanoseconds)}]}}]}]}
        ]
    }  # fmt: skip
    for path, body, kind, status in (
        ("/api/v1/write", remote_write("by_remote_write", 1.0), "application/x-protobuf", 204),
        ("/api/v1/import/prometheus", b'by_text{a="b"} 2\n', "text/plain", 204),
        ("/write", b"by_influx,host=x value=3 %d\n" % nanoseconds, CURLS_OWN, 204),
        ("/api/v1/otlp/v1/metrics", json.dumps(otlp).encode(), "application/json", 200),
    ):
        found = server.ask("POST", path, body, {"Content-Type": kind})
        assert found[0] == status, (path, found)
    assert server.value("by_remote_write") == 1.0
    assert server.value('by_text{a="b"}') == 2.0
    assert server.value('{__name__=~"by_influx.*"}') == 3.0
    assert server.value('{__name__=~"by_otlp.*"}') == 4.0
    status, body = server.ask("GET", "/metrics")
    assert status == 200
    assert b"siltstone_http_writes_total 4" in body


def test_what_was_answered_survives_kill_9(server: Server, tmp_path: Path) -> None:
    for number in range(20):
        body = remote_write(f"kept_{number}", float(number))
        assert server.ask("POST", "/api/v1/write", body)[0] == 204
    server.end(signal.SIGKILL)
    with siltstone.Metrics(tmp_path / "data" / "metrics") as metrics:
        for number in range(20):
            (kept,) = metrics.select(f"kept_{number}")
            assert kept.values.tolist() == [float(number)]


def test_a_clean_stop_and_what_cannot_be_read(server: Server) -> None:
    assert server.ask("POST", "/api/v1/write", b"no snappy")[0] == 400
    assert server.ask("POST", "/api/v1/import/prometheus", b"a{ 1\n")[0] == 400
    status, body = server.ask("GET", "/api/v1/query?query=rate(")
    assert status == 400
    assert json.loads(body)["errorType"] == "bad_data"
    assert server.end() == 0


@pytest.mark.skipif(not shutil.which("promtool"), reason="needs Debian's package prometheus")
def test_promtool_asks(server: Server) -> None:
    assert server.ask("POST", "/api/v1/import/prometheus", b'up{job="x"} 1\n')[0] == 204
    url = f"http://127.0.0.1:{server.port}"
    for arguments, expected in (
        (["query", "instant", url, "up"], 'up{job="x"} => 1'),
        (["query", "series", "--match=up", url], '{__name__="up", job="x"}'),
        (["query", "labels", url, "job"], "x"),
    ):
        found = subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=30)
        assert found.returncode == 0, found.stderr
        assert expected in found.stdout
