"""Appending, reading, sealing, writing, forgetting: one thread, tiny segments."""

from __future__ import annotations

import errno
import random

import pytest
from fakes import Fault, FaultDevice
from logrig import (
    BLOCK,
    BUSY,
    FAILED,
    GONE,
    HEADERS,
    IO,
    NO_BUFFER,
    NO_SEGMENT,
    NOTHING,
    OK,
    STARTED_MS,
    arena_for,
    put,
    reclaim,
    small_log,
)

from siltstone import errors
from siltstone.log.device import MemoryDevice
from siltstone.log.log_face import Log


def test_the_first_record_stands_behind_both_headers() -> None:
    log = small_log()
    assert log.append(0, 1, b"stone") == 1 * log.segment_bytes + HEADERS
    assert log.append(0, 2, b"") == 1 * log.segment_bytes + HEADERS + 64


@pytest.mark.parametrize("size", [0, 1, 55, 56, 57, 1000, 3000])
def test_a_record_reads_back_from_buffer_and_device(size: int) -> None:
    log = small_log()
    data = random.Random(size).randbytes(size)
    position = log.append(1, 7, data)
    assert log.read(position) == (7, data)
    assert log.stats()["device_reads"] == 0
    log.flush()
    assert log.read(position) == (7, data)
    assert log.stats()["device_reads"] == 1


def test_the_largest_record_fits_and_one_byte_more_does_not() -> None:
    log = small_log()
    largest = b"x" * log.record_bytes_max
    for _ in range(5):
        position = put(log, 0, 1, largest)
        assert log.read(position) == (1, largest)
    assert log.stats()["segments_opened"] == 2
    with pytest.raises(errors.TooLarge):
        log.append(0, 1, largest + b"x")


def test_kinds_that_mean_no_record_are_refused() -> None:
    log = small_log()
    assert log.try_append(0, 0, b"x")[0] == NOTHING
    assert log.try_append(0, 255, b"x")[0] == NOTHING
    assert log.try_append(4, 1, b"x")[0] == NOTHING


def test_streams_have_segments_of_their_own_opened_on_first_use() -> None:
    log = small_log()
    assert log.segments_free == 8
    positions = [log.append(stream, 1, b"x") for stream in (0, 3, 0, 3)]
    versions = [position // log.segment_bytes for position in positions]
    assert versions == [1, 2, 1, 2]
    assert log.segments_free == 6
    assert [info["stream"] for info in log.segments()] == [0, 3] + 6 * [None]
    log.check_invariants()


def test_no_buffer_then_write_one_makes_room() -> None:
    log = small_log(buffers=3, streams=2)
    status = OK
    while status == OK:
        status, _ = log.try_append(0, 1, b"x" * 900)
    assert status == NO_BUFFER
    assert log.stats()["buffer_waits"] == 1
    assert log.write_one() == OK
    assert log.try_append(0, 1, b"x" * 900)[0] == OK
    log.check_invariants()


def test_no_segment_then_forgetting_the_oldest_makes_room() -> None:
    log = small_log(segments=2)
    status, positions = OK, []
    while status == OK:
        log.write_one()
        status, position = log.try_append(0, 1, b"x" * 900)
        positions.append(position)
        log.live(position)
    assert status == NO_SEGMENT
    reclaim(log)
    assert log.read(positions[0]) is None
    assert not log.is_current(positions[0])
    assert log.try_append(0, 1, b"new")[0] == OK
    assert log.stats()["segments_forgotten"] == 1
    log.check_invariants()


def test_a_version_is_never_used_again() -> None:
    log = small_log(segments=2)
    seen: list[int] = []
    for number in range(400):
        version = put(log, 0, 1, bytes([number & 0xFF]) * 700) // log.segment_bytes
        if not seen or seen[-1] != version:
            assert not seen or version > seen[-1]
            seen.append(version)
    assert len(seen) == 20


def test_an_empty_segment_is_freed_by_whoever_needs_one() -> None:
    log = small_log(segments=3)
    for _ in range(200):
        log.write_one()
        assert log.try_append(0, 1, b"x" * 900)[0] == OK
    assert log.stats()["segments_freed"] >= 10
    assert log.stats()["segments_forgotten"] == 0
    log.check_invariants()


def test_a_segment_with_one_live_record_is_not_freed() -> None:
    log = small_log(segments=3)
    first = log.append(0, 1, b"keep me")
    assert log.live(first)
    for _ in range(200):
        log.write_one()
        assert log.try_append(0, 1, b"x" * 900)[0] == OK
    assert log.read(first) == (1, b"keep me")
    log.dead(first)
    while log.is_current(first):
        log.write_one()
        assert log.try_append(0, 1, b"x" * 900)[0] == OK
    log.check_invariants()


def test_live_bits_count_once() -> None:
    log = small_log()
    first, second = log.append(0, 1, b"a"), log.append(0, 1, b"b")
    assert not log.is_live(first)
    for _ in range(3):
        assert log.live(first)
    assert log.live(second)
    assert log.segments()[0]["live_records"] == 2
    for _ in range(3):
        log.dead(first)
    assert log.segments()[0]["live_records"] == 1
    assert (log.is_live(first), log.is_live(second)) == (False, True)
    log.check_invariants()


def test_nothing_lives_in_a_forgotten_segment() -> None:
    log = small_log()
    position = log.append(0, 1, b"a")
    assert log.live(position)
    assert log.forget(0, 1) == OK
    assert log.forget(0, 1) == GONE
    assert not log.is_live(position)
    assert not log.live(position)
    assert log.live_map.count(0) == 0
    assert log.read(position) is None
    assert log.segments_free == 8
    again = log.append(0, 1, b"b")
    assert log.read(again) == (1, b"b")
    assert not log.is_live(again)
    log.check_invariants()


def test_reclaim_sees_only_what_is_wholly_on_the_device() -> None:
    log = small_log(buffers=8)
    for _ in range(13):
        assert log.try_append(0, 1, b"x" * 3000)[0] == OK if log.write_one() >= 0 else False
    assert log.oldest() is not None
    log = small_log(buffers=8)
    for _ in range(6):
        assert log.try_append(0, 1, b"x" * 3000)[0] == OK
    assert log.segments()[0]["state"] == "sealed"
    assert log.oldest() is None
    while log.write_one() == OK:
        pass
    oldest = log.oldest(0b0001)
    assert oldest is not None
    assert oldest["version"] == 1
    assert log.oldest(0b1110) is None


def test_oldest_and_emptiest_choose_by_age_and_by_live_bytes() -> None:
    log = small_log()
    positions = [put(log, 0, 1, b"x" * 900) for _ in range(60)]
    for position in positions:
        log.live(position)
    log.flush()
    second = [position for position in positions if position // log.segment_bytes == 2]
    for position in second[1:]:
        log.dead(position)
    oldest, emptiest = log.oldest(), log.emptiest()
    assert oldest is not None
    assert emptiest is not None
    assert (oldest["version"], emptiest["version"]) == (1, 2)
    assert emptiest["live_records"] == 1
    assert emptiest["live_bytes"] == emptiest["filled_bytes"] // emptiest["records"]


def test_compaction_reads_every_record_of_a_segment() -> None:
    log = small_log()
    rng = random.Random(3)
    stored: dict[int, tuple[int, bytes]] = {}
    for number in range(60):
        data = rng.randbytes(rng.randrange(1500))
        stored[put(log, 0, 1 + number % 5, data)] = (1 + number % 5, data)
    log.flush()
    for info in log.segments():
        if info["state"] != "sealed":
            continue
        found = log.records(info["slot"], info["version"])
        assert found is not None
        expected = {p: v for p, v in stored.items() if p // log.segment_bytes == info["version"]}
        assert {position: (kind, data) for position, kind, data in found} == expected


def test_idle_buffers_are_sealed_by_age_and_empty_ones_lent_back() -> None:
    log = small_log()
    position = log.append(0, 1, b"idle")
    assert log.seal_idle(STARTED_MS + 999, 1000) == NOTHING
    assert log.seal_idle(STARTED_MS + 1000, 1000) == OK
    assert log.write_one() == OK
    assert log.stats()["buffers_free"] == 6
    assert log.stats()["device_bytes_written"] == BLOCK
    assert log.read(position) == (1, b"idle")
    following = log.append(0, 1, b"more")
    assert following == log.segment_bytes + BLOCK + 48
    log.flush()
    assert log.read(following) == (1, b"more")


def test_segments_are_dated_by_the_clock_that_was_told() -> None:
    log = small_log()
    log.seal_idle(STARTED_MS + 5000, 1000)
    log.append(2, 1, b"x")
    assert log.segments()[0]["opened_ms"] == STARTED_MS + 5000


def test_two_reads_for_a_record_longer_than_usual() -> None:
    log = small_log(segment_bytes=64 * BLOCK, buffer_bytes=16 * BLOCK)
    small, large = log.append(0, 1, b"s" * 100), log.append(0, 1, b"L" * 40_000)
    log.flush()
    assert log.read(large, capacity=50_000) == (1, b"L" * 40_000)
    assert log.stats()["device_reads"] == 2
    assert log.read(small) == (1, b"s" * 100)
    assert log.stats()["device_reads"] == 3


def test_positions_that_never_were() -> None:
    log = small_log()
    log.append(0, 1, b"x")
    assert log.read(log.segment_bytes + 8) is None
    for position in (0, 1, log.segment_bytes - 16, 1 << 63, (1 << 64) - 16):
        assert log.read(position) is None
        assert not log.live(position)
        assert not log.is_live(position)
    with pytest.raises(errors.Corruption):
        log.read(log.segment_bytes + HEADERS + 16)


# Devices that fail ---------------------------------------------------------------------------


def fault_log(*faults: Fault, **more: int) -> tuple[FaultDevice, Log]:
    device = FaultDevice(MemoryDevice(8, 4 * BLOCK), *faults)
    return device, small_log(device, **more)


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("keep", [0, 100])
def test_a_failed_write_loses_its_segment_and_says_so(error: int, keep: int) -> None:
    _, log = fault_log(Fault("write", 2, error, keep))
    positions = [log.append(0, 1, bytes([number]) * 3000) for number in range(3)]
    for position in positions:
        assert log.live(position)
    assert log.write_one() == OK
    assert log.write_one() == IO
    assert [log.read(position) for position in positions] == [None] * 3
    stats = log.stats()
    assert (stats["write_errors"], stats["segments_failed"]) == (1, 1)
    again = log.append(0, 1, b"again")
    log.flush()
    assert log.read(again) == (1, b"again")
    assert log.stats()["segments_free"] == 7
    log.check_invariants()


def test_a_log_whose_device_fails_for_good_stops_and_still_reads() -> None:
    device, log = fault_log()
    position = log.append(0, 1, b"on the device")
    log.flush()
    device.add("write", errno.EIO, last=1 << 30)
    status = OK
    for _ in range(200):
        status, _ = log.try_append(1, 1, b"x" * 3000)
        if status != OK:
            assert log.make_room() in (OK, IO) or status == FAILED
        if status == FAILED:
            break
    assert status == FAILED
    assert log.stats()["failed_errno"] == errno.EIO
    assert log.read(position) == (1, b"on the device")
    log.check_invariants()


def test_read_errors_are_errors_and_short_reads_are_not_data() -> None:
    device, log = fault_log()
    position = log.append(0, 1, b"y" * 2000)
    log.flush()
    device.add("read", errno.EIO)
    with pytest.raises(errors.DeviceFailed) as caught:
        log.read(position)
    assert caught.value.errno == errno.EIO
    assert log.read(position) == (1, b"y" * 2000)
    device.add("read", keep=50)
    with pytest.raises(errors.DeviceFailed):
        log.read(position)
    assert log.stats()["read_errors"] == 2


def test_a_flipped_bit_is_never_given_out() -> None:
    device = MemoryDevice(8, 4 * BLOCK)
    log = small_log(device)
    data = random.Random(5).randbytes(200)
    position = log.append(0, 1, data)
    log.flush()
    offset = position % log.segment_bytes
    good = device.read(0, 0, BLOCK)
    for bit in range(0, 8 * (8 + len(data)), 7):
        bad = bytearray(good)
        bad[offset + bit // 8] ^= 1 << bit % 8
        device.write(0, 0, bytes(bad))
        with pytest.raises(errors.Corruption):
            log.read(position)
    device.write(0, 0, good)
    assert log.read(position) == (1, data)


def test_bytes_at_another_place_never_validate() -> None:
    device = MemoryDevice(8, 4 * BLOCK)
    log = small_log(device)
    first, second = log.append(0, 1, b"x" * 3000), log.append(0, 1, b"x" * 3000)
    log.flush()
    block = device.read(0, 0, 2 * BLOCK)
    place = second % log.segment_bytes
    copied = bytearray(block)
    copied[place : place + 3008] = block[HEADERS : HEADERS + 3008]
    device.write(0, 0, bytes(copied))
    assert log.read(first) == (1, b"x" * 3000)
    with pytest.raises(errors.Corruption):
        log.read(second)


def test_reading_without_waiting() -> None:
    device, log = fault_log()
    position = log.append(0, 1, b"z")
    assert log.read(position, nowait=True) == (1, b"z")
    log.flush()
    device.add("read", errno.EAGAIN)
    with pytest.raises(errors.Busy):
        log.read(position, nowait=True)
    assert log.stats()["reads_refused"] == 1
    assert log.read(position, nowait=True) == (1, b"z")


def test_damage_costs_one_record_in_compaction() -> None:
    device = MemoryDevice(8, 4 * BLOCK)
    log = small_log(device)
    positions = [put(log, 0, 1, bytes([number]) * 500) for number in range(40)]
    for position in positions:
        log.live(position)
    log.flush()
    inside = [position for position in positions if position // log.segment_bytes == 1]
    block = bytearray(device.read(0, 0, 4 * BLOCK))
    for damage in (inside[3] % log.segment_bytes + 100, BLOCK + 3):  # a record, a run header
        block[damage] ^= 0x10
    device.write(0, 0, bytes(block))
    found = log.records(0, 1)
    assert found is not None
    assert [position for position, _, _ in found] == inside[:3] + inside[4:]
    assert log.stats()["checksum_failures"] == 1


# Configurations ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("buffer_bytes", "buffers", "streams"),
    [(BLOCK + 1, 6, 4), (0, 6, 4), (BLOCK, 1, 4), (BLOCK, 6, 0), (BLOCK, 20, 17)],
)
def test_configurations_that_cannot_work(buffer_bytes: int, buffers: int, streams: int) -> None:
    device = MemoryDevice(8, 4 * BLOCK)
    arena = arena_for(8, BLOCK, 32, 32)
    with pytest.raises(errors.ConfigError):
        Log.create(arena, device, buffer_bytes=buffer_bytes, buffers=buffers, streams=streams)


def test_attaching_wants_the_same_device() -> None:
    log = small_log()
    twin = Log.attach(log.arena, log.device, live_map=log.live_map)
    position = log.append(0, 1, b"shared")
    assert twin.read(position) == (1, b"shared")
    with pytest.raises(errors.WrongFormat):
        Log.attach(log.arena, MemoryDevice(8, 4 * BLOCK))
    with pytest.raises(errors.WrongFormat):
        Log.attach(arena_for(8, BLOCK, 6), log.device)


def test_buffers_larger_than_segments() -> None:
    log = small_log(segment_bytes=BLOCK, buffer_bytes=4 * BLOCK)
    rng = random.Random(1)
    for _ in range(50):
        data = rng.randbytes(rng.randrange(log.record_bytes_max + 1))
        position = put(log, 0, 1, data)
        assert log.read(position) == (1, data)
    log.check_invariants()


def test_a_stream_without_a_buffer_waits_for_writers_only() -> None:
    log = small_log(buffers=2, streams=1)
    assert log.append(0, 1, b"x" * 3000)
    assert log.append(0, 1, b"x" * 3000)
    assert log.try_append(0, 1, b"x" * 3000)[0] == NO_BUFFER
    assert log.make_room() == OK
    assert log.try_append(0, 1, b"x" * 3000)[0] == OK
    assert log.try_append(0, 1, b"x" * 3000)[0] != BUSY


def test_fewer_buffers_than_streams() -> None:
    log = small_log(buffers=2, streams=4)
    stored = [(put(log, number % 4, 1, bytes([number]) * 100)) for number in range(24)]
    for number, position in enumerate(stored):
        if log.is_current(position):
            assert log.read(position) == (1, bytes([number]) * 100)
    assert log.stats()["buffers_sealed"] >= 10
    log.check_invariants()
