"""Relabelling: each action, the rules of scrape jobs, and Debian's prometheus beside it."""

from __future__ import annotations

import json
import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from httprig import Reply, peer
from prometheusrig import prometheus
from starlette.testclient import TestClient

from siltstone.clock import SYSTEM_CLOCK
from siltstone.config import load, shown
from siltstone.errors import ConfigError
from siltstone.metrics.metrics import Metrics
from siltstone.serve.http import application
from siltstone.serve.relabelling import RULES, Rule, relabelled
from siltstone.serve.scrape_settings import ScrapeSettings
from siltstone.serve.scraping import Scraper
from siltstone.serve.sink import Sink
from siltstone.serve.target import Target

NOW = 1_700_000_000_000
GIVEN = {"__name__": "m", "a": "foo", "b": "bar", "c": "Baz", "__meta_d_x": "1"}

# (rules, what becomes of GIVEN: changed labels, None for gone; None: all is dropped)
CASES: list[tuple[list[dict[str, Any]], Mapping[str, str | None] | None]] = [
    ([{"source_labels": ["a"], "regex": "f(.*)", "target_label": "d", "replacement": "x$1-${1}"}],
     {"d": "xoo-oo"}),
    ([{"source_labels": ["a", "b"], "regex": "f(.*);(.*)r", "target_label": "a",
       "replacement": "b${1}${2}m"}], {"a": "boobam"}),
    ([{"source_labels": ["a", "b"], "separator": "", "target_label": "d"}], {"d": "foobar"}),
    ([{"source_labels": ["a"], "regex": "o+", "target_label": "d", "replacement": "x"}], {}),
    ([{"source_labels": ["a"], "target_label": "b", "replacement": ""}], {"b": None}),
    ([{"source_labels": ["none"], "target_label": "b"}], {"b": None}),
    ([{"target_label": "d", "replacement": "a$$b$9c${nope}$-"}], {"d": "a$b$-"}),
    ([{"source_labels": ["a"], "regex": "(?P<one>.)(.*)", "target_label": "l_${one}",
       "replacement": "$2$one"}], {"l_f": "oof"}),
    ([{"source_labels": ["__meta_d_x"], "regex": "(.*)", "target_label": "${1}",
       "replacement": "x"}], {}),
    ([{"source_labels": ["a"], "regex": "foo", "action": "keep"}], {}),
    ([{"source_labels": ["a"], "regex": "fo", "action": "keep"}], None),
    ([{"source_labels": ["a"], "regex": ".*o.*", "action": "drop"}], None),
    ([{"source_labels": ["a"], "regex": "o", "action": "drop"}], {}),
    ([{"source_labels": ["c"], "target_label": "d", "action": "lowercase"}], {"d": "baz"}),
    ([{"source_labels": ["c"], "target_label": "c", "action": "Uppercase"}], {"c": "BAZ"}),
    ([{"source_labels": ["a"], "target_label": "d", "action": "hashmod", "modulus": 1000}],
     {"d": "696"}),
    ([{"regex": "__meta_(.*)", "action": "labelmap"}], {"d_x": "1"}),
    ([{"regex": "(a|b)", "replacement": "n_${1}", "action": "labelmap"}],
     {"n_a": "foo", "n_b": "bar"}),
    ([{"regex": "[ab]", "action": "labeldrop"}], {"a": None, "b": None}),
    ([{"regex": "[ab]|__name__", "action": "labelkeep"}], {"c": None, "__meta_d_x": None}),
    ([{"source_labels": ["a"], "target_label": "b", "action": "keepequal"}], None),
    ([{"source_labels": ["a"], "target_label": "b", "action": "dropequal"}], {}),
    ([{"source_labels": ["a"], "target_label": "d"},
      {"source_labels": ["d"], "target_label": "a", "action": "keepequal"},
      {"regex": "d", "action": "labeldrop"}], {}),
]  # fmt: skip


def wanted_of(changes: Mapping[str, str | None]) -> dict[str, str]:
    return {name: value for name, value in (GIVEN | dict(changes)).items() if value is not None}


def rules_of(*rules: Mapping[str, Any]) -> tuple[Rule, ...]:
    found: tuple[Rule, ...] = RULES.parse(list(rules))
    return found


@pytest.mark.parametrize(("rules", "changes"), CASES)
def test_what_becomes_of_labels(rules: list[dict[str, Any]], changes: Any) -> None:
    found = relabelled(GIVEN, rules_of(*rules))
    assert found == (None if changes is None else wanted_of(changes))


def test_nothing_is_changed_without_rules_but_empty_labels_go() -> None:
    assert relabelled({"a": "", "b": "1"}, ()) == {"b": "1"}


@pytest.mark.parametrize(
    ("rule", "problem"),
    [
        ({"action": "relabel"}, "there is no action 'relabel'"),
        ({"regex": "("}, "the regex '(': invalid regular expression"),
        ({}, "the action replace needs a target_label"),
        ({"target_label": "a-b"}, "'a-b' is no target_label"),
        ({"target_label": "${1}-"}, "'${1}-' is no target_label"),
        ({"action": "hashmod", "target_label": "a"}, "needs a modulus of 1 or more"),
        ({"action": "hashmod", "target_label": "$1", "modulus": 2}, "no name of a label"),
        ({"action": "lowercase", "source_labels": ["a"]}, "lowercase needs a target_label"),
        ({"action": "labelmap", "replacement": "-$1"}, "makes no name of a label"),
        ({"action": "labeldrop", "source_labels": ["a"]}, "labeldrop takes no source_labels"),
        ({"action": "keepequal", "target_label": "a", "regex": "b"}, "keepequal takes no regex"),
        ({"regexp": "a"}, "there is no 'regexp' in one, did you mean 'regex'?"),
        ({"source_labels": "a"}, "source_labels is 'a', not a list"),
        ({"source_labels": ["a-b"]}, "names of labels"),
        ({"modulus": "2"}, "modulus is '2', not a int"),
        ({"replacement": 3}, "replacement is 3, not a str"),
        ("drop", "'drop' is none"),
    ],
)
def test_rules_that_make_no_sense(rule: Any, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        RULES.parse([{"action": "labeldrop", "regex": "a"}, rule])
    assert str(caught.value).startswith("rule 2: ")
    assert problem in str(caught.value)


@pytest.mark.parametrize("value", ["drop", {"action": "drop"}, 3])
def test_what_is_no_list_of_rules(value: Any) -> None:
    with pytest.raises(ConfigError, match="are no rules"):
        RULES.parse(value)


# Jobs ---------------------------------------------------------------------------------------


PROBE = """
[[scrape]]
job_name = "probe"
targets = ["a.example:80", "b.example:80", "gone:1"]
metrics_path = "/probe"
params = { module = ["icmp"] }
labels = { rack = "r", __hint = "x" }
"""
PROBE_RULES = """
[[scrape.relabel_configs]]
source_labels = ["__address__"]
target_label = "__param_target"

[[scrape.relabel_configs]]
source_labels = ["__param_target"]
target_label = "instance"

[[scrape.relabel_configs]]
source_labels = ["__address__"]
regex = "gone.*"
action = "drop"

[[scrape.relabel_configs]]
target_label = "__address__"
replacement = "prober"
"""


def test_a_prober_is_asked_about_its_targets(sink: Sink, tmp_path: Path) -> None:
    """The usual rules for the blackbox exporter, as TOML."""
    file = tmp_path / "siltstone.toml"
    file.write_text(PROBE.replace(', __hint = "x"', "") + PROBE_RULES)
    jobs = load([ScrapeSettings], file=file)["scrape"]
    scraper = Scraper(jobs, sink, SYSTEM_CLOCK)
    assert [one.url for one in scraper.targets] == [
        "http://prober:80/probe?module=icmp&target=a.example%3A80",
        "http://prober:80/probe?module=icmp&target=b.example%3A80",
    ]
    assert scraper.targets[0].labels == {"job": "probe", "instance": "a.example:80", "rack": "r"}
    with TestClient(application(scraper.routes())) as client:
        data = client.get("/api/v1/targets").json()["data"]
        assert client.get("/api/v1/targets?state=active").json()["data"]["droppedTargets"] == []
    (dropped,) = data["droppedTargets"]
    assert dropped["discoveredLabels"]["__address__"] == "gone:1"
    assert dropped["discoveredLabels"]["__param_module"] == "icmp"
    assert "action='drop'" in shown(jobs[0])["relabel_configs"]


def test_targets_that_rules_make_the_same_are_asked_once(sink: Sink) -> None:
    rules = [{"target_label": "__address__", "replacement": "one:1"}]
    job = ScrapeSettings(job_name="j", targets=("a:1", "b:1"), relabel_configs=rules_of(*rules))
    assert [one.labels for one in Scraper([job], sink, SYSTEM_CLOCK).targets] == [
        {"instance": "one:1", "job": "j"}
    ]


@pytest.mark.parametrize(
    ("rule", "problem"),
    [
        ({"target_label": "__address__", "replacement": "a/b"}, "h:1 becomes none: 'a/b'"),
        ({"target_label": "__address__", "replacement": ""}, "h:1 becomes none: '' is no target"),
        ({"target_label": "__scheme__", "replacement": "ftp"}, "becomes ftp://h:1/metrics"),
        ({"target_label": "__metrics_path__", "replacement": "x"}, "becomes http://h:1x"),
        ({"target_label": "__scrape_interval__", "replacement": "1s"}, "is the job's"),
    ],
)
def test_targets_that_rules_spoil(rule: dict[str, str], problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ScrapeSettings(job_name="j", targets=("h:1",), relabel_configs=rules_of(rule))
    assert problem in str(caught.value)


# What was scraped ---------------------------------------------------------------------------


BODY = b'm{a="1"} 1\nm{a="2"} 2\nnoise 3\n'
METRIC_RULES = [
    {"source_labels": ["__name__"], "regex": "noise", "action": "drop"},
    {"source_labels": ["a"], "target_label": "b", "replacement": "x$1"},
    {"regex": "a", "action": "labeldrop"},
]


def scraped(sink: Sink, rules: list[dict[str, Any]], **options: Any) -> Target:
    settings = ScrapeSettings(
        job_name="j", targets=("h:1",), metric_relabel_configs=rules_of(*rules), **options
    )
    return Target(settings, "h:1", sink)


def test_samples_are_rewritten_or_dropped_and_reports_are_not(metrics: Metrics, sink: Sink) -> None:
    target = scraped(sink, METRIC_RULES, sample_limit=2)
    for turn in range(2):
        now = NOW + 1000 * turn
        found, added, error = target.absorb(BODY, now)
        assert (found, added, error) == (3, 2 - 2 * turn, None)
        target.report(now, 0.1, found, added, error)
    assert [one["b"] for one in metrics.list_series("m")] == ["x1", "x2"]
    assert metrics.list_series("noise") == []
    (kept,) = metrics.select("scrape_samples_post_metric_relabeling")
    (every,) = metrics.select("scrape_samples_scraped")
    assert (kept.values.tolist(), every.values.tolist()) == ([2.0, 2.0], [3.0, 3.0])
    target.lost(NOW + 2000)
    target.report(NOW + 2000, 0.1, 0, 0, OSError("gone"))
    (kept,) = metrics.select("scrape_samples_post_metric_relabeling")
    assert kept.values[-1] == 0


def test_the_limit_counts_what_is_left(sink: Sink) -> None:
    _, _, error = scraped(sink, METRIC_RULES, sample_limit=1).absorb(BODY, NOW)
    assert "2 samples: sample_limit allows 1" in str(error)


def test_a_sample_without_a_name_fails_the_scrape(metrics: Metrics, sink: Sink) -> None:
    rules = [{"regex": "__name__", "action": "labeldrop"}]
    found, _, error = scraped(sink, rules).absorb(BODY, NOW)
    assert found == 0
    assert "leave no name" in str(error)
    assert metrics.list_series('{a="1"}') == []


# Beside Prometheus --------------------------------------------------------------------------


def test_beside_prometheus(tmp_path: Path) -> None:
    """Every case as a job of its own over the same answer: the same label sets."""
    given = ",".join(f'{name}="{value}"' for name, value in GIVEN.items() if name != "__name__")
    body = f"m{{{given}}} 1\n".encode()
    with peer(lambda asked: Reply(body=body, headers={"Content-Type": "text/plain"})) as exporter:
        jobs = [
            {
                "job_name": f"case{number}",
                "scrape_interval": "1s",
                "scrape_timeout": "1s",
                "static_configs": [{"targets": [exporter.address]}],
                "metric_relabel_configs": rules,
            }
            for number, (rules, _) in enumerate(CASES)
        ]
        config = json.dumps({"scrape_configs": jobs})  # JSON is YAML
        with prometheus(tmp_path, config=config) as judge:
            match = urllib.parse.quote('{__name__=~".+",job=~"case.*"}')
            wait = f"/api/v1/query?query=count(scrape_samples_scraped==1)=={len(CASES)}"
            while not json.loads(judge.get(wait))["data"]["result"]:
                exporter.wait_for(len(exporter.asked) + 1)
            answer = json.loads(judge.get(f"/api/v1/series?match[]={match}"))["data"]
    reports = ("up", "scrape_")
    theirs: dict[str, dict[str, str]] = {}
    for labels in answer:
        if not labels["__name__"].startswith(reports):
            own = {name: text for name, text in labels.items() if name not in ("job", "instance")}
            theirs[labels["job"]] = own
    for number, (rules, _) in enumerate(CASES):
        labels = GIVEN | {"job": f"case{number}", "instance": exporter.address}
        ours = relabelled(labels, rules_of(*rules))
        if ours is not None:
            ours = {name: text for name, text in ours.items() if name not in ("job", "instance")}
        if "labelkeep" in str(rules):  # it takes the job, too: there is nothing to find it by
            continue
        assert theirs.get(f"case{number}") == ours, rules
