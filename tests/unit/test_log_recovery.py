"""What comes back when the arena is lost: exactly the live records, whatever the device holds."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path

import pytest
from fakes import FaultDevice
from logrig import BLOCK, OK, put, small_log

from siltstone import errors
from siltstone.log.device import Device, FileDevice, MemoryDevice, open_live_map
from siltstone.log.livemap import LiveMap, live_map_bytes
from siltstone.log.log_face import Log
from siltstone.log.recovery import Recovery, recover
from siltstone.log.scan import PythonFound

SEGMENTS, SEGMENT_BYTES = 16, 4 * BLOCK
BOOT, OTHER_BOOT = b"b" * 16, b"o" * 16


class Rig:
    """A device and a live map that outlive the arena."""

    def __init__(self, device: Device | None = None) -> None:
        self.device = device or MemoryDevice(SEGMENTS, SEGMENT_BYTES)
        self.live_map = LiveMap(
            self.device.segment_count, self.device.segment_bytes, self.device.superblock.uuid
        )
        self.log = small_log(self.device, live_map=self.live_map)

    def lose_arena(
        self, *, warm: bool = True, threads: int = 1, wanted: object = None
    ) -> tuple[dict[int, tuple[int, bytes]], Recovery]:
        self.log = small_log(self.device, live_map=self.live_map)
        found: dict[int, tuple[int, bytes]] = {}

        def keep(position: int, kind: int, payload: bytes) -> bool:
            if wanted is not None and position not in wanted:  # type: ignore[operator]
                return False
            found[position] = (kind, payload)
            return True

        report = recover(self.log, PythonFound(keep), warm=warm, threads=threads)
        self.log.check_invariants()
        return found, report


def fill(log: Log, count: int, seed: int) -> dict[int, tuple[int, bytes]]:
    """Records appended, every third one dead again; the live ones that are left."""
    rng = random.Random(seed)
    stored: dict[int, tuple[int, bytes]] = {}
    for number in range(count):
        data = rng.randbytes(rng.randrange(1200))
        position = put(log, number % 4, 1 + number % 9, data)
        assert log.live(position)
        stored[position] = (1 + number % 9, data)
        if number % 3 == 0:
            dead = rng.choice(list(stored))
            log.dead(dead)
            del stored[dead]
    return {position: record for position, record in stored.items() if log.is_current(position)}


@pytest.mark.parametrize("threads", [1, 3])
def test_exactly_the_live_records_come_back(threads: int) -> None:
    rig = Rig()
    stored = fill(rig.log, 150, 1)
    rig.log.flush()
    found, report = rig.lose_arena(threads=threads)
    assert found == stored
    assert (report.kept, report.lost, report.damaged, report.dropped) == (len(stored), 0, 0, 0)
    for position, record in stored.items():
        assert rig.log.read(position) == record
        assert rig.log.is_live(position)


def test_what_was_only_in_buffers_is_lost_and_counted() -> None:
    rig = Rig()
    stored = fill(rig.log, 30, 2)
    rig.log.flush()
    later = rig.log.append(0, 1, b"not written")
    assert rig.log.live(later)
    found, report = rig.lose_arena()
    assert found == stored
    assert report.lost == 1
    assert not rig.log.is_live(later)


def test_the_log_goes_on_after_recovery_and_again() -> None:
    rig = Rig()
    stored: dict[int, tuple[int, bytes]] = {}
    versions: set[int] = set()
    for number in range(6):
        log, before = rig.log, set(versions)
        stored |= fill(log, 40, 10 + number)
        log.flush()
        stored = {p: record for p, record in stored.items() if log.is_live(p)}
        new = {info["version"] for info in log.segments() if info["version"]}
        versions |= new
        assert max(before, default=0) < max(new)
        found, _ = rig.lose_arena()
        assert found == stored


def test_records_that_the_engine_does_not_want_are_dead() -> None:
    rig = Rig()
    stored = fill(rig.log, 60, 3)
    rig.log.flush()
    wanted = set(list(stored)[::2])
    found, report = rig.lose_arena(wanted=wanted)
    assert set(found) == wanted
    assert report.dropped == len(stored) - len(wanted)
    found, report = rig.lose_arena()
    assert set(found) == wanted
    assert report.lost == 0


def test_a_cold_start_finds_nothing_and_uses_no_version_again() -> None:
    rig = Rig()
    stored = fill(rig.log, 60, 4)
    rig.log.flush()
    newest = max(info["version"] for info in rig.log.segments())
    found, report = rig.lose_arena(warm=False)
    assert (found, report.segments) == ({}, 0)
    assert rig.log.segments_free == SEGMENTS
    position = rig.log.append(0, 1, b"new")
    assert position // SEGMENT_BYTES > newest
    assert not any(rig.log.is_current(position) for position in stored)


def test_bytes_of_a_former_life_are_not_what_the_bits_mean() -> None:
    # Segment 0 holds records of its first life. It is opened again, a record of the same size is
    # appended at the same offset and linked, and the arena is lost before a byte is written.
    rig = Rig(MemoryDevice(1, SEGMENT_BYTES))
    old = rig.log.append(0, 1, b"the value that was deleted")
    rig.log.live(old)
    rig.log.flush()
    rig.log.dead(old)
    assert rig.log.forget(0, 1) == OK
    new = rig.log.append(0, 1, b"the value that is current!")
    assert rig.log.live(new)
    assert new % SEGMENT_BYTES == old % SEGMENT_BYTES
    found, report = rig.lose_arena()
    assert found == {}
    assert report.segments_stale == 1


def test_versions_that_repeat_do_not_revive_either() -> None:
    # The same, with an arena that was lost and a map that was wiped in between.
    device = MemoryDevice(1, SEGMENT_BYTES)
    rig = Rig(device)
    rig.log.append(0, 1, b"the value that was deleted")
    rig.log.flush()
    rig = Rig(device)  # forgets to learn which versions were used: version 1 comes again
    new = rig.log.append(0, 1, b"the value that is current!")
    rig.log.live(new)
    found, report = rig.lose_arena()
    assert (found, report.segments_stale) == ({}, 1)


def test_damage_costs_what_it_hits() -> None:
    rig = Rig()
    stored = fill(rig.log, 120, 5)
    rig.log.flush()
    rng = random.Random(6)
    victims = rng.sample(sorted(stored), 12)
    slots = {info["version"]: info["slot"] for info in rig.log.segments()}
    for position in victims:
        slot, offset = slots[position // SEGMENT_BYTES], position % SEGMENT_BYTES
        byte = bytearray(rig.device.read(slot, offset + 4, 1))
        rig.device.write(slot, offset + 4, bytes([byte[0] ^ 0x55]))  # the record's kind
    run = next(slot for version, slot in slots.items() if version == 1)
    rig.device.write(run, BLOCK, b"\xff" * 48)  # a run's header: its records still stand
    found, report = rig.lose_arena()
    lost = set(stored) - set(found)
    assert lost == set(victims)
    assert all(found[position] == stored[position] for position in found)
    assert report.lost == 12
    assert 0 < report.damaged <= 12


def test_a_damaged_or_unreadable_header_costs_its_segment() -> None:
    rig = Rig(FaultDevice(MemoryDevice(SEGMENTS, SEGMENT_BYTES)))
    stored = fill(rig.log, 120, 7)
    rig.log.flush()
    slots = {info["version"]: info["slot"] for info in rig.log.segments()}
    slot = slots[2]
    byte = bytearray(rig.device.read(slot, 17, 1))
    rig.device.write(slot, 17, bytes([byte[0] ^ 1]))
    assert isinstance(rig.device, FaultDevice)
    rig.device.add("read", errno.EIO)
    first = next(version for version, number in slots.items() if number == 0)
    found, report = rig.lose_arena()
    gone = {2, first}
    assert found == {p: r for p, r in stored.items() if p // SEGMENT_BYTES not in gone}
    assert report.headers_unreadable == 1


def test_an_error_of_the_callback_reaches_the_caller() -> None:
    rig = Rig()
    fill(rig.log, 10, 8)
    rig.log.flush()
    log = small_log(rig.device, live_map=rig.live_map)

    def fails(position: int, kind: int, payload: bytes) -> bool:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        recover(log, PythonFound(fails), warm=True)


def test_segments_in_which_nothing_lives_are_free() -> None:
    rig = Rig()
    stored = fill(rig.log, 100, 9)
    rig.log.flush()
    for position in stored:
        if position // SEGMENT_BYTES == 1:
            rig.log.dead(position)
    found, _ = rig.lose_arena()
    assert found
    assert 1 not in {info["version"] for info in rig.log.segments()}


# The live map --------------------------------------------------------------------------------


def open_map(path: Path, uuid: bytes = b"u" * 16, segments: int = 4) -> LiveMap:
    descriptor, _ = open_live_map(path, live_map_bytes(segments, SEGMENT_BYTES))
    try:
        return LiveMap(segments, SEGMENT_BYTES, uuid, descriptor)
    finally:
        os.close(descriptor)


def test_a_map_is_trusted_in_the_same_boot_or_after_a_clean_close(tmp_path: Path) -> None:
    path = tmp_path / "live"
    live_map = open_map(path)
    assert not live_map.found
    assert not live_map.trusted(BOOT)
    live_map.begin(BOOT)
    live_map.cas_ceiling, live_map.flush_word = 77, 78
    again = open_map(path)
    assert again.found
    assert (again.cas_ceiling, again.flush_word) == (77, 78)
    assert again.trusted(BOOT)
    assert not again.trusted(OTHER_BOOT)
    again.finish()
    assert open_map(path).trusted(OTHER_BOOT)
    again.begin(bytes(16))
    assert not open_map(path).trusted(bytes(16))


def test_the_map_of_another_device_or_geometry_is_emptied(tmp_path: Path) -> None:
    path = tmp_path / "live"
    open_map(path).begin(BOOT)
    assert not open_map(path, uuid=b"v" * 16).found
    assert open_map(path, uuid=b"v" * 16).found
    assert not open_map(path, segments=5).found


def test_bits_survive_with_the_file(tmp_path: Path) -> None:
    device = FileDevice(
        [(tmp_path / "flash", SEGMENTS * SEGMENT_BYTES)], SEGMENT_BYTES, engine="cache"
    )
    with device:
        size = live_map_bytes(SEGMENTS, SEGMENT_BYTES)
        uuid = device.superblock.uuid
        maps = []
        for _ in range(2):
            descriptor, _ = open_live_map(tmp_path / "live", size)
            maps.append(LiveMap(SEGMENTS, SEGMENT_BYTES, uuid, descriptor))
            os.close(descriptor)
        log = small_log(device, live_map=maps[0])
        stored = fill(log, 50, 11)
        log.flush()
        log = small_log(device, live_map=maps[1])
        report = recover(log, warm=True)
        assert report.kept == len(stored)
        assert all(log.read(position) == record for position, record in stored.items())


def test_maps_that_cannot_be() -> None:
    with pytest.raises(errors.ConfigError):
        LiveMap(4, BLOCK + 512, b"u" * 16)
    with pytest.raises(errors.ConfigError):
        LiveMap(4, BLOCK, b"short")
    with pytest.raises(errors.ConfigError):
        small_log(segment_bytes=8 * BLOCK, live_map=LiveMap(8, BLOCK, b"u" * 16))
