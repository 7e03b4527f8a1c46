"""Numbers in JSON: against Python's shortest decimals, and the texts that Prometheus would give."""

from __future__ import annotations

import random
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from siltstone.metrics import decimals
from siltstone.metrics.numbers import sample_text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (-0.0, "-0"),
        (1.0, "1"),
        (-17.0, "-17"),
        (0.1, "0.1"),
        (0.1 + 0.2, "0.30000000000000004"),
        (1e-6, "0.000001"),
        (9.999999999999997e-7, "9.999999999999997e-07"),
        (1.2345e-6, "0.0000012345"),
        (123456.75, "123456.75"),
        (9007199254740991.0, "9007199254740991"),
        (9007199254740992.0, "9007199254740992"),
        (1e20, "100000000000000000000"),
        (123456789012345680000.0, "123456789012345680000"),
        (1e21, "1e+21"),
        (1.5e300, "1.5e+300"),
        (5e-324, "5e-324"),
        (2.2250738585072014e-308, "2.2250738585072014e-308"),
        (1.7976931348623157e308, "1.7976931348623157e+308"),
        (float("nan"), "NaN"),
        (float("inf"), "+Inf"),
        (float("-inf"), "-Inf"),
    ],
)
def test_texts(value, text):
    assert decimals.number(value) == text


@given(st.floats())
def test_any_number_is_its_shortest_decimal(value):
    assert decimals.number(value) == sample_text(value)


def test_many_numbers_of_all_sizes():
    rng = random.Random(1)
    for _ in range(30_000):
        value = struct.unpack("<d", struct.pack("<Q", rng.getrandbits(64)))[0]
        assert decimals.number(value) == sample_text(value)
    for exponent in range(-1074, 1024):  # where the double below is nearer than the one above
        edge = 2.0**exponent
        for value in (edge, np.nextafter(edge, 0), np.nextafter(edge, np.inf)):
            if value:
                assert decimals.number(value) == sample_text(value)
    for power in range(-323, 309):
        assert decimals.number(float(f"1e{power}")) == sample_text(float(f"1e{power}"))


def test_rows():
    samples = decimals.Samples(["1.5", "20", "300.125"])
    values = np.array([[1.0, np.nan, 2.5]] * 3)
    present = np.array([[1, 1, 1], [0, 1, 0], [0, 0, 0]], np.uint8)
    assert samples.rows(values, present) == [
        '[1.5,"1"],[20,"NaN"],[300.125,"2.5"]', '[20,"NaN"]', "",
    ]  # fmt: skip
    assert decimals.Samples([]).rows(np.empty((2, 0)), np.empty((2, 0), np.uint8)) == ["", ""]
