"""Every Python block of README and docs runs as it stands there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from siltstone import config, metrics_commands
from siltstone.client import MemcachedClient
from siltstone.clock import SYSTEM_CLOCK
from siltstone.errors import EnvironmentFailure

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
BLOCKS = [
    pytest.param(block, id=f"{page.relative_to(ROOT)}-{number}")
    for page in PAGES
    for number, block in enumerate(FENCE.findall(page.read_text()))
]
PORT = "11211"  # as the documents have it


@pytest.mark.slow
@pytest.mark.parametrize("block", BLOCKS)
def test_documented_python_runs(block: str, tmp_path: Path, free_port: Callable[[], int]) -> None:
    server = None
    if PORT in block:
        port = str(free_port())
        block = block.replace(PORT, port)
        server = start_server(tmp_path, port)
    try:
        ran = subprocess.run(
            [sys.executable, "-W", "error", "-c", block],
            cwd=tmp_path, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert ran.returncode == 0, ran.stderr
    finally:
        if server:
            server.terminate()
            assert server.wait(30) == 0


def start_server(directory: Path, port: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "siltstone.cli", "serve", "--data", str(directory / "data")]
    command += ["--memcached", f"127.0.0.1:{port}", "--ram", "16MiB", "--flash", "32MiB"]
    server = subprocess.Popen(command, env={**os.environ, "SILTSTONE_CONFIG": ""})
    for _ in range(1000):
        try:
            MemcachedClient(f"127.0.0.1:{port}").close()
        except EnvironmentFailure:
            assert server.poll() is None
            # nothing to wait on: the port opens when it opens
            subprocess.run([sys.executable, "-c", "import time; time.sleep(0.05)"], check=True)
        else:
            return server
    raise AssertionError("the server did not start")


@pytest.mark.slow
def test_the_commands_of_the_tutorial_run(tmp_path: Path, free_port: Callable[[], int]) -> None:
    text = (ROOT / "docs" / "your-machine.md").read_text()
    first, *others = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    memcached, web = free_port(), free_port()
    words = [sys.executable, "-m", "siltstone.cli", *first.split()[1:]]
    words += ["--memcached", f"127.0.0.1:{memcached}", "--http", f"127.0.0.1:{web}"]
    words += ["--ram", "16MiB", "--flash", "32MiB", "--set", "metrics.retention_size=32MiB"]
    server = subprocess.Popen(words, cwd=tmp_path, env={**os.environ, "SILTSTONE_CONFIG": ""})
    try:
        wait_for_samples(f"127.0.0.1:{web}")
        for command in "".join(others).replace("8181", str(web)).splitlines():
            if command.startswith("siltstone query"):
                command = f"{sys.executable} -m siltstone.cli{command[9:]} --server 127.0.0.1:{web}"
            ran = subprocess.run(
                command, shell=True, cwd=tmp_path, capture_output=True, text=True, timeout=60
            )
            assert ran.returncode == 0, f"{command}: {ran.stderr}"
            assert "no series" not in ran.stdout, command
    finally:
        server.terminate()
        assert server.wait(30) == 0


def wait_for_samples(address: str) -> None:
    """Until a rate over what the server records can be told."""
    span = metrics_commands.Span(0.0, 0.0, 0.0)
    for _ in range(600):
        try:
            now = span._replace(start=SYSTEM_CLOCK.now_ms() / 1000)
            if len(metrics_commands.ask_server(address, "rate(node_cpu_seconds_total[10s])", now)):
                return
        except EnvironmentFailure:
            pass
        SYSTEM_CLOCK.sleep(0.05)  # nothing to wait on: it records when it records
    raise AssertionError("the server did not start, or records nothing")


def test_the_readme_shows_both_ways_of_use() -> None:
    blocks = FENCE.findall((ROOT / "README.md").read_text())
    assert any("siltstone.Cache(" in block for block in blocks)
    assert any("pymemcache" in block for block in blocks)
    assert all(len(block.strip().splitlines()) <= 12 for block in blocks)


def test_links_between_documents_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            if "format.md" not in target or (ROOT / "docs" / "format.md").exists():
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_toml_of_the_documents_is_accepted(tmp_path: Path) -> None:
    from siltstone.serve.settings import Settings

    text = "[cache]\npath = '/var/lib/siltstone'\nram = '1GiB'\nflash = '100GiB'\n"
    file = tmp_path / "siltstone.toml"
    file.write_text(text + "[memcached]\nlisten = ['127.0.0.1:11211']\n")
    assert config.load([config.CacheSettings, Settings], file=file)["cache"].ram == config.GIB


def blocks_of(language: str) -> list[str]:
    fence = re.compile(rf"^```{language}\n(.*?)^```", re.MULTILINE | re.DOTALL)
    return [block for page in PAGES for block in fence.findall(page.read_text())]


def test_settings_in_the_documents_are_accepted(tmp_path: Path) -> None:
    from siltstone.serve.sections import OWNERS

    blocks = blocks_of("toml")
    assert len(blocks) >= 3
    for block in blocks:
        file = tmp_path / "siltstone.toml"
        file.write_text(block)
        config.load(OWNERS, file=file)


@pytest.mark.skipif(not shutil.which("promtool"), reason="needs Debian's package prometheus")
def test_settings_of_prometheus_in_the_documents_are_accepted(tmp_path: Path) -> None:
    blocks = [block for block in blocks_of("yaml") if "datasources" not in block]
    assert len(blocks) == 2
    for block in blocks:
        file = tmp_path / "prometheus.yml"
        file.write_text(block)
        subprocess.run(["promtool", "check", "config", file], check=True, capture_output=True)


@pytest.mark.parametrize("page", ["metrics-properties.md", "store-properties.md"])
def test_what_proves_a_property_exists(page: str) -> None:
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("*.py"))
    defined = set(re.findall(r"def (test_\w+)", tests))
    for name, begins in re.findall(r"`(test_\w+?)(_?\.\.\.)?`", (ROOT / "docs" / page).read_text()):
        assert name in defined or (begins and any(one.startswith(name) for one in defined)), name
