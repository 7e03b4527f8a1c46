"""Times as people give them, as int64 Unix milliseconds.

Numbers are seconds, ints too; datetime and datetime64 are themselves (a datetime without a zone is
UTC); all are rounded to the nearest millisecond. Beyond 2^33 seconds (the year 2242) a number is
taken for a mistake. Pure functions.
"""

from __future__ import annotations

import datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from siltstone.errors import InvalidValue
from siltstone.metrics.scaling import milliseconds
from siltstone.metrics.values import column_of

SECONDS_MAX = 1 << 33
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_MILLISECOND = datetime.timedelta(milliseconds=1)


def time_ms(time: Any) -> int:
    """One time. InvalidValue says what is wrong with it."""
    if isinstance(time, datetime.datetime):
        if time.tzinfo is None:
            time = time.replace(tzinfo=datetime.UTC)
        elapsed: float = (time - _EPOCH) / _MILLISECOND
        return round(elapsed)
    if isinstance(time, np.datetime64):
        if np.isnat(time):
            raise InvalidValue("NaT is no time")
        return int(_rounded(np.asarray([time]))[0])
    if isinstance(time, bool | str | bytes) or time is None:
        raise InvalidValue(f"{time!r} is no time: give Unix seconds, a datetime or a datetime64")
    try:
        seconds = float(time)
    except (TypeError, ValueError):
        raise InvalidValue(
            f"{time!r} is no time: give Unix seconds, a datetime or a datetime64"
        ) from None
    if not -SECONDS_MAX <= seconds <= SECONDS_MAX:  # NaN too
        raise InvalidValue(f"{time!r} as seconds is beyond the year 2242: milliseconds?")
    return round(seconds * 1000)


def times_ms(times: Any) -> npt.NDArray[np.int64]:
    """An array, a sequence or one time, as a contiguous array."""
    array = column_of(times, "times")
    if array.dtype.kind == "M":
        if np.isnat(array).any():
            raise InvalidValue("NaT is no time")
        return _rounded(array)
    if array.dtype.kind not in "iuf":
        return np.array([time_ms(time) for time in array.tolist()], np.int64)
    if array.dtype.kind == "f":
        found = milliseconds(np.ascontiguousarray(array, np.float64), SECONDS_MAX)
        if found is not None:
            return found
    if array.size and not (array.min() >= -SECONDS_MAX and array.max() <= SECONDS_MAX):
        worst = array[int(np.argmax(~(np.abs(array) <= SECONDS_MAX)))]
        raise InvalidValue(f"{worst} as seconds is beyond the year 2242: milliseconds?")
    return np.ascontiguousarray(array.astype(np.int64) * 1000)


def _rounded(array: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    unit = np.datetime_data(array.dtype)[0]
    if unit in ("ns", "us", "ps", "fs", "as"):
        # half a millisecond on top, then cut: numpy cuts towards the past
        array = array + np.timedelta64(500, "us")
    return np.ascontiguousarray(array.astype("datetime64[ms]").astype(np.int64))
