"""Adapters, used by those they are for: zarr, fsspec, pandas, pyarrow."""

from __future__ import annotations

import asyncio
from typing import Any

import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
import zarr
from zarr.abc.store import OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.core.buffer import default_buffer_prototype
from zarr.core.buffer.cpu import Buffer

import siltstone
from siltstone.adapters.filesystem import StoreFileSystem
from siltstone.adapters.zarr import StoreOfChunks

pytestmark = pytest.mark.slow  # for what it imports


@pytest.fixture
def store() -> Any:
    with siltstone.Store(None) as opened:
        yield opened


# zarr -----------------------------------------------------------------------------------------


def test_arrays_and_groups(store):
    chunks = StoreOfChunks(store)
    root = zarr.create_group(chunks)
    array = root.create_array("deep/temperature", shape=(100, 80), chunks=(30, 30), dtype="f4")
    values = np.arange(8000, dtype="f4").reshape(100, 80)
    array[:] = values
    array.attrs["unit"] = "K"
    array[3:50:7, ::3] = -1
    values[3:50:7, ::3] = -1
    again = zarr.open_group(StoreOfChunks(store), mode="r")
    assert [name for name, _ in again["deep"].arrays()] == ["temperature"]
    found = again["deep/temperature"]
    assert found.attrs["unit"] == "K"
    np.testing.assert_array_equal(found[:], values)
    np.testing.assert_array_equal(found[90:, 70:], values[90:, 70:])
    assert found.nchunks_initialized == 12
    assert store.trees() == ["zarr"]
    del root["deep"]
    assert not [key for key in store.tree("zarr") if key.startswith(b"deep/")]


def test_sharded_arrays_read_ranges(store):
    array = zarr.create_array(
        StoreOfChunks(store), shape=(64, 64), chunks=(8, 8), shards=(32, 32), dtype="i8"
    )
    values = np.arange(4096).reshape(64, 64)
    array[:] = values
    np.testing.assert_array_equal(
        zarr.open_array(StoreOfChunks(store))[10:20, 50:], values[10:20, 50:]
    )


def test_read_only_and_by_path(tmp_path):
    chunks = StoreOfChunks(tmp_path / "store")
    zarr.create_array(chunks, shape=(4,), dtype="i4")[:] = 7
    with pytest.raises(ValueError):
        zarr.open_array(chunks.with_read_only(True), mode="a")[:] = 8
    assert chunks == chunks.with_read_only(False)
    assert chunks != chunks.with_read_only(True)
    chunks.close()
    again = StoreOfChunks(tmp_path / "store", read_only=True)
    assert list(zarr.open_array(again, mode="r")[:]) == [7] * 4
    again.close()


def test_the_store_interface_of_zarr(store):
    async def use() -> None:
        chunks = await StoreOfChunks.open(store)
        prototype = default_buffer_prototype()
        for key in ("zarr.json", "a/zarr.json", "a/c/0/0", "a/c/0/1", "a-b/x", "b"):
            await chunks.set(key, Buffer.from_bytes(key.encode() * 3))
        assert sorted([name async for name in chunks.list_dir("")]) == [
            "a",
            "a-b",
            "b",
            "zarr.json",
        ]
        assert sorted([name async for name in chunks.list_dir("a/c")]) == ["0"]
        assert [key async for key in chunks.list_prefix("a/")] == [
            "a/c/0/0",
            "a/c/0/1",
            "a/zarr.json",
        ]
        assert len([key async for key in chunks.list()]) == 6
        assert await chunks.get("none", prototype) is None
        assert await chunks.getsize("b") == 3
        with pytest.raises(FileNotFoundError):
            await chunks.getsize("none")
        parts = await chunks.get_partial_values(
            prototype,
            [
                ("a/c/0/0", RangeByteRequest(2, 5)),
                ("a/c/0/0", OffsetByteRequest(19)),
                ("a/c/0/0", SuffixByteRequest(4)),
                ("none", SuffixByteRequest(4)),
            ],
        )
        assert [part and part.to_bytes() for part in parts] == [b"c/0", b"/0", b"/0/0"[-4:], None]
        await chunks.set_if_not_exists("b", Buffer.from_bytes(b"other"))
        assert (await chunks.get("b", prototype)).to_bytes() == b"bbb"
        await chunks.delete_dir("a")
        assert sorted([key async for key in chunks.list()]) == ["a-b/x", "b", "zarr.json"]
        await chunks.clear()
        assert await chunks.is_empty("")

    asyncio.run(use())


# fsspec ---------------------------------------------------------------------------------------


@pytest.fixture
def files(store) -> StoreFileSystem:
    return StoreFileSystem(store=store, skip_instance_cache=True)


def test_files_and_directories(files):
    files.pipe("a/b/one.txt", b"1" * 10)
    files.pipe({"a/two.txt": b"22", "top": b"t"})
    assert files.ls("", detail=False) == ["a", "top"]
    assert files.ls("a", detail=False) == ["a/b", "a/two.txt"]
    assert files.info("a/b/one.txt") == {"name": "a/b/one.txt", "size": 10, "type": "file"}
    assert files.isdir("a/b")
    assert not files.isfile("a/b")
    assert files.find("") == ["a/b/one.txt", "a/two.txt", "top"]
    assert files.glob("a/**/*.txt") == ["a/b/one.txt", "a/two.txt"]
    assert files.cat_file("a/b/one.txt", 2, 5) == b"111"
    assert files.cat_file("a/two.txt", -1) == b"2"
    assert files.cat(["top", "a/two.txt"]) == {"top": b"t", "a/two.txt": b"22"}
    files.copy("a", "copy", recursive=True)
    assert files.find("copy") == ["copy/b/one.txt", "copy/two.txt"]
    files.mv("top", "moved")
    assert not files.exists("top")
    assert files.read_text("moved") == "t"
    with pytest.raises(ValueError, match="at least 1"):
        files.rm("copy", recursive=True, maxdepth=0)
    files.rm("copy", recursive=True, maxdepth=1)
    assert files.find("copy") == ["copy/b/one.txt"]
    files.rm("a", recursive=True)
    assert not files.exists("a")
    for missing in (files.info, files.cat_file, files.ls, files.rm_file, files.open):
        with pytest.raises(FileNotFoundError):
            missing("missing")


def test_modes_of_open(files):
    with files.open("f", "wb") as file:
        file.write(b"one")
    with files.open("f", "ab") as file:
        file.write(b"two")
    assert files.cat("f") == b"onetwo"
    with pytest.raises(FileExistsError):
        files.open("f", "xb")
    with files.open("f", "r") as text:
        assert text.read() == "onetwo"
    with pytest.raises(ValueError):
        files.open("f", "r+b")
    with pytest.raises(ValueError, match="path"):
        StoreFileSystem(skip_instance_cache=True)


def half_written(opened, content):
    with opened as file:
        file.write(content)
        raise InterruptedError


@pytest.mark.parametrize("mode", ["wb", "w", "ab", "a"])
def test_a_file_left_by_an_exception_is_not_written(files, mode):
    files.pipe("f", b"before")
    text = "half" if "b" not in mode else b"half"
    with pytest.raises(InterruptedError):
        half_written(files.open("f", mode), text * 50_000)
    assert files.cat("f") == b"before"
    try:
        raise InterruptedError
    except InterruptedError:  # an exception from before the file says nothing about it
        with files.open("f", mode) as file:
            file.write(text)
    assert files.cat("f").endswith(b"half")


@pytest.mark.parametrize("root", ["", "/", "siltstone://"])
def test_the_root_is_no_file(files, root):
    for write in (
        lambda: files.pipe_file(root, b"x"),
        lambda: files.open(root, "wb"),
        lambda: files.open(root, "ab"),
        lambda: files.touch(root),
    ):
        with pytest.raises(IsADirectoryError):
            write()
    with pytest.raises(ValueError, match="a value is bytes"):
        files.pipe_file("f", 3, mode="create")
    assert files.find("") == []


@pytest.mark.parametrize("mode", ["wb", "wt"])
def test_a_file_by_url_left_by_an_exception_is_not_written(tmp_path, mode):
    options = {"path": str(tmp_path / "store")}
    opened = fsspec.open("siltstone://f.gz", mode, compression="gzip", **options)
    with pytest.raises(InterruptedError):
        half_written(opened, "half" if mode == "wt" else b"half")
    files = fsspec.filesystem("siltstone", **options)
    assert not files.exists("f.gz")
    files.close()


def test_pandas_reads_and_writes_through_it(files):
    frame = pd.DataFrame({"n": range(2000), "text": [f"row {n}" for n in range(2000)]})
    with files.open("t.csv", "w") as file:
        frame.to_csv(file, index=False)
    with files.open("t.csv", "r") as file:
        pd.testing.assert_frame_equal(pd.read_csv(file), frame, check_dtype=False)
    frame.to_parquet("deep/t.parquet", filesystem=files)
    read = pd.read_parquet("deep/t.parquet", filesystem=files, columns=["n"])
    assert list(read["n"]) == list(range(2000))


def test_arrow_datasets_through_it(files):
    table = pa.table({"year": [2024, 2024, 2025], "value": [1.5, 2.5, 3.5]})
    pq.write_to_dataset(table, "set", partition_cols=["year"], filesystem=files)
    found = pyarrow.dataset.dataset("set", filesystem=files, partitioning="hive")
    assert sorted(found.to_table().column("value").to_pylist()) == [1.5, 2.5, 3.5]
    assert found.count_rows(filter=pyarrow.dataset.field("year") == 2025) == 1


def test_by_url(tmp_path):
    options = {"path": str(tmp_path / "store")}
    with fsspec.open("siltstone://a/b.txt", "wt", **options) as file:
        file.write("text")
    files = fsspec.filesystem("siltstone", **options)
    assert files.cat("siltstone://a/b.txt") == b"text"
    files.close()


def test_removing_by_pattern_and_what_is_not_there(store):
    files = StoreFileSystem(store=store, skip_instance_cache=True)
    for name in ("a1.csv", "a2.csv", "b.txt", "d/e", "odd[1].txt"):
        files.pipe_file(name, b"x")
    files.rm("a*.csv")
    files.rm("odd[1].txt")
    assert files.find("") == ["b.txt", "d/e"]
    for arguments in (("none", True), ("none",), (["b.txt", "none"], True), ("*.csv",)):
        with pytest.raises(FileNotFoundError):
            files.rm(*arguments)
    files.rm("d", recursive=True)
    assert files.find("") == []


def test_a_store_is_let_go_of_when_its_tree_cannot_be_had(tmp_path):
    siltstone.Store(tmp_path).close()
    for make in (
        lambda: StoreOfChunks(tmp_path, read_only=True),
        lambda: StoreFileSystem(path=tmp_path, read_only=True, skip_instance_cache=True),
        lambda: StoreOfChunks(tmp_path, tree="\0"),
        lambda: StoreFileSystem(path=tmp_path, tree="\0", skip_instance_cache=True),
    ):
        with pytest.raises((siltstone.errors.KeyMissing, siltstone.errors.InvalidKey)) as raised:
            make()
        with siltstone.Store(tmp_path):  # nobody holds it, though the error is kept
            assert raised.value
