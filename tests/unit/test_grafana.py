"""Grafana's Prometheus data source: its calls, replayed, and the shapes that it accepts."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes import ManualClock
from metricsrig import opened
from starlette.testclient import TestClient

from siltstone.log.device import MemoryDevice
from siltstone.serve.http import application
from siltstone.serve.metadata import Metadata
from siltstone.serve.prometheus import PrometheusApi

GOLDEN = Path(__file__).parent.parent / "golden" / "grafana"
CALLS = json.loads((GOLDEN / "calls.json").read_text())
NOW = 1_700_000_000
START, END = NOW - 300, NOW
HEADERS = {
    "User-Agent": "Grafana/10.2.3",
    "X-Datasource-Uid": "c91e98f4-01ea-4ffd-890a-eef523983c78",
    "X-Grafana-Org-Id": "1",
    "Accept-Encoding": "gzip",
}


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    metadata = Metadata()
    metadata.note("requests_total", "counter", help="Requests.")
    with opened(MemoryDevice(48, 1 << 16, engine="metrics"), out_of_order_window=3600) as metrics:
        for job in ("api", "web"):
            for second in range(0, 301, 5):
                moment = START + second
                metrics.append("requests_total", {"job": job}, moment, float(second * len(job)))
                metrics.append("up", {"job": job}, moment, 1.0)
        metrics.append("strange", {}, NOW, math.nan)
        api = PrometheusApi(metrics, ManualClock(NOW * 1000), version="0", metadata=metadata)
        with TestClient(application(api.routes())) as client:
            yield client


# What each answer must be -------------------------------------------------------------------


def is_number(text: Any) -> bool:
    return isinstance(text, str) and not math.isnan(float(text))


def is_pair(pair: Any) -> bool:
    moment, value = pair
    return isinstance(moment, (int, float)) and is_number(value)


def is_matrix(data: Any) -> bool:
    assert data["resultType"] == "matrix"
    assert data["result"]
    for row in data["result"]:
        assert set(row) == {"metric", "values"}
        assert all(is_pair(pair) for pair in row["values"])
        moments = [pair[0] for pair in row["values"]]
        assert moments == sorted(set(moments))
        assert START <= moments[0] <= moments[-1] <= END + 1
    return True


def is_vector(data: Any) -> bool:
    assert data["resultType"] == "vector"
    assert {row["metric"]["job"] for row in data["result"]} == {"api", "web"}
    for row in data["result"]:
        assert set(row) == {"metric", "value"}
        assert row["value"][0] == NOW
        assert is_pair(row["value"])
    return True


SHAPES: dict[str, Callable[[Any], bool]] = {
    "scalar": lambda data: data == {"resultType": "scalar", "result": [4, "2"]},
    "string": lambda data: data == {"resultType": "string", "result": [NOW, "text"]},
    "matrix": is_matrix,
    "vector": is_vector,
    "empty matrix": lambda data: data == {"resultType": "matrix", "result": []},
    "empty list": lambda data: data == [],
    "names": lambda data: data == ["__name__", "job"],
    "metric names": lambda data: data == ["requests_total", "strange", "up"],
    "some metric names": lambda data: data == ["requests_total"],
    "jobs": lambda data: data == ["api", "web"],
    "series": lambda data: (
        data == [{"__name__": "requests_total", "job": job} for job in ("api", "web")]
    ),
    "metadata": lambda data: (
        data == {"requests_total": [{"type": "counter", "help": "Requests.", "unit": ""}]}
    ),
    "rules": lambda data: data == {"groups": []},
    "alerts": lambda data: data == {"alerts": []},
    "layout": lambda data: data == "sum by (job) (requests_total)",
    "build": lambda data: (
        data["version"].startswith("2.")
        and set(data) >= {"version", "revision", "branch", "buildUser", "buildDate", "goVersion"}
    ),
}
ERRORS = {
    "bad query": (400, "bad_data", "parse error"),
    "too many points": (400, "bad_data", "exceeded maximum resolution"),
}


def ask(client: TestClient, call: dict[str, str]) -> Any:
    def filled(text: str) -> str:
        for name, moment in (("$now", NOW), ("$start", START), ("$end", END)):
            text = text.replace(name, str(moment))
        return text

    url = call["path"] + ("?" + filled(call["query"]) if "query" in call else "")
    if "form" not in call:
        return client.request(call["method"], url, headers=HEADERS)
    kind = {"Content-Type": "application/x-www-form-urlencoded"}
    form = filled(call["form"]).encode()
    return client.request(call["method"], url, headers=HEADERS | kind, content=form)


@pytest.mark.parametrize("call", CALLS, ids=[call["what"] for call in CALLS])
def test_a_call_is_answered_as_grafana_expects(client: TestClient, call: dict[str, str]) -> None:
    response = ask(client, call)
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    if call["expect"] in ERRORS:
        status, kind, text = ERRORS[call["expect"]]
        assert (response.status_code, body["status"], body["errorType"]) == (status, "error", kind)
        assert text in body["error"]
        return
    assert (response.status_code, body["status"]) == (200, "success")
    assert set(body) == {"status", "data"}  # no warnings: they would be shown
    assert SHAPES[call["expect"]](body["data"]), body["data"]


def test_what_json_has_no_words_for(client: TestClient) -> None:
    call = {"method": "POST", "path": "/api/v1/query", "form": "query=strange%2F0*Inf&time=$now"}
    assert ask(client, call).json()["data"]["result"][0]["value"] == [NOW, "NaN"]
    call["form"] = "query=vector%281%29%2F0&time=$now"
    assert ask(client, call).json()["data"]["result"][0]["value"] == [NOW, "+Inf"]
