"""Damage: flipped bits, foreign bytes and truncation anywhere. Never wrong data, never a crash."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path
from typing import Any

import pytest
from fakes import CrashDevice
from storerig import TINY, contents, on_device

import siltstone
from siltstone import errors

pytestmark = pytest.mark.crash

SLOTS, SEGMENT = 120, 16384
RECORDS = 600


def filled(batched: bool = False) -> tuple[CrashDevice, dict[bytes, bytes]]:
    """A closed store whose records can be found in its bytes; set one by one, or in one batch."""
    device = CrashDevice(SLOTS, SEGMENT, engine="store")
    rng = random.Random(5)
    pairs = {b"key:%04d" % n: rng.randbytes(60) for n in range(RECORDS)}
    pairs[b"large"] = rng.randbytes(40_000)
    with on_device(device) as store:
        if batched:
            store.update(pairs)
        for key, value in pairs.items() if not batched else ():
            store[key] = value
        store.checkpoint()
    return device, pairs


def damaged(device: CrashDevice, *places: int, mask: int = 4) -> CrashDevice:
    image = bytearray(device.content)
    for place in places:
        image[place] ^= mask
    return device.reopened(image)


def place_of(device: CrashDevice, value: bytes) -> int:
    """Where the newest copy of these bytes lies on the medium."""
    place = bytes(device.content).rfind(value)
    assert place > 0
    return place


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("key", [b"key:0000", b"key:0300", b"key:0599"])
def test_a_damaged_page_is_listed_and_costs_its_own_records_only(key, batched):
    device, pairs = filled(batched)
    with on_device(damaged(device, place_of(device, pairs[key]) + 10)) as store:
        with pytest.raises(errors.Corruption) as caught:
            store[key]
        assert caught.value.offset >= 0 or "offset" in str(caught.value)
        report = store.verify()
        assert not report.ok
        assert report.problems
        right = lost = 0
        for other, value in pairs.items():
            try:
                assert store[other] == value
                right += 1
            except errors.Corruption:
                lost += 1
        assert 1 <= lost <= 6  # of a page of 256 bytes
        assert right == len(pairs) - lost


def test_a_damaged_large_value_is_reported_and_the_rest_is_read():
    device, pairs = filled()
    with on_device(damaged(device, place_of(device, pairs[b"large"][20_000:20_050]))) as store:
        with pytest.raises(errors.Corruption):
            store[b"large"]
        with store.open(b"large", "rb") as file, pytest.raises(errors.Corruption):
            file.read()
        assert store[b"key:0000"] == pairs[b"key:0000"]
        assert not store.verify().ok


@pytest.mark.slow
def test_any_flipped_bit_gives_right_values_or_errors(seed, thorough):
    """At random places of the used part of the medium: opening says what is wrong or works, and
    what is read is right or an error."""
    device, pairs = filled()
    rng = random.Random(f"{seed} flips")
    used = len(bytes(device.content).rstrip(b"\0"))
    opened = 0
    for _ in range(600 if thorough else 60):
        place = rng.randrange(used)
        mask = 1 << rng.randrange(8)
        with (
            contextlib.suppress(errors.Corruption),
            on_device(damaged(device, place, mask=mask)) as store,
        ):
            opened += 1
            check_values(store, pairs)
            store.verify()
    assert opened > 30


def check_values(store: Any, pairs: dict[bytes, bytes]) -> None:
    for key, value in pairs.items():
        try:
            found = store.get(key)
        except errors.Corruption:
            continue
        assert found == value or (found is None and not store.recovery.ok)


@pytest.mark.slow
def test_the_end_of_the_file_cut_off(seed, tmp_path, thorough):
    """At any length: a typed error, or a prefix of the commits that is right."""
    path = tmp_path / "store"
    with siltstone.Store(path, **TINY) as store:
        for number in range(300):
            store[b"%04d" % number] = b"%d" % number * 20
        store.sync()
        whole = (path / "data").read_bytes()  # as a crash would leave it
    rng = random.Random(f"{seed} cut")
    for length in [0, 1, 512, 8191, 8192, *rng.sample(range(len(whole)), 60 if thorough else 12)]:
        cut = tmp_path / f"cut-{length}"
        cut.mkdir()
        (cut / "data").write_bytes(whole[:length])
        with contextlib.suppress(errors.Corruption), siltstone.Store(cut, **TINY) as store:
            found = contents(store)[""]
            numbers = sorted(int(key) for key in found)
            assert numbers == list(range(len(numbers)))
            assert all(found[b"%04d" % n] == b"%d" % n * 20 for n in numbers)


@pytest.mark.slow
def test_files_of_anything(seed, tmp_path, thorough):
    """Random bytes, zeros, text, another engine's file: refused with a typed error, or, when it is
    empty, a new store. Nothing hangs and nothing asks for much memory."""
    rng = random.Random(f"{seed} anything")
    for number in range(60 if thorough else 12):
        path = tmp_path / f"s{number}"
        path.mkdir()
        size = rng.choice([1, 100, 4096, 8192, 70_000])
        data = rng.choice(
            [rng.randbytes(size), b"text " * (size // 5 + 1), b"siltston" + rng.randbytes(size)]
        )
        (path / "data").write_bytes(data)
        with pytest.raises(errors.Corruption):
            siltstone.Store(path)
        assert (path / "data").read_bytes() == data  # what is not ours stays as it is


def test_a_store_is_no_cache_and_a_newer_format_is_refused(tmp_path):
    siltstone.Store(tmp_path / "store").close()
    with open(tmp_path / "store" / "data", "r+b") as file:
        for copy in (0, 4096):
            file.seek(copy + 12)
            file.write(b"\x09")
    with pytest.raises(errors.Corruption):
        siltstone.Store(tmp_path / "store")


def test_a_missing_data_file_is_a_new_store(tmp_path):
    path = tmp_path / "store"
    siltstone.Store(path).close()
    Path(path / "data").unlink()
    with siltstone.Store(path) as store:
        assert not store.was_recovered
