"""Values as people give them, as float64.

Numbers of any kind are values, NaN and the infinities too. Text and None are none: a sample that is
missing is left out, or is NaN where somebody says so. Pure functions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from siltstone.errors import InvalidValue


def number_of(value: Any) -> float:
    """One value. InvalidValue says what is wrong with it."""
    if not isinstance(value, str | bytes):
        try:
            return float(value)
        except (TypeError, ValueError, OverflowError):
            pass
    raise InvalidValue(f"{value!r:.60} is no value: give a number")


def column_of(given: Any, noun: str) -> npt.NDArray[Any]:
    """An array, a sequence or one of them, as an array of one dimension and any type."""
    try:
        array = np.atleast_1d(np.asarray(given))
    except ValueError as error:  # sequences in a sequence
        raise InvalidValue(f"these are no {noun}: {error}") from None
    if array.ndim != 1:
        raise InvalidValue(f"{noun} have one dimension, not {array.ndim}")
    return array


def numbers_of(values: Any) -> npt.NDArray[np.float64]:
    """An array, a sequence or one value, as a contiguous array."""
    array = column_of(values, "values")
    if array.dtype.kind not in "fiub":
        return np.array([number_of(value) for value in array.tolist()], np.float64)
    return np.ascontiguousarray(array, np.float64)
