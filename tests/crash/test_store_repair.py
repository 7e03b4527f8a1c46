"""Repair: a damaged store gives a new one with all that can still be read, and says what is lost.

The damaged file is never changed. Values are right, or reported; nothing is made up.
"""

from __future__ import annotations

import random
import struct
from pathlib import Path
from typing import Any

import pytest
from storerig import TINY, contents

import siltstone
from siltstone import errors
from siltstone.log.superblock import FIRST_DATA_OFFSET, newest
from siltstone.store.repair import LOST_TREE

pytestmark = pytest.mark.crash

SEGMENT = 16384
TREES = ("", "mails", "users")


History = dict[tuple[bytes, bytes], str]  # key and value: the tree in which it was, some time


def fill(
    path: Path, records: int = 300, history: History | None = None
) -> dict[str, dict[bytes, bytes]]:
    """A store with several trees, levels, checkpoints, a large value; its contents."""
    rng = random.Random(3)
    history = {} if history is None else history
    held: dict[str, dict[bytes, bytes]] = {name: {} for name in TREES}
    with siltstone.Store(path, background=False, **TINY) as store:
        for number in range(records):
            for name in TREES:
                tree = store.tree(name) if name else store
                key, value = b"%s:%04d" % (name.encode(), rng.randrange(records)), rng.randbytes(50)
                tree[key] = value
                held[name][key] = value
                history[key, value] = name
            if number % 100 == 99:
                store.checkpoint()
        large = rng.randbytes(30_000)
        store[b"large"] = large
        held[""][b"large"] = large
        history[b"large", large] = ""
        for _ in range(40):
            store.generate_id()
        store.sync()
    return held


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[bytes, dict[str, dict[bytes, bytes]]]:
    path = tmp_path_factory.mktemp("made") / "store"
    held = fill(path)
    return (path / "data").read_bytes(), held


def repaired(
    tmp_path: Path, data: bytes, **options: Any
) -> tuple[Any, dict[str, dict[bytes, bytes]], int]:
    """(report, contents of the new store, an id that it gives out); the old file stays."""
    source, target = tmp_path / "damaged", tmp_path / "new"
    source.mkdir()
    (source / "data").write_bytes(data)
    report = siltstone.Store.repair(source, target, **options)
    assert (source / "data").read_bytes() == data
    with siltstone.Store(target, background=False) as store:
        assert store.verify().ok
        assert sum(map(len, contents(store).values())) == report.records
        return report, contents(store), store.generate_id()


def remove(*paths: Path) -> None:
    for path in paths:
        for file in path.iterdir():
            file.unlink()
        path.rmdir()


def flipped(data: bytes, *places: int, size: int = 1) -> bytes:
    image = bytearray(data)
    for place in places:
        for at in range(place, min(place + size, len(image))):
            image[at] ^= 0x5A
    return bytes(image)


def count_right(found: dict[str, dict[bytes, bytes]], held: dict[str, dict[bytes, bytes]]) -> int:
    return sum(
        found.get(name, {}).get(key) == value for name in held for key, value in held[name].items()
    )


def records(held: dict[str, dict[bytes, bytes]]) -> int:
    return sum(map(len, held.values()))


def test_a_store_without_damage_is_copied_and_the_report_is_ok(tmp_path, made):
    data, held = made
    report, found, identity = repaired(tmp_path, data)
    assert report.ok, report.problems
    assert found == held
    assert report.trees == 3
    assert identity > 40  # none is given out twice


def test_both_superblocks(tmp_path, made):
    data, held = made
    report, found, _ = repaired(tmp_path, flipped(data, 100, 4096 + 100))
    assert found == held
    assert any("superblock" in text for text in report.problems)


def checkpoints(data: bytes) -> list[int]:
    """Places of the records in which the two checkpoints begin."""
    block = newest(data[:FIRST_DATA_OFFSET], "data")
    return [
        FIRST_DATA_OFFSET + slot * SEGMENT + position % SEGMENT
        for position, slot in (
            (block.checkpoint_position, block.checkpoint_slot),
            (block.checkpoint_before, block.checkpoint_before_slot),
        )
    ]


def test_the_newest_checkpoint(tmp_path, made):
    data, held = made
    report, found, _ = repaired(tmp_path, flipped(data, checkpoints(data)[0]))
    assert found == held
    assert any("checkpoint" in text for text in report.problems)


def test_both_checkpoints(tmp_path, made):
    data, held = made
    damaged = flipped(data, *checkpoints(data))
    path = tmp_path / "refused"
    path.mkdir()
    (path / "data").write_bytes(damaged)
    with pytest.raises(errors.Corruption, match="siltstone repair"):
        siltstone.Store(path)
    report, found, identity = repaired(tmp_path, damaged)
    assert count_right(found, held) == records(held)
    assert any("no checkpoint" in text for text in report.problems)
    assert identity > 40


def test_superblocks_and_checkpoints(tmp_path, made):
    data, held = made
    report, found, _ = repaired(tmp_path, flipped(data, 100, 4096 + 100, *checkpoints(data)))
    assert count_right(found, held) == records(held)
    assert not report.ok


def places_of(data: bytes, kind: int) -> list[int]:
    """Offsets of valid-looking records of that kind, from the outside: headers tile runs."""
    found = []
    for slot in range((len(data) - FIRST_DATA_OFFSET) // SEGMENT):
        start = FIRST_DATA_OFFSET + slot * SEGMENT
        for run in range(0, SEGMENT, 4096):
            at = start + run + (96 + 48 if run == 0 else 48)
            while at + 64 <= start + run + 4096:
                word = struct.unpack_from("<I", data, at + 4)[0]
                if word & 0xFF == 0:
                    break
                if word & 0x7F == kind:
                    found.append(at)
                at += max(64, (8 + (word >> 8) + 15) // 16 * 16)
    return found


def test_table_blocks(tmp_path, made):
    """All images of table blocks: the table is made anew from the log's records."""
    data, held = made
    report, found, _ = repaired(tmp_path, flipped(data, *[p + 30 for p in places_of(data, 7)]))
    assert count_right(found, held) == records(held)
    assert any("table block" in text for text in report.problems)


def test_a_page_costs_its_own_records_and_is_named(tmp_path, made):
    data, held = made
    value = sorted(held["users"].items())[70][1]
    place = data.rindex(value)
    report, found, _ = repaired(tmp_path, flipped(data, place))
    lost = records(held) - count_right(found, held)
    assert 1 <= lost <= 8
    assert any("'users'" in text and "data, offset" in text for text in report.problems)
    assert len(report.problems) <= 2


def test_a_large_value(tmp_path, made):
    data, held = made
    report, found, _ = repaired(tmp_path, flipped(data, data.rindex(held[""][b"large"][9000:9040])))
    assert b"large" not in found[""]
    assert count_right(found, held) == records(held) - 1
    assert [text for text in report.problems if "large" in text]


def test_inner_pages_are_gaps_whose_leaves_are_found(tmp_path, made):
    """Every inner page of one tree: its leaves are looked for among those that nobody reaches."""
    data, held = made
    bases = [
        place
        for place in places_of(data, 1) + places_of(data, 8)
        if data[place + 24 + (8 if data[place + 4] & 0x80 else 0)] == 2
    ]
    assert bases
    report, found, _ = repaired(tmp_path, flipped(data, *[p + 50 for p in bases]))
    everything: dict[bytes, bytes] = {}
    for pairs in found.values():
        everything |= pairs
    right = sum(everything.get(k) == v for pairs in held.values() for k, v in pairs.items())
    assert right >= records(held) * 0.9
    assert not report.ok


def test_a_segment_that_is_gone(tmp_path, made):
    """Any one segment zeroed, header and all."""
    data, held = made
    slots = (len(data) - FIRST_DATA_OFFSET) // SEGMENT
    total = 0
    for slot in range(0, slots, 3):
        start = FIRST_DATA_OFFSET + slot * SEGMENT
        image = data[:start] + bytes(SEGMENT) + data[start + SEGMENT :]
        report, found, _ = repaired(tmp_path, image)
        total += count_right(found, held) - records(held)
        assert found == held or not report.ok
        remove(tmp_path / "damaged", tmp_path / "new")
    assert total < 0


# Anywhere -------------------------------------------------------------------------------------


def check(found: dict[str, dict[bytes, bytes]], history: History) -> None:
    """Nothing is made up: each record was once in that tree, or is set apart."""
    for name, pairs in found.items():
        for pair in pairs.items():
            assert history[pair] == name or name == LOST_TREE


@pytest.mark.slow
def test_flips_over_the_whole_file(tmp_path, thorough):
    history: History = {}
    held = fill(tmp_path / "store", 120, history)
    data = (tmp_path / "store" / "data").read_bytes()
    step = len(data) // (1500 if thorough else 90)
    for place in range(0, len(data), step):
        report, found, _ = repaired(tmp_path, flipped(data, place, place + step // 2))
        check(found, history)
        assert found == held or not report.ok, place
        back = count_right(found, held)
        if any("neither checkpoint" in problem for problem in report.problems):
            back = records(found)  # which tree a page belonged to went with both: set apart
        assert back >= records(held) * 0.6, (place, report.problems)
        remove(tmp_path / "damaged", tmp_path / "new")


@pytest.mark.slow
def test_the_end_cut_off_anywhere(tmp_path, thorough):
    history: History = {}
    held = fill(tmp_path / "store", 120, history)
    data = (tmp_path / "store" / "data").read_bytes()
    step = len(data) // (300 if thorough else 24)
    for length in range(FIRST_DATA_OFFSET + SEGMENT, len(data) + 1, step):
        try:
            report, found, _ = repaired(tmp_path, data[:length])
        except errors.Corruption:
            assert length < len(data)  # with a clear error, and nothing made
        else:
            check(found, history)
            assert found == held or not report.ok
            remove(tmp_path / "new")
        remove(tmp_path / "damaged")


def test_a_flip_is_an_error_when_read_and_verify_and_repair_name_it(tmp_path, made):
    """What each of the three says of one damaged value: file and offset."""
    data, held = made
    key, value = sorted(held["mails"].items())[20]
    place = data.rindex(value)
    path = tmp_path / "store"
    path.mkdir()
    (path / "data").write_bytes(flipped(data, place))
    with siltstone.Store(path, read_only=True) as store:
        with pytest.raises(
            errors.Corruption, match=r"data, offset \d+ fails its checksum"
        ) as caught:
            store.tree("mails")[key]
        assert caught.value.path == str(path / "data")
        assert place - 4096 < caught.value.offset < place
        assert caught.value.expected != caught.value.found
        assert any("data, offset" in text for text in store.verify().problems)
    report = siltstone.Store.repair(path, tmp_path / "new")
    assert any("data, offset" in text for text in report.problems)


# Refusals -------------------------------------------------------------------------------------


def test_what_repair_refuses(tmp_path):
    path = tmp_path / "store"
    with siltstone.Store(path) as store:
        store[b"k"] = b"v"
        with pytest.raises(errors.Locked, match=r"in use by pid \d+ \(this one\)"):
            siltstone.Store.repair(path, tmp_path / "new")
        assert store[b"k"] == b"v"
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").write_text("mine")
    with pytest.raises(errors.EnvironmentFailure, match="exists: name a new directory"):
        siltstone.Store.repair(path, tmp_path / "there")
    with pytest.raises(errors.EnvironmentFailure, match="No such file"):
        siltstone.Store.repair(tmp_path / "none", tmp_path / "new")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "data").write_text("no store " * 3000)
    with pytest.raises(errors.WrongFormat, match="not a siltstone file"):
        siltstone.Store.repair(tmp_path / "text", tmp_path / "new")
    siltstone.PageCache(tmp_path / "pages", Merging()).close()
    with pytest.raises(errors.Corruption, match="engine 'pages'"):
        siltstone.Store.repair(tmp_path / "pages", tmp_path / "new")
    assert not (tmp_path / "new").exists()


class Merging:
    def merge(self, fragments: list[bytes]) -> bytes:
        return b"".join(fragments)
