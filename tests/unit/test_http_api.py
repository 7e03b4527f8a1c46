"""Prometheus' HTTP API: parameters, shapes, errors, over an engine that notes its calls."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fakes import ManualClock
from starlette.testclient import TestClient

from siltstone import errors
from siltstone.serve import exposition
from siltstone.serve.http import OwnRoutes, application
from siltstone.serve.metadata import Metadata
from siltstone.serve.observe import Observer, Recorder
from siltstone.serve.parameters import FORM_BYTES_MAX
from siltstone.serve.prometheus import EMPTY, POINTS_MAX, PrometheusApi

NOW_MS = 1_700_000_000_000


class Answer:
    def __init__(self, json: str, *warnings: str) -> None:
        self.json = json
        self.warnings = warnings

    def to_json(self) -> str:
        return self.json


class Engine:
    """Answers with what it is told to, and notes the calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.error: Exception | None = None
        self.wait: Callable[[Callable[[], bool]], None] | None = None
        self.appended: list[tuple[Any, ...]] = []
        self.warnings: tuple[str, ...] = ()

    def query(self, promql: str, time: float, **limits: Any) -> Answer:
        self.calls.append(("query", promql, time, limits["limits"].timeout_seconds))
        if self.error:
            raise self.error
        return Answer('{"resultType":"scalar","result":[4,"2"]}')

    def query_range(
        self, promql: str, start: float, end: float, step: float, **limits: Any
    ) -> Answer:
        self.calls.append(("query_range", promql, start, end, step))
        return Answer('{"resultType":"matrix","result":[]}', *self.warnings)

    def labels(self) -> list[str]:
        self.calls.append(("labels",))
        return ["__name__", "cpu", "host"]

    def label_values(self, name: str) -> list[str]:
        self.calls.append(("label_values", name))
        return ["a", "b"]

    def list_series(
        self, match: str | None, start: float | None = None, end: float | None = None
    ) -> list[dict[str, str]]:
        self.calls.append(("list_series", match, start, end))
        if match == "down":
            return [{"__name__": "down"}]
        return [{"__name__": "up", "job": "x"}]

    def stats(self) -> dict[str, Any]:
        return {"series_live": 3, "samples": 9, "retention": {"seconds": 60.0}}

    def segments(self) -> list[dict[str, Any]]:
        return [
            {"state": "open", "live_bytes": 5, "filled_bytes": 10},
            {"state": "free", "live_bytes": 0, "filled_bytes": 0},
        ]

    def append(self, name: str, labels: Any, time: float, value: float) -> None:
        if self.error:
            raise self.error
        self.appended.append((name, dict(labels), time, value))


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def client(engine: Engine) -> Iterator[TestClient]:
    clock = ManualClock(NOW_MS)
    metadata = Metadata()
    metadata.note("x_total", "counter", help="xs")
    metadata.note("up", "gauge")
    api = PrometheusApi(engine, clock, version="0.0.0", metadata=metadata)
    own = OwnRoutes(Observer(clock, metrics=engine))
    with TestClient(application([*api.routes(), *own.routes()])) as client:
        yield client


def error_of(response: Any, status: int, kind: str) -> str:
    assert response.status_code == status
    body = response.json()
    assert (body["status"], body["errorType"]) == ("error", kind)
    return str(body["error"])


# Queries ------------------------------------------------------------------------------------


def test_the_connection_test_of_a_data_source(client: TestClient, engine: Engine) -> None:
    response = client.post("/api/v1/query", data={"query": "1+1", "time": "4"})
    assert response.json() == {
        "status": "success",
        "data": {"resultType": "scalar", "result": [4, "2"]},
    }
    assert response.headers["content-type"] == "application/json"
    assert engine.calls == [("query", "1+1", 4.0, 120.0)]


def test_without_a_time_it_is_now(client: TestClient, engine: Engine) -> None:
    client.get("/api/v1/query", params={"query": "up"})
    assert engine.calls == [("query", "up", NOW_MS / 1000, 120.0)]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1.5", 1.5),
        ("-3", -3.0),
        ("1e3", 1000.0),
        ("2023-11-14T22:13:20Z", 1_700_000_000.0),
        ("2023-11-14T23:13:20.250+01:00", 1_700_000_000.25),
        ("9223309901257974", float(1 << 33)),
        ("-9223309901257974", -float(1 << 33)),
    ],
)
def test_times(client: TestClient, engine: Engine, text: str, seconds: float) -> None:
    assert client.get("/api/v1/query", params={"query": "up", "time": text}).status_code == 200
    assert engine.calls[0][2] == seconds


@pytest.mark.parametrize(
    "text",
    [
        "x",
        "NaN",
        "inf",
        "2023-11-14",
        "2023-11-14T22:13:20",
        " 1",
        "1_0",
        "\N{ARABIC-INDIC DIGIT ONE}",
    ],
)
def test_what_is_no_time(client: TestClient, text: str) -> None:
    response = client.get("/api/v1/query", params={"query": "up", "time": text})
    expected = f'invalid parameter "time": cannot parse "{text}" to a valid timestamp'
    assert error_of(response, 400, "bad_data") == expected


def test_a_form_wins_over_the_query_string(client: TestClient, engine: Engine) -> None:
    client.post("/api/v1/query?query=a&time=1", data={"query": "b"})
    assert engine.calls[0][1:3] == ("b", 1.0)


def test_a_form_that_is_too_long(client: TestClient) -> None:
    response = client.post("/api/v1/query", data={"query": "x" * FORM_BYTES_MAX})
    assert "larger than" in error_of(response, 413, "bad_data")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("15", 15.0), ("0.5", 0.5), ("1m30s", 90.0), ("250ms", 0.25), ("1d", 86400)],
)
def test_steps(client: TestClient, engine: Engine, text: str, seconds: float) -> None:
    parameters = {"query": "up", "start": "0", "end": "60", "step": text}
    assert client.get("/api/v1/query_range", params=parameters).status_code == 200
    assert engine.calls == [("query_range", "up", 0.0, 60.0, seconds)]


def test_an_answer_that_is_less_exact_says_so(client: TestClient, engine: Engine) -> None:
    parameters = {"query": "up", "start": "0", "end": "60", "step": "15"}
    assert "warnings" not in client.get("/api/v1/query_range", params=parameters).json()
    engine.warnings = ('from "tiers"',)
    found = client.get("/api/v1/query_range", params=parameters).json()
    assert found["warnings"] == ['from "tiers"']
    assert found["data"]["resultType"] == "matrix"


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"start": ""}, 'invalid parameter "start": cannot parse "" to a valid timestamp'),
        ({"end": "-1"}, 'invalid parameter "end": end timestamp must not be before start time'),
        ({"step": "x"}, 'invalid parameter "step": cannot parse "x" to a valid duration'),
        ({"step": ""}, 'invalid parameter "step": cannot parse "" to a valid duration'),
        ({"step": "9" * 400 + "s"}, 'invalid parameter "step": cannot parse "9'),
        ({"step": "9" * 5000 + "s"}, 'invalid parameter "step": cannot parse "9'),
        ({"step": "1_5"}, 'invalid parameter "step": cannot parse "1_5" to a valid duration'),
        ({"step": "0"}, 'invalid parameter "step": zero or negative query resolution step'),
        ({"step": "-5"}, 'invalid parameter "step": zero or negative query resolution step'),
        ({"end": str(POINTS_MAX + 1), "step": "1"}, "exceeded maximum resolution of 11,000 points"),
        ({"timeout": "never"}, 'invalid parameter "timeout"'),
    ],
)
def test_ranges_that_make_no_sense(
    client: TestClient, engine: Engine, changed: dict[str, str], expected: str
) -> None:
    parameters = {"query": "up", "start": "0", "end": "60", "step": "15"} | changed
    response = client.get("/api/v1/query_range", params=parameters)
    assert error_of(response, 400, "bad_data").startswith(expected)
    assert engine.calls == []


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (errors.InvalidQuery("1:1: parse error: no"), 400, "bad_data"),
        (errors.QueryFailed("many-to-many"), 422, "execution"),
        (errors.QueryTooLarge("too many points"), 422, "execution"),
        (errors.QueryTimeout("query timed out"), 503, "timeout"),
        (errors.QueryCancelled("gone"), 503, "canceled"),
        (errors.Busy("later"), 503, "unavailable"),
        (errors.Corruption("bad bytes"), 500, "internal"),
    ],
)
def test_errors_of_queries(
    client: TestClient, engine: Engine, error: Exception, status: int, kind: str
) -> None:
    engine.error = error
    response = client.get("/api/v1/query", params={"query": "up"})
    assert error_of(response, status, kind) == str(error)


def test_an_error_that_nobody_foresaw_is_named_by_its_class_only(
    client: TestClient, engine: Engine
) -> None:
    engine.error = ZeroDivisionError("secret")
    response = client.get("/api/v1/query", params={"query": "up"})
    assert error_of(response, 500, "internal") == "internal error: ZeroDivisionError"


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("sum(up)by(job)", "sum by (job) (up)"),
        ("rate( x[5m] )", "rate(x[5m])"),
        ("max_over_time(x[10m:])", "max_over_time(x[10m:])"),
    ],
)
def test_queries_are_laid_out(client: TestClient, query: str, text: str) -> None:
    for ask in (client.get, client.post):
        found = ask("/api/v1/format_query", params={"query": query})
        assert found.json() == {"status": "success", "data": text}
    response = client.get("/api/v1/format_query", params={"query": "sum("})
    assert "parse error" in error_of(response, 400, "bad_data")


def test_queries_are_told_as_trees(client: TestClient) -> None:
    number = {"type": "numberLiteral", "val": "1"}
    for ask in (client.get, client.post):
        found = ask("/api/v1/parse_query", params={"query": "(1)"})
        assert found.json() == {"status": "success", "data": {"type": "parenExpr", "expr": number}}
    response = client.get("/api/v1/parse_query", params={"query": "sum("})
    assert "parse error" in error_of(response, 400, "bad_data")


# Names --------------------------------------------------------------------------------------


def test_labels_and_their_limit(client: TestClient, engine: Engine) -> None:
    response = client.get("/api/v1/labels", params={"limit": "2"})
    assert response.json() == {
        "status": "success",
        "data": ["__name__", "cpu"],
        "warnings": ["results truncated due to limit"],
    }
    response = client.get("/api/v1/labels", params={"match[]": "up", "start": "1", "end": "2"})
    assert response.json() == {"status": "success", "data": ["__name__", "job"]}
    assert engine.calls == [("labels",), ("list_series", "up", 1.0, 2.0)]


def test_values_of_a_label(client: TestClient, engine: Engine) -> None:
    assert client.get("/api/v1/label/__name__/values?limit=40000").json()["data"] == ["a", "b"]
    response = client.get("/api/v1/label/__name__/values?match[]=up&match[]=down")
    assert response.json()["data"] == ["down", "up"]
    assert client.get("/api/v1/label/host/values?start=1").json()["data"] == []
    assert engine.calls[0] == ("label_values", "__name__")
    assert engine.calls[-1] == ("list_series", None, 1.0, None)
    response = client.get("/api/v1/label/a-b/values")
    assert error_of(response, 400, "bad_data") == 'invalid label name: "a-b"'


def test_series(client: TestClient) -> None:
    response = client.post("/api/v1/series", data={"match[]": ["up", "down", '{job="x"}']})
    assert response.json()["data"] == [{"__name__": "down"}, {"__name__": "up", "job": "x"}]
    response = client.get("/api/v1/series")
    assert error_of(response, 400, "bad_data") == "no match[] parameter provided"


def test_metadata(client: TestClient) -> None:
    data = client.get("/api/v1/metadata?limit=40000").json()["data"]
    assert data == {
        "up": [{"type": "gauge", "help": "", "unit": ""}],
        "x_total": [{"type": "counter", "help": "xs", "unit": ""}],
    }
    assert list(client.get("/api/v1/metadata?metric=up").json()["data"]) == ["up"]
    assert list(client.get("/api/v1/metadata?limit=1").json()["data"]) == ["up"]


@pytest.mark.parametrize("limit", ["-1", "1.5", "²", "9" * 5000, "x"])
def test_a_limit_that_is_none(client: TestClient, limit: str) -> None:
    response = client.get("/api/v1/metadata", params={"limit": limit})
    assert "limit" in error_of(response, 400, "bad_data")


def test_the_build_is_told(client: TestClient) -> None:
    data = client.get("/api/v1/status/buildinfo").json()["data"]
    assert set(data) >= {"version", "revision", "branch", "buildUser", "buildDate", "goVersion"}


@pytest.mark.parametrize("path", EMPTY)
def test_what_there_is_none_of(client: TestClient, path: str) -> None:
    assert client.get(f"/api/v1/{path}").json() == {"status": "success", "data": EMPTY[path]}


# Our own ------------------------------------------------------------------------------------


def test_health_and_headers(client: TestClient) -> None:
    for path in ("/-/healthy", "/-/ready"):
        response = client.get(path)
        assert response.status_code == 200
        assert response.headers["content-security-policy"].startswith("default-src 'self'")
    assert client.get("/nowhere").status_code == 404
    assert client.delete("/metrics").status_code == 405


def test_own_metrics_are_exposed(client: TestClient) -> None:
    response = client.get("/metrics")
    assert response.headers["content-type"] == exposition.CONTENT_TYPE
    lines = response.text.splitlines()
    assert "siltstone_metrics_series 3" in lines
    assert "# TYPE siltstone_metrics_samples_appended_total counter" in lines
    assert 'siltstone_metrics_segments{state="open"} 1' in lines
    assert "siltstone_metrics_live_bytes 5" in lines
    assert "siltstone_metrics_retention_forecast_seconds 60" in lines


def test_segments_are_told(client: TestClient) -> None:
    data = client.get("/api/siltstone/segments").json()["data"]
    assert list(data) == ["metrics"]
    assert [segment["state"] for segment in data["metrics"]] == ["open", "free"]


def test_what_is_exposed_is_recorded(engine: Engine) -> None:
    observer = Observer(ManualClock(NOW_MS), metrics=engine)
    recorder = Recorder(observer)
    assert recorder.record() == len(engine.appended) == len(observer.samples())
    assert ("siltstone_metrics_series", {}, NOW_MS / 1000, 3.0) in engine.appended


def test_recording_goes_on_after_a_failure(engine: Engine) -> None:
    engine.error = errors.DeviceFailed("full")
    recorder = Recorder(Observer(ManualClock(NOW_MS), metrics=engine), seconds=0.001)
    stored = threading.Event()

    def append(name: str, labels: Any, time: float, value: float) -> None:
        if engine.error and recorder.failures < 3:
            raise engine.error
        stored.set()

    engine.append = append  # type: ignore[method-assign]
    recorder.start()
    assert stored.wait(10)
    recorder.stop()


# Text format --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"), (3.0, "3"), (-1.5, "-1.5"), (1e20, "1e+20"), (0.1, "0.1"), (-0.0, "0"),
        (1e5, "100000"), (1e6, "1e+06"), (1234567.0, "1.234567e+06"), (0.0001, "0.0001"),
        (0.00001, "1e-05"), (1700000000.25, "1.70000000025e+09"), (5e-324, "5e-324"),
        (float("nan"), "NaN"), (float("inf"), "+Inf"), (float("-inf"), "-Inf"),
    ],
)  # fmt: skip
def test_numbers(value: float, text: str) -> None:
    assert exposition.number(value) == text


def test_the_format_is_read_back_by_another_parser() -> None:
    from prometheus_client.parser import text_string_to_metric_families

    samples = [
        exposition.Sample("a_total", {"x": 'quote " slash \\ line\n'}, 1.0),
        exposition.Sample("b", {}, 2.5, time_ms=1000),
        exposition.Sample("a_total", {}, 3.0),
    ]
    text = exposition.render(samples).decode()
    found = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    assert [(one.name, one.labels, one.value) for one in found] == [
        ("a_total", {"x": 'quote " slash \\ line\n'}, 1.0),
        ("a_total", {}, 3.0),
        ("b", {}, 2.5),
    ]
