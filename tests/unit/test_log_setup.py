"""Streams bound to files, ordered streams' reservations, statistics, forks, sizes."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest
from fakes import Fault, FaultDevice
from logrig import BLOCK, NO_SEGMENT, OK, STARTED_MS, arena_for, put, small_log
from reference import log_format

from siltstone import errors
from siltstone.log.device import FileDevice, MemoryDevice
from siltstone.log.layout import log_section_bytes, log_sections
from siltstone.log.log_face import Log


def test_a_stream_bound_to_files_uses_their_segments_only(tmp_path: Path) -> None:
    files: list[tuple[Path, int | None]] = [
        (tmp_path / "fast", 16 * BLOCK),
        (tmp_path / "slow", 32 * BLOCK),
    ]
    with FileDevice(files, 4 * BLOCK, engine="cache") as device:
        log = small_log(device)
        log.bind_stream(0, [0])
        log.bind_stream(1, [1])
        for _ in range(60):
            for stream in (0, 1):
                status = NO_SEGMENT
                while status != OK:
                    log.make_room()
                    status, position = log.try_append(stream, 1, b"x" * 900)
                    if status == NO_SEGMENT:
                        oldest = log.oldest(1 << stream)
                        assert oldest is not None
                        log.forget(oldest["slot"], oldest["version"])
                assert log.live(position)
        for info in log.segments():
            if info["state"] != "free":
                assert device.handle.place(info["slot"])[0] == info["stream"]
        assert len(os.listdir(tmp_path)) == 2
        with pytest.raises(errors.ConfigError):
            log.bind_stream(0, [7])


def test_an_ordered_stream_names_its_next_two_slots() -> None:
    device = MemoryDevice(8, 4 * BLOCK)
    log = Log.create(
        arena_for(8, BLOCK, 6), device, buffer_bytes=BLOCK, buffers=6, streams=2, ordered=[1]
    )
    for number in range(40):
        put(log, 1, 1, b"y" * 900)
        if number % 3 == 0:
            put(log, 0, 1, b"n" * 900)
    log.flush()
    headers = {}
    for info in log.segments():
        if info["state"] != "free" and info["stream"] == 1:
            image = device.read(info["slot"], 0, 4 * BLOCK)
            headers[info["version"]] = log_format.segment_header(image)
    chain = [headers[version] for version in sorted(headers)]
    assert len(chain) >= 3
    for one, following in itertools.pairwise(chain):
        assert one.next_slots[0] == following.slot
        assert following.previous_version == one.version


def test_statistics_add_up() -> None:
    device = FaultDevice(MemoryDevice(8, 4 * BLOCK))
    log = small_log(device)
    positions = [put(log, number % 2, 1, b"s" * 500) for number in range(30)]
    log.flush()
    for position in positions:
        log.read(position)
    stats = log.stats()
    assert stats["records"] == 30
    assert stats["user_bytes"] == 30 * 500
    assert stats["device_reads"] == sum(stats["read_latency_us"]) == device.calls["read"] == 30
    assert stats["device_writes"] == sum(stats["write_latency_us"]) == device.calls["write"]
    assert stats["device_bytes_written"] % BLOCK == 0
    assert stats["device_bytes_written"] >= 30 * 512
    assert stats["segments_opened"] == 8 - stats["segments_free"]
    assert stats["buffers_free"] == stats["buffers_total"] == 6


def test_the_segment_map_says_what_is_where() -> None:
    log = small_log()
    position = log.append(2, 1, b"x" * 100)
    log.live(position)
    assert log.segments()[0] == {
        "slot": 0,
        "state": "open",
        "stream": 2,
        "version": 1,
        "filled_bytes": 144 + 112,
        "records": 1,
        "live_records": 1,
        "live_bytes": 144 + 112,
        "opened_ms": STARTED_MS,
    }
    assert log.segments()[7]["state"] == "free"
    assert len(log.segments()) == 8


def test_a_forked_child_goes_on_with_its_own_copy() -> None:
    log = small_log()
    position = log.append(0, 1, b"before the fork")
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        answer = b"raised"
        try:
            log.after_fork()
            again = log.append(0, 1, b"in the child")
            log.flush()
            log.check_invariants()
            both = (log.read(position), log.read(again))
            answer = (
                b"fine" if both == ((1, b"before the fork"), (1, b"in the child")) else b"wrong"
            )
        finally:
            os.write(writing, answer)
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        assert pipe.read() == b"fine"
    os.waitpid(pid, 0)
    log.flush()
    assert log.stats()["records"] == 1
    log.check_invariants()


def test_sections_grow_with_what_they_hold() -> None:
    small, large = log_section_bytes(8, 4, 6), log_section_bytes(1 << 16, 4, 6)
    # a segment: its descriptor, and two words of the version table
    assert large - small == ((1 << 16) - 8) * (128 + 16)
    assert sorted(log_sections(8, 4, 6, BLOCK).values()) == [small, 6 * BLOCK]
    arena = arena_for(8, BLOCK, 6)
    with pytest.raises(errors.ConfigError):
        Log.create(arena, MemoryDevice(64, 4 * BLOCK), buffer_bytes=BLOCK, buffers=6)


@pytest.mark.parametrize("nth", range(1, 8))
def test_whichever_write_fails_the_rest_stands(nth: int) -> None:
    device = FaultDevice(MemoryDevice(8, 4 * BLOCK), Fault("write", nth, 5, 1000))
    log = small_log(device)
    stored = {}
    for number in range(50):
        position = put(log, number % 2, 1, bytes([number]) * 1000)
        if log.live(position):
            stored[position] = bytes([number]) * 1000
    while log.write_one() != 11:
        pass
    failed = {p for p in stored if not log.is_current(p)}
    assert len({p // log.segment_bytes for p in failed}) == 1
    for position, data in stored.items():
        assert log.read(position) == (None if position in failed else (1, data))
    log.check_invariants()


def test_a_slot_is_not_used_again_while_a_write_to_it_is_on_its_way() -> None:
    device = FaultDevice(MemoryDevice(1, 4 * BLOCK))
    log = small_log(device)
    old = log.append(0, 1, b"old " * 700)

    def forget_meanwhile() -> None:
        assert log.forget(0, 1) == OK
        assert log.read(old) is None
        assert log.segments()[0]["state"] == "draining"
        assert log.try_append(0, 1, b"too early")[0] == NO_SEGMENT

    device.add("write", before=forget_meanwhile)
    log.seal_idle(STARTED_MS, 0)
    assert log.write_one() == OK
    new = log.append(0, 1, b"new")
    log.flush()
    assert log.read(new) == (1, b"new")
    log.check_invariants()


def test_a_segment_reused_in_the_middle_of_a_read_is_gone_not_wrong() -> None:
    device = FaultDevice(MemoryDevice(1, 4 * BLOCK))
    log = small_log(device)
    old = log.append(0, 1, b"old")
    log.flush()

    def reuse() -> None:
        assert log.forget(0, 1) == OK
        log.append(0, 1, b"new")
        log.flush()

    device.add("read", before=reuse)
    assert log.read(old) is None
    assert log.stats()["checksum_failures"] == 0


def test_a_buffer_written_in_the_middle_of_a_read_is_found_on_the_device() -> None:
    device = FaultDevice(MemoryDevice(8, 4 * BLOCK))
    log = small_log(device)
    position = log.append(0, 1, b"moves from buffer to device")
    seen = []
    device.add("write", before=lambda: seen.append(log.read(position)))
    log.flush()
    seen.append(log.read(position))
    assert seen == [(1, b"moves from buffer to device")] * 2
