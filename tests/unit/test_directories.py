"""Data directories: how they may be named, one engine each, and who has them open."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import siltstone
from siltstone import errors

# numpy is not needed for the others
Metrics = siltstone.Metrics


class Joined:
    def merge(self, fragments: Any) -> bytes:
        return b"".join(fragments)


def open_cache(path: Any, **options: Any) -> Any:
    return siltstone.Cache(path, ram="8MiB", flash="8MiB", **options)


def open_metrics(path: Any, **options: Any) -> Any:
    return Metrics(path, retention_size="2MiB", segment_size="64KiB", **options)


def open_pages(path: Any, **options: Any) -> Any:
    return siltstone.PageCache(path, Joined(), **options)


OPENERS: dict[str, Callable[..., Any]] = {
    "cache": open_cache,
    "store": siltstone.Store,
    "metrics": open_metrics,
    "pages": open_pages,
}
each_engine = pytest.mark.parametrize("opened", OPENERS.values(), ids=OPENERS)


@each_engine
def test_a_path_is_text_bytes_or_pathlike(tmp_path, opened):
    for path in (str(tmp_path / "a"), os.fsencode(tmp_path / "b"), tmp_path / "c" / "deep"):
        with opened(path):
            assert os.listdir(path)


@each_engine
@pytest.mark.parametrize("path", [5, "", b"", "a\0b", ["x"]], ids=repr)
def test_what_is_no_path(opened, path):
    with pytest.raises(errors.ConfigError, match="is no path"):
        opened(path)


@each_engine
def test_a_file_in_the_way(tmp_path, opened):
    file = tmp_path / "file"
    file.write_text("mine")
    for path in (file, file / "below"):
        with pytest.raises(errors.EnvironmentFailure, match="a file is in the way"):
            opened(path)
    assert file.read_text() == "mine"


@each_engine
def test_a_relative_path_means_what_it_meant_when_it_was_opened(tmp_path, monkeypatch, opened):
    monkeypatch.chdir(tmp_path)
    with opened("data") as engine:
        (tmp_path / "other").mkdir()
        monkeypatch.chdir(tmp_path / "other")
        pickled = pickle.dumps(engine)
    assert os.listdir(tmp_path / "other") == []
    with pickle.loads(pickled):
        pass
    assert os.listdir(tmp_path / "other") == []


@pytest.mark.parametrize("first", OPENERS)
@pytest.mark.parametrize("second", OPENERS)
def test_a_directory_is_one_engines(tmp_path, first, second):
    if first == second:
        return
    with OPENERS[first](tmp_path):
        pass
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(errors.WrongFormat):
        OPENERS[second](tmp_path)
    assert sorted(os.listdir(tmp_path)) == before


def test_files_of_others_are_in_nobodys_way(tmp_path):
    for name in ("data", "flash", "metrics"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "flash").write_text("not ours")
        (tmp_path / name / "photo.jpg").write_text("not ours")
    for name in ("data", "metrics"):
        with OPENERS["store"](tmp_path / name):
            pass
        assert (tmp_path / name / "flash").read_text() == "not ours"
        assert (tmp_path / name / "photo.jpg").read_text() == "not ours"


@pytest.mark.parametrize("name", ["store", "metrics", "pages"])
def test_openings_that_fail_or_only_read_leave_the_writer_its_lock(tmp_path, name):
    """POSIX locks go when the process closes any descriptor of the file."""
    code = (
        "import sys, siltstone\n"
        f"opened = siltstone.{'Metrics' if name == 'metrics' else 'Store'}\n"
        "try: opened(sys.argv[1])\n"
        "except (siltstone.errors.Locked, siltstone.errors.WrongFormat) as error: print(error)"
    )

    def asked_elsewhere() -> str:
        command = [sys.executable, "-c", code, str(tmp_path)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    with OPENERS[name](tmp_path):
        with pytest.raises(errors.Locked):
            OPENERS[name](tmp_path)
        OPENERS[name](tmp_path, read_only=True).close()
        for other in OPENERS.keys() - {name}:
            with pytest.raises((errors.WrongFormat, errors.Locked)):
                OPENERS[other](tmp_path)
        assert f"in use by pid {os.getpid()}" in asked_elsewhere()


@pytest.mark.parametrize(
    ("name", "setting"),
    [("store", "durability"), ("store", "cache"), ("metrics", "out_of_order_window"),
     ("pages", "buffers")],
)  # fmt: skip
def test_none_is_no_value_of_a_setting_that_has_a_default(tmp_path, name, setting):
    with pytest.raises(errors.ConfigError, match=f"{setting}: None is no"):
        OPENERS[name](tmp_path / "x", **{setting: None})
    assert not Path(tmp_path / "x").exists()
