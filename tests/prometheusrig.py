"""A Prometheus of Debian's package with given series in it, asked over HTTP: the judge of PromQL.

The samples go in by remote write, which alone can carry staleness markers. Prometheus answers an
instant query in the order in which it first saw the series, so all of them are announced in the
order of their labels, by a staleness marker at the beginning.
"""

from __future__ import annotations

import json
import shutil
import socket
import struct
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from reference import protobuf

from siltstone.metrics import labels as ls
from siltstone.metrics.source import STALE_NAN, Series

READY_SECONDS_MAX = 30.0


def write_request(samples: Sequence[tuple[Series, list[tuple[int, float]]]]) -> bytes:
    """Remote write 1.0: protobuf in snappy's block format, all of it literal."""
    body = b"".join(protobuf.series(series.labels, points) for series, points in samples)
    out = protobuf.varint(len(body))
    for begin in range(0, len(body), 1 << 16):
        piece = body[begin : begin + (1 << 16)]
        out += bytes([61 << 2]) + struct.pack("<H", len(piece) - 1) + piece
    return out


def wait_until(what: Callable[[], bool], text: str) -> None:
    """Nothing tells when a peer has done its work: asked until it has."""
    deadline = time.monotonic() + 30
    while not what():
        assert time.monotonic() < deadline, text
        time.sleep(0.05)


class Prometheus:
    """One that runs; `ask` gives the answer's JSON."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"

    def fill(self, series: Sequence[Series], begin_ms: int) -> None:
        ordered = sorted(series, key=lambda one: ls.from_mapping(one.labels))
        self._write([(one, [(begin_ms, STALE_NAN)]) for one in ordered])
        moments = sorted({int(moment) for one in series for moment in one.times})
        at = [dict(zip(one.times.tolist(), one.values.tolist(), strict=True)) for one in ordered]
        # in the order of time, some hundred moments at once
        for begin in range(0, len(moments), 200):
            piece = moments[begin : begin + 200]
            self._write(
                [
                    (one, [(m, values[m]) for m in piece if m in values])
                    for one, values in zip(ordered, at, strict=True)
                ]
            )

    def _write(self, samples: list[tuple[Series, list[tuple[int, float]]]]) -> None:
        request = urllib.request.Request(
            f"{self.url}/api/v1/write",
            write_request([entry for entry in samples if entry[1]]),
            {
                "Content-Encoding": "snappy",
                "Content-Type": "application/x-protobuf",
                "X-Prometheus-Remote-Write-Version": "0.1.0",
            },
        )
        with urllib.request.urlopen(request, timeout=20) as reply:
            assert reply.status == 204

    def ask(self, path: str, **parameters: str) -> dict[str, Any]:
        data = urllib.parse.urlencode(parameters).encode()
        try:
            with urllib.request.urlopen(f"{self.url}{path}", data, timeout=20) as reply:
                text = reply.read()
        except urllib.error.HTTPError as error:
            with error:
                text = error.read()
        answer: dict[str, Any] = json.loads(text)
        return answer

    def get(self, path: str) -> bytes:
        with urllib.request.urlopen(f"{self.url}{path}", timeout=20) as reply:
            body: bytes = reply.read()
        return body

    def status(self, path: str) -> int:
        try:
            with urllib.request.urlopen(f"{self.url}{path}", timeout=20) as reply:
                found: int = reply.status
        except urllib.error.HTTPError as error:
            with error:
                found = error.code
        return found


@contextmanager
def prometheus(
    folder: Path, *, config: str = "global: {scrape_interval: 1h}\n", flags: Sequence[str] = ()
) -> Iterator[Prometheus]:
    """Runs one on a free port with its data in `folder`; skips where there is no package."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("prometheus is not installed (Debian: apt install prometheus)")
    version = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
    if "2.42." not in version.stdout + version.stderr:
        pytest.skip(f"PromQL is that of 2.42, this is {version.stdout.splitlines()[0]}")
    file = folder / "prometheus.yml"
    file.write_text(config)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                program,
                f"--config.file={file}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
                "--web.enable-remote-write-receiver",
                "--storage.tsdb.retention.time=100y",
                *flags,
            ],
            stdout=log,
            stderr=log,
        )
    peer = Prometheus(port)
    try:
        deadline = time.monotonic() + READY_SECONDS_MAX
        while True:
            try:
                with urllib.request.urlopen(f"{peer.url}/-/ready", timeout=5):
                    break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    pytest.fail(f"prometheus did not start:\n{(folder / 'log').read_text()}")
                time.sleep(0.05)
        yield peer
    finally:
        process.terminate()
        process.wait()
