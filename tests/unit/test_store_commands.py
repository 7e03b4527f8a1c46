"""The `siltstone` command on stores: what it prints, --json, exit codes, what it refuses."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

import siltstone
from siltstone import cli

FINE, WRONG, USAGE = 0, 1, 2


@pytest.fixture
def path(tmp_path) -> Path:
    with siltstone.Store(tmp_path / "store") as store:
        for number in range(20):
            store[b"key:%02d" % number] = b"value %d" % number
        store[b"\xff\x00"] = b"\x80"
        store.tree("users")[b"ada"] = b"Lovelace"
    return tmp_path / "store"


@pytest.fixture
def run(capfd) -> Any:
    """run(arguments) -> (exit code, stdout, stderr)."""

    def call(*arguments: object) -> tuple[int, str, str]:
        capfd.readouterr()
        code = cli.run([str(argument) for argument in arguments])
        sys.stdout.flush()
        return code, *capfd.readouterr()

    return call


def damage(path: Path, value: bytes) -> None:
    image = bytearray((path / "data").read_bytes())
    place = image.rindex(value)
    image[place] ^= 4
    (path / "data").write_bytes(image)


# Records --------------------------------------------------------------------------------------


def test_get(run, path):
    assert run("get", "key:03", "--store", path) == (FINE, "value 3", "")
    assert run("get", "ada", "--store", path, "--tree", "users") == (FINE, "Lovelace", "")
    code, out, _ = run("get", "key:03", "--store", path, "--json")
    assert (code, json.loads(out)) == (FINE, {"key": "key:03", "value": "value 3"})


def test_get_what_is_not_there(run, path):
    code, out, err = run("get", "none", "--store", path)
    assert (code, out) == (WRONG, "")
    assert err == "siltstone: 'none' is not in the store\n"
    code, _, err = run("get", "k", "--store", path, "--tree", "nobody")
    assert code == WRONG
    assert "there is no tree 'nobody'; there are ['users']" in err


def test_set_and_delete(run, path):
    assert run("set", "key:new", "text", "--store", path)[0] == FINE
    assert run("set", "k", "v", "--store", path, "--tree", "made")[0] == FINE
    assert run("get", "key:new", "--store", path)[1] == "text"
    assert run("get", "k", "--store", path, "--tree", "made")[1] == "v"
    assert run("delete", "key:new", "--store", path)[0] == FINE
    code, _, err = run("delete", "key:new", "--store", path)
    assert (code, err) == (WRONG, "siltstone: 'key:new' is not in the store\n")


def test_set_makes_a_store_and_reads_stdin(run, tmp_path, monkeypatch):
    data = bytes(range(256)) * 5000
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    assert run("set", "film", "-", "--store", tmp_path / "new")[0] == FINE
    with siltstone.Store(tmp_path / "new") as store:
        assert store[b"film"] == data


def test_set_refuses_what_stores_do_not_have(run, path):
    code, _, err = run("set", "k", "v", "--store", path, "--ttl", "5")
    assert (code, err) == (USAGE, "siltstone: --ttl: records of a store do not expire\n")
    code, _, err = run("get", "k", "--store", path, "--path", path)
    assert (code, err) == (USAGE, "siltstone: --store excludes --path and --server\n")


def test_keys(run, path):
    code, out, _ = run("keys", "--store", path, "--prefix", "key:0", "--limit", "3")
    assert (code, out) == (FINE, "key:00\nkey:01\nkey:02\n")
    code, out, _ = run("keys", "--store", path, "--json")
    assert json.loads(out)[-1] == {"base64": "/wA="}


def test_scan(run, path):
    code, out, _ = run("scan", "--store", path, "--start", "key:03", "--stop", "key:05")
    assert (code, out) == (FINE, "key:03\tvalue 3\nkey:04\tvalue 4\n")
    code, out, _ = run("scan", "--store", path, "--prefix", "key:", "--reverse", "--limit", "1")
    assert out == "key:19\tvalue 19\n"
    code, out, _ = run("scan", "--store", path, "--start", "z")
    assert out == "b'\\xff\\x00'\tb'\\x80'\n"
    code, out, _ = run("scan", "--store", path, "--tree", "users", "--json")
    assert [json.loads(line) for line in out.splitlines()] == [{"key": "ada", "value": "Lovelace"}]
    assert run("scan", "--store", path, "--limit", "0")[0] == USAGE
    assert run("scan")[0] == USAGE


@pytest.mark.parametrize(
    "command",
    [("get", "k", "--store"), ("scan", "--store"), ("keys", "--store"), ("stats", "--store"),
     ("delete", "k", "--store"), ("backup",), ("repair",), ("dump",)],
    ids=lambda command: command[0],
)  # fmt: skip
def test_a_directory_that_is_no_store(run, tmp_path, command):
    rest = ["target"] if len(command) == 1 else []
    code, _, err = run(*command, tmp_path / "none", *[tmp_path / name for name in rest])
    assert code == WRONG
    assert "none: no such directory" in err
    (tmp_path / "empty").mkdir()
    code, _, err = run(*command, tmp_path / "empty", *[tmp_path / name for name in rest])
    assert code == WRONG
    assert err.count("\n") == 1
    assert not list((tmp_path / "empty").iterdir())  # nothing was made
    assert not (tmp_path / "target").exists() or command[0] == "dump"


def test_reading_beside_a_writer_and_not_writing(run, path):
    with siltstone.Store(path) as store:
        store[b"key:00"] = b"changed"
        store.sync()
        assert run("get", "key:00", "--store", path) == (FINE, "changed", "")
        assert run("verify", path)[0] == FINE
        code, _, err = run("set", "k", "v", "--store", path)
        assert code == WRONG
        assert "in use by pid" in err


# Looking inside -------------------------------------------------------------------------------


def test_stats(run, path):
    code, out, _ = run("stats", "--store", path, "--json")
    found = json.loads(out)
    assert (code, found["records"]) == (FINE, 21)
    assert "live_bytes" in run("stats", "--store", path)[1]


def test_inspect(run, path):
    code, out, _ = run("inspect", path)
    assert code == FINE
    assert "(the store's own)" in out
    assert "users" in out
    code, out, _ = run("inspect", path, "--json", "--all")
    found = json.loads(out)
    assert found["trees"] == {"": 21, "users": 1}
    assert found["segments"][0]["state"] in ("sealed", "open")


def test_verify(run, path):
    code, out, _ = run("verify", path)
    assert (code, out.splitlines()[-1][-len("records") :]) == (FINE, "records")
    assert "all is well" in out
    assert json.loads(run("verify", path, "--json")[1])["ok"] is True
    damage(path, b"value 7")
    code, out, _ = run("verify", path)
    assert code == WRONG
    assert "fails its checksum" in out
    assert "data, offset" in out
    found = json.loads(run("verify", path, "--json")[1])
    assert found["ok"] is False
    assert found["problems"]


# Copies ---------------------------------------------------------------------------------------


def test_backup_and_restore(run, path, tmp_path):
    copy, back = tmp_path / "copy", tmp_path / "back"
    code, out, _ = run("backup", path, copy)
    assert (code, out) == (FINE, f"{copy}: a store of 22 records\n")
    code, _, err = run("backup", path, copy)
    assert code == WRONG
    assert "exists: name a new directory" in err
    code, out, _ = run("restore", copy, back)
    assert (code, out) == (FINE, f"{back}: a store of 22 records\n")
    assert run("get", "ada", "--store", back, "--tree", "users")[1] == "Lovelace"
    assert run("restore", copy, back)[0] == WRONG


def test_restore_refuses_a_damaged_backup(run, path, tmp_path):
    assert run("backup", path, tmp_path / "copy")[0] == FINE
    damage(tmp_path / "copy", b"value 7")
    code, _, err = run("restore", tmp_path / "copy", tmp_path / "back")
    assert code == WRONG
    assert "not restored; siltstone verify lists them" in err
    assert not (tmp_path / "back").exists()


def test_dump_and_load(run, path, tmp_path):
    assert run("dump", path, tmp_path / "dump")[0] == FINE
    assert run("load", tmp_path / "new", tmp_path / "dump")[2] == "22 records\n"
    assert run("get", "key:07", "--store", tmp_path / "new")[1] == "value 7"
    (tmp_path / "text").write_text("no dump of anything")
    code, _, err = run("load", tmp_path / "new", tmp_path / "text")
    assert (code, err) == (WRONG, "siltstone: this is no dump of a store\n")


def test_repair(run, path, tmp_path):
    code, out, _ = run("repair", path, tmp_path / "new")
    assert (code, out) == (FINE, f"{tmp_path / 'new'}: a store of 22 records in 2 trees\n")
    damage(path, b"value 7")
    before = (path / "data").read_bytes()
    code, out, _ = run("repair", path, tmp_path / "other", "--json")
    found = json.loads(out)
    assert (code, found["ok"]) == (WRONG, False)
    assert "data, offset" in found["problems"][0]
    assert (path / "data").read_bytes() == before
    assert run("verify", tmp_path / "other")[0] == FINE
    assert run("get", "ada", "--store", tmp_path / "other", "--tree", "users")[1] == "Lovelace"
    code, out, _ = run("repair", path, tmp_path / "third")
    assert code == WRONG
    assert "a store of" in out
    code, _, err = run("repair", path, tmp_path / "third")
    assert code == WRONG
    assert "exists: name a new directory" in err
    assert run("repair", path)[0] == USAGE


def test_repair_beside_a_writer_is_refused(run, path, tmp_path):
    with siltstone.Store(path):
        code, _, err = run("repair", path, tmp_path / "new")
    assert code == WRONG
    assert "in use by pid" in err
    assert not (tmp_path / "new").exists()


# Measuring ------------------------------------------------------------------------------------


def test_bench_store(run, tmp_path):
    code, out, _ = run("bench", "store", "--items", "200", "--size", "50", "--json")
    rows = json.loads(out)
    assert code == FINE
    assert all(any(isinstance(v, float) and v > 0 for v in row.values()) for row in rows)
    code, out, _ = run("bench", "store", "--items", "200", "--path", tmp_path / "here")
    assert code == FINE
    assert (tmp_path / "here" / "data").exists()
    assert run("bench", "stones")[0] == USAGE
    assert run("bench", "store", "--server", "127.0.0.1:1")[0] == USAGE
    assert run("bench", "store", "--items", "0")[0] == USAGE
