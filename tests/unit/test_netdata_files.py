"""Netdata's files: numbers, pages, every kind of damage, and hostile bytes."""

from __future__ import annotations

import errno
import pickle
import random
import struct
import tracemalloc
import uuid
from pathlib import Path

import lz4.block
import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from reference import netdata_files
from reference.netdata_files import EMPTY, Page, Pair, array_page, whole

from siltstone.errors import (
    Closed,
    ConfigError,
    Corruption,
    DeviceFailed,
    EnvironmentFailure,
    InvalidQuery,
    KeyMissing,
    SiltstoneError,
    WrongFormat,
)
from siltstone.log import foreign
from siltstone.metrics import netdata, netdata_extent, netdata_gorilla, netdata_number
from siltstone.metrics.source import Matcher

ONE, TWO = uuid.UUID(int=1), uuid.UUID(int=2 << 100 | 5)
T0 = 1_700_000_000


def words_of(values: list[float], **flags: list[bool]) -> np.ndarray:
    arrays = {name: np.array(flag) for name, flag in flags.items()}
    return netdata_number.pack(np.array(values, np.float64), **arrays)


def simple(directory: Path) -> Path:
    """Two metrics, three extents, one of them with both."""
    pair = Pair()
    page, data = array_page(ONE, T0, [whole(1), whole(2), EMPTY, whole(4)])
    other, more = array_page(TWO, T0, [whole(10), whole(20)], step_s=5)
    pair.add([page, other], data + more)
    page, data = array_page(ONE, T0 + 4, [whole(5)] * 100)
    pair.add([page], lz4.block.compress(data, store_size=False), 1)
    page, data = array_page(ONE, T0 + 104, [whole(7)])
    pair.add([page], data)
    return pair.write(directory)


def values(view: netdata.View, metric: uuid.UUID = ONE) -> dict[int, float]:
    points = view.read(metric)
    seconds = [time - T0 for time in (points.times // 1000).tolist()]
    return dict(zip(seconds, points.values.tolist(), strict=True))


WHOLE = {0: 1.0, 1: 2.0, 3: 4.0, **dict.fromkeys(range(4, 104), 5.0), 104: 7.0}


# Numbers ------------------------------------------------------------------------------------


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_packed_number_is_as_near_as_its_digits_allow(x: float) -> None:
    word = words_of([x])
    (found,) = netdata_number.unpack(word)
    assert not netdata_number.is_empty(word)[0]
    assert netdata_files.number(int(word[0])) == found
    size = abs(x)
    if size < 0.168:
        assert abs(found - x) <= 5e-8 * (1 + 1e-9)
    elif size < 1.67e14:
        assert abs(found - x) <= 3e-7 * size
    elif size < 1.67e21:
        assert abs(found - x) <= 3e-6 * size
    else:
        assert abs(found) <= size
        assert abs(found) > 1.67e21
    (mirrored,) = words_of([-x])
    assert (int(mirrored) ^ int(word[0])) == ((1 << 31) if x else 0)


@given(st.lists(st.floats(0, 1e22), min_size=2, max_size=50))
def test_packing_keeps_the_order(numbers: list[float]) -> None:
    unpacked = netdata_number.unpack(words_of(sorted(numbers)))
    assert (np.diff(unpacked) >= 0).all()


@given(st.integers(-16_777_215, 16_777_215))
def test_whole_numbers_are_exact(x: int) -> None:
    assert netdata_number.unpack(words_of([x]))[0] == x


def test_mantissas_near_a_tenth_of_their_limit_leave_the_flags_alone() -> None:
    numbers = [n / 10**m for m in range(8) for n in (1677721, 1677721.5, 1677721.55, 1677721.6,
               1677722, 1677725.9, 1677726, 16777215, 16777215.4, 16777216)]  # fmt: skip
    for flag in (False, True):
        words = words_of(numbers, anomalous=[flag] * len(numbers), reset=[flag] * len(numbers))
        assert set(netdata_number.flags_of(words).tolist()) == {2 if flag else 1}
        assert np.allclose(netdata_number.unpack(words), numbers, rtol=3e-7, atol=0)


def test_what_is_no_number_is_empty_and_zero_is_not() -> None:
    words = words_of([float("nan"), float("inf"), -float("inf"), 0.0, -0.0])
    assert words[:3].tolist() == [EMPTY] * 3
    assert netdata_number.is_empty(words).tolist() == [True, True, True, False, False]
    anomalous = words_of([0.0], anomalous=[True])
    assert not netdata_number.is_empty(anomalous)[0]
    assert netdata_number.is_empty(anomalous, zero_is_empty=True)[0]


# Pages and extents --------------------------------------------------------------------------


def test_points_gaps_steps_and_single_points(tmp_path: Path) -> None:
    with netdata.open(simple(tmp_path)) as view:
        assert values(view) == WHOLE
        assert values(view, TWO) == {0: 10.0, 5: 20.0}
        assert view.problems == []
        assert view.span_ms(ONE) == (T0 * 1000, (T0 + 104) * 1000)
        inside = view.read(str(ONE), (T0 + 3) * 1000, (T0 + 5) * 1000)
        assert inside.times.tolist() == [(T0 + n) * 1000 for n in (3, 4, 5)]
        assert inside.seconds.tolist() == [T0 + 3, T0 + 4, T0 + 5]
        assert len(view.read(ONE, 0, 5).times) == 0
        assert view.verify().ok


def test_zstd_and_steps_that_are_no_whole_milliseconds(tmp_path: Path) -> None:
    pair = Pair()
    page = Page(0, ONE, 12, T0 * 1_000_000, T0 * 1_000_000 + 4_001_001)
    data = struct.pack("<3I", whole(1), whole(2), whole(3))
    pair.add([page], zstandard.ZstdCompressor().compress(data), 2)
    with netdata.open(pair.write(tmp_path)) as view:
        points = view.read(ONE)
        assert (points.times - T0 * 1000).tolist() == [0, 2000, 4001]
        assert points.values.tolist() == [1, 2, 3]


words = st.lists(
    st.one_of(st.sampled_from([whole(5), whole(6), EMPTY]), st.integers(0, 2**32 - 1)),
    min_size=1,
    max_size=700,
)


@given(words)
def test_gorilla_pages_come_out_as_they_went_in(numbers: list[int]) -> None:
    found = np.zeros(len(numbers), np.uint32)
    page = np.frombuffer(netdata_files.gorilla_page(numbers), np.uint8)
    assert netdata_gorilla.decode(page, found) == len(numbers)
    assert found.tolist() == numbers


def test_gorilla_pages_in_files(tmp_path: Path) -> None:
    numbers = [whole(n * n % 977) for n in range(900)] + [EMPTY] * 24
    data = netdata_files.gorilla_page(numbers)
    page = netdata_files.gorilla_descriptor(ONE, T0, 924, 923, len(data))
    pair = Pair()
    pair.add([page], data)
    pair.add([netdata_files.gorilla_descriptor(TWO, T0, 925, 924, len(data))], data)
    with netdata.open(pair.write(tmp_path)) as view:
        found = values(view)
        assert found == {n: float(n * n % 977) for n in range(900)}
        assert len(view.read(TWO).times) == 0
        (problem,) = view.problems
        assert "page 0: its Gorilla code makes no sense" in str(problem)


@given(st.binary(min_size=0, max_size=1100), st.integers(0, 300))
def test_gorilla_never_runs_over(data: bytes, room: int) -> None:
    found = np.zeros(room + 1, np.uint32)
    got = netdata_gorilla.decode(np.frombuffer(data or b"\0", np.uint8), found[:room])
    assert -1 <= got <= room
    assert found[room] == 0


def test_tier_points(tmp_path: Path) -> None:
    data = struct.pack("<fffHH", 6, 1, 3, 3, 1) + struct.pack("<fffHH", float("nan"), 0, 0, 0, 0)
    data += struct.pack("<fffHH", -4, -3, -1, 2, 0)
    page = Page(1, ONE, 48, T0 * 1_000_000, (T0 + 20) * 1_000_000)
    pair = Pair()
    pair.add([page], data)
    pair.write(tmp_path / "dbengine-tier1")
    with netdata.open(tmp_path) as view:
        assert list(view.tiers) == [1]
        points = view.read(ONE)
        assert points.times.tolist() == [T0 * 1000, (T0 + 20) * 1000]
        assert points.values.tolist() == [2, -2]
        assert points.sum.tolist() == [6, -4]
        assert points.min.tolist() == [1, -3]
        assert points.max.tolist() == [3, -1]
        assert points.count.tolist() == [3, 2]
        assert points.anomalous.tolist() == [True, False]
        assert not points.reset.any()
        assert len(view.read(ONE, 0, 1).times) == 0
        with pytest.raises(KeyMissing, match="no tier 0, only 1"):
            view.read(ONE, tier=0)


def test_files_from_before_1_36_have_zeros_for_gaps(tmp_path: Path) -> None:
    pair = Pair()
    page, data = array_page(ONE, T0, [whole(1), 0, whole(3), whole(0)])
    pair.add([page], data)
    with netdata.open(pair.write(tmp_path)) as view:
        assert values(view) == {0: 1, 2: 3, 3: 0}
    with netdata.open(tmp_path, zero_is_empty=False) as view:
        assert values(view) == {0: 1, 1: 0, 2: 3, 3: 0}
    # one slot that is empty in the new way tells the whole file
    page, data = array_page(TWO, T0, [whole(1), EMPTY])
    pair.add([page], data)
    with netdata.open(pair.write(tmp_path)) as view:
        assert values(view)[1] == 0
    # said otherwise, a page that shows the new way is still read so
    with netdata.open(tmp_path, zero_is_empty=True) as view:
        assert values(view) == {0: 1, 2: 3, 3: 0}


def test_pages_that_overlap_are_merged_and_the_last_written_counts(tmp_path: Path) -> None:
    pair = Pair()
    for start, number in ((T0, 1), (T0 + 2, 2), (T0 - 1, 3)):
        page, data = array_page(ONE, start, [whole(number)] * 3)
        pair.add([page], data)
    with netdata.open(pair.write(tmp_path)) as view:
        assert values(view) == {-1: 3, 0: 3, 1: 3, 2: 2, 3: 2, 4: 2}
        assert (np.diff(view.read(ONE).times) > 0).all()


# Damage -------------------------------------------------------------------------------------


def test_every_flipped_byte_of_a_datafile_is_a_gap_of_that_extent(tmp_path: Path) -> None:
    simple(tmp_path)
    path = tmp_path / "datafile-1-0000000001.ndf"
    sound = path.read_bytes()
    spans = {4096: (6 + 74 + 24 + 4, [0, 1, 3]), 8192: (60, range(4, 104)), 12288: (51, [104])}
    for offset, (size, lost) in spans.items():
        for at in range(offset, offset + size, 7):
            damaged = bytearray(sound)
            damaged[at] ^= 0x10
            path.write_bytes(damaged)
            with netdata.open(tmp_path) as view:
                found = values(view)
                if offset == 8192 and at >= offset + 60:
                    continue
                assert found == {time: value for time, value in WHOLE.items() if time not in lost}
                assert values(view) == found
                (problem,) = view.problems  # one for each extent, however often it is read
                assert problem.offset == offset


def test_every_truncation_of_a_datafile(tmp_path: Path) -> None:
    simple(tmp_path)
    path = tmp_path / "datafile-1-0000000001.ndf"
    sound = path.read_bytes()
    for size in [*range(4096, len(sound), 611), 4096 + 107, 4096 + 108]:
        path.write_bytes(sound[:size])
        with netdata.open(tmp_path) as view:
            found = values(view) if ONE.int in view.tiers[0].metrics else {}
            assert found.items() <= WHOLE.items()
            assert (0 in found) == (size >= 4096 + 108)
            assert view.problems or found == WHOLE


def test_offsets_beyond_4_gib_and_files_that_stay_as_they_are(tmp_path: Path) -> None:
    page, data = array_page(ONE, T0, [whole(1), whole(2)])
    body = netdata_files.extent([page], data)
    pair, offset = Pair(), (5 << 30) + 4096
    pair.journal += netdata_files.transaction(1, offset, len(body), [page]).ljust(4096, b"\0")
    pair.write(tmp_path)
    with (tmp_path / "datafile-1-0000000001.ndf").open("r+b") as file:
        file.seek(offset)
        file.write(body)
    before = [(path, path.stat()) for path in sorted(tmp_path.iterdir())]
    with netdata.open(tmp_path, salvage=False) as view:  # 5 GiB of holes would be looked through
        assert values(view) == {0: 1, 1: 2}
        assert view.verify().ok
    for path, found in before:
        now = path.stat()
        assert (now.st_size, now.st_mtime_ns, now.st_blocks) == (
            found.st_size, found.st_mtime_ns, found.st_blocks,
        )  # fmt: skip


def test_a_file_that_shrinks_while_it_is_open_gives_gaps(tmp_path: Path) -> None:
    with netdata.open(simple(tmp_path)) as view:
        with (tmp_path / "datafile-1-0000000001.ndf").open("r+b") as file:
            file.truncate(8200)
        assert values(view) == {0: 1, 1: 2, 3: 4}
        assert len(view.problems) == 2
        assert "the file ends within this extent" in str(view.problems[0])


def test_every_flipped_byte_of_a_journal_without_salvage(tmp_path: Path) -> None:
    simple(tmp_path)
    path = tmp_path / "journalfile-1-0000000001.njf"
    sound = path.read_bytes()
    for at in [*range(4096, 4096 + 106, 5), *range(8192, 8192 + 69, 5)]:
        damaged = bytearray(sound)
        damaged[at] ^= 4
        path.write_bytes(damaged)
        with netdata.open(tmp_path, salvage=False) as view:
            lost = [0, 1, 3] if at < 8192 else range(4, 104)
            assert values(view) == {t: v for t, v in WHOLE.items() if t not in lost}
            assert [problem.path for problem in view.problems] == [str(path)]
        with netdata.open(tmp_path) as view:
            assert values(view) == WHOLE
            assert view.tiers[0].pairs[0].salvaged == 1


def test_every_truncation_of_a_journal(tmp_path: Path) -> None:
    simple(tmp_path)
    path = tmp_path / "journalfile-1-0000000001.njf"
    sound = path.read_bytes()
    for size in [0, 20, 4095, *range(4096, len(sound), 499)]:
        path.write_bytes(sound[:size])
        with netdata.open(tmp_path) as view:
            assert values(view) == WHOLE
        with netdata.open(tmp_path, salvage=False) as view:
            found = values(view) if ONE.int in view.tiers[0].metrics else {}
            assert found.items() <= WHOLE.items()
            assert (104 in found) == (size >= 12288 + 69)


def test_extents_between_and_after_what_the_journal_names_are_found(tmp_path: Path) -> None:
    pair = Pair()
    for n in range(6):
        page, data = array_page(ONE, T0 + n, [whole(n)])
        pair.add([page], data, log=n in (1, 4))
    pair.data += b"\x07" * 4096 + b"\0" * 100
    with netdata.open(pair.write(tmp_path)) as view:
        assert values(view) == {n: float(n) for n in range(6)}
        (problem,) = view.problems
        assert "4196 bytes that no journal names" in str(problem)
        assert problem.offset == 4096 * 7


def test_a_journal_that_says_other_than_its_datafile(tmp_path: Path) -> None:
    pair = Pair()
    page, data = array_page(ONE, T0, [whole(1), whole(2)])
    other, _ = array_page(TWO, T0, [whole(1), whole(2)])
    offset = pair.add([page, page], data * 2, log=False)
    size = len(netdata_files.extent([page, page], data * 2))
    pair.journal += netdata_files.transaction(1, offset, size, [page, other]).ljust(4096, b"\0")
    with netdata.open(pair.write(tmp_path)) as view:
        assert values(view) == {0: 1, 1: 2}
        assert values(view, TWO) == {}
        (problem,) = view.problems
        assert "page 1 is another one than the journal says" in str(problem)


@pytest.mark.parametrize(
    ("page", "text"),
    [
        (Page(3, ONE, 4, 1, 1), "page type 3 is not supported"),
        (Page(0, ONE, 6, 1, 1), "a page of 6 bytes"),
        (Page(0, ONE, 0, 1, 1), "a page of 0 bytes"),
        (Page(0, ONE, 2**32 - 4, 0, 2**52), "a page of 4294967292 bytes"),
        (Page(0, ONE, 8, 9_000_000, 8_000_000), "times do not fit"),
        (Page(0, ONE, 8, 9_000_000, 9_000_000), "times do not fit"),
        (Page(0, ONE, 4, 8_000_000, 9_000_000), "times do not fit"),
        (Page(0, ONE, 8, 2**64 - 5, 2**64 - 1), "times do not fit"),
        (Page(1, ONE, 24, 0, 10_000_000), "a page of 24 bytes"),
        (Page(2, ONE, 512, 0, 0), "a page without points"),
        (Page(2, ONE, 512, 0, 5000 | 6000 << 32), "a page without points"),
    ],
)
def test_pages_that_cannot_be_are_left_out_alone(tmp_path: Path, page: Page, text: str) -> None:
    good, data = array_page(TWO, T0, [whole(1)])
    pair = Pair()
    pair.add([good, page], data + bytes(min(page.length, 4096)))
    with netdata.open(pair.write(tmp_path)) as view:
        assert ONE.int not in view.tiers[0].metrics
        assert text in str(view.problems[0])
        if page.length <= 4096 and page.kind < 3:
            assert values(view, TWO) == {0: 1}


@pytest.mark.parametrize(
    ("payload", "compression", "text"),
    [
        (b"\0" * 8, 7, "compression 7 is not supported"),
        (b"\xff" * 8, 1, "LZ4"),
        (b"\xff" * 8, 2, "ZSTD"),
        (zstandard.ZstdCompressor().compress(bytes(1 << 20)), 2, "a frame of 1048576 bytes"),
        (zstandard.ZstdCompressor().compress(bytes(4)), 2, "4 bytes of pages instead of 8"),
        (lz4.block.compress(bytes(4), store_size=False), 1, "LZ4|4 bytes of pages instead of 8"),
        (b"\0" * 4, 0, "4 bytes of pages instead of 8"),
    ],
)
def test_payloads_that_cannot_be_unpacked(
    tmp_path: Path, payload: bytes, compression: int, text: str
) -> None:
    page, _ = array_page(ONE, T0, [0, 0])
    pair = Pair()
    pair.add([page], payload, compression)
    with netdata.open(pair.write(tmp_path)) as view:
        assert values(view) == {}
        (problem,) = view.problems
        assert any(part in str(problem) for part in text.split("|"))


def test_extents_and_records_that_lie_about_themselves(tmp_path: Path) -> None:
    page, data = array_page(ONE, T0, [whole(1)])
    pair = Pair()
    pair.add([page], data)
    sound = pair.journal
    for record, text in [
        (netdata_files.transaction(2, 4097, 51, [page]), "no extent of 51 bytes can be at 4097"),
        (netdata_files.transaction(2, 0, 51, [page]), "no extent of 51 bytes can be at 0"),
        (netdata_files.transaction(2, 8192, 2**32 - 1, [page]), "no extent of 4294967295 bytes"),
        (netdata_files.transaction(2, 1 << 62, 51, [page]), "the file ends before"),
        (netdata_files.transaction(2, 4096, 51, [page], kind=9), "unknown kind 9"),
        (netdata_files.transaction(2, 4096, 51, [page])[:14] + b"\xff" + b"\1" * 90, "no room"),
        (b"\1" * 6, "cuts off|no room"),
    ]:
        pair.journal = sound + (record if len(record) < 10 else record.ljust(4096, b"\0"))
        with netdata.open(pair.write(tmp_path)) as view:
            assert values(view) == {0: 1}
            (problem,) = view.problems
            assert any(part in str(problem) for part in text.split("|")), problem
    # reserved records are passed over
    pair.journal = sound + netdata_files.transaction(2, 4096, 51, [page], kind=2).ljust(4096, b"\0")
    with netdata.open(pair.write(tmp_path)) as view:
        assert view.problems == []


def test_an_extent_whose_header_and_size_disagree() -> None:
    page, data = array_page(ONE, T0, [whole(1)])
    body = netdata_files.extent([page], data)
    with pytest.raises(Corruption, match="promises"):
        netdata_extent.parse(fix_crc(struct.pack("<I", 5) + body[4:]))
    with pytest.raises(Corruption, match="an extent of 3 bytes"):
        netdata_extent.parse(body[:3])


def fix_crc(body: bytes) -> bytes:
    import zlib

    return body[:-4] + struct.pack("<I", zlib.crc32(body[:-4]))


# Files and directories ----------------------------------------------------------------------


def test_what_is_not_netdatas_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WrongFormat, match="holds no datafile-1"):
        netdata.open(tmp_path)
    with pytest.raises(EnvironmentFailure, match="does not exist"):
        netdata.open(tmp_path / "nothing")
    assert not netdata.is_store(tmp_path / "nothing")
    assert not netdata.is_store(tmp_path)
    simple(tmp_path)
    assert netdata.is_store(tmp_path)
    path = tmp_path / "datafile-1-0000000001.ndf"
    sound = path.read_bytes()
    for data, text in [
        (b"", "is empty"),
        (b"PK\3\4" + sound[4:], "is not one of Netdata's files"),
        (sound[:32] + b"2.0" + sound[35:], "format version '2.0'; only '1.0' is supported"),
        (sound[:48] + b"\2" + sound[49:], "says tier 2"),
        (sound[:100], "ends within its first block"),
    ]:
        path.write_bytes(data)
        with pytest.raises(WrongFormat, match=text):
            netdata.open(tmp_path)
        assert path.read_bytes() == data
    path.unlink()
    path.mkdir()
    with pytest.raises(ConfigError, match="not a regular file"):
        netdata.open(tmp_path)


def test_one_bad_pair_or_tier_is_set_aside(tmp_path: Path) -> None:
    simple(tmp_path / "dbengine")
    (tmp_path / "dbengine" / "datafile-1-0000000002.ndf").write_bytes(b"rubbish")
    (tmp_path / "dbengine" / "journalfile-1-0000000009.njf").write_bytes(b"rubbish")
    (tmp_path / "dbengine-tier2").mkdir()
    (tmp_path / "dbengine-tier2" / "datafile-1-0000000001.ndf").write_bytes(b"")
    (tmp_path / "dbengine-tier3").mkdir()
    with netdata.open(tmp_path) as view:
        assert values(view) == WHOLE
        texts = " ".join(str(problem) for problem in view.problems)
        assert "this tier is set aside" in texts
        assert "this pair is set aside" in texts
        assert "a journal without its datafile" in texts
        assert len(view.problems) == 3


def test_a_device_that_cannot_be_read_gives_gaps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pread, bad = foreign.os.pread, {8192}

    def failing(descriptor: int, size: int, offset: int) -> bytes:
        if offset in bad:
            raise OSError(errno.EIO, "Input/output error")
        return pread(descriptor, min(size, 1000), offset)  # and short reads elsewhere

    simple(tmp_path)
    with netdata.open(tmp_path) as view:
        monkeypatch.setattr(foreign.os, "pread", failing)
        assert values(view) == {t: v for t, v in WHOLE.items() if not 4 <= t < 104}
        assert "at 8192 cannot be read: Input/output error" in str(view.problems[0])
    (tmp_path / "journalfile-1-0000000001.njf").unlink()
    with netdata.open(tmp_path) as view:  # salvage meets the same error
        assert values(view) == {t: v for t, v in WHOLE.items() if not 4 <= t < 104}
    bad.add(0)
    with pytest.raises(DeviceFailed, match="at 0 cannot be read"):
        netdata.open(tmp_path)


def test_names_labels_and_matchers(tmp_path: Path) -> None:
    names = {str(ONE): {"chart": "system.cpu-x", "dimension": "user", "host": "a"}}
    with netdata.open(simple(tmp_path), names=names) as view:
        labels = view.list_series()
        assert {"__name__": "netdata", "uuid": str(TWO)} in labels
        named = {"__name__": "netdata_system_cpu_x", "uuid": str(ONE), **names[str(ONE)]}
        assert named in labels
        assert view.list_series(chart="system.cpu-x") == [named]
        assert view.list_series([Matcher("chart", "!=", "")]) == [named]
        assert view.list_series([Matcher("chart", "=~", "system.*")], dimension="user") == [named]
        assert view.list_series([Matcher("chart", "=~", "system")]) == []
        assert view.list_series([Matcher("dimension", "!~", "us.r")])[0]["uuid"] == str(TWO)
        assert view.list_series('{chart=~"system[.].*",host!="b"}') == [named]
        with pytest.raises(InvalidQuery, match="invalid regular expression"):
            view.list_series([Matcher("chart", "=~", "(")])
        with pytest.raises(InvalidQuery, match="unknown matching operator"):
            view.list_series([Matcher("chart", "~", "x")])
        with pytest.raises(InvalidQuery, match="parse error"):
            view.select("{chart=")
        (series,) = view.select([Matcher("uuid", "=", str(TWO))], 0, 2**50)
        assert series.values.tolist() == [10, 20]
        assert view.select([], 0, 5) == []
        with pytest.raises(KeyMissing, match="no UUID"):
            view.read("system.cpu")
        with pytest.raises(KeyMissing, match="no metric"):
            view.read(uuid.UUID(int=99))
        again = pickle.loads(pickle.dumps(view))
        assert again.list_series() == labels
        again.close()
    with pytest.raises(Closed):
        view.read(ONE)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "is not JSON"), ("[]", "not list"), ('{"x": {}}', "no UUID"),
     ('{"00000000-0000-0000-0000-000000000001": {"a": 1}}', "the labels of")],
)  # fmt: skip
def test_names_that_are_none(tmp_path: Path, text: str, message: str) -> None:
    simple(tmp_path)
    (tmp_path / "names.json").write_text(text)
    with pytest.raises(ConfigError, match=message):
        netdata.open(tmp_path)


# Hostile bytes ------------------------------------------------------------------------------


def test_mutated_files_never_crash_nor_invent(tmp_path: Path, rng: random.Random) -> None:
    simple(tmp_path)
    paths = sorted(tmp_path.iterdir())
    sound = [path.read_bytes() for path in paths]
    for _ in range(150):
        for path, data in zip(paths, sound, strict=True):
            path.write_bytes(mutated(bytearray(data), rng))
        try:
            with netdata.open(tmp_path) as view:
                view.verify()
                if ONE.int in view.tiers[0].metrics:
                    assert values(view).items() <= WHOLE.items()
        except SiltstoneError:
            continue


def mutated(data: bytearray, rng: random.Random) -> bytes:
    for _ in range(rng.randrange(4)):
        kind, at = rng.randrange(4), rng.randrange(len(data) or 1)
        if kind == 0 and data:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del data[at:]
        elif kind == 2:
            data[at:at] = rng.randbytes(rng.choice([1, 4096]))
        else:
            data[at : at + 8] = rng.choice([b"\xff", b"\0"]) * 8
    return bytes(data)


def test_sound_checksums_over_hostile_lengths_allocate_nothing(
    tmp_path: Path, rng: random.Random
) -> None:
    pair = Pair()
    for _ in range(50):
        pages = [
            Page(rng.choice([0, 1, 2, 9]), ONE, rng.choice([4, 16384, 2**31, 2**32 - 4]),
                 rng.choice([0, T0 * 1_000_000, 2**63]), rng.choice([0, 2**40, 2**64 - 1]))
            for _ in range(rng.randrange(1, 64))
        ]  # fmt: skip
        pair.add(pages, rng.randbytes(rng.randrange(1, 60)), rng.choice([0, 1, 2]))
    pair.write(tmp_path)
    tracemalloc.start()
    with netdata.open(tmp_path) as view:
        report = view.verify()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert report.points == 0
    assert len(report.problems) >= 50
    assert peak < 30 << 20
