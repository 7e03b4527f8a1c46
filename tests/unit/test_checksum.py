"""CRC32C against an independent implementation, for both of ours."""

import google_crc32c
import pytest
from hypothesis import given
from hypothesis import strategies as st

from siltstone.log import checksum

LENGTHS = [0, 1, 7, 8, 9, 255, 767, 768, 769, 2304, 6143, 6144, 6145, 12288 + 769, 100_003]


@pytest.fixture(params=["hardware", "table"])
def implementation(request):
    if checksum.use_implementation(request.param) != request.param:
        pytest.skip("this machine has no CRC32C instruction")
    yield request.param
    checksum.use_implementation("hardware")


def pattern(size):
    return bytes((i * 167 + (i >> 8) * 13) & 255 for i in range(size))


@pytest.mark.parametrize("size", LENGTHS)
def test_same_as_google_at_every_alignment(implementation, size):
    data = pattern(size + 8)
    for start in range(8):
        piece = data[start : start + size]
        assert checksum.crc32c(piece) == google_crc32c.value(piece)


def test_known_value(implementation):
    assert checksum.crc32c(b"123456789") == 0xE3069283
    assert checksum.crc32c(bytes(32)) == 0x8A9136AA


@given(st.binary(max_size=3000), st.binary(max_size=3000))
def test_continues(first, second):
    whole = google_crc32c.value(first + second)
    assert checksum.crc32c(second, checksum.crc32c(first)) == whole
    assert google_crc32c.extend(checksum.crc32c(first), second) == whole


def test_every_bit_counts(implementation):
    data = bytearray(pattern(1000))
    right = checksum.crc32c(data)
    for bit in range(8 * len(data)):
        data[bit >> 3] ^= 1 << (bit & 7)
        assert checksum.crc32c(data) != right
        data[bit >> 3] ^= 1 << (bit & 7)


def test_unknown_implementation_is_refused():
    with pytest.raises(ValueError):
        checksum.use_implementation("abacus")
