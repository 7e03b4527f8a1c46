"""HTTP around the engine, in process: bodies in gzip, answers in gzip, pages of other sites, the
admin API."""

from __future__ import annotations

import asyncio
import gzip
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes import ManualClock, SeededRandom
from metricsrig import opened
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient

import siltstone
from siltstone.log.device import MemoryDevice
from siltstone.serve.admin import Admin
from siltstone.serve.compression import SIZE_MIN, THREAD_SIZE_MIN, compressed, reads_gzip
from siltstone.serve.http import application
from siltstone.serve.metadata import Metadata
from siltstone.serve.sink import Sink
from siltstone.serve.writing import Writer

T0_MS = 1_700_000_000_000
IMPORT = "/api/v1/import/prometheus"


@pytest.fixture
def metrics() -> Iterator[siltstone.Metrics]:
    with opened(MemoryDevice(48, 1 << 16, engine="metrics")) as one:
        yield one


def client_of(*routes: Route) -> TestClient:
    return TestClient(compressed(application(routes)), base_url="http://here:8181")


@pytest.fixture
def client(metrics: siltstone.Metrics) -> TestClient:
    clock = ManualClock(T0_MS)
    writer = Writer(Sink(metrics, Metadata()), clock, body_bytes_max=1 << 20)
    return client_of(*writer.routes())


def names(metrics: siltstone.Metrics) -> list[str]:
    """Of the series that have samples."""
    return [one.labels["__name__"] for one in metrics.select('{__name__=~".+"}')]


# Bodies ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["gzip", "GZIP", "x-gzip"])
def test_all_members_of_a_gzip_body_count(client, metrics, encoding):
    body = gzip.compress(b"first 1\nsec") + gzip.compress(b"ond 2\n") + gzip.compress(b"third 3\n")
    answer = client.post(IMPORT, content=body, headers={"content-encoding": encoding})
    assert answer.status_code == 204
    assert names(metrics) == ["first", "second", "third"]


@pytest.mark.parametrize(
    ("body", "status", "text"),
    [
        (gzip.compress(b"a 1\n") + b"junk", 400, "no gzip"),
        (gzip.compress(b"a 1\n") + gzip.compress(b"b 2\n")[:-3], 400, "too early"),
        (gzip.compress(bytes(1 << 20)) + gzip.compress(b"b 2\n"), 413, "unpacks to more"),
        (b"a 1\n", 400, "no gzip"),
    ],
)
def test_a_gzip_body_is_whole_or_nothing(client, metrics, body, status, text):
    answer = client.post(IMPORT, content=body, headers={"content-encoding": "gzip"})
    assert (answer.status_code, answer.json()["status"]) == (status, "error")
    assert text in answer.json()["error"]
    assert names(metrics) == []


def test_a_client_that_hangs_up_in_its_body_is_no_error_of_ours(metrics, caplog):
    writer = Writer(Sink(metrics, Metadata()), ManualClock(T0_MS), body_bytes_max=1 << 20)
    messages = iter([
        {"type": "http.request", "body": b"a 1\n", "more_body": True},
        {"type": "http.disconnect"},
    ])  # fmt: skip
    sent: list[Any] = []

    async def receive() -> Any:
        return next(messages)

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": IMPORT, "headers": [], "query_string": b""}
    with caplog.at_level(logging.INFO, "siltstone.serve"):
        asyncio.run(application(writer.routes())(scope, receive, send))
    assert sent[0]["status"] == 400
    assert caplog.records == []
    assert names(metrics) == []


# Pages of other sites -------------------------------------------------------------------------


@pytest.mark.parametrize("path", [IMPORT, "/api/v1/write", "/write", "/api/v1/otlp/v1/metrics"])
@pytest.mark.parametrize(
    "origin", ["https://evil.example", "http://here:8182", "null", "", "http://[here", "//["]
)
def test_pages_of_other_sites_do_not_write(client, metrics, path, origin):
    answer = client.post(path, content=b"a 1\n", headers={"origin": origin})
    assert answer.status_code == 400
    assert "cannot write here" in answer.json()["error"]
    assert names(metrics) == []


def test_own_pages_and_programs_write(client, metrics):
    for headers in ({}, {"origin": "http://here:8181"}):
        assert client.post(IMPORT, content=b"a 1\n", headers=headers).status_code == 204
    assert names(metrics) == ["a"]


# Answers --------------------------------------------------------------------------------------


def text_of(size: int) -> Route:
    text = ("0123456789" * (size // 10 + 1))[:size]

    async def answer(request: Request) -> Response:
        return PlainTextResponse(text)

    return Route("/text", answer)


@pytest.mark.parametrize("size", [SIZE_MIN, THREAD_SIZE_MIN - 1, THREAD_SIZE_MIN, 1 << 20])
def test_large_answers_are_compressed_for_who_reads_it(size):
    answer = client_of(text_of(size)).get("/text", headers={"accept-encoding": "gzip"})
    assert answer.headers["content-encoding"] == "gzip"
    assert int(answer.headers["content-length"]) < size // 10
    assert answer.headers["vary"] == "Accept-Encoding"
    assert len(answer.text) == size


@pytest.mark.parametrize(
    ("size", "accept"), [(SIZE_MIN - 1, "gzip"), (1 << 16, "identity"), (1 << 16, "gzip;q=0, br")]
)
def test_other_answers_go_out_as_they_are(size, accept):
    answer = client_of(text_of(size)).get("/text", headers={"accept-encoding": accept})
    assert "content-encoding" not in answer.headers
    assert int(answer.headers["content-length"]) == size


@pytest.mark.parametrize(
    ("accept", "reads"),
    [
        (b"gzip", True),
        (b"deflate, gzip;q=1.0, *;q=0.5", True),
        (b"GZip", True),
        (b"*", True),
        (b"gzip;q=0.5", True),
        (b"gzip ; q=0", False),
        (b"gzip;q=0.000", False),
        (b"gzip;q=0, *", False),
        (b"*, gzip;q=0", False),
        (b"*;q=0", False),
        (b"*;q=0, gzip", True),
        (b"br, identity", False),
        (b"xgzip", False),
        (b"", False),
    ],
)
def test_who_reads_gzip(accept, reads):
    assert reads_gzip([(b"host", b"gzip"), (b"accept-encoding", accept)]) is reads
    assert not reads_gzip([(b"te", accept)])


def test_what_is_encoded_or_no_text_stays_as_it_is():
    async def answer(request: Request) -> Response:
        kind = request.query_params["kind"]
        headers = {"content-encoding": "br"} if kind == "text/plain" else {}
        return Response(bytes(10_000), media_type=kind, headers=headers)

    client = client_of(Route("/raw", answer))
    plain = client.get("/raw?kind=image/png", headers={"accept-encoding": "gzip"})
    assert "content-encoding" not in plain.headers
    scope = {"method": "GET", "path": "/raw", "query_string": b"kind=text/plain", "type": "http"}
    scope["headers"] = [(b"accept-encoding", b"gzip")]
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    asyncio.run(compressed(application([Route("/raw", answer)]))(scope, receive, send))
    assert dict(sent[0]["headers"])[b"content-encoding"] == b"br"
    assert sent[1]["body"] == bytes(10_000)


# The admin API --------------------------------------------------------------------------------


def admin(metrics: siltstone.Metrics, directory: Path | None, enabled: bool = True) -> TestClient:
    clock = ManualClock(T0_MS)
    return client_of(
        *Admin(metrics, directory, clock, enabled=enabled, rng=SeededRandom(1)).routes()
    )


def filled(metrics: siltstone.Metrics) -> None:
    for name in ("a", "b", "c"):
        metrics.extend(name, {}, range(1_700_000_000, 1_700_000_010), range(10))


def test_a_snapshot_opens_by_itself(tmp_path):
    with siltstone.Metrics(tmp_path / "m", retention_size="2MiB", segment_size="64KiB") as metrics:
        filled(metrics)
        client = admin(metrics, metrics.path)
        answer = client.post("/api/v1/admin/tsdb/snapshot")
        assert answer.status_code == 200
        name = answer.json()["data"]["name"]
        assert name.startswith("20231114T221320Z-")
        metrics.delete("a")
        again = client.put("/api/v1/admin/tsdb/snapshot?skip_head=false").json()["data"]["name"]
        assert again != name
    with siltstone.Metrics(tmp_path / "m" / "snapshots" / name) as copy:
        assert names(copy) == ["a", "b", "c"]
        assert copy.select("c")[0].values.tolist() == list(range(10))
    with siltstone.Metrics(tmp_path / "m" / "snapshots" / again) as copy:
        assert names(copy) == ["b", "c"]


def test_series_are_deleted_within_a_range(metrics):
    filled(metrics)
    client = admin(metrics, None)
    path = "/api/v1/admin/tsdb/delete_series"
    form = {"match[]": ["a", "b"], "start": "1700000002", "end": "2023-11-14T22:13:25Z"}
    assert client.post(path, data=form).status_code == 204
    assert [one.values.tolist() for one in metrics.select('{__name__=~".+"}')] == [
        [0, 1, 6, 7, 8, 9],
        [0, 1, 6, 7, 8, 9],
        list(range(10)),
    ]
    assert client.put(path + "?match[]=a").status_code == 204
    assert names(metrics) == ["b", "c"]


@pytest.mark.parametrize(
    ("order", "text"),
    [
        ("delete_series", "no match[]"),
        ("delete_series?match[]={", "no selector"),
        ("delete_series?match[]=a&start=x", "timestamp"),
        ("delete_series?match[]=a&start=5&end=4", "ends before"),
        ("snapshot?skip_head=true", "skip_head"),
    ],
)
def test_orders_that_make_no_sense(metrics, order, text):
    filled(metrics)
    answer = admin(metrics, None).post("/api/v1/admin/tsdb/" + order)
    assert answer.status_code == 400
    assert text in answer.json()["error"]
    assert len(names(metrics)) == 3


def test_no_snapshot_of_what_is_in_memory(metrics):
    answer = admin(metrics, None).post("/api/v1/admin/tsdb/snapshot")
    assert (answer.status_code, answer.json()["errorType"]) == (500, "internal")
    assert "in memory" in answer.json()["error"]


def test_the_admin_api_is_off_unless_somebody_wants_it(metrics, tmp_path):
    filled(metrics)
    client = admin(metrics, tmp_path, enabled=False)
    for order in ("delete_series?match[]=a", "snapshot"):
        answer = client.post("/api/v1/admin/tsdb/" + order)
        assert answer.status_code == 400
        assert "http.admin" in answer.json()["error"]
    other_site = {"origin": "http://evil.example"}
    answer = admin(metrics, tmp_path).post(
        "/api/v1/admin/tsdb/delete_series?match[]=a", headers=other_site
    )
    assert answer.status_code == 400
    assert len(names(metrics)) == 3
