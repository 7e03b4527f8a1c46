"""Targets from groups and files: what is read, what is refused, and what a change does."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from httprig import Reply, peer
from prometheusrig import prometheus, wait_until
from starlette.testclient import TestClient

from siltstone.clock import SYSTEM_CLOCK
from siltstone.config import load
from siltstone.errors import ConfigError
from siltstone.metrics.metrics import Metrics
from siltstone.metrics.source import STALE_NAN_BITS
from siltstone.serve import discovery
from siltstone.serve.discovery import FileDiscovery, Group, TargetFiles, groups_of
from siltstone.serve.http import application
from siltstone.serve.loop import LoopThread
from siltstone.serve.scrape_settings import ScrapeSettings
from siltstone.serve.scraping import Scraper
from siltstone.serve.sink import Sink

GROUPS = """
- targets: ["b:2", 'c:3']
  labels: {rack: 7, on: yes, empty: ""}
- targets:
  - d:4
  labels:
"""


def files(*patterns: Any, **options: Any) -> TargetFiles:
    return TargetFiles([FileDiscovery(tuple(map(str, patterns)), **options)])


def put(file: Path, *groups: dict[str, Any]) -> None:
    """As a whole, so that nobody reads half of it."""
    fresh = file.with_suffix(".new")
    fresh.write_text(json.dumps(groups))
    os.replace(fresh, file)


# Files --------------------------------------------------------------------------------------


def test_json_and_yaml_say_the_same() -> None:
    rack = {"rack": "7", "on": "yes", "empty": ""}
    data = [{"targets": ["b:2", "c:3"], "labels": rack}, {"targets": ["d:4"], "labels": None}]
    for name, text in (("a.json", json.dumps(data)), ("a.yml", GROUPS)):
        assert groups_of(name, text.encode()) == (
            Group(("b:2", "c:3"), {"__meta_filepath": name, **rack}),
            Group(("d:4",), {"__meta_filepath": name}),
        )
    assert groups_of("a.yaml", b"") == groups_of("a.json", b"[]") == ()


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.json", '[{"targets": ["a:1"]', "truncated"),
        ("a.json", '{"targets": ["a:1"]}', "are no groups"),
        ("a.json", '["a:1"]', "'a:1' is none"),
        ("a.json", '[{"target": ["a:1"]}]', "there is no 'target' in one, did you mean 'targets'"),
        ("a.json", '[{"targets": "a:1"}]', "'a:1' are no targets"),
        ("a.json", '[{"targets": [1]}]', "1 is no text"),
        ("a.json", '[{"targets": ["a:1"], "labels": {"a-b": "c"}}]', "'a-b': 'c' is no label"),
        ("a.json", '[{"targets": ["a:1"], "labels": {"a": 1}}]', "'a': 1 is no label"),
        ("a.json", '[{"targets": ["a:1"], "labels": ["a"]}]', "are no labels"),
        ("a.json", b"\xff", ""),
        ("a.yml", "a: [", "line 1"),
        ("a.yml", "- !!python/object/apply:os.system [true]", "is none"),
        ("a.yml", b"\xff\xff\xff", ""),
    ],
)
def test_files_that_make_no_sense(name: str, text: str | bytes, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        groups_of(name, text if isinstance(text, bytes) else text.encode())
    assert expected in str(caught.value)


def test_what_is_read_again_and_what_counts_on(tmp_path: Path) -> None:
    found = files(tmp_path / "*.json", tmp_path / "one.yml")
    assert not found.look()
    put(tmp_path / "b.json", {"targets": ["b:1"]})
    (tmp_path / "one.yml").write_text("- targets: [y:1]")
    (tmp_path / "other.yml").write_text("- targets: [z:1]")
    assert found.look()
    assert [one.targets for one in found.groups] == [("b:1",), ("y:1",)]
    assert not found.look()
    (tmp_path / "b.json").write_text("[{")
    assert not found.look()
    assert not found.look()
    assert found.failures == 1  # once a change
    assert [one.targets for one in found.groups] == [("b:1",), ("y:1",)]
    put(tmp_path / "b.json", {"targets": ["b:2"], "labels": {"a": "b"}})
    (tmp_path / "one.yml").unlink()
    assert found.look()
    file = str(tmp_path / "b.json")
    assert found.groups == [Group(("b:2",), {"__meta_filepath": file, "a": "b"})]
    (tmp_path / "b.json").unlink()
    assert found.look()
    assert found.groups == []


def test_files_that_are_none_or_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder.json").mkdir()
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "long.json").write_text("[]" + " " * 100)
    monkeypatch.setattr(discovery, "FILE_BYTES_MAX", 100)
    found = files(tmp_path / "*.json")
    assert not found.look()
    assert found.failures == 3


def test_how_often_files_are_looked_at() -> None:
    assert files("a.json").look_seconds == 5
    assert files("a.json", refresh_interval=0.5).look_seconds == 0.5


# Settings -----------------------------------------------------------------------------------

TOML = """
[[scrape]]
job_name = "a"
labels = { env = "test", rack = "none" }
static_configs = [{ targets = ["a:1"], labels = { rack = "1", __metrics_path__ = "/m" } }]
file_sd_configs = [{ files = ["targets/*.json", "b.yml"], refresh_interval = "1m" }]
"""


def loaded(tmp_path: Path, text: str) -> ScrapeSettings:
    file = tmp_path / "siltstone.toml"
    file.write_text(text)
    (found,) = load([ScrapeSettings], file=file)["scrape"]
    assert isinstance(found, ScrapeSettings)
    return found


def test_groups_and_files_are_read_from_settings(tmp_path: Path) -> None:
    found = loaded(tmp_path, TOML)
    assert found.file_sd_configs == (FileDiscovery(("targets/*.json", "b.yml"), 60.0),)
    (_, group) = found.groups
    place = found.place_of("a:1", group.labels)
    assert place is not None
    assert place.url == "http://a:1/m"
    assert place.labels == {"instance": "a:1", "job": "a", "env": "test", "rack": "1"}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("static_configs = ['a:1']", "'a:1' is none"),
        ("static_configs = [{targets = ['http://a']}]", "write host:port"),
        ("static_configs = [{targets = ['a:1'], labels = {__scheme__ = 'ftp'}}]", "becomes ftp"),
        ("static_configs = [{targets = ['a:1'], labels = {__scrape_interval__ = '1s'}}]",
         "make a job of its own"),
        ("file_sd_configs = [{}]", "names no files"),
        ("file_sd_configs = [{files = ['a.toml']}]", "a .json, .yml or .yaml"),
        ("file_sd_configs = [{files = ['*/a.json']}]", "in its last part"),
        ("file_sd_configs = [{files = ['a.json'], refresh_interval = 0}]", "more than 0"),
        ("file_sd_configs = 'a.json'", "are no file_sd_configs"),
    ],
)  # fmt: skip
def test_settings_that_make_no_sense(tmp_path: Path, line: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, f"[[scrape]]\njob_name = 'a'\n{line}\n")
    assert expected in str(caught.value)


# Targets that come and go -------------------------------------------------------------------


@pytest.fixture
def scraping(sink: Sink) -> Iterator[Any]:
    """Starts a scraper of these jobs; (it, its thread)."""
    threads = []

    def start(*jobs: ScrapeSettings) -> tuple[Scraper, LoopThread]:
        scraper = Scraper(jobs, sink, SYSTEM_CLOCK)
        threads.append(LoopThread([scraper]))
        threads[-1].start()
        return scraper, threads[-1]

    yield start
    for thread in threads:
        thread.stop()


def ended(metrics: Metrics, match: str) -> list[bool]:
    """Of each series, whether a staleness marker is its last sample."""
    return [int(one.values.view("u8")[-1]) == STALE_NAN_BITS for one in metrics.select(match)]


def test_targets_of_files_come_change_and_go(
    tmp_path: Path, metrics: Metrics, scraping: Any
) -> None:
    file = tmp_path / "a.json"
    with peer(lambda _: Reply(200, b"a 1\n")) as one, peer(lambda _: Reply(200, b"b 1\n")) as two:
        put(file, {"targets": [one.address]})
        job = ScrapeSettings(
            job_name="j", file_sd_configs=[{"files": [str(file)]}], scrape_interval=0.1
        )
        scraper, thread = scraping(job)
        one.wait_for(2)
        (kept,) = scraper.targets
        bad = "no://target"
        put(file, {"targets": [one.address, bad]}, {"targets": [two.address], "labels": {"x": "y"}})
        thread.call(scraper.look())
        assert scraper.targets[0] is kept
        assert scraper.targets[1].labels == {"instance": two.address, "job": "j", "x": "y"}
        two.wait_for(2)
        put(file, {"targets": [two.address], "labels": {"x": "y"}})
        thread.call(scraper.look())
        count = len(one.asked)
        two.wait_for(len(two.asked) + 2)
        assert len(one.asked) == count
        assert ended(metrics, f'{{instance="{one.address}"}}') == [True] * 6
        assert ended(metrics, "b") == [False]


def test_jobs_change_while_their_series_go_on(metrics: Metrics, scraping: Any) -> None:
    with peer(lambda _: Reply(200, b"a 1\nb 1\n")) as one:
        quiet = ScrapeSettings(job_name="quiet", targets=["127.0.0.1:1"], scrape_interval=3600)
        job = ScrapeSettings(job_name="j", targets=[one.address], scrape_interval=0.1)
        scraper, thread = scraping(quiet, job)
        one.wait_for(2)
        kept = scraper.targets[0]
        drop = [{"source_labels": ["__name__"], "regex": "b", "action": "drop"}]
        other = ScrapeSettings(
            job_name="j", targets=[one.address], scrape_interval=0.1, metric_relabel_configs=drop
        )
        thread.call(scraper.reload([quiet, other]))
        assert scraper.targets[0] is kept
        one.wait_for(len(one.asked) + 3)
        assert ended(metrics, "a") == [False]
        assert ended(metrics, "b") == [True]
        (series,) = metrics.select("a")
        assert STALE_NAN_BITS not in series.values.view("u8")
        thread.call(scraper.reload([quiet]))
        assert scraper.targets == [kept]
        assert ended(metrics, '{job="j"}') == [True] * 7
        with pytest.raises(ConfigError, match="tls_ca"):
            thread.call(
                scraper.reload([ScrapeSettings(job_name="x", targets=["x:1"], tls_ca="/none")])
            )
        assert scraper.targets == [kept]


def test_what_targets_tell_of_their_metrics(sink: Sink) -> None:
    job = ScrapeSettings(job_name="j", targets=["a:1", "b:2", "c:3"])
    scraper = Scraper([job], sink, SYSTEM_CLOCK)
    for target in scraper.targets[:2]:
        target.absorb(b"# TYPE x counter\n# HELP x Of all.\nx 1\n# TYPE y gauge\ny 1\n", 1000)
    of = {"instance": "a:1", "job": "j"}
    x = {"target": of, "type": "counter", "help": "Of all.", "unit": ""}
    y = {"target": of, "metric": "y", "type": "gauge", "help": "", "unit": ""}
    with TestClient(application(scraper.routes())) as client:

        def told(**asked: Any) -> Any:
            answer = client.get("/api/v1/targets/metadata", params=asked)
            assert answer.status_code == 200, answer.text
            return answer.json()["data"]

        assert told(match_target='{instance="a:1"}') == [{**x, "metric": "x"}, y]
        assert told(metric="x", limit=1) == [x]
        assert len(told(metric="x")) == 2
        assert len(told()) == len(told(limit=-1)) == 4
        assert told(limit=0) == told(metric="z") == told(match_target="x") == []
        for asked in ({"limit": "x"}, {"match_target": "{"}, {"match_target": "rate(x[5m])"}):
            answer = client.get("/api/v1/targets/metadata", params=asked)
            assert (answer.status_code, answer.json()["errorType"]) == (400, "bad_data")


# Prometheus ---------------------------------------------------------------------------------

CONFIG = """
global: {{scrape_interval: 1h}}
scrape_configs:
- job_name: j
  static_configs:
  - targets: ["127.0.0.1:1"]
    labels: {{rack: "1", __metrics_path__: /m}}
  file_sd_configs:
  - files: ["{folder}/*.json", "{folder}/a.yml"]
  relabel_configs:
  - source_labels: [__meta_filepath]
    regex: .*/(.*)
    target_label: file
  - source_labels: [drop]
    regex: "yes"
    action: drop
"""
RELABELLING = [
    {"source_labels": ["__meta_filepath"], "regex": ".*/(.*)", "target_label": "file"},
    {"source_labels": ["drop"], "regex": "yes", "action": "drop"},
]


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not installed")
@pytest.mark.slow
def test_prometheus_finds_the_same_targets(tmp_path: Path, sink: Sink) -> None:
    folder = tmp_path / "targets"
    folder.mkdir()
    put(folder / "one.json", {"targets": ["127.0.0.1:2"], "labels": {"drop": "yes"}},
        {"targets": ["127.0.0.1:3", "localhost:4"], "labels": {"__scheme__": "https"}})  # fmt: skip
    (folder / "a.yml").write_text(GROUPS.replace("yes", "no"))
    (folder / "bad.json").write_text('[{"targets": ["127.0.0.1:5"]')
    job = ScrapeSettings(
        job_name="j", scrape_interval=3600, scrape_timeout=10, relabel_configs=RELABELLING,
        static_configs=[
            {"targets": ["127.0.0.1:1"], "labels": {"rack": "1", "__metrics_path__": "/m"}}
        ],
        file_sd_configs=[{"files": [f"{folder}/*.json", f"{folder}/a.yml"]}],
    )  # fmt: skip
    ours = Scraper([job], sink, SYSTEM_CLOCK)
    with prometheus(tmp_path, config=CONFIG.format(folder=folder)) as theirs:

        def active() -> Any:
            return json.loads(theirs.get("/api/v1/targets"))["data"]

        wait_until(lambda: len(active()["activeTargets"]) == 6, "its targets never came")
        found = active()
    assert {one.url: (one.labels, _known(one.discovered)) for one in ours.targets} == {
        one["scrapeUrl"]: (one["labels"], _known(one["discoveredLabels"]))
        for one in found["activeTargets"]
    }
    assert ours.dropped == [one["discoveredLabels"] for one in found["droppedTargets"]]


def _known(discovered: dict[str, str]) -> dict[str, str]:
    """2.42 tells `file`, which the rules made, in the place of `job`."""
    return {name: text for name, text in discovered.items() if name not in ("job", "file")}


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not installed")
@pytest.mark.slow
def test_prometheus_tells_the_same_of_metrics(tmp_path: Path, metrics: Metrics, sink: Sink) -> None:
    body = b"# TYPE x counter\n# HELP x Of all.\nx 1\n# TYPE y gauge\ny 1\nz 1\n"
    with peer(lambda _: Reply(200, body, {"Content-Type": "text/plain; version=0.0.4"})) as one:
        job = ScrapeSettings(job_name="j", targets=[one.address])
        ours = Scraper([job], sink, SYSTEM_CLOCK)
        ours.targets[0].absorb(body, 1000)
        config = (
            "scrape_configs: [{job_name: j, scrape_interval: 100ms, scrape_timeout: 100ms, "
            f'static_configs: [{{targets: ["{one.address}"]}}]}}]'
        )
        with prometheus(tmp_path, config=config) as theirs:

            def told() -> Any:
                return json.loads(theirs.get("/api/v1/targets/metadata"))["data"]

            wait_until(lambda: bool(told()), "it never told")
            found = sorted(told(), key=lambda one: one["metric"])
            only = json.loads(theirs.get("/api/v1/targets/metadata?metric=x"))["data"]
    assert ours.targets[0].about_metrics() == found
    assert ours.targets[0].about_metrics("x") == only
