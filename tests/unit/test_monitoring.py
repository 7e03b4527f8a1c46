"""`siltstone serve` with its HTTP port, as a process: written in every protocol, then asked."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cramjam
import pytest
from httprig import Asked, Reply, peer
from prometheusrig import wait_until
from reference.protobuf import series

import siltstone

CURLS_OWN = "application/x-www-form-urlencoded"  # of any --data, if nobody says another
STARTED = re.compile(r"HTTP on (127\.0\.0\.1):(\d+)")


class Server:
    """A server process and its HTTP port."""

    def __init__(self, data: Path, settings: str = "") -> None:
        file = data.parent / "siltstone.toml"
        file.write_text(settings)
        command = [sys.executable, "-m", "siltstone.cli", "serve", "--data", str(data)]
        command += ["--memcached", str(data.parent / "socket"), "--http", "127.0.0.1:0"]
        command += ["--ram", "8MiB", "--flash", "16MiB", "-v"]
        command += ["--set", "metrics.retention_size=32MiB", "--config", str(file)]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if match := STARTED.search(line):
                self.port = int(match[2])
                break
        else:
            self.process.stderr.close()
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


def test_what_was_left_out_is_said(server: Server) -> None:
    status, body = server.ask("POST", "/write", b"good v=1\nbad\nfine v=2\nworse,a=b\n")
    assert status == 400
    assert "partial write: 2 lines left out; line 2: no fields: 'bad'" in json.loads(body)["error"]
    assert [server.value(name) for name in ("good_v", "fine_v")] == [1.0, 2.0]
    point = {"asDouble": 4.0, "timeUnixNano": str(time.time_ns())}
    delta = {"name": "d", "sum": {"aggregationTemporality": 1, "dataPoints": [point, point]}}
    otlp = {"resourceMetrics": [{"scopeMetrics": [{"metrics": [delta]}]}]}
    status, body = server.ask(
        "POST", "/v1/metrics", json.dumps(otlp).encode(), {"Content-Type": "application/json"}
    )
    assert status == 200
    partial = json.loads(body)["partialSuccess"]
    assert partial["rejectedDataPoints"] == "2"
    assert "cumulative" in partial["errorMessage"]


def test_what_was_answered_survives_kill_9(server: Server, tmp_path: Path) -> None:
    for number in range(20):
        body = remote_write(f"kept_{number}", float(number))
        assert server.ask("POST", "/api/v1/write", body)[0] == 204
    server.end(signal.SIGKILL)
    with siltstone.Metrics(tmp_path / "data" / "metrics") as metrics:
        for number in range(20):
            (kept,) = metrics.select(f"kept_{number}")
            assert kept.values.tolist() == [float(number)]


def test_a_series_that_is_refused_does_not_cost_the_others(server: Server) -> None:
    now = round(time.time() * 1000)
    body = series({"__name__": "good"}, [(now, 1.0)]) + series(
        {"__name__": "bad-name"}, [(now, 1.0)]
    )
    body += series({"__name__": "better"}, [(now, 2.0)])
    status, text = server.ask("POST", "/api/v1/write", bytes(cramjam.snappy.compress_raw(body)))
    assert status == 400
    assert "1 series refused: 'bad-name' is no metric name" in json.loads(text)["error"]
    assert (server.value("good"), server.value("better")) == (1.0, 2.0)


def test_a_head_without_end_closes_the_connection(server: Server) -> None:
    for piece in (b"X: " + b"y" * 8000 + b"\r\n", b"y" * 8000):  # many lines, or one
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
            connection.sendall(b"GET /-/healthy HTTP/1.1\r\nHost: x\r\nX: ")
            with pytest.raises(ConnectionError):  # long before all is sent
                connection.sendall(piece * 10_000)
    assert server.ask("GET", "/-/healthy", headers={"X": "y" * 30_000})[0] == 200


def test_a_clean_stop_and_what_cannot_be_read(server: Server) -> None:
    assert server.ask("POST", "/api/v1/write", b"no snappy")[0] == 400
    # of a newer protocol: a sender falls back to what is read here
    second = "application/x-protobuf;proto=io.prometheus.write.v2.Request"
    first = "application/x-protobuf;proto=prometheus.WriteRequest"
    body = remote_write("a", 1.0)
    for headers, status in (
        ({"Content-Type": second}, 415),
        ({"Content-Encoding": "zstd"}, 415),
        ({"Content-Type": first, "Content-Encoding": "snappy"}, 204),
    ):
        assert server.ask("POST", "/api/v1/write", body, headers)[0] == status
    assert server.ask("POST", "/api/v1/import/prometheus", b"a{ 1\n")[0] == 400
    status, body = server.ask("GET", "/api/v1/query?query=rate(")
    assert status == 400
    assert json.loads(body)["errorType"] == "bad_data"
    assert server.end() == 0


SETTINGS = """
[graphite]
listen = "127.0.0.1:{graphite}"

[statsd]
listen = "127.0.0.1:{statsd}"
flush_interval = 0.1

[[scrape]]
job_name = "machine"
targets = ["{target}"]
scrape_interval = 0.2

[[remote_write]]
name = "far"
url = "http://{target}/api/v1/write"
batch_send_deadline = 0.1
"""
EXPOSED = b"# HELP work_total Work done.\n# TYPE work_total counter\nwork_total 7\n"


def wait_for(server: Server, promql: str) -> float:
    """Nothing tells when a sample is there: asked until it is."""
    deadline = time.monotonic() + 20
    while not (found := server.query(promql)):
        assert time.monotonic() < deadline, promql
        time.sleep(0.02)
    return float(found[0]["value"][1])


def test_all_ways_in_and_the_way_out(tmp_path: Path, free_port: Callable[[], int]) -> None:
    broken = [True]

    def answer(asked: Asked) -> Reply:
        if asked.method == "GET":
            return Reply(200, EXPOSED)
        return Reply(503 if broken[0] else 204)

    graphite, statsd = free_port(), free_port()
    with peer(answer) as far:
        settings = SETTINGS.format(graphite=graphite, statsd=statsd, target=far.address)
        server = Server(tmp_path / "data", settings)
        try:
            with socket.create_connection(("127.0.0.1", graphite)) as connection:
                connection.sendall(b"by.graphite 1\n")
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as packets:
                packets.sendto(b"by.statsd:2|g", ("127.0.0.1", statsd))
            assert wait_for(server, "by_graphite") == 1.0
            assert wait_for(server, "by_statsd") == 2.0
            assert wait_for(server, 'work_total{job="machine"}') == 7.0
            assert wait_for(server, "up") == 1.0
            for number in range(20):
                body = remote_write(f"kept_{number:02}", float(number))
                assert server.ask("POST", "/api/v1/write", body)[0] == 204
            text = server.ask("GET", "/metrics")[1]
            assert b'siltstone_remote_write_samples_sent_total{remote="far"} 0' in text
            assert b'siltstone_scrape_targets{health="up"} 1' in text
        finally:
            server.end(signal.SIGKILL)
            assert server.process.stderr is not None
            server.process.stderr.close()
        broken[0] = False
        before = len(far.asked)
        again = Server(tmp_path / "data", settings)
        try:
            deadline = time.monotonic() + 20
            while b"kept_19" not in (got := b"".join(map(plain, far.asked[before:]))):
                assert time.monotonic() < deadline
                time.sleep(0.02)
            # all that was acknowledged, in its order
            assert re.findall(rb"kept_(\d+)", got) == [b"%02d" % number for number in range(20)]
            while b"Work done." not in again.ask("GET", "/api/v1/metadata")[1]:
                assert time.monotonic() < deadline
                time.sleep(0.02)
        finally:
            assert again.end() == 0
            assert again.process.stderr is not None
            again.process.stderr.close()
        last = Server(tmp_path / "data")  # no scrape: from the file
        try:
            data = last.ask("GET", "/api/v1/metadata?metric=work_total")[1]
            assert json.loads(data)["data"] == {
                "work_total": [{"type": "counter", "help": "Work done.", "unit": ""}]
            }
        finally:
            assert last.end() == 0
            assert last.process.stderr is not None
            last.process.stderr.close()


def plain(asked: Asked) -> bytes:
    if asked.method != "POST":
        return b""
    return bytes(cramjam.snappy.decompress_raw(asked.body))


def test_a_port_that_is_taken_is_an_error(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings = f"[graphite]\nlisten = '127.0.0.1:{taken.getsockname()[1]}'\n"
        with pytest.raises(AssertionError, match="no HTTP: exit code 1"):
            Server(tmp_path / "data", settings)


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


def test_it_reads_its_settings_again_at_sighup(tmp_path: Path) -> None:
    job = "[[scrape]]\njob_name = '{}'\ntargets = ['127.0.0.1:1']\n"
    server = Server(tmp_path / "data", job.format("a"))
    file = tmp_path / "siltstone.toml"

    def jobs() -> list[str]:
        found = json.loads(server.ask("GET", "/api/v1/targets")[1])["data"]["activeTargets"]
        return [one["scrapePool"] for one in found]

    def succeeded(value: int) -> bool:
        line = f"siltstone_config_last_reload_successful {value}"
        return line in server.ask("GET", "/metrics")[1].decode().splitlines()

    try:
        assert jobs() == ["a"]
        assert succeeded(1)
        file.write_text("[[[")
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: succeeded(0), "it was not refused")
        assert jobs() == ["a"]
        file.write_text(job.format("b"))
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: succeeded(1), "it was not read")
        assert jobs() == ["b"]
    finally:
        assert server.end() == 0
        assert server.process.stderr is not None
        server.process.stderr.close()
