"""`siltstone top`: rates from the change of statistics, as a screen and as JSON lines."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tests.fakes import ManualClock

import siltstone
from siltstone import cli, top


def test_rates_are_changes_a_second() -> None:
    told = iter(
        [
            {"get_hits": "10", "cmd_get": "12", "get_misses": "2", "version": "1.6", "bytes": 100},
            {"get_hits": "40", "cmd_get": "52", "get_misses": "12", "version": "1.6", "bytes": 50},
            {"get_hits": "40", "cmd_get": "52", "get_misses": "12", "version": "1.6", "new": 5},
        ]
    )
    first, second = top.looks(lambda: next(told), 2, 2, ManualClock())
    assert first.rates == {
        "get_hits": 15,
        "cmd_get": 20,
        "get_misses": 5,
        "version": 0,
        "bytes": -25,
    }
    assert first.hit_ratio == 0.75
    assert second.hit_ratio is None
    assert second.rates["new"] == 0  # it was not there before


def test_a_screen_shows_what_changes_most() -> None:
    look = top.Look(
        {"cmd_get": 1000, "get_hits": 900, "curr_items": 7, "uptime": 9, "bytes": 5,
         "get_misses": 100, "limit_maxbytes": 1 << 20},
        {"cmd_get": 100.0, "get_hits": 90.0, "get_misses": 10.0, "uptime": 1.0, "bytes": 0.0},
    )  # fmt: skip
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(top.render(look, 2))
    text = console.export_text()
    assert "100 gets/s" in text
    assert "90.0% hits" in text
    assert "of 1MiB" in text
    assert text.index("cmd_get") < text.index("get_hits")
    assert "get_misses" not in text.split("\n", 2)[2]
    assert "uptime" not in text


def run(*arguments: Any) -> int:
    return cli.run([str(argument) for argument in arguments])


def test_the_command_watches_a_cache_of_another_process(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with siltstone.Cache(tmp_path) as cache:
        cache["a"] = 1
        assert run("top", "--path", tmp_path, "--interval", "1ms", "--count", 2, "--json") == 0
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == 2
        assert json.loads(lines[0])["values"]["total_items"] >= 1
        assert run("top", "--path", tmp_path, "-n", "0.001", "--count", 1) == 0
        assert "gets/s" in capsys.readouterr().out


def test_the_command_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("top", "--path", tmp_path / "none") == 1
    assert run("top", "--interval", "0") == 2
    assert "more than 0" in capsys.readouterr().err
    assert run("top", "--path", tmp_path, "--server", "127.0.0.1:1") == 2
    assert run("top", "--server", "127.0.0.1:1", "--count", 1) == 1
