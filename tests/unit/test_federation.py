"""/federate: byte for byte what Prometheus answers, and both directions with a live one."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import ManualClock
from metricsrig import opened
from prometheusrig import prometheus, wait_until
from starlette.testclient import TestClient

from siltstone.clock import SYSTEM_CLOCK
from siltstone.config import load
from siltstone.log.device import MemoryDevice
from siltstone.metrics.metrics import Metrics
from siltstone.metrics.source import STALE_NAN, Series
from siltstone.serve.exposition import CONTENT_TYPE
from siltstone.serve.federation import Federation
from siltstone.serve.http import application
from siltstone.serve.monitoring import Monitoring, open_monitoring
from siltstone.serve.sections import OWNERS

NOW = 1_700_000_000
needs_prometheus = pytest.mark.skipif(
    not shutil.which("prometheus"), reason="needs Debian's package prometheus"
)


@pytest.fixture
def metrics() -> Iterator[Metrics]:
    with opened(MemoryDevice(48, 1 << 16, engine="metrics"), out_of_order_window=3600) as metrics:
        yield metrics


def federated(metrics: Metrics, *matches: str) -> Any:
    app = application(Federation(metrics, ManualClock(NOW * 1000)).routes())
    with TestClient(app) as client:
        return client.get("/federate", params={"match[]": list(matches)})


def test_the_newest_of_each_series_that_lives(metrics: Metrics) -> None:
    for name, labels, age, value in (
        ("b", {"job": "x", "instance": "h"}, 20, 1.0),
        ("b", {"job": "x", "instance": "h"}, 10, 1e6),
        ("a", {"zone": 'q"\\\n', "Z": "1"}, 300, -0.5),
        ("old", {}, 301, 1.0),
        ("ended", {}, 20, 1.0),
        ("ended", {}, 10, STALE_NAN),
        ("future", {}, -1, 1.0),
        ("nan", {}, 0, math.nan),
        ("", {"job": "nameless"}, 0, 1.0),
    ):
        metrics.append(name, labels, NOW - age, value)
    found = federated(metrics, '{__name__=~".+"}', "b", '{job="nameless"}')
    assert found.headers["content-type"] == CONTENT_TYPE
    assert found.text == (
        "# TYPE a untyped\n"
        'a{Z="1",zone="q\\"\\\\\\n",instance=""} -0.5 1699999700000\n'
        "# TYPE b untyped\n"
        'b{instance="h",job="x"} 1e+06 1699999990000\n'
        "# TYPE nan untyped\n"
        'nan{instance=""} NaN 1700000000000\n'
    )


def test_without_a_selector_nothing_and_a_bad_one_is_told(metrics: Metrics) -> None:
    metrics.append("a", {}, NOW, 1.0)
    assert (federated(metrics).status_code, federated(metrics).text) == (200, "")
    found = federated(metrics, "a", "a{")
    assert found.status_code == 400
    assert "'a{' is no selector" in found.text


# Beside a live one --------------------------------------------------------------------------


@contextmanager
def serving(data: Path, **flags: Any) -> Iterator[Monitoring]:
    sections = load(
        OWNERS,
        flags={
            "http": {"listen": "127.0.0.1:0", "record": False},
            "metrics": {"retention_size": "32MiB"},
            **flags,
        },
    )
    monitoring = open_monitoring(None, sections, data, SYSTEM_CLOCK)
    assert monitoring is not None
    try:
        yield monitoring
    finally:
        monitoring.close()


@needs_prometheus
@pytest.mark.slow
def test_both_answer_alike(tmp_path: Path) -> None:
    now = SYSTEM_CLOCK.now_ms()
    data = [
        Series(labels, np.array([now - 20_000, now - 10_000]), np.array(values))
        for labels, values in (
            ({"__name__": "a", "job": "x", "Zone": "1", "n": "1"}, [1.0, 0.1]),
            ({"__name__": "a", "instance": "h", "n": "2"}, [1.0, 123456789.125]),
            ({"__name__": "b", "q": 'a"b\\c\nd'}, [1.0, -math.inf]),
            ({"__name__": "c"}, [1.0, math.nan]),
            ({"__name__": "d"}, [1.0, STALE_NAN]),
            *(
                ({"__name__": f"v{number}"}, [0.0, value])
                for number, value in enumerate(
                    (0.0, -0.0, 1.0, -1.0, 100000.0, 999999.0, 1e6, 1e21, 1.5e-5, 0.0001, 5e-324)
                )
            ),
        )
    ]
    query = "/federate?" + urllib.parse.urlencode({"match[]": '{__name__=~".+"}'})
    with prometheus(tmp_path) as peer, serving(tmp_path / "ours") as ours:
        peer.fill(data, now - 60_000)
        for series in data:
            name = series.labels["__name__"]
            labels = {key: text for key, text in series.labels.items() if key != "__name__"}
            ours.metrics.extend(name, labels, series.times.astype("datetime64[ms]"), series.values)
        assert ours.http is not None
        theirs = peer.get(query)
        assert theirs.count(b"# TYPE") == 14
        with TestClient(ours.http.app) as client:  # type: ignore[arg-type]
            found = client.get(query)
        assert sorted(found.content.split(b"\n")) == sorted(theirs.split(b"\n"))
        assert [one for one in found.text.split("\n") if one.startswith("#")] == [
            one for one in theirs.decode().split("\n") if one.startswith("#")
        ]
        bad = "/federate?match[]=" + urllib.parse.quote("a{")
        assert peer.status(bad) == 400


@needs_prometheus
@pytest.mark.slow
def test_the_history_of_a_prometheus_is_brought_as_the_document_says(tmp_path: Path) -> None:
    page = Path(__file__).parent.parent.parent / "docs" / "prometheus.md"
    (command,) = re.findall(
        r"^```sh\n(promtool .*?)^```", page.read_text(), re.MULTILINE | re.DOTALL
    )
    start = SYSTEM_CLOCK.now_ms() // 1000 * 1000 - 3_600_000
    data = [
        Series(
            {"__name__": "kept", "n": str(number), "text": 'a "b" \\ {c}, d'},
            start + np.arange(200) * 15_000,
            np.round(np.arange(200) * 0.1 + number, 1),
        )
        for number in range(5)
    ]
    data.append(Series({"__name__": "alone"}, np.array([start]), np.array([1e-9])))
    with prometheus(tmp_path) as peer, serving(tmp_path / "ours") as ours:
        assert ours.http is not None
        ours.metrics.append("kept", {"n": "0", "text": 'a "b" \\ {c}, d'}, start / 1000 + 9000, 7.0)
        peer.fill(data, start - 1000)
        text = command.replace("/var/lib/prometheus/metrics2", str(tmp_path / "data"))
        text = text.replace("localhost:8181", ours.http.address)
        for _ in range(2):
            ran = subprocess.run(text, shell=True, capture_output=True, text=True, timeout=60)
            assert (ran.returncode, ran.stderr) == (0, "")
            for series in data:
                matchers = ",".join(f"{n}={json.dumps(v)}" for n, v in series.labels.items())
                (found,) = ours.metrics.select(
                    "{" + matchers + "}", start / 1000, start / 1000 + 8000
                )
                assert found.times.tolist() == series.times.tolist()
                assert found.values.tolist() == series.values.tolist()


CONFIG = """
global: {{scrape_interval: 1s, scrape_timeout: 1s}}
scrape_configs:
  - job_name: federate
    honor_labels: true
    metrics_path: /federate
    params: {{"match[]": ['{{job="ours"}}']}}
    static_configs: [{{targets: ["{address}"]}}]
remote_write:
  - url: http://{address}/api/v1/write
    queue_config: {{batch_send_deadline: 100ms}}
"""


@needs_prometheus
@pytest.mark.slow
def test_prometheus_federates_from_us_and_writes_to_us(tmp_path: Path) -> None:
    with serving(tmp_path / "ours") as ours:
        assert ours.http is not None
        moment = SYSTEM_CLOCK.now_ms() / 1000
        ours.metrics.append("mine", {"job": "ours", "instance": "i"}, moment, 42.0)
        ours.metrics.append("lonely", {"job": "ours"}, moment, 7.0)
        config = CONFIG.format(address=ours.http.address)
        with prometheus(tmp_path, config=config) as peer:

            def found(promql: str) -> list[Any]:
                answer = peer.ask("/api/v1/query", query=promql)
                return [[one["metric"], one["value"][1]] for one in answer["data"]["result"]]

            wait_until(lambda: bool(found("mine")) and bool(found("lonely")), "never federated")
            assert found("mine") == [[{"__name__": "mine", "instance": "i", "job": "ours"}, "42"]]
            # an empty label keeps the scraped one's from being added
            assert found("lonely") == [[{"__name__": "lonely", "job": "ours"}, "7"]]

            def written() -> bool:
                return bool(ours.metrics.list_series('up{job="federate"}'))

            wait_until(written, "never written")
        (up,) = ours.metrics.select("up")
        assert up.labels["instance"] == ours.http.address
        assert set(up.values.tolist()) == {1.0}
        assert ours.writer.requests >= 1


@needs_prometheus
@pytest.mark.slow
def test_we_scrape_prometheus(tmp_path: Path) -> None:
    with prometheus(tmp_path) as peer:
        file = tmp_path / "siltstone.toml"
        file.write_text(
            f"[[scrape]]\njob_name = 'peer'\ntargets = ['{peer.url.removeprefix('http://')}']\n"
            "scrape_interval = 0.5\n"
        )
        sections = load(
            OWNERS, file=file,
            flags={"http": {"listen": "off"}, "metrics": {"retention_size": "32MiB"}},
        )  # fmt: skip
        monitoring = open_monitoring(None, sections, tmp_path / "ours", SYSTEM_CLOCK)
        assert monitoring is not None
        assert monitoring.http is None
        try:
            wait_until(lambda: monitoring.scraper.scrapes >= 1, "never scraped")
        finally:
            health = monitoring.scraper.targets[0].health, monitoring.scraper.targets[0].last_error
            monitoring.close()
        assert health == ("up", "")
        with Metrics(tmp_path / "ours" / "metrics") as metrics:
            (build,) = metrics.select("prometheus_build_info")
            assert build.labels["job"] == "peer"
            assert len(metrics.list_series('{job="peer"}')) > 200
