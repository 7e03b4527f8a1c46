"""The cache inside Django and dogpile.cache, and diskcache's directories taken over."""

from __future__ import annotations

import json
import os
import pickle
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import siltstone
from siltstone import cli, errors

# Django -------------------------------------------------------------------------------------

django = pytest.importorskip("django")


@pytest.fixture
def caches(tmp_path: Path) -> Iterator[Any]:
    from django.conf import settings
    from django.core.cache import caches

    backend = "siltstone.adapters.django.SiltstoneCache"
    options = {"ram": "32MiB", "flash": "64MiB"}
    settings.configure(
        CACHES={
            "default": {"BACKEND": backend, "LOCATION": tmp_path / "a", "OPTIONS": options},
            "pickled": {
                "BACKEND": backend,
                "LOCATION": tmp_path / "b",
                "TIMEOUT": None,
                "KEY_PREFIX": "p",
                "OPTIONS": {"codec": "pickle", "MAX_ENTRIES": 5},
            },
            "same": {"BACKEND": backend, "LOCATION": tmp_path / "a", "OPTIONS": {}},
        }
    )
    try:
        yield caches
    finally:
        from django.utils.functional import empty

        for name in ("default", "pickled"):
            caches[name].cache.close()
        settings._wrapped = empty


def test_django_finds_what_it_knows(caches: Any) -> None:
    cache = caches["default"]
    assert cache.get("a") is None
    assert cache.get("a", 1) == 1
    cache.set("a", {"x": [1, None]}, 30)
    assert cache.get("a") == {"x": [1, None]}
    assert 29 < cache.cache.ttl(":1:a") <= 30
    assert not cache.add("a", 1)
    assert cache.add("n", 1)
    assert 299 < cache.cache.ttl(":1:n") <= 300
    assert cache.touch("n", None)
    assert cache.cache.ttl(":1:n") is None
    assert not cache.touch("none")
    assert cache.incr("n", 4) == 5
    assert cache.decr("n", 7) == -2
    with pytest.raises(ValueError, match="not found"):
        cache.incr("none")
    assert "n" in cache
    assert cache.has_key("n")
    assert cache.get_many(["a", "n", "none"]) == {"a": {"x": [1, None]}, "n": -2}
    assert cache.set_many({"m": 1, "o": 2}) == []
    cache.delete_many(["m", "o"])
    assert cache.delete("n")
    assert not cache.delete("n")
    cache.set("gone", 1, timeout=0)
    assert cache.get("gone") is None
    cache.set("v", 1, version=2)
    assert cache.get("v") is None
    assert cache.incr_version("v", version=2) == 3
    assert cache.get("v", version=3) == 1
    cache.clear()
    assert cache.get("a") is None


def test_django_computes_once_and_shares_over_threads(caches: Any) -> None:
    calls, found = [], []

    def work() -> None:
        found.append(caches["default"].get_or_set("k", lambda: calls.append(1) or 7))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [7] * 4
    assert len(calls) == 1
    assert caches["default"].get_or_set("plain", "value") == "value"


def test_django_takes_any_object_with_pickle_by_name(caches: Any) -> None:
    with pytest.raises(errors.InvalidValue):
        caches["default"].set("a", object())
    caches["pickled"].set("a", Path("/x"))
    assert caches["pickled"].get("a") == Path("/x")
    assert list(caches["pickled"].cache) == ["p:1:a"]
    assert caches["pickled"].cache.ttl("p:1:a") is None


def test_django_is_told_of_two_settings_of_one_place(caches: Any) -> None:
    caches["default"].set("a", 1)
    with pytest.raises(errors.ConfigError, match="different OPTIONS"):
        caches["same"].get("a")


# dogpile ------------------------------------------------------------------------------------


def test_a_dogpile_region(tmp_path: Path) -> None:
    dogpile = pytest.importorskip("dogpile.cache")
    region = dogpile.make_region().configure("siltstone", arguments={"path": tmp_path})
    calls: list[int] = []

    @region.cache_on_arguments()
    def double(number: int) -> dict[str, int]:
        calls.append(number)
        return {"is": number * 2}

    assert [double(2), double(2)] == [{"is": 4}, {"is": 4}]
    assert calls == [2]
    double.invalidate(2)
    assert double(2) == {"is": 4}
    assert calls == [2, 2]
    region.set("a", [1, None])
    region.set_multi({"b": 2, "c": 3})
    assert region.get_multi(["a", "b", "c", "none"])[:3] == [[1, None], 2, 3]
    assert not region.get("none")
    region.delete("a")
    region.delete_multi(["b", "c"])
    assert not region.get("b")
    mutex = region.backend.get_mutex("k")
    assert mutex.acquire()
    assert mutex.locked()
    assert not region.backend.get_mutex("k").acquire(wait=False)
    mutex.release()
    with pytest.raises(errors.InvalidValue, match="msgpack cannot encode object"):
        region.set("a", object())
    region.backend.cache.close()
    plain = dogpile.make_region().configure(
        "siltstone", arguments={"distributed_lock": False, "codec": "pickle", "ttl": 60}
    )
    plain.set("p", Path("/x"))
    assert plain.get("p") == Path("/x")
    assert plain.backend.get_mutex("k") is None


# diskcache ----------------------------------------------------------------------------------


class Evil:
    """A pickle that would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


class Maker:
    """Writes rows as diskcache 5.6.3 does (its columns; see adapters/diskcache.py)."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True)
        self.directory = directory
        self.database = sqlite3.connect(directory / "cache.db", isolation_level=None)
        self.database.execute("PRAGMA journal_mode = WAL")
        self.database.execute(
            "CREATE TABLE Cache (rowid INTEGER PRIMARY KEY, key BLOB, raw INTEGER, store_time REAL,"
            " expire_time REAL, access_time REAL, access_count INTEGER DEFAULT 0, tag BLOB,"
            " size INTEGER DEFAULT 0, mode INTEGER DEFAULT 0, filename TEXT, value BLOB)"
        )

    def add(
        self,
        key: Any,
        value: Any = None,
        mode: int = 1,
        *,
        raw: bool = True,
        filename: str | None = None,
        expire: float | None = None,
        tag: Any = None,
    ) -> None:
        if filename is not None:
            path = self.directory / filename
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(value)
            value = None
        self.database.execute(
            "INSERT INTO Cache (key, raw, expire_time, tag, mode, filename, value)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            (key, raw, expire, tag, mode, filename, value),
        )


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Maker]:
    maker = Maker(tmp_path / "old")
    now = siltstone.clock.SYSTEM_CLOCK.now_ms() / 1000  # type: ignore[attr-defined]
    maker.add("text", "värde", tag="t")
    maker.add(b"\xff", b"\x00\x01")
    maker.add(7, 2.5, tag=b"t")
    maker.add(8.0, 9)
    maker.add(pickle.dumps(("a", 1)), pickle.dumps({"x": [1, None, True]}), 4, raw=False)
    maker.add("file", b"bytes" * 1000, 2, filename="ab/cd/1.val")
    maker.add("long", "text ü".encode() * 1000, 3, filename="ab/cd/2.val")
    maker.add("big", pickle.dumps(list(range(1000))), 4, filename="ab/cd/3.val")
    maker.add("soon", 1, expire=now + 100)
    maker.add("gone", 1, expire=now - 100)
    yield maker
    maker.database.close()


def test_diskcaches_items_come_over(made: Maker, tmp_path: Path) -> None:
    from siltstone.adapters.diskcache import import_directory

    told: list[tuple[int, int]] = []
    with siltstone.Cache(tmp_path / "new") as cache:
        for _ in range(2):  # doing it again changes nothing
            report = import_directory(
                made.directory, cache, progress=lambda *done: told.append(done)
            )
            assert (report.items, report.expired, report.problems) == (9, 1, [])
        assert cache["text"] == "värde"
        assert cache[b"\xff"] == b"\x00\x01"
        assert cache[7] == 2.5
        assert cache[8] == 9
        assert cache["a", 1] == {"x": [1, None, True]}
        assert cache["file"] == b"bytes" * 1000
        assert cache["long"] == "text ü" * 1000
        assert cache["big"] == list(range(1000))
        assert 90 < (cache.ttl("soon") or 0) <= 100
        assert "gone" not in cache
        assert len(cache) == 9
        assert cache.evict("t") >= 2
        assert "text" not in cache
        assert 7 not in cache
    assert told[-1] == (10, 10)


def test_nothing_in_a_pickle_runs_unless_it_is_trusted(made: Maker, tmp_path: Path) -> None:
    from siltstone.adapters.diskcache import import_directory

    mark = tmp_path / "mark"
    made.add("evil", pickle.dumps(Evil(mark)), 4)
    made.add(pickle.dumps(Evil(mark)), 1, raw=False)
    made.add("torn", pickle.dumps([1, 2, 3])[:-3], 4)
    made.add("outside", 5, 2, filename=None)
    made.database.execute(
        "UPDATE Cache SET filename = '../../../etc/passwd', value = NULL WHERE key = 'outside'"
    )
    made.add("mode", 1, 9)
    made.add(1.5, 1)
    made.add("lost", b"", 2, filename="ab/4.val")
    (made.directory / "ab/4.val").unlink()
    with siltstone.Cache(None) as cache:
        report = import_directory(made.directory, cache)
        assert not mark.exists()
        assert report.items == 9
        assert [problem.split(":")[0] for problem in report.problems] == [
            "'evil'", "row 12", "'torn'", "'outside'", "'mode'", "1.5", "'lost'",
        ]  # fmt: skip
        assert "posix.mkdir" in report.problems[0]
        assert "outside of the directory" in report.problems[3]
        report = import_directory(made.directory, cache, unpickle=True)
        assert mark.exists()  # it was trusted


def test_rows_of_other_types_are_left_out(made: Maker, tmp_path: Path) -> None:
    from siltstone.adapters.diskcache import import_directory

    made.add("expiry", 1)
    made.add("file", 1)
    made.add("mode", 1)
    for column, value, key in (
        ("expire_time", "soon", "expiry"),
        ("filename", b"\xff", "file"),
        ("mode", None, "mode"),
    ):
        made.database.execute(f"UPDATE Cache SET {column} = ? WHERE key = ?", (value, key))
    with siltstone.Cache(None) as cache:
        report = import_directory(made.directory, cache)
        assert report.items == 8  # one "file" was there before
        assert [problem.split(":")[0] for problem in report.problems] == [
            "'file'", "row 11", "'file'", "'mode'",
        ]  # fmt: skip


def test_what_diskcache_itself_wrote(tmp_path: Path) -> None:
    diskcache = pytest.importorskip("diskcache")
    from siltstone.adapters.diskcache import import_directory

    values = {"a": 1, "b": b"x" * 100_000, "c": "y" * 100_000, 4: 2.5, ("t", 1): [None], "d": {}}
    with diskcache.Cache(tmp_path / "one") as old:
        for key, value in values.items():
            old.set(key, value, expire=1000, tag="t")
    with diskcache.FanoutCache(tmp_path / "many", shards=3) as old:
        for key, value in values.items():
            old[key] = value
    for name in ("one", "many"):
        with siltstone.Cache(None) as cache:
            assert import_directory(tmp_path / name, cache).ok
            assert dict(cache.items()) == values


def run(*arguments: Any) -> int:
    return cli.run([str(argument) for argument in arguments])


def test_the_command_imports(
    made: Maker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new = tmp_path / "new"
    command = ("import", "diskcache", made.directory, "--into", new)
    assert run(*command) == 0
    assert f"9 items into {new}; 1 had expired" in capsys.readouterr().out
    made.add("evil", pickle.dumps(Evil(tmp_path / "mark")), 4)
    assert run(*command, "--json") == 1
    told = json.loads(capsys.readouterr().out)
    assert told["items"] == 9
    assert len(told["problems"]) == 1
    assert not (tmp_path / "mark").exists()
    assert run(*command, "--unpickle") in (0, 1)
    assert (tmp_path / "mark").exists()
    capsys.readouterr()
    assert run(*command, "--ram", "1GiB") == 2
    assert "has its sizes" in capsys.readouterr().err
    with siltstone.Cache(new) as cache:
        assert cache["long"] == "text ü" * 1000


def test_the_command_says_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("import", "diskcache", tmp_path, "--into", tmp_path / "new") == 1
    assert "no cache.db of diskcache here" in capsys.readouterr().err
    (tmp_path / "cache.db").write_bytes(b"no database" * 1000)
    assert run("import", "diskcache", tmp_path, "--into", tmp_path / "new") == 1
    assert "cannot be read as diskcache's" in capsys.readouterr().err
