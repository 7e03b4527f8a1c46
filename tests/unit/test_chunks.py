"""Chunks of samples and of points: every bit comes back, and damaged bytes are only Corruption."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from siltstone.errors import Corruption
from siltstone.metrics import chunks, scaling, smallchunk
from siltstone.metrics.source import STALE_NAN
from siltstone.metrics.tiers import bucket

DECIMALS = st.builds(lambda n, k: n / 10**k, st.integers(-(10**9), 10**9), st.integers(0, 6))
VALUES = st.one_of(
    st.lists(DECIMALS, min_size=1, max_size=300),
    st.lists(st.integers(-(1 << 53), 1 << 53).map(float), min_size=1, max_size=300),
    st.lists(st.integers(-100, 100).map(lambda n: 1e6 + n * 4096.0), min_size=1, max_size=300),
    st.lists(
        st.one_of(st.floats(), DECIMALS, st.sampled_from([STALE_NAN, -0.0, 0.0])),
        min_size=1, max_size=300,
    ),
)  # fmt: skip


def times_for(values, even):
    steps = np.full(len(values), 1000)
    if not even:
        steps = 1 + np.arange(len(values)) * 37 % 2000
    return 1_700_000_000_000 + np.cumsum(steps, dtype=np.int64)


def decoded(codec, data, count):
    times, values = np.empty(count, np.int64), np.empty(count)
    chunks.decode_into(codec, data, times, values)
    return times, values


def assert_back(codec, data, times, values):
    found = decoded(codec, data, len(times))
    assert found[0].tolist() == times.tolist()
    assert found[1].view(np.uint64).tolist() == values.view(np.uint64).tolist()


@given(VALUES, st.booleans())
@settings(max_examples=60)
def test_every_bit_comes_back(values, even):
    array, times = np.array(values), times_for(values, even)
    assert_back(chunks.LONG, chunks.encode(times, array), times, array)
    assert_back(chunks.SMALL, smallchunk.encode(times, array), times, array)


@given(VALUES, st.data())
@settings(max_examples=60)
def test_damaged_bytes_are_corruption_or_other_samples(values, data):
    array, times = np.array(values), times_for(values, data.draw(st.booleans()))
    for codec, encode in ((chunks.LONG, chunks.encode), (chunks.SMALL, smallchunk.encode)):
        good = bytearray(encode(times, array))
        good[data.draw(st.integers(0, len(good) - 1))] ^= data.draw(st.integers(1, 255))
        cut = data.draw(st.integers(0, len(good)))
        for bad in (bytes(good), bytes(good[:cut])):
            spare = np.int64(-7)  # behind what may be written
            found_times, found = np.full(len(times) + 1, spare), np.full(len(times) + 1, 7.0)
            try:
                chunks.decode_into(codec, bad, found_times[:-1], found[:-1])
            except Corruption:
                pass
            assert (found_times[-1], found[-1]) == (spare, 7.0)


def test_few_decimals_are_small():
    rng = np.random.default_rng(1)
    wander = np.round(5000 + np.cumsum(rng.normal(size=8192)), 1)
    times = times_for(wander, True)
    assert len(chunks.encode(times, wander)) < 0.75 * wander.size
    assert len(smallchunk.encode(times, wander)) < 1.4 * wander.size
    noise = rng.normal(size=8192)  # nothing to be found in it
    assert len(chunks.encode(times, noise)) > 4 * wander.size


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1.0, 2.0, 4.0], (0, 0, 1)),
        ([0.5, 0.25, 17.0], (2, 50, 25)),  # quarters: 50, 25, 1700 hundredths
        ([1e9, 1e9 + 4096, 1e9 - 8192], (0, 10**9, 4096)),
        ([1e15 / 7], None),
        ([float(1 << 51)], None),
        ([-0.0, 1.0], None),
        ([np.nan], None),
        ([0.1 + 0.2], None),
        ([7.0, 7.0], (0, 0, 1)),
    ],
)
def test_what_is_whole(values, expected):
    found = scaling.whole_numbers(np.array(values))
    if expected is None:
        assert found is None
        return
    numbers, scale, first, factor = found
    assert (scale, factor) == (expected[0], expected[2])
    assert factor == 1 or first == expected[1]
    back = numbers.view(np.float64).copy()
    scaling.numbers_back(back, scale, first, factor)
    assert back.tolist() == values


@pytest.mark.parametrize("place", [0, 255, 256, 600])
def test_too_many_digits_at_a_scale_that_a_later_value_asks_for(place):
    values = np.arange(900.0)
    values[place], values[-1] = 2.0**50, 0.125  # 2^50 thousandths are no exact whole number
    assert scaling.whole_numbers(values[:-1]) is not None
    assert scaling.whole_numbers(values) is None
    times = times_for(values, True)
    assert_back(chunks.LONG, chunks.encode(times, values), times, values)
    assert_back(chunks.SMALL, smallchunk.encode(times, values), times, values)
    assert bucket(times, values, 10**9)[1]["sum"].sum() == values.sum()


SECONDS = st.one_of(
    st.floats(-8589934592.0, 8589934592.0), st.integers(-(10**9), 10**9).map(lambda n: n / 2000)
)


@given(st.lists(SECONDS, max_size=20))
def test_milliseconds(seconds):
    found = scaling.milliseconds(np.array(seconds, float), 8589934592.0)
    assert found is not None
    assert found.tolist() == np.rint(np.array(seconds, float) * 1000).astype(np.int64).tolist()


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf, 8589934593.0, -8589934593.0])
def test_seconds_out_of_range(wrong):
    for place in range(9):
        seconds = np.zeros(9)
        seconds[place] = wrong
        assert scaling.milliseconds(seconds, 8589934592.0) is None


@given(st.lists(st.sampled_from([0.0, -0.0, 1.0, np.nan]), max_size=4), st.integers(1, 3))
def test_even_and_same(values, first):
    array = np.array(values, float)
    assert smallchunk.same(array) == (len(set(array.view(np.uint64).tolist())) <= 1)
    times = np.cumsum([first, *(2 + (value == 1.0) for value in values)])
    assert smallchunk.even(times) == (len(set(np.diff(times).tolist())) <= 1)


@given(VALUES, st.sampled_from([1000, 10_000, 60_000]))
@settings(max_examples=40)
def test_points_come_back(values, step):
    array = np.array(values)
    times = times_for(values, False)
    ends, columns = bucket(times, array, step)
    found, again = chunks.decode_points(chunks.encode_points(ends, columns), ends.size)
    assert found.tolist() == ends.tolist()
    for name, column in columns.items():
        assert again[name].view(np.uint64).tolist() == column.view(np.uint64).tolist(), name


def test_many_points_with_columns_that_never_change():
    times = np.arange(1, 1001, dtype=np.int64) * 60_000
    ends, columns = bucket(times, np.arange(1000.0), 60_000)
    data = chunks.encode_points(ends, columns)
    again = chunks.decode_points(data, ends.size)[1]
    for name, column in columns.items():
        assert again[name].tolist() == column.tolist()
    for cut in range(0, len(data), 7):
        with pytest.raises(Corruption):
            chunks.decode_points(data[:cut], ends.size)
