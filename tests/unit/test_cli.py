"""The `siltstone` command: exit codes, one-line errors, JSON, on a directory and on a server."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import siltstone
from siltstone import cli


class Ran:
    """What a command printed and its exit code."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Shell:
    """Runs commands in this process."""

    def __init__(self, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
        self._capture = capfdbinary

    def __call__(self, *arguments: object) -> Ran:
        code = cli.run([str(argument) for argument in arguments])
        sys.stdout.flush()
        captured = self._capture.readouterr()
        return Ran(code, captured.out.decode(), captured.err.decode())


@pytest.fixture
def shell(capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Shell:
    for name in ("SILTSTONE_CONFIG", "SILTSTONE_CACHE_RAM"):
        monkeypatch.delenv(name, raising=False)
    return Shell(capfdbinary)


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """A cache that somebody else has open, as a rule the case."""
    path = tmp_path / "cache"
    with siltstone.Cache(path, ram="8MiB", flash="16MiB") as cache:
        cache["text"] = "käse"
        cache["number"] = 7
        cache["object"] = {"a": [1, 2]}
        cache[b"bytes"] = b"\x00\xff"
        cache[(1, "x")] = "tuple"
        yield path


def one_line(text: str) -> bool:
    return text.endswith("\n") and text.count("\n") == 1


def test_version_and_help(shell: Shell) -> None:
    assert shell("--version").out.strip() == siltstone.__version__
    helped = shell("--help")
    assert helped.code == 0
    for command in ("serve", "memcached", "check-config", "stats", "inspect", "verify", "bench"):
        assert command in helped.out


@pytest.mark.parametrize(
    "arguments",
    [
        ("nonsense",),
        ("get",),
        ("get", "k", "--nonsense"),
        ("keys", "--limit", "x"),
        ("get", "k", "--path", "p", "--server", "s"),
        ("serve", "--set", "workers=4"),
        ("serve", "--set", "cache.wrokers=4"),
        ("serve", "--ram", "lots"),
        ("set", "k", "v", "--type", "list", "--path", "/"),
        ("set", "k", "v", "--ttl", "soon", "--path", "/"),
        ("check-config", "/no/such/file.toml"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(shell: Shell, arguments: tuple[str, ...]) -> None:
    ran = shell(*arguments)
    assert ran.code == 2
    assert one_line(ran.err)
    assert ran.err.startswith("siltstone: ")


def test_items_in_a_directory(shell: Shell, directory: Path) -> None:
    assert shell("get", "text", "--path", directory).out == "käse\n"
    assert shell("get", "number", "--path", directory).out == "7\n"
    assert shell("get", "object", "--path", directory).json == {"a": [1, 2]}
    assert shell("set", "new", "value", "--ttl", "5m", "--path", directory).code == 0
    assert shell("get", "new", "--path", directory, "--json").json == {
        "key": "new", "type": "str", "value": "value",
    }  # fmt: skip
    assert shell("get", "bytes", "--path", directory, "--json").json["base64"] == "AP8="
    assert shell("delete", "new", "--path", directory).code == 0
    for gone in (
        shell("delete", "new", "--path", directory),
        shell("get", "new", "--path", directory),
    ):
        assert gone.code == 1
        assert gone.err == "siltstone: 'new' is not in the cache\n"


def test_values_of_each_type(
    shell: Shell, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind, text in (("int", "41"), ("json", '{"b": null}'), ("bytes", "raw")):
        assert shell("set", kind, text, "--type", kind, "--path", directory).code == 0
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\x01\x02")))
    assert shell("set", "piped", "-", "--path", directory).code == 0
    with siltstone.Cache(directory, ram="8MiB", flash="16MiB") as cache:
        assert cache.incr("int") == 42
        assert cache["json"] == {"b": None}
        assert (cache["bytes"], cache["piped"]) == (b"raw", b"\x01\x02")


def test_keys(shell: Shell, directory: Path) -> None:
    everything = ["(1, 'x')", "bytes", "number", "object", "text"]
    assert sorted(shell("keys", "--path", directory).out.splitlines()) == everything
    assert sorted(shell("keys", "--path", directory, "--json").json) == everything
    assert shell("keys", "--prefix", "te", "--path", directory).out == "text\n"
    assert len(shell("keys", "--limit", "2", "--path", directory).out.splitlines()) == 2


def test_looking_inside(shell: Shell, directory: Path) -> None:
    assert shell("stats", "--path", directory, "--json").json["curr_items"] == 5
    assert "curr_items" in shell("stats", "--path", directory).out
    assert "one cell a segment" in shell("inspect", directory).out
    segments = shell("inspect", directory, "--json").json
    assert len(segments) == 16
    assert {"slot", "state", "stream", "live_share", "age_s"} <= set(segments[0])
    assert "version" in shell("inspect", "--all", directory).out
    verified = shell("verify", directory)
    assert (verified.code, verified.out) == (0, f"{directory}: all is well\n")
    assert shell("verify", directory, "--json").json == {"ok": True, "problems": []}


@pytest.mark.parametrize("command", [("inspect",), ("verify",), ("stats", "--path")])
def test_a_directory_that_holds_no_cache(
    shell: Shell, tmp_path: Path, command: tuple[str, ...]
) -> None:
    for path in (tmp_path / "none", tmp_path):
        ran = shell(*command, path)
        assert ran.code == 1
        assert one_line(ran.err)
        assert str(path) in ran.err
    assert list(tmp_path.iterdir()) == []  # nothing was created


def test_no_server(shell: Shell, free_port: Any) -> None:
    ran = shell("get", "k", "--server", f"127.0.0.1:{free_port()}")
    assert ran.code == 1
    assert "no server at" in ran.err
    assert one_line(ran.err)


def test_check_config(shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "siltstone.toml"
    file.write_text('[cache]\nram = "32MiB"\n[memcached]\nlisten = ["127.0.0.1:0"]\n')
    monkeypatch.setenv("SILTSTONE_CACHE_WORKERS", "5")
    values = shell("check-config", file, "--json").json
    assert (values["cache"]["ram"], values["cache"]["workers"]) == ("32MiB", "5")
    assert values["memcached"]["listen"] == "127.0.0.1:0"
    assert "memory limit" in shell("check-config", file).out
    file.write_text("[cache]\nrma = 1\n")
    ran = shell("check-config", file)
    assert ran.code == 2
    assert "did you mean 'ram'" in ran.err


def test_check_config_shows_each_of_a_list_and_no_secrets(shell: Shell, tmp_path: Path) -> None:
    file = tmp_path / "siltstone.toml"
    job = "[[scrape]]\njob_name = '{}'\ntargets = ['h:9100']\npassword = 'hush'\n"
    file.write_text(job.format("first") + job.format("second") + "headers = { X-Token = 'hush' }\n")
    values = shell("check-config", file, "--json").json
    assert [one["job_name"] for one in values["scrape"]] == ["first", "second"]
    assert values["scrape"][1]["headers"] == "X-Token: ***"
    assert values["remote_write"] == []
    shown = shell("check-config", file).out
    assert shown.count("[[scrape]]") == 2
    assert "hush" not in shown + str(values)


def test_bench_measures_in_memory(shell: Shell) -> None:
    results = shell("bench", "--items", "500", "--size", "1k", "--json").json
    assert [result["operation"] for result in results] == ["set", "get", "delete"]
    assert all(result["misses"] == 0 and result["per_second"] > 0 for result in results)
    assert "500 items of 1,024 bytes" in shell("bench", "--items", "500", "--size", "1k").out


def test_no_command_shows_the_help(shell: Shell) -> None:
    ran = shell()
    assert ran.code == 2
    assert "check-config" in ran.out
    assert ran.err == ""


@pytest.mark.parametrize("command", ["verify", "inspect"])
def test_a_missing_flash_file_is_no_empty_one(shell: Shell, tmp_path: Path, command: str) -> None:
    with siltstone.Cache(tmp_path, ram="4MiB", flash="8MiB") as cache:
        cache["k"] = 1
    (tmp_path / "flash").unlink()
    ran = shell(command, tmp_path)
    assert ran.code == 1
    assert "flash is missing" in ran.err
    assert not (tmp_path / "flash").exists()


def test_memcacheds_flags_are_memcacheds(shell: Shell) -> None:
    assert shell("memcached", "-V").out.startswith("memcached 1.6")
    helped = shell("memcached", "-h")
    assert helped.code == 0
    assert "ext_path" in helped.out
    refused = shell("memcached", "-o", "bogus")
    assert (refused.code, refused.err) == (1, 'Illegal suboption "bogus"\n')
    assert shell("memcached", "-I", "100").code == 64


EXTRAS = ("re2", "numpy", "promql_parser", "pcodec", "starlette", "uvicorn", "httptools", "cramjam")


def test_the_command_works_without_what_the_extras_bring() -> None:
    blocked = f"import sys; sys.modules.update(dict.fromkeys({EXTRAS!r}))"
    code = f"{blocked}; from siltstone import cli; sys.exit(cli.run(['check-config', '--json']))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["cache"]
    code = f"{blocked}; from siltstone.serve.relabelling import Rule; Rule(target_label='a')"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "ConfigError: relabelling needs pip install 'siltstone[metrics]'" in ran.stderr


def test_none_is_a_value(shell: Shell, directory: Path) -> None:
    with siltstone.Cache(directory, ram="8MiB", flash="16MiB") as cache:
        cache["none"] = None
    assert shell("get", "none", "--path", directory).out == "null\n"


def test_arguments_need_not_be_text(shell: Shell, directory: Path, tmp_path: Path) -> None:
    typed, store = "caf\udce9", tmp_path / "store"  # as Python hands over the bytes b"caf\xe9"
    assert shell("set", typed, typed, "--store", store).code == 0
    for where in (("--store", store), ("--path", directory)):
        if where[0] == "--path":
            assert shell("set", typed, "plain", *where).code == 0
        found = shell("get", typed, *where, "--json").json
        assert found["key"] == {"base64": "Y2Fm6Q=="}
        assert shell("delete", typed, *where).code == 0
        assert shell("get", typed, *where).code == 1
    for arguments in (("keys", "--prefix", typed), ("scan", "--start", typed, "--stop", typed)):
        assert shell(*arguments, "--store", store).code == 0
    assert shell("set", "key", typed, "--type", "bytes", "--path", directory).code == 2
    assert shell("set", "key", typed, "--path", directory).code == 1


def test_a_terminal_need_not_speak_utf_8(directory: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "siltstone.cli", "get", "text", "--path", str(directory)],
        capture_output=True,
        env={"PYTHONIOENCODING": "ascii"},
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, b"k\\xe4se\n", b"")


def test_a_directory_of_another_engine_is_named(shell: Shell, tmp_path: Path) -> None:
    siltstone.Store(tmp_path / "store").close()
    siltstone.Metrics(tmp_path / "series").close()
    for name, text in (("store", "a store: say --store"), ("series", "time series: siltstone")):
        for command in (("get", "k"), ("keys",), ("stats",)):
            ran = shell(*command, "--path", tmp_path / name)
            assert (ran.code, ran.out) == (1, "")
            assert f"holds no cache, but {text}" in ran.err
