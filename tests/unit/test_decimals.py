"""Numbers in JSON: against Python's shortest decimals, and the texts that Prometheus would give."""

from __future__ import annotations

import decimal
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


def time_text(time_ms):
    one = decimals.rows_text(
        [b"{}"], np.array([time_ms]), np.zeros((1, 1)), np.ones((1, 1), np.uint8), True
    )
    start, end = '[{"metric":{},"value":[', ',"0"]}]'
    assert one.startswith(start)
    assert one.endswith(end)
    return one[len(start) : -len(end)]


@pytest.mark.parametrize(
    ("time_ms", "text"),
    [(0, "0"), (1500, "1.500"), (-1, "-0.001"), (-1500, "-1.500"), (7, "0.007")],
)
def test_times(time_ms, text):
    assert time_text(time_ms) == text


@given(st.integers(-(1 << 63), (1 << 63) - 1))
def test_any_time(time_ms):
    text = time_text(time_ms)
    assert decimal.Decimal(text) * 1000 == time_ms
    assert ("." in text) == (time_ms % 1000 != 0)


def test_rows():
    times = np.array([1500, 20_000, 300_125, -5], np.int64)
    values = np.array([[1.0, np.nan, 2.5, 0.0]] * 3)
    present = np.array([[1, 1, 1, 1], [0, 1, 0, 0], [0, 0, 0, 0]], np.uint8)
    heads = [b'{"a":"b"}', '{"a":"\u00e9"}'.encode(), b"{}"]
    assert decimals.rows_text(heads, times, values, present, False) == (
        '[{"metric":{"a":"b"},"values":[[1.500,"1"],[20,"NaN"],[300.125,"2.5"],[-0.005,"0"]]},'
        '{"metric":{"a":"\u00e9"},"values":[[20,"NaN"]]},{"metric":{},"values":[]}]'
    )


def test_no_rows_and_no_columns():
    none = np.empty(0, np.int64)
    for rows, text in ((0, "[]"), (1, '[{"metric":{},"values":[]}]')):
        empty = np.empty((rows, 0))
        found = decimals.rows_text([b"{}"] * rows, none, empty, empty.astype(np.uint8), False)
        assert found == text
