"""Scraping: what an answer becomes, what a bad one does, and when targets are asked."""

from __future__ import annotations

import asyncio
import gzip
import shutil
import ssl
import subprocess
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from httprig import Asked, Reply, peer
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from siltstone.clock import SYSTEM_CLOCK
from siltstone.config import load
from siltstone.errors import ConfigError, DeviceFailed
from siltstone.metrics.metrics import Metrics
from siltstone.metrics.source import STALE_NAN_BITS
from siltstone.serve.http import application
from siltstone.serve.loop import LoopThread
from siltstone.serve.scrape_settings import ScrapeSettings, duration_text
from siltstone.serve.scraping import LATE_MS_MAX, Scraper, next_tick
from siltstone.serve.sink import Sink
from siltstone.serve.target import SPARE_MIN, Target, labelled

NOW = 1_700_000_000_000
STALE = "stale"


def job(*targets: str, **options: Any) -> ScrapeSettings:
    return ScrapeSettings(job_name="j", targets=targets or ("h:1",), **options)


def stored(metrics: Metrics, match: str) -> dict[tuple[str, ...], list[tuple[int, Any]]]:
    """Samples by the labels beside job and instance; times from NOW on."""
    found = {}
    for series in metrics.select(match):
        labels = tuple(
            f"{name}={value}"
            for name, value in sorted(series.labels.items())
            if name not in ("job", "instance")
        )
        values = [
            STALE if bits == STALE_NAN_BITS else value
            for value, bits in zip(
                series.values.tolist(), series.values.view(np.uint64).tolist(), strict=True
            )
        ]
        found[labels] = list(zip((series.times - NOW).tolist(), values, strict=True))
    return found


# What an answer becomes ---------------------------------------------------------------------


def test_samples_get_the_labels_of_their_target(metrics: Metrics, sink: Sink) -> None:
    target = Target(job(labels={"env": "test"}), "h:1", sink)
    body = b'# TYPE a counter\na{x="1",job="own"} 2\nb 3 1699999999000\n'
    assert target.absorb(body, NOW) == (2, 1, None)
    assert metrics.list_series('{env="test",instance="h:1",__name__=~"a|b"}') == [
        {"__name__": "a", "env": "test", "exported_job": "own", "instance": "h:1", "job": "j",
         "x": "1"},
        {"__name__": "b", "env": "test", "instance": "h:1", "job": "j"},
    ]  # fmt: skip
    assert dict(sink.metadata.items())["a"].type == "counter"
    assert [one.times.tolist() for one in metrics.select("b")] == [[NOW - 1000]]


@pytest.mark.parametrize(
    ("scraped", "honor", "expected"),
    [
        ({"job": "a"}, False, {"job": "j", "exported_job": "a"}),
        ({"job": "a"}, True, {"job": "a"}),
        ({"job": ""}, False, {"job": "j"}),
        ({"job": ""}, True, {}),
        ({"job": "a", "exported_job": "b"}, False,
         {"job": "j", "exported_job": "b", "exported_exported_job": "a"}),
        ({"x": ""}, False, {"job": "j"}),
    ],
)  # fmt: skip
def test_labels_that_both_have(
    scraped: dict[str, str], honor: bool, expected: dict[str, str]
) -> None:
    assert labelled(scraped, {"job": "j"}, honor) == expected


def test_series_that_vanish_and_scrapes_that_fail_end_series(metrics: Metrics, sink: Sink) -> None:
    target = Target(job(), "h:1", sink)
    assert target.absorb(b"a 1\nb 1\nc 1 1700000000000\n", NOW) == (3, 2, None)
    assert target.absorb(b"b 2\n", NOW + 10) == (1, 0, None)
    assert target.absorb(b"a 3\nb 3\n", NOW + 20) == (2, 1, None)
    target.lost(NOW + 30)
    target.lost(NOW + 40)
    assert target.absorb(b"a 5\n", NOW + 50) == (1, 1, None)
    assert stored(metrics, '{job="j",__name__=~"[abc]"}') == {
        ("__name__=a",): [(0, 1.0), (10, STALE), (20, 3.0), (30, STALE), (50, 5.0)],
        ("__name__=b",): [(0, 1.0), (10, 2.0), (20, 3.0), (30, STALE)],
        ("__name__=c",): [(0, 1.0)],  # has a time of its own: no end
    }


def test_times_that_are_not_honoured(metrics: Metrics, sink: Sink) -> None:
    target = Target(job(honor_timestamps=False), "h:1", sink)
    target.absorb(b"c 1 1600000000000\n", NOW)
    target.absorb(b"", NOW + 10)
    assert stored(metrics, "c") == {("__name__=c",): [(0, 1.0), (10, STALE)]}


@pytest.mark.parametrize(
    ("body", "text"),
    [(b"b 1\na{ 2\n", "line 2: '{' is no number"), (b"b 1\nc 1\nd 1\n", "sample_limit"),
     (b"\xff", "not UTF-8")],
)  # fmt: skip
def test_an_answer_that_cannot_be_used_gives_nothing_and_ends_what_was(
    metrics: Metrics, sink: Sink, body: bytes, text: str
) -> None:
    target = Target(job(sample_limit=2), "h:1", sink)
    target.absorb(b"a 1\n", NOW)
    scraped, added, error = target.absorb(body, NOW + 10)
    assert (scraped, added) == (0, 0)
    assert text in str(error)
    assert stored(metrics, '{job="j",__name__=~"[abcd]"}') == {
        ("__name__=a",): [(0, 1.0), (10, STALE)]
    }


def test_each_scrape_is_reported(metrics: Metrics, sink: Sink) -> None:
    target = Target(job(), "h:1", sink)
    target.kept = 6
    target.report(NOW, 0.25, 7, 3, None)
    target.report(NOW + 10, 0.5, 0, 0, OSError("no route"))
    assert (target.health, target.last_error, target.last_seconds) == ("down", "no route", 0.5)
    assert stored(metrics, '{job="j",instance="h:1"}') == {
        ("__name__=up",): [(0, 1.0), (10, 0.0)],
        ("__name__=scrape_duration_seconds",): [(0, 0.25), (10, 0.5)],
        ("__name__=scrape_samples_scraped",): [(0, 7.0), (10, 0.0)],
        ("__name__=scrape_samples_post_metric_relabeling",): [(0, 6.0), (10, 0.0)],
        ("__name__=scrape_series_added",): [(0, 3.0), (10, 0.0)],
    }


def test_what_answers_no_longer_have_is_forgotten(sink: Sink) -> None:
    target = Target(job(), "h:1", sink)
    for round in range(5):
        body = "".join(f'a{{n="{round}.{number}"}} 1\n' for number in range(2 * SPARE_MIN))
        target.absorb(body.encode(), NOW + round)
        assert len(target._known) == len(target._handles) <= 5 * SPARE_MIN


@pytest.mark.parametrize(
    ("seconds", "text"), [(15, "15s"), (90, "1m30s"), (0.5, "500ms"), (86400, "1d"), (3600, "1h")]
)
def test_durations_are_told_as_prometheus_does(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


# Asking -------------------------------------------------------------------------------------


def scrape_once(settings: ScrapeSettings, sink: Sink) -> Scraper:
    scraper = Scraper([settings], sink, SYSTEM_CLOCK)

    async def once() -> None:
        await scraper.start()
        for target in scraper.targets:
            await scraper.scrape(target, NOW)
        await scraper.stop()

    asyncio.run(once())
    return scraper


def answering(reply: Reply) -> Any:
    return peer(lambda _: reply)


def test_a_target_is_asked_as_prometheus_asks(metrics: Metrics, sink: Sink) -> None:
    packed = gzip.compress(b"a_total 1\n# EOF\n")
    kind = "application/openmetrics-text; version=1.0.0; charset=utf-8"
    with answering(Reply(200, packed, {"Content-Type": kind, "Content-Encoding": "gzip"})) as one:
        settings = job(
            one.address, params={"module": ["x", "y"]}, metrics_path="/probe", username="u",
            password="p", headers={"X-Tenant": "t"}, scrape_interval=3600,
        )  # fmt: skip
        scraper = scrape_once(settings, sink)
    (asked,) = one.asked
    assert (asked.method, asked.path) == ("GET", "/probe?module=x&module=y")
    headers = {name.lower(): value for name, value in asked.headers.items()}
    assert headers["accept"].startswith("application/openmetrics-text")
    assert headers["x-prometheus-scrape-timeout-seconds"] == "10"
    assert headers["authorization"] == "Basic dTpw"
    assert headers["x-tenant"] == "t"
    assert headers["user-agent"].startswith("siltstone/")
    assert (scraper.scrapes, scraper.failures, scraper.targets[0].health) == (1, 0, "up")
    assert stored(metrics, "a_total") == {("__name__=a_total",): [(0, 1.0)]}
    assert metrics.list_series("up") == [{"__name__": "up", "instance": one.address, "job": "j"}]


@pytest.mark.parametrize(
    ("reply", "options", "text"),
    [
        (Reply(500, b"a 1\n"), {}, "the target answered 500 Internal Server Error"),
        (Reply(204), {}, "the target answered 204 No Content"),
        (Reply(200, b"a 1\n" * 1000), {"body_size_limit": "2KiB"}, "longer than 2048 bytes"),
        (Reply(200, b"a\n"), {}, "line 1: a sample without a value"),
        (Reply(200, b"xx", {"Content-Encoding": "gzip"}), {}, "decompress"),
        (Reply(302, b"", {"Location": "/metrics"}), {}, "redirects"),
    ],
)
def test_bad_answers(
    metrics: Metrics, sink: Sink, reply: Reply, options: dict[str, Any], text: str
) -> None:
    with answering(reply) as one:
        scraper = scrape_once(job(one.address, scrape_interval=3600, **options), sink)
    (target,) = scraper.targets
    assert target.health == "down"
    assert text in target.last_error
    assert stored(metrics, "up") == {("__name__=up",): [(0, 0.0)]}
    assert scraper.failures == 1


def test_a_target_that_does_not_answer(sink: Sink, free_port: Any) -> None:
    release = threading.Event()

    def late(_: Asked) -> Reply:
        release.wait(20)
        return Reply(200, b"a 1\n")

    with peer(late) as one:
        scraper = scrape_once(job(one.address, scrape_interval=3600, scrape_timeout=0.1), sink)
        release.set()
    assert scraper.targets[0].last_error == "no whole answer within scrape_timeout (0.1 s)"
    scraper = scrape_once(job(f"127.0.0.1:{free_port()}", scrape_interval=3600), sink)
    assert "connect" in scraper.targets[0].last_error.lower()


@pytest.mark.skipif(not shutil.which("openssl"), reason="needs Debian's package openssl")
def test_certificates_are_checked(sink: Sink, tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    words = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
    words += f" -subj /CN=test -addext subjectAltName=IP:127.0.0.1 -keyout {key} -out {certificate}"
    subprocess.run(words.split(), check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with peer(lambda _: Reply(200, b"a 1\n"), context) as one:
        for options, health in (
            ({}, "down"),
            ({"tls_ca": certificate}, "up"),
            ({"tls_verify": False}, "up"),
        ):
            chosen = job(one.address, scheme="https", scrape_interval=3600, **options)
            (target,) = scrape_once(chosen, sink).targets
            assert target.health == health, target.last_error
            assert ("certificate" in target.last_error.lower()) == (health == "down")
    assert len(one.asked) == 2


def test_targets_are_asked_again_and_again_and_all_are_told(metrics: Metrics, sink: Sink) -> None:
    with answering(Reply(200, b"a 1\n")) as good, answering(Reply(503)) as bad:
        settings = job(good.address, bad.address, scrape_interval=0.1)
        scraper = Scraper([settings], sink, SYSTEM_CLOCK)
        thread = LoopThread([scraper])
        thread.start()
        good.wait_for(4)  # the last of them may not be stored
        bad.wait_for(4)
        thread.stop()
        with TestClient(application(scraper.routes())) as client:
            data = client.get("/api/v1/targets?state=active").json()["data"]
            assert client.get("/api/v1/targets?state=dropped").json()["data"] == {
                "activeTargets": [],
                "droppedTargets": [],
            }
    first, second = data["activeTargets"]
    assert (first["health"], first["lastError"]) == ("up", "")
    assert (second["health"], second["lastError"]) == (
        "down", "the target answered 503 Service Unavailable",
    )  # fmt: skip
    assert first["scrapePool"] == "j"
    assert first["scrapeUrl"] == f"http://{good.address}/metrics"
    assert first["labels"] == {"instance": good.address, "job": "j"}
    assert (first["scrapeInterval"], first["scrapeTimeout"]) == ("100ms", "100ms")
    assert first["lastScrape"].endswith("Z")
    (series,) = metrics.select("a")
    assert len(series.times) >= 3
    numbers = {one.name: one.value for one in scraper.samples() if not one.labels}
    assert numbers["siltstone_scrapes_total"] >= 6
    assert numbers["siltstone_scrapes_failed_total"] >= 3


def test_a_full_disk_ends_no_scraping(
    metrics: Metrics, sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = [2]
    write = sink.write

    def full(*arguments: Any, **more: Any) -> int:
        if left[0]:
            left[0] -= 1
            raise (DeviceFailed(28, "no space left") if left[0] else ZeroDivisionError())
        return write(*arguments, **more)

    monkeypatch.setattr(sink, "write", full)
    with answering(Reply(200, b"a 1\n")) as one:
        thread = LoopThread([Scraper([job(one.address, scrape_interval=0.1)], sink, SYSTEM_CLOCK)])
        thread.start()
        one.wait_for(4)
        thread.stop()
    assert stored(metrics, "a")


@given(
    st.integers(0, 10**13), st.integers(100, 10**6), st.integers(0, 10**6), st.integers(0, 10**13)
)
def test_ticks(now: int, interval: int, offset: int, last: int) -> None:
    due = next_tick(now, interval, offset, last)
    assert due > now
    assert due <= now + 2 * interval
    assert (due - offset) % interval == 0 or due == last + interval
    if last < now + interval:
        assert due > last


def test_a_tick_is_not_taken_twice_when_the_sleep_ends_early() -> None:
    assert next_tick(999, 1000, 0, 0) == 1000
    assert next_tick(999, 1000, 0, 1000) == 2000
    assert next_tick(5000, 1000, 0, 1000) == 6000  # late: those between are left out
    assert next_tick(5000, 1000, 0, 900_000) == 6000  # the clock went back
    assert LATE_MS_MAX < 100  # the shortest interval


# Settings -----------------------------------------------------------------------------------

TOML = """
[[scrape]]
job_name = "node"
targets = ["localhost:9100", "[::1]:9100", "plain"]
scrape_interval = "1m"
labels = { rack = "a" }
"""


def test_jobs_are_read_from_a_file(tmp_path: Any) -> None:
    file = tmp_path / "siltstone.toml"
    file.write_text(TOML)
    (node,) = load([ScrapeSettings], file=file)["scrape"]
    assert (node.scrape_interval, node.scrape_timeout) == (60.0, 10.0)
    assert [node.place_of(target).url for target in node.targets] == [
        "http://localhost:9100/metrics",
        "http://[::1]:9100/metrics",
        "http://plain:80/metrics",
    ]
    assert load([ScrapeSettings])["scrape"] == ()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[scrape]\njob_name='a'", "scrape is a list: write [[scrape]]"),
        (TOML + TOML, "two [[scrape]] with job_name 'node'"),
        ("[[scrape]]\ntargets=['a:1']", "job_name: each job needs a name"),
        ("[[scrape]]\njob_name='a'", "targets: nothing to scrape"),
        ("[[scrape]]\njob_name='a'\ntargets='a:1'", "'a:1' is no list of targets"),
        ("[[scrape]]\njob_name='a'\ntargets=['http://a/m']", "write host:port; scheme and"),
        ("[[scrape]]\njob_name='a'\ntargets=['a:x']", "'x' is no port"),
        ("[[scrape]]\njob_name='a'\ntargets=[':80']", "is no target: write host:port"),
        ("[[scrape]]\njob_name='a'\ntargets=['a:1','a:1']", "the target 'a:1' twice"),
        ("[[scrape]]\njob_name='a'\ntargets=['a:1']\nscrape_timeout='20s'", "use 15s or less"),
        ("[[scrape]]\njob_name='a'\ntargets=['a:1']\nmetrics_path='m'", "begin with a slash"),
        ("[[scrape]]\njob_name='a'\ntargets=['a:1']\nscheme='ftp'", "use one of"),
        ("[[scrape]]\njob_name='a'\ntargets=['a:1']\nlabels={'a-b'='c'}", "no name that a label"),
        ("[[scrape]]\njob_name='a'\ntargets=['a:1']\nlabels={a=1}", "not a text"),
        ("[[scrape]]\njob_name='a'\ntargets=['a:1']\ninterval=1", "did you mean 'scrape_interval'"),
        ("[[scrape]]\njob_name='a'\ntargets=['a:1']\nheaders={'a b'='c'}", "none that HTTP can"),
        ("[[scrape]]\njob_name='a'\ntargets=['a:1']\nparams=3", "are no parameters"),
    ],
)
def test_jobs_that_make_no_sense(tmp_path: Any, text: str, expected: str) -> None:
    file = tmp_path / "siltstone.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load([ScrapeSettings], file=file)
    assert expected in str(caught.value)
    assert str(file) in str(caught.value)


def test_certificates_that_cannot_be_read(sink: Sink, tmp_path: Any) -> None:
    with pytest.raises(ConfigError, match="tls_ca"):
        scrape_once(job("h:1", scheme="https", tls_ca=tmp_path / "none.pem"), sink)


def test_a_service_that_cannot_start_stops_those_before_it() -> None:
    events = []

    class Good:
        async def start(self) -> None:
            events.append("start")

        async def stop(self) -> None:
            events.append("stop")
            raise ValueError("is logged")

    class Bad:
        async def start(self) -> None:
            raise ConfigError("no")

        async def stop(self) -> None:
            events.append("never")

    with pytest.raises(ConfigError, match="no"):
        LoopThread([Good(), Bad()]).start()
    assert events == ["start", "stop"]
    LoopThread([]).stop()  # never started
