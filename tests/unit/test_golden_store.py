"""Files that format 1 made (tests/golden/v1) are read for ever, exactly; those of no known format
are refused, and stay as they are."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from pathlib import Path
from typing import Any

import google_crc32c
import pytest
from reference.store_file import StoreFile

import siltstone
from siltstone import errors

GOLDEN = Path(__file__).parents[1] / "golden" / "v1"
STORES = ("store", "store-zstd")
KINDS = {1, 2, 3, 4, 5, 6, 7, 8, 0x70, 0x71, 0x72, 0xFF}  # docs/pages.md, docs/ordered-log.md


def expected(name: str) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = json.loads((GOLDEN / f"{name}.json").read_text())
    return found


def shown(value: bytes) -> str:
    return value.hex() if len(value) <= 200 else "sha256:" + hashlib.sha256(value).hexdigest()


def contents(store: Any) -> dict[str, dict[str, str]]:
    trees = {name: store.tree(name) if name else store for name in ("", *store.trees())}
    return {n: {k.hex(): shown(v) for k, v in tree.items()} for n, tree in trees.items()}


@pytest.fixture(params=STORES)
def golden(request, tmp_path) -> tuple[Path, str]:
    shutil.copytree(GOLDEN / request.param, tmp_path / "store")
    return tmp_path / "store", request.param


def test_it_is_read_exactly_and_not_changed(golden):
    path, name = golden
    before = (path / "data").read_bytes()
    with siltstone.Store(path, read_only=True) as store:
        assert store.recovery.outcome == "clean"
        assert contents(store) == expected(name)
        assert store.verify().ok
    assert (path / "data").read_bytes() == before


def test_it_is_written_on(golden):
    path, name = golden
    for turn in range(2):
        with siltstone.Store(path, cache="64KiB") as store:
            held = contents(store)
            for number in range(500):
                store[b"new:%d" % number] = b"%d" % turn * 100
            assert store.generate_id() > 3
    with siltstone.Store(path) as store:
        assert {key: value for key, value in contents(store)[""].items() if key in held[""]}
        store.delete_range(prefix=b"new:")
        assert contents(store) == expected(name)
        assert store.verify().ok


def test_repair_reads_it(golden, tmp_path):
    path, name = golden
    assert siltstone.Store.repair(path, tmp_path / "new").ok
    with siltstone.Store(tmp_path / "new") as store:
        assert contents(store) == expected(name)


def test_the_documented_layout_read_by_other_code():
    file = StoreFile((GOLDEN / "store" / "data").read_bytes())
    found = file.contents()
    assert {n: {k.hex(): shown(v) for k, v in p.items()} for n, p in found.items()} == expected(
        "store"
    )
    assert {kind if kind == 0xFF else kind & 0x7F for _, kind, _ in file.stream()} == KINDS


def test_a_file_of_today_read_by_other_code(tmp_path):
    with siltstone.Store(tmp_path, page_size=512) as store:
        for number in range(500):
            store[b"%d" % number] = b"v" * (number % 90)
        store[b"large"] = bytes(range(256)) * 3000
        store.tree("other")[b"k"] = b"v"
        held = {"": dict(store.items()), "other": {b"k": b"v"}}
    assert StoreFile((tmp_path / "data").read_bytes()).contents() == held


def test_the_worked_example_of_the_document(tmp_path):
    text = (Path(__file__).parents[2] / "docs" / "format.md").read_text()
    example = text[text.index("A new store; `stone`") :]
    rows = [
        line[11:].split("  ")[0]
        for line in example.splitlines()
        if line[:11].strip()[:2] in ("", "0x")
    ]
    printed = "".join(row for row in rows if set(row) <= set("0123456789abcdef .")).replace(" ", "")
    with siltstone.Store(
        tmp_path, segment_size="16KiB", buffer_size="4KiB", background=False
    ) as store:
        store[b"stone"] = b"grey"
        store[b"stone"] = b"red"
    file = StoreFile((tmp_path / "data").read_bytes())
    records = [(kind, payload) for _, kind, payload in file.stream()]
    assert [kind for kind, _ in records] == [0x81, 0x85, 0x70, 3, 3, 0x71, 7, 0x71, 0x72]
    for kind, payload in records[:7]:
        shown = payload.hex() if kind != 0x70 else payload[:12].hex() + "." * 8 + payload[16:].hex()
        assert shown.rstrip("0") in printed, hex(kind)


def test_a_dump_of_version_1():
    with siltstone.Store() as store, open(GOLDEN / "dump", "rb") as file:
        assert store.load(file) == sum(map(len, expected("store").values()))
        assert contents(store) == expected("store")
        again = io.BytesIO()
        store.dump(again)
    assert again.getvalue() == (GOLDEN / "dump").read_bytes()


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize("copies", [(0, 4096), (0,), (4096,)], ids=str)
def test_a_newer_format_is_refused(golden, read_only, copies):
    """Also when only one of the superblock's copies is: the other one is out of date then."""
    path, _ = golden
    image = bytearray((path / "data").read_bytes())
    for copy in copies:
        image[copy + 12] = 2
        checksum = google_crc32c.value(bytes(image[copy + 12 : copy + 512]))
        image[copy + 8 : copy + 12] = checksum.to_bytes(4, "little")
    (path / "data").write_bytes(image)
    with pytest.raises(errors.WrongFormat, match="format version 2, this siltstone reads 1") as got:
        siltstone.Store(path, read_only=read_only)
    assert (got.value.expected, got.value.found) == (1, 2)
    with pytest.raises(errors.WrongFormat, match="format version 2"):
        siltstone.Store.repair(path, path.with_name("new"))
    assert (path / "data").read_bytes() == image
    assert not path.with_name("new").exists()


def test_another_engines_file_is_refused(tmp_path):
    siltstone.Cache(tmp_path / "cache", flash="8MiB").close()
    data = next(file for file in (tmp_path / "cache").iterdir() if file.stat().st_size > 1 << 20)
    (tmp_path / "store").mkdir()
    shutil.copy(data, tmp_path / "store" / "data")
    before = (tmp_path / "store" / "data").read_bytes()
    with pytest.raises(errors.WrongFormat, match="belongs to the engine"):
        siltstone.Store(tmp_path / "store")
    assert (tmp_path / "store" / "data").read_bytes() == before
