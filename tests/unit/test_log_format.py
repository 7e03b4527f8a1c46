"""The bytes on the device are those of docs/format.md, byte for byte."""

from __future__ import annotations

import random

import pytest
from logrig import BLOCK, STARTED_MS, put, small_log
from reference import log_format

from siltstone.log.device import MemoryDevice

SEGMENT_BYTES = 4 * BLOCK


def test_sizes_are_those_of_the_document() -> None:
    assert (log_format.SEGMENT.size, log_format.RUN.size, log_format.RECORD.size) == (96, 48, 8)
    assert log_format.SEED.size == 20


def test_a_second_reader_finds_every_record() -> None:
    device = MemoryDevice(8, SEGMENT_BYTES)
    log = small_log(device)
    rng = random.Random(1)
    stored: dict[int, tuple[int, bytes]] = {}
    for number in range(70):
        data = rng.randbytes(rng.choice([0, 1, 55, 56, 57, 200, 1500]))
        position = put(log, number % 3, 1 + number % 254, data)
        log.live(position)
        stored[position] = (1 + number % 254, data)
        if number % 20 == 19:
            log.flush()
    log.flush()
    previous: dict[int, int] = {}
    found: dict[int, tuple[int, bytes]] = {}
    for info in sorted(log.segments(), key=lambda info: info["version"]):
        if info["state"] == "free":
            continue
        image = device.read(info["slot"], 0, SEGMENT_BYTES)
        header = log_format.segment_header(image)
        assert (header.format_version, header.version) == (1, info["version"])
        assert (header.stream, header.slot) == (info["stream"], info["slot"])
        assert header.uuid == device.superblock.uuid
        assert header.segment_bytes == SEGMENT_BYTES
        assert header.opened_ms == STARTED_MS
        assert header.next_slots == (0xFFFFFFFF, 0xFFFFFFFF)
        assert header.previous_version == previous.get(header.stream, 0)
        previous[header.stream] = header.version
        for run in log_format.runs(image, header):
            for position, kind, payload in run.records:
                found[position] = (kind, payload)
    assert found == stored


def test_every_life_of_a_segment_has_a_salt_of_its_own() -> None:
    device = MemoryDevice(1, SEGMENT_BYTES)
    log = small_log(device)
    salts = set()
    for version in range(1, 6):
        log.append(0, 1, b"x")
        log.flush()
        salts.add(log_format.segment_header(device.read(0, 0, BLOCK)).salt)
        log.forget(0, version)
    assert len(salts) == 5


@pytest.mark.parametrize(("first", "second"), [(b"sediment", b"")])
def test_the_worked_example(first: bytes, second: bytes) -> None:
    # docs/format.md: a 16-KiB segment, version 1, two records in its first run.
    device = MemoryDevice(8, SEGMENT_BYTES)
    log = small_log(device)
    assert log.append(0, 1, first) == 16384 + 144
    assert log.append(0, 2, second) == 16384 + 208
    log.flush()
    image = device.read(0, 0, BLOCK)
    assert image[:8] == b"slt-segm"
    assert image[96:100] == b"-run"
    assert image[112:120] == bytes.fromhex("00000000 00100000")  # offset 0, length 4096
    assert image[148:152] == bytes.fromhex("01 080000")  # kind 1, 8 bytes
    assert image[152:160] == b"sediment"
    assert not any(image[160:208])
    assert image[212:216] == bytes.fromhex("02 000000")
    assert not any(image[216:])
