"""Settings that are read again while the server runs: what changes, what does not, who is told."""

from __future__ import annotations

import http.client
import json
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from httprig import Reply, peer
from prometheusrig import Prometheus, prometheus, wait_until

from siltstone.clock import SYSTEM_CLOCK
from siltstone.config import load
from siltstone.serve.monitoring import Monitoring, open_monitoring
from siltstone.serve.sections import OWNERS

JOB = """
[[scrape]]
job_name = "{name}"
targets = ["{target}"]
scrape_interval = 0.1
"""


@pytest.fixture
def target() -> Iterator[str]:
    with peer(lambda _: Reply(200, b"a 1\n")) as one:
        yield one.address


@contextmanager
def serving(folder: Path, text: str, **options: Any) -> Iterator[Monitoring]:
    """With these settings in `folder`/siltstone.toml."""
    file = folder / "siltstone.toml"
    file.write_text(text)

    def read() -> dict[str, Any]:
        return load(
            OWNERS, file=file,
            flags={"http": {"listen": "127.0.0.1:0", "record": False, "lifecycle": True, **options},
                   "metrics": {"retention_size": "32MiB"}},
        )  # fmt: skip

    monitoring = open_monitoring(None, read(), folder / "data", SYSTEM_CLOCK, read)
    assert monitoring is not None
    try:
        yield monitoring
    finally:
        monitoring.close()


def asked(one: Monitoring, method: str, path: str, headers: Any = None) -> tuple[int, str]:
    assert one.http is not None
    connection = http.client.HTTPConnection(one.http.address, timeout=20)
    try:
        connection.request(method, path, headers=headers or {})
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def numbers(one: Monitoring) -> dict[str, float]:
    return {sample.name: sample.value for sample in one.reloader.samples()}


def test_other_jobs_count_at_once(tmp_path: Path, target: str) -> None:
    with serving(tmp_path, JOB.format(name="a", target=target)) as one:
        (before,) = one.scraper.targets
        more = JOB.format(name="b", target=target)
        (tmp_path / "siltstone.toml").write_text(JOB.format(name="a", target=target) + more)
        assert asked(one, "POST", "/-/reload") == (200, "")
        assert [known.settings.job_name for known in one.scraper.targets] == ["a", "b"]
        assert one.scraper.targets[0] is before
        wait_until(lambda: bool(one.metrics.list_series('a{job="b"}')), "never scraped")
        assert numbers(one)["siltstone_reloads_total"] == 1
        assert numbers(one)["siltstone_config_last_reload_successful"] == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [("[[scrape]]\njob_name='a'", "nothing to scrape"), ("[[[", "siltstone.toml"),
     (None, "No such"),
     (JOB.format(name="a", target="a:1") + "tls_ca = '/none'", "tls_ca"),
     ("[scarpe]\na=1", "did you mean 'scrape'"),
     (JOB.format(name="a", target="a:1") + "relabel_configs=[{regex='('}]", "regex")],
)  # fmt: skip
def test_settings_that_make_no_sense_change_nothing(
    tmp_path: Path, target: str, text: str | None, expected: str
) -> None:
    with serving(tmp_path, JOB.format(name="a", target=target)) as one:
        before = one.scraper.targets
        file = tmp_path / "siltstone.toml"
        good = file.read_text()
        if text is None:
            file.unlink()
        else:
            file.write_text(text)
        status, answer = asked(one, "POST", "/-/reload")
        assert status == 500
        assert answer.startswith("failed to reload config: ")
        assert expected in answer
        assert one.scraper.targets == before
        assert numbers(one)["siltstone_config_last_reload_successful"] == 0
        told = json.loads(asked(one, "GET", "/api/v1/status/runtimeinfo")[1])["data"]
        assert told["reloadConfigSuccess"] is False
        file.write_text(good)
        assert asked(one, "PUT", "/-/reload") == (200, "")
        assert one.scraper.targets == before
        told = json.loads(asked(one, "GET", "/api/v1/status/runtimeinfo")[1])["data"]
        assert told["reloadConfigSuccess"] is True
        assert told["lastConfigTime"] > told["startTime"]


def test_what_counts_after_a_restart_is_told(
    tmp_path: Path, target: str, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(tmp_path, JOB.format(name="a", target=target)) as one:
        (tmp_path / "siltstone.toml").write_text("[cache]\nram = '128MiB'")
        assert asked(one, "POST", "/-/reload") == (200, "")
        assert one.scraper.targets == []
    assert "what changed in [cache] counts after a restart" in caplog.text


def test_who_may_reload(tmp_path: Path, target: str) -> None:
    with serving(tmp_path, JOB.format(name="a", target=target)) as one:
        assert asked(one, "GET", "/-/reload")[0] == 405
        assert asked(one, "POST", "/-/reload", {"Origin": "http://other.example"})[0] == 403
        assert one.reloader.reloads == 0
    with serving(tmp_path, JOB.format(name="a", target=target), lifecycle=False) as one:
        status, answer = asked(one, "POST", "/-/reload")
        assert (status, answer.partition(":")[0]) == (403, "Lifecycle API is not enabled")
        assert one.reloader.reloads == 0


# Prometheus ---------------------------------------------------------------------------------


def reloaded(peer: Prometheus) -> tuple[int, str]:
    request = urllib.request.Request(f"{peer.url}/-/reload", b"", method="POST")
    try:
        with urllib.request.urlopen(request, timeout=20) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not installed")
@pytest.mark.slow
def test_prometheus_answers_alike(tmp_path: Path, target: str) -> None:
    (tmp_path / "ours").mkdir()
    with (
        serving(tmp_path / "ours", JOB.format(name="a", target=target)) as ours,
        prometheus(tmp_path, flags=["--web.enable-lifecycle"]) as theirs,
    ):
        assert asked(ours, "POST", "/-/reload") == reloaded(theirs) == (200, "")
        (tmp_path / "ours" / "siltstone.toml").write_text("[[[")
        (tmp_path / "prometheus.yml").write_text("[")
        mine, other = asked(ours, "POST", "/-/reload"), reloaded(theirs)
        assert mine[0] == other[0] == 500
        assert mine[1].partition(":")[0] == other[1].partition(":")[0]
    with (
        serving(tmp_path / "ours", "", lifecycle=False) as ours,
        prometheus(tmp_path, config="") as theirs,
    ):
        mine, other = asked(ours, "POST", "/-/reload"), reloaded(theirs)
        assert mine[0] == other[0] == 403
        assert mine[1].partition(":")[0] == other[1].partition(".")[0]
