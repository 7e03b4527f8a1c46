"""Files of large values and dumps by themselves, over fakes of what is below."""

from __future__ import annotations

import gc
import io
from typing import Any

import pytest

from siltstone.errors import Closed, Corruption, TooLarge, WrongFormat
from siltstone.store import dump
from siltstone.store.values import INLINE_BYTES, ValueReader, ValueWriter


class Blob:
    """Remembers what a writer did, and gives a value in parts."""

    def __init__(self, data: bytes = b"") -> None:
        self.data, self.size, self.ends = data, len(data), []

    def write(self, data: bytes) -> None:
        self.data += data

    def commit(self, durable: bool | None) -> None:
        self.ends.append("commit")

    def abandon(self) -> None:
        self.ends.append("abandon")

    def read_at(self, offset: int, size: int) -> bytes:
        return self.data[offset : offset + size]

    def close(self) -> None:
        self.ends.append("close")


def writer(size_max: int = 1 << 20) -> tuple[ValueWriter, Blob, list[bytes]]:
    blob, small = Blob(), []
    return ValueWriter(b"k", size_max, lambda: blob, small.append, None), blob, small


def test_small_values_are_stored_as_such():
    file, blob, small = writer()
    with file:
        assert file.write(b"abc") == 3
        file.write(memoryview(b"def"))
        assert file.tell() == 6
        assert small == []
    assert small == [b"abcdef"]
    assert blob.ends == []
    file.close()
    with pytest.raises(Closed):
        file.write(b"late")


def test_large_values_go_on_in_pieces():
    file, blob, small = writer()
    with file:
        for number in range(10):
            file.write(bytes([number]) * 20_000)
    assert blob.data == b"".join(bytes([number]) * 20_000 for number in range(10))
    assert blob.ends == ["commit"]
    assert small == []


@pytest.mark.parametrize("how", ["exception", "abandon", "forgotten", "too large"])
def test_what_is_given_up_leaves_nothing(how):
    file, blob, small = writer(size_max=4 * INLINE_BYTES)
    file.write(b"x" * 2 * INLINE_BYTES)
    if how == "exception":
        with pytest.raises(ZeroDivisionError), file:  # noqa: PT012
            file.write(b"y")
            raise ZeroDivisionError
    elif how == "abandon":
        file.abandon()
    elif how == "too large":
        with pytest.raises(TooLarge):
            file.write(b"x" * 3 * INLINE_BYTES)
    del file
    gc.collect()
    assert blob.ends == ["abandon"]
    assert small == []


def test_reading_in_parts():
    blob = Blob(bytes(range(200)))
    raw = ValueReader(b"k", blob)
    with io.BufferedReader(raw) as file:
        assert file.read(3) == bytes(range(3))
        assert file.seek(-10, io.SEEK_END) == 190
        assert file.read() == bytes(range(190, 200))
        assert file.seek(500) == 500
        assert file.read() == b""
        with pytest.raises(ValueError):
            raw.seek(-1)
    assert blob.ends == ["close"]


def dumped() -> bytes:
    file = io.BytesIO()
    trees: Any = [
        ("", [(b"a", b"1"), (b"", b"")]),
        ("empty", []),
        ("u", [(b"k" * 300, b"v" * 70_000)]),
    ]
    assert dump.write(file, trees) == 3
    return file.getvalue()


def test_a_dump_gives_back_what_was_written():
    assert list(dump.read(io.BytesIO(dumped()))) == [
        ("", b"a", b"1"),
        ("", b"", b""),
        ("empty", None, b""),
        ("u", None, b""),
        ("u", b"k" * 300, b"v" * 70_000),
    ]


def test_the_bytes_of_a_dump_are_those_of_the_document():
    """docs/format.md in a second reading: headers by hand."""
    data = dumped()
    assert data[:12] == b"siltdump" + (1).to_bytes(4, "little")
    assert data[12:13] == b"\x02"
    assert int.from_bytes(data[13:17], "little") == 1
    assert int.from_bytes(data[17:25], "little") == 1
    assert data[25:27] == b"a1"
    assert data[-4 - 8 - 13 : -4 - 8] == b"\x03" + bytes(4) + (8).to_bytes(8, "little")


def test_every_cut_and_flip_is_noticed():
    data = dumped()
    for size in [*range(130), len(data) - 1]:
        with pytest.raises(Corruption):
            list(dump.read(io.BytesIO(data[:size])))
    for place in [*range(130), len(data) - 1]:
        flipped = bytearray(data)
        flipped[place] ^= 1
        with pytest.raises(Corruption):
            list(dump.read(io.BytesIO(bytes(flipped))))
    newer = data[:8] + (2).to_bytes(4, "little") + data[12:]
    with pytest.raises(WrongFormat, match="version 2"):
        list(dump.read(io.BytesIO(newer)))
