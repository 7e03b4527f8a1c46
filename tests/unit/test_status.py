"""Status pages, limits of answers, and what senders of Influx lines ask: over a real engine, and
beside Debian's prometheus."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import ManualClock
from metricsrig import opened
from prometheusrig import prometheus
from starlette.testclient import TestClient

import siltstone
from siltstone.log.device import MemoryDevice
from siltstone.metrics.source import Series
from siltstone.serve import influx_answers
from siltstone.serve.http import application
from siltstone.serve.http_settings import HttpSettings
from siltstone.serve.prometheus import TRUNCATED, PrometheusApi
from siltstone.serve.status import LISTED_MAX, NO_END, NO_START, Status

T0_MS = 1_700_000_000_000
SERIES = [
    {"__name__": "up", "job": "node", "instance": "a"},
    {"__name__": "up", "job": "node", "instance": "bb"},
    {"__name__": "load", "job": "node", "instance": "a", "core": "ä"},
]


class Reloads:
    succeeded = True
    succeeded_ms = T0_MS


@pytest.fixture
def metrics() -> Iterator[siltstone.Metrics]:
    with opened(MemoryDevice(48, 1 << 16, engine="metrics")) as one:
        yield one


@pytest.fixture
def client(metrics: siltstone.Metrics) -> Iterator[TestClient]:
    clock = ManualClock(T0_MS)
    api = PrometheusApi(metrics, clock, version="0")
    status = Status(metrics, Path("/data/metrics"), clock, HttpSettings(), Reloads())
    clock.advance(1.5)
    routes = [*api.routes(), *status.routes(), *influx_answers.routes()]
    with TestClient(application(routes)) as one:
        yield one


def fill(metrics: siltstone.Metrics) -> None:
    for number, labels in enumerate(SERIES):
        rest = {name: value for name, value in labels.items() if name != "__name__"}
        metrics.extend(labels["__name__"], rest, T0_MS / 1000 + np.arange(3), [1.0 + number] * 3)


def data_of(client: TestClient, path: str) -> Any:
    response = client.get(path)
    assert response.status_code == 200, response.text
    return response.json()["data"]


def shape(data: Any) -> Any:
    """Its keys and kinds."""
    if isinstance(data, dict):
        return {key: shape(value) for key, value in data.items()}
    return [shape(data[0])] if isinstance(data, list) else type(data)


# Status -------------------------------------------------------------------------------------


def test_what_a_database_holds(client: TestClient, metrics: siltstone.Metrics) -> None:
    fill(metrics)
    data = data_of(client, "/api/v1/status/tsdb")
    assert data["headStats"] == {
        "numSeries": 3, "numLabelPairs": 6, "chunkCount": 0, "minTime": T0_MS,
        "maxTime": T0_MS + 2000,
    }  # fmt: skip
    assert data["seriesCountByMetricName"] == [
        {"name": "up", "value": 2},
        {"name": "load", "value": 1},
    ]
    assert data["labelValueCountByLabelName"][0] == {"name": "__name__", "value": 2}
    assert {"name": "core", "value": 2} in data["memoryInBytesByLabelName"]  # bytes
    assert data["seriesCountByLabelValuePair"][0] == {"name": "job=node", "value": 3}


def test_chunks_and_times_also_of_what_was_sealed(
    client: TestClient, metrics: siltstone.Metrics
) -> None:
    fill(metrics)
    metrics.checkpoint()
    metrics.append("up", {"job": "node", "instance": "a"}, T0_MS / 1000 + 60, 1.0)
    head = data_of(client, "/api/v1/status/tsdb")["headStats"]
    assert head["chunkCount"] == 3
    assert (head["minTime"], head["maxTime"]) == (T0_MS, T0_MS + 60_000)
    metrics.extend("long", {}, T0_MS / 1000 + 100 + np.arange(300), np.arange(300.0))  # pending
    head = data_of(client, "/api/v1/status/tsdb")["headStats"]
    assert (head["chunkCount"], head["maxTime"]) == (4, T0_MS + 399_000)


def test_an_empty_database(client: TestClient) -> None:
    data = data_of(client, "/api/v1/status/tsdb")
    assert data["headStats"] == {
        "numSeries": 0, "numLabelPairs": 0, "chunkCount": 0, "minTime": NO_START,
        "maxTime": NO_END,
    }  # fmt: skip
    assert data["seriesCountByMetricName"] == []


def test_lists_are_as_long_as_wanted(client: TestClient, metrics: siltstone.Metrics) -> None:
    for number in range(12):
        metrics.append(f"m{number:02}", {}, T0_MS / 1000, 1.0)
    lists = data_of(client, "/api/v1/status/tsdb")
    assert [one["name"] for one in lists["seriesCountByMetricName"]][-1] == "m09"
    lists = data_of(client, "/api/v1/status/tsdb?limit=12")
    assert len(lists["seriesCountByMetricName"]) == 12
    for wrong in ("0", "x", "-1", str(LISTED_MAX + 1)):
        response = client.get(f"/api/v1/status/tsdb?limit={wrong}")
        assert response.status_code == 400
        assert 'invalid parameter "limit"' in response.json()["error"]


def test_how_it_runs(client: TestClient) -> None:
    data = data_of(client, "/api/v1/status/runtimeinfo")
    assert data["startTime"] == data["lastConfigTime"] == "2023-11-14T22:13:20.000Z"
    assert data["serverTime"] == "2023-11-14T22:13:21.500Z"
    assert (data["reloadConfigSuccess"], data["corruptionCount"]) == (True, 0)
    assert Path(data["CWD"]).is_dir()


@pytest.mark.parametrize(
    ("seconds", "text", "flag"), [(None, "3136KiB", "0s"), (86400, "1d or 3136KiB", "1d")]
)
def test_retention_is_told(seconds: float | None, text: str, flag: str) -> None:
    device = MemoryDevice(48, 1 << 16, engine="metrics")
    with opened(device, retention_time=seconds, retention_size="3136KiB") as metrics:
        status = Status(metrics, None, ManualClock(T0_MS), HttpSettings(admin=True), Reloads())
        with TestClient(application(status.routes())) as client:
            runtime = data_of(client, "/api/v1/status/runtimeinfo")
            flags = data_of(client, "/api/v1/status/flags")
    assert runtime["storageRetention"] == text
    assert flags["storage.tsdb.retention.time"] == flag
    assert (flags["web.enable-admin-api"], flags["storage.tsdb.path"]) == ("true", "")


def test_flags_are_texts_under_the_names_of_prometheus(client: TestClient) -> None:
    flags = data_of(client, "/api/v1/status/flags")
    assert all(isinstance(value, str) for value in flags.values())
    assert (flags["query.timeout"], flags["query.lookback-delta"]) == ("2m", "5m")
    assert flags["storage.tsdb.path"] == "/data/metrics"


def test_beside_prometheus(client: TestClient, metrics: siltstone.Metrics, tmp_path: Path) -> None:
    """The same series: the same lists, every key that it has, of the same kind."""
    fill(metrics)
    given = [
        Series(labels, T0_MS + 1000 * np.arange(3), np.full(3, 1.0 + number))
        for number, labels in enumerate(SERIES)
    ]
    with prometheus(tmp_path) as peer:
        peer.fill(given, T0_MS - 1000)
        theirs = {
            name: json.loads(peer.get(f"/api/v1/status/{name}"))["data"]
            for name in ("tsdb", "runtimeinfo", "flags")
        }
    ours = {name: data_of(client, f"/api/v1/status/{name}") for name in theirs}
    for name in ("tsdb", "runtimeinfo"):
        kinds, wanted = shape(ours[name]), shape(theirs[name])
        assert {key: kinds[key] for key in wanted} == wanted
    assert ours["flags"].keys() <= theirs["flags"].keys()
    for name, wanted in theirs["tsdb"].items():
        if name != "headStats":
            listed = [sorted((one["name"], one["value"]) for one in some)
                      for some in (ours["tsdb"][name], wanted)]  # fmt: skip
            assert listed[0] == listed[1], name
    assert ours["tsdb"]["headStats"]["numSeries"] == theirs["tsdb"]["headStats"]["numSeries"]


# Limits -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "query?query=up&time=1700000000",
        "query_range?query=up&start=1700000000&end=1700000002&step=1",
    ],
)
def test_answers_are_cut_to_a_limit(
    client: TestClient, metrics: siltstone.Metrics, path: str
) -> None:
    fill(metrics)
    every = client.get(f"/api/v1/{path}").json()
    assert len(every["data"]["result"]) == 2
    for limit in ("0", "2", "9"):
        assert client.get(f"/api/v1/{path}&limit={limit}").json() == every
    cut = client.get(f"/api/v1/{path}&limit=1").json()
    assert cut["data"]["result"] == every["data"]["result"][:1]
    assert cut["warnings"] == [TRUNCATED]
    assert client.get(f"/api/v1/{path}&limit=1.5").status_code == 400


def test_a_scalar_has_no_series_to_cut(client: TestClient) -> None:
    answer = client.get("/api/v1/query?query=1&limit=1").json()
    assert answer["data"]["resultType"] == "scalar"
    assert "warnings" not in answer


# Influx -------------------------------------------------------------------------------------


def test_a_ping(client: TestClient) -> None:
    for method in ("GET", "HEAD"):
        response = client.request(method, "/ping")
        assert (response.status_code, response.content) == (204, b"")
        assert response.headers["x-influxdb-version"] == influx_answers.VERSION
    assert client.get("/ping?verbose=true").json() == {"version": influx_answers.VERSION}


@pytest.mark.parametrize("text", ['CREATE DATABASE "telegraf"', "create database x WITH NAME y"])
def test_a_database_is_created_by_doing_nothing(client: TestClient, text: str) -> None:
    for response in (
        client.post("/query", data={"q": text}),
        client.get("/query", params={"q": text}),
    ):
        assert response.status_code == 200
        assert response.json() == {"results": [{"statement_id": 0}]}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", 'missing required parameter "q"'),
        ("SELECT * FROM cpu", "ask in PromQL, at /api/v1/query"),
        ("CREATE DATABASE", "InfluxQL is not spoken here"),
    ],
)
def test_nothing_else_of_influxql(client: TestClient, text: str, problem: str) -> None:
    response = client.post("/query", data={"q": text})
    assert response.status_code == 400
    assert problem in response.json()["error"]
